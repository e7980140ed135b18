"""Revision counters that never go back, whoever publishes (rend-spec-v3 §2.5.1.1, appendix F).

In: a clock, a time period, the highest counter seen. Out: the next counter. Pure.

Directories keep a descriptor until one with a higher counter comes, and never take an equal one. Whoever leads after a
failover must therefore be above everybody before, without asking them: the counter grows with time. And a leader whose
clock was ahead must not lock out the ones after it: whoever has seen its counter goes on from there.
tor's own way, order-preserving encryption of the time under the onion's key, asks for a key that in threshold mode no
node has. What it hides from directories, the publisher's clock to the second, is told by ours: keep the clocks right.
"""

from __future__ import annotations

from ron.tor.descriptor.intropoints import MAX_REVISION
from ron.tor.descriptor.periods import TimePeriod
from ron.tor.descriptor.refused import Reason, Refused

PER_SECOND = 1000
"""Counters there are for each second: publishers of different `tie` never make the same one by the clock alone."""
# What is seen beyond this is no clock's doing; there is room for 2**32 more.
MAX_SEEN = MAX_REVISION - 2**32


def next_revision(period: TimePeriod, now_s: float, *, seen: int = 0, tie: int = 0) -> int:
    """A counter above `seen`, the highest of `period` that this publisher knows of: its own, peers', directories'.

    tie: 0 to 999, another one for each node, so that two leaders of a parted mesh do not publish equals in one second.
    Seconds count from one period's length before its start, the earliest time that its descriptor is due.
    Raises `Refused` for a `seen` that no publisher comes to.
    """
    if not 0 <= seen <= MAX_SEEN:
        raise Refused(Reason.OLD_REVISION, "a revision counter beyond all reason")
    seconds = max(0, int(now_s) - period.shifted(-1).start_s)
    return max(seconds * PER_SECOND + tie % PER_SECOND, seen + 1)
