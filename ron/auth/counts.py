"""What the authority did, counted in plain integers: a Prometheus counter's lock would cost more than the whole check.

In: the authority adds up. Out: a collector for `Metrics.registry`.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric

from ron.auth.refusals import REASONS


class AuthCounts:
    """hits and misses of the verified-token cache; refusals by reason."""

    __slots__ = ("hits", "misses", "refused")

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.refused = dict.fromkeys(REASONS, 0)

    def register(self, registry: CollectorRegistry) -> None:
        """Let `/metrics` show it: `auth_checks_total{result}` and `auth_refused_total{reason}`."""
        registry.register(self)  # a collector is whatever has collect()

    def collect(self) -> Iterator[Metric]:
        """The counters as they stand."""
        checks = CounterMetricFamily("auth_checks", "Capabilities whose signature held, by cache", labels=["result"])
        checks.add_metric(["hit"], self.hits)
        checks.add_metric(["miss"], self.misses)
        yield checks
        refused = CounterMetricFamily("auth_refused", "Capabilities refused, by reason", labels=["reason"])
        for reason, count in self.refused.items():
            refused.add_metric([reason], count)
        yield refused
