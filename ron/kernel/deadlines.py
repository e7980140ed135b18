"""When calls under way are given up, with one timer for all of those that have as long.

In: work that was begun, and that it has ended. Out: it is cancelled when its time is over. A timer of the reactor for
each call, which nearly all of them take back, was a twentieth of a small request.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import takewhile
from typing import Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.interfaces import IDelayedCall, IReactorTime

T = TypeVar("T")


class Work(Hashable, Protocol):
    """What can be given up: a Deferred, or something with one of its own."""

    def cancel(self) -> None: ...


class Deadlines:
    """Each has `seconds` from when it was begun, so that the first begun is the first that is due."""

    def __init__(self, clock: IReactorTime, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        # by the order in which they were begun
        self._due_s: dict[Work, float] = {}
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._due_s)

    def begin(self, work: Work) -> None:
        """`work` has its time from now on."""
        self._due_s[work] = self._clock.seconds() + self._seconds
        if self._timer is None:
            self._timer = self._clock.callLater(self._seconds, self._look)

    def end(self, work: Work) -> bool:
        """It is over; more than once is fine. False when its time was over before, or it had ended."""
        in_time = self._due_s.pop(work, None) is not None
        if not self._due_s and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return in_time

    async def within(self, work: Deferred[T]) -> T:
        """What `work` comes to, and what it raises; `twisted.internet.defer.TimeoutError` when it was given up."""
        if work.called:
            return await work
        self.begin(work)
        try:
            return await work
        except CancelledError:
            if work in self._due_s:
                raise
            raise DeadlineError(f"not done within {self._seconds:g} s") from None
        finally:
            self.end(work)

    def _look(self) -> None:
        self._timer = None
        now_s = self._clock.seconds()
        late = [work for work, _due_s in takewhile(lambda item: item[1] <= now_s, self._due_s.items())]
        for work in late:
            del self._due_s[work]
        for due_s in self._due_s.values():
            self._timer = self._clock.callLater(due_s - now_s, self._look)
            break
        # last, for it may begin and end others
        for work in late:
            work.cancel()
