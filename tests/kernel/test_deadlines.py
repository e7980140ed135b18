"""Each call has its time, whatever becomes of the others; one timer does for all."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.deadlines import Deadlines


class OneTimer(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock, 5.0)
        self.given_up: list[tuple[float, int]] = []

    def begin(self, number: int) -> Deferred[Any]:
        work: Deferred[Any] = Deferred(lambda _work: self.given_up.append((self.clock.seconds(), number)))
        work.addErrback(lambda _failure: None)
        self.deadlines.begin(work)
        return work

    def test_each_is_given_up_when_its_own_time_is_over(self) -> None:
        for number in range(4):
            self.begin(number)
            self.clock.advance(1.0)
        self.clock.pump([0.5] * 20)
        self.assertEqual(self.given_up, [(5.0, 0), (6.0, 1), (7.0, 2), (8.0, 3)])
        self.assertEqual((len(self.deadlines), self.clock.getDelayedCalls()), (0, []))

    def test_one_that_ended_is_not(self) -> None:
        first, second = self.begin(0), self.begin(1)
        self.assertTrue(self.deadlines.end(first))
        self.assertFalse(self.deadlines.end(first))
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(5.0)
        self.assertEqual(self.given_up, [(5.0, 1)])
        self.assertFalse(self.deadlines.end(second))

    def test_none_under_way_leave_no_timer(self) -> None:
        self.deadlines.end(self.begin(0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_giving_up_may_begin_and_end_others(self) -> None:
        other = self.begin(0)

        def chain(_work: Any) -> None:
            self.deadlines.end(other)
            self.begin(2)

        work: Deferred[Any] = Deferred(chain)
        work.addErrback(lambda _failure: None)
        self.clock.advance(1.0)
        self.deadlines.begin(work)
        self.clock.advance(1.0)
        self.begin(1)
        self.clock.pump([0.25] * 40)
        self.assertEqual(self.given_up, [(5.0, 0), (7.0, 1), (11.0, 2)])

    def test_within_says_whose_end_it_was(self) -> None:
        def awaited(work: Deferred[Any]) -> Deferred[Any]:
            return Deferred.fromCoroutine(self.deadlines.within(work))

        late, gone, failed = works = [Deferred[Any]() for _ in range(3)]
        outcomes = [awaited(work) for work in works]
        self.assertFalse(late.called)
        gone.cancel()
        self.failureResultOf(outcomes[1], CancelledError)
        failed.errback(ValueError("why"))
        self.failureResultOf(outcomes[2], ValueError)
        self.clock.advance(5.0)
        self.failureResultOf(outcomes[0], DeadlineError)
        self.assertEqual(self.successResultOf(awaited(succeed("at once"))), "at once")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.tuples(st.integers(0, 16), st.integers(0, 3)), max_size=30))
    def test_as_a_timer_for_each_would(self, steps: list[tuple[int, int]]) -> None:
        self.setUp()
        begun: dict[int, tuple[float, Deferred[Any]]] = {}
        expected: list[tuple[float, int]] = []
        for number, (quarters, ends) in enumerate(steps):
            for _ in range(quarters):
                self.clock.advance(0.25)
            now_s = self.clock.seconds()
            expected += [(due_s, one) for one, (due_s, _work) in begun.items() if due_s <= now_s]
            begun = {one: found for one, found in begun.items() if found[0] > now_s}
            begun[number] = (now_s + 5.0, self.begin(number))
            for gone in list(begun)[:ends]:
                self.deadlines.end(begun.pop(gone)[1])
        self.assertEqual(self.given_up, expected)
