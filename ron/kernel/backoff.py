"""When to try again. Pure: takes the random source, returns seconds (blueprint §2.7: 100 ms → 30 s, with jitter)."""

from __future__ import annotations

import random


class Backoff:
    """Exponential delays with full jitter, reset after a success.

    Each delay is uniform in [base, cap_n], cap_n doubling from 2·base up to `ceiling_s`.
    """

    def __init__(self, *, base_s: float = 0.1, ceiling_s: float = 30.0, rng: random.Random | None = None) -> None:
        self._base_s = base_s
        self._ceiling_s = ceiling_s
        self._rng = rng if rng is not None else random.SystemRandom()
        self._failures = 0

    def next_delay_s(self) -> float:
        """Seconds to wait before the next try; grows with each call until `reset`."""
        self._failures += 1
        cap = min(self._ceiling_s, self._base_s * 2.0 ** min(self._failures, 32))
        return self._rng.uniform(self._base_s, cap)

    def reset(self) -> None:
        """It worked: start again from the shortest delay."""
        self._failures = 0
