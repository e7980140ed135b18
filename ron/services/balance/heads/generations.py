"""The onions that a head has had and has still, one after the other. Pure.

In: whether visitors are wanted, for which masters, how the onions stand. Out: when to make a new one, which to shut,
which to drop. A head that returns does so with a new onion: tor takes five minutes to forgive relays at which
introduction points of the old one have failed, and whoever floods the old points does not know the new ones. The old
onion stays, shut, for as long as it has visitors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

# More only when somebody plays with a head: then the oldest goes, with its visitors.
MAX_GENERATIONS = 8
# A shut onion goes when it had no visitor for so long.
EMPTY_S = 5.0
# One that has no descriptor or no introduction point for so long is replaced; each next one has twice the time.
PATIENCE_S = 20.0
CEILING_S = 320.0


@dataclass(slots=True, kw_only=True, eq=False)
class Generation:
    """An onion of ours. leaving_until_s: it is in no master descriptor any more; whoever read an old one may still come
    until then. shut: nobody new. weak_since_s, empty_since_s: since when it has no introductions, or no sessions."""

    folder: Path
    masters: tuple[str, ...]
    onion: str = ""
    ready: bool = False
    leaving_until_s: float | None = None
    shut: bool = False
    weak_since_s: float | None = None
    empty_since_s: float | None = None


class Wanted(NamedTuple):
    """visitors: any at all. masters: the addresses to answer for. grace_s: between leaving and shut."""

    visitors: bool
    masters: tuple[str, ...]
    grace_s: float


class Step(NamedTuple):
    """make: a new one is needed. shut, drop: those to be shut or dropped now."""

    make: bool
    shut: tuple[Generation, ...]
    drop: tuple[Generation, ...]


@dataclass(slots=True)
class Generations:
    """All there are, the oldest first."""

    all: list[Generation] = field(default_factory=list)
    _patience_s: float = PATIENCE_S

    @property
    def newest(self) -> Generation | None:
        """The last that was made."""
        return self.all[-1] if self.all else None

    @property
    def shown(self) -> Generation | None:
        """The one whose descriptor others should use: the newest that is ready, else the newest."""
        ready = [one for one in self.all if one.ready and not one.shut]
        return ready[-1] if ready else self.newest

    def restarted(self) -> list[Generation]:
        """tor has lost everything: only the newest, if it is open, is worth having again. Those that are not."""
        newest = self.newest
        kept = [newest] if newest is not None and not newest.shut else []
        gone = [one for one in self.all if one not in kept]
        self.all = kept
        for one in kept:
            one.ready, one.weak_since_s = False, None
        return gone

    def step(self, now_s: float, wanted: Wanted, points: Mapping[str, int], sessions: Mapping[str, int]) -> Step:
        """What is to be done. points, sessions: of each onion, at present. The caller does it: appends what it makes,
        removes what it drops."""
        make = wanted.visitors and bool(wanted.masters) and not self._serves(now_s, wanted, points)
        self._leave(now_s, wanted)
        shut = tuple(one for one in self.all if not one.shut and _is_over(one.leaving_until_s, now_s))
        for one in shut:
            one.shut, one.ready = True, False
        return Step(make, shut, self._dropped(now_s, sessions, make=make))

    def _serves(self, now_s: float, wanted: Wanted, points: Mapping[str, int]) -> bool:
        """The newest will do; it stays, if it was leaving."""
        newest = self.newest
        if newest is None or newest.shut or newest.masters != wanted.masters:
            return False
        if newest.ready and points.get(newest.onion, 0):
            newest.leaving_until_s, newest.weak_since_s, self._patience_s = None, None, PATIENCE_S
            return True
        if newest.weak_since_s is None:
            newest.weak_since_s = now_s
        if now_s - newest.weak_since_s < self._patience_s:
            newest.leaving_until_s = None
            return True
        self._patience_s = min(2 * self._patience_s, CEILING_S)
        newest.ready = False
        return False

    def _leave(self, now_s: float, wanted: Wanted) -> None:
        """All when nobody is wanted; an older one when the newest can do without it, or it is of no use itself."""
        newest = self.newest
        can_do = newest is not None and newest.ready
        leaving = [one for one in self.all[:-1] if can_do or not one.ready] if wanted.visitors else self.all
        for one in leaving:
            if one.leaving_until_s is None:
                one.leaving_until_s = now_s + wanted.grace_s

    def _dropped(self, now_s: float, sessions: Mapping[str, int], *, make: bool) -> tuple[Generation, ...]:
        for one in self.all:
            if not one.shut or sessions.get(one.onion, 0):
                one.empty_since_s = None
            elif one.empty_since_s is None:
                one.empty_since_s = now_s
        empty = [one for one in self.all if one.empty_since_s is not None and now_s - one.empty_since_s >= EMPTY_S]
        left = [one for one in self.all if one not in empty]
        return (*empty, *left[: max(0, len(left) + make - MAX_GENERATIONS)])


def _is_over(until_s: float | None, now_s: float) -> bool:
    return until_s is not None and now_s >= until_s
