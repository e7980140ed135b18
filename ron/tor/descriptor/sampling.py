"""Which introduction points get into which descriptor, when there are more than fit.

In: each head's points, how many fit (`ron.tor.descriptor.build.room`), a turn that grows. Out: a fair choice. Pure, and
the same for everybody with the same input: whoever leads next goes on where the last one was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ron.tor.descriptor.hashring import HsDir
from ron.tor.descriptor.intropoints import IntroPoint, relay_of
from ron.tor.descriptor.refused import Refused

# Whether it must have a point, and which it may have, best first.
_Seat = tuple[bool, Sequence[IntroPoint]]


def choose(heads: Mapping[str, Sequence[IntroPoint]], turn: int, room: int) -> tuple[IntroPoint, ...]:
    """At most `room` points: one of each head before a second of any, and so on.

    With more heads than room, each turn takes the next `room` of them, so that any ceil(heads / room) turns in a row
    have them all. With fewer, the places left over go round. A head's own points take turns too. The order of the
    result tells nothing of who is whose.

    No two points at one relay, unless a head would else have none: tor's clients find a point again by its relay
    (`find_desc_intro_point_by_legacy_id`), so they use the first of two only, and when that one's head is dead they ask
    it again and again and never look for another descriptor. It takes a network of a few relays for that to happen.
    """
    names = sorted(name for name, points in heads.items() if points)
    if not names or room <= 0:
        return ()
    # how far along all heads, again and again, this turn begins; each time round a head begins with its next point
    first = turn * room if len(names) > room else turn
    places = range(first, first + min(room, len(names)))
    begun = [(sorted(heads[names[place % len(names)]], key=_by_key), place // len(names)) for place in places]
    seats: list[_Seat] = []
    for depth in range(max(len(points) for points, _ in begun)):
        for points, lap in begun:
            at = (lap + depth) % len(points)
            if depth < len(points):
                seats.append((depth == 0, [*points[at:], *points[:at]]))
    return tuple(sorted(_seated(seats, room), key=_by_key))


def _seated(seats: Sequence[_Seat], room: int) -> list[IntroPoint]:
    """A point for as many seats as there is room, in their order, by augmenting paths: who came first may have to take
    another of its points, and keeps one."""
    taken: dict[str, tuple[int, IntroPoint]] = {}
    doubled: list[IntroPoint] = []

    def seat(number: int, tried: set[str]) -> bool:
        for point in seats[number][1]:
            relay = _relay(point)
            if relay in tried:
                continue
            tried.add(relay)
            if relay not in taken or seat(taken[relay][0], tried):
                taken[relay] = number, point
                return True
        return False

    for number, (needed, wishes) in enumerate(seats):
        if len(taken) + len(doubled) == room:
            break
        if not seat(number, set()) and needed:
            doubled.append(wishes[0])
    return [point for _, point in taken.values()] + doubled


def _relay(point: IntroPoint) -> str:
    try:
        return relay_of(point)[0]
    except Refused:
        return point.auth_key.hex()


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
