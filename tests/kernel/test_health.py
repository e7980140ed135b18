"""Readiness by key: what `/readyz` says as services report."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import HealthState
from ron.kernel.health import Readiness

KEYS = ("tor", "mailbox.store", "edge.pack:world.pmtiles")
reports = st.lists(st.tuples(st.sampled_from(["ok", "missing", "degraded"]), st.sampled_from(KEYS)), max_size=12)


def told(health: HealthState, state: str, key: str) -> None:
    """Report `state` of `key`."""
    if state == "ok":
        health.ok(key)
    else:
        getattr(health, state)(key, f"{key} is {state}")


class Promises(SynchronousTestCase):
    def test_nothing_reported_is_not_ready(self) -> None:
        self.assertEqual(HealthState().snapshot(), Readiness(ready=False, retry_after=2))

    def test_missing_is_not_ready_and_says_why_and_when_to_come_back(self) -> None:
        health = HealthState()
        health.ok("tor")
        health.missing("mailbox.store", "the disk is full")
        self.assertEqual(
            health.snapshot(),
            Readiness(
                ready=False, missing=("mailbox.store",), reasons={"mailbox.store": "the disk is full"}, retry_after=2
            ),
        )

    def test_degraded_is_ready_and_says_so(self) -> None:
        health = HealthState()
        health.degraded("edge", "one pack of two")
        self.assertEqual(
            health.snapshot(), Readiness(ready=True, degraded=("edge",), reasons={"edge": "one pack of two"})
        )

    def test_is_ok(self) -> None:
        health = HealthState()
        self.assertFalse(health.is_ok("tor"))
        for state, good in (("ok", True), ("missing", False), ("degraded", True), ("missing", False), ("ok", True)):
            told(health, state, "tor")
            self.assertIs(health.is_ok("tor"), good)

    def test_a_snapshot_does_not_change_later(self) -> None:
        health = HealthState()
        health.missing("tor", "starting")
        before = health.snapshot()
        health.ok("tor")
        self.assertEqual(before.missing, ("tor",))
        self.assertEqual(before.reasons, {"tor": "starting"})

    def test_observers_hear_every_report(self) -> None:
        health, heard = HealthState(), list[bool]()
        health.observe(lambda readiness: heard.append(readiness.ready))
        health.missing("tor", "starting")
        health.ok("tor")
        health.degraded("edge", "slow")
        health.missing("tor", "died")
        self.assertEqual(heard, [False, True, True, False])

    @given(reports)
    def test_the_last_word_on_each_key_counts(self, sequence: list[tuple[str, str]]) -> None:
        health = HealthState()
        for state, key in sequence:
            told(health, state, key)
        last = {key: state for state, key in sequence}
        snapshot = health.snapshot()
        self.assertEqual(snapshot.missing, tuple(sorted(k for k, s in last.items() if s == "missing")))
        self.assertEqual(snapshot.degraded, tuple(sorted(k for k, s in last.items() if s == "degraded")))
        self.assertEqual(snapshot.reasons, {k: f"{k} is {s}" for k, s in last.items() if s != "ok"})
        self.assertIs(snapshot.ready, bool(last) and "missing" not in last.values())
        self.assertEqual(snapshot.retry_after is None, snapshot.ready)


class AbsorbedTests(SynchronousTestCase):
    """What other processes report stands among our own keys, and never in their place."""

    def test_a_key_of_ours_outlives_the_process_that_reported_it_too(self) -> None:
        health = HealthState()
        health.missing("auth.revocations", "cannot be read")
        health.absorb("mailbox", Readiness(ready=False, missing=("auth.revocations",), reasons={}))
        health.absorb("mailbox", Readiness(ready=False))  # it crashed
        self.assertEqual(health.snapshot().missing, ("auth.revocations",))
        self.assertEqual(health.snapshot().reasons, {"auth.revocations": "cannot be read"})

    def test_a_key_that_two_processes_report_outlives_either(self) -> None:
        health = HealthState()
        health.ok("listeners")
        for name in ("gateway.1", "gateway.2"):
            health.absorb(
                name, Readiness(ready=False, missing=("auth.revocations",), reasons={"auth.revocations": "?"})
            )
        health.absorb("gateway.1", Readiness(ready=True))
        self.assertFalse(health.snapshot().ready)
        health.absorb("gateway.2", Readiness(ready=True))
        self.assertEqual(health.snapshot(), Readiness(ready=True))

    def test_our_own_good_news_does_not_hide_theirs(self) -> None:
        health = HealthState()
        health.absorb("edge", Readiness(ready=True, degraded=("config",), reasons={"config": "not taken"}))
        health.ok("config")
        self.assertEqual(health.snapshot().degraded, ("config",))
        self.assertEqual(health.snapshot().reasons, {"config": "not taken"})

    def test_the_worst_word_on_a_key_counts(self) -> None:
        health = HealthState()
        health.degraded("config", "ours")
        health.absorb("edge", Readiness(ready=False, missing=("config",), reasons={"config": "theirs"}))
        self.assertEqual((health.snapshot().missing, health.snapshot().degraded), (("config",), ()))
        self.assertEqual(health.snapshot().reasons, {"config": "theirs"})
