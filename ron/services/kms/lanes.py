"""Calls to the backend: off the reactor, fairly among tenants, so many at a time, each with a deadline.

In: a blocking call of a tenant. Out: its result, or `RonError`: Backpressure before it waits in vain, Timeout when its
deadline passes. A call that has begun cannot be taken back: it keeps its thread until it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeadlineError

from ron.kernel import Metrics
from ron.kernel.limits import Refused
from ron.kernel.threads import BoundedPool
from ron.proto.errors import ErrorCode, RonError
from ron.services.kms.fairness import FairQueue, Waiting

P = ParamSpec("P")
T = TypeVar("T")
# CONCURRENCY §5
DEADLINE_S = 2.0
QUEUE = "sign"


class _Work:
    __slots__ = ("call", "done")

    def __init__(self, call: Callable[[], Any], done: Deferred[Any]) -> None:
        self.call = call
        self.done = done


class Lanes:
    """threads: calls at a time. queue: who is next. Start it before use; stop waits for what runs."""

    def __init__(self, reactor: Any, *, threads: int, queue: FairQueue[Any], metrics: Metrics) -> None:
        self._reactor = reactor
        self._threads = threads
        self._queue: FairQueue[_Work] = queue
        self._running = 0
        # one more than we ever ask for: what was cancelled still holds its place there
        self._pool = BoundedPool(reactor, name="kms", threads=threads, queue_limit=threads)
        self._depth = metrics.queue_depth.labels(QUEUE)
        self._busy = metrics.busy.labels(QUEUE)
        self._late = metrics.io_timeouts

    @property
    def running(self) -> int:
        """Calls in a thread just now."""
        return self._running

    def start(self) -> None:
        """Accept calls."""
        self._pool.start()

    def stop(self) -> None:
        """Wait for the calls under way, then end the threads. Blocks."""
        self._pool.stop()

    async def whole(self, tenant: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same without a deadline, for what must not be left half-way: whoever asked may stop waiting."""
        done: Deferred[T] = Deferred()
        self._put(tenant, lambda: function(*args, **kwargs), done)
        return await done

    async def run(self, tenant: str, op: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(*args)` in a thread, in its tenant's turn. op: as metrics have it."""
        done: Deferred[T] = Deferred()
        place = self._put(tenant, lambda: function(*args, **kwargs), done)
        return await self._awaited(op, done, place)

    def _put(self, tenant: str, call: Callable[[], Any], done: Deferred[Any]) -> Waiting[Any]:
        try:
            place = self._queue.put(tenant, _Work(call, done))
        except Refused:
            self._busy.inc()
            raise
        self._next()
        return place

    async def _awaited(self, op: str, done: Deferred[T], place: Waiting[Any]) -> T:
        waiter: Deferred[T] = Deferred()
        done.addBoth(lambda result: None if waiter.called else waiter.callback(result))
        waiter.addTimeout(DEADLINE_S, self._reactor)
        try:
            return await waiter
        except DeadlineError:
            self._late.labels(op).inc()
            raise RonError(ErrorCode.TIMEOUT, "the backend did not answer in time", hint="ask again") from None
        except CancelledError:
            raise RonError(ErrorCode.TIMEOUT, "nobody waits for it any more") from None
        finally:
            self._queue.drop(place)
            self._depth.set(len(self._queue))

    def _next(self) -> None:
        while self._running < self._threads:
            taken = self._queue.take()
            if taken is None:
                break
            self._running += 1
            work = taken[1]
            Deferred.fromCoroutine(self._pool.run(work.call)).addBoth(self._ended, work)
        self._depth.set(len(self._queue))

    def _ended(self, result: Any, work: _Work) -> None:
        self._running -= 1
        work.done.callback(result)
        self._next()
