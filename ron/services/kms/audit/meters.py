"""The log's figures under the names of the specification (OBSERVABILITY §1.2). Make one per process."""

from __future__ import annotations

from typing import Literal

from prometheus_client import Counter, Gauge

from ron.kernel import Metrics

Result = Literal["ok", "err"]


class Meters:
    """Counters and a gauge in the registry of `metrics`."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self._appends = Counter("kms_audit_appends_total", "Audit records", ["result"], registry=registry)
        self._checkpoints = Counter("kms_audit_checkpoint_total", "Checkpoints", ["result"], registry=registry)
        self._broken = Counter(
            "kms_audit_integrity_failed_total", "The log is not what it was, or has no checkpoint", registry=registry
        )
        self._depth = Gauge("kms_audit_queue_depth", "Audit records on their way to the disk", registry=registry)
        dropped = "Informative audit records dropped; never one of an operation"
        self._dropped = Counter("kms_audit_dropped_total", dropped, ["kind"], registry=registry)
        for result in ("ok", "err"):
            self._appends.labels(result)
            self._checkpoints.labels(result)
        self._dropped.labels("non_checkpoint")
        self._timeouts = metrics.io_timeouts
        self._queue = metrics.queue_depth.labels("audit")

    def appended(self, count: int, result: Result) -> None:
        """So many records are on disk, or were refused."""
        self._appends.labels(result).inc(count)

    def checkpoint(self, result: Result) -> None:
        """One was made, or failed."""
        self._checkpoints.labels(result).inc()

    def broken(self) -> None:
        """Integrity is in doubt."""
        self._broken.inc()

    def depth(self, waiting: int) -> None:
        """So many are on their way."""
        self._depth.set(waiting)
        self._queue.set(waiting)

    def dropped(self) -> None:
        """An informative record had to go."""
        self._dropped.labels("non_checkpoint").inc()

    def late(self, op: Literal["audit_append", "checkpoint"]) -> None:
        """A wait ended at its deadline."""
        self._timeouts.labels(op).inc()
