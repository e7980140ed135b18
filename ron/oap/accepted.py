"""A connection somebody made to us: greeted in time, held to its limits, its requests answered.

In: frames. Out: a `Request` for the handler, its `Response` as frames, or a refusal. One timer looks at what the
connection is doing and how long it may: say hello, send the rest of something, take its answers, be idle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from ron.kernel.limits import Pace, Peer, Refused, overloaded, peer_name, too_many
from ron.kernel.tls import peer_identity
from ron.oap import hello
from ron.oap.connection import Assembly, Connection
from ron.oap.frames import Flags, Frame, Violation
from ron.oap.hello import CONTROL
from ron.oap.serving import Job
from ron.oap.streams import Means, Side
from ron.oap.tracing import Announced, read_context
from ron.proto.errors import ErrorCode, RonError

if TYPE_CHECKING:
    from ron.oap.server import OapServer

# Slower than this on average, after a grace of the idle time, a frame, a request or an answer is given up.
MIN_BYTES_PER_S = 1024.0
# What one connection may have in our memory, in payloads of the largest size.
PAYLOADS_PER_CONNECTION = 2
_TIMEOUT_STATUS = 408


class Incoming:
    """A request that is not whole yet."""

    __slots__ = ("assembly", "begin")

    def __init__(self, begin: Frame, limit: int) -> None:
        self.begin = begin
        self.assembly = Assembly(limit)


class Accepted(Connection):
    """The server's end of one connection."""

    def __init__(self, server: OapServer) -> None:
        super().__init__(server.reactor, Side.ANSWERS, server.limits, server.offer.max_inflight)
        self.server = server
        self.announced = Announced(server.offer.max_inflight)
        self.identity: str | None = None
        self.peer_name = "?"
        self.buffered = 0
        self._peer: Peer | None = None
        self._greeted = False
        self._incoming: dict[int, Incoming] = {}
        self._jobs: dict[int, Job] = {}
        self._since_s = server.reactor.seconds()
        self._receiving: Pace | None = None
        self._sending: Pace | None = None
        self._watch: IDelayedCall | None = None

    # -- coming and going -------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Turned away when there are too many; else it has the time of a handshake to say hello."""
        super().connectionMade()
        transport = cast(Any, self.transport)
        self.peer_name = peer_name(getattr(transport.getPeer(), "host", None))
        try:
            self._peer = self.server.peers.connect(self.peer_name)
        except Refused as error:
            self.server.metrics.rejected.labels(error.reason).inc()
            self.refuse(self.server.with_retry_after(error), 0, CONTROL)
            self.hang_up()
            return
        self.identity = peer_identity(transport)
        self.server.connections.add(self)
        self.server.open_connections.inc()
        self._look_in(self._handshake_s)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Whatever was under way for it ends."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self.server.connections.discard(self)
        super().connectionLost(reason)
        for number in list(self._incoming):
            self._forget(number)
        jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            job.give_up()
        if self._peer is not None:
            self.server.peers.disconnect(self.peer_name)
            self.server.open_connections.dec()

    def leave_when_idle(self) -> None:
        """Hang up once nothing is under way."""
        if not self._jobs and not self._incoming and not self.over:
            self.hang_up()

    def violated(self, violation: Violation) -> None:
        """It is told why, and hung up on."""
        self._reject("protocol", violation, violation.corr_id)

    def hang_up(self) -> None:
        """End it once everything is sent; who does not read that is cut off."""
        super().hang_up()
        self._since_s = self.reactor.seconds()
        self._look_in(self.limits.write_timeout_ms / 1000)

    def _reject(self, reason: str, error: RonError, number: int = 0) -> None:
        self.server.metrics.rejected.labels(reason).inc()
        self.server.count(error.status)
        self.refuse(error, number, CONTROL)
        self.hang_up()

    # -- how long it may take ---------------------------------------------------------------------------------------

    @property
    def _handshake_s(self) -> float:
        return self.limits.handshake_timeout_ms / 1000

    @property
    def _idle_s(self) -> float:
        return self.limits.read_idle_ms / 1000

    def _look_in(self, seconds: float) -> None:
        if self._watch is None:
            self._watch = self.reactor.callLater(seconds, self._look)
        elif self._watch.getTime() > self.reactor.seconds() + seconds:
            self._watch.reset(seconds)

    def _look(self) -> None:
        self._watch = None
        now_s = self.reactor.seconds()
        due_s, reason = self._due(now_s)
        if now_s < due_s:
            self._look_in(due_s - now_s)
        else:
            self._give_up(reason)

    def _due(self, now_s: float) -> tuple[float, str]:
        """When patience with what is going on ends, and the reason to count then; none for idle connections."""
        if self.over:
            return self._since_s + self.limits.write_timeout_ms / 1000, "slow_reader"
        if self._sending is not None:
            return self._sending.due_s(), "slow_reader"
        if not self._greeted:
            return self._since_s + self._handshake_s, "handshake"
        if self._receiving is not None:
            return self._receiving.due_s(), "slow_body"
        return (now_s if self._jobs else self._since_s) + self._idle_s, ""

    def _give_up(self, reason: str) -> None:
        if not reason:
            self.hang_up()
        elif reason == "slow_reader":
            self.server.metrics.rejected.labels(reason).inc()
            self.abort()
        else:
            hint = "say hello first" if reason == "handshake" else "send it faster or not at all"
            late = RonError(ErrorCode.TIMEOUT, "it comes too slowly", hint=hint, status=_TIMEOUT_STATUS)
            self._reject(reason, late)

    # -- bytes ------------------------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Count what arrives and how fast."""
        if self.over:
            return
        size, now_s = len(data), self.reactor.seconds()
        if self._greeted:  # nobody stretches the handshake by dripping
            self._since_s = now_s
        cast(Peer, self._peer).charge_bytes(size)
        self.server.bytes_in.inc(size)
        if self._receiving is not None:
            self._receiving.moved(size, now_s)
        super().dataReceived(data)
        if not self._owing:
            self._receiving = None
        elif self._receiving is None:
            self._watch_receiving()

    @property
    def _owing(self) -> bool:
        """True while the rest of a frame or of a request is still to come."""
        return bool(self.decoder.waiting_bytes or self._incoming)

    def _watch_receiving(self) -> None:
        self._receiving = Pace(self._idle_s, MIN_BYTES_PER_S, self.reactor.seconds())
        self._look_in(self._idle_s)

    def write(self, frame: Frame) -> None:
        """Send `frame` and count it."""
        super().write(frame)
        size = len(frame.payload)
        self.server.bytes_out.inc(size)
        if self._peer is not None:
            self._peer.charge_bytes(size)

    def pauseProducing(self) -> None:
        """It does not read: neither do we, for what it asks would pile up as answers."""
        super().pauseProducing()
        cast(Any, self.transport).pauseProducing()
        if self._sending is None:
            self._sending = Pace(self.limits.write_timeout_ms / 1000, MIN_BYTES_PER_S, self.reactor.seconds())
            self._look_in(self.limits.write_timeout_ms / 1000)

    def resumeProducing(self) -> None:
        """On with it; the time it was not listened to does not count."""
        self._sending = None
        self._since_s = self.reactor.seconds()
        if self._receiving is not None:
            self._watch_receiving()
        cast(Any, self.transport).resumeProducing()
        super().resumeProducing()

    # -- frames -----------------------------------------------------------------------------------------------------

    def frame_received(self, frame: Frame) -> None:
        """One frame of the peer."""
        if frame.app_proto_id == CONTROL:
            self._control_received(frame)
        elif not self._greeted:
            raise Violation("no HELLO before it", corr_id=frame.corr_id)
        else:
            self._request_received(frame)

    def _control_received(self, frame: Frame) -> None:
        role = frame.flags & (Flags.REQ | Flags.RESP | Flags.EVENT)
        if role == Flags.REQ:
            self._hello(frame)
        elif role != Flags.EVENT or not self._greeted:
            raise Violation("neither HELLO nor an event", corr_id=frame.corr_id)
        elif frame.code == hello.CONTEXT:
            self.announced.put(frame.corr_id, read_context(self.server.tracing, frame.payload))
        elif frame.code == hello.CANCEL:
            self._cancelled(frame.corr_id)

    def _hello(self, frame: Frame) -> None:
        try:
            hello.check_request(frame.payload)
        except RonError as error:
            raise Violation(error.message, corr_id=frame.corr_id) from None
        self._greeted, self._since_s = True, self.reactor.seconds()
        payload = hello.encode(self.server.offer)
        flags = Flags.RESP | Flags.END
        self.write(Frame(flags=flags, app_proto_id=CONTROL, corr_id=frame.corr_id, payload=payload))

    def _request_received(self, frame: Frame) -> None:
        number = frame.corr_id
        try:
            means = self.streams.receive(frame.flags, number)
        except Refused as error:
            self.announced.take(number)
            self.server.metrics.rejected.labels(error.reason).inc()
            self._refuse_stranger(error, frame)
            return
        if means is Means.EVENT or means is Means.DROPPED:
            return  # nothing here takes events of applications
        try:
            if means is Means.BEGINS:
                self._begin(frame)
            self._take(self._incoming[number], frame)
        except RonError as error:
            self._turn_away(error, frame)
            return
        if frame.flags & Flags.END:
            self._work(number)

    def _refuse_stranger(self, error: RonError, frame: Frame) -> None:
        self.server.count(error.status)
        self.refuse(self.server.with_retry_after(error), frame.corr_id, frame.app_proto_id)

    def _turn_away(self, error: RonError, frame: Frame) -> None:
        """Refuse a request that is coming in; the rest of it is dropped."""
        if isinstance(error, Refused):
            self.server.metrics.rejected.labels(error.reason).inc()
        self._forget(frame.corr_id)
        self.announced.take(frame.corr_id)
        self.streams.send(Flags.RESP | Flags.END, frame.corr_id)
        self._refuse_stranger(error, frame)

    def _begin(self, frame: Frame) -> None:
        if self.server.draining:
            raise overloaded("draining", "the server is about to end")
        peer = cast(Peer, self._peer)
        peer.open_stream(self.reactor.seconds())
        self._incoming[frame.corr_id] = Incoming(frame, self.limits.body_bytes)

    def _take(self, incoming: Incoming, frame: Frame) -> None:
        # what it inflates to is bounded by itself; what is held of it is counted from here on
        size = incoming.assembly.add(frame)
        self.buffered += size
        self.server.buffered += size
        if self.buffered > PAYLOADS_PER_CONNECTION * self.limits.body_bytes:
            raise too_many("buffer", "too much of this connection is being worked on")
        if self.server.buffered > self.server.buffer_bytes:
            raise overloaded("buffer", "as much is being worked on as may be")
        self.acknowledge(frame, incoming.assembly.received)

    def _work(self, number: int) -> None:
        incoming = self._incoming[number]
        try:
            self.server.concurrency.enter()
        except Refused as error:
            self._turn_away(error, incoming.begin)
            return
        del self._incoming[number]
        job = self._jobs[number] = Job(self, incoming)
        job.start()

    def _forget(self, number: int) -> None:
        """The request does not come to anything."""
        incoming = self._incoming.pop(number, None)
        if incoming is not None:
            self.released(incoming.assembly.size)

    def released(self, size: int) -> None:
        """One request less, of `size` bytes."""
        self.buffered -= size
        self.server.buffered -= size
        cast(Peer, self._peer).close_stream()

    def finished(self, number: int, job: Job) -> None:
        """`job` is done; a cancelled one may be so long after its number has gone to another."""
        if self._jobs.get(number) is job:
            del self._jobs[number]
        self._since_s = self.reactor.seconds()
        if self.server.draining:
            self.leave_when_idle()

    def _cancelled(self, number: int) -> None:
        """Whoever asked wants no answer any more; that it is over is said all the same, unless it was."""
        answered = self.streams.state(number) == "refused"
        if not self.streams.cancel(number) or answered:
            return
        incoming, job = self._incoming.get(number), self._jobs.pop(number, None)
        proto = job.proto if job is not None else incoming.begin.app_proto_id if incoming is not None else CONTROL
        self._forget(number)
        if job is not None:
            job.give_up()
        self.refuse(RonError(ErrorCode.TIMEOUT, "cancelled", status=_TIMEOUT_STATUS), number, proto)
