"""Bounded pools: blocking work off the reactor, and a clear no when too much of it waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from ron.kernel.threads import BoundedPool
from ron.proto.errors import ErrorCode, RonError

PATIENCE_S = 20


class Gate:
    """Blocking work that lasts until `open`, and knows how much of it runs at a time."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._lock = threading.Lock()
        self.running = self.most = self.done = 0

    def work(self) -> int:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        if not self._opened.wait(PATIENCE_S):
            raise AssertionError("nobody opened the gate")
        with self._lock:
            self.running -= 1
            self.done += 1
        return threading.get_ident()

    def open(self) -> None:
        self._opened.set()


class Pools(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.gate = Gate()
        self.pool = self.made(threads=2, queue_limit=3)

    def made(self, **bounds: int) -> BoundedPool:
        pool = BoundedPool(reactor, name="disk", **bounds)
        pool.start()
        # stop() waits for what runs: off the reactor thread, so that results still get through
        self.addCleanup(deferToThread, pool.stop)
        self.addCleanup(self.gate.open)
        return pool

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.pool.run(function, *args, **kwargs))

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            await deferLater(reactor, 0.005)

    async def test_it_runs_elsewhere_and_brings_the_result_back(self) -> None:
        def divide(a: int, *, by: int) -> tuple[float, int]:
            return a / by, threading.get_ident()

        quotient, thread = await self.call(divide, 9, by=2)
        self.assertEqual(quotient, 4.5)
        self.assertNotEqual(thread, threading.get_ident())

    async def test_what_it_raises_is_raised_here(self) -> None:
        with self.assertRaises(ZeroDivisionError):
            await self.call(divmod, 1, 0)

    async def test_never_more_at_a_time_than_threads(self) -> None:
        calls = [self.call(self.gate.work) for _ in range(5)]
        await self.until(lambda: self.gate.running == 2)
        self.gate.open()
        await gatherResults(calls)
        self.assertEqual((self.gate.most, self.gate.done), (2, 5))

    async def test_a_full_queue_refuses_and_recovers(self) -> None:
        calls = [self.call(self.gate.work) for _ in range(2 + 3)]
        error = self.failureResultOf(self.call(self.gate.work), RonError).value
        self.assertIs(error.code, ErrorCode.BACKPRESSURE)
        self.assertIn("disk", error.message)
        self.gate.open()
        await gatherResults(calls)
        self.assertEqual(await self.call(len, "abc"), 3)

    async def test_failed_calls_give_their_place_back(self) -> None:
        for _ in range(20):
            with self.assertRaises(ZeroDivisionError):
                await self.call(divmod, 1, 0)

    async def test_a_cancelled_call_keeps_its_place_until_its_thread_is_done(self) -> None:
        """Callers that come and go must not pile up work behind the bound."""
        calls = [self.call(self.gate.work) for _ in range(2 + 3)]
        for call in calls:
            call.cancel()
            self.failureResultOf(call, CancelledError)
        error = self.failureResultOf(self.call(self.gate.work), RonError).value
        self.assertIs(error.code, ErrorCode.BACKPRESSURE)
        self.gate.open()
        await self.until(lambda: self.gate.done == 5)
        self.assertEqual(await self.call(len, "abc"), 3)

    async def test_once_stopped_it_says_so(self) -> None:
        """It must not leave the caller waiting for ever."""
        await deferToThread(self.pool.stop)
        error = self.failureResultOf(self.call(len, "abc"), RonError).value
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)

    async def test_stop_waits_for_what_runs(self) -> None:
        call = self.call(self.gate.work)
        await self.until(lambda: self.gate.running == 1)
        stopping = deferToThread(self.pool.stop)
        await deferLater(reactor, 0.02)
        self.assertNoResult(stopping)
        self.gate.open()
        await stopping
        self.assertEqual(self.gate.done, 1)
        await call

    def test_stopping_what_never_started(self) -> None:
        BoundedPool(reactor, name="idle", threads=1).stop()
