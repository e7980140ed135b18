"""One HTTP connection within the listener's limits: how many, how long, how fast.

In: bytes from the transport, and its word that the client does not read. Out: Twisted's channel, fed with what is
within the limits; everybody else is told why in the envelope and cut off. The phases are in docs/limits.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from twisted.internet.interfaces import IAddress, IDelayedCall, IHalfCloseableDescriptor, ITransport
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from twisted.web import http

from ron.kernel.limits import Pace, Peer, Refused, peer_name
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.web.express import ExpressRequest, Head, taken
from ron.web.head import answer_head, error_answer
from ron.web.sending import sent_at_once, unsent

if TYPE_CHECKING:
    from ron.web.endpoint import BoundEndpoint
    from ron.web.request import AnyRequest
    from ron.web.site import RonSite
    from ron.web.websocket import WebSocket

# Slower than this on average, after a grace of the idle time, a body or an answer is given up: tor's slowest circuits
# make tens of KiB a second, and a 16 MiB body at this rate still holds its connection for over four hours.
MIN_BYTES_PER_S = 1024.0
# Connections that were refused and may still read why; beyond it, they are closed at once.
MAX_TURNED_AWAY = 256
TURNED_AWAY_S = 1.0
# After a 429 the connection's next request is looked at so much later: a flood is refused 20 times a second and
# connection, and not as fast as it comes.
PENALTY_S = 0.05


class RonChannel(http.HTTPChannel):
    """Twisted's channel within our limits; a malformed request is told so in the envelope.

    One timer looks at what the connection is doing and how long it may. Twisted's own idle timeout, which each byte
    renews, is off.
    """

    site: RonSite
    requests: list[AnyRequest]
    peer: Peer | None = None
    receiving: Pace | None = None
    early: Head | None = None
    _sending: Pace | None = None
    _unsent_bytes = 0
    _since_s = 0.0
    _watch: IDelayedCall | None = None
    _held: AnyRequest | None = None
    _penalty: IDelayedCall | None = None
    _served = False
    _turned_away = False
    _replaying = False
    _stalled = False
    _socket: WebSocket | None = None

    # -- coming and going -------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Known to the site from now on, so that it can be drained; turned away when there are too many."""
        super().connectionMade()
        site = self.site
        site.channels.add(self)
        self.totalHeadersSize = site.edge.limits.headers_bytes
        self._since_s = site.reactor.seconds()
        # the transport makes new ones, with a system call, each time it is asked; Twisted asks twice a request
        self._peer_address: IAddress = cast(ITransport, self.transport).getPeer()
        self._host_address: IAddress = cast(ITransport, self.transport).getHost()
        self._peer_name = peer_name(getattr(self._peer_address, "host", None))
        try:
            self.peer = site.edge.peers.connect(self._peer_name)
        except Refused as error:
            self._turn_away(error)
            return
        site.open_connections.inc()
        self._look_in(self._read_idle_s)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Gone."""
        self.site.channels.discard(self)
        for timer in (self._watch, self._penalty):
            if timer is not None:
                timer.cancel()
        self._watch = self._penalty = None
        if self.peer is not None:
            self.site.edge.peers.disconnect(self._peer_name)
            self.site.open_connections.dec()
            self.site.edge.traffic.flush()
        elif self._turned_away:
            self.site.turned_away -= 1
        if self._socket is not None:
            self._socket.lost()
        super().connectionLost(reason)

    def _turn_away(self, error: Refused) -> None:
        """Say why and close. What the client has sent already would reset the connection under the answer, so for a
        moment it is read and thrown away."""
        transport = cast(Any, self.transport)
        self._turned_away = True
        self.site.turned_away += 1
        transport.unregisterProducer()
        if self.isSecure():
            # the words would cost a TLS handshake, the dearest part of a connection
            self.site.count_refusal(error)
            transport.abortConnection()
            return
        self.answer_raw(error)
        half = IHalfCloseableDescriptor(transport, None)
        if half is None or self.site.turned_away > MAX_TURNED_AWAY:
            transport.loseConnection()
        else:
            transport.loseWriteConnection()
            self._look_in(TURNED_AWAY_S)

    def getPeer(self) -> IAddress:
        """Who is at the other end."""
        return self._peer_address

    def getHost(self) -> IAddress:
        """Our own end."""
        return self._host_address

    @property
    def busy(self) -> bool:
        """True while a request is being received or answered; sending the rest of an answer is not being busy, and a
        WebSocket has nothing to finish."""
        return self.early is not None or (bool(self.requests) and self._held is None and self._socket is None)

    # -- how long it may take ---------------------------------------------------------------------------------------

    @property
    def _read_idle_s(self) -> float:
        return self.site.edge.limits.read_idle_ms / 1000.0

    @property
    def _idle_s(self) -> float:
        """Between requests. A connection that has not asked anything yet is given the time of a head, and no more."""
        idle_ms = self.site.edge.limits.idle_ms
        return idle_ms / 1000.0 if idle_ms and self._served else self._read_idle_s

    @property
    def _write_timeout_s(self) -> float:
        return self.site.edge.limits.write_timeout_ms / 1000.0

    def _look_in(self, seconds: float) -> None:
        """Look at the connection in `seconds` at the latest."""
        reactor = self.site.reactor
        if self._watch is None:
            self._watch = reactor.callLater(seconds, self._look)
        elif self._watch.getTime() > reactor.seconds() + seconds:
            self._watch.reset(seconds)

    def _look(self) -> None:
        self._watch = None
        now_s = self.site.reactor.seconds()
        due_s, reason = self._due(now_s)
        if now_s < due_s:
            # a sender's progress is only seen by looking
            patience_s = due_s - now_s
            self._look_in(patience_s if self._sending is None else min(patience_s, self._write_timeout_s / 4))
        else:
            self._give_up(reason)

    def _due(self, now_s: float) -> tuple[float, str]:
        """When patience with what is going on ends, and the reason to count then (none for idle connections)."""
        if self._turned_away:
            return now_s, "turned_away"
        if self._sending is not None:
            self._note_sent(now_s)
            return self._sending.due_s(), "slow_reader"
        if self._handlingRequest:
            return now_s + self._read_idle_s, ""
        if self.receiving is not None:
            return self.receiving.due_s(), "slow_body"
        if not (self.requests or self._buffer):
            return self._since_s + self._idle_s, ""
        # absolute: from the head's first byte, whatever drips in after it
        return self._since_s + self._read_idle_s, "slow_head"

    def _give_up(self, reason: str) -> None:
        if reason in {"turned_away", "slow_reader"}:
            cast(Any, self.transport).abortConnection()
        elif reason == "slow_body" and not self._refused:
            self.answer_raw(
                RonError(
                    ErrorCode.TIMEOUT, "the body comes too slowly", hint="send it faster or not at all", status=408
                )
            )
            self.loseConnection()
        else:
            self.loseConnection()
        if reason.startswith("slow"):
            self.site.edge.count_rejected(reason)

    def body_begins(self) -> None:
        """The head is in, and a body follows."""
        self.receiving = Pace(self._read_idle_s, MIN_BYTES_PER_S, self.site.reactor.seconds())
        self._look_in(self._read_idle_s)

    def _watch_sending(self) -> None:
        if self._sending is None:
            self._sending = Pace(self._write_timeout_s, MIN_BYTES_PER_S, self.site.reactor.seconds())
            self._unsent_bytes = unsent(self.transport)
            self._look_in(self._write_timeout_s / 4)

    def _note_sent(self, now_s: float) -> None:
        left = unsent(self.transport)
        if left < self._unsent_bytes:
            cast(Pace, self._sending).moved(self._unsent_bytes - left, now_s)
        self._unsent_bytes = left

    # -- bytes in and out -------------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Take what arrived; the head's time starts with its first byte."""
        if self._turned_away:
            return
        if not self.requests and not self._buffer:
            self._since_s = self.site.reactor.seconds()
            if self._served and self.site.edge.limits.idle_ms:
                # it may have been given longer to be idle
                self._look_in(self._read_idle_s)
        if not self._replaying:
            cast(Peer, self.peer).charge_bytes(len(data))
            self.site.edge.traffic.received(len(data))
        if not taken(self, data):
            self.long_way(data)

    def long_way(self, data: bytes) -> None:
        """Twisted takes it apart."""
        super().dataReceived(data)

    def begin(self, request: ExpressRequest, endpoint: BoundEndpoint) -> None:
        """Answer it, in the state in which Twisted works on a request: what comes meanwhile waits in its buffer."""
        self.receiving = None
        self.requests.append(request)
        self._handlingRequest, self.line_mode = True, 0
        request.process(endpoint)

    @property
    def at_rest(self) -> bool:
        """Nothing of a request is here, not even the blank line that Twisted passes over before one."""
        return (
            not self.requests
            and not self._buffer
            and not self._busyReceiving
            and self.line_mode == 1
            and self._HTTPChannel__first_line == 1  # type: ignore[attr-defined]
            and not cast(Any, self.transport).disconnecting
        )

    def write(self, data: bytes) -> None:
        """Send `data` of an answer."""
        cast(Peer, self.peer).charge_bytes(len(data))
        self.site.edge.traffic.sent(len(data))
        transport: object = self.transport
        if isinstance(transport, Connection):
            data = data[sent_at_once(transport, data) :]
            if not data:
                return
        cast(ITransport, transport).write(data)

    def pauseProducing(self) -> None:
        """The client does not read as fast as we write: from now on it is watched, and nothing more is read from it.

        Twisted goes on reading while a request is being handled, without a bound.
        """
        super().pauseProducing()
        self._networkProducer.pauseProducing()
        self._stalled = True
        self._watch_sending()

    def resumeProducing(self) -> None:
        """It has read everything: on with what it asked for meanwhile."""
        super().resumeProducing()
        self._sending = None
        if self._held is not None:
            self._go_on()
        elif self._handlingRequest:
            self._networkProducer.resumeProducing()

    def penalise(self) -> None:
        """The request that is being answered was too many: the next one has to wait."""
        if self._penalty is None:
            self._penalty = self.site.reactor.callLater(PENALTY_S, self._forgive)

    def _forgive(self) -> None:
        self._penalty = None
        self._go_on()

    def _go_on(self) -> None:
        if self._held is not None and not self._waits:
            held, self._held = self._held, None
            self.requestDone(held)

    @property
    def _waits(self) -> bool:
        """True while the next request of the pipeline has to wait."""
        return self._waitingForTransport or self._penalty is not None

    def requestDone(self, request: AnyRequest) -> None:
        """`request` was answered. The next one in the pipeline waits until the client has taken that answer.

        Otherwise a kilobyte of pipelined requests would put hundreds of answers into our memory.
        """
        if self.persistent and self._waits:
            self._held = request
            return
        self._since_s = self.site.reactor.seconds()
        self._served = True
        if not (self._dataBuffer or self._stalled) and self.persistent and request is self.requests[0]:
            # all that Twisted would do: nothing came meanwhile, and reading has gone on
            del self.requests[0]
            self._handlingRequest, self.line_mode = False, 1
            return
        self._replaying, self._stalled = True, False
        try:
            super().requestDone(request)
        finally:
            self._replaying = False

    def loseConnection(self) -> None:
        """Close once everything was sent; who does not read it is cut off. A WebSocket says goodbye first."""
        if self._socket is not None:
            self._socket.going_away()
        else:
            self.hang_up()

    def hang_up(self) -> None:
        """`loseConnection` without any goodbye."""
        self._watch_sending()
        super().loseConnection()

    def hand_over(self, socket: WebSocket) -> None:
        """The connection is `socket`'s. Its request never ends, so that Twisted takes no other one from here on."""
        self._socket = socket
        early, self._dataBuffer = b"".join(self._dataBuffer), []
        self.registerProducer(socket, True)
        socket.opened(paused=self._waitingForTransport)
        if early:
            socket.received(early)

    def rawDataReceived(self, data: bytes) -> None:
        """Take what is no line: a body, the next request while one is answered, or a WebSocket's frames."""
        if self._socket is not None:
            self._socket.received(data)
        else:
            super().rawDataReceived(data)

    # -- malformed requests -----------------------------------------------------------------------------------------

    def _respondToBadRequestAndDisconnect(self) -> None:
        if not self._refused:
            limit = self.totalHeadersSize // 1024
            self.answer_raw(
                bad_request("malformed request", f"speak HTTP/1.1 with headers of at most {limit} KiB, 16 KiB a line")
            )
        self.loseConnection()

    def _send100Continue(self) -> None:
        if self._refused:
            self.loseConnection()
        else:
            super()._send100Continue()

    @property
    def _refused(self) -> bool:
        """True once the request being received has been answered with a refusal."""
        return bool(self.requests) and self.requests[-1].refused

    def lineLengthExceeded(self, line: bytes) -> None:
        """A request line or header over 16 KiB is malformed."""
        self._respondToBadRequestAndDisconnect()

    def headerReceived(self, line: bytes) -> bool:
        """Take one header. A Content-Length of more digits than `int` reads is malformed like any other."""
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            self._respondToBadRequestAndDisconnect()
            return False

    def answer_raw(self, error: RonError) -> None:
        """Write `error` as a whole response, outside the request machinery, and end the connection's use."""
        answer = error_answer(error)
        head = answer_head(answer, b"HTTP/1.1", None, close=True)
        cast(ITransport, self.transport).write(head + answer.body)
        self.site.count_refusal(error)
        self.site.edge.count_stranger("-", error.status)
