"""The vault of a node: `Vault` of the ports, and what operators may order of it.

In: orders, the mesh, the periods that are due. Out: signers; addresses made, shared, renewed; who waits for approval.
Everything secret in here is wiped when it stops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ron.crypto.frost.dkg import secret_of
from ron.crypto.frost.keys import GroupKey
from ron.crypto.group import InvalidElementError, public_of
from ron.crypto.hpke import PrivateKey
from ron.kernel import HealthState, Metrics
from ron.proto.balance import NodeName, ServiceName
from ron.proto.errors import RonError, bad_request, conflict, not_found, unavailable
from ron.services.balance.ports import Mesh, ServiceRecord
from ron.services.balance.vault.approvals import Approvals
from ron.services.balance.vault.ceremonies import Ceremonies
from ron.services.balance.vault.cosigning import Cosigner
from ron.services.balance.vault.handover import Handover
from ron.services.balance.vault.keyring import Epoch, Keyring, WholeKeySigner, new_expanded
from ron.services.balance.vault.proposals import Proposals
from ron.services.balance.vault.settling import Settling
from ron.services.balance.vault.signing import Form, ThresholdSigner
from ron.services.balance.vault.telemetry import Telemetry
from ron.services.balance.vault.words import APPROVED, SERVICE, run_digest
from ron.tor.descriptor.blinding import Signer
from ron.tor.descriptor.periods import TimePeriod

UPKEEP_S = 15.0
_log = Logger(namespace="ron.balance.vault")


class KeyVault(Service):
    """Implements `ron.services.balance.ports.Vault`.

    seal: the X-Wing key of this run, whose public half the mesh tells the others. cluster: bytes that name the cluster.
    approval: as in the config. periods: previous, current and next time period by this node's own consensus.
    floor: the threshold that this node's config gives a service, None where it has none. now: Unix seconds.
    """

    def __init__(
        self,
        reactor: Any,
        mesh: Mesh,
        *,
        seal: PrivateKey,
        cluster: bytes,
        approval: Literal["operator", "token"],
        periods: Callable[[], Sequence[TimePeriod]],
        health: HealthState,
        metrics: Metrics,
        floor: Callable[[ServiceName], int | None] = lambda service: None,
        now: Callable[[], float] = time.time,
        allow_unlocked: bool = False,
    ) -> None:
        self.telemetry = Telemetry(health, metrics)
        self._reactor = reactor
        self._mesh = mesh
        self._periods = periods
        self._now = now
        self._form = Form()
        self._ring = Keyring(allow_unlocked=allow_unlocked)
        run = run_digest(seal.public.raw)
        self._approvals = Approvals(mesh, self._ring, cluster=cluster, run=run, mode=approval, now_ms=self._now_ms)
        self._proposals = Proposals(mesh, self._ring, self._approvals, floor=floor)
        self._settling = Settling(
            reactor, mesh, self._ring, state_of=lambda one: self._ceremonies.state_of(one), adopted=self._adopted
        )
        self._ceremonies = Ceremonies(
            reactor,
            mesh,
            self._ring,
            self._proposals,
            self._settling,
            self.telemetry,
            seal=seal,
            cluster=cluster,
            now_ms=self._now_ms,
            adopted=self._holdings_changed,
        )
        self._cosigner = Cosigner(reactor, mesh, self._ring, self.telemetry, periods=periods, now=now)
        self._handover = Handover(
            reactor,
            mesh,
            self._ring,
            self._approvals,
            self.telemetry,
            seal=seal,
            cluster=cluster,
            restore=self._restore,
        )
        self._upkeep = LoopingCall(self._look_after)
        self._upkeep.clock = reactor
        mesh.book.on_change(self._book_changed)

    # Life

    def startService(self) -> None:
        """Ask the others for what is missing here."""
        super().startService()
        self.telemetry.show()
        self._ceremonies.start()
        self._handover.start()
        self._upkeep.start(UPKEEP_S, now=False)

    def stopService(self) -> None:
        """Wipe everything."""
        super().stopService()
        for loop in (self._handover, self._ceremonies, self._settling, self._cosigner):
            loop.stop()
        if self._upkeep.running:
            self._upkeep.stop()
        self._ring.wipe()

    # `Vault`

    def holds(self) -> frozenset[ServiceName]:
        """Services of which this node has the key, or a share."""
        return self._ring.holds()

    def signer(self, service: ServiceName) -> Signer:
        """As `Vault.signer`."""
        if service in self._ring.whole:
            return WholeKeySigner(self._ring, service)
        return ThresholdSigner(
            self._reactor, self._mesh, self._ring, self._cosigner, self.telemetry, self._form, service
        )

    # Orders. Each raises `RonError`.

    def found(self, service: ServiceName, *, key: bytearray | None = None) -> ServiceRecord:
        """A master address in mode `shared`: a new one, or that of `key` (64 bytes), which is overwritten.

        Raises Conflict when the name has an address already, BadRequest for what is no key.
        """
        expanded = key if key is not None else new_expanded()
        try:
            self._check_free(service)
            made = self._ring.take_whole(service, expanded)
        finally:
            expanded[:] = bytes(len(expanded))
        record = ServiceRecord(onion=made.onion, mode="shared", made_ms=self._now_ms())
        self._mesh.book.put(SERVICE + service, record)
        self._holdings_changed()
        return record

    def bring_back(self, service: ServiceName, key: bytearray) -> None:
        """The key of an address that is in the book and that nobody holds any more, from an offline copy.

        Raises NotFound for no such service, Conflict for another key or mode.
        """
        try:
            record = self._record(service)
            made = self._ring.take_whole(service, bytearray(key))
            if record.mode != "shared" or made.onion != record.onion:
                self._ring.drop(service)
                raise conflict(f"that is not the key of {service}")
        finally:
            key[:] = bytes(len(key))
        self._holdings_changed()

    async def share(
        self, service: ServiceName, *, threshold: int, among: Sequence[NodeName], key: bytearray | None = None
    ) -> ServiceRecord:
        """A master address in mode `threshold`: born among these nodes, or that of `key`, overwritten in any case."""
        try:
            self._check_free(service)
            public = _public(key) if key is not None else b""
            proposal = self._proposals.birth(service, threshold, among, public)
            return await self._carried_out(service, await self._ceremonies.carry_out(proposal, key))
        finally:
            if key is not None:
                key[:] = bytes(len(key))

    async def refresh(self, service: ServiceName) -> ServiceRecord:
        """New shares for the same members; what was stolen before is worth nothing afterwards."""
        proposal = self._proposals.refresh(service, self._epoch(service).group)
        return await self._carried_out(service, await self._ceremonies.carry_out(proposal))

    async def reshare(
        self,
        service: ServiceName,
        *,
        threshold: int | None = None,
        add: Sequence[NodeName] = (),
        remove: Sequence[NodeName] = (),
    ) -> ServiceRecord:
        """The same address for more, fewer or other nodes, or with another threshold. Old members that are not there
        do not deal; those of them that are not removed have to be there. Who is no node of the cluster any more gets no
        share in any case, and may be named."""
        group = self._epoch(service).group
        numbers = {name: member.number for name, member in self._mesh.members().items()}
        removed = self._mesh.book.keys("removed/")
        cut_off = {name for name in remove if f"removed/{name}" in removed} - set(numbers)
        unknown = sorted({*add, *remove} - cut_off - set(numbers))
        if unknown:
            raise not_found(f"no member of this cluster: {', '.join(unknown)}")
        there = set(numbers.values())
        gone = {numbers[name] for name in remove if name not in cut_off}
        receivers = ({number for number in group.members if number in there} - gone) | {numbers[name] for name in add}
        return await self._reshared(service, receivers, threshold or group.threshold, removed=gone)

    def approve(self, name: NodeName) -> None:
        """`name`, as it runs now, may have keys and shares; in mode `threshold` when as many nodes as sign say so."""
        self._approvals.approve(name)

    def pending(self) -> tuple[NodeName, ...]:
        """Nodes that wait for an approval of theirs to be given here."""
        return self._handover.waiting()

    def is_approved(self, name: NodeName) -> bool:
        """Did any operator name `name` as it runs now, or has every member the right to keys?"""
        return self._approvals.named(name, here=False)

    def suspects(self) -> dict[NodeName, str]:
        """Who was caught lying, and of what."""
        return dict(self.telemetry.suspects)

    def forgive(self, name: NodeName) -> None:
        """It was looked at, and is asked to sign as others are."""
        self.telemetry.forgive(name)

    def forget(self, service: ServiceName) -> None:
        """Wipe what this node holds of `service`."""
        self._ring.drop(service)

    # Within

    async def _reshared(
        self, service: ServiceName, receivers: set[int], threshold: int, *, removed: set[int]
    ) -> ServiceRecord:
        group = self._epoch(service).group
        dealers = self._holders(service)
        if len(dealers) < group.threshold:
            raise unavailable(f"a new share needs {group.threshold} nodes that have one, {len(dealers)} are there")
        proposal = self._proposals.reshare(
            service,
            group,
            threshold=threshold,
            dealers=sorted(dealers),
            receivers=sorted(receivers),
            removed=sorted(removed),
        )
        return await self._carried_out(service, await self._ceremonies.carry_out(proposal))

    def _holders(self, service: ServiceName) -> set[int]:
        """Members of our epoch that are here, in the run in which they got their share."""
        epoch = self._epoch(service)
        found = set()
        for name, member in self._mesh.members().items():
            here = name == self._mesh.name or self._mesh.peers()[name].connected
            if here and epoch.runs.get(member.number) == self._approvals.run_of(name):
                found.add(member.number)
        return found

    def _restore(self, service: ServiceName, name: NodeName) -> None:
        """An approved node has lost its share, or was cut off while the others made new ones: deal it one."""
        number = self._mesh.members()[name].number
        if number not in self._ring.holding(service).once:
            raise conflict(f"{name} had no share of {service}", f"ronctl balance reshare {service} --add {name}")
        if self._ceremonies.under_way(service):
            return
        epoch = self._epoch(service)
        receivers = self._holders(service) | {number}
        asked = self._reshared(service, receivers, epoch.group.threshold, removed=set())
        Deferred.fromCoroutine(asked).addErrback(_not_restored)

    async def _carried_out(self, service: ServiceName, group: GroupKey) -> ServiceRecord:
        self._ceremonies.record(service, group)
        return self._record(service)

    def _record(self, service: ServiceName) -> ServiceRecord:
        record = self._mesh.book.get(SERVICE + service, ServiceRecord)
        if record is None:
            raise not_found(f"there is no service {service}")
        return record

    def _epoch(self, service: ServiceName) -> Epoch:
        record = self._record(service)
        if record.mode != "threshold":
            raise conflict(f"{service} has no shares: its whole key is with every node")
        epoch = self._ring.current(service, record.group)
        if epoch is None:
            raise unavailable(f"{self._mesh.name} has no share of {service}", "order it at a node that has one")
        return epoch

    def _check_free(self, service: ServiceName) -> None:
        if self._ring.uses(service) or self._mesh.book.get(SERVICE + service, ServiceRecord) is not None:
            raise conflict(f"{service} has an address already", "choose another name")

    def _adopted(self, service: ServiceName) -> None:
        epoch = self._ring.current(service)
        if epoch is not None:
            self._ceremonies.record(service, epoch.group)
        self._holdings_changed()

    def _holdings_changed(self) -> None:
        self._look_locked()
        self._approvals.renew()

    def _book_changed(self, key: str) -> None:
        if self.running and key.startswith((SERVICE, APPROVED)):
            # not from within the book's own change
            self._reactor.callLater(0, self._catch_up, key)

    def _catch_up(self, key: str) -> None:
        if not self.running:
            return
        if key.startswith(APPROVED):
            self._approvals.mend(key.removeprefix(APPROVED))
        self._handover.seek()

    def _look_after(self) -> None:
        """Forget shares of periods that are over, make those of the next one, and see whether we were left out."""
        periods = self._periods()
        self._ring.keep_only(periods)
        for holding in self._ring.shared.values():
            for epoch in holding.epochs():
                for period in periods:
                    epoch.blinded_group(period)
                    epoch.blinded_share(period, allow_unlocked=self._ring.allow_unlocked)
        self._look_locked()
        for service in list(self._ring.shared):
            if not self._ceremonies.under_way(service):
                Deferred.fromCoroutine(self._check_left_out(service)).addErrback(
                    lambda failure: _log.failure("looking at epochs failed", failure, event="vault_upkeep_failed")
                )

    async def _check_left_out(self, service: ServiceName) -> None:
        if await self._settling.superseded(service):
            _log.warn("the others share {service} without this node", event="vault_left_out", service=service)
            self._ring.drop(service)

    def _look_locked(self) -> None:
        self.telemetry.unlocked = not self._ring.locked
        self.telemetry.show()

    def _now_ms(self) -> int:
        return int(self._now() * 1000)


def _public(expanded: bytearray) -> bytes:
    try:
        return public_of(secret_of(expanded))
    except InvalidElementError:
        raise bad_request("not a v3 onion key", hint="it is the last 64 bytes of hs_ed25519_secret_key") from None


def _not_restored(failure: Any) -> None:
    failure.trap(RonError)
    _log.info("a share could not be dealt again: {why}", event="vault_not_restored", why=failure.value.message)
