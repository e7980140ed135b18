"""Governance in figures, under the names of the specification (GOVERNANCE §5). Make one per process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily, Metric

from ron.kernel import Metrics
from ron.services.kms.governance.appeals import Dispute
from ron.services.kms.governance.proposals import Case

STATES = ("draft", "pending", "approved", "executed", "rejected", "expired")


class GovernanceMeters:
    """Counters in the registry of `metrics`; a service without signers has none."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self._proposals = Counter(
            "kms_governance_proposals_total", "Proposals by the state they got to", ["status"], registry=registry
        )
        for state in STATES:
            self._proposals.labels(state)
        self._freezes = Counter("kms_emergency_freezes_total", "Freezes that began", registry=registry)
        self._registry = registry

    def noted(self, what: str, state: str) -> None:
        """`what` was done; state: where the proposal got to, empty where that is where it was."""
        if state in STATES:
            self._proposals.labels(state).inc()
        if what == "freeze":
            self._freezes.inc()

    def watch(self, open_cases: Callable[[], Iterable[Case]], now_s: Callable[[], float]) -> None:
        """Show how long the oldest proposal waits for its quorum. now_s: Unix seconds."""
        self._registry.register(PendingFigures(open_cases, now_s))

    def watch_disputes(self, disputes: Callable[[], Iterable[Dispute]], now_s: Callable[[], float]) -> None:
        """Show which are open, and how late the latest is. now_s: Unix seconds."""
        self._registry.register(DisputeFigures(disputes, now_s))


class DisputeFigures:
    """A collector: disputes that wait for somebody's word when somebody looks (GOVERNANCE §7, time goals)."""

    def __init__(self, disputes: Callable[[], Iterable[Dispute]], now_s: Callable[[], float]) -> None:
        self._disputes = disputes
        self._now_s = now_s

    def collect(self) -> Iterator[Metric]:
        """As it stands; 0 seconds while nothing is late."""
        due = [one.due.until for one in self._disputes() if one.due is not None]
        count = GaugeMetricFamily("kms_disputes_open", "Disputes that are not resolved")
        count.add_metric([], len(due))
        yield count
        late = GaugeMetricFamily(
            "kms_dispute_late_seconds", "How late the word is that a dispute has waited for longest"
        )
        late.add_metric([], max(0.0, self._now_s() - min(due)) if due else 0.0)
        yield late


class PendingFigures:
    """A collector: what is undecided when somebody looks."""

    def __init__(self, open_cases: Callable[[], Iterable[Case]], now_s: Callable[[], float]) -> None:
        self._open_cases = open_cases
        self._now_s = now_s

    def collect(self) -> Iterator[Metric]:
        """As it stands; 0 seconds where nothing waits."""
        since = [case.opened_at for case in self._open_cases() if case.state == "pending"]
        waited_s = max(0.0, self._now_s() - min(since)) if since else 0.0
        age = GaugeMetricFamily("kms_governance_pending_seconds", "How long the oldest proposal waits for its quorum")
        age.add_metric([], waited_s)
        yield age
        count = GaugeMetricFamily("kms_governance_pending", "Proposals that wait for their quorum")
        count.add_metric([], len(since))
        yield count
