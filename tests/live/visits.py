"""Somebody who visits an onion all the time, each time as a new client: who answered, how long it took, when it failed.

In: a client tor (`tests.live.cluster`), an onion. Out: `Visit`s, and the longest time in which none came through.
"""

from __future__ import annotations

import http.client
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

from tests.live.cluster import Client

TIMEOUT_S = 10.0


class Visit(NamedTuple):
    """began_s, took_s: by the monotonic clock. body: what came, empty when nothing did; why: then."""

    began_s: float
    took_s: float
    body: str
    why: str = ""


class Visitor:
    """Visits every `every_s`, whatever became of the visits before."""

    def __init__(self, client: Client, onion: str, every_s: float = 0.25) -> None:
        self._client = client
        self._onion = onion
        self._every_s = every_s
        self._visits: list[Visit] = []
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(int(TIMEOUT_S / every_s) + 8)
        self._thread = threading.Thread(target=self._go, daemon=True)
        self._thread.start()

    def visits(self, since_s: float = 0.0) -> list[Visit]:
        """Those that began at `since_s` or later, and have ended, in the order in which they began."""
        return sorted(each for each in list(self._visits) if each.began_s >= since_s)

    def stop(self) -> list[Visit]:
        """No new ones; all there were. May be called twice."""
        self._stop.set()
        self._thread.join()
        self._pool.shutdown()
        return self.visits()

    def _go(self) -> None:
        while not self._stop.wait(self._every_s):
            self._pool.submit(self._visit)

    def _visit(self) -> None:
        began_s, body, why = time.monotonic(), "", ""
        try:
            body = self._client.get(self._onion, timeout_s=TIMEOUT_S).decode()
        except (OSError, http.client.HTTPException) as error:
            why = f"{type(error).__name__} {error}"
        self._visits.append(Visit(began_s, time.monotonic() - began_s, body, why))


def gap_s(visits: list[Visit]) -> float:
    """The longest time between the beginnings of two visits that came through with none between."""
    if not visits:
        return float("inf")
    well = [each.began_s for each in visits if each.body]
    return max(later - earlier for earlier, later in pairwise([visits[0].began_s, *well, visits[-1].began_s]))


def share(visits: list[Visit]) -> float:
    """So many of them came through, 0 to 1."""
    return sum(bool(each.body) for each in visits) / max(1, len(visits))


def told(visits: list[Visit]) -> str:
    """For a log: how it went."""
    whys = {each.why for each in visits if each.why}
    slowest_s = max((each.took_s for each in visits if each.body), default=0.0)
    return f"{share(visits):.4f} of {len(visits)}, gap {gap_s(visits):.1f} s, slowest {slowest_s:.1f} s; {sorted(whys)}"
