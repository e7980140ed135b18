"""How far the others' clocks are from ours: NTP's four timestamps, of the fastest of the last exchanges. Pure.

In: times of ping and pong, Unix microseconds. Out: drift and round trip in seconds; the median over peers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import NamedTuple

SAMPLES = 8
# Messages of one clock's past: older ones are refused as stale.
STALE_S = 600.0
_US = 1_000_000


class Sample(NamedTuple):
    """One exchange. rtt_s: on the way, there and back. drift_s: how far the peer's clock is ahead of ours."""

    rtt_s: float
    drift_s: float


def sample(sent_us: int, arrived_us: int, answered_us: int, back_us: int) -> Sample | None:
    """sent, back: by our clock; arrived, answered: by the peer's (RFC 5905 §8). None when they cannot be true."""
    rtt_us = (back_us - sent_us) - (answered_us - arrived_us)
    if rtt_us < 0 or answered_us < arrived_us or back_us < sent_us:
        return None
    drift_us = ((arrived_us - sent_us) + (answered_us - back_us)) / 2
    return Sample(rtt_us / _US, drift_us / _US)


class Drift:
    """One peer's clock. The exchange with the shortest round trip of the last `SAMPLES` is the one to believe: its
    error is at most half of that round trip."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)

    def add(self, found: Sample) -> None:
        """One more exchange."""
        self._samples.append(found)

    @property
    def best(self) -> Sample | None:
        """None while there was none."""
        return min(self._samples, default=None)

    @property
    def drift_s(self) -> float | None:
        """How far the peer's clock is ahead of ours; None while unknown."""
        return self.best.drift_s if self.best is not None else None

    def is_stale(self, sent_ms: int, now_s: float) -> bool:
        """Whether what the peer sent at `sent_ms` of its clock is older than `STALE_S`. False while its drift is
        unknown: it is the sequence number that protects."""
        drift_s = self.drift_s
        return drift_s is not None and now_s + drift_s - sent_ms / 1000 > STALE_S


def middle(drifts_s: Iterable[float | None]) -> float | None:
    """The median of those that are known; None when none is. Positive: most others are ahead of us."""
    known = [drift_s for drift_s in drifts_s if drift_s is not None]
    return median(known) if known else None
