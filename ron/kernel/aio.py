"""Every wait on the outside world has a deadline (STYLE habit 5).

In: an awaitable and seconds. Out: its result, or `TimeoutError` with it cancelled.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred

T = TypeVar("T")


async def within(reactor: Any, seconds: float, awaitable: Deferred[T] | Coroutine[Any, Any, T]) -> T:
    """The result of `awaitable`, or `twisted.internet.defer.TimeoutError` after `seconds` with it cancelled."""
    deferred = awaitable if isinstance(awaitable, Deferred) else Deferred.fromCoroutine(awaitable)
    return await deferred.addTimeout(seconds, reactor)


def occurred(event: Deferred[T]) -> Deferred[None]:
    """Fires when `event` has, and leaves its result to whoever else waits: any number may."""
    waiter: Deferred[None] = Deferred()

    def pass_on(result: T) -> T:
        if not waiter.called:
            waiter.callback(None)
        return result

    event.addBoth(pass_on)
    return waiter


def cancellable(inner: Deferred[T]) -> Deferred[T]:
    """`inner`, but cancelled it fails with `CancelledError` at once, whatever error `inner` makes of being cancelled.

    Clients wrap the cancellation in errors of their own (`ResponseNeverReceived`, `ConnectingCancelledError`), and
    whoever retries on those would go on past its own end.
    """

    def cancel(outer: Deferred[T]) -> None:
        outer.errback(CancelledError())
        inner.cancel()

    def pass_on(result: Any) -> None:
        if not outer.called:
            outer.callback(result)

    outer: Deferred[T] = Deferred(cancel)
    inner.addBoth(pass_on)
    return outer
