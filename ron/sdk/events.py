"""Follow what happens to onions: the client of the runtime's `GET /v1/events`, over a Unix socket, TCP or TLS.

In: an endpoint to connect to and a capability with scope `onion:events`. Out: each event in order, and where some are
missing how many. `follow` connects again by itself and asks for what it missed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, cast

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from ron.kernel.aio import within
from ron.kernel.backoff import Backoff
from ron.proto.errors import ErrorCode, RonError, from_envelope
from ron.proto.exitcodes import Unreachable
from ron.proto.onionevents import EVENTS_PATH, EventView, Lagged

CONNECT_TIMEOUT_S = 10.0
# The runtime pings three times as often.
SILENCE_S = 60.0
# Messages that wait for `next`; beyond it nothing is read until some were taken.
WAITING = 256
MAX_MESSAGE_BYTES = 64 * 1024
_POLICY = 1008

Told = EventView | Lagged


async def connect(
    reactor: Any, endpoint: IStreamClientEndpoint, capability: str, *, after: int | None = None, host: str = "localhost"
) -> EventStream:
    """A stream that is open. after: the number of the last event that is known; those since come first.

    Raises `RonError`: the runtime's own refusal, `Unreachable` when nobody answers within ten seconds.
    """
    try:
        connecting = cast("Deferred[EventStream]", endpoint.connect(Factory.forProtocol(lambda: EventStream(reactor))))
        stream = await within(reactor, CONNECT_TIMEOUT_S, connecting)
        await within(reactor, CONNECT_TIMEOUT_S, stream.ask(capability, after, host))
    except (CancelledError, RonError):
        raise
    except Exception as error:
        # TCP, Unix sockets and TLS each have their own exceptions; they all mean: nobody is there
        raise Unreachable(f"no events: {type(error).__name__}", hint="is the onion runtime running?") from error
    return stream


async def follow(
    reactor: Any,
    endpoint: IStreamClientEndpoint,
    capability: str,
    heed: Callable[[Told], None],
    *,
    after: int | None = None,
) -> None:
    """Call `heed` with everything, until it is cancelled. Raises `RonError` for what trying again will not mend.

    A lost connection costs no event once one was heard, or `after` was given: before that there is no number to go by.
    """
    backoff = Backoff(base_s=0.2, ceiling_s=10.0)
    while True:
        try:
            stream = await connect(reactor, endpoint, capability, after=after)
            backoff.reset()
            try:
                while True:
                    told = await stream.next()
                    after = told.seq if isinstance(told, EventView) else after
                    heed(told)
            finally:
                stream.close()
        except RonError as error:
            if not (error.retryable or isinstance(error, Unreachable)):
                raise
        await deferLater(reactor, backoff.next_delay_s())


class EventStream(Protocol):
    """One connection; `connect` makes it."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._opened: Deferred[None] = Deferred(self._given_up)
        self._status = 0
        self._refusal = b""
        self._parts: list[str] = []
        self._waiting: deque[Told] = deque()
        self._taker: Deferred[None] | None = None
        self._end: RonError | None = None

    def ask(self, capability: str, after: int | None, host: str) -> Deferred[None]:
        """Fires when the runtime agrees."""
        target = EVENTS_PATH if after is None else f"{EVENTS_PATH}?after={after}"
        headers = [(b"Authorization", f"Bearer {capability}".encode("ascii"))]
        self._write(Request(host, target, extra_headers=headers))
        return self._opened

    async def next(self) -> Told:
        """The next event, or that some are missing. For one caller at a time. Raises `RonError` once it has ended."""
        while not self._waiting:
            if self._end is not None:
                raise self._end
            self._taker = Deferred()
            try:
                await within(self._reactor, SILENCE_S, self._taker)
            except DeadlineError:
                self.close()
                raise Unreachable("no sign of life from the onion runtime") from None
        told = self._waiting.popleft()
        if len(self._waiting) == WAITING // 2 and self.transport is not None:
            self.transport.resumeProducing()  # type: ignore[attr-defined]
        return told

    def close(self) -> None:
        """End it."""
        if self.transport is None or self._end is not None:
            return
        self._ended(RonError(ErrorCode.TIMEOUT, "the stream was closed"))
        if self._ws.state is ConnectionState.OPEN:
            self._write(CloseConnection(1000))
        self.transport.loseConnection()

    # For Twisted

    def dataReceived(self, data: bytes) -> None:
        """Frames, and before them the runtime's answer."""
        try:
            self._ws.receive_data(data)
            for event in self._ws.events():
                self._take(event)
        except (ProtocolError, msgspec.MsgspecError, UnicodeDecodeError, ValueError):
            self._broken("it is no stream of events that answers")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end, whatever it was."""
        self._ended(Unreachable("the connection to the onion runtime was lost"))

    # Inside

    def _take(self, event: Event) -> None:
        if isinstance(event, TextMessage):
            self._collect(event)
        elif isinstance(event, Ping):
            self._write(event.response())
            self._wake()
        elif isinstance(event, AcceptConnection):
            if not self._opened.called:
                self._opened.callback(None)
        elif isinstance(event, CloseConnection):
            self._closed(event)
        elif isinstance(event, RejectConnection):
            self._status = event.status_code
            if not event.has_body:
                self._refused()
        elif isinstance(event, RejectData):
            self._refusal = (self._refusal + event.data)[:MAX_MESSAGE_BYTES]
            if event.body_finished:
                self._refused()

    def _collect(self, event: TextMessage) -> None:
        self._parts.append(event.data)
        if sum(map(len, self._parts)) > MAX_MESSAGE_BYTES:
            self._broken("a message without an end")
        elif event.message_finished:
            message, self._parts = "".join(self._parts), []
            self._waiting.append(_read(message))
            if len(self._waiting) == WAITING and self.transport is not None:
                self.transport.pauseProducing()  # type: ignore[attr-defined]
            self._wake()

    def _closed(self, event: CloseConnection) -> None:
        why = event.reason or f"with code {event.code}"
        if event.code == _POLICY:
            self._ended(RonError(ErrorCode.NO_CAPABILITY, f"the onion runtime ended the stream: {why}"))
        else:
            self._ended(Unreachable(f"the onion runtime ended the stream: {why}"))
        if self._ws.state is ConnectionState.REMOTE_CLOSING:
            self._write(event.response())
        self._hang_up()

    def _refused(self) -> None:
        self._ended(from_envelope(self._refusal, self._status))
        self._hang_up()

    def _broken(self, why: str) -> None:
        self._ended(RonError(ErrorCode.INTERNAL, why))
        self._hang_up()

    def _ended(self, error: RonError) -> None:
        if self._end is not None:
            return
        self._end = error
        if not self._opened.called:
            self._opened.errback(error)
        self._wake()

    def _given_up(self, _opened: Deferred[None]) -> None:
        self._hang_up()

    def _wake(self) -> None:
        taker, self._taker = self._taker, None
        if taker is not None and not taker.called:
            taker.callback(None)

    def _hang_up(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def _write(self, event: Event) -> None:
        if self.transport is not None:
            self.transport.write(self._ws.send(event))


def _read(message: str) -> Told:
    found = msgspec.json.decode(message)
    shape: Any = Lagged if isinstance(found, dict) and "lagged" in found else EventView
    told: Told = msgspec.convert(found, shape)
    return told
