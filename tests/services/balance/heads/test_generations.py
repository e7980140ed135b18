"""When a head's onion is made, shut and dropped."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.services.balance.heads.generations import (
    CEILING_S,
    EMPTY_S,
    MAX_GENERATIONS,
    PATIENCE_S,
    Generation,
    Generations,
    Step,
    Wanted,
)

MASTERS = ("m" * 56 + ".onion",)
SERVE, GHOST = Wanted(True, MASTERS, 10.0), Wanted(False, MASTERS, 10.0)


class GenerationsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.generations = Generations()
        self.sessions: dict[str, int] = {}
        self.points: dict[str, int] = {}
        self.made = 0

    def step(self, now_s: float, wanted: Wanted = SERVE) -> Step:
        step = self.generations.step(now_s, wanted, self.points, self.sessions)
        for one in step.drop:
            self.generations.all.remove(one)
        if step.make:
            self.made += 1
            self.generations.all.append(
                Generation(folder=Path(str(self.made)), masters=wanted.masters, onion=str(self.made))
            )
        return step

    def serving(self, now_s: float = 0.0) -> Generation:
        self.step(now_s)
        newest = self.generations.newest
        assert newest is not None
        newest.ready, self.points[newest.onion] = True, 3
        return newest

    def test_without_masters_there_is_nothing(self) -> None:
        self.assertFalse(self.step(0.0, Wanted(True, (), 10.0)).make)

    def test_not_wanted_from_the_start(self) -> None:
        self.assertFalse(self.step(0.0, GHOST).make)

    def test_one_is_made_and_no_more(self) -> None:
        self.serving()
        self.assertEqual([self.step(float(now)).make for now in range(1, 500, 7)], [False] * 72)

    def test_a_ghost_is_shut_after_the_grace_and_dropped_when_empty(self) -> None:
        one = self.serving()
        self.sessions[one.onion] = 1
        self.assertEqual(self.step(100.0, GHOST), Step(False, (), ()))
        self.assertEqual(self.step(109.9, GHOST).shut, ())
        self.assertEqual(self.step(110.0, GHOST).shut, (one,))
        self.assertEqual(self.step(5000.0, GHOST), Step(False, (), ()))
        self.sessions.clear()
        self.assertEqual(self.step(5001.0, GHOST).drop, ())
        self.assertEqual(self.step(5001.0 + EMPTY_S, GHOST).drop, (one,))
        self.assertIsNone(self.generations.newest)

    def test_back_within_the_grace_is_the_same_onion(self) -> None:
        one = self.serving()
        self.step(100.0, GHOST)
        self.assertFalse(self.step(105.0).make)
        self.assertEqual(self.step(200.0).shut, ())
        self.assertIs(self.generations.shown, one)

    def test_back_after_it_is_a_new_one_beside_the_old_ones_sessions(self) -> None:
        one = self.serving()
        self.sessions[one.onion] = 5
        self.step(100.0, GHOST)
        self.step(110.0, GHOST)
        self.assertTrue(self.step(111.0).make)
        self.assertEqual(len(self.generations.all), 2)
        self.assertIsNot(self.generations.shown, one)

    def test_other_masters_old_onion_serves_until_the_new_one_can(self) -> None:
        one = self.serving()
        wanted = Wanted(True, (*MASTERS, "n" * 56 + ".onion"), 10.0)
        self.assertTrue(self.step(100.0, wanted).make)
        self.step(115.0, wanted)
        self.assertIs(self.generations.shown, one)
        newest = self.generations.newest
        assert newest is not None
        newest.ready, self.points[newest.onion] = True, 3
        self.assertEqual(self.step(116.0, wanted).shut, ())
        self.assertIs(self.generations.shown, newest)
        self.assertEqual(self.step(126.0, wanted).shut, (one,))

    def test_one_that_does_not_come_up_is_replaced_with_growing_patience(self) -> None:
        times = [now for now in range(1000) if self.step(float(now)).make]
        self.assertEqual(times[0], 0)
        waits = [after - before for before, after in pairwise(times)]
        self.assertGreaterEqual(waits[0], PATIENCE_S)
        self.assertTrue(all(after >= before for before, after in pairwise(waits)))
        self.assertEqual(waits[-1], CEILING_S + 1)
        self.assertLessEqual(len(self.generations.all), 2, "those that never came up are gone")

    def test_one_that_loses_its_points_is_replaced(self) -> None:
        one = self.serving()
        self.step(1.0)
        self.points[one.onion] = 0
        self.assertFalse(self.step(2.0).make)
        self.assertTrue(self.step(2.0 + PATIENCE_S).make)

    def test_after_tors_end_only_an_open_one_is_worth_having(self) -> None:
        one = self.serving()
        self.step(100.0, GHOST)
        self.step(110.0, GHOST)
        two = self.serving(111.0)
        self.assertEqual(self.generations.restarted(), [one])
        self.assertEqual((self.generations.all, two.ready), ([two], False))
        self.step(120.0, GHOST)
        self.step(130.0, GHOST)
        self.assertEqual(self.generations.restarted(), [two])

    @given(st.lists(st.tuples(st.floats(0.1, 60), st.booleans(), st.booleans()), max_size=120))
    def test_never_more_than_the_limit_and_never_a_session_lost_below_it(
        self, steps: list[tuple[float, bool, bool]]
    ) -> None:
        self.setUp()
        now_s = 0.0
        for wait_s, visitors, comes_up in steps:
            now_s += wait_s
            step = self.step(now_s, SERVE if visitors else GHOST)
            self.assertLessEqual(len(self.generations.all), MAX_GENERATIONS)
            for one in step.drop:
                full = len(self.generations.all) + len(step.drop) > MAX_GENERATIONS
                self.assertTrue(full or not self.sessions.get(one.onion), "dropped with sessions")
            newest = self.generations.newest
            if comes_up and newest is not None and not newest.shut:
                newest.ready, self.points[newest.onion], self.sessions[newest.onion] = True, 3, 1
