"""How the cluster stands, on `/readyz`: the keys `balance.leader`, `balance.fit`, `balance.split`, `balance.targets`.

In: a standing, the addresses of this node's config. Out: keys that are ok or degraded, each with its reason. A node
whose cluster is in trouble is ready all the same: visitors that come to it are served.
"""

from __future__ import annotations

from collections.abc import Collection

from ron.kernel import HealthState
from ron.proto.balance import NodeName, ServiceName
from ron.services.balance.cluster import Standing

LEADER, FIT, SPLIT, TARGETS = "balance.leader", "balance.fit", "balance.split", "balance.targets"


class ClusterReadiness:
    """Of one node. me: its name."""

    def __init__(self, health: HealthState, me: NodeName) -> None:
        self._health = health
        self._me = me

    def stands(self, standing: Standing, served: Collection[ServiceName]) -> None:
        """This is how things are. served: addresses of this node's config."""
        self._show(LEADER, "" if standing.leader else standing.why or "no node can lead")
        unfit = standing.unfit if standing.leader != self._me else ""
        self._show(FIT, f"this node could not lead: {unfit}" if unfit else "")
        rivals = ", ".join(standing.rivals)
        self._show(SPLIT, f"{rivals} lead too: the mesh is torn" if rivals else "")
        refusing = [name for name in standing.plan.refusing if name in served]
        self._show(TARGETS, "; ".join(refused(name, standing) for name in refusing))

    def forget(self) -> None:
        """This node is none of a cluster any more."""
        for key in (LEADER, FIT, SPLIT, TARGETS):
            self._health.forget(key)

    def _show(self, key: str, trouble: str) -> None:
        if trouble:
            self._health.degraded(key, trouble)
        else:
            self._health.ok(key)


def refused(service: ServiceName, standing: Standing) -> str:
    """In words, that visitors of `service` get no further than the heads."""
    said = "; ".join(f"{node}: {why}" for node, why in sorted(standing.plan.failing[service].items()))
    return f"{service}: no head's target answers, visitors are refused ({said})"
