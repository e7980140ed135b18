"""`Book` of `ports.py`: what all nodes agree on, each entry signed by who wrote it. No sockets, no clock, no files.

In: what this node writes, what others have written. Out: the present values, and word of every change.
An author is known by the key in its own `member/` entry, or by one that was removed, for what it signed before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec
from blake3 import blake3
from nacl.signing import SigningKey

from ron.proto.errors import RonError, backpressure, bad_request, conflict, too_large
from ron.services.balance.mesh import seconding
from ron.services.balance.mesh.codec import Unfit, decode, encode
from ron.services.balance.mesh.entries import (
    MAX_VALUE_BYTES,
    MAX_VERSION,
    MEMBER,
    REMOVED,
    BookKey,
    Entries,
    Entry,
    Removed,
    is_signed_by,
    write,
)
from ron.services.balance.mesh.vouching import Struck
from ron.services.balance.mesh.wire import Reason, Refused
from ron.services.balance.ports import Member

Body = TypeVar("Body", bound=msgspec.Struct)
# An entry's version is at most so far above all that others wrote: a member that forges high ones would leave the rest
# no version to write with.
_LEAP = 2**32
# What may be taken after other entries have been.
_IN_DOUBT = frozenset({"stranger", "stale", "unseconded", "name_taken"})


class _Key(msgspec.Struct):
    key: BookKey


def number_of(name: str, key: bytes) -> int:
    """A member's number in threshold groups, 1 to 65535: it follows from its name and key, so nobody hands them out."""
    return 1 + int.from_bytes(blake3(b"ron-mesh/1 number\0" + key + name.encode()).digest()[:4], "big") % 65535


