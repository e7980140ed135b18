"""Public halves that stay at hand, so that signatures are verified while the store is away (I-18, I-19).

In: what the store said of a key version, and the time. Out: it again with its age. Least recently used go first. Pure;
times are seconds of one steady clock.

Past the soft limit it is still good, but whoever asks should look at the store again; past the hard one it is gone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

SIZE = 65_536
SOFT_TTL_MS = 300_000
HARD_TTL_MS = 24 * 3600 * 1000
# The alert on stale entries goes by this many soft limits (PERFORMANCE §3)
_ALERT = 2


class Cached(NamedTuple, Generic[V]):
    """age_ms: since the store said so. stale: ask it again, if it can be asked."""

    value: V
    age_ms: int
    stale: bool


@dataclass(slots=True)
class CacheCounts:
    """For metrics, since the start. overdue: hits older than two soft limits. evicted: for want of room."""

    hits: int = 0
    misses: int = 0
    stale: int = 0
    overdue: int = 0
    evicted: int = 0


class PublicCache(Generic[K, V]):
    """At most `size` values by `kid#vN` or whatever else names them."""

    def __init__(self, *, size: int = SIZE, soft_ttl_ms: int = SOFT_TTL_MS, hard_ttl_ms: int = HARD_TTL_MS) -> None:
        if size < 1 or not 0 < soft_ttl_ms <= hard_ttl_ms:
            raise ValueError("a cache has room, and its soft limit is above 0 and not beyond its hard one")
        self.counts = CacheCounts()
        self._size = size
        self._soft_ms = soft_ttl_ms
        self._hard_ms = hard_ttl_ms
        self._entries: OrderedDict[K, tuple[V, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K, now_s: float) -> Cached[V] | None:
        """What is known of `key`, or None: never heard of, let go, or past the hard limit."""
        found = self._entries.get(key)
        if found is None:
            self.counts.misses += 1
            return None
        value, at_s = found
        # a clock that was set back makes nothing younger than new
        age_ms = max(0, int((now_s - at_s) * 1000))
        if age_ms > self._hard_ms:
            del self._entries[key]
            self.counts.misses += 1
            return None
        self._entries.move_to_end(key)
        return self._hit(value, age_ms)

    def put(self, key: K, value: V, now_s: float) -> None:
        """The store has just said so."""
        self._entries[key] = (value, now_s)
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
            self.counts.evicted += 1

    def drop(self, key: K) -> None:
        """Forget it: it was rotated, destroyed or found wrong."""
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()

    def _hit(self, value: V, age_ms: int) -> Cached[V]:
        stale = age_ms > self._soft_ms
        self.counts.hits += 1
        self.counts.stale += stale
        self.counts.overdue += age_ms > _ALERT * self._soft_ms
        return Cached(value, age_ms, stale)
