"""WebSockets (RFC 6455) behind the pipeline of every other call: limits, correlation id, capability, metrics, upgrade.

In: a session for each connection, made by the endpoint. Out: its text messages, bounded for who reads slowly; pings; a
close that says why. An open socket is looked at again and again: it ends soon after its capability does.
"""

from __future__ import annotations

import binascii
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from h11 import ProtocolError as H11Error
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.handshake import H11Handshake
from wsproto.utilities import ProtocolError, generate_accept_token
from zope.interface import implementer

from ron.auth import Wanted
from ron.kernel.limits import Peer, Refused, too_many
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.web.content import Answer
from ron.web.endpoint import Call, Endpoint, Upgrade, bearer

if TYPE_CHECKING:
    from ron.web.channel import RonChannel
    from ron.web.request import RonRequest

PING_S = 20.0
# Nothing heard for so long, no pong either: nobody is there.
IDLE_S = 60.0
# How often the capability is looked at. With what a process takes to hear of a revocation it stays below 5 s.
LOOK_S = 2.0
# How long the other side may take to say goodbye.
CLOSE_S = 5.0
MAX_MESSAGE_BYTES = 64 * 1024
# Messages kept for who does not read; beyond it the oldest go. So many gone in a row, and it is hopeless.
QUEUE = 256
HOPELESS = 4096
_NONCE_BYTES = 16
# What the handshake is made of (RFC 6455 §4.2.1); wsproto is shown these and no other header.
_HANDSHAKE = (b"connection", b"upgrade", b"sec-websocket-key", b"sec-websocket-version")
_log = Logger(namespace="ron.web")

Query = Mapping[str, str]


class Close:
    """Why a socket ends (RFC 6455 §7.4.1, and the registry it names)."""

    GOING_AWAY = 1001
    UNSUPPORTED = 1003
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL = 1011
    TRY_LATER = 1013


class Session(Protocol):
    """What an endpoint does with one connection; it holds nothing before `opened` and nothing after `closed`.

    owner: whom it counts for, where one may have so many.
    """

    owner: str

    def opened(self, socket: WebSocket) -> None:
        """Both sides agree: `socket.send` at will."""
        ...

    def received(self, message: str) -> None:
        """A whole text message."""
        ...

    def closed(self) -> None:
        """It is over."""
        ...


class Sockets:
    """The open sockets of one endpoint: at most `limit`, of one owner at most `limit_each`.

    origins: pages of other sites whose scripts may connect. Browsers always say where a page is from, and nobody else
    does; a browser has no way to send our capabilities, so that none is let in unless it is named here.
    """

    def __init__(
        self, name: str, *, limit: int = 256, limit_each: int = 16, origins: frozenset[str] = frozenset()
    ) -> None:
        self.name = name
        self.limit = limit
        self.limit_each = limit_each
        self.origins = origins
        self.open: set[WebSocket] = set()
        self._by_owner: Counter[str] = Counter()

    def admit(self, owner: str) -> None:
        """Raise `Refused` (429) when one more would be too many."""
        if self._by_owner[owner] >= self.limit_each:
            raise too_many("websockets", f"at most {self.limit_each} of these connections")
        if len(self.open) >= self.limit:
            raise too_many("websockets", "too many of these connections are open")

    def add(self, socket: WebSocket) -> None:
        """`socket` is open."""
        self.open.add(socket)
        self._by_owner[socket.session.owner] += 1

    def remove(self, socket: WebSocket) -> None:
        """It is not."""
        self.open.discard(socket)
        self._by_owner -= Counter([socket.session.owner])


def websocket_endpoint(
    path: str, *, scope: str, accept: Callable[[Call, Query], Session], enforces: frozenset[str], sockets: Sockets
) -> Endpoint:
    """`GET path` becomes a WebSocket.

    accept: the session for a call with these query parameters, each given once; raises `RonError` to refuse.
    """

    def handler(call: Call) -> Upgrade:
        return _Upgrade(call, Wanted(scope, "GET", path, enforces), accept, sockets)

    return Endpoint(method="GET", path=path, handler=handler, scope=scope, enforces=enforces, hot=True, waits=True)


