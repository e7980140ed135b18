"""What waits to be sent on one link: bounded in number and bytes, the oldest go first when there is no room. Pure."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

MAX_ITEMS = 256
MAX_BYTES = 1024 * 1024


class Item(NamedTuple):
    """One message that is not sealed yet. corr: of the call it is or answers, 0 for neither."""

    kind: str
    corr: int
    body: bytes


class Outbox:
    """First in, first out; what is urgent (pings) before the rest."""

    def __init__(self, *, max_items: int = MAX_ITEMS, max_bytes: int = MAX_BYTES) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._urgent: deque[Item] = deque(maxlen=8)
        self._items: deque[Item] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._urgent) + len(self._items)

    def put(self, item: Item, *, urgent: bool = False) -> list[Item]:
        """Queue it; what had to go for it."""
        if urgent:
            self._urgent.append(item)
            return []
        self._items.append(item)
        self._bytes += len(item.body)
        dropped = []
        while len(self._items) > self._max_items or (self._bytes > self._max_bytes and len(self._items) > 1):
            dropped.append(self._take())
        return dropped

    def next(self) -> Item | None:
        """The next to be sent, taken out."""
        if self._urgent:
            return self._urgent.popleft()
        return self._take() if self._items else None

    def clear(self) -> list[Item]:
        """All that is not sent, taken out."""
        left = list(self._items)
        self._items.clear()
        self._urgent.clear()
        self._bytes = 0
        return left

    def _take(self) -> Item:
        item = self._items.popleft()
        self._bytes -= len(item.body)
        return item
