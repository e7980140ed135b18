"""What a vault tells of itself: figures, readiness, and who was caught lying.

In: what was refused, signed, begun, and of whom. Out: metrics, the readiness key `balance.vault`, `suspects`.
No key, share, message or address is in any of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram
from twisted.logger import Logger

from ron.kernel import HealthState, Metrics
from ron.proto.balance import NodeName

HEALTH_KEY = "balance.vault"
_SIGN_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0)
_log = Logger(namespace="ron.balance.vault")


class Telemetry:
    """Of one vault."""

    def __init__(self, health: HealthState, metrics: Metrics) -> None:
        self.suspects: dict[NodeName, str] = {}
        self.unlocked = False
        self._health = health
        registry = metrics.registry
        self._refused = Counter(
            "balance_vault_refused_total",
            "Messages of threshold protocols refused, by reason",
            ["reason"],
            registry=registry,
        )
        self._signatures = Counter(
            "balance_vault_signatures_total", "Signatures asked for, by result", ["result"], registry=registry
        )
        self._sign_s = Histogram(
            "balance_vault_sign_seconds",
            "Time for a threshold signature",
            buckets=_SIGN_BUCKETS_S,
            registry=registry,
        )
        self._ceremonies = Counter(
            "balance_vault_ceremonies_total",
            "Ceremonies ended, by purpose and result",
            ["purpose", "result"],
            registry=registry,
        )
        self._handed = Counter("balance_vault_keys_handed_total", "Whole keys given to other nodes", registry=registry)
        Gauge("balance_vault_suspects", "Nodes that were caught lying", registry=registry).set_function(
            lambda: float(len(self.suspects))
        )

    def refused(self, reason: str) -> None:
        """Something was refused."""
        self._refused.labels(reason).inc()

    def blame(self, name: NodeName, reason: str) -> None:
        """`name` did what no honest node does."""
        if name not in self.suspects:
            _log.warn("{name} is caught lying: {reason}", event="vault_suspect", name=name, reason=reason)
        self.suspects[name] = reason
        self.show()

    def forgive(self, name: NodeName) -> None:
        """An operator has looked at `name`."""
        self.suspects.pop(name, None)
        self.show()

    def show(self) -> None:
        """Say how things stand."""
        reasons = [f"{name} was caught lying ({reason})" for name, reason in sorted(self.suspects.items())]
        if self.unlocked:
            reasons.append("secrets are in memory that may be swapped out")
        if reasons:
            self._health.degraded(HEALTH_KEY, "; ".join(reasons))
        else:
            self._health.ok(HEALTH_KEY)

    def signed(self, seconds: float) -> None:
        """A threshold signature was made."""
        self._signatures.labels("made").inc()
        self._sign_s.observe(seconds)

    def not_signed(self) -> None:
        """Too few took part."""
        self._signatures.labels("failed").inc()

    def handed(self, service: str, name: NodeName) -> None:
        """The key of `service` went to `name`."""
        self._handed.inc()
        _log.warn("the key of {service} goes to {name}", event="vault_key_handed", service=service, name=name)

    def ceremony(self, service: str, purpose: str, result: str, why: str = "") -> None:
        """A ceremony has ended here."""
        self._ceremonies.labels(purpose, result).inc()
        say = _log.info if result == "done" else _log.warn
        say(
            "{purpose} of {service}: {result} {why}",
            event="vault_ceremony",
            service=service,
            purpose=purpose,
            result=result,
            why=why,
        )


def figures(metrics: Metrics, name: str) -> Mapping[tuple[str, ...], float]:
    """The values of one of these families by their labels' values, for tests and views."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }
