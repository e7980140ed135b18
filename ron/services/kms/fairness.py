"""Who is served next when more is asked than can be done: a fair share for each tenant that waits (I-17, G-10).

In: work of tenants with what it costs. Out: the next piece of work; `Refused` (429) before anything waits in vain.
Pure, with no clock in it.

Order: start-time fair queuing (Goyal, Vin and Cheng, SIGCOMM 1996): work gets a start tag from a virtual time that
the work in service drives, and the smallest tag goes first. While two tenants wait, what they were given differs by no
more than one piece of each, by weight. Room: dynamic thresholds (Choudhury and Hahne, IEEE/ACM ToN 6(2), 1998): a queue
may be as long as the room that is left, so that whoever comes next finds some, however greedy the others are.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from typing import Generic, TypeVar

from ron.kernel.limits import Refused, too_many

T = TypeVar("T")
CAPACITY = 512
FLOOR = 0.05
# One in so many
_LAST = 16
_FULL = "backpressure"
_SHARE = "tenant_share"


class Waiting(Generic[T]):
    """A place in line. `FairQueue.drop` gives it up."""

    __slots__ = ("finish", "item", "live", "number", "start", "tenant")

    def __init__(self, tenant: str, item: T, start: float, finish: float, number: int) -> None:
        self.tenant = tenant
        self.item = item
        self.start = start
        self.finish = finish
        self.number = number
        self.live = True

    def __lt__(self, other: Waiting[T]) -> bool:
        # the number keeps what came at the same virtual time in its order
        return (self.start, self.number) < (other.start, other.number)


class _Line:
    """What is remembered of a tenant: how much of its waits, and up to where its share is spoken for."""

    __slots__ = ("depth", "finish")

    def __init__(self) -> None:
        self.depth = 0
        self.finish = 0.0


class FairQueue(Generic[T]):
    """Work of many tenants, at most `capacity` pieces. weights: 1.0 for whoever is not in it, all above 0.

    floor: the share (0 to 1) that each waiting tenant gets at least, whatever the weights of others; with more than
    1/floor of them waiting it is an even share.
    """

    def __init__(
        self, *, capacity: int = CAPACITY, floor: float = FLOOR, weights: Mapping[str, float] | None = None
    ) -> None:
        if capacity < 1 or not 0 <= floor <= 1:
            raise ValueError("a queue has a capacity of 1 or more and a floor between 0 and 1")
        if any(not (math.isfinite(weight) and weight > 0) for weight in (weights or {}).values()):
            raise ValueError("a weight is above 0")
        self._capacity = capacity
        self._floor = floor
        self._weights = dict(weights or {})
        self._heap: list[Waiting[T]] = []
        self._lines: dict[str, _Line] = {}
        self._busy: set[str] = set()
        self._shares: dict[str, float] | None = None
        self._size = 0
        self._numbers = 0
        self._virtual = 0.0

    def resize(self, *, capacity: int, floor: float) -> None:
        """Go by these from now on; what waits already goes on waiting."""
        self._capacity, self._floor, self._shares = capacity, floor, None

    def __len__(self) -> int:
        return self._size

    def depth(self, tenant: str) -> int:
        """How much of this tenant's work waits."""
        line = self._lines.get(tenant)
        return line.depth if line is not None else 0

    def room(self, tenant: str) -> int:
        """How much this tenant may have waiting as things are, at least 1 while there is any room."""
        # the last places are for tenants of whose work none waits
        left = self._capacity - self._capacity // _LAST - self._size
        if left <= 0:
            return 1
        busy = len(self._busy | {tenant})
        kept = min(math.ceil(self._floor * self._capacity), self._capacity // (busy + 1))
        return max(1, kept, left)

    def put(self, tenant: str, item: T, cost: float = 1.0) -> Waiting[T]:
        """Wait in line. cost: in any unit, above 0, the same for all. Raises `Refused` 429, and then nothing waits:
        reason `backpressure` when all is full, `tenant_share` when this tenant has its part of the room."""
        if not (math.isfinite(cost) and cost > 0):
            raise ValueError("work costs more than nothing")
        self._make_way(tenant)
        line = self._lines.get(tenant)
        if line is None:
            self._forget()
            line = self._lines[tenant] = _Line()
        if not line.depth:
            self._busy.add(tenant)
            self._shares = None
        # the share is of one: as if the tenants that wait now were all there are
        start = max(self._virtual, line.finish)
        line.finish = start + cost / self._share(tenant)
        line.depth += 1
        self._size += 1
        self._numbers += 1
        place = Waiting(tenant, item, start, line.finish, self._numbers)
        heapq.heappush(self._heap, place)
        return place

    def take(self) -> tuple[str, T] | None:
        """The next piece of work and whose it is, or None when nothing waits."""
        while self._heap:
            place = heapq.heappop(self._heap)
            if place.live:
                self._virtual = place.start
                self._leave(place)
                return place.tenant, place.item
        return None

    def drop(self, place: Waiting[T]) -> bool:
        """Whoever waited has gone. False when it was taken or dropped before."""
        if not place.live:
            return False
        self._leave(place)
        # what is dropped stays in the heap until it comes up; never more of it than of what waits
        if len(self._heap) > 2 * self._size + 64:
            self._heap = [one for one in self._heap if one.live]
            heapq.heapify(self._heap)
        return True

    def _make_way(self, tenant: str) -> None:
        if self._size >= self._capacity:
            raise _refused(_FULL, "as much waits as may wait")
        if self.depth(tenant) >= self.room(tenant):
            raise _refused(_SHARE, "this tenant has its share of the queue waiting")

    def _forget(self) -> None:
        """Keep what is remembered of tenants that do not wait within bounds: late ones first, then all of them."""
        if len(self._lines) < 4 * self._capacity:
            return
        for ahead_too in (False, True):
            gone = [
                name
                for name, line in self._lines.items()
                if not line.depth and (ahead_too or line.finish <= self._virtual)
            ]
            if len(self._lines) - len(gone) < 2 * self._capacity or ahead_too:
                for name in gone:
                    del self._lines[name]
                return

    def _leave(self, place: Waiting[T]) -> None:
        place.live = False
        line = self._lines[place.tenant]
        line.depth -= 1
        self._size -= 1
        if not line.depth:
            self._busy.discard(place.tenant)
            self._shares = None
            # a tenant that others have overtaken is forgotten: it starts at the present time again
            if line.finish <= self._virtual:
                del self._lines[place.tenant]
        if not self._size:
            self._rest()

    def _rest(self) -> None:
        """Nothing waits: nobody is ahead of anybody any more."""
        self._virtual = 0.0
        self._heap.clear()
        self._lines.clear()

    def _share(self, tenant: str) -> float:
        if not self._weights:
            return 1.0
        if self._shares is None:
            self._shares = shares({name: self._weights.get(name, 1.0) for name in self._busy}, self._floor)
        return self._shares[tenant] * len(self._busy)


def shares(weights: Mapping[str, float], floor: float) -> dict[str, float]:
    """Each name's part of one, by weight and not below `floor`; an even part where the floor cannot be had."""
    if not weights:
        return {}
    floor = min(floor, 1 / len(weights))
    raised: set[str] = set()
    while True:
        rest = [name for name in weights if name not in raised]
        left, total = 1 - floor * len(raised), sum(weights[name] for name in rest)
        low = {name for name in rest if weights[name] / total * left < floor}
        if not low:
            return {name: floor if name in raised else weights[name] / total * left for name in weights}
        raised |= low


def _refused(reason: str, message: str) -> Refused:
    return too_many(reason, message)
