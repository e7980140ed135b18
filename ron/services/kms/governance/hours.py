"""The time governance goes by: what has to last lasts, whatever is done to the clock.

In: a steady clock, the wall clock, the time of the newest record. Out: dates for records, and spans measured evenly.

A proposal runs out by the later of both clocks: early is the safe side. A freeze, a deadlock and an auditor's lock last
by the steady clock: a clock set forward must not end them, one set back must not keep them. While the two clocks have
parted nothing is decided at all.
"""

from __future__ import annotations

from collections.abc import Callable

from ron.kernel.clock import Clock
from ron.kernel.units import HOUR_S
from ron.proto.errors import unavailable

# A host that slept, or was corrected by its time service, is within it
JUMP_S = HOUR_S


class Hours:
    """now: Unix seconds by the wall clock. newest_at: the book's newest record, before which it never was."""

    def __init__(self, clock: Clock, now: Callable[[], float], newest_at: int = 0) -> None:
        self._clock = clock
        self._now = now
        self._ends: dict[tuple[str, str], float] = {}
        self._base_s = max(float(newest_at), now()) - clock.seconds()

    def unix(self) -> int:
        """The present by the later clock, Unix seconds."""
        return int(max(self._now(), self._even_s()))

    def check(self) -> None:
        """Raise `RonError` (StoreUnavailable) when the wall clock was set since the start: which one is right?"""
        if abs(self._now() - self._even_s()) > JUMP_S:
            raise unavailable("the clock of this host has jumped", "set it right, and restart the service")

    def begin(self, kind: str, name: str, at: int, for_s: int) -> None:
        """A span that began at `at`. What begins in this process lasts for_s from now, evenly."""
        left_s = min(max(at + for_s - self.unix(), 0), for_s)
        self._ends.setdefault((kind, name), self._clock.seconds() + left_s)

    def is_over(self, kind: str, name: str) -> bool:
        """Has this span ended? One that never began has not."""
        end_s = self._ends.get((kind, name))
        return end_s is not None and self._clock.seconds() >= end_s

    def left_s(self, kind: str, name: str) -> float:
        """Seconds until it ends, 0.0 when it has, or never began."""
        end_s = self._ends.get((kind, name))
        return max(0.0, end_s - self._clock.seconds()) if end_s is not None else 0.0

    def forget(self, name: str) -> None:
        """No span of `name` matters any more."""
        for key in [key for key in self._ends if key[1] == name]:
            del self._ends[key]

    def _even_s(self) -> float:
        return self._base_s + self._clock.seconds()
