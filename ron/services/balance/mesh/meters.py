"""The mesh's metrics. One per process and `Metrics`."""

from __future__ import annotations

from collections.abc import Container

from prometheus_client import Counter, Gauge
from twisted.logger import Logger

from ron.kernel.clock import Clock
from ron.kernel.metrics import Metrics
from ron.services.balance.mesh.wire import Reason

# The same of the same peer.
LOG_EVERY_S = 10.0
_REMEMBERED = 1024
_log = Logger(namespace="ron.balance.mesh")


class Meters:
    """Counters and gauges. kinds: those that are known here; all others are counted as `other`."""

    def __init__(self, clock: Clock, metrics: Metrics, kinds: Container[str]) -> None:
        registry = metrics.registry
        self._clock = clock
        self._kinds = kinds
        self._logged_s: dict[tuple[str, str], float] = {}
        self._messages = Counter(
            "balance_mesh_messages_total", "Messages of the mesh", ["kind", "direction"], registry=registry
        )
        self._refused = Counter(
            "balance_mesh_refused_total",
            "Messages and links of the mesh that were refused",
            ["reason"],
            registry=registry,
        )
        self._dropped = Counter(
            "balance_mesh_dropped_total",
            "Messages dropped for a peer that does not keep up",
            ["peer"],
            registry=registry,
        )
        self._links = Gauge("balance_mesh_links", "Links of the mesh that stand", ["dialled"], registry=registry)
        self._drift = Gauge(
            "balance_mesh_drift_seconds", "How far a peer's clock is ahead of ours", ["peer"], registry=registry
        )
        self._rtt = Gauge("balance_mesh_rtt_seconds", "Round trip to a peer", ["peer"], registry=registry)

    def sent(self, kind: str) -> None:
        """One more on its way."""
        self._messages.labels(self._known(kind), "out").inc()

    def received(self, kind: str) -> None:
        """One more was taken."""
        self._messages.labels(self._known(kind), "in").inc()

    def refused(self, name: str, reason: Reason, detail: str = "") -> None:
        """Something of `name` was not taken. It is logged once in a while: who floods us shall not flood the log."""
        self._refused.labels(reason).inc()
        now_s = self._clock.seconds()
        if now_s - self._logged_s.get((name, reason), float("-inf")) < LOG_EVERY_S:
            return
        if len(self._logged_s) >= _REMEMBERED:
            self._logged_s.clear()
        self._logged_s[name, reason] = now_s
        _log.info(
            "refused of {peer}: {reason} {detail}", event="mesh_refused", peer=name, reason=reason, detail=detail[:200]
        )

    def dropped(self, peer: str, count: int = 1) -> None:
        """Messages to `peer` were given up."""
        if count:
            self._dropped.labels(peer).inc(count)

    def links(self, dialled: int, accepted: int) -> None:
        """So many stand."""
        self._links.labels("yes").set(dialled)
        self._links.labels("no").set(accepted)

    def clock(self, peer: str, drift_s: float, rtt_s: float) -> None:
        """What the last ping said."""
        self._drift.labels(peer).set(drift_s)
        self._rtt.labels(peer).set(rtt_s)

    def forget(self, peer: str) -> None:
        """It is no member any more."""
        for gauge in (self._drift, self._rtt, self._dropped):
            if (peer,) in gauge._metrics:
                gauge.remove(peer)

    def _known(self, kind: str) -> str:
        return kind if kind in self._kinds else "other"
