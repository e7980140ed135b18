"""Onions that lost their introduction points: found after a while, and not again and again."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.services.oniond.introductions import CEILING_S, ENOUGH, PATIENCE_S, Introductions

A, B = "a.onion", "b.onion"


class Losing(SynchronousTestCase):
    def setUp(self) -> None:
        self.introductions = Introductions()

    def lost(self, points: dict[str, int], now_s: float, ready: tuple[str, ...] = (A, B)) -> list[str]:
        return self.introductions.lost(points, ready, (A, B), now_s)

    def test_one_that_has_lost_them_for_a_while(self) -> None:
        self.assertEqual(self.lost({A: 6, B: 6}, 0), [])
        self.assertEqual(self.lost({B: 6}, 1), [])
        self.assertEqual(self.lost({B: 6}, 1 + PATIENCE_S - 0.1), [])
        self.assertEqual(self.lost({B: 6}, 1 + PATIENCE_S), [A])

    def test_too_few_for_two_descriptors_count_as_lost(self) -> None:
        self.lost({A: 6, B: 6}, 0)
        self.lost({A: ENOUGH - 1, B: ENOUGH}, 1)
        self.assertEqual(self.lost({A: ENOUGH - 1, B: ENOUGH}, 1 + PATIENCE_S), [A])

    def test_tor_mends_it_in_time(self) -> None:
        self.lost({A: 6}, 0)
        self.lost({A: 1}, 1)
        self.assertEqual(self.lost({A: 6}, PATIENCE_S), [])
        self.assertEqual(self.lost({A: 1}, 1 + PATIENCE_S), [], "a new loss, a new wait")

    def test_one_that_never_had_any_is_just_coming_up(self) -> None:
        for now_s in range(100):
            self.assertEqual(self.lost({}, now_s), [])

    def test_less_and_less_often_while_it_does_not_help(self) -> None:
        self.lost({A: 6}, 0)
        at = [now_s for now_s in range(1, 4000) if self.lost({A: 2}, now_s)]
        gaps = [later - earlier for earlier, later in itertools.pairwise(at)]
        self.assertEqual(gaps, sorted(gaps))
        self.assertGreater(gaps[0], PATIENCE_S)
        self.assertEqual(gaps[-1], CEILING_S + 1)

    def test_while_it_is_published_anew_nobody_waits(self) -> None:
        self.lost({A: 6}, 0)
        self.lost({}, 1)
        self.assertEqual(self.lost({}, 1 + PATIENCE_S, ready=()), [])

    def test_what_nobody_wants_is_forgotten(self) -> None:
        self.lost({A: 6}, 0)
        self.introductions.lost({}, (), (), 1)
        self.lost({}, 2)
        self.assertEqual(self.lost({}, 1000), [])

    @given(st.lists(st.integers(0, 7), max_size=200))
    def test_whatever_the_counts_it_never_comes_sooner_than_patience_allows(self, counts: list[int]) -> None:
        introductions, last = Introductions(), -PATIENCE_S
        for now_s, count in enumerate(counts):
            if introductions.lost({A: count}, (A,), (A,), now_s):
                self.assertLess(count, ENOUGH)
                self.assertGreaterEqual(now_s - last, PATIENCE_S)
                last = now_s
