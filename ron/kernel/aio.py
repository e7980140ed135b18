"""Every wait on the outside world has a deadline (STYLE habit 5).

In: an awaitable and seconds. Out: its result, or `TimeoutError` with it cancelled.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")


async def within(reactor: Any, seconds: float, awaitable: Deferred[T] | Coroutine[Any, Any, T]) -> T:
    """The result of `awaitable`, or `twisted.internet.defer.TimeoutError` after `seconds` with it cancelled."""
    deferred = awaitable if isinstance(awaitable, Deferred) else Deferred.fromCoroutine(awaitable)
    return await deferred.addTimeout(seconds, reactor)
