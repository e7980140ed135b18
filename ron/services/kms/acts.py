"""What is under way or was just done, by its op_id: whoever asks again waits for it, or hears the same answer.

In: a key, a digest of what is asked, the work. Out: its outcome, one for all who ask. In memory; the store has those
that must be known after a restart. One that failed is forgotten, and may be tried again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.proto.errors import RonError, backpressure, conflict

MOST = 8192
_log = Logger(namespace="ron.kms")


class _Act:
    __slots__ = ("done", "outcome", "waiting", "what")

    def __init__(self, what: bytes) -> None:
        self.what = what
        self.done = False
        self.outcome: Any = None
        self.waiting: list[Deferred[Any]] = []


class Acts:
    """At most `most`; the oldest that is done goes first."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._acts: OrderedDict[Hashable, _Act] = OrderedDict()

    async def do(self, key: Hashable, what: bytes, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """What `work` returns, or returned. A caller that is cancelled leaves it running.

        Raises `RonError`: Conflict for a key of another act, Backpressure when too many are under way; and what `work`
        raises.
        """
        act = self._acts.get(key)
        if act is not None and act.what != what:
            raise conflict("this op_id was used for another act", "a new act needs a new op_id")
        if act is not None and act.done:
            return act.outcome
        waiter: Deferred[Any] = Deferred(lambda _waiter: None)
        if act is not None:
            act.waiting.append(waiter)
        else:
            act = self._begin(key, what, waiter)
            Deferred.fromCoroutine(work()).addBoth(self._ended, key, act)
        return await waiter

    def _begin(self, key: Hashable, what: bytes, waiter: Deferred[Any]) -> _Act:
        if len(self._acts) >= self._most:
            oldest = next((known for known, act in self._acts.items() if act.done), None)
            if oldest is None:
                raise backpressure("too many acts are under way")
            del self._acts[oldest]
        act = self._acts[key] = _Act(what)
        act.waiting.append(waiter)
        return act

    def _ended(self, outcome: Any, key: Hashable, act: _Act) -> None:
        act.done = True
        if isinstance(outcome, Failure):
            self._acts.pop(key, None)
        else:
            act.outcome = outcome
        heard = [waiter for waiter in act.waiting if not waiter.called]
        act.waiting.clear()
        for waiter in heard:
            waiter.callback(outcome)
        if isinstance(outcome, Failure) and not heard and not outcome.check(RonError):
            _log.failure("an act failed, and its caller had gone", outcome, event="kms_act_failed")
