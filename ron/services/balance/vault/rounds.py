"""Ask some of many, and be content with enough of them: who answers first, counts.

In: whom to ask, in which order, and how many answers are needed. Out: answers, and why others gave none. The next in
line is asked as soon as somebody refuses, and everybody once the first ones take suspiciously long.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ron.proto.errors import RonError

T = TypeVar("T")
HEDGE_S = 0.25


class Round(Generic[T]):
    """One question to several. answers, refusals: by whom; refusals as one line each."""

    def __init__(
        self,
        reactor: Any,
        ask: Callable[[int], Coroutine[Any, Any, T]],
        order: Sequence[int],
        *,
        need: int,
        spare: int = 0,
    ) -> None:
        """spare: how many more than needed are asked at once. `ask` has a deadline of its own and raises `RonError`."""
        self.answers: dict[int, T] = {}
        self.refusals: dict[int, str] = {}
        self._reactor = reactor
        self._ask = ask
        self._waiting = list(order)
        self._total = len(order)
        self._need = need
        self._first = need + spare
        self._done: Deferred[None] = Deferred()

    async def run(self) -> bool:
        """Until enough have answered, or too few are left to answer. True for the former."""
        hedge = self._reactor.callLater(HEDGE_S, self._more, self._total)
        self._more(self._first)
        self._check()
        try:
            await self._done
        finally:
            if hedge.active():
                hedge.cancel()
        return len(self.answers) >= self._need

    def _more(self, count: int) -> None:
        # who refuses at once has the next one asked from within this loop
        while count and self._waiting:
            count -= 1
            who = self._waiting.pop(0)
            asked: Deferred[T] = Deferred.fromCoroutine(self._ask(who))
            asked.addCallbacks(self._arrived, self._refused, callbackArgs=(who,), errbackArgs=(who,))

    def _arrived(self, answer: T, who: int) -> None:
        self.answers[who] = answer
        self._check()

    def _refused(self, failure: Failure, who: int) -> None:
        error = failure.value
        self.refusals[who] = error.message if isinstance(error, RonError) else type(error).__name__
        if not self._done.called:
            self._more(1)
        self._check()

    def _check(self) -> None:
        hopeless = self._total - len(self.refusals) < self._need
        if not self._done.called and (hopeless or len(self.answers) >= self._need):
            self._done.callback(None)
