"""One node of a cluster, running: what the rooms say to each other, every beat and whenever something happens.

In: the rooms, made by whoever composes the process; the config as it is now. Out: beats to the others, orders to the
head and the conductor, standings for the operator. Every decision is the cluster's (`cluster/`), none is here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol

import msgspec
from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ron.kernel import HealthState
from ron.proto.balance import MAX_SERVICES, Beat, Failing, HeadDescriptor, HeadReport, NodeName, Published, ServiceName
from ron.proto.errors import RonError
from ron.services.balance.cluster import Cluster, Standing, Timing, read_orders
from ron.services.balance.conductor import Conductor
from ron.services.balance.config import BalanceConfig
from ron.services.balance.ports import Head, Mesh, Vault
from ron.services.balance.publishing.room import Publishing
from ron.services.balance.readiness import ClusterReadiness
from ron.services.balance.records import Records
from ron.services.balance.sparing import ASK_AGAIN_S, Sparingly, Wanted
from ron.services.balance.words import (
    ASK_DESCRIPTOR,
    ASK_PUBLISH,
    BEAT,
    DESCRIPTOR,
    Nothing,
    PublishAsked,
    matters,
    news_in,
)
from ron.tor.descriptor.hashring import Ring

# Two beats are so far apart at least, whatever others tell us.
SOON_S = 0.05
# A tor that is away for a moment comes back before another leader would have published.
TOR_GRACE_S = 3.0
# What is shown to the operator is put together so often, and when another leads.
SHOW_S = 1.0
LEAVING = "it is being stopped"
NOT_HERE = "its node's config has no service of that name"
_log = Logger(namespace="ron.balance")


class Watched(Protocol):
    """The visitors of our own, one for each service, and the tor they go through: whatever runs beside the rooms."""

    def follow(self, services: dict[ServiceName, str]) -> None:
        """These addresses are to be visited, by name."""


class BalanceService(Service):
    """Joins the rooms. now_ms: Unix milliseconds. masters_changed: told the addresses that the head answers for.
    stands: called with a standing when another leads, and about once a second. Started once.
    """

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
        self._readiness = ClusterReadiness(health, mesh.name)
        self._now_ms = now_ms
        self._masters_changed = masters_changed
        self._stands = stands
        self._linked: set[NodeName] = set()
        self._gone: dict[NodeName, IDelayedCall] = {}
        self._prepared: tuple[frozenset[ServiceName], bool] = (frozenset(), False)
        self._wanted: dict[NodeName, Wanted] = {}
        # of each member: our descriptor, which is large, and publications, which are work
        self._given = Sparingly(4, ASK_AGAIN_S)
        self._heeded = Sparingly(4, 20.0)
        # another group is new signatures, another set of masters a new onion
        self._regrouped = Sparingly(4, 30.0)
        self._sent = ""
        self._told: tuple[object, ...] = ()
        self._told_s = float("-inf")
        self._book_read = False
        self._masters: list[str] = []
        self._groups: dict[ServiceName, bytes] = {}
        self._shown: tuple[NodeName, float] = ("", float("-inf"))
        self._tor_s: float | None = None
        self._soon: IDelayedCall | None = None
        self._beat_s = float("-inf")
        self._beats = LoopingCall(self._beat)
        self._beats.clock = reactor
        mesh.listen(BEAT, Beat, self._heard)
        mesh.listen(DESCRIPTOR, HeadDescriptor, self._offered)
        mesh.listen(ASK_DESCRIPTOR, Nothing, self._asked_for_descriptor)
        mesh.listen(ASK_PUBLISH, PublishAsked, self._asked_to_publish)
        mesh.book.on_change(self._book_changed)
        head.on_change(self.soon)

    # Life

    def startService(self) -> None:
        """Begin to beat."""
        super().startService()
        self._beats.start(Timing.of(self._wishes()).beat_s)

    def stopService(self) -> None:
        """Say so, and beat no more: the next one leads."""
        if self.running:
            self._farewell()
        super().stopService()
        if self._beats.running:
            self._beats.stop()
        for call in (self._soon, *self._gone.values()):
            if call is not None and call.active():
                call.cancel()
        self.conductor.stop()
        self._readiness.forget()

    def seconds(self) -> float:
        """By the clock that only goes on."""
        return float(self._reactor.seconds())

    # Every beat

    def _beat(self, *, regular: bool = True) -> None:
        """A node that fails every beat is silent, and rightly dead; what only shows it must not make it so."""
        self._beat_s = self.seconds()
        try:
            standing = self.decide()
            # whoever was told a moment ago need not be told again
            if (regular and self._beat_s - self._told_s >= SOON_S) or self._has_news():
                self.tell()
        except Exception:  # noqa: BLE001 - or the LoopingCall would end
            _log.failure("a beat failed", event="balance_beat_failed")
            return
        try:
            self._show(standing)
        except Exception:  # noqa: BLE001 - as above
            _log.failure("how things stand could not be shown", event="balance_not_shown")

    def decide(self) -> Standing:
        """How things stand now, and what follows from it here."""
        cluster, now_s = self.cluster, self.seconds()
        if not self._book_read:
            self._read_book()
        cluster.members(self.mesh.members())
        cluster.services(self.records.all(), self.vault.holds() & self.records.served().keys())
        cluster.head(self._own_head())
        cluster.unable(self._unable())
        self._watch_links()
        standing = cluster.tick(now_s, self._now_ms())
        if self.running:
            (self.head.serve if standing.duties.head == "serve" else self.head.ghost)()
            self.conductor.act(standing)
            self._prepare(standing)
        return standing

    def _own_head(self) -> HeadReport:
        """With the addresses of the cluster of which this node has no target, and its head nothing to answer with."""
        report, served = self.head.report(), self.records.served()
        lacking = [name for name in self.records.all() if name not in served]
        if not lacking or report.mode == "down":
            return report
        more = tuple(Failing(service=name, target=NOT_HERE) for name in sorted(lacking))
        return msgspec.structs.replace(report, failing=(*report.failing, *more)[:MAX_SERVICES])

    def tell(self) -> None:
        """A beat to everybody, now; and the head's descriptor when it is a new one."""
        if not self.running:
            return
        beat = self.cluster.beat(self.seconds())
        self._told, self._told_s = news_in(beat), self.seconds()
        self.mesh.broadcast(BEAT, beat)
        descriptor, digest = self.head.descriptor(), self.head.report().descriptor
        if descriptor is None:
            return
        if digest != self._sent:
            self._sent = digest
            self.mesh.broadcast(DESCRIPTOR, descriptor)
        if not self.room.confirm(self.mesh.name, digest) and self._wants(self.mesh.name, digest):
            self.room.offer(self.mesh.name, descriptor)

    def soon(self) -> None:
        """Something happened that need not wait for the next beat."""
        if self._soon is None and self.running:
            wait_s = max(0.0, self._beat_s + SOON_S - self.seconds())
            self._soon = self._reactor.callLater(wait_s, self._at_once)

    def _at_once(self) -> None:
        self._soon = None
        self._beat(regular=False)

    def _has_news(self) -> bool:
        """Worth a word to everybody before the next regular one."""
        return self._told != news_in(self.cluster.beat(self.seconds()))

    def _farewell(self) -> None:
        """So that nobody has to find out: the next one leads at once, and no visitor is sent here any more."""
        beat = self.cluster.beat(self.seconds())
        gone = HeadReport(mode="down", onion=beat.head.onion)
        self.mesh.broadcast(BEAT, msgspec.structs.replace(beat, fit=False, unfit=LEAVING, leads=False, head=gone))

    def _prepare(self, standing: Standing) -> None:
        """Keys that this node will need, before it needs them."""
        may = self.vault.holds(), standing.duties.lead
        if may != self._prepared:
            self._prepared = may
            self._book_read = False  # what it says is judged by what is held
            self.room.prepare()

    def _unable(self) -> str:
        network, now_s = self.room.network, self.seconds()
        if network.ring is None:
            return (network.failed or "its tor has no consensus yet")[:200]
        if self.room.has_tor:
            self._tor_s = None
        elif self._tor_s is None:
            self._tor_s = now_s
        if self._tor_s is not None and now_s - self._tor_s >= TOR_GRACE_S:
            return "its tor has gone"
        served = self.records.served()
        if served and not self.vault.holds() & served.keys():
            return "it has no key and no share"
        return ""

    def _show(self, standing: Standing) -> None:
        self._readiness.stands(standing, self.records.served())
        leader, shown_s = self._shown
        if leader != standing.leader or self.seconds() - shown_s >= SHOW_S:
            self._shown = standing.leader, self.seconds()
            self._stands(standing)

    # What others say

    def _heard(self, sender: NodeName, beat: Beat) -> None:
        peer = self.mesh.peers().get(sender)
        if peer is None or not self.running:
            return
        self.cluster.heard(sender, beat, self.seconds(), peer.drift_s)
        self._learn(beat.published)
        digest = beat.head.descriptor
        if digest and not self.room.confirm(sender, digest) and self._wants(sender, digest):
            self.mesh.send(sender, ASK_DESCRIPTOR, Nothing())
        if self._is_news(sender, beat):
            self.soon()

    def _learn(self, published: tuple[Published, ...]) -> None:
        """Counters, of what there is: a member may tell of as many services and periods as there are numbers."""
        ring = self.room.network.ring
        if not published or ring is None:
            return
        periods, services = {due.period.number for due in ring.time.due()}, self.records.all()
        for told in published:
            if told.service in services and told.period in periods:
                self.room.heard(told)

    def _is_news(self, sender: NodeName, beat: Beat) -> bool:
        """What a leader is not to hear a beat later."""
        seen = self.cluster.standing.nodes.get(sender)
        return seen is None or seen.beat is None or matters(seen.beat) != matters(beat)

    def _watch_links(self) -> None:
        linked = {name for name, peer in self.mesh.peers().items() if peer.connected}
        for name in self._linked - linked:
            self.gone(name)
        self._linked = linked

    def gone(self, name: NodeName) -> None:
        """The link to it broke."""
        self._linked.discard(name)
        self.cluster.gone(name, self.seconds())
        before = self._gone.pop(name, None)
        if before is not None and before.active():
            before.cancel()
        if self.running:
            # it may be back in a moment; if it is not, that is seen as soon as it may be
            self._gone[name] = self._reactor.callLater(Timing.of(self._wishes()).gone_s + 0.01, self.soon)

    def _wants(self, name: NodeName, digest: str) -> bool:
        return self._wanted.setdefault(name, Wanted()).now(digest, self.seconds())

    def _offered(self, sender: NodeName, offered: HeadDescriptor) -> None:
        if self.running and sender in self.mesh.members():
            self.room.offer(sender, offered)

    def _asked_for_descriptor(self, sender: NodeName, _nothing: Nothing) -> None:
        descriptor = self.head.descriptor()
        if descriptor is not None and self._given.may(sender, self.seconds()):
            self.mesh.send(sender, DESCRIPTOR, descriptor)

    def _asked_to_publish(self, sender: NodeName, asked: PublishAsked) -> None:
        if self.cluster.standing.duties.lead and self._heeded.may(sender, self.seconds()):
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

    def shelf_changed(self, name: NodeName) -> None:
        """A head's descriptor was read, and is another."""
        self.conductor.shelf_changed(name)
        self.soon()

    def _book_changed(self, _key: str) -> None:
        # read once for all that comes with it: a member can write a thousand entries
        self._book_read = False
        self.soon()

    def _read_book(self) -> None:
        self._book_read = True
        members = self.mesh.members().keys()
        self.cluster.orders(read_orders(self.mesh.book, members))
        self.room.members(members)
        self._forget_all_but(members)
        self._put_right()
        records = self.records.all()
        self._new_masters({name: record.onion for name, record in records.items()})
        self._visits.follow({name: record.onion for name, record in self.records.open().items()})
        self._new_groups({name: record.group for name, record in records.items()})

    def _forget_all_but(self, members: Collection[NodeName]) -> None:
        self._wanted = {name: wanted for name, wanted in self._wanted.items() if name in members}
        self._given.keep_only(members)
        self._heeded.keep_only(members)

    def _put_right(self) -> None:
        try:
            self._book_read = self.records.put_right(self.seconds())
        except RonError as error:
            _log.warn("an address in the book is wrong, and stays so: {why}", event="balance_spoilt", why=error.message)

    def _new_masters(self, onions: dict[ServiceName, str]) -> None:
        masters = sorted({*onions.values()})
        if masters == self._masters:
            return
        ours = {onion for name, onion in onions.items() if name in self.vault.holds()}
        if ours <= set(self._masters) and not self._regrouped.may("masters", self.seconds()):
            self._book_read = False  # look again at the next beat
            return
        self._masters = masters
        self._masters_changed(masters)

    def _new_groups(self, groups: dict[ServiceName, bytes]) -> None:
        """Shares that were made anew: what the old ones signed is not used any more."""
        now = dict(groups)
        for name, group in self._groups.items():
            if now.get(name) == group:
                continue
            if name in now and not self._regrouped.may(name, self.seconds()):
                now[name] = group
                self._book_read = False
                continue
            self.room.give_up(name)
            self._prepared = (frozenset(), False)
            if self.conductor.leads:
                self.cluster.ask()
        self._groups = now
        self._regrouped.keep_only({"masters", *now})
