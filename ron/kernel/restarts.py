"""When to start again what has crashed, and when to stop trying (blueprint §2.7). Pure.

In: the time of each crash. Out: `Again(delay_s)`: 100 ms → 30 s with jitter; or `Quarantine` after more than 5 crashes
in 60 s, until somebody releases it.
"""

from __future__ import annotations

import random
from collections import deque
from typing import NamedTuple

from ron.kernel.backoff import Backoff

MAX_RESTARTS = 5
WINDOW_S = 60.0


class Again(NamedTuple):
    """Start it again in `delay_s`."""

    delay_s: float


class Quarantine(NamedTuple):
    """It has crashed `crashes` times within `window_s`: leave it until it is released."""

    crashes: int
    window_s: float


class RestartPolicy:
    """One service's crashes. The back-off starts anew once it has not crashed for the whole window.

    No `window_s` holds more than `max_restarts` restarts: one that would be too many waits until it is not.
    """

    def __init__(
        self,
        *,
        max_restarts: int = MAX_RESTARTS,
        window_s: float = WINDOW_S,
        backoff: Backoff | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._max_restarts = max_restarts
        self._window_s = window_s
        self._backoff = backoff if backoff is not None else Backoff(rng=rng)
        self._crashes: deque[float] = deque(maxlen=max_restarts + 1)
        self._restarts: deque[float] = deque(maxlen=max_restarts)

    def crashed(self, now_s: float) -> Again | Quarantine:
        """It has just crashed."""
        if self._crashes and now_s - self._crashes[-1] >= self._window_s:
            self._backoff.reset()
        self._crashes.append(now_s)
        recent = sum(1 for at in self._crashes if now_s - at < self._window_s)
        if recent > self._max_restarts:
            return Quarantine(recent, self._window_s)
        return Again(self._delay_s(now_s))

    def release(self) -> None:
        """Forget what was: it may try again from the shortest delay."""
        self._crashes.clear()
        self._restarts.clear()
        self._backoff.reset()

    def _delay_s(self, now_s: float) -> float:
        delay_s = self._backoff.next_delay_s()
        if len(self._restarts) == self._max_restarts:
            # crashes that are a window apart may mean restarts that are less, after one long delay and one short;
            # never longer than the window, should the clock have been set back
            delay_s = max(delay_s, min(self._window_s, self._restarts[0] + self._window_s - now_s))
        self._restarts.append(now_s + delay_s)
        return delay_s
