"""The highest revision counters that this node knows of, whoever made them; and the next ones.

In: its own, what peers say they published, what directories had. Out: counters above all of them. No I/O.

Directories can be asked for one of the two due descriptors only, and refuse without a word of why. So what is learnt of
one period is reckoned over to the other, and one that is refused where nobody can look is followed by one far above.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from ron.proto.balance import Published, ServiceName
from ron.tor.descriptor.periods import TimePeriod
from ron.tor.descriptor.refused import Refused
from ron.tor.descriptor.revisions import MAX_SEEN, PER_SECOND, next_revision

CLIMB = 16
CLIMB_TO = 2**56
"""Far above what tor's own way of counting comes to, for addresses that a tor published before."""
_REMEMBERED = 256
_Slot = tuple[ServiceName, int]


class Counters:
    """tie: 0 to 999, this node's own, so that two leaders never make equals. now_s: Unix time."""

    def __init__(self, *, tie: int, now_s: Callable[[], float]) -> None:
        self._tie = tie
        self._now_s = now_s
        self._seen: dict[_Slot, int] = {}
        self._made: deque[tuple[_Slot, int]] = deque(maxlen=_REMEMBERED)

    def next(self, service: ServiceName, period: TimePeriod) -> int:
        """A counter above everything seen, and seen itself from now on."""
        slot = service, period.number
        seen = self._seen.get(slot, 0)
        made = next_revision(period, self._now_s(), seen=seen, tie=self._tie)
        self._seen[slot] = made
        self._made.append((slot, made))
        return made

    def is_ours(self, service: ServiceName, period: TimePeriod, revision: int) -> bool:
        """Did this node make it, not long ago?"""
        return ((service, period.number), revision) in self._made

    def seen(self, service: ServiceName, period: TimePeriod) -> int:
        """The highest, 0 for none."""
        return self._seen.get((service, period.number), 0)

    def heard(self, told: Published) -> None:
        """A peer says it published this."""
        self._learn((told.service, told.period), told.revision)

    def found(
        self, service: ServiceName, period: TimePeriod, revision: int, others: Collection[TimePeriod] = ()
    ) -> None:
        """A directory has this one, by somebody whose clock may be ahead of ours: by as much in `others`, if so."""
        self._learn((service, period.number), revision)
        ahead_s = revision // PER_SECOND - (self._now_s() - period.shifted(-1).start_s)
        if ahead_s <= 0:
            return
        for other in others:
            if other.number != period.number:
                self._learn((service, other.number), _reckoned(other, self._now_s() + ahead_s))

    def refused(self, service: ServiceName, period: TimePeriod, revision: int) -> None:
        """Directories have something above `revision`, and nobody can tell what. They may also refuse for other
        reasons: counters do not climb for ever."""
        self._learn((service, period.number), min(revision * CLIMB, max(revision, CLIMB_TO)))

    def keep_only(self, periods: Collection[TimePeriod]) -> None:
        """Forget other periods: their descriptors are nobody's concern any more."""
        numbers = {period.number for period in periods}
        self._seen = {slot: seen for slot, seen in self._seen.items() if slot[1] in numbers}

    def _learn(self, slot: _Slot, revision: int) -> None:
        # beyond that is no counter that anybody came to: whoever says so would only have us make none any more
        if 0 <= revision < MAX_SEEN:
            self._seen[slot] = max(self._seen.get(slot, 0), revision)


def _reckoned(period: TimePeriod, at_s: float) -> int:
    try:
        return next_revision(period, at_s, tie=PER_SECOND - 1)
    except (Refused, OverflowError):
        return 0
