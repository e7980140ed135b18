"""Which tor hosts an onion: one of the pool that all apps share, or one of its own. Pure.

In: onions, how loaded the tors of the pool are. Out: names of tors ("roles"), and moves that make the loads even. An
onion is on one tor, or on two while it moves; what one onion on several tors for good needs is a descriptor that names
introduction points of all of them, and `Placement.roles` is where that would be said.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from ron.services.oniond.model import Onion, addresses

# The first of the pool. It is there as long as the runtime is.
HOST_ROLE = "onion"
OWN_PREFIX = "own-"
_POOL = re.compile(rf"{HOST_ROLE}(?:-([1-9][0-9]?))?\Z")


def pool_role(number: int) -> str:
    """The `number`th of the pool, from 1."""
    return HOST_ROLE if number == 1 else f"{HOST_ROLE}-{number}"


def pool_number(role: str) -> int | None:
    """Which of the pool it is; None for a tor that is none of it."""
    match = _POOL.match(role)
    return int(match[1] or 1) if match else None


def role_of(onion: Onion) -> str:
    """Its own tor, whose name tells nobody whose it is; for one that shares, the first of the pool."""
    if onion.isolation == "shared":
        return HOST_ROLE
    return f"{OWN_PREFIX}{hashlib.sha256(onion.id.encode()).hexdigest()[:12]}"


class Leaving(NamedTuple):
    """A tor that an onion is moving away from. services: digests by address, of what it had there when the move began.

    listed: new visitors may still come.
    """

    role: str
    services: Mapping[str, str]
    listed: bool = True


class Move(NamedTuple):
    """An onion that is to be on another tor."""

    onion: str
    source: str
    target: str


class Placement:
    """Where each onion is. pool: tors that take onions, by number."""

    def __init__(self) -> None:
        self.pool: list[str] = [HOST_ROLE]
        self._at: dict[str, str] = {}
        self._leaving: dict[str, Leaving] = {}

    def place(self, onion: Onion, load: Callable[[str], int]) -> str:
        """Its tor; one that shares and has none gets the least loaded of the pool."""
        if onion.isolation != "shared":
            return role_of(onion)
        if onion.id not in self._at:
            self._at[onion.id] = self.pool[0] if len(self.pool) == 1 else min(self.pool, key=load)
        return self._at[onion.id]

    def put(self, onion_id: str, role: str) -> None:
        """It is on `role`, and not moving."""
        self._at[onion_id] = role
        self._leaving.pop(onion_id, None)

    def move(self, onion_id: str, role: str, services: Mapping[str, str]) -> None:
        """It is to be on `role`, and leaves where it is."""
        self._leaving[onion_id] = Leaving(self._at[onion_id], services)
        self._at[onion_id] = role

    def unlist(self, onion_id: str) -> None:
        """No new visitors where it leaves."""
        if onion_id in self._leaving:
            self._leaving[onion_id] = self._leaving[onion_id]._replace(listed=False)

    def leaving(self, onion_id: str) -> Leaving | None:
        """What it moves away from."""
        return self._leaving.get(onion_id)

    def roles(self, onion: Onion) -> tuple[str, ...]:
        """The tors that have it: where it is to be, then where it still is."""
        at = self._at.get(onion.id) if onion.isolation == "shared" else role_of(onion)
        leaving = self._leaving.get(onion.id)
        return tuple(role for role in (at, leaving and leaving.role) if role)

    def on(self, role: str) -> list[str]:
        """Ids of those that are to be there."""
        return [onion_id for onion_id, at in self._at.items() if at == role]

    def numbers(self) -> Counter[str]:
        """How many there are on each."""
        return Counter(self._at.values())

    def forget(self, onion_id: str) -> None:
        """It is gone."""
        self._at.pop(onion_id, None)
        self._leaving.pop(onion_id, None)


class Found(NamedTuple):
    """What another process of ours has left. unsure: addresses that were moving, whose directories may have either
    tor's descriptor. stale: rows of the store that mean nothing any more."""

    at: dict[str, str]
    unsure: frozenset[tuple[str, str]]
    stale: tuple[tuple[str, str], ...]


def find_again(onions: Iterable[Onion], applied: Mapping[tuple[str, str], str], roles: Collection[str]) -> Found:
    """Where each onion was, of the tors `roles` that there are. applied: digests by (tor, address), empty for a tor
    that the onion was moving to: the move is undone, for the tor it comes from certainly has it."""
    at: dict[str, str] = {}
    unsure: set[tuple[str, str]] = set()
    by_address: dict[str, list[str]] = {}
    stale = [(role, address) for role, address in applied if pool_number(role) and role not in roles]
    for role, address in applied:
        if pool_number(role) and role in roles:
            by_address.setdefault(address, []).append(role)
    for onion in onions:
        there = sorted({role for address in addresses(onion) for role in by_address.get(address, ())}, key=_number)
        if onion.isolation != "shared" or not there:
            continue
        whole = [role for role in there if all(applied.get((role, one), "-") for one in addresses(onion))]
        at[onion.id] = (whole or there)[0]
        if len(there) > 1:
            unsure.update((at[onion.id], address) for address in addresses(onion))
            begun = [(role, one) for role in there for one in addresses(onion) if applied.get((role, one)) == ""]
            stale += [row for row in begun if row[0] != at[onion.id]]
    return Found(at, frozenset(unsure), tuple(stale))


def _number(role: str) -> int:
    return pool_number(role) or 0


def even_out(loads: Mapping[str, Mapping[str, int]], targets: Collection[str], most: int) -> list[Move]:
    """At most `most` moves to `targets`, none to and fro, each of which makes the two tors more alike.

    loads: by tor, how much each of its onions is. One that is heavier than all others together stays where it is.
    """
    left = {role: dict(onions) for role, onions in loads.items()}
    sums = {role: sum(onions.values()) for role, onions in left.items()}
    moves: list[Move] = []
    while len(moves) < most:
        source = max((role for role in left if role not in targets), key=lambda role: sums[role], default=None)
        target = min(targets, key=lambda role: sums[role], default=None)
        if source is None or target is None:
            break
        gap = sums[source] - sums[target]
        fitting = [(weight, onion) for onion, weight in left[source].items() if 2 * weight <= gap]
        if not fitting:
            break
        weight, onion = max(fitting)
        del left[source][onion]
        sums[source] -= weight
        sums[target] += weight
        moves.append(Move(onion, source, target))
    return moves


def empty_out(loads: Mapping[str, Mapping[str, int]], source: str) -> list[Move]:
    """All onions of `source` to the others, the heaviest first, each to the least loaded."""
    sums = {role: sum(onions.values()) for role, onions in loads.items() if role != source}
    moves: list[Move] = []
    for onion, weight in sorted(loads.get(source, {}).items(), key=lambda one: (-one[1], one[0])):
        target = min(sums, key=lambda role: (sums[role], _number(role)))
        sums[target] += weight
        moves.append(Move(onion, source, target))
    return moves
