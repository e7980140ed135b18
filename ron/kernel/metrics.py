"""The golden metrics, once, in one registry per process (ron-kms OBSERVABILITY §1.1), and their sum over processes.

In: services count and time through the named attributes below. Out: the Prometheus text of `/metrics`, or plain structs
that travel between processes and are merged into one text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ron.kernel.health import HealthState
from ron.kernel.tally import Tallies

_LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MergeRule = Literal["sum", "min", "max"]
_MERGERS: dict[str, Callable[[float, float], float]] = {"sum": lambda a, b: a + b, "min": min, "max": max}
# families that say something of one process and nothing when added up
_PER_PROCESS = ("process_", "python_")
# the client's creation times: a second family for each counter, and no sum of them means anything; a node in one
# process shows none either
_CREATED = "_created"
# Starts of lines that are kept, some 400 bytes each: far more than a node has, for one too few would be none at all
# (what is asked for in a circle is gone from an LRU each time), and still a bound.
_REMEMBERED_LINES = 32_768
disable_created_metrics()


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One number with its labels."""

    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One metric of one process as plain values.

    name: without `_total`. type: `counter`, `gauge`, `histogram`, …. merge: what the numbers of several processes
    become; a gauge that is no amount (a version, a state, a time left) says `min` or `max`.
    """

    name: str
    type: str
    help: str
    samples: tuple[Sample, ...]
    merge: MergeRule = "sum"


class Metrics:
    """One registry and the metrics every service shares. Services add their own through `registry`.

    merge_rules: family name → how several processes' values become one; what is not named is added up.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # what is counted in plain numbers is added up before anything else is read
        self.tallies = Tallies()
        self.registry.register(self.tallies)
        self.merge_rules: dict[str, MergeRule] = {
            "config_version": "max",  # the node's own; children count what they were given from 1
            "node_ready": "min",
            "disk_free_bytes": "min",
            "tls_certificate_expiry_seconds": "min",
            "circuit_state": "max",
            "slo_burning": "max",
            "slo_burn_rate": "max",
            "pow_difficulty": "max",
            "pow_safe_mode": "max",
        }
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._make_http()
        self._make_bus()
        self._make_supervision()
        self._make_listeners()

    def _make_http(self) -> None:
        self.http_requests = self._counter(
            "http_requests_total", "HTTP answers by route, method and status", "route", "method", "status"
        )
        self.request_latency = Histogram(
            "request_latency_seconds",
            "Time from the request's last byte to its answer",
            ["route", "method"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.inflight = self._gauge("inflight_requests", "Requests being answered", "route")
        self.rejected = self._counter("rejected_total", "Requests refused before work, by reason", "reason")

    def _make_bus(self) -> None:
        self.bus_published = self._counter("bus_published_total", "Messages published on the bus", "topic")
        self.bus_dropped = self._counter("bus_overflow_dropped_total", "Messages dropped for subscribers that lag")
        self.bus_lagged = self._counter("bus_lagged_total", "Messages a lagging subscriber missed", "subscriber")
        self.queue_depth = self._gauge("queue_depth", "Entries waiting in a bounded queue", "queue")
        self.queue_dropped = self._counter("queue_dropped_total", "Entries a full queue dropped", "queue")
        self.busy = self._counter("busy_rejections_total", "Entries a full queue refused", "queue")
        self.io_timeouts = self._counter("io_timeouts_total", "Waits that ended at their deadline", "op")

    def _make_supervision(self) -> None:
        self.restarts = self._counter("service_restarts_total", "Restarts by the watchdog", "service")
        self.quarantined = self._gauge("quarantined_services", "Services that failed too often and wait for release")
        self.aborted = self._counter("tasks_aborted_total", "Tasks cut off at a deadline of the shutdown", "kind")
        self.config_version = self._gauge("config_version", "Version of the config snapshot in use")
        self.config_reloads = self._counter("config_reloads_total", "Attempts to reload the config", "result")
        self.anomalies = self._counter("anomalies_total", "Spikes, storms and bursts that were noticed", "kind")

    def _make_listeners(self) -> None:
        self.bytes_in = self._counter("bytes_in_total", "Bytes received by listeners")
        self.bytes_out = self._counter("bytes_out_total", "Bytes sent by listeners")
        self.open_connections = self._gauge("open_connections", "Connections open at a listener", "listener")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def follow_health(self, health: HealthState) -> None:
        """Show readiness as `node_ready` (1 or 0), read when someone asks. Once per process."""
        self._gauge("node_ready", "1 when /readyz says ready").set_function(lambda: float(health.snapshot().ready))

    def follow_disk(self, path: Path) -> None:
        """Show the bytes left for us on the disk of `path` as `disk_free_bytes`. Once per process."""
        self._gauge("disk_free_bytes", "Bytes left on the disk of the home").set_function(lambda: _bytes_left(path))

    def render(self) -> bytes:
        """The Prometheus text exposition of everything registered."""
        return b"".join(
            _text(m.name, m.type, m.documentation, ((_start(s.name, *s.labels.items()), s.value) for s in m.samples))
            for m in self.registry.collect()
        )

    def export(self) -> list[Family]:
        """Everything registered, as plain values that can be encoded and sent to another process."""
        return [self._family(metric) for metric in self.registry.collect()]

    def _family(self, metric: Metric) -> Family:
        samples = tuple(
            Sample(s.name, dict(s.labels), float(s.value)) for s in metric.samples if not s.name.endswith(_CREATED)
        )
        rule = self.merge_rules.get(metric.name, "sum")
        return Family(name=metric.name, type=metric.type, help=metric.documentation, samples=samples, merge=rule)


def render_merged(exports: Mapping[str, Sequence[Family]]) -> bytes:
    """The text exposition of several processes as one. exports: process name → its `Metrics.export()`.

    Samples of the same name and labels are merged by their family's rule. Families about the process itself
    (`process_*`, `python_*`) keep one sample each, with the label `process`. A family that two processes know as
    different types keeps the first type, and the other's samples are left out: they cannot stand under one name.
    """
    merged: dict[str, _Merged] = {}
    for process, families in exports.items():
        for family in families:
            entry = merged.setdefault(family.name, _Merged(family))
            if entry.family.type == family.type:
                entry.add(process, family)
    return b"".join(entry.text() for entry in merged.values())


class _Merged:
    """One family's samples so far, by the start of their line; buckets stay in the order they came."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._own = family.name.startswith(_PER_PROCESS)
        self._merge = _MERGERS[family.merge]
        self._values: dict[str, float] = {}

    def add(self, process: str, family: Family) -> None:
        """Take in what one process has."""
        own = (("process", process),) if self._own else ()
        values, merge = self._values, self._merge
        for sample in family.samples:
            start = _start(sample.name, *sample.labels.items(), *own)
            known = values.get(start)
            values[start] = sample.value if known is None else merge(known, sample.value)

    def text(self) -> bytes:
        """The family in the exposition format."""
        return _text(self.family.name, self.family.type, self.family.help, self._values.items())


def _text(name: str, kind: str, text: str, lines: Iterable[tuple[str, float]]) -> bytes:
    """A family in the exposition format: what the client library writes, for a quarter of the time.

    Of a line only the number changes from one scrape to the next, so the library writes the rest once.
    """
    return (
        _head(name, kind, text) + "".join([f"{start}{floatToGoString(value)}\n" for start, value in lines])
    ).encode()


@lru_cache(maxsize=_REMEMBERED_LINES)
def _start(name: str, *labels: tuple[str, str]) -> str:
    """A sample's line without its number; the same for labels in any order."""
    metric = Metric("one", "", "untyped")
    metric.add_sample(name, dict(labels), 0.0)
    # not splitlines(), which would split at characters that stand in a label's value as they are
    return _written(metric).split("\n")[-2].removesuffix("0.0")


@lru_cache(maxsize=_REMEMBERED_LINES)
def _head(name: str, kind: str, text: str) -> str:
    """The two lines before a family's samples."""
    return _written(Metric(name, text, kind))


def _written(metric: Metric) -> str:
    return generate_latest(_Fixed(metric)).decode()


class _Fixed(Collector):
    """A metric that is already there."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        """It alone."""
        yield self._metric


def _bytes_left(path: Path) -> float:
    """Bytes an ordinary user may still write there; NaN when the disk does not answer the question."""
    try:
        disk = os.statvfs(path)
    except OSError:
        return float("nan")
    return float(disk.f_bavail * disk.f_frsize)
