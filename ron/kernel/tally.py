"""Counting in plain numbers: for what is counted with each request, on one thread.

In: a counter, gauge or histogram of the client library, with its labels. Out: the same to count on; what was counted is
added when somebody looks at the registry. The library's own take a lock and a few checks each time, and a histogram
goes through its buckets one by one: ten of them are a twentieth of a small request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.registry import Collector


class Tally:
    """A counter or a gauge."""

    __slots__ = ("_into", "_since")

    def __init__(self, into: Any) -> None:
        self._into = into
        self._since = 0

    def inc(self, count: int = 1) -> None:
        """So many more."""
        self._since += count

    def dec(self) -> None:
        """One less, of a gauge."""
        self._since -= 1

    def flush(self) -> None:
        """Add it up."""
        since, self._since = self._since, 0
        if since:
            self._into.inc(since)


class TimeTally:
    """A histogram."""

    __slots__ = ("_bounds", "_counts", "_into", "_sum")

    def __init__(self, into: Any) -> None:
        self._into = into
        # the library has no way to add many at once; a test fails when it changes these
        self._bounds: list[float] = into._upper_bounds
        self._clear()

    def _clear(self) -> None:
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, amount: float) -> None:
        """One more."""
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._sum += amount

    def flush(self) -> None:
        """Add it up."""
        counts, total = self._counts, self._sum
        self._clear()
        for bucket, count in zip(self._into._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._into._sum.inc(total)


class Tallies(Collector):
    """Of one registry. Register it before what is counted: a registry asks its collectors in their order."""

    def __init__(self) -> None:
        self._all: list[Tally | TimeTally] = []

    def of(self, into: Any) -> Tally:
        """For one child of a counter or gauge."""
        made = Tally(into)
        self._all.append(made)
        return made

    def timing(self, into: Any) -> TimeTally:
        """For one child of a histogram."""
        made = TimeTally(into)
        self._all.append(made)
        return made

    def describe(self) -> Iterable[Metric]:
        """It has no metric of its own."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Somebody looks."""
        for one in self._all:
            one.flush()
        return ()
