"""Figures of policy, evidence and governance, as somebody who collects them sees them."""

from __future__ import annotations

from typing import cast

from prometheus_client import CollectorRegistry
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Metrics
from ron.kernel.limits import Refused
from ron.proto.errors import ErrorCode, not_found
from ron.services.kms.figures import MOST_TENANTS, KmsFigures, ReadySeconds
from ron.services.kms.governance.meters import GovernanceMeters
from ron.services.kms.governance.proposals import Case
from ron.services.kms.telemetry import KmsTelemetry


class Evidence(SynchronousTestCase):
    def test_time_is_counted_for_the_state_it_was_spent_in(self) -> None:
        clock = Clock()
        seconds = ReadySeconds(clock.seconds)
        clock.advance(5)
        self.assertEqual((seconds.spent_s(ready=True), seconds.spent_s(ready=False)), (0, 5))
        seconds.set(True)
        clock.advance(10)
        seconds.set(True)
        clock.advance(1)
        self.assertEqual((seconds.spent_s(ready=True), seconds.spent_s(ready=False)), (11, 5))
        seconds.set(False)
        clock.advance(2)
        self.assertEqual((seconds.spent_s(ready=True), seconds.spent_s(ready=False)), (11, 7))


class Policy(SynchronousTestCase):
    def setUp(self) -> None:
        self.registry = CollectorRegistry()
        self.phases = {"core": 2, "acme": 1}
        self.figures = KmsFigures(
            clock=Clock().seconds,
            phase=lambda tenant: self.phases.get(tenant, 0),
            ttl_ms=lambda: 300_000,
            known=lambda: 7,
        )
        self.figures.register(self.registry)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def test_the_phase_of_each_tenant_and_no_other(self) -> None:
        self.figures.met("core")
        self.figures.met("core")
        self.figures.met("acme")
        self.assertEqual(self.value("kms_pq_phase", tenant="core", phase="2"), 1)
        self.assertEqual(self.value("kms_pq_phase", tenant="acme", phase="1"), 1)
        self.phases["acme"] = 3
        self.assertEqual(self.value("kms_pq_phase", tenant="acme", phase="3"), 1)
        self.assertIsNone(self.value("kms_pq_phase", tenant="acme", phase="1"))

    def test_not_more_tenants_than_labels_may_be(self) -> None:
        for number in range(MOST_TENANTS + 10):
            self.figures.met(f"t{number}")
        (phases,) = [one for one in self.registry.collect() if one.name == "kms_pq_phase"]
        self.assertEqual(len(phases.samples), MOST_TENANTS)

    def test_what_the_config_says(self) -> None:
        self.assertEqual(self.value("kms_config_verify_cache_ttl_ms"), 300_000)
        self.assertEqual(self.value("kms_verify_cache_size"), 7)
        self.assertEqual(self.value("kms_attestation_ready_seconds_total", state="missing"), 0)


class Refusals(SynchronousTestCase):
    def test_those_that_a_policy_is_the_reason_of(self) -> None:
        metrics = Metrics()
        telemetry = KmsTelemetry(metrics, Clock().seconds, lambda: False)

        def value(reason: str) -> float | None:
            return metrics.registry.get_sample_value("kms_policy_rejects_total", {"reason": reason})

        self.assertEqual((value("pq_policy"), value("frozen"), value("attest_missing")), (0, 0, 0))
        for _ in range(3):
            telemetry.failed("sign", 0.0, Refused("pq_policy", ErrorCode.UNSUPPORTED, "no"))
        telemetry.failed("sign", 0.0, not_found("no"))
        self.assertEqual((value("pq_policy"), value("frozen"), value("not_found")), (3, 0, None))


class Pending(SynchronousTestCase):
    def test_the_oldest_that_waits(self) -> None:
        metrics, clock, cases = Metrics(), Clock(), cast(list[Case], [])
        meters = GovernanceMeters(metrics)
        meters.watch(lambda: cases, clock.seconds)
        clock.advance(100)
        value = metrics.registry.get_sample_value
        self.assertEqual((value("kms_governance_pending_seconds"), value("kms_governance_pending")), (0, 0))
        cases += [case("draft", 1), case("pending", 40), case("pending", 30), case("approved", 2)]
        self.assertEqual((value("kms_governance_pending_seconds"), value("kms_governance_pending")), (70, 2))
        # a clock that was set back makes no negative age
        cases[:] = [case("pending", 400)]
        self.assertEqual(value("kms_governance_pending_seconds"), 0)


def case(state: str, opened_at: int) -> Case:
    return Case(None, "", "", "", state, opened_at=opened_at)  # type: ignore[arg-type]
