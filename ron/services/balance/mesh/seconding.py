"""Who is thrown out of a cluster, or loses a name, and on how many members' word. Pure.

In: an entry of the book, the others, how many have to agree (`balance.remove_by`). Out: nothing, or `Refused`.
With one, any member throws out any other, as an operator at any node may want it. With more, a removal counts when so
many members have asked for it (`strike/` entries, each its author's own), and then no single member can end another's
place by any writing: not by a removal, not by giving its name another key, nor can it let a removed one back in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

import msgspec
from blake3 import blake3

from ron.proto.balance import NodeName
from ron.services.balance.mesh.codec import Unfit, decode
from ron.services.balance.mesh.entries import MEMBER, REMOVED, STRIKE, Entries, Entry, Removed
from ron.services.balance.mesh.vouching import Struck
from ron.services.balance.mesh.wire import Refused
from ron.services.balance.ports import Member

Shape = TypeVar("Shape", bound=msgspec.Struct)
# Of a name's removed keys so many are kept at least.
_KEPT = 15


class Vouches(Protocol):
    """Tells whether a word is its author's: `vouching.Vouching`."""

    def is_vouched(self, struck: Struck, author: NodeName) -> bool: ...


def strike_key(name: NodeName, key: bytes, author: NodeName) -> str:
    """Where `author` asks for it: one place for each that asks, so that nobody overwrites another's."""
    return STRIKE + blake3(b"ron-mesh/1 strike\0" + key + f"{name}/{author}".encode()).hexdigest()[:32]


def strikes(entries: Iterable[Entry]) -> list[tuple[Entry, Struck]]:
    """All there are."""
    found = ((entry, _value(entry, Struck)) for entry in entries if entry.key.startswith(STRIKE))
    return [(entry, struck) for entry, struck in found if struck is not None]


def asked_by(entries: Entries, name: NodeName, key: bytes, version: int | None = None) -> frozenset[NodeName]:
    """Who has asked for the removal of `name`, as it is written at `version` (None: now). A name that had been removed
    by then has no word in it: it may be an old certificate's."""
    authors = {entry.author for entry, struck in strikes(entries) if (struck.name, struck.key) == (name, key)}
    return frozenset(author for author in authors if not _was_removed(entries, author, version))


def check(entry: Entry, entries: Entries, needed: int, vouches: Vouches | None) -> None:
    """Raises `Refused`: malformed, unseconded, name_taken. needed: members who have to agree; 1: anybody's word does.
    vouches: None where nobody is asked."""
    if entry.key.startswith(STRIKE):
        struck = _value(entry, Struck)
        own = struck is not None and entry.key == strike_key(struck.name, struck.key, entry.author)
        if struck is None or not own or vouches is None or not vouches.is_vouched(struck, entry.author):
            raise Refused("malformed", f"{entry.key} is not {entry.author}'s own word")
    elif needed > 1 and entry.key.startswith(MEMBER):
        _check_member(entry, entries)
    elif needed > 1 and entry.key.startswith(REMOVED):
        _check_removal(entry, entries, needed)


def _check_member(entry: Entry, entries: Entries) -> None:
    """A member's key is its own to change, until it is removed."""
    name = entry.key.removeprefix(MEMBER)
    known, new = _of(entries, entry.key, Member), _value(entry, Member)
    if known is None or known.key in _removed_keys(entries, name):
        return
    # nor may it strike itself off, and come as a newcomer who is believed: who leaves is removed
    if new is None or (entry.author != name and new.key != known.key):
        raise Refused("name_taken", f"{entry.author} would give {name} another key, or none")


def _check_removal(entry: Entry, entries: Entries, needed: int) -> None:
    name = entry.key.removeprefix(REMOVED)
    known, new = _of(entries, entry.key, Removed), _value(entry, Removed)
    before = known.keys if known is not None else ()
    if new is None or not set(before[-_KEPT:]) <= set(new.keys):
        raise Refused("malformed", f"{entry.author} would let {name} back in")
    added = [key for key in new.keys if key not in before]
    if not added and known is not None and new.before != known.before:
        raise Refused("malformed", f"{entry.author} would move the removal of {name}")
    member = _of(entries, MEMBER + name, Member)
    for key in added:
        leaves = entry.author == name and member is not None and member.key == key
        if not leaves and len(asked_by(entries, name, key, entry.version)) < needed:
            raise Refused("unseconded", f"{entry.author} alone would remove {name}")


def _removed_keys(entries: Entries, name: NodeName) -> tuple[bytes, ...]:
    removed = _of(entries, REMOVED + name, Removed)
    return removed.keys if removed is not None else ()


def _was_removed(entries: Entries, name: NodeName, version: int | None) -> bool:
    removed = entries[REMOVED + name]
    return removed is not None and bool(removed.value) and (version is None or removed.version < version)


def _of(entries: Entries, key: str, shape: type[Shape]) -> Shape | None:
    entry = entries[key]
    return _value(entry, shape) if entry is not None else None


def _value(entry: Entry, shape: type[Shape]) -> Shape | None:
    try:
        return decode(entry.value, shape) if entry.value else None
    except Unfit:
        return None
