"""Figures of policy and evidence, made when somebody looks (specs/ron-kms.md, OBSERVABILITY §1, GOVERNANCE §5).

In: tenants and changes of readiness, as they come. Out: a collector for `/metrics`, which costs operations nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

# A label is never forgotten by whoever collects them: tenants beyond so many are not shown.
MOST_TENANTS = 256


class ReadySeconds:
    """How long evidence was there, and how long not. clock: seconds that do not go back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since_s = clock()
        self._ready = False
        self._spent_s = {True: 0.0, False: 0.0}

    def set(self, ready: bool) -> None:
        """From now on it is, or is not."""
        now_s = self._clock()
        self._spent_s[self._ready] += now_s - self._since_s
        self._since_s, self._ready = now_s, ready

    def spent_s(self, ready: bool) -> float:
        """Seconds in that state until now."""
        self.set(self._ready)
        return self._spent_s[ready]


class KmsFigures:
    """phase: where a tenant is on its way, 0 to 3. ttl_ms: `audit.verify_cache_ttl_ms`. known: key versions whose
    public halves are in memory."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        phase: Callable[[str], int],
        ttl_ms: Callable[[], int],
        known: Callable[[], int],
    ) -> None:
        self._known = known
        self._phase = phase
        self._ttl_ms = ttl_ms
        self._tenants: set[str] = set()
        self.evidence = ReadySeconds(clock)

    def register(self, registry: CollectorRegistry) -> None:
        """Let `/metrics` show it."""
        registry.register(self)

    def met(self, tenant: str) -> None:
        """There is such a tenant."""
        if len(self._tenants) < MOST_TENANTS:
            self._tenants.add(tenant)

    def collect(self) -> Iterator[Metric]:
        """As it stands."""
        yield self._phases()
        yield self._ready()
        ttl = GaugeMetricFamily("kms_config_verify_cache_ttl_ms", "How old what is known of keys may get")
        ttl.add_metric([], self._ttl_ms())
        yield ttl
        size = GaugeMetricFamily("kms_verify_cache_size", "Key versions whose public halves are known")
        size.add_metric([], self._known())
        yield size

    def _phases(self) -> Metric:
        found = GaugeMetricFamily("kms_pq_phase", "1 for the phase a tenant is in", labels=["tenant", "phase"])
        for tenant in sorted(self._tenants):
            found.add_metric([tenant, str(int(self._phase(tenant)))], 1)
        return found

    def _ready(self) -> Metric:
        found = CounterMetricFamily(
            "kms_attestation_ready_seconds", "Time with the evidence that is required, and without", labels=["state"]
        )
        found.add_metric(["ready"], self.evidence.spent_s(ready=True))
        found.add_metric(["missing"], self.evidence.spent_s(ready=False))
        return found
