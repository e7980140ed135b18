"""So many a minute, for each who asks.

In: who asks, by the reactor's clock. Out: yes or no. Bounded by the number of members and services there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any

PER_S = 60.0
MAX_KEYS = 2048


class Rate:
    """most: within any `PER_S` seconds, by each."""

    def __init__(self, reactor: Any, most: int) -> None:
        self._reactor = reactor
        self._most = most
        self._times: dict[Hashable, deque[float]] = {}

    def allows(self, who: Hashable) -> bool:
        """True, and counted, unless it is one too many."""
        now_s = self._reactor.seconds()
        if len(self._times) >= MAX_KEYS:
            self._times = {key: times for key, times in self._times.items() if now_s - times[-1] < PER_S}
        times = self._times.setdefault(who, deque(maxlen=self._most))
        if len(times) == self._most and now_s - times[0] < PER_S:
            return False
        times.append(now_s)
        return True
