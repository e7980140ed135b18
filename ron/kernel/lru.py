"""Least recently used values, bounded by their bytes. In: keys, values and their sizes. Out: what still fits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteLru(Generic[K, V]):
    """At most `limit_bytes` of values; a value that is larger than all of it is not kept."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value of `key`, now the most recently used, or None."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep `value` of `size` bytes, and let go of the oldest to make room."""
        if size > self._limit:
            return
        self.drop(key)
        self._values[key] = (value, size)
        self._used += size
        while self._used > self._limit:
            _, (_, freed) = self._values.popitem(last=False)
            self._used -= freed

    def drop(self, key: K) -> None:
        """Forget `key`."""
        gone = self._values.pop(key, None)
        if gone is not None:
            self._used -= gone[1]