class LocalBook:
    """One node's copy. entries: from our own disk. needed: how many members have to agree on a removal. vouches: tells
    whether a word for one is its author's. tell: given every entry that this node writes, for the others."""

    def __init__(
        self,
        cluster: bytes,
        author: str,
        signing: SigningKey,
        entries: Iterable[Entry] = (),
        *,
        needed: int = 1,
        vouches: seconding.Vouches | None = None,
        tell: Callable[[Entry], None] = lambda entry: None,
    ) -> None:
        self.cluster = cluster
        self.author = author
        self.entries = Entries(entries)
        self.needed = needed
        # has no book yet, and takes the first that a member gives it
        self.fresh = self.get(MEMBER + author, Member) is None
        self._vouches = vouches
        self.tell = tell
        self._signing = signing
        self._heard: list[Callable[[str], None]] = []

    # -- the port ---------------------------------------------------------------------------------------------------

    def get(self, key: str, shape: type[Body]) -> Body | None:
        """`Book.get`."""
        entry = self.entries[key]
        return _value(entry, shape) if entry is not None else None

    def keys(self, prefix: str) -> tuple[str, ...]:
        """`Book.keys`."""
        return tuple(entry.key for entry in self.entries if entry.value and entry.key.startswith(prefix))

    def author_of(self, key: str) -> str:
        """`Book.author_of`."""
        entry = self.entries[key]
        return entry.author if entry is not None and entry.value else ""

    def put(self, key: str, value: msgspec.Struct | None) -> None:
        """`Book.put`. Raises `RonError`: BadRequest for a key that is none, TooLarge, Busy (Backpressure) when the book
        is full, Conflict when a member has spoilt the versions."""
        version = self.entries.next_version()
        if version > MAX_VERSION:
            raise conflict("the book takes no more writings", hint="its highest version is forged: remove who wrote it")
        self._write(key, value, version)

    def on_change(self, heard: Callable[[str], None]) -> None:
        """`Book.on_change`."""
        self._heard.append(heard)

    # -- for the mesh -----------------------------------------------------------------------------------------------

    def remove(self, name: str) -> None:
        """Write that the member `name`, by the key it has now, is none any more. What it wrote until now stays."""
        member = self.get(MEMBER + name, Member)
        if member is None:
            return
        earlier = self.get(REMOVED + name, Removed)
        known = tuple(key for key in (earlier.keys if earlier else ()) if key != member.key)
        # up to this writing itself: it may be by the one who leaves
        self.put(REMOVED + name, Removed(keys=(*known[-15:], member.key), before=self.entries.next_version()))

    def strike(self, struck: Struck) -> frozenset[str]:
        """Ask for a removal, in this node's name. Who has asked for it by now, this node too."""
        if self.author not in self.asked_by(struck.name, struck.key):
            self.put(seconding.strike_key(struck.name, struck.key, self.author), struck)
        return self.asked_by(struck.name, struck.key)

    def asked_by(self, name: str, key: bytes) -> frozenset[str]:
        """Members that ask for the removal of `name` with this key."""
        return seconding.asked_by(self.entries, name, key)

    def take(self, entries: Iterable[Entry], *, vouched: bool = False) -> list[tuple[Entry, Reason]]:
        """Others' writings: kept where later than what is here. Those that were refused, each with the reason.

        vouched: whoever sent them has proved the cluster's token and is believed who the members are; and who is none
        any more, until this node has had a whole book (`fresh`).
        """
        waiting = sorted(entries, key=lambda entry: (not entry.key.startswith((MEMBER, REMOVED)), entry.version))
        believed = _members(waiting) if vouched else {}
        changed: set[str] = set()
        refused: list[tuple[Entry, Reason]] = []
        doubts: dict[Entry, Reason] = {}
        progress = True
        while waiting and progress:
            unknown: list[Entry] = []
            for entry in waiting:
                try:
                    if self._accept(entry, believed, changed, 1 if vouched and self.fresh else self.needed):
                        changed.add(entry.key)
                except Refused as problem:
                    if problem.reason in _IN_DOUBT:
                        unknown.append(entry)
                        doubts[entry] = problem.reason
                    else:
                        refused.append((entry, problem.reason))
            # what was taken after an entry was looked at may have made its author known
            progress, waiting = len(unknown) < len(waiting), unknown
        self._tell(changed)
        return [*refused, *((entry, doubts[entry]) for entry in waiting)]

    def digest(self) -> bytes:
        """The same on two nodes when their books are."""
        return self.entries.digest()

    # -- judging ----------------------------------------------------------------------------------------------------

    def _accept(self, entry: Entry, believed: dict[str, bytes], changed: set[str], needed: int) -> bool:
        """Whether it is news. Raises `Refused`."""
        known = self.entries[entry.key]
        if known is not None and known.rank >= entry.rank:
            return False
        _check_value(entry)
        if entry.version > self._highest_but(entry.author) + _LEAP:
            raise Refused("stale", f"{entry.author} counts far ahead of all others")
        self._check_author(entry, believed)
        seconding.check(entry, self.entries, needed, self._vouches)
        news = self.entries.merge(entry)
        if news and entry.key.startswith(REMOVED):
            changed |= self._drop_later(entry)
        return news

    def _check_author(self, entry: Entry, believed: dict[str, bytes]) -> None:
        member = self.get(MEMBER + entry.author, Member)
        removed = self.get(REMOVED + entry.author, Removed)
        gone = removed.keys if removed is not None else ()
        present = [key for key in (member.key if member else None, believed.get(entry.author)) if key is not None]
        if any(key not in gone and is_signed_by(entry, key, self.cluster) for key in present):
            return
        if removed is not None and any(is_signed_by(entry, key, self.cluster) for key in gone):
            if entry.version > removed.before:
                raise Refused("removed", f"{entry.author} wrote {entry.key} after its removal")
            return
        # in doubt it is an author whose present key we have not heard of
        raise Refused("bad_signature" if present and removed is None else "stranger", entry.key)

    def _drop_later(self, entry: Entry) -> set[str]:
        """A removal: forget what its keys signed later than it allows. The keys that were lost."""
        name = entry.key.removeprefix(REMOVED)
        removed = _value(entry, Removed)
        if removed is None:
            return set()
        late = [
            other
            for other in self.entries
            if other.author == name
            and other.version > removed.before
            and any(is_signed_by(other, key, self.cluster) for key in removed.keys)
        ]
        for other in late:
            self.entries.drop(other)
        return {other.key for other in late}

    def _highest_but(self, author: str) -> int:
        return max((entry.version for entry in self.entries if entry.author != author), default=0)

    # -- writing ----------------------------------------------------------------------------------------------------

    def _write(self, key: str, value: msgspec.Struct | None, version: int) -> None:
        packed = encode(value) if value is not None else b""
        if len(packed) > MAX_VALUE_BYTES:
            raise too_large(f"the book takes no value of {len(packed)} bytes", hint=f"at most {MAX_VALUE_BYTES}")
        _check_key(key)
        entry = write(key, packed, version, self.author, self._signing, self.cluster)
        try:
            self.entries.merge(entry)
        except Refused as problem:
            raise _full(problem) from None
        changed = {key}
        if key.startswith(REMOVED):
            changed |= self._drop_later(entry)
        self.tell(entry)
        self._tell(changed)

    def _tell(self, changed: set[str]) -> None:
        for key in sorted(changed):
            for heard in self._heard:
                heard(key)


def _value(entry: Entry, shape: type[Body]) -> Body | None:
    try:
        return decode(entry.value, shape) if entry.value else None
    except Unfit:
        return None


def _members(entries: Iterable[Entry]) -> dict[str, bytes]:
    """Names and keys that the entries themselves say, the latest of each name."""
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.key.startswith(MEMBER) and entry.value:
            known = found.get(entry.key)
            found[entry.key] = entry if known is None else max(known, entry, key=lambda e: e.rank)
    members = [member for entry in found.values() if (member := _value(entry, Member)) is not None]
    return {member.name: member.key for member in members}


def _check_value(entry: Entry) -> None:
    """What the mesh itself goes by has to make sense. Raises `Refused` (malformed)."""
    if not entry.value:
        return
    if entry.key.startswith(MEMBER):
        member = _value(entry, Member)
        if member is None or not _is_sound(member, entry.key.removeprefix(MEMBER)):
            raise Refused("malformed", entry.key)
    elif entry.key.startswith(REMOVED) and _value(entry, Removed) is None:
        raise Refused("malformed", entry.key)


def _is_sound(member: Member, name: str) -> bool:
    return (
        member.name == name
        and len(member.key) == 32
        and member.number == number_of(name, member.key)
        and len(member.addresses) <= 8
        and all(3 <= len(address) <= 256 for address in member.addresses)
    )


def _check_key(key: str) -> None:
    try:
        msgspec.convert({"key": key}, _Key)
    except msgspec.ValidationError:
        raise bad_request(f"{key[:100]!r} is no key of the book") from None


def _full(problem: Refused) -> RonError:
    return backpressure(problem.detail)
