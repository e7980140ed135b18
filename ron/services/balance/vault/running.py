"""One ceremony at one node: its messages on their way, its deadlines, and how it ends.

In: what other nodes send, as the mesh vouches for it. Out: messages, private ones sealed to the run of their receiver;
the new share, handed over for keeping before its confirmation leaves; an end. A node whose share waits when the time
is over has not failed: others may use the new epoch already (`ron.services.balance.vault.settling`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from ron.crypto.frost.ceremony import Ceremony, Outgoing
from ron.crypto.frost.errors import Refused
from ron.crypto.frost.keys import GroupKey, KeyShare
from ron.crypto.hpke import OpenError, PrivateKey, PublicKey, Suite
from ron.crypto.secrets import NotLockedError
from ron.proto.balance import NodeName
from ron.proto.errors import ErrorCode, RonError, bad_request, conflict, unavailable
from ron.services.balance.ports import Mesh
from ron.services.balance.vault.telemetry import Telemetry
from ron.services.balance.vault.words import DEAL, GAVE_UP, Agreed, Dealt, GaveUp, Proposal, Seat, joined, run_digest

PHASE_S = 10.0
CALL_S = 2.0
RETRY_S = 0.5
TRIES = 20
_LABEL = b"ron-balance/1 deal"
_AGAIN = (ErrorCode.TIMEOUT, ErrorCode.STORE_UNAVAILABLE, ErrorCode.BACKPRESSURE)
_log = Logger(namespace="ron.balance.vault")

# open: the new share is kept beside the old one until it is known how it ended for the others.
State = Literal["agreed", "running", "done", "open", "failed"]


class Running:
    """starter: who proposed it. parts: makes this node's parts, by number, when it begins.

    keep: called with a new share before its confirmation leaves. ended: called once.
    """

    def __init__(
        self,
        reactor: Any,
        mesh: Mesh,
        seal: PrivateKey,
        telemetry: Telemetry,
        *,
        cluster: bytes,
        proposal: Proposal,
        starter: NodeName,
        parts: Callable[[], Mapping[int, Ceremony]],
        keep: Callable[[Running, KeyShare], None],
        ended: Callable[[Running], None],
    ) -> None:
        self.proposal = proposal
        self.id = proposal.ceremony
        self.starter = starter
        self.state: State = "agreed"
        self.failure: RonError | None = None
        self.group: GroupKey | None = None
        self.over: Deferred[Running] = Deferred()
        self._reactor = reactor
        self._mesh = mesh
        self._seal = seal
        self._telemetry = telemetry
        self._cluster = cluster
        self._make = parts
        self._parts: Mapping[int, Ceremony] = {}
        self._keep = keep
        self._ended = ended
        self._kept = False
        self._phases: list[str] = []
        self._deadline: Any = None
        self._sending: set[Deferred[None]] = set()

    # What comes in

    def begin(self) -> None:
        """All have agreed. A second time does nothing."""
        if self.state == "agreed":
            self.state = "running"
            self._parts = self._make()
            self._pump()

    def heard(self, sender: NodeName, dealt: Dealt) -> None:
        """A message. Raises `RonError` for one that has no place here at all."""
        seat = self.proposal.seat(dealt.of)
        if seat is None or seat.name != sender:
            self._telemetry.refused("stranger")
            raise bad_request("a ceremony's message in another's name")
        self.begin()
        if self.state != "running" or dealt.to not in self._parts:
            return
        self._take(dealt.of, dealt.to, self._opened(seat, dealt))
        self._pump()

    def gave_up(self, sender: NodeName, said: GaveUp) -> None:
        """Somebody's part has failed, so nobody can come to an end; unless it lies, or a new share is here already."""
        if self.state in ("agreed", "running") and not self._kept and sender in self._names():
            against = ", ".join(self._name(number) for number in said.members)
            self._fail(unavailable(f"{sender} gave up ({said.reason}{f' of {against}' if against else ''})"))

    def cancel(self, why: RonError) -> None:
        """It does not take place, or this node stops."""
        if self.state in ("agreed", "running"):
            self._fail(why)

    def stop(self) -> None:
        """This node stops: nothing more is sent."""
        self.cancel(unavailable("this node stops"))
        for sending in list(self._sending):
            sending.cancel()

    def _opened(self, seat: Seat, dealt: Dealt) -> bytes:
        if not dealt.sealed:
            return dealt.frame
        try:
            return self._seal.open(dealt.frame, info=self._info(seat, dealt.to, run_digest(self._seal.public.raw)))
        except OpenError:
            self._telemetry.refused("sealed")
            raise bad_request("a share that is sealed to another run") from None

    # What moves it

    def _take(self, sender: int, to: int, raw: bytes) -> None:
        try:
            self._parts[to].receive(sender, raw)
        except Refused as refused:
            self._telemetry.refused(refused.reason)
            _log.info("{refused}", event="vault_refused", refused=str(refused), reason=refused.reason)

    def _pump(self) -> None:
        try:
            while sent := self._outgoing():
                for number, message in sent:
                    for to in self.proposal.seats:
                        if to.number != number and message.to in (None, to.number):
                            self._pass_on(number, to, message)
        except NotLockedError as error:
            self._fail(error)
        self._settle()

    def _outgoing(self) -> list[tuple[int, Outgoing]]:
        sent = []
        for number, part in self._parts.items():
            if part.pending is not None and not self._kept:
                # before its confirmation leaves; raises when there is no locked memory for it
                self._keep(self, part.pending)
                self._kept = True
            sent += [(number, message) for message in part.outgoing()]
        return sent

    def _pass_on(self, number: int, to: Seat, message: Outgoing) -> None:
        if to.number in self._parts:
            self._take(number, to.number, message.body)
        else:
            sending = Deferred.fromCoroutine(self._deliver(number, to, message))
            self._sending.add(sending)
            sending.addErrback(_lost).addBoth(lambda _: self._sending.discard(sending))

    async def _deliver(self, number: int, to: Seat, message: Outgoing) -> None:
        """Until it has arrived, or it is no use."""
        frame = self._sealed(number, to, message.body) if message.private else message.body
        dealt = Dealt(ceremony=self.id, of=number, to=to.number, sealed=message.private, frame=frame)
        for _ in range(TRIES):
            if self.state == "failed":
                return
            try:
                await self._mesh.call(to.name, DEAL, dealt, Agreed, deadline_s=CALL_S)
            except RonError as error:
                if error.code not in _AGAIN:
                    return
                await deferLater(self._reactor, RETRY_S)
            else:
                return

    def _sealed(self, number: int, to: Seat, body: bytes) -> bytes:
        peer = self._mesh.peers().get(to.name)
        if peer is None or run_digest(peer.seal_key) != to.run:
            raise conflict(f"{to.name} has been started again")
        own = Seat(number, self._mesh.name, run_digest(self._seal.public.raw))
        return PublicKey(Suite.PQ, peer.seal_key).seal(body, info=self._info(own, to.number, to.run))

    def _info(self, sender: Seat, to: int, run: bytes) -> bytes:
        """Binds a box to cluster, service, ceremony, both seats and both runs."""
        seat = self.proposal.seat(to)
        names = sender.name.encode(), (seat.name if seat else "").encode()
        numbers = sender.number.to_bytes(2, "big") + to.to_bytes(2, "big")
        return joined(_LABEL, self._cluster, self.proposal.service.encode(), self.id, *names, numbers, sender.run, run)

    # How it ends

    def _settle(self) -> None:
        if self.state != "running":
            return
        failed = next((part.failure for part in self._parts.values() if part.failure), None)
        if failed is not None:
            self._blame(failed)
            return
        if all(part.state == "done" for part in self._parts.values()):
            self.group = next(part.group for part in self._parts.values())
            self._end("done")
            return
        phases = [part.state for part in self._parts.values()]
        if phases != self._phases:
            self._phases = phases
            self._stop_clock()
            self._deadline = self._reactor.callLater(PHASE_S, self._too_late)

    def _too_late(self) -> None:
        waiting = {number for part in self._parts.values() for number in part.waiting_for} - set(self._parts)
        names = ", ".join(self._name(number) for number in sorted(waiting))
        self._telemetry.refused("silent")
        said = GaveUp(ceremony=self.id, reason="silent", members=tuple(sorted(waiting)))
        self._fail(unavailable(f"the ceremony stands still: nothing came from {names or 'others'}"), said)

    def _blame(self, refused: Refused) -> None:
        names = [self._name(number) for number in refused.members]
        if refused.blames:
            for name in names:
                if name != self._mesh.name:
                    self._telemetry.blame(name, f"{refused.reason} in a ceremony")
        self._fail(
            RonError(
                ErrorCode.CONFLICT,
                f"the ceremony ended: {refused.reason} of {', '.join(names)}",
                hint="leave out whoever is named in each attempt",
            ),
            GaveUp(ceremony=self.id, reason=refused.reason, members=refused.members),
        )

    def _fail(self, why: RonError, said: GaveUp | None = None) -> None:
        begun = self.state == "running"
        self.failure = why
        for part in self._parts.values():
            part.give_up()
        self._end("open" if self._kept else "failed")
        if begun:
            for name in self._names() - {self._mesh.name}:
                self._mesh.send(name, GAVE_UP, said or GaveUp(ceremony=self.id, reason="silent"))

    def _end(self, state: State) -> None:
        self.state = state
        self._stop_clock()
        purpose = self.proposal.purpose.name.lower()
        self._telemetry.ceremony(self.proposal.service, purpose, state, self.failure.message if self.failure else "")
        self._ended(self)
        self.over.callback(self)

    def _stop_clock(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def _names(self) -> set[NodeName]:
        return {seat.name for seat in self.proposal.seats}

    def _name(self, number: int) -> NodeName:
        seat = self.proposal.seat(number)
        return seat.name if seat else str(number)


def _lost(failure: Any) -> None:
    failure.trap(RonError, CancelledError)
    _log.info("a ceremony's message does not arrive: {why}", event="vault_lost", why=str(failure.value))
