"""The cluster as an operator is shown it, put together from what the rooms know.

In: a standing, the mesh, the book, the vault, what was published and where it is. Out: `BalanceView`. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal, Protocol

from ron.crypto.frost.keys import GroupKey
from ron.proto.balance import Beat, HeadReport, NodeName, Published, ServiceName
from ron.proto.balanceviews import (
    BalanceView,
    GhostView,
    HeadView,
    LeaderView,
    MemberView,
    PublicationView,
    ServiceView,
)
from ron.services.balance.cluster import NodeView, Standing, State, read_orders
from ron.services.balance.ports import Mesh, Peer, ServiceRecord
from ron.services.balance.publishing.schedule import Found
from ron.services.balance.service import BalanceService

REMOVED = "removed/"


class Keeps(Protocol):
    """The vault, as far as it is shown."""

    def holds(self) -> frozenset[ServiceName]: ...
    def pending(self) -> tuple[NodeName, ...]: ...
    def suspects(self) -> dict[NodeName, str]: ...
    def is_approved(self, name: NodeName) -> bool: ...


class Outlook:
    """Puts views together. cluster: its id in hex. holding: what directories had when last looked at. reachable: how
    this node's own visits went. next_s: until this node publishes the service again, None when another leads.
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
    ) -> None:
        self._service = service
        self._mesh: Mesh = service.mesh
        self._cluster = cluster
        self._vault = vault
        self._holding = holding
        self._reachable = reachable
        self._pace_s = pace_s
        self._now_s = now_s

    def view(self, standing: Standing) -> BalanceView:
        """How things stand."""
        return BalanceView(
            node=self._mesh.name,
            cluster=self._cluster,
            time=_when(self._now_s()),
            leader=self._leader(standing),
            members=tuple(self.member(name, standing) for name in self._names()),
            services=tuple(self.service(name, standing) for name in sorted(self._service.records.all())),
            roulette_until=self._roulette_until(),
            warnings=self._warnings(standing),
        )

    def leader(self, standing: Standing) -> LeaderView:
        """Who leads, and why."""
        return self._leader(standing)

    def member(self, name: NodeName, standing: Standing) -> MemberView:
        """One node; this one too."""
        mine = name == self._mesh.name
        member = self._mesh.me if mine else self._mesh.members().get(name)
        peer = self._mesh.peers().get(name)
        seen = standing.nodes.get(name)
        beat = self._service.cluster.beat(self._service.seconds()) if mine else seen.beat if seen is not None else None
        if member is None:
            return MemberView(name=name, number=0, addresses=(), connected=False, state="removed")
        listed = name in standing.plan.listed
        return MemberView(
            name=name,
            number=member.number,
            addresses=member.addresses,
            connected=mine or (peer is not None and peer.connected),
            state="alive" if mine else _state(seen),
            why="" if mine or seen is None else seen.why,
            uptime_s=self._uptime_s(beat, peer),
            drift_s=0.0 if mine else peer.drift_s if peer is not None else None,
            fit=standing.fit if mine else beat is not None and beat.fit,
            unfit=standing.unfit if mine else beat.unfit if beat is not None else "",
            leads=standing.duties.lead if mine else beat is not None and beat.leads,
            hears=beat.hears if beat is not None else (),
            head=_head(beat.head) if beat is not None else None,
            in_descriptor=listed,
            out="" if listed else standing.plan.left_out.get(name, ""),
            holds=tuple(sorted(self._vault.holds())) if mine else beat.services if beat is not None else (),
            approved=self._vault.is_approved(name),
            waiting=name in self._vault.pending(),
        )

    def service(self, name: ServiceName, standing: Standing) -> ServiceView:
        """One master address. Raises KeyError for one that is not in the book."""
        record = self._service.records.all()[name]
        group = group_of(record)
        publications = self._publications(name, standing)
        leads = standing.duties.lead and name in self._vault.holds()
        age_s = max((each.age_s for each in publications), default=0.0)
        return ServiceView(
            name=name,
            onion=record.onion,
            mode=record.mode,
            threshold=record.threshold,
            members=len(group.members) if group is not None else 0,
            epoch=record.epoch,
            holders=tuple(sorted(self._holders(name, standing))),
            suspects=tuple(sorted(self._vault.suspects())) if group is not None else (),
            heads=publications[0].heads if publications else (),
            publications=publications,
            next_publish_s=max(0.0, self._pace_s() - age_s) if leads else None,
            reachable=self._reachable(name),
        )

    def ghosts(self, standing: Standing) -> tuple[GhostView, ...]:
        """Heads that left the descriptor and are there."""
        found = []
        for name in self._names():
            head = self._head(name, standing)
            if head is not None and (head.mode == "ghost" or name in standing.plan.left_out) and head.onion:
                found.append(
                    GhostView(
                        node=name,
                        since_s=None,
                        why=standing.plan.left_out.get(name, ""),
                        sessions=head.sessions,
                        attacks=head.attacks,
                        introductions_per_s=head.introductions_per_s,
                    )
                )
        return tuple(found)

    # Parts of it

    def _names(self) -> list[NodeName]:
        gone = {key.removeprefix(REMOVED) for key in self._mesh.book.keys(REMOVED)}
        return sorted({*self._mesh.members(), *gone})

    def _leader(self, standing: Standing) -> LeaderView:
        promote = read_orders(self._mesh.book).promote
        ends = promote is not None and promote.until_ms
        claims = [name for name, seen in standing.nodes.items() if _is_there(seen) and seen.beat and seen.beat.leads]
        return LeaderView(
            name=standing.leader or None,
            why=standing.why,
            lease_left_s=standing.lease_left_s if standing.leader else None,
            promoted_until=_when(promote.until_ms / 1000) if promote is not None and ends else None,
            claims=tuple(sorted([*claims, *([self._mesh.name] if standing.duties.lead else [])])),
        )

    def _uptime_s(self, beat: Beat | None, peer: Peer | None) -> float | None:
        """By the clock of whom it is about."""
        if beat is None:
            return None
        drift_s = peer.drift_s if peer is not None and peer.drift_s is not None else 0.0
        return max(0.0, self._now_s() + drift_s - beat.born_ms / 1000)

    def _head(self, name: NodeName, standing: Standing) -> HeadReport | None:
        if name == self._mesh.name:
            return self._service.head.report()
        seen = standing.nodes.get(name)
        return seen.beat.head if seen is not None and seen.beat is not None else None

    def _holders(self, name: ServiceName, standing: Standing) -> set[NodeName]:
        there = {
            node
            for node, seen in standing.nodes.items()
            if _is_there(seen) and seen.beat is not None and name in seen.beat.services
        }
        return there | ({self._mesh.name} if name in self._vault.holds() else set())

    def _publications(self, name: ServiceName, standing: Standing) -> tuple[PublicationView, ...]:
        """The newest of each period, whoever made it; the period that clients ask for is not known to a follower."""
        told: dict[int, tuple[NodeName, Published, float]] = {}
        own = self._service.cluster.beat(self._service.seconds()).published
        heard = [(self._mesh.name, each, 0.0) for each in own]
        for node, seen in standing.nodes.items():
            if seen.beat is not None:
                heard += [(node, each, seen.silent_s or 0.0) for each in seen.beat.published]
        for node, each, silent_s in heard:
            if each.service == name and (each.period not in told or told[each.period][1].revision < each.revision):
                told[each.period] = node, each, silent_s
        newest = sorted(told, reverse=True)[:2]
        return tuple(self._publication(name, *told[period]) for period in newest)

    def _publication(self, name: ServiceName, by: NodeName, told: Published, silent_s: float) -> PublicationView:
        found: Mapping[str, Found] = self._holding(name) if by == self._mesh.name else {}
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
        )

    def _roulette_until(self) -> str | None:
        order = read_orders(self._mesh.book).roulette
        on = order is not None and order.until_ms > self._now_s() * 1000
        return _when(order.until_ms / 1000) if order is not None and on else None

    def _warnings(self, standing: Standing) -> tuple[str, ...]:
        said = []
        if not self._service.records.all():
            said.append("there is no service yet: ronctl balance service add NAME")
        for name, record in self._service.records.all().items():
            needed = max(record.threshold, 1)
            there = len(self._holders(name, standing))
            if there < needed:
                said.append(
                    f"{name}: {there} of the {needed} nodes that have to sign are there; nothing new is published"
                )
        said += [f"{node} signed wrongly: {why}" for node, why in sorted(self._vault.suspects().items())]
        if standing.rivals:
            said.append(f"{', '.join(standing.rivals)} lead as well: the mesh is torn")
        said += [f"{name} waits for: ronctl balance approve {name}" for name in self._vault.pending()]
        return tuple(said)


def group_of(record: ServiceRecord) -> GroupKey | None:
    """The public half of a threshold key; None in mode `shared`, and for what is none."""
    try:
        return GroupKey.decode(record.group) if record.group else None
    except ValueError:
        return None


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
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
