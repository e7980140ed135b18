"""Who leads. One rule, the same for all who see the same; no votes, no rounds.

In: who may, how fit each is, since when it runs. Out: a name and why. Seniority makes it stable: a newcomer is never
before anybody, and who comes back after a crash is a newcomer.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import msgspec

from ron.proto.balance import NodeName

# What a node says in `Beat.unfit`. Others understand these; any other text is `Fitness.OUT`.
NOT_PUBLISHING = "could not publish"
WRONG_CLOCK = "its clock is off"
LISTENING = "listening"


class Fitness(enum.IntEnum):
    """How able a node is to lead, best first. OUT: never; the others when there is nobody better, because a descriptor
    by a wrong clock is better than none."""

    FIT = 0
    WRONG_CLOCK = 1
    NOT_PUBLISHING = 2
    OUT = 3


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """born_ms: as it says itself. holds: of how many of the cluster's addresses it has key or share."""

    name: NodeName
    born_ms: int
    fitness: Fitness = Fitness.FIT
    holds: int = 0


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """name: empty when there is nobody. why: for people."""

    name: NodeName = ""
    why: str = "nobody is able to lead"


def rank(candidate: Candidate, promoted: NodeName | None = None) -> tuple[int, Fitness, bool, int, str]:
    """Smallest first. Without the key nobody publishes, so it comes before all else; an operator's word comes before
    seniority, and after being able to."""
    return (-candidate.holds, candidate.fitness, candidate.name != promoted, candidate.born_ms, candidate.name)


def leader(candidates: Iterable[Candidate], promoted: NodeName | None = None) -> Choice:
    """The first in rank of those who are not out. promoted: whom an operator wants."""
    able = sorted(
        (each for each in candidates if each.fitness is not Fitness.OUT), key=lambda each: rank(each, promoted)
    )
    if not able:
        return Choice()
    return Choice(name=able[0].name, why=_why(able, promoted))


def _why(able: list[Candidate], promoted: NodeName | None) -> str:
    first, others = able[0], able[1:]
    if not others:
        return "nobody else is able to"
    if first.fitness is not Fitness.FIT:
        return "nobody is fit; it is the least unfit"
    if first.name == promoted:
        return "promoted by an operator"
    equals = [each for each in others if (each.holds, each.fitness) == (first.holds, first.fitness)]
    if not equals:
        return "nobody else is fit and has the key"
    if min(each.born_ms for each in equals) == first.born_ms:
        return "longest uptime, first by name"
    return "longest uptime"


def fitness_told(fit: bool, unfit: str) -> Fitness:
    """What a node says of itself."""
    if fit:
        return Fitness.FIT
    return {NOT_PUBLISHING: Fitness.NOT_PUBLISHING, WRONG_CLOCK: Fitness.WRONG_CLOCK}.get(unfit, Fitness.OUT)


def wrong_clocks(ahead_s: Mapping[NodeName, float], bound_s: float) -> frozenset[NodeName]:
    """Those whose clock is further than `bound_s` from more than half of all clocks, its own among them.

    ahead_s: how far each is ahead of the same clock, whichever. Of two clocks that differ nobody knows which is wrong:
    neither is. With a majority that agrees this is the distance from the median.
    """
    offsets = list(ahead_s.values())
    return frozenset(
        name for name, own in ahead_s.items() if 2 * sum(abs(other - own) > bound_s for other in offsets) > len(offsets)
    )
