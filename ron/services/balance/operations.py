"""What an operator orders of a running node: `Desk`, carried out.

In: orders from the API, checked already. Out: entries in the cluster's book, ceremonies of the vault, and how things
stand afterwards. Every order works at any node; what needs a key works at one that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from ron.proto.balance import MAX_SERVICES, Mode, NodeName, ServiceName, Where
from ron.proto.balanceviews import (
    ROULETTE_WARNING,
    BalanceView,
    GhostView,
    InvitationAnswer,
    LeaderView,
    MemberView,
    PublishAnswer,
    RemoveAnswer,
    RouletteAnswer,
    ServiceView,
    TokenAnswer,
)
from ron.proto.errors import conflict, not_found, unavailable
from ron.services.balance.cluster import Promote, Roulette, Siege, Standing, most_put_out, read_orders
from ron.services.balance.config import BalanceConfig
from ron.services.balance.ports import ServiceRecord
from ron.services.balance.service import BalanceService
from ron.services.balance.views import Keeps, Outlook

# After the goodbye, so that it gets out.
GOODBYE_S = 0.5


class Orders(Keeps, Protocol):
    """The vault, as far as operators order anything of it."""

    def found(self, service: ServiceName, *, key: bytearray | None = None) -> ServiceRecord: ...
    def bring_back(self, service: ServiceName, key: bytearray) -> None: ...
    async def share(
        self, service: ServiceName, *, threshold: int, among: Sequence[NodeName], key: bytearray | None = None
    ) -> ServiceRecord: ...
    async def refresh(self, service: ServiceName) -> ServiceRecord: ...
    async def reshare(
        self,
        service: ServiceName,
        *,
        threshold: int | None = None,
        add: Sequence[NodeName] = (),
        remove: Sequence[NodeName] = (),
    ) -> ServiceRecord: ...
    def approve(self, name: NodeName) -> None: ...
    def forget(self, service: ServiceName) -> None: ...


class Gate(Protocol):
    """The mesh, as far as operators decide who is in it."""

    async def remove(self, name: NodeName) -> RemoveAnswer: ...
    async def rotate_token(self) -> TokenAnswer: ...
    async def invite(self, name: NodeName, addresses: tuple[Where, ...]) -> InvitationAnswer: ...


class OperatorsDesk:
    """Implements `ron.services.balance.desk.Desk`. leave: called when this node has left, to end it."""

    def __init__(
        self,
        reactor: Any,
        service: BalanceService,
        outlook: Outlook,
        vault: Orders,
        gate: Gate,
        wishes: Callable[[], BalanceConfig],
        now_ms: Callable[[], int],
        leave: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._service = service
        self._outlook = outlook
        self._vault = vault
        self._gate = gate
        self._wishes = wishes
        self._now_ms = now_ms
        self._leave = leave

    # Looking

    async def status(self) -> BalanceView:
        """As `Desk.status`."""
        return self._outlook.view(self._standing())

    async def ghosts(self) -> tuple[GhostView, ...]:
        """As `Desk.ghosts`."""
        return self._outlook.ghosts(self._standing())

    # The cluster

    async def promote(self, node: NodeName | None, for_s: int | None) -> LeaderView:
        """As `Desk.promote`."""
        self._running()
        book = self._service.mesh.book
        if node is None:
            book.put("promote", None)
        else:
            self._known(node)
            book.put("promote", Promote(node=node, until_ms=self._until_ms(for_s)))
        return self._outlook.leader(self._service.decide())

    async def siege(self, node: NodeName, on: bool, for_s: int | None) -> MemberView:
        """As `Desk.siege`. Off brings it back at once; its own figures count again after `for_s` or the quiet time."""
        self._running()
        self._known(node)
        until_ms = self._until_ms(for_s if on or for_s is not None else self._wishes().quiet_s)
        if on:
            self._not_too_many(node)
        self._service.mesh.book.put(f"siege/{node}", Siege(on=on, until_ms=until_ms))
        return self._outlook.member(node, self._service.decide())

    async def roulette(self, on: bool, for_s: int | None) -> RouletteAnswer:
        """As `Desk.roulette`."""
        self._running()
        now_ms = self._now_ms()
        until_ms = now_ms + 1000 * (for_s or self._wishes().roulette_for_s)
        order = Roulette(from_ms=now_ms, until_ms=until_ms, every_s=self._wishes().roulette_s) if on else None
        self._service.mesh.book.put("roulette", order)
        view = self._outlook.view(self._service.decide())
        return RouletteAnswer(until=view.roulette_until, warning=ROULETTE_WARNING if on else "")

    async def publish(self, service: ServiceName | None) -> PublishAnswer:
        """As `Desk.publish`. All of the leader's addresses are published together, whichever was named."""
        self._running()
        names = sorted(self._service.records.all())
        if service is not None and service not in names:
            raise not_found(f"there is no service {service}")
        leader = self._service.ask_to_publish("an operator asked")
        if not leader:
            raise unavailable("no node leads", "ronctl balance status says why")
        return PublishAnswer(leader=leader, services=tuple(names))

    # Keys

    async def create(
        self,
        name: ServiceName,
        mode: Mode,
        threshold: int,
        members: int,
        among: tuple[NodeName, ...],
        key: bytearray | None,
    ) -> ServiceView:
        """As `Desk.create`. A key for an address in mode `shared` that nobody holds any more brings it back."""
        try:
            self._running()
            record = self._service.records.all().get(name)
            if record is not None and key is not None and record.mode == mode == "shared":
                self._vault.bring_back(name, key)
            elif mode == "shared":
                self._check_new(name)
                self._vault.found(name, key=key)
            else:
                self._check_new(name)
                await self._vault.share(name, threshold=threshold, among=self._chosen(members, among), key=key)
        finally:
            if key is not None:
                key[:] = bytes(len(key))
        self._service.soon()
        return self._view(name)

    async def refresh(self, service: ServiceName) -> ServiceView:
        """As `Desk.refresh`."""
        self._running()
        await self._vault.refresh(service)
        return self._view(service)

    async def reshare(
        self,
        service: ServiceName,
        threshold: int | None,
        add: tuple[NodeName, ...],
        remove: tuple[NodeName, ...],
    ) -> ServiceView:
        """As `Desk.reshare`."""
        self._running()
        await self._vault.reshare(service, threshold=threshold, add=add, remove=remove)
        return self._view(service)

    # Who belongs to it

    async def approve(self, name: NodeName) -> MemberView:
        """As `Desk.approve`."""
        self._running()
        self._known(name)
        self._vault.approve(name)
        return self._outlook.member(name, self._standing())

    async def remove(self, name: NodeName) -> RemoveAnswer:
        """As `Desk.remove`."""
        self._running()
        self._known(name)
        if name == self._service.mesh.name:
            raise conflict("a node does not remove itself", "ronctl balance leave")
        answer = await self._gate.remove(name)
        self._service.soon()
        return answer

    async def leave(self) -> NodeName:
        """As `Desk.leave`. The node ends a moment later."""
        self._running()
        name = self._service.mesh.name
        self._not_the_last(name)
        await self._gate.remove(name)
        # only then: where that was refused, this node goes on, and needs them
        for service in self._vault.holds():
            self._vault.forget(service)
        self._service.decide()
        self._service.tell()
        self._reactor.callLater(GOODBYE_S, self._leave)
        return name

    async def rotate_token(self) -> TokenAnswer:
        """As `Desk.rotate_token`."""
        self._running()
        return await self._gate.rotate_token()

    async def invite(self, name: NodeName, addresses: tuple[Where, ...]) -> InvitationAnswer:
        """As `Desk.invite`."""
        self._running()
        return await self._gate.invite(name, addresses)

    # Parts of it

    def _standing(self) -> Standing:
        return self._service.cluster.standing

    def _not_too_many(self, node: NodeName) -> None:
        """Raises Conflict for an order that would not be followed."""
        book, me, members = self._service.mesh.book, self._service.mesh.name, self._service.mesh.members()
        orders = read_orders(book, members)
        wanted = msgspec.structs.replace(orders, siege={**orders.siege, node: Siege()}, by={**orders.by, node: me})
        if wanted.bounded(members, self._now_ms()).siege.keys() != wanted.siege.keys():
            raise conflict(
                f"orders of one node leave out at most {most_put_out(len(members))} of the others' heads",
                f"give it at {node} itself or at a third node, or end another one first",
            )

    def _known(self, name: NodeName) -> None:
        if name not in self._service.mesh.members():
            raise not_found(f"{name} is no member of this cluster")

    def _running(self) -> None:
        """Raises Unavailable before this node is in its cluster, and after."""
        if not self._service.running:
            raise unavailable("this node is just starting, or ending", "try again in a moment")

    def _check_new(self, name: ServiceName) -> None:
        records = self._service.records
        if name not in {service.name for service in self._wishes().services}:
            raise conflict(
                f"the config of this node has no [[balance.services]] with the name {name}",
                "add it on every node, with the ports that lead to its target",
            )
        if len(records.all().keys() & self._vault.holds()) >= MAX_SERVICES:
            raise conflict(f"a cluster has at most {MAX_SERVICES} addresses")

    def _not_the_last(self, leaving: NodeName) -> None:
        """Raises Conflict where an address would be lost for good with this node, unless nobody else is there."""
        if len(self._service.mesh.members()) == 1:
            return
        for service in sorted(self._vault.holds() & self._service.records.all().keys()):
            view = self._view(service)
            if len(set(view.holders) - {leaving}) < max(view.threshold, 1):
                raise conflict(
                    f"without {leaving} nobody could sign for {service} any more",
                    "approve another node and wait until it holds it too, or reshare",
                )

    def _view(self, name: ServiceName) -> ServiceView:
        try:
            return self._outlook.service(name, self._standing())
        except KeyError:
            raise not_found(f"there is no service {name}") from None

    def _until_ms(self, for_s: int | None) -> int:
        return 0 if for_s is None else self._now_ms() + 1000 * for_s

    def _chosen(self, members: int, among: tuple[NodeName, ...]) -> tuple[NodeName, ...]:
        """Whoever was named; or this node and others that are there and approved."""
        if among:
            for name in among:
                self._known(name)
            return among
        mesh = self._service.mesh
        there = [
            name for name, peer in sorted(mesh.peers().items()) if peer.connected and self._vault.is_approved(name)
        ]
        found = (mesh.name, *there)[:members]
        if len(found) < members:
            raise unavailable(
                f"{members} nodes are to have a share, and {len(found)} are there and approved",
                "start them, and: ronctl balance approve NAME",
            )
        return found
