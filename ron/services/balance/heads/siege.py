"""When a head is under siege: introductions that come faster than any honest crowd's, and when that is over. Pure.

In: how many introductions came, and when. Out: rates over a short and a long window; under siege or not.
"""

from __future__ import annotations

from collections import deque

# The short window notices, the long one says when it is over: a flood that pauses for a moment is still one.
SHORT_S = 5.0
LONG_S = 30.0
# As many notes as the long window needs at several a second; more are counted into the last.
_MAX_NOTES = 256


class Rates:
    """How many a second, over the short and over the long window."""

    def __init__(self) -> None:
        self._notes: deque[tuple[float, int]] = deque()

    def add(self, count: int, now_s: float) -> None:
        """So many more came just now. `now_s` does not go back."""
        if count <= 0:
            return
        while self._notes and self._notes[0][0] <= now_s - LONG_S:
            self._notes.popleft()
        if len(self._notes) >= _MAX_NOTES:
            at_s, known = self._notes.pop()
            count, now_s = count + known, at_s
        self._notes.append((now_s, count))

    def over(self, window_s: float, now_s: float) -> float:
        """A second, over the `window_s` before `now_s`; at most `LONG_S`."""
        return sum(count for at_s, count in self._notes if at_s > now_s - window_s) / window_s


class Siege:
    """Begins above the limit in the short window; over after `quiet_s` in which the long one was below half of it."""

    def __init__(self) -> None:
        self.rates = Rates()
        self.on = False
        self._calm_since_s: float | None = None

    def judge(self, now_s: float, *, limit_per_s: float, quiet_s: float) -> bool:
        """Whether it is under siege now. limit_per_s: 0 is never."""
        if limit_per_s <= 0:
            self.on, self._calm_since_s = False, None
        elif self.rates.over(SHORT_S, now_s) > limit_per_s:
            self.on, self._calm_since_s = True, None
        elif self.on:
            self._wait_for_calm(now_s, limit_per_s / 2, quiet_s)
        return self.on

    def _wait_for_calm(self, now_s: float, below_per_s: float, quiet_s: float) -> None:
        if self.rates.over(LONG_S, now_s) >= below_per_s:
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = now_s
        elif now_s - self._calm_since_s >= quiet_s:
            self.on, self._calm_since_s = False, None


class Meter:
    """What came since the last reading of a counter that begins at 0 again whenever tor is told of its services."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def read(self, totals: dict[str, int]) -> int:
        """The sum of what is new; of a counter that is seen for the first time, or went back, all of it."""
        new = 0
        for name, total in totals.items():
            before = self._last.get(name, 0)
            new += total - before if total >= before else total
        self._last = dict(totals)
        return new
