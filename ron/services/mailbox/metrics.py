"""What the mailbox counts. In: deliveries, commits, conflicts as they happen. Out: numbers for the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ron.kernel import Metrics
from ron.proto.errors import ErrorCode, RonError
from ron.services.mailbox.model import Delivery, MailboxStats
from ron.store import BatchReport


class MailboxMetrics:
    """What the mailbox counts, in plain numbers that are read when someone asks. No label ever carries a topic."""

    BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    COMMIT_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

    def __init__(self, metrics: Metrics, stats: Callable[[], MailboxStats]) -> None:
        self._stats = stats
        self.sends = self.send_duplicates = self.recvs = self.redeliveries = self.expirations = 0
        self.acks = self.ack_duplicates = self.conflicts = 0
        self._batch_size = Histogram(
            "mailbox_commit_batch_operations",
            "Operations that shared a commit",
            buckets=self.BATCH_BUCKETS,
            registry=metrics.registry,
        )
        self._commit_s = Histogram(
            "mailbox_commit_seconds", "Duration of a commit", buckets=self.COMMIT_BUCKETS_S, registry=metrics.registry
        )
        metrics.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """For the registry: every number of the mailbox as it is now."""
        yield _count("mailbox_sends", "Messages stored", self.sends)
        yield _count(
            "mailbox_send_duplicates", "Sends that repeated an earlier one with their key", self.send_duplicates
        )
        yield _count("mailbox_recvs", "Messages delivered, redeliveries among them", self.recvs)
        yield _count("mailbox_redeliveries", "Messages delivered for the second time or later", self.redeliveries)
        yield _count("mailbox_visibility_timeouts", "Leases that ended without an ack", self.expirations)
        yield _count("mailbox_acks", "Messages acknowledged", self.acks)
        yield _count("mailbox_ack_duplicates", "Acks that repeated an earlier one", self.ack_duplicates)
        yield _count("mailbox_conflicts", "Sends and acks refused with 409", self.conflicts)
        stats = self._stats()
        yield GaugeMetricFamily("mailbox_depth", "Messages not yet acknowledged", stats.total)
        yield GaugeMetricFamily("mailbox_inflight", "Messages under lease", stats.inflight)
        yield GaugeMetricFamily("mailbox_payload_bytes", "Payload of messages not yet acknowledged", stats.bytes)
        yield GaugeMetricFamily("mailbox_waiting", "Receivers waiting for a message", stats.waiting)

    def count_deliveries(self, deliveries: list[Delivery]) -> None:
        """Count what reaches a receiver."""
        self.recvs += len(deliveries)
        for delivery in deliveries:
            self.redeliveries += delivery.attempt > 1

    def count_conflict(self, error: RonError) -> None:
        """Count `error` if it is a conflict."""
        self.conflicts += error.code is ErrorCode.CONFLICT

    def count_batch(self, report: BatchReport) -> None:
        """Count a commit."""
        self._batch_size.observe(report.operations)
        if report.wrote:
            self._commit_s.observe(report.commit_s)


def _count(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(name, text, value)
