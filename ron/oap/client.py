"""Calling over OAP/1: one connection, many calls at a time, each with a deadline, a correlation id and a span.

In: any client endpoint (TCP, TLS, a Unix socket, an onion), payloads. Out: answers, or `RonError` as the server raised
it. A call that is given up tells the server so; a server that then says nothing for too long is hung up on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.kernel import correlation
from ron.kernel.aio import occurred, within
from ron.kernel.commands import Busy
from ron.kernel.limits import Refused
from ron.kernel.limits_config import LimitsConfig
from ron.kernel.openspans import OpenSpans
from ron.kernel.tracing import Span, Tracing
from ron.oap import hello
from ron.oap.connection import Assembly, Connection, packed, pieces
from ron.oap.frames import FIXED_BYTES, MAX_FRAME_BYTES, Flags, Frame, Violation, encode
from ron.oap.hello import CONTROL, MAX_INFLIGHT, HelloAnswer
from ron.oap.messages import Event, Response
from ron.oap.streams import Means, Side
from ron.oap.tracing import number_of, write_context
from ron.proto.errors import ErrorCode, RonError, bad_request, unavailable
from ron.proto.ids import is_uuid, uuid7

# As long as it takes through tor on a bad day.
CONNECT_S = 30.0
DEADLINE_S = 5.0
_HELLO_NUMBER = 1
_WHOLE = Flags.REQ | Flags.START | Flags.END
_log = Logger(namespace="ron.oap")


class _Call:
    """A call under way. settled: the server has said enough. patience: since it was given up."""

    __slots__ = ("answer", "assembly", "patience", "settled")

    def __init__(self, limit: int) -> None:
        self.answer: Deferred[Response] = Deferred()
        self.assembly = Assembly(limit)
        self.settled = False
        self.patience: IDelayedCall | None = None

    def settle(self, outcome: Response | RonError) -> None:
        """This is what became of it, for whoever still waits; only the first counts."""
        if self.settled:
            return
        self.settled = True
        if self.answer.called:
            return  # cancelled
        if isinstance(outcome, RonError):
            self.answer.errback(outcome)
        else:
            self.answer.callback(outcome)


class OapClient(Connection):
    """The asking end of one connection; made by `connect`. offer: what the server's HELLO says."""

    offer: HelloAnswer

    def __init__(
        self,
        reactor: Any,
        *,
        tracing: Tracing | None = None,
        spans: OpenSpans | None = None,
        limits: LimitsConfig | None = None,
        on_event: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        super().__init__(reactor, Side.ASKS, limits or LimitsConfig(), MAX_INFLIGHT)
        self._tracing = tracing
        self._spans = spans
        self._on_event = on_event
        self._calls: dict[int, _Call] = {}
        self._greeted: Deferred[HelloAnswer] | None = None

    @classmethod
    async def connect(
        cls,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        *,
        tracing: Tracing | None = None,
        spans: OpenSpans | None = None,
        limits: LimitsConfig | None = None,
        on_event: Callable[[Event], None] = lambda _event: None,
        connect_s: float = CONNECT_S,
    ) -> OapClient:
        """A connection that has said hello.

        Raises `RonError`: StoreUnavailable when nobody is there, Timeout when it takes too long, or what the server
        answers.
        """
        factory = Factory.forProtocol(
            lambda: cls(reactor, tracing=tracing, spans=spans, limits=limits, on_event=on_event)
        )
        factory.noisy = False
        try:
            client: OapClient = await within(reactor, connect_s, endpoint.connect(factory))  # type: ignore[arg-type]
        except DeadlineError:
            raise RonError(ErrorCode.TIMEOUT, f"not connected within {connect_s:g} s") from None
        except Exception as error:
            raise unavailable(f"cannot connect: {type(error).__name__}") from error
        try:
            await client.ping(client.limits.handshake_timeout_ms / 1000)
        except BaseException:
            client.abort()
            raise
        return client

    async def ping(self, seconds: float) -> HelloAnswer:
        """Say hello, and hear it back; that also keeps an idle connection. Raises as `connect`. One at a time."""
        if self.over:
            raise self.gone()
        self._greeted = Deferred()
        self.write(Frame(flags=_WHOLE, app_proto_id=CONTROL, corr_id=_HELLO_NUMBER))
        try:
            self.offer = await within(self.reactor, seconds, self._greeted)
        except DeadlineError:
            raise RonError(ErrorCode.TIMEOUT, f"no answer to HELLO within {seconds:g} s") from None
        finally:
            self._greeted = None
        self.streams.max_inflight = min(MAX_INFLIGHT, self.offer.max_inflight)
        self.peer_max_frame = min(MAX_FRAME_BYTES, self.offer.max_frame)
        self.chunk_bytes = self.offer.chunk_bytes
        return self.offer

    async def close(self, seconds: float = 1.0) -> None:
        """Hang up; return when it is over. What is under way fails."""
        if not self.over:
            self.hang_up()
        try:
            await within(self.reactor, seconds, occurred(self.lost))
        except DeadlineError:
            self.abort()

    async def call(
        self,
        app_proto_id: int,
        code: int,
        payload: bytes = b"",
        *,
        cap: bytes = b"",
        tenant_id: int = 0,
        deadline_s: float = DEADLINE_S,
        corr_id: str | None = None,
        span: Span | None = None,
        e2e: bool = False,
        compress: bool = False,
    ) -> Response:
        """The answer to one request.

        code: what is asked for. cap: a capability. corr_id: UUID of what causes the call; that of the request being
        worked on, or a new one. span: below which this call's span hangs; else the one `spans` has open for `corr_id`.
        e2e: the payload is sealed. compress: send COMP and take it, where the server does; not where a secret stands
        beside a stranger's text.

        Raises `RonError`: `Busy` when as many calls are under way as the server takes, Timeout at the deadline,
        StoreUnavailable when the connection is gone, or what the server answers.
        """
        corr_id = corr_id or correlation.current() or str(uuid7())
        if app_proto_id == CONTROL or not is_uuid(corr_id):
            raise bad_request("protocol 0 is not for applications, and a correlation id is a UUID")
        if span is None and self._spans is not None:
            span = self._spans.current(corr_id)
        child = self._start_span(app_proto_id, corr_id, span)
        begin = Frame(
            flags=Flags.REQ | (Flags.APP_E2E if e2e else Flags(0)),
            code=code,
            app_proto_id=app_proto_id,
            tenant_id=tenant_id,
            corr_id=self._number(corr_id),
        )
        context = write_context(self._tracing, corr_id, child or span)
        try:
            exchange = self._exchange(begin, cap, payload, context, compress=compress)
            response = await within(self.reactor, deadline_s, exchange)
        except DeadlineError:
            _end(child, 504)
            raise RonError(ErrorCode.TIMEOUT, f"no answer within {deadline_s:g} s") from None
        except RonError as error:
            _end(child, error.status, error.code.value)
            raise
        except BaseException as error:
            _end(child, None, type(error).__name__)
            raise
        _end(child, response.code or 200)
        return response

    # -- one call ---------------------------------------------------------------------------------------------------

    def _number(self, corr_id: str) -> int:
        """Half of the correlation id, so that frames can be told by it; another when it is taken."""
        number = number_of(corr_id)
        while number in self.streams or number == _HELLO_NUMBER:
            number = number_of(str(uuid7()))
        return number

    async def _exchange(self, begin: Frame, cap: bytes, payload: bytes, context: bytes, *, compress: bool) -> Response:
        number, call = begin.corr_id, _Call(self.limits.body_bytes)
        try:
            await self._send(begin, cap, payload, context, call, compress=compress and self._takes("COMP"))
            return await call.answer
        finally:
            if self._calls.get(number) is call and not call.settled:
                self._give_up(number, call)
            elif call.settled and self.streams.state(number) == "refused":
                self._end_refused(begin)
            # nobody asks any more what became of it
            call.answer.addErrback(lambda _failure: None)

    async def _send(
        self, begin: Frame, cap: bytes, payload: bytes, context: bytes, call: _Call, *, compress: bool
    ) -> None:
        number, size = begin.corr_id, min(self.chunk_bytes, self.peer_max_frame - FIXED_BYTES - len(cap))
        if size < 1:
            raise bad_request("the capability leaves no room in a frame")
        first = True
        for piece, is_last in pieces(payload, size):
            await self.room()
            if call.settled:
                return  # the server has heard enough
            flags = begin.flags | (Flags.START if first else Flags(0)) | (Flags.END if is_last else Flags(0))
            flags, raw = packed(flags, piece, compress=compress)
            whole = encode(_with(begin, flags, raw, cap if first else b""), self.peer_max_frame)
            self._step(flags, number)
            if first:
                self._calls[number] = call
                self.control(hello.CONTEXT, number, context)
            cast(Any, self.transport).write(whole)
            first = False

    def _step(self, flags: Flags, number: int) -> None:
        try:
            self.streams.send(flags, number)
        except Refused:
            raise Busy("the peer") from None

    def _end_refused(self, begin: Frame) -> None:
        """The server has answered before it had heard all: the rest is nothing, and then the number is free."""
        self.streams.send(Flags.REQ | Flags.END, begin.corr_id)
        if not self.over:
            self.write(_with(begin, Flags.REQ | Flags.END, b"", b""))

    def _give_up(self, number: int, call: _Call) -> None:
        """Nobody waits for it here; the server is told, and its answer is waited for to free the number."""
        if self.over:
            return
        self.control(hello.CANCEL, number)
        call.patience = self.reactor.callLater(self.limits.read_idle_ms / 1000, self._lost_patience)

    def _lost_patience(self) -> None:
        self.why = unavailable("the peer does not answer")
        self.abort()

    def _takes(self, flag: str) -> bool:
        return flag in self.offer.supported_flags

    def _start_span(self, proto: int, corr_id: str, above: Span | None) -> Span | None:
        if self._tracing is None:
            return None
        return self._tracing.start("oap.call", corr_id, above, {"route": f"{proto:#06x}", "transport": "oap"})

    # -- what comes back --------------------------------------------------------------------------------------------

    def frame_received(self, frame: Frame) -> None:
        """One frame of the server."""
        if frame.app_proto_id == CONTROL:
            self._control_received(frame)
            return
        means = self.streams.receive(frame.flags, frame.corr_id)
        if means is Means.EVENT:
            self._event_received(frame)
        elif means is Means.GOES_ON:
            self._answer_received(frame)

    def _control_received(self, frame: Frame) -> None:
        if frame.flags & Flags.EVENT:
            return  # an ACK we never asked for, or something newer than we are
        if not frame.flags & Flags.RESP or frame.flags & Flags.REQ:
            raise Violation("a request from whoever answers", corr_id=frame.corr_id)
        waiter, self._greeted = self._greeted, None
        if waiter is not None and frame.corr_id == _HELLO_NUMBER and not waiter.called:
            self._hear_hello(waiter, frame)
        elif hello.is_refusal(frame.code):
            # about the connection as a whole: it is going to be ended
            self.why = hello.error_of(frame.code, frame.payload)
            if waiter is not None:
                waiter.errback(self.why)

    def _hear_hello(self, waiter: Deferred[HelloAnswer], frame: Frame) -> None:
        try:
            offer = hello.check_answer(frame.code, frame.payload)
        except RonError as error:
            waiter.errback(error)
        else:
            waiter.callback(offer)

    def _event_received(self, frame: Frame) -> None:
        event = Event(app_proto_id=frame.app_proto_id, code=frame.code, payload=frame.payload, number=frame.corr_id)
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001 - the listener's defect is not the connection's
            _log.failure("an event could not be taken", event="oap_event_failed")

    def _answer_received(self, frame: Frame) -> None:
        call = self._calls[frame.corr_id]
        ended = bool(frame.flags & Flags.END)
        if ended:
            self._forget(frame.corr_id, call)
        if call.settled or call.patience is not None:
            return
        if hello.is_refusal(frame.code):
            if ended:
                call.settle(hello.error_of(frame.code, frame.payload))
            return
        try:
            call.assembly.add(frame)
        except RonError as error:
            call.settle(error)
            if not ended:
                self._give_up(frame.corr_id, call)
            return
        self.acknowledge(frame, call.assembly.received)
        if ended:
            e2e = bool(frame.flags & Flags.APP_E2E)
            call.settle(Response(payload=call.assembly.whole(), code=frame.code, e2e=e2e))

    def _forget(self, number: int, call: _Call) -> None:
        """The server has said its last word."""
        del self._calls[number]
        if call.patience is not None:
            call.patience.cancel()
            # it may have been given up in the middle of its request
            self.streams.cancel(number)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Whoever waits is told why."""
        calls, self._calls = self._calls, {}
        waiter, self._greeted = self._greeted, None
        super().connectionLost(reason)
        if waiter is not None and not waiter.called:
            waiter.errback(self.gone())
        for call in calls.values():
            if call.patience is not None and call.patience.active():
                call.patience.cancel()
            call.settle(self.gone())


def _with(begin: Frame, flags: Flags, payload: bytes, cap: bytes) -> Frame:
    return Frame(
        flags=flags,
        code=begin.code,
        app_proto_id=begin.app_proto_id,
        tenant_id=begin.tenant_id,
        corr_id=begin.corr_id,
        cap=cap,
        payload=payload,
    )


def _end(span: Span | None, status: int | None, error: str | None = None) -> None:
    if span is not None:
        span.end(status, error=error)
