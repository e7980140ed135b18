"""The log's figures under the names of the specification (OBSERVABILITY §1.2). Make one per process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

from ron.kernel import Metrics

Result = Literal["ok", "err"]
Answer = Literal["ok", "err", "contradicted"]


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
        self._age = Gauge(
            "kms_audit_checkpoint_age_seconds",
            "Since when there are records that no checkpoint covers",
            registry=registry,
        )
        self._make_witnesses(registry)
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

    def follow_checkpoints(self, age_s: Callable[[], float]) -> None:
        """age_s: since when there are records that no checkpoint covers."""
        self._age.set_function(age_s)

    def _make_witnesses(self, registry: CollectorRegistry) -> None:
        self._witness_age = Gauge(
            "kms_audit_witness_age_seconds",
            "Since when a checkpoint waits for a witness",
            ["witness"],
            registry=registry,
        )
        self._asked = Counter(
            "kms_audit_witness_total",
            "Checkpoints that witnesses were asked for",
            ["witness", "result"],
            registry=registry,
        )
        self._contradicted = Counter(
            "kms_audit_witness_contradictions_total", "A witness has seen another log than this one", registry=registry
        )
        self._cosigned = Counter(
            "kms_audit_cosign_total", "Checkpoints of other logs that were brought here", ["result"], registry=registry
        )
        for result in ("ok", "err"):
            self._cosigned.labels(result)

    def follow_witness(self, witness: str, age_s: Callable[[], float]) -> None:
        """witness: eight hex digits of its key's id. age_s: since when a checkpoint waits for it."""
        self._witness_age.labels(witness).set_function(age_s)

    def witness(self, witness: str, result: Answer) -> None:
        """What came of asking it."""
        self._asked.labels(witness, result).inc()

    def contradicted(self) -> None:
        """A witness has seen another log."""
        self._contradicted.inc()

    def cosigned(self, result: Result) -> None:
        """Another log was given a cosignature, or not."""
        self._cosigned.labels(result).inc()

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
