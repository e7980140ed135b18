"""When to try again: bounds that hold for every sequence of failures."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.backoff import Backoff


class Bounds(SynchronousTestCase):
    @given(st.randoms(use_true_random=False), st.floats(0.001, 10), st.floats(1, 100), st.integers(1, 60))
    def test_each_delay_lies_between_base_and_its_cap(
        self, rng: random.Random, base_s: float, factor: float, tries: int
    ) -> None:
        ceiling_s = base_s * factor
        backoff = Backoff(base_s=base_s, ceiling_s=ceiling_s, rng=rng)
        for n in range(1, tries + 1):
            delay_s = backoff.next_delay_s()
            self.assertGreaterEqual(delay_s, base_s)
            self.assertLessEqual(delay_s, min(ceiling_s, base_s * 2**n) * (1 + 1e-9))

    def test_the_house_defaults(self) -> None:
        """100 ms → 30 s (blueprint §2.7)."""
        backoff = Backoff(rng=random.Random(7))
        delays = [backoff.next_delay_s() for _ in range(2000)]
        self.assertGreaterEqual(min(delays), 0.1)
        self.assertLessEqual(delays[0], 0.2)
        self.assertLessEqual(max(delays), 30.0)
        self.assertGreater(max(delays), 29.0)

    def test_full_jitter(self) -> None:
        """Late delays fill the whole range, so that many clients do not come back together."""
        backoff = Backoff(base_s=1.0, ceiling_s=9.0, rng=random.Random(7))
        late = [backoff.next_delay_s() for _ in range(500)][10:]
        self.assertLess(min(late), 1.5)
        self.assertGreater(max(late), 8.5)
        self.assertLess(abs(sum(late) / len(late) - 5.0), 0.5)

    def test_a_success_starts_again_from_the_shortest(self) -> None:
        backoff = Backoff(base_s=1.0, ceiling_s=1000.0, rng=random.Random(7))
        for _ in range(20):
            backoff.next_delay_s()
        backoff.reset()
        self.assertLessEqual(backoff.next_delay_s(), 2.0)

    def test_thousands_of_failures_do_not_overflow(self) -> None:
        backoff = Backoff()
        self.assertLessEqual(max(backoff.next_delay_s() for _ in range(5000)), 30.0)

    def test_two_clients_do_not_march_in_step(self) -> None:
        one, other = Backoff(), Backoff()
        self.assertNotEqual(
            [one.next_delay_s() for _ in range(5)],
            [other.next_delay_s() for _ in range(5)],
        )
