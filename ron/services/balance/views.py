"""The cluster as an operator is shown it, put together from what the rooms know.

In: a standing, the mesh, the book, the vault, what was published and where it is. Out: `BalanceView`. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

from ron.crypto.frost.keys import GroupKey
from ron.proto.balance import Beat, HeadReport, NodeName, Published, ServiceName
from ron.proto.balanceviews import (
    BalanceView,
    FailingView,
    GhostView,
    HeadView,
    LeaderView,
    MemberView,
    PublicationView,
    ServiceView,
)
from ron.services.balance.cluster import NodeView, Standing, State, read_orders
from ron.services.balance.mesh.entries import STRIKE
from ron.services.balance.mesh.vouching import Struck
from ron.services.balance.ports import Member, Mesh, Peer, ServiceRecord
from ron.services.balance.publishing.schedule import Found
from ron.services.balance.readiness import refused
from ron.services.balance.service import BalanceService

REMOVED = "removed/"
# Of members that are none any more so many are shown.
_MOST_REMOVED = 32
# RFC 3339 has four digits for the year, and anybody in the cluster may write an order for longer.
_LAST_S = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()


class Keeps(Protocol):
    """The vault, as far as it is shown."""

    def holds(self) -> frozenset[ServiceName]: ...
    def pending(self) -> tuple[NodeName, ...]: ...
    def suspects(self) -> dict[NodeName, str]: ...
    def is_approved(self, name: NodeName) -> bool: ...


class _Seen(NamedTuple):
    """What all parts of one view go by. mine: our own beat, as others would get it now. heads: in what is published."""

    standing: Standing
    members: Mapping[NodeName, Member]
    peers: Mapping[NodeName, Peer]
    mine: Beat
    holds: frozenset[ServiceName]
    waiting: tuple[NodeName, ...]
    heads: Mapping[ServiceName, tuple[NodeName, ...]]


class Outlook:
    """Puts views together. cluster: its id in hex. holding: what directories had when last looked at. reachable: how
    this node's own visits went. pace_s: how old a descriptor may become. now_s: Unix time. refused: why the cluster
    does not take this node, empty when it does; turned: who has turned it away all the same, and why.
    """

    def __init__(
        self,
        service: BalanceService,
        *,
        cluster: str,
        vault: Keeps,
        holding: Callable[[ServiceName], Mapping[str, Found]],
        reachable: Callable[[ServiceName], bool | None],
        pace_s: Callable[[], float],
        now_s: Callable[[], float],
        refused: Callable[[], str] = lambda: "",
        turned: Callable[[], str] = lambda: "",
    ) -> None:
        self._service = service
        self._mesh: Mesh = service.mesh
        self._cluster = cluster
        self._vault = vault
        self._holding = holding
        self._reachable = reachable
        self._pace_s = pace_s
        self._now_s = now_s
        self._refused = refused
        self._turned = turned

    def view(self, standing: Standing) -> BalanceView:
        """How things stand. Never raises, whatever members have told or written."""
        seen = self._look(standing)
        return BalanceView(
            node=self._mesh.name,
            cluster=self._cluster,
            time=_when(self._now_s()),
            leader=self._leader(seen),
            members=tuple(self._member(name, seen) for name in self._names(seen)),
            services=tuple(
                self._of(name, record, seen) for name, record in sorted(self._service.records.all().items())
            ),
            refused=self._refused(),
            roulette_until=self._roulette_until(),
            warnings=self._warnings(seen),
        )

    def leader(self, standing: Standing) -> LeaderView:
        """Who leads, and why."""
        return self._leader(self._look(standing))

    def member(self, name: NodeName, standing: Standing) -> MemberView:
        """One node; this one too."""
        return self._member(name, self._look(standing))

    def service(self, name: ServiceName, standing: Standing) -> ServiceView:
        """One master address. Raises KeyError for one that is not in the book."""
        return self._of(name, self._service.records.all()[name], self._look(standing))

    def ghosts(self, standing: Standing) -> tuple[GhostView, ...]:
        """Heads that left the descriptor and are there."""
        seen, found = self._look(standing), []
        for name in self._names(seen):
            head = self._head(name, seen)
            if head is not None and head.onion and (head.mode == "ghost" or name in standing.plan.left_out):
                found.append(
                    GhostView(
                        node=name,
                        since_s=self._since_s(standing.plan.out_since_s.get(name)),
                        why=standing.plan.left_out.get(name, ""),
                        sessions=head.sessions,
                        attacks=head.attacks,
                        introductions_per_s=head.introductions_per_s,
                    )
                )
        return tuple(found)

    # Parts of it

    def _since_s(self, at_s: float | None) -> float | None:
        return None if at_s is None else max(0.0, self._service.seconds() - at_s)

    def _look(self, standing: Standing) -> _Seen:
        mine = self._service.cluster.beat(self._service.seconds())
        return _Seen(
            standing=standing,
            members=self._mesh.members(),
            peers=self._mesh.peers(),
            mine=mine,
            holds=self._vault.holds(),
            waiting=self._vault.pending(),
            heads=self._published(mine, standing),
        )

    def _published(self, mine: Beat, standing: Standing) -> dict[ServiceName, tuple[NodeName, ...]]:
        """Of each address the heads in the newest published descriptor that clients ask for."""
        shown = {name: self._publications(name, mine, standing) for name in self._service.records.all()}
        return {name: found[0].heads if found else () for name, found in shown.items()}

    def _names(self, seen: _Seen) -> list[NodeName]:
        gone = [key.removeprefix(REMOVED) for key in self._mesh.book.keys(REMOVED)]
        return sorted({*seen.members, *gone[:_MOST_REMOVED]})

    def _beat(self, name: NodeName, seen: _Seen) -> Beat | None:
        """What a node that is there says; a dead one says nothing any more."""
        if name == self._mesh.name:
            return seen.mine
        node = seen.standing.nodes.get(name)
        return node.beat if node is not None and _is_there(node) else None

    def _member(self, name: NodeName, seen: _Seen) -> MemberView:
        member = self._mesh.me if name == self._mesh.name else seen.members.get(name)
        if member is None or name not in seen.members:
            return MemberView(name=name, number=0, addresses=(), connected=False, state="removed")
        standing, mine = seen.standing, name == self._mesh.name
        node, peer, beat = standing.nodes.get(name), seen.peers.get(name), self._beat(name, seen)
        return MemberView(
            name=name,
            number=member.number,
            addresses=member.addresses,
            connected=mine or (peer is not None and peer.connected),
            state="alive" if mine else _state(node),
            why="" if mine or node is None else node.why,
            uptime_s=self._uptime_s(beat, peer),
            drift_s=0.0 if mine else peer.drift_s if peer is not None else None,
            fit=beat is not None and beat.fit,
            unfit=beat.unfit if beat is not None else "",
            leads=beat is not None and beat.leads,
            hears=beat.hears if beat is not None else (),
            head=_head(beat.head) if beat is not None else None,
            in_descriptor=any(name in heads for heads in seen.heads.values()),
            published_in=tuple(sorted(service for service, heads in seen.heads.items() if name in heads)),
            planned_in=tuple(service for service in sorted(seen.heads) if name in standing.plan.heads(service)),
            out=standing.plan.left_out.get(name, ""),
            holds=tuple(sorted(seen.holds)) if mine else beat.services if beat is not None else (),
            approved=self._vault.is_approved(name),
            waiting=name in seen.waiting,
        )

    def _of(self, name: ServiceName, record: ServiceRecord, seen: _Seen) -> ServiceView:
        members = _members_of(record.group)
        publications = self._publications(name, seen.mine, seen.standing)
        plan = seen.standing.plan
        failing = plan.failing.get(name, {})
        leads = seen.mine.leads and name in seen.holds
        age_s = max((each.age_s for each in publications), default=0.0)
        return ServiceView(
            name=name,
            onion=record.onion,
            mode=record.mode,
            threshold=record.threshold,
            members=members,
            epoch=record.epoch,
            holders=tuple(sorted(self._holders(name, seen))),
            suspects=tuple(sorted(self._vault.suspects())) if members else (),
            heads=publications[0].heads if publications else (),
            planned=plan.heads(name),
            failing=tuple(FailingView(node=node, why=why) for node, why in sorted(failing.items())),
            answering=len(self._heads_there(seen) - failing.keys()),
            refusing=name in plan.refusing,
            publications=publications,
            next_publish_s=max(0.0, self._pace_s() - age_s) if leads else None,
            reachable=self._reachable(name),
        )

    def _heads_there(self, seen: _Seen) -> set[NodeName]:
        """Nodes whose head has its tor and an onion."""
        heads = {name: self._head(name, seen) for name in seen.members}
        return {name for name, head in heads.items() if head is not None and head.mode in ("serving", "ghost")}

    def _leader(self, seen: _Seen) -> LeaderView:
        standing, promote = seen.standing, read_orders(self._mesh.book).promote
        ends = promote is not None and promote.until_ms
        names = [self._mesh.name, *standing.nodes]
        return LeaderView(
            name=standing.leader or None,
            why=standing.why,
            lease_left_s=standing.lease_left_s if standing.leader else None,
            promoted_until=_when(promote.until_ms / 1000) if promote is not None and ends else None,
            claims=tuple(sorted(name for name in names if (beat := self._beat(name, seen)) is not None and beat.leads)),
        )

    def _uptime_s(self, beat: Beat | None, peer: Peer | None) -> float | None:
        """By the clock of whom it is about."""
        if beat is None:
            return None
        drift_s = peer.drift_s if peer is not None and peer.drift_s is not None else 0.0
        return max(0.0, self._now_s() + drift_s - beat.born_ms / 1000)

    def _head(self, name: NodeName, seen: _Seen) -> HeadReport | None:
        if name == self._mesh.name:
            return self._service.head.report()
        beat = self._beat(name, seen)
        return beat.head if beat is not None else None

    def _holders(self, name: ServiceName, seen: _Seen) -> set[NodeName]:
        beats = {node: self._beat(node, seen) for node in seen.standing.nodes}
        there = {node for node, beat in beats.items() if beat is not None and name in beat.services}
        return there | ({self._mesh.name} if name in seen.holds else set())

    def _publications(self, name: ServiceName, mine: Beat, standing: Standing) -> tuple[PublicationView, ...]:
        """The newest of each period that is due, whoever made it; of the one that clients ask for first."""
        told: dict[int, tuple[NodeName, Published, float]] = {}
        heard = [(self._mesh.name, each, 0.0) for each in mine.published]
        for node, view in standing.nodes.items():
            if view.beat is not None:
                heard += [(node, each, view.silent_s or 0.0) for each in view.beat.published]
        for node, each, silent_s in heard:
            if each.service == name and (each.period not in told or told[each.period][1].revision < each.revision):
                told[each.period] = node, each, silent_s
        ring = self._service.room.network.ring
        if ring is None:
            due = sorted(told, reverse=True)[:2]
        else:
            asked_for = ring.time.asked_for()
            due = [each.period.number for each in (asked_for, *(d for d in ring.time.due() if d != asked_for))]
        return tuple(
            self._publication(name, *told[period], looked_at=period == due[0]) for period in due if period in told
        )

    def _publication(
        self, name: ServiceName, by: NodeName, told: Published, silent_s: float, *, looked_at: bool
    ) -> PublicationView:
        """looked_at: only of the period that clients ask for directories can be asked."""
        ours = looked_at and by == self._mesh.name
        checked_s = self._service.room.looked_s(name) if ours else None
        # directories answer one after another: a look that has not ended is none yet
        found = self._holding(name) if checked_s is not None else {}
        lost = [fingerprint for fingerprint, what in found.items() if what not in (Found.HELD, Found.SILENT)]
        return PublicationView(
            period=told.period,
            revision=told.revision,
            by=by,
            age_s=told.ago_ms / 1000 + silent_s,
            heads=told.heads,
            taken=told.taken,
            directories=told.directories,
            missing=tuple(sorted(lost)),
            checked_s=checked_s,
        )

    def _roulette_until(self) -> str | None:
        order = read_orders(self._mesh.book).roulette
        on = order is not None and order.until_ms > self._now_s() * 1000
        return _when(order.until_ms / 1000) if order is not None and on else None

    def _warnings(self, seen: _Seen) -> tuple[str, ...]:
        said = []
        records, served = self._service.records.all(), self._service.records.served()
        if not records:
            said.append("there is no service yet: ronctl balance service add NAME")
        for name, record in records.items():
            needed = max(record.threshold, 1)
            there = len(self._holders(name, seen))
            if name not in served:
                said.append(f"{name}: this node's config has no [[balance.services]] of that name; it publishes none")
            if there < needed:
                said.append(
                    f"{name}: {there} of the {needed} nodes that have to sign are there; "
                    "what is published lives on as long as the key that signed it"
                )
            said += self._targets(name, seen.standing)
        said += [f"{node} signed wrongly: {why}" for node, why in sorted(self._vault.suspects().items())]
        if seen.standing.rivals:
            said.append(f"{', '.join(seen.standing.rivals)} lead as well: the mesh is torn")
        said += self._asked_for(seen)
        said += [turned] if (turned := self._turned()) else []
        said += [f"{name} waits for: ronctl balance approve {name}" for name in seen.waiting]
        return tuple(said)

    def _asked_for(self, seen: _Seen) -> list[str]:
        """Removals that too few members have asked for so far, of those that are members still."""
        wanted: dict[NodeName, set[NodeName]] = {}
        for key in self._mesh.book.keys(STRIKE):
            struck, author = self._mesh.book.get(key, Struck), self._mesh.book.author_of(key)
            member = seen.members.get(struck.name) if struck is not None else None
            if struck is not None and member is not None and member.key == struck.key:
                wanted.setdefault(struck.name, set()).add(author)
        return [
            f"{name} is to be removed, say {', '.join(sorted(by))}; others have to say so too: "
            f"ronctl balance remove {name}"
            for name, by in sorted(wanted.items())
        ]

    def _targets(self, name: ServiceName, standing: Standing) -> list[str]:
        """Where the targets of an address do not answer, of those this node's config has."""
        plan = standing.plan
        if name not in self._service.records.served():
            return []
        if name in plan.refusing:
            return [refused(name, standing)]
        return [f"{name}: {node} is left out of it: {why}" for node, why in sorted(plan.failing.get(name, {}).items())]


@lru_cache(maxsize=64)
def _members_of(group: bytes) -> int:
    """How many have a share of it; 0 in mode `shared`, and for what is no group."""
    try:
        return len(GroupKey.decode(group).members) if group else 0
    except ValueError:
        return 0


def _is_there(seen: NodeView) -> bool:
    return seen.state in (State.ALIVE, State.SUSPECT)


def _state(seen: NodeView | None) -> Literal["alive", "suspect", "dead"]:
    if seen is None or seen.state in (State.DEAD, State.UNKNOWN):
        return "dead"
    return "suspect" if seen.state is State.SUSPECT else "alive"


def _head(report: HeadReport) -> HeadView:
    return HeadView(
        mode=report.mode,
        onion=report.onion,
        healthy=report.healthy,
        under_siege=report.under_siege,
        introductions_per_s=report.introductions_per_s,
        sessions=report.sessions,
        attacks=report.attacks,
    )


def _when(unix_s: float) -> str:
    return (
        datetime.fromtimestamp(min(max(unix_s, 0.0), _LAST_S), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    )