class _Upgrade(Upgrade):
    """An admitted call that asks for a socket."""

    def __init__(self, call: Call, wanted: Wanted, accept: Callable[[Call, Query], Session], sockets: Sockets) -> None:
        self.call = call
        self.wanted = wanted
        self.sockets = sockets
        self._accept = accept

    def answer(self, request: RonRequest) -> Answer:
        """101, and the connection is a socket. Raises `RonError` for whom that is not to be."""
        origin = request.header("origin")
        if origin is not None and origin not in self.sockets.origins:
            raise RonError(ErrorCode.NO_CAPABILITY, "not for pages of other sites", hint="connect without Origin")
        token = _agreed(request)
        session = self._accept(self.call, _query(request))
        self.sockets.admit(session.owner)
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": token}
        return Answer(101, headers, b"", lambda channel: WebSocket(channel, session, self, bearer(request)))


@implementer(IPushProducer)
class WebSocket:
    """One open connection, between its channel and its session."""

    def __init__(self, channel: RonChannel, session: Session, upgrade: _Upgrade, token: str | None) -> None:
        self.session = session
        self._channel = channel
        self._edge = channel.site.edge
        self._clock = channel.site.reactor
        self._upgrade = upgrade
        self._token = token
        self._frames = Connection(ConnectionType.SERVER)
        self._queue: deque[str] = deque()
        self._lagged = 0
        self._paused = False
        self._ending = False
        self._parts: list[str] = []
        self._parts_bytes = 0
        self._heard_s = self._pinged_s = self._clock.seconds()
        self._timer = LoopingCall(self._look)
        self._timer.clock = self._clock

    # For the session

    def send(self, text: str) -> None:
        """Send `text`, now or when the other side reads again; nothing once the end has begun."""
        if self._ending:
            return
        if not self._paused:
            self._write(TextMessage(data=text))
            return
        if len(self._queue) >= QUEUE:
            self._queue.popleft()
            self._lagged += 1
            self._edge.metrics.queue_dropped.labels(self._upgrade.sockets.name).inc()
            if self._lagged >= HOPELESS:
                self.close(Close.TRY_LATER, "you read too slowly")
                return
        self._queue.append(text)

    def close(self, code: int, reason: str = "") -> None:
        """Say goodbye; the other side has `CLOSE_S` to say it too."""
        if self._ending:
            return
        self._ending = True
        self._queue.clear()
        if self._frames.state is ConnectionState.OPEN:
            self._write(CloseConnection(code, reason))
        self._timer.stop()
        self._timer = LoopingCall(self._channel.hang_up)
        self._timer.clock = self._clock
        self._timer.start(CLOSE_S, now=False)

    # For the channel

    def opened(self, *, paused: bool) -> None:
        """The answer that agrees is on its way. paused: the other side does not read at present."""
        self._paused = paused
        self._upgrade.sockets.add(self)
        self._edge.metrics.inflight.labels(self._upgrade.wanted.path).inc()
        self._timer.start(LOOK_S, now=False)
        self._guarded(self.session.opened, self)

    def received(self, chunk: bytes) -> None:
        """Bytes from the other side."""
        now_s = self._heard_s = self._clock.seconds()
        try:
            cast(Peer, self._channel.peer).check_bytes(now_s)
        except Refused as error:
            self.close(Close.POLICY, error.message)
        if self._frames.state is ConnectionState.CLOSED:
            return
        self._frames.receive_data(chunk)
        for event in self._frames.events():
            self._take(event)

    def going_away(self) -> None:
        """We are asked to end."""
        self.close(Close.GOING_AWAY, "shutting down")

    def lost(self) -> None:
        """The connection has gone."""
        self._ending = True
        self._queue.clear()
        if self._timer.running:
            self._timer.stop()
        self._upgrade.sockets.remove(self)
        self._edge.metrics.inflight.labels(self._upgrade.wanted.path).dec()
        self._guarded(self.session.closed)

    def pauseProducing(self) -> None:
        """The other side does not read as fast as we write."""
        self._paused = True

    def resumeProducing(self) -> None:
        """It has read everything: first what it missed, then what was kept."""
        self._paused = False
        self._heard_s = self._clock.seconds()  # nothing was read from it meanwhile
        if self._lagged and not self._ending:
            lagged, self._lagged = self._lagged, 0
            self._write(TextMessage(data=lagged_notice(lagged)))
        while self._queue and not self._paused:
            self._write(TextMessage(data=self._queue.popleft()))

    def stopProducing(self) -> None:
        """The connection is about to go."""

    # Inside

    def _take(self, event: Event) -> None:
        is_open = self._frames.state is ConnectionState.OPEN
        if isinstance(event, Ping):
            if is_open:
                self._write(event.response())
        elif isinstance(event, TextMessage):
            self._collect(event)
        elif isinstance(event, BytesMessage):
            self.close(Close.UNSUPPORTED, "text only")
        elif isinstance(event, CloseConnection):
            if is_open:
                self.close(event.code, event.reason or "")  # what came was no WebSocket protocol
            elif self._frames.state is ConnectionState.REMOTE_CLOSING:
                self._ending = True
                self._write(event.response())
            self._channel.hang_up()

    def _collect(self, event: TextMessage) -> None:
        self._parts_bytes += len(event.data.encode())
        if self._ending:
            return
        if self._parts_bytes > MAX_MESSAGE_BYTES:
            self._parts.clear()
            self.close(Close.TOO_BIG, f"at most {MAX_MESSAGE_BYTES} bytes a message")
            return
        self._parts.append(event.data)
        if event.message_finished:
            message, self._parts, self._parts_bytes = "".join(self._parts), [], 0
            self._guarded(self.session.received, message)

    def _look(self) -> None:
        """Is the capability good still, is anybody there?"""
        if self._ending:
            return
        now_s = self._clock.seconds()
        try:
            self._edge.authority.stands(self._token, self._upgrade.wanted)
        except RonError as error:
            self.close(Close.POLICY, error.message)
            return
        if self._paused:
            return  # the channel gives up who reads nothing at all
        if now_s - self._heard_s >= IDLE_S:
            self.close(Close.INTERNAL, "nothing heard from you")
        elif now_s - self._pinged_s >= PING_S:
            self._pinged_s = now_s
            self._write(Ping())

    def _write(self, event: Event) -> None:
        frame = self._frames.send(event)
        if self._upgrade.call.capability is not None:
            self._edge.authority.charge_bytes(self._upgrade.call.capability, len(frame))
        self._channel.write(frame)

    def _guarded(self, call: Callable[..., None], *args: Any) -> None:
        try:
            call(*args)
        except Exception:  # noqa: BLE001 - a session's mistake ends that session alone
            _log.failure("a WebSocket session failed", event="websocket_failed", queue=self._upgrade.sockets.name)
            self.close(Close.INTERNAL, "internal error")


