"""When a publication is looked after, what was found means, and when it is time for another one. Pure.

In: what was published, what a directory has, a consensus, an age. Out: words that the driver (`repair`) acts on.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from ron.services.balance.publishing.publisher import Placed, Publication
from ron.tor.descriptor.build import LIFETIME_MIN
from ron.tor.descriptor.hashring import Ring

PAUSES_S = (2.0, 10.0, 30.0, 60.0)
"""Before each of the first read-backs; what is lost is mostly lost early."""
STEADY_S = 300.0
REFUSED_PAUSE_S = 0.0
"""When directories refused: they have a higher counter, and until it is known nothing of ours gets there."""
PROBED_EVERY = 6
"""Rounds from one to the next in which the other period's descriptor is given again. Nobody can read that one back, but
a directory that has it refuses it, and one that lost it takes it."""
FIRST_PROBED = 2
EMERGENCY_AGE_S = (LIFETIME_MIN - 30) * 60
"""Directories drop a descriptor at the end of its lifetime, whatever an operator thinks of the pace."""


class Found(enum.StrEnum):
    """What a directory has in place of what it was given: a metric's label."""

    HELD = "held"
    MISSING = "missing"
    OLDER = "older"
    """One of ours, or another publisher's, with a lower counter: it takes ours when given again."""
    ABOVE = "above"
    """Another one whose counter is not lower: it takes ours only under a higher counter."""
    BROKEN = "broken"
    """Nothing that the address has signed: give it ours."""
    SILENT = "silent"


RIVAL_S = 10.0
RIVAL_CEILING_S = 600.0
CALM_S = 60.0


class Rivalry:
    """How long to wait before a counter above ours is outbid: not at all the first time.

    Two publishers who do not know of each other would otherwise go on for ever. Each waits twice as long as the last
    time, until a publication has stood for a minute.
    """

    def __init__(self) -> None:
        self._next_s = 0.0

    def delay_s(self) -> float:
        """Before this one; the next takes longer."""
        delay_s, self._next_s = self._next_s, min(max(RIVAL_S, 2 * self._next_s), RIVAL_CEILING_S)
        return delay_s

    def stood(self, age_s: float) -> None:
        """All directories have ours, which is so old."""
        if age_s >= CALM_S:
            self._next_s = 0.0


GIVE_AGAIN = frozenset({Found.MISSING, Found.OLDER, Found.BROKEN})


class Asked(enum.StrEnum):
    """Why another publication is due: a metric's label."""

    NEW_PERIOD = "new period"
    NEW_DIRECTORIES = "new directories"
    TOO_OLD = "too old"
    INCOMPLETE = "incomplete"
    FOREIGN = "foreign revision"
    """Somebody published above us."""
    UNREACHABLE = "unreachable"
    """Visits as a client fail."""


def pauses_s(*, refused: bool) -> Iterator[float]:
    """How long to wait before each read-back, without end."""
    if refused:
        yield REFUSED_PAUSE_S
    yield from PAUSES_S
    while True:
        yield STEADY_S


def probed(round_number: int) -> bool:
    """Is it the round, counted from 0, to find out about the other period too?"""
    return round_number % PROBED_EVERY == FIRST_PROBED


def judge(wanted: Placed, fingerprint: str, text: str | None, revision: int | None) -> Found:
    """What a directory's answer means. text: None when it has none. revision: of `text`, None when it is none of the
    address's."""
    if text is None:
        return Found.MISSING
    if text.strip() == wanted.texts[fingerprint].strip():
        return Found.HELD
    if revision is None:
        return Found.BROKEN
    return Found.OLDER if revision < wanted.revision else Found.ABOVE


def another_due(publication: Publication, ring: Ring, age_s: float, every_s: float) -> Asked | None:
    """Is another publication due, and why? age_s: of this one. every_s: how old it may become."""
    dues = ring.time.due()
    placed = {each.due: each for each in publication.placed}
    if not any(each.due.period in {due.period for due in dues} for each in publication.placed):
        return Asked.NEW_PERIOD
    if age_s >= min(every_s, EMERGENCY_AGE_S):
        return Asked.TOO_OLD
    known = {each.due.period for each in publication.placed}
    if any(due.period not in known for due in dues):
        # one failed then, or its period was not due yet
        return Asked.INCOMPLETE if len(placed) < len(dues) else Asked.NEW_PERIOD
    for due in dues:
        there = next(each for each in publication.placed if each.due.period == due.period)
        if any(node.fingerprint not in there.texts for node in ring.to_store(there.blinded, due)):
            return Asked.NEW_DIRECTORIES
    return None
