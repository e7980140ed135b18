"""The golden metrics, once, in one registry per process (ron-kms OBSERVABILITY §1.1).

In: services count and time through the named attributes below. Out: the Prometheus text of `/metrics`.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

_LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """One registry and the metrics every service shares. Services add their own through `registry`."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.http_requests = Counter(
            "http_requests_total",
            "HTTP answers by route, method and status",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.request_latency = Histogram(
            "request_latency_seconds",
            "Time from the request's last byte to its answer",
            ["route", "method"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.inflight = Gauge("inflight_requests", "Requests being answered", ["route"], registry=self.registry)
        self.rejected = Counter(
            "rejected_total", "Requests refused before work, by reason", ["reason"], registry=self.registry
        )
        self.restarts = Counter(
            "service_restarts_total", "Restarts by the watchdog", ["service"], registry=self.registry
        )

    def render(self) -> bytes:
        """The Prometheus text exposition of everything registered."""
        return generate_latest(self.registry)