def lagged_notice(count: int) -> str:
    """The message that `count` messages are missing at this place."""
    return f'{{"lagged":{count}}}'


def _agreed(request: RonRequest) -> str:
    """The token that accepts the handshake. Raises `RonError`: 426 for who does not ask for a WebSocket of ours."""
    headers = [(name, value) for name in _HANDSHAKE for value in request.requestHeaders.getRawHeaders(name, ())]
    versions = [value for name, value in headers if name == b"sec-websocket-version"]
    asks = any(name == b"upgrade" and value.lower() == b"websocket" for name, value in headers)
    if not asks or request.method != b"GET" or not request.channel.persistent or versions != [b"13"]:
        raise RonError(
            ErrorCode.UNSUPPORTED,
            "this is a WebSocket",
            hint="connect with a WebSocket client, version 13, over HTTP/1.1",
            status=426,
            headers={"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"},
        )
    keys = [value for name, value in headers if name == b"sec-websocket-key"]
    try:
        handshake = H11Handshake(ConnectionType.SERVER)
        handshake.initiate_upgrade_connection([(b"host", b"localhost"), *headers], b"/")
        if len(keys) != 1 or len(binascii.a2b_base64(keys[0], strict_mode=True)) != _NONCE_BYTES:
            raise ValueError("no key")
    except (ProtocolError, H11Error, ValueError):
        raise bad_request("a malformed WebSocket handshake", "see RFC 6455 §4.1") from None
    return generate_accept_token(keys[0]).decode("ascii")


def _query(request: RonRequest) -> dict[str, str]:
    found = {}
    for name, values in (request.args or {}).items():
        if len(values) != 1:
            raise bad_request("a query parameter stands there twice")
        found[name.decode("latin-1")] = values[0].decode("latin-1")
    return found
