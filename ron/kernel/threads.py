"""Bounded thread pools: where disk, HSM and heavy crypto run, so that the reactor never waits for them.

In: a blocking callable. Out: an awaitable.
When `queue_limit` calls are waiting a new one is refused with `Backpressure`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from ron.proto.errors import backpressure, unavailable

P = ParamSpec("P")
T = TypeVar("T")


class BoundedPool:
    """At most `threads` calls at a time and `queue_limit` waiting. Start it before use; stop waits for what runs."""

    def __init__(self, reactor: IReactorFromThreads, *, name: str, threads: int, queue_limit: int = 256) -> None:
        self._reactor = reactor
        self._threads = threads
        self._limit = threads + queue_limit
        self._pending = 0
        self._pool = ThreadPool(minthreads=0, maxthreads=threads, name=name)
        self.name = name

    def resize(self, queue_limit: int) -> None:
        """So many may wait from now on; those that wait already are not turned away."""
        self._limit = self._threads + queue_limit

    def start(self) -> None:
        """Accept calls."""
        self._pool.start()

    def stop(self) -> None:
        """Wait for the calls under way, then end the threads. Blocks; call it late in shutdown."""
        if self._pool.started:
            self._pool.stop()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(*args)` in a thread. Raises what it raises, or `RonError`: Backpressure on a full queue,
        StoreUnavailable when the pool does not run.

        A cancelled call cannot be called back from its thread: it keeps its place in the queue until it is done.
        """
        if not self._pool.started:
            raise unavailable(f"{self.name}: not running")
        if self._pending >= self._limit:
            raise backpressure(f"{self.name}: queue full")
        self._pending += 1
        outcome: Deferred[T] = Deferred()
        deferToThreadPool(self._reactor, self._pool, function, *args, **kwargs).addBoth(self._done, outcome)
        return await outcome

    def _done(self, result: Any, outcome: Deferred[Any]) -> None:
        self._pending -= 1
        # a Deferred that was cancelled takes this without a word; a Failure goes the way of errback
        outcome.callback(result)
