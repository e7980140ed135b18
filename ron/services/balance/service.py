"""One node of a cluster, running: what the rooms say to each other, every beat and whenever something happens.

In: the rooms, made by whoever composes the process; the config as it is now. Out: beats to the others, orders to the
head and the conductor, standings for the operator. Every decision is the cluster's (`cluster/`), none is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ron.kernel import HealthState
from ron.proto.balance import Beat, HeadDescriptor, NodeName, Said, ServiceName
from ron.services.balance.cluster import Cluster, Standing, Timing, read_orders
from ron.services.balance.conductor import Conductor
from ron.services.balance.config import BalanceConfig
from ron.services.balance.ports import Head, Mesh, Vault
from ron.services.balance.publishing.room import Publishing
from ron.services.balance.records import Records
from ron.tor.descriptor.hashring import Ring

BEAT = "balance/beat"
DESCRIPTOR = "balance/descriptor"
ASK_DESCRIPTOR = "balance/ask-descriptor"
ASK_PUBLISH = "balance/ask-publish"
# Two beats are so far apart at least, whatever others tell us.
SOON_S = 0.05
# A head whose descriptor we have not got is asked for it so often.
ASK_AGAIN_S = 1.0
_log = Logger(namespace="ron.balance")


class Nothing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message whose kind says it all."""


class PublishAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """To whoever leads: publish anew, because of `why`."""

    why: Said


class Watched(Protocol):
    """The visitors of our own, one for each service, and the tor they go through: whatever runs beside the rooms."""

    def follow(self, services: dict[ServiceName, str]) -> None:
        """These addresses are to be visited, by name."""


