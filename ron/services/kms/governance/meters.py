"""Governance in figures, under the names of the specification (GOVERNANCE §5). Make one per process."""

from __future__ import annotations

from prometheus_client import Counter

from ron.kernel import Metrics

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

    def noted(self, what: str, state: str) -> None:
        """`what` was done; state: where the proposal got to, empty where that is where it was."""
        if state in STATES:
            self._proposals.labels(state).inc()
        if what == "freeze":
            self._freezes.inc()
