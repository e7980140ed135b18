"""An operation is done once: `op_id`s that were used within the window are refused.

In: who asks (cap_id) and the op_id. Out: nothing, or `RonError`: Conflict on a repeat, BadRequest when it is no UUID,
Backpressure when the memory is full. Per process: what must hold across restarts keeps its op_ids in its own store.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

from ron.proto.errors import ErrorCode, RonError, bad_request, conflict
from ron.proto.ids import is_uuid

WINDOW_S = 86_400.0
CAPACITY = 65_536


class ReplayGuard:
    """Remembers up to `capacity` op_ids for `window_s` seconds each; `now` gives seconds of any clock."""

    def __init__(self, window_s: float, capacity: int, now: Callable[[], float]) -> None:
        self._window_s = window_s
        self._capacity = capacity
        self._now = now
        self._claimed: OrderedDict[tuple[str, str], float] = OrderedDict()

    def claim(self, cap_id: str, op_id: str) -> None:
        """`op_id` is used from now on. When full it refuses: forgetting one early would let it be replayed."""
        if not is_uuid(op_id):
            raise bad_request("op_id is not a UUID", "make a fresh UUID for each operation")
        now_s, key = self._now(), (cap_id, op_id.lower())
        self._forget(now_s)
        if key in self._claimed:
            raise conflict("this op_id was used before", "it is done or under way; a new operation needs a new op_id")
        if len(self._claimed) >= self._capacity:
            wait_s = next(iter(self._claimed.values())) + self._window_s - now_s
            raise RonError(
                ErrorCode.BACKPRESSURE, "too many operations are remembered", retry_after_s=max(1, math.ceil(wait_s))
            )
        self._claimed[key] = now_s

    def release(self, cap_id: str, op_id: str) -> None:
        """The operation failed and changed nothing: it may be tried again under the same op_id."""
        self._claimed.pop((cap_id, op_id.lower()), None)

    def __len__(self) -> int:
        return len(self._claimed)

    def _forget(self, now_s: float) -> None:
        while self._claimed:
            key, at_s = next(iter(self._claimed.items()))
            if now_s - at_s < self._window_s:
                return
            del self._claimed[key]
