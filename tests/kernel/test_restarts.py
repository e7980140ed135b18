"""When to start again what has crashed: bounds that hold for every sequence of crashes."""

from __future__ import annotations

import random

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.backoff import Backoff
from ron.kernel.restarts import MAX_RESTARTS, WINDOW_S, Again, Quarantine, RestartPolicy

# how long it was up before each crash
lives = st.lists(st.one_of(st.floats(0, 20), st.floats(0, 0.5), st.floats(55, 130)), min_size=1, max_size=60)


class SlowThenFast(random.Random):
    """One long delay, then short ones: what makes restarts come closer together than the crashes."""

    def uniform(self, a: float, b: float) -> float:
        """In [a, b]: `b` at every eighth call, `a` at the others."""
        self.calls = getattr(self, "calls", -1) + 1
        return b if self.calls % 8 == 0 else a


class Bounds(SynchronousTestCase):
    @given(lives, st.randoms(use_true_random=False))
    @example([14.9] * 60, SlowThenFast())
    @example([14.9] * 9 + [6.0] * 9, SlowThenFast())
    def test_never_more_than_five_restarts_in_any_minute(self, ups: list[float], rng: random.Random) -> None:
        policy, now_s, restarts, crashes = RestartPolicy(rng=rng), 0.0, [], []
        for up_s in ups:
            now_s += up_s
            crashes.append(now_s)
            verdict = policy.crashed(now_s)
            if isinstance(verdict, Quarantine):
                self.assertLess(now_s - crashes[-1 - MAX_RESTARTS], WINDOW_S)
                break
            self.assertTrue(0.1 <= verdict.delay_s <= 30.0 + 1e-6, verdict)
            now_s += verdict.delay_s
            restarts.append(now_s)
        for first, sixth in zip(restarts, restarts[MAX_RESTARTS:], strict=False):
            self.assertGreaterEqual(sixth - first, WINDOW_S - 1e-6)

    @given(st.lists(st.floats(0, 9.9), min_size=MAX_RESTARTS, max_size=MAX_RESTARTS))
    def test_the_sixth_crash_of_a_minute_is_the_last(self, gaps: list[float]) -> None:
        policy, now_s = RestartPolicy(), 0.0
        for gap_s in [*gaps, None]:
            verdict = policy.crashed(now_s)
            self.assertIsInstance(verdict, Quarantine if gap_s is None else Again)
            now_s += gap_s or 0.0
        self.assertEqual(verdict, Quarantine(6, WINDOW_S))

    @given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
    def test_a_clock_that_is_set_back_and_forth(self, times: list[float]) -> None:
        """Whatever it shows, nobody waits longer than the window."""
        policy = RestartPolicy()
        for now_s in times:
            verdict = policy.crashed(now_s)
            if isinstance(verdict, Again):
                self.assertTrue(0.1 <= verdict.delay_s <= WINDOW_S)


class Sheet(SynchronousTestCase):
    def test_crashes_a_window_apart_are_each_the_first(self) -> None:
        policy = RestartPolicy()
        for number in range(50):
            verdict = policy.crashed(number * WINDOW_S)
            assert isinstance(verdict, Again)
            self.assertLessEqual(verdict.delay_s, 0.2)

    def test_delays_grow_while_it_keeps_crashing(self) -> None:
        policy = RestartPolicy(max_restarts=100, backoff=Backoff(rng=random.Random(7)))
        delays = [verdict.delay_s for n in range(60) if isinstance(verdict := policy.crashed(n / 10), Again)]
        self.assertGreater(max(delays), 25.0)

    def test_a_released_one_has_a_clean_sheet(self) -> None:
        policy = RestartPolicy()
        for _ in range(2):
            verdicts = [policy.crashed(1.0) for _ in range(6)]
            self.assertEqual([type(v) for v in verdicts], [Again] * 5 + [Quarantine])
            policy.release()
