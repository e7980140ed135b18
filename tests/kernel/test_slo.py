"""The burn meter against a plain count, and degradation that begins, holds and ends by itself."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import HealthState, Metrics
from ron.kernel.limits import Refused
from ron.kernel.slo import MIN_REQUESTS, BurnMeter, Degradation, SloState
from ron.kernel.slo_config import SloConfig

CONFIG = SloConfig(availability=0.99, short_window_s=5, long_window_s=60, burn_rate=10.0, hold_s=20)


class Meter(SynchronousTestCase):
    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=80),
        st.integers(1, 20),
        st.integers(1, 50),
        st.floats(0, 40),
    )
    def test_it_counts_what_a_plain_count_counts(
        self, answers: list[tuple[float, bool]], short_s: int, long_s: int, later_s: float
    ) -> None:
        long_s = max(short_s, long_s)
        meter = BurnMeter(SloConfig(availability=0.9, short_window_s=short_s, long_window_s=long_s))
        now_s, seen = 1_000_000.7, []
        for pause_s, bad in answers:
            now_s += pause_s
            seen.append((int(now_s), bad))
            meter.count(bad=bad, now_s=now_s)
        now_s += later_s
        burns = meter.burns(now_s)
        for window_s, burn in ((short_s, burns.short), (long_s, burns.long)):
            within = [bad for second, bad in seen if second > int(now_s) - window_s]
            self.assertAlmostEqual(burn, sum(within) / len(within) / 0.1 if within else 0.0)
        self.assertEqual(burns.seen, sum(1 for second, _ in seen if second > int(now_s) - short_s))

    def test_a_clock_that_is_set_back_breaks_nothing(self) -> None:
        meter = BurnMeter(CONFIG)
        meter.count(bad=True, now_s=1000.0)
        meter.count(bad=False, now_s=10.0)
        self.assertEqual(meter.burns(1000.0).seen, 2)
        self.assertEqual(meter.burns(1e9).seen, 0)


class Degraded(SynchronousTestCase):
    """A `Degradation` under a clock of our own."""

    def setUp(self) -> None:
        self.clock, self.health, self.metrics = Clock(), HealthState(), Metrics()
        self.health.ok("store")
        self.slo = self.made(CONFIG)
        self.told: list[tuple[bool, bool, bool]] = []
        self.slo.observe(lambda slo: self.told.append((slo.shed_writes, slo.reduced_fan_out, slo.sampling_raised)))

    def made(self, config: SloConfig) -> Degradation:
        slo = Degradation(config, self.clock, health=self.health, metrics=self.metrics)
        slo.start()
        self.addCleanup(slo.stop)
        return slo

    def answers(self, good: int = 0, bad: int = 0, slow: int = 0) -> None:
        for count, failed, elapsed_s in ((good, False, 0.1), (bad, True, 0.1), (slow, False, 0.6)):
            for _ in range(count):
                self.slo.count(failed=failed, elapsed_s=elapsed_s)

    def wait(self, seconds: int) -> None:
        self.clock.pump([1.0] * seconds)

    def gauge(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def burn(self) -> None:
        self.answers(bad=MIN_REQUESTS)
        self.wait(1)
        self.assertIs(self.slo.state, SloState.BURNING)


class Burning(Degraded):
    """Begins, holds, ends."""

    def test_all_flags_at_once_and_everybody_hears_of_it(self) -> None:
        self.slo.admit_write()
        self.burn()
        self.assertEqual(self.told, [(True, True, True)])
        error = self.assertRaises(Refused, self.slo.admit_write)
        self.assertEqual((error.reason, error.status), ("slo_burn", 503))
        snapshot = self.health.snapshot()
        self.assertEqual((snapshot.ready, snapshot.degraded), (True, ("slo",)))
        self.assertIn("writes", snapshot.reasons["slo"])
        self.assertEqual(self.gauge("slo_burning"), 1)
        self.assertAlmostEqual(self.gauge("slo_burn_rate", window="short") or 0, 100)

    def test_slow_answers_burn_as_failed_ones_do(self) -> None:
        self.answers(good=MIN_REQUESTS, slow=3)
        self.wait(1)
        self.assertTrue(self.slo.burning)

    def test_few_requests_prove_nothing(self) -> None:
        self.answers(bad=MIN_REQUESTS - 1)
        self.wait(1)
        self.assertFalse(self.slo.burning)

    def test_a_spike_that_the_long_window_hardly_sees_is_no_fire(self) -> None:
        for _ in range(50):
            self.answers(good=100)
            self.wait(1)
        self.answers(bad=200)
        self.wait(1)
        self.assertGreater(self.gauge("slo_burn_rate", window="short") or 0, CONFIG.burn_rate)
        self.assertFalse(self.slo.burning)
        self.answers(bad=2000)
        self.wait(1)
        self.assertTrue(self.slo.burning)

    def test_at_the_rate_is_not_over_it(self) -> None:
        self.answers(good=90, bad=10)
        self.wait(1)
        self.assertFalse(self.slo.burning)

    def test_it_ends_when_the_short_window_was_calm_long_enough(self) -> None:
        self.burn()
        for _ in range(CONFIG.short_window_s + CONFIG.hold_s - 2):
            self.answers(good=10)
            self.wait(1)
        self.assertTrue(self.slo.burning)
        self.wait(2)
        self.assertFalse(self.slo.burning)
        self.assertEqual(self.told, [(True, True, True), (False, False, False)])
        self.assertEqual(self.health.snapshot().degraded, ())
        self.assertEqual(self.gauge("slo_burning"), 0)
        self.slo.admit_write()

    def test_it_ends_without_any_traffic(self) -> None:
        self.burn()
        self.wait(CONFIG.short_window_s + CONFIG.hold_s + 1)
        self.assertFalse(self.slo.burning)

    def test_a_bad_second_starts_the_hold_again(self) -> None:
        self.burn()
        self.wait(CONFIG.short_window_s + CONFIG.hold_s - 2)
        self.answers(bad=1)
        self.wait(CONFIG.hold_s)
        self.assertTrue(self.slo.burning)
        self.wait(CONFIG.short_window_s + 2)
        self.assertFalse(self.slo.burning)

    def test_stopped_it_looks_no_more(self) -> None:
        self.slo.stop()
        self.slo.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_switched_off_it_never_burns(self) -> None:
        self.slo.apply(SloConfig(enabled=False))
        self.answers(bad=1000)
        self.wait(5)
        self.assertFalse(self.slo.burning)

    def test_switching_it_off_ends_a_fire(self) -> None:
        self.burn()
        self.slo.apply(SloConfig(enabled=False))
        self.assertFalse(self.slo.shed_writes)
        self.assertEqual(self.health.snapshot().degraded, ())


class Closing(Degraded):
    """Writes closed by hand, burning or not."""

    def test_reads_open_writes_closed(self) -> None:
        with self.slo.fail_closed("the ledger's disk is full"):
            error = self.assertRaises(Refused, self.slo.admit_write)
            self.assertEqual((error.reason, error.status, error.retryable), ("writes_closed", 503, True))
            self.assertIn("the ledger's disk is full", error.message)
            self.assertEqual((self.slo.shed_writes, self.slo.burning), (True, False))
            self.assertEqual(self.health.snapshot().degraded, ("writes",))
            self.assertTrue(self.health.snapshot().ready)
            self.assertEqual(self.gauge("writes_closed"), 1)
        self.slo.admit_write()
        self.assertEqual(self.told, [(True, False, False), (False, False, False)])
        self.assertEqual(self.health.snapshot().degraded, ())

    def test_open_again_whatever_happens_within(self) -> None:
        with self.assertRaises(KeyError), self.slo.fail_closed("x"):
            raise KeyError
        self.slo.admit_write()

    def test_the_last_reason_to_go_opens_them(self) -> None:
        first, second = self.slo.close_writes("one"), self.slo.close_writes("one")
        first()
        first()
        self.assertRaises(Refused, self.slo.admit_write)
        second()
        self.slo.admit_write()
        self.assertEqual(self.gauge("writes_closed"), 0)


class Drawn(SynchronousTestCase):
    def test_every_state_is_in_the_docs(self) -> None:
        drawing = (Path(__file__).parents[2] / "docs" / "limits.rst").read_text("utf-8")
        for state in SloState:
            self.assertIn(f" {state.name.lower().replace('_', ' ')} ", drawing)
