"""One connection to one node: the handshake with a deadline, then envelopes, pings, a bounded queue out. Either end.

In: bytes of a TLS connection, items to send. Out: envelopes that were signed by the node at the other end.
A node that sends nonsense, does not read, or falls silent is cut off; one that sends too fast is read more slowly.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, IPushProducer
from twisted.internet.protocol import Protocol as Connection
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ron.kernel.limits import TokenBucket
from ron.kernel.tls import peer_identity
from ron.proto.addresses import IDENTITY_PREFIX
from ron.services.balance.mesh.handshake import (
    BINDING_BYTES,
    BINDING_LABEL,
    MAX_HELLO_BYTES,
    Dialling,
    Listening,
    Met,
    Own,
    TwinProof,
    refuse,
    welcome,
)
from ron.services.balance.mesh.outbox import Item, Outbox
from ron.services.balance.mesh.wire import MAX_FRAME_BYTES, Envelope, Frames, Reason, Refused, framed

# TLS is done by then, or was cut off before; a twin is asked for its life in the meantime.
HELLO_S = 8.0
# A node that reads nothing of what waits for it for so long is cut off.
UNREAD_S = 5.0
# What one peer may send, on average and in one burst.
MESSAGES_PER_S, MESSAGES_BURST = 1000.0, 4000.0
BYTES_PER_S, BYTES_BURST = 8.0 * 1024 * 1024, 16.0 * 1024 * 1024
_log = Logger(namespace="ron.balance.mesh")


class Hall(Protocol):
    """The node, as a link sees it."""

    def own(self, link: Link, binding: bytes) -> Own:
        """This end of a link that begins. Raises `Refused`."""

    async def admit(self, link: Link, met: Met) -> None:
        """Return if there may be a link. Raises `Refused`."""

    def up(self, link: Link) -> None:
        """It stands."""

    def down(self, link: Link, unsent: list[Item]) -> None:
        """It has ended."""

    def seal(self, link: Link, item: Item) -> bytes:
        """The payload of a frame."""

    def unseal(self, link: Link, payload: bytes) -> Envelope:
        """A frame's payload opened, never seen before. Raises `Refused`."""

    def received(self, link: Link, envelope: Envelope) -> None:
        """A message."""

    def refused(self, name: str, problem: Refused) -> None:
        """Something was not taken."""


class Dismissed(Refused):
    """Refused at the door, with a proof for who was refused."""

    def __init__(self, reason: Reason, detail: str, twin: TwinProof | None = None) -> None:
        super().__init__(reason, detail, fatal=True)
        self.twin = twin


