"""Which introduction points get into which descriptor, when there are more than fit.

In: each head's points, how many fit (`ron.tor.descriptor.build.room`), a turn that grows. Out: a fair choice. Pure, and
the same for everybody with the same input: whoever leads next goes on where the last one was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ron.tor.descriptor.hashring import HsDir
from ron.tor.descriptor.intropoints import IntroPoint


def choose(heads: Mapping[str, Sequence[IntroPoint]], turn: int, room: int) -> tuple[IntroPoint, ...]:
    """At most `room` points: one of each head before a second of any, and so on.

    With more heads than room, each turn takes the next `room` of them, so that any ceil(heads / room) turns in a row
    have them all. With fewer, the places left over go round. A head's own points take turns too. The order of the
    result tells nothing of who is whose.
    """
    names = sorted(name for name, points in heads.items() if points)
    if not names or room <= 0:
        return ()
    # how far along all heads, again and again, this turn begins; each time round a head begins with its next point
    first = turn * room if len(names) > room else turn
    places = range(first, first + min(room, len(names)))
    begun = [(sorted(heads[names[place % len(names)]], key=_by_key), place // len(names)) for place in places]
    chosen: list[IntroPoint] = []
    for depth in range(max(len(points) for points, _ in begun)):
        chosen += [points[(lap + depth) % len(points)] for points, lap in begun if depth < len(points)]
    return tuple(sorted(chosen[:room], key=_by_key))


def deal(
    heads: Mapping[str, Sequence[IntroPoint]], directories: Sequence[HsDir], rotation: int, room: int
) -> tuple[tuple[tuple[IntroPoint, ...], tuple[HsDir, ...]], ...]:
    """What each of `directories` gets: as many distinct descriptors as it takes for every head to be in one.

    A client asks one directory at random, so that all heads have visitors at any time. With heads that fit into one
    descriptor it is the same one for all. Never more descriptors than directories: what then does not fit has its turn
    in later rotations.
    """
    present = sum(1 for points in heads.values() if points)
    needed = -(-present // room) if room > 0 else 1
    slots = max(1, min(needed, len(directories)))
    dealt = ((choose(heads, rotation * slots + slot, room), tuple(directories[slot::slots])) for slot in range(slots))
    return tuple(dealt)


def _by_key(point: IntroPoint) -> bytes:
    return point.auth_key
