"""Ceremonies of this node: proposed, agreed to, begun, and what becomes of the shares that come out.

In: an operator's orders here, proposals and messages of others. Out: new epochs in the keyring, the new group in the
book. One ceremony at a time for each service; of two that are proposed at once the one with the lower id goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from ron.crypto.frost import dkg, resharing
from ron.crypto.frost.ceremony import Ceremony
from ron.crypto.frost.keys import GroupKey, KeyShare
from ron.crypto.frost.plan import OWNER, Plan, Purpose
from ron.crypto.hpke import PrivateKey
from ron.proto.balance import NodeName, ServiceName
from ron.proto.errors import RonError, backpressure, bad_request, conflict, not_found, unavailable
from ron.services.balance.ports import Mesh, ServiceRecord
from ron.services.balance.vault.keyring import Epoch, Keyring
from ron.services.balance.vault.proposals import Proposals
from ron.services.balance.vault.rates import Rate
from ron.services.balance.vault.running import Running
from ron.services.balance.vault.settling import Settling
from ron.services.balance.vault.telemetry import Telemetry
from ron.services.balance.vault.words import (
    BEGIN,
    DEAL,
    GAVE_UP,
    PROPOSE,
    SERVICE,
    Agreed,
    Begin,
    Dealt,
    GaveUp,
    Proposal,
)
from ron.tor.onionkeys import onion_address

AGREE_S = 6.0
CALL_S = 2.0
# Those who end a ceremony write the new group into the book, the one that began it first.
RECORD_S = 3.0
MAX_ENDED = 64
MAX_PROPOSALS = 30
_log = Logger(namespace="ron.balance.vault")


class Ceremonies:
    """Of one node."""

    def __init__(
        self,
        reactor: Any,
        mesh: Mesh,
        ring: Keyring,
        proposals: Proposals,
        settling: Settling,
        telemetry: Telemetry,
        *,
        seal: PrivateKey,
        cluster: bytes,
        now_ms: Callable[[], int],
        adopted: Callable[[], None],
    ) -> None:
        """adopted: called when a new share is in use here."""
        self._reactor = reactor
        self._mesh = mesh
        self._ring = ring
        self._proposals = proposals
        self._settling = settling
        self._telemetry = telemetry
        self._seal = seal
        self._cluster = cluster
        self._now_ms = now_ms
        self._adopted = adopted
        self._here: dict[ServiceName, Running] = {}
        self._known: OrderedDict[bytes, Running] = OrderedDict()
        self._owned: dict[bytes, bytearray] = {}
        self._timers: set[Any] = set()
        self._stopped = True
        self._rate = Rate(reactor, MAX_PROPOSALS)
        mesh.serve(PROPOSE, Proposal, self._proposed)
        mesh.serve(BEGIN, Begin, self._begun)
        mesh.serve(DEAL, Dealt, self._dealt)
        mesh.listen(GAVE_UP, GaveUp, self._gave_up)

    # Orders

    async def carry_out(self, proposal: Proposal, key: bytearray | None = None) -> GroupKey:
        """Have everybody agree, begin, and return what came out. key: the owner's, overwritten in any case.

        Raises `RonError`: Conflict, NoCapability or Unavailable with who speaks against it, or who spoilt it.
        """
        try:
            running = self._agree(proposal, self._mesh.name)
            if key is not None:
                self._owned[running.id] = key
            await self._ask_all(running, PROPOSE, proposal)
            # another one may have gone first in the meantime
            self._check_goes_on(running)
            await self._ask_all(running, BEGIN, Begin(ceremony=running.id))
            self._check_goes_on(running)
            running.begin()
            ended = await running.over
        finally:
            if key is not None:
                key[:] = bytes(len(key))
            self._owned.pop(proposal.ceremony, None)
        if ended.group is not None:
            return ended.group
        raise ended.failure or unavailable("the ceremony came to nothing")

    def under_way(self, service: ServiceName) -> bool:
        """Is there one?"""
        return service in self._here

    def state_of(self, ceremony: bytes) -> str | None:
        """How far one is that this node knows."""
        running = self._known.get(ceremony)
        return running.state if running is not None else None

    def start(self) -> None:
        """Take part from now on."""
        self._stopped = False

    def stop(self) -> None:
        """End all."""
        self._stopped = True
        for running in list(self._known.values()):
            running.stop()
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        self._timers.clear()

    async def _ask_all(self, running: Running, kind: str, body: Proposal | Begin) -> None:
        names = {seat.name for seat in running.proposal.seats} - {self._mesh.name}
        asked = [Deferred.fromCoroutine(self._ask(name, kind, body)) for name in sorted(names)]
        for name, refusal in await gatherResults(asked):
            if refusal is not None:
                why = RonError(refusal.code, f"{name}: {refusal.message}", hint=refusal.hint)
                running.cancel(why)
                raise why

    async def _ask(self, name: NodeName, kind: str, body: Proposal | Begin) -> tuple[NodeName, RonError | None]:
        try:
            await self._mesh.call(name, kind, body, Agreed, deadline_s=CALL_S)
        except RonError as error:
            return name, error
        return name, None

    def _check_goes_on(self, running: Running) -> None:
        if running.failure is not None:
            raise running.failure

    # What others say

    async def _proposed(self, sender: NodeName, proposal: Proposal) -> Agreed:
        # to look at one costs some milliseconds
        if not self._rate.allows(sender):
            self._telemetry.refused("rate")
            raise backpressure(f"over {MAX_PROPOSALS} proposals a minute by one node")
        running = self._agree(proposal, sender)
        self._later(AGREE_S, lambda: self._expire(running))
        return Agreed()

    async def _begun(self, sender: NodeName, said: Begin) -> Agreed:
        running = self._running(said.ceremony)
        if running.starter != sender:
            raise bad_request("only who proposed a ceremony begins it")
        running.begin()
        return Agreed()

    async def _dealt(self, sender: NodeName, dealt: Dealt) -> Agreed:
        self._running(dealt.ceremony).heard(sender, dealt)
        return Agreed()

    def _gave_up(self, sender: NodeName, said: GaveUp) -> None:
        if (running := self._known.get(said.ceremony)) is not None:
            running.gave_up(sender, said)

    def _running(self, ceremony: bytes) -> Running:
        running = self._known.get(ceremony)
        if running is None:
            self._telemetry.refused("other_session")
            raise not_found("no such ceremony is known here")
        return running

    def _agree(self, proposal: Proposal, starter: NodeName) -> Running:
        """Raises `RonError` when it is not to be, or another one goes first."""
        if self._stopped:
            raise unavailable(f"{self._mesh.name} takes part in nothing now")
        plan = self._proposals.examined(proposal, starter)
        self._make_room(proposal, starter)
        running = Running(
            self._reactor,
            self._mesh,
            self._seal,
            self._telemetry,
            cluster=self._cluster,
            proposal=proposal,
            starter=starter,
            parts=lambda: self._parts(proposal, plan),
            keep=self._keep,
            ended=self._ended,
        )
        self._here[proposal.service] = running
        self._known[running.id] = running
        while len(self._known) > MAX_ENDED:
            self._known.popitem(last=False)
        return running

    def _make_room(self, proposal: Proposal, starter: NodeName) -> None:
        other = self._here.get(proposal.service)
        if proposal.ceremony in self._known:
            self._telemetry.refused("repeated")
            raise conflict("that ceremony was proposed before")
        if other is None:
            return
        first = other.starter != starter and other.id < proposal.ceremony
        if other.state != "agreed" or first:
            raise conflict(f"another ceremony of {proposal.service} is under way, by order of {other.starter}")
        other.cancel(conflict(f"a ceremony by order of {starter} goes first"))

    def _expire(self, running: Running) -> None:
        if running.state == "agreed":
            running.cancel(unavailable(f"{running.starter} did not begin"))

    # What comes of it

    def _parts(self, proposal: Proposal, plan: Plan) -> Mapping[int, Ceremony]:
        """This node's parts: as a member, as the owner of a key, or as both."""
        parts: dict[int, Ceremony] = {}
        key = self._owned.get(proposal.ceremony)
        if OWNER in plan.dealers and key is not None:
            parts[OWNER] = dkg.import_owner(plan, key)
        if (me := self._mesh.me.number) in plan.participants:
            parts[me] = self._part(proposal.service, plan, me)
        return parts

    def _part(self, service: ServiceName, plan: Plan, me: int) -> Ceremony:
        if plan.purpose is Purpose.KEYGEN:
            return dkg.keygen(plan, me)
        if plan.purpose is Purpose.IMPORT:
            return dkg.import_member(plan, me)
        epoch = self._ring.epoch(service, plan.previous.digest) if plan.previous else None
        if me not in plan.dealers:
            return resharing.reshare_to(plan, me)
        if epoch is None:
            raise conflict(f"the share of {service} is gone")
        deal = resharing.refresh if plan.purpose is Purpose.REFRESH else resharing.reshare_from
        return deal(plan, epoch.share)

    def _keep(self, running: Running, share: KeyShare) -> None:
        receivers = running.proposal.receivers
        runs = {seat.number: seat.run for seat in running.proposal.seats if seat.number in receivers}
        epoch = Epoch(share=share, runs=runs, ceremony=running.id)
        self._ring.keep_pending(running.proposal.service, epoch)

    def _ended(self, running: Running) -> None:
        service = running.proposal.service
        if self._here.get(service) is running:
            del self._here[service]
        if running.state == "open":
            self._settling.watch(running.proposal)
        if running.state == "done" and running.group is not None:
            if self._ring.adopt(service, running.id, running.proposal.removed):
                self._adopted()
            elif self._mesh.me.number in running.proposal.dealers:
                # a dealer that is not among the receivers has left
                self._ring.drop(service)
            delay_s = 0.0 if running.starter == self._mesh.name else RECORD_S
            self._later(delay_s, lambda: self._written(service, running.group))

    def _written(self, service: ServiceName, group: GroupKey | None) -> None:
        try:
            self.record(service, group)
        except RonError as error:
            # the shares are in use all the same; whoever ordered it is told by `record` itself
            _log.warn(
                "the book takes no record of {service}: {why}", event="vault_record", service=service, why=error.message
            )

    def record(self, service: ServiceName, group: GroupKey | None) -> None:
        """Write the group into the book, unless it stands there, or is not the one in use any more."""
        current = self._ring.current(service)
        if group is None or (current is not None and current.group != group):
            return
        before = self._mesh.book.get(SERVICE + service, ServiceRecord)
        if before is not None and before.group == group.encode():
            return
        self._mesh.book.put(
            SERVICE + service,
            ServiceRecord(
                onion=onion_address(group.public),
                mode="threshold",
                threshold=group.threshold,
                group=group.encode(),
                epoch=(before.epoch if before is not None else 0) + 1,
                made_ms=before.made_ms if before is not None else self._now_ms(),
            ),
        )

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self._timers = {timer for timer in self._timers if timer.active()}
        if seconds:
            self._timers.add(self._reactor.callLater(seconds, act))
        else:
            act()
