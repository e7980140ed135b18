"""Onions that nobody can be introduced to any more, though tor has them: found, so that they are published anew. Pure.

In: working introduction points by address, as they are every second. Out: the addresses to publish anew. tor replaces a
point that it lost, but avoids relays that failed it a few times for five minutes; in a small network that may be all of
them, and the onion is gone for as long. A service that is taken down and added again starts without such memories.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# tor keeps three for each of an onion's two descriptors, for this period and the next; with fewer than four, one
# descriptor may have none, and clients that have that one do not get in.
ENOUGH = 4
# tor replaces what it lost in two or three seconds, if it does.
PATIENCE_S = 8.0
# Where there are not enough relays for all points, publishing does not help: less and less often, as seldom as this.
CEILING_S = 300.0


@dataclass(slots=True)
class _Watched:
    """few_since_s: when it was first seen with too few, if it has them now. patience_s: how long that is borne."""

    patience_s: float = PATIENCE_S
    few_since_s: float | None = None


class Introductions:
    """The onions of one tor that have been seen with enough introduction points."""

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}

    def lost(self, points: Mapping[str, int], ready: Iterable[str], wanted: Iterable[str], now_s: float) -> list[str]:
        """Which of the `ready` (addresses) are to be published anew. wanted: all that need be remembered."""
        kept = set(wanted)
        self._watched = {address: seen for address, seen in self._watched.items() if address in kept}
        return [address for address in ready if self._is_lost(address, points.get(address, 0), now_s)]

    def _is_lost(self, address: str, count: int, now_s: float) -> bool:
        if count >= ENOUGH:
            self._watched[address] = _Watched()
            return False
        seen = self._watched.get(address)
        if seen is None:
            return False  # never seen whole: it is just coming up, or its tor tells us nothing of circuits
        if seen.few_since_s is None:
            seen.few_since_s = now_s
        if now_s - seen.few_since_s < seen.patience_s:
            return False
        self._watched[address] = _Watched(min(2 * seen.patience_s, CEILING_S))
        return True
