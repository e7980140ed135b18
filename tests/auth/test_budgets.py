"""Allowances against a plain model: never more than promised, and nobody's counts are pushed out by another."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.auth.budgets import FAMILY_ALLOWANCES, Allowance, Budgets
from ron.auth.refusals import Refused

NOW = 1_800_000_000.0


class Model(SynchronousTestCase):
    def setUp(self) -> None:
        self.now_s = NOW
        self.budgets = Budgets(lambda: self.now_s, families=3)

    def passes(self, cap_id: str, rates: list[Allowance], quotas: list[Allowance] | None = None) -> bool:
        try:
            self.budgets.charge(cap_id, tuple(rates), tuple(quotas or ()))
        except Refused as refused:
            self.assertGreaterEqual(refused.retry_after_s or 0, 1)
            return False
        return True

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from([0.5, 1.0, 2.5, 10.0]), st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]), max_size=60))
    def test_never_more_than_the_burst_and_the_rate(self, limit: float, pauses_s: list[float]) -> None:
        self.budgets, rate = Budgets(lambda: self.now_s), Allowance(b"r", limit)
        passed_at = []
        for pause_s in pauses_s:
            self.now_s += pause_s
            if self.passes("a", [rate]):
                passed_at.append(self.now_s)
        for first, start_s in enumerate(passed_at):
            for last in range(first, len(passed_at)):
                allowed = max(1.0, limit) + (passed_at[last] - start_s) * limit
                self.assertLessEqual(last - first + 1, allowed + 1e-6)

    def test_the_time_told_is_enough(self) -> None:
        for limit in (0.001, 0.3, 1.0, 7.0):
            rate = Allowance(str(limit).encode(), limit)
            while self.passes("a", [rate]):
                pass
            error = self.assertRaises(Refused, self.budgets.charge, "a", (rate,), ())
            self.now_s += error.retry_after_s or 0
            self.assertTrue(self.passes("a", [rate]))

    def test_from_all_or_from_none(self) -> None:
        wide, narrow = Allowance(b"w", 5), Allowance(b"n", 1)
        self.assertTrue(self.passes("a", [wide, narrow]))
        for _ in range(10):
            self.assertFalse(self.passes("a", [wide, narrow]))
        self.assertEqual(sum(self.passes("a", [wide]) for _ in range(10)), 4)

    def test_a_clock_set_back_gives_nothing(self) -> None:
        rate = Allowance(b"r", 2)
        while self.passes("a", [rate]):
            pass
        self.now_s -= 5000
        self.assertFalse(self.passes("a", [rate]))
        day = Allowance(b"d", 10)
        self.budgets.charge_bytes("b", (day,), 10)
        self.now_s -= 86_400
        self.assertFalse(self.passes("b", [], [day]))

    def test_bounded_and_the_least_used_goes_first(self) -> None:
        rate = Allowance(b"r", 1)
        for cap_id in ("a", "b", "c"):
            self.assertTrue(self.passes(cap_id, [rate]))
        self.assertFalse(self.passes("a", [rate]))
        self.passes("d", [rate])
        self.assertEqual(len(self.budgets), 3)
        self.assertFalse(self.passes("a", [rate]))
        self.assertTrue(self.passes("b", [rate]))

    def test_a_family_cannot_forget_its_counts_by_growing(self) -> None:
        """Children made to push out a sibling's count are themselves refused; idle ones make room."""
        victim = Allowance(b"victim", 100)
        self.budgets.charge_bytes("a", (victim,), 100)
        passed = sum(self.passes("a", [Allowance(b"%d" % n, 1)]) for n in range(200))
        self.assertEqual(passed, FAMILY_ALLOWANCES - 1)
        self.assertFalse(self.passes("a", [], [victim]))
        self.assertTrue(self.passes("other", [Allowance(b"x", 1)]))
        self.now_s += 1001
        self.assertTrue(self.passes("a", [Allowance(b"fresh", 1)]))
