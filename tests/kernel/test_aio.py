"""Every wait on the outside world has a deadline."""

from __future__ import annotations

import contextlib
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.aio import cancellable, within


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


class Cancellable(SynchronousTestCase):
    """A cancelled call looks cancelled, whatever it makes of that itself."""

    def test_results_and_failures_come_through(self) -> None:
        self.assertEqual(self.successResultOf(cancellable(succeed(7))), 7)
        self.failureResultOf(cancellable(fail(KeyError("x"))), KeyError)

    def test_an_error_made_of_the_cancellation_stays_inside(self) -> None:
        def translate(inner: Deferred[str]) -> None:
            inner.errback(ConnectionError("because it was cancelled"))

        waiting = cancellable(Deferred(translate))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)

    def test_a_late_result_is_nobodys(self) -> None:
        """Neither an AlreadyCalledError nor an unhandled error in the log."""
        for late in ("done", Failure(KeyError("x"))):
            afterwards: Deferred[Any] = Deferred()
            inner: Deferred[Any] = Deferred()
            inner.addErrback(lambda _cancelled, afterwards=afterwards: afterwards)
            waiting = cancellable(inner)
            waiting.cancel()
            self.failureResultOf(waiting, CancelledError)
            afterwards.callback(late)
            self.assertIsNone(self.successResultOf(inner))

    def test_whoever_awaits_it_inside_a_deadline_ends_at_the_deadline(self) -> None:
        """A loop that retries on the error made of its own cancellation would go on without one."""
        clock, tries = Clock(), list[Deferred[None]]()

        async def retrying() -> None:
            while True:
                tries.append(Deferred(lambda inner: inner.errback(ConnectionError())))
                with contextlib.suppress(ConnectionError):
                    await cancellable(tries[-1])

        waiting = Deferred.fromCoroutine(within(clock, 5, retrying()))
        tries[-1].errback(ConnectionError())
        clock.advance(5)
        self.failureResultOf(waiting, DeadlineError)
        self.assertEqual(len(tries), 2)