@implementer(IHandshakeListener, IPushProducer)
class Link(Connection):
    """A connection. expected: the only node it may be, None for any. ended: fires when it is gone, with the reason if
    it was refused. name: the other end, proven by its certificate, and by its signature once `met` is set. stands: both
    have said yes. stood: they once had."""

    transport: Any

    def __init__(self, reactor: Any, hall: Hall, *, dialled: bool, expected: str | None = None) -> None:
        self.reactor = reactor
        self.hall = hall
        self.dialled = dialled
        self.expected = expected
        self.name = ""
        self.met: Met | None = None
        self.stands = False
        self.stood = False
        self.over = False
        self.ended: Deferred[Refused | None] = Deferred()
        self.problem: Refused | None = None
        self.heard_s = self.answered_s = reactor.seconds()
        self.outbox = Outbox()
        self._frames = Frames(MAX_HELLO_BYTES)
        self._talk: Dialling | Listening | None = None
        self._judging: Deferred[None] | None = None
        self._deadline: IDelayedCall | None = None
        self._resume: IDelayedCall | None = None
        self._paused_s: float | None = None
        self._buckets = (
            TokenBucket(MESSAGES_PER_S, MESSAGES_BURST, reactor.seconds()),
            TokenBucket(BYTES_PER_S, BYTES_BURST, reactor.seconds()),
        )

    # -- the transport ----------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """The clock runs; nothing is said before TLS is done."""
        self._deadline = self.reactor.callLater(HELLO_S, self.close, Refused("silent", "no hello in time"))

    def handshakeCompleted(self) -> None:
        """TLS is done: the certificate says who it is, or nobody it could be."""
        self.transport.registerProducer(self, True)
        identity = peer_identity(self.transport) or ""
        self.name = identity.removeprefix(IDENTITY_PREFIX)
        if not identity.startswith(IDENTITY_PREFIX) or self.expected not in {None, self.name}:
            self.close(Refused("stranger", f"{identity or 'no node'} where {self.expected or 'a node'} should be"))
            return
        handle = cast(SSL.Connection, self.transport.getHandle())
        try:
            own = self.hall.own(self, handle.export_keying_material(BINDING_LABEL, BINDING_BYTES))
        except Refused as problem:
            self.close(problem)
            return
        self._talk = Dialling(own) if self.dialled else Listening(own)
        if isinstance(self._talk, Dialling):
            self._write(self._talk.opened())

    def dataReceived(self, data: bytes) -> None:
        """Take the frames that are whole; the first that must not be there ends the link."""
        taken = 0
        try:
            for frame in self._frames.feed(data):
                if self.over:
                    return
                taken += 1
                self._frame_received(frame)
        except Refused as problem:
            self.close(problem)
        self._slow_down(taken, len(data))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is gone."""
        self._end()
        if not self.ended.called:
            self.ended.callback(self.problem)

    def pauseProducing(self) -> None:
        """The other end does not read as fast as we write."""
        if self._paused_s is None:
            self._paused_s = self.reactor.seconds()

    def resumeProducing(self) -> None:
        """It has read."""
        self._paused_s = None
        self._pump()

    def stopProducing(self) -> None:
        """`connectionLost` tells."""

    # -- for the node -----------------------------------------------------------------------------------------------

    def send(self, item: Item, *, urgent: bool = False) -> list[Item]:
        """Queue it; what was dropped for it."""
        if self.over:
            return [item]
        dropped = self.outbox.put(item, urgent=urgent)
        self._pump()
        return dropped

    def close(self, problem: Refused | None = None) -> None:
        """End it at once. problem: what it did, which is counted."""
        if self.over:
            return
        self.problem = problem
        if problem is not None:
            self.hall.refused(self.name, problem)
        self._end()
        self.transport.abortConnection()

    def part(self, problem: Refused) -> None:
        """End it too, but let what was written arrive. Nothing that comes in counts any more."""
        if self.over:
            return
        self.problem = problem
        self.hall.refused(self.name, problem)
        self._end()
        # or it would wait for a producer that has nothing more to say
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        self._deadline = self.reactor.callLater(HELLO_S, self.transport.abortConnection)

    def check(self, silence_s: float) -> None:
        """End it if the other end has gone quiet or reads nothing. To be called now and then."""
        now_s = self.reactor.seconds()
        if self._paused_s is not None and now_s - self._paused_s > UNREAD_S:
            self.close(Refused("unread", "it reads nothing"))
        elif now_s - (self.answered_s if self.dialled else self.heard_s) > silence_s:
            self.close(Refused("silent", f"nothing for {silence_s:g} s"))

    # -- the hello --------------------------------------------------------------------------------------------------

    def _frame_received(self, frame: bytes) -> None:
        if self.stands:
            self._take(frame)
        elif self._judging is not None or self._talk is None:
            raise Refused("malformed", "it does not wait for its answer", fatal=True)
        elif isinstance(self._talk, Dialling):
            self._dialling(self._talk, frame)
        else:
            self._listening(self._talk, frame)

    def _dialling(self, talk: Dialling, frame: bytes) -> None:
        if self.met is not None:
            talk.answered(frame)
            self._stand()
            return
        reply, self.met = talk.greeted(frame)
        self._judge(self.met, lambda: self._write(reply))

    def _listening(self, talk: Listening, frame: bytes) -> None:
        try:
            if not talk.has_greeted:
                self._write(talk.opened(frame))
                return
            self.met = talk.replied(frame)
        except Refused as problem:
            self._turn_away(problem)
            return
        self._judge(self.met, self._welcome)

    def _judge(self, met: Met, then: Any) -> None:
        """Ask the node, which may have to ask others."""
        if met.claim.name != self.name:
            self._turn_away(Refused("stranger", f"{met.claim.name} with the certificate of {self.name}", fatal=True))
            return
        judging = self._judging = Deferred.fromCoroutine(self.hall.admit(self, met))
        judging.addCallbacks(lambda _none: self._judged(then), self._not_admitted)

    def _judged(self, then: Any) -> None:
        self._judging = None
        if not self.over:
            then()

    def _not_admitted(self, failure: Failure) -> None:
        self._judging = None
        if failure.check(CancelledError):
            return
        if isinstance(failure.value, Refused):
            self._turn_away(failure.value)
            return
        _log.failure("a node could not be judged", failure, event="mesh_admit_failed")
        self.close(Refused("malformed", "it could not be judged"))

    def _welcome(self) -> None:
        self._write(welcome())
        self._stand()

    def _turn_away(self, problem: Refused) -> None:
        """Say why, if we are who is asked; then end it."""
        if self.over:
            return
        if self.dialled:
            self.close(problem)
            return
        twin = problem.twin if isinstance(problem, Dismissed) else None
        self._write(refuse(problem.reason, problem.detail, twin))
        self.part(problem)

    def _stand(self) -> None:
        self._stop_clock()
        self._frames.limit = MAX_FRAME_BYTES
        self.stands = self.stood = True
        self.heard_s = self.answered_s = self.reactor.seconds()
        self.hall.up(self)

    # -- messages ---------------------------------------------------------------------------------------------------

    def _take(self, frame: bytes) -> None:
        try:
            envelope = self.hall.unseal(self, frame)
        except Refused as problem:
            if problem.fatal:
                raise
            self.hall.refused(self.name, problem)
            return
        self.heard_s = self.reactor.seconds()
        self.hall.received(self, envelope)

    def _slow_down(self, messages: int, size: int) -> None:
        """Read no more for as long as the other end is over its measure."""
        now_s = self.reactor.seconds()
        for bucket, count in zip(self._buckets, (messages, size), strict=True):
            bucket.spend(float(count))
        wait_s = max(bucket.wait_s(1.0, now_s) for bucket in self._buckets)
        if wait_s and self._resume is None and not self.over:
            self.hall.refused(self.name, Refused("flood", f"read again in {wait_s:.2f} s"))
            self.transport.pauseProducing()
            self._resume = self.reactor.callLater(wait_s, self._read_on)

    def _read_on(self) -> None:
        self._resume = None
        self.transport.resumeProducing()

    def _pump(self) -> None:
        while self.stands and not self.over and self._paused_s is None:
            item = self.outbox.next()
            if item is None:
                return
            self._write(self.hall.seal(self, item))

    def _write(self, payload: bytes) -> None:
        self.transport.write(framed(payload))

    # -- the end ----------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Nothing that still comes in counts."""
        self._stop_clock()
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self.over:
            return
        self.over = True
        if self._judging is not None:
            self._judging.cancel()
        if self.stands:
            self.stands = False
            self.hall.down(self, self.outbox.clear())

    def _stop_clock(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None
