"""One request that is whole: its handler runs within a deadline, under its correlation id and its span.

In: what came, and the connection it came by. Out: the answer in chunks the peer has room for, or an error's envelope.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.kernel import correlation
from ron.kernel.tracing import Span
from ron.oap import hello
from ron.oap.connection import packed, pieces
from ron.oap.frames import Flags, Frame
from ron.oap.messages import Request, Response
from ron.proto.clock import now_rfc3339
from ron.proto.errors import ErrorCode, RonError, bad_request, unavailable
from ron.proto.ids import uuid7_text

if TYPE_CHECKING:
    from ron.oap.accepted import Accepted, Incoming

_log = Logger(namespace="ron.oap")


class Job:
    """A request being answered."""

    def __init__(self, connection: Accepted, incoming: Incoming) -> None:
        begin = incoming.begin
        self._connection = connection
        self._server = connection.server
        self._number = begin.corr_id
        self.proto = begin.app_proto_id
        self._size = incoming.assembly.size
        self._compress = bool(begin.flags & Flags.COMP)
        self._status = 0
        self._began_s = connection.reactor.seconds()
        origin = connection.announced.take(begin.corr_id)
        self._corr_id = origin.corr_id or uuid7_text()
        self._span = self._start_span(origin.parent)
        self._request = self._make_request(begin, incoming.assembly.whole())
        self._work: Deferred[None] | None = None
        self._unwanted = self._late = self._handled = False

    def start(self) -> None:
        """Begin. What the handler causes belongs to the request's correlation id."""
        self._server.inflight.inc()
        mark = correlation.begin(self._corr_id, peer_addr=self._connection.peer_name)
        try:
            work = self._work = Deferred.fromCoroutine(self._run())
        finally:
            correlation.end(mark)
        if not self._handled:
            self._server.deadlines.begin(self)
        work.addErrback(self._failed)
        work.addBoth(self._ended)

    def cancel(self) -> None:
        """The handler's time is over."""
        self._late = True
        if self._work is not None:
            self._work.cancel()

    def give_up(self) -> None:
        """Nobody wants the answer any more."""
        self._unwanted = True
        if self._work is not None:
            self._work.cancel()

    async def _run(self) -> None:
        """Work and answer. A refusal is an answer; only what nobody foresaw comes out of here."""
        spans = self._server.spans
        try:
            if spans is None:
                response = await self._handle()
            else:
                with spans.within(self._span):
                    response = await self._handle()
        except RonError as error:
            await self._refuse(error)
        else:
            await self._answer(response)

    async def _handle(self) -> Response:
        try:
            response = await self._server.handler(self._request)
        except CancelledError:
            if not self._late:
                raise unavailable("the request was given up") from None
            self._server.metrics.io_timeouts.labels(self._server.name).inc()
            raise RonError(ErrorCode.TIMEOUT, f"no answer within {self._server.deadline_s:g} s") from None
        finally:
            self._server.deadlines.end(self)
            self._handled = True
        if hello.is_refusal(response.code):
            raise RonError(ErrorCode.INTERNAL, f"an answer with the code {response.code}")
        return response

    async def _answer(self, response: Response) -> None:
        compress = response.compress and self._compress
        base = Flags.RESP | (Flags.APP_E2E if response.e2e else Flags(0))
        self._status = response.code
        for piece, is_last in pieces(response.payload, self._connection.chunk_bytes):
            flags, payload = packed(base | Flags.END if is_last else base, piece, compress=compress)
            await self._send(flags, response.code, payload)

    async def _refuse(self, error: RonError) -> None:
        self._server.with_retry_after(error)
        payload = hello.refusal(error, ts=now_rfc3339(), request_id=self._corr_id)
        self._status = error.status
        await self._send(Flags.RESP | Flags.END, error.status, payload)

    async def _send(self, flags: Flags, code: int, payload: bytes) -> None:
        connection = self._connection
        await connection.room()
        if self._unwanted:  # its number may be that of another conversation by now
            raise CancelledError
        connection.streams.send(flags, self._number)
        request = self._request
        connection.write(
            Frame(
                flags=flags,
                code=code,
                app_proto_id=self.proto,
                tenant_id=request.tenant_id,
                corr_id=self._number,
                payload=payload,
            )
        )

    def _failed(self, failure: Failure) -> None:
        """A defect of the handler, or nobody who waits for it any more."""
        if self._unwanted or self._connection.over:
            self._status = 499
            return
        _log.failure("a handler of OAP failed", failure, event="oap_failed", corr_id=self._corr_id)
        self._status = 500
        if self._number in self._connection.streams:
            self._connection.streams.send(Flags.RESP | Flags.END, self._number)
            broken = RonError(ErrorCode.INTERNAL, "the request failed", hint="see the server's log")
            self._connection.refuse(broken, self._number, self.proto, self._corr_id)

    def _ended(self, _none: Any) -> None:
        server = self._server
        server.inflight.dec()
        server.concurrency.leave()
        server.latency.observe(self._connection.reactor.seconds() - self._began_s)
        server.count(self._status)
        if self._span is not None:
            self._span.end(self._status)
        self._connection.released(self._size)
        self._connection.finished(self._number, self)

    def _start_span(self, parent: Any) -> Span | None:
        tracing = self._server.tracing
        if tracing is None:
            return None
        said = {"route": f"{self.proto:#06x}", "transport": "oap", "bytes": self._size}
        return tracing.start("oap.request", self._corr_id, parent, said)

    def _make_request(self, begin: Frame, payload: bytes) -> Request:
        return Request(
            app_proto_id=begin.app_proto_id,
            code=begin.code,
            tenant_id=begin.tenant_id,
            cap=begin.cap,
            payload=payload,
            e2e=bool(begin.flags & Flags.APP_E2E),
            corr_id=self._corr_id,
            peer=self._connection.peer_name,
            identity=self._connection.identity,
            push=self._push,
            span=self._span,
        )

    def _push(self, proto: int, code: int, payload: bytes) -> bool:
        """An EVENT for whoever asked, or False. Raises `RonError` for what fits no frame or protocol 0."""
        connection = self._connection
        if proto == hello.CONTROL:
            raise bad_request("protocol 0 is not for applications")
        if connection.over or connection.paused:
            return False
        frame = Frame(flags=Flags.EVENT, app_proto_id=proto, code=code, corr_id=self._number, payload=payload)
        connection.write(frame)
        return True
