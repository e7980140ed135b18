"""Under siege or not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.services.balance.heads.siege import LONG_S, SHORT_S, Meter, Rates, Siege


class RatesTests(SynchronousTestCase):
    def test_nothing_came(self) -> None:
        self.assertEqual(Rates().over(SHORT_S, 100.0), 0.0)

    def test_less_than_nothing_counts_for_nothing(self) -> None:
        rates = Rates()
        rates.add(-5, 1.0)
        self.assertEqual(rates.over(LONG_S, 1.0), 0.0)

    def test_a_window_forgets(self) -> None:
        rates = Rates()
        rates.add(50, 10.0)
        self.assertEqual(rates.over(SHORT_S, 12.0), 10.0)
        self.assertEqual(rates.over(SHORT_S, 16.0), 0.0)
        self.assertAlmostEqual(rates.over(LONG_S, 16.0), 50 / 30)

    @given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 1000)), max_size=600))
    def test_it_stays_small_and_loses_nothing_that_is_recent(self, steps: list[tuple[float, int]]) -> None:
        rates, now_s, came = Rates(), 0.0, []
        for step_s, count in steps:
            now_s += step_s
            rates.add(count, now_s)
            came.append((now_s, count))
        self.assertLessEqual(len(rates._notes), 256)
        if sum(1 for at_s, count in came if count and at_s > now_s - LONG_S) < 256:
            exact = sum(count for at_s, count in came if at_s > now_s - LONG_S) / LONG_S
            self.assertAlmostEqual(rates.over(LONG_S, now_s), exact)


class SiegeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.siege = Siege()
        self.now_s = 1000.0

    def run_for(self, seconds: int, per_s: int, *, limit: float = 30.0, quiet_s: float = 20.0) -> bool:
        for _ in range(seconds):
            self.now_s += 1
            self.siege.rates.add(per_s, self.now_s)
            self.siege.judge(self.now_s, limit_per_s=limit, quiet_s=quiet_s)
        return self.siege.on

    def test_at_the_limit_is_no_siege(self) -> None:
        self.assertFalse(self.run_for(60, 30))

    def test_above_the_limit_is_one_within_the_short_window(self) -> None:
        self.assertTrue(self.run_for(5, 31))

    def test_a_short_crowd_is_none(self) -> None:
        self.assertFalse(self.run_for(1, 149))

    def test_it_is_over_after_the_quiet_time_and_not_before(self) -> None:
        self.run_for(40, 100)
        self.assertTrue(self.run_for(26, 0), "the long window has not emptied yet")
        self.assertTrue(self.run_for(18, 0))
        self.assertFalse(self.run_for(4, 0))

    def test_it_goes_on_between_half_and_the_whole_limit(self) -> None:
        self.run_for(40, 100)
        self.assertTrue(self.run_for(300, 16))

    def test_a_new_wave_starts_the_quiet_time_anew(self) -> None:
        self.run_for(40, 100)
        self.run_for(40, 0)
        self.assertTrue(self.run_for(5, 100))
        self.assertTrue(self.run_for(40, 0))

    def test_a_limit_of_0_is_never(self) -> None:
        self.run_for(10, 100)
        self.assertFalse(self.run_for(10, 1000, limit=0))


class MeterTests(SynchronousTestCase):
    def test_first_more_and_begun_again(self) -> None:
        meter = Meter()
        self.assertEqual(meter.read({"a": 5}), 5)
        self.assertEqual(meter.read({"a": 7, "b": 2}), 4)
        self.assertEqual(meter.read({"a": 3, "b": 2}), 3)
        self.assertEqual(meter.read({}), 0)
