"""Every wait on the outside world has a deadline."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.aio import within


class Within(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.cancelled: list[object] = []
        self.outside: Deferred[str] = Deferred(self.cancelled.append)

    def waiting(self) -> Deferred[str]:
        return Deferred.fromCoroutine(within(self.clock, 5, self.outside))

    def test_the_result_in_time_leaves_no_timer(self) -> None:
        waiting = self.waiting()
        self.clock.advance(4.9)
        self.outside.callback("done")
        self.assertEqual(self.successResultOf(waiting), "done")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_deadline_cancels_what_was_waited_for(self) -> None:
        waiting = self.waiting()
        self.clock.advance(4.9)
        self.assertNoResult(waiting)
        self.assertEqual(self.cancelled, [])
        self.clock.advance(0.1)
        self.failureResultOf(waiting, DeadlineError)
        self.assertEqual(len(self.cancelled), 1)

    def test_a_failure_comes_through_as_it_is(self) -> None:
        waiting = self.waiting()
        self.outside.errback(KeyError("x"))
        self.failureResultOf(waiting, KeyError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelling_the_wait_cancels_what_is_waited_for(self) -> None:
        waiting = self.waiting()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual(len(self.cancelled), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_coroutines_too(self) -> None:
        """The cancellation reaches the `await` it hangs on."""
        seen: list[type[BaseException]] = []

        async def slow() -> str:
            try:
                return await self.outside
            except CancelledError as error:
                seen.append(type(error))
                raise

        waiting = Deferred.fromCoroutine(within(self.clock, 5, slow()))
        self.clock.advance(5)
        self.failureResultOf(waiting, DeadlineError)
        self.assertEqual(seen, [CancelledError])

    def test_a_coroutine_that_is_done_at_once(self) -> None:
        async def quick() -> int:
            return 7

        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(within(self.clock, 5, quick()))), 7)
        self.assertEqual(self.clock.getDelayedCalls(), [])