class BalanceService(Service):
    """Joins the rooms. now_ms: Unix milliseconds. stands: called with each standing that says something new."""

    def __init__(
        self,
        reactor: Any,
        wishes: Callable[[], BalanceConfig],
        *,
        mesh: Mesh,
        vault: Vault,
        head: Head,
        cluster: Cluster,
        conductor: Conductor,
        records: Records,
        room: Publishing,
        visits: Watched,
        health: HealthState,
        now_ms: Callable[[], int],
        masters_changed: Callable[[list[str]], None],
        stands: Callable[[Standing], None] = lambda standing: None,
    ) -> None:
        self.mesh = mesh
        self.vault = vault
        self.head = head
        self.cluster = cluster
        self.conductor = conductor
        self.records = records
        self.room = room
        self._reactor = reactor
        self._wishes = wishes
        self._visits = visits
        self._health = health
        self._now_ms = now_ms
        self._masters_changed = masters_changed
        self._stands = stands
        self._linked: set[NodeName] = set()
        self._prepared: tuple[frozenset[ServiceName], bool] = (frozenset(), False)
        self._asked_s: dict[NodeName, float] = {}
        self._sent = ""
        self._masters: list[str] = []
        self._groups: dict[ServiceName, bytes] = {}
        self._soon: IDelayedCall | None = None
        self._beat_s = float("-inf")
        self._beats = LoopingCall(self._beat)
        self._beats.clock = reactor
        mesh.listen(BEAT, Beat, self._heard)
        mesh.listen(DESCRIPTOR, HeadDescriptor, room.offer)
        mesh.listen(ASK_DESCRIPTOR, Nothing, self._asked_for_descriptor)
        mesh.listen(ASK_PUBLISH, PublishAsked, self._asked_to_publish)
        mesh.book.on_change(self._book_changed)
        head.on_change(self._head_changed)

    # Life

    def startService(self) -> None:
        """Begin to beat."""
        super().startService()
        self._read_book()
        self._beats.start(Timing.of(self._wishes()).beat_s)

    def stopService(self) -> None:
        """Beat no more: the others notice, and the next one leads."""
        super().stopService()
        if self._beats.running:
            self._beats.stop()
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        self.conductor.stop()

    def seconds(self) -> float:
        """By the clock that only goes on."""
        return float(self._reactor.seconds())

    # Every beat

    def _beat(self) -> None:
        self._beat_s = self._reactor.seconds()
        try:
            self.decide()
            self.tell()
        except Exception:  # noqa: BLE001 - a LoopingCall would end; a node that fails every beat is silent, and rightly dead
            _log.failure("a beat failed", event="balance_beat_failed")

    def decide(self) -> Standing:
        """How things stand now, and what follows from it here."""
        cluster, now_s = self.cluster, self._reactor.seconds()
        cluster.members(self.mesh.members())
        cluster.services(self.records.all(), self.vault.holds())
        cluster.head(self.head.report())
        cluster.unable(self._unable())
        self._watch_links()
        standing = cluster.tick(now_s, self._now_ms())
        (self.head.serve if standing.duties.head == "serve" else self.head.ghost)()
        self.conductor.act(standing)
        self._prepare(standing)
        self._show(standing)
        self._stands(standing)
        return standing

    def tell(self) -> None:
        """A beat to everybody, now; and the head's descriptor when it is a new one."""
        if not self.running:
            return
        self.mesh.broadcast(BEAT, self.cluster.beat(self._reactor.seconds()))
        descriptor, digest = self.head.descriptor(), self.head.report().descriptor
        if descriptor is None:
            return
        if digest != self._sent:
            self._sent = digest
            self.mesh.broadcast(DESCRIPTOR, descriptor)
        if not self.room.confirm(self.mesh.name, digest):
            self.room.offer(self.mesh.name, descriptor)

    def soon(self) -> None:
        """Something happened that need not wait for the next beat."""
        if self._soon is None and self.running:
            wait_s = max(0.0, self._beat_s + SOON_S - self._reactor.seconds())
            self._soon = self._reactor.callLater(wait_s, self._at_once)

    def _at_once(self) -> None:
        self._soon = None
        self._beat()

    def _prepare(self, standing: Standing) -> None:
        """Keys that this node will need, before it needs them."""
        may = self.vault.holds(), standing.duties.lead
        if may != self._prepared:
            self._prepared = may
            self.room.prepare()

    def _unable(self) -> str:
        if self.room.network.ring is None:
            return self.room.network.failed or "its tor has no consensus yet"
        records = self.records.all()
        if records and not self.vault.holds() & records.keys():
            return "it has no key and no share"
        return ""

    def _show(self, standing: Standing) -> None:
        if standing.leader:
            self._health.ok("balance.leader")
        else:
            self._health.degraded("balance.leader", standing.why or "no node can lead")
        if standing.unfit and standing.leader != self.mesh.name:
            self._health.degraded("balance.fit", f"this node could not lead: {standing.unfit}")
        else:
            self._health.ok("balance.fit")
        if standing.rivals:
            self._health.degraded("balance.split", f"{', '.join(standing.rivals)} lead too: the mesh is torn")
        else:
            self._health.ok("balance.split")

    # What others say

    def _heard(self, sender: NodeName, beat: Beat) -> None:
        peer = self.mesh.peers().get(sender)
        self.cluster.heard(sender, beat, self._reactor.seconds(), peer.drift_s if peer is not None else None)
        for told in beat.published:
            self.room.heard(told)
        digest = beat.head.descriptor
        if digest and not self.room.confirm(sender, digest):
            self._ask_for_descriptor(sender)
        if (beat.leads and self.cluster.standing.leader != sender) or self._is_news(sender, beat):
            self.soon()

    def _is_news(self, sender: NodeName, beat: Beat) -> bool:
        """What a leader is not to hear a beat later."""
        seen = self.cluster.standing.nodes.get(sender)
        if seen is None or seen.beat is None:
            return True
        was, now = seen.beat.head, beat.head
        return (was.mode, was.healthy, was.under_siege) != (now.mode, now.healthy, now.under_siege)

    def _watch_links(self) -> None:
        linked = {name for name, peer in self.mesh.peers().items() if peer.connected}
        for name in self._linked - linked:
            self.gone(name)
        self._linked = linked

    def gone(self, name: NodeName) -> None:
        """The link to it broke."""
        self._linked.discard(name)
        self.cluster.gone(name, self._reactor.seconds())
        # it may be back in a moment; if it is not, that is seen as soon as it may be
        self._reactor.callLater(Timing.of(self._wishes()).gone_s + 0.01, self.soon)

    def _ask_for_descriptor(self, name: NodeName) -> None:
        now_s = self._reactor.seconds()
        if now_s - self._asked_s.get(name, float("-inf")) >= ASK_AGAIN_S:
            self._asked_s[name] = now_s
            self.mesh.send(name, ASK_DESCRIPTOR, Nothing())

    def _asked_for_descriptor(self, sender: NodeName, _nothing: Nothing) -> None:
        descriptor = self.head.descriptor()
        if descriptor is not None:
            self.mesh.send(sender, DESCRIPTOR, descriptor)

    def _asked_to_publish(self, sender: NodeName, asked: PublishAsked) -> None:
        if self.cluster.standing.duties.lead:
            _log.info("{node} asks to publish: {why}", event="balance_asked", node=sender, why=asked.why)
            self.cluster.ask()
            self.soon()

    def ask_to_publish(self, why: str) -> NodeName:
        """Have whoever leads publish anew; its name, empty while nobody leads."""
        leader = self.cluster.standing.leader
        if leader == self.mesh.name:
            self.cluster.ask()
            self.soon()
        elif leader:
            self.mesh.send(leader, ASK_PUBLISH, PublishAsked(why=why[:200]))
        return leader

    # What changed here

    def ring_changed(self, ring: Ring) -> None:
        """Another consensus."""
        self.conductor.ring_changed(ring)
        self.soon()

    def shelf_changed(self, _name: NodeName) -> None:
        """A head's descriptor was read, and is another."""
        self.soon()

    def _head_changed(self) -> None:
        self.soon()

    def _book_changed(self, _key: str) -> None:
        self._read_book()
        self.soon()

    def _read_book(self) -> None:
        self.cluster.orders(read_orders(self.mesh.book))
        self.room.members(self.mesh.members().keys())
        records = self.records.all()
        masters = sorted(record.onion for record in records.values())
        if masters != self._masters:
            self._masters = masters
            self._masters_changed(masters)
        self._visits.follow({name: record.onion for name, record in self.records.open().items()})
        groups = {name: record.group for name, record in records.items()}
        for name, group in self._groups.items():
            if groups.get(name) != group:
                self.room.give_up(name)
        self._groups = groups
