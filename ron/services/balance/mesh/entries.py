"""Entries of the book, and how two books become one: the later writing of each key stays. Pure, bounded.

In: signed entries. Out: the same book on every node, in whatever order and how often entries come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec
from blake3 import blake3
from msgspec import Meta
from nacl.signing import SigningKey

from ron.proto.balance import MAX_NODES, NodeName
from ron.services.balance.mesh.wire import INT_MAX, SIGNATURE_BYTES, Key, Refused, verified

MAX_ENTRIES = 1024
# Of one author: a member that writes without end must not leave the others without room.
MAX_BY_AUTHOR = 512
MAX_VALUE_BYTES = 4096
# The highest version there can be; who is there cannot write any more, and is to be removed.
MAX_VERSION = 2**53 - 1
MEMBER, REMOVED, STRIKE, TOKEN = "member/", "removed/", "strike/", "token"
_PREFIX = b"ron-mesh/1 entry\0"

BookKey = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_./-]{0,99}\Z")]
Version = Annotated[int, Meta(ge=1, le=MAX_VERSION)]


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What `author` wrote under `key`. value: MessagePack; empty: ended. version: Lamport's."""

    key: BookKey
    value: Annotated[bytes, Meta(max_length=MAX_VALUE_BYTES)]
    version: Version
    author: NodeName
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]

    @property
    def rank(self) -> tuple[int, str, bytes]:
        """The higher stays. Two writings of one author with one version are ordered by what they say."""
        return self.version, self.author, self.value


class Removed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Under `removed/<name>`. keys: no member has them any more. before: what they signed counts up to this version."""

    keys: Annotated[tuple[Key, ...], Meta(min_length=1, max_length=16)]
    before: Annotated[int, Meta(ge=0, le=INT_MAX)]


def write(key: str, value: bytes, version: int, author: str, signing: SigningKey, cluster: bytes) -> Entry:
    """A signed entry for the book of `cluster`."""
    signature = signing.sign(_signed(key, value, version, author, cluster)).signature
    return Entry(key, value, version, author, signature)


def is_signed_by(entry: Entry, public: bytes, cluster: bytes) -> bool:
    """Whether the Ed25519 key `public` signed `entry` for the book of `cluster`."""
    return verified(public, _signed(entry.key, entry.value, entry.version, entry.author, cluster), entry.signature)


def _signed(key: str, value: bytes, version: int, author: str, cluster: bytes) -> bytes:
    return _PREFIX + msgspec.msgpack.encode((cluster, key, value, version, author))


class Entries:
    """A book's content, without knowing whether signatures are good. Iterates in the keys' order."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._by_key: dict[str, Entry] = {}
        self._digest: bytes | None = None
        for entry in entries:
            self.merge(entry)

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Entry]:
        return iter([self._by_key[key] for key in sorted(self._by_key)])

    def __getitem__(self, key: str) -> Entry | None:
        return self._by_key.get(key)

    def merge(self, entry: Entry) -> bool:
        """Keep `entry` if it is the later writing; whether it was. Raises `Refused` (full) beyond the bounds."""
        known = self._by_key.get(entry.key)
        if known is not None and known.rank >= entry.rank:
            return False
        if known is None:
            self._refuse_if_full(entry)
        self._by_key[entry.key] = entry
        self._digest = None
        return True

    def drop(self, entry: Entry) -> None:
        """Forget it: it should never have been taken."""
        if self._by_key.get(entry.key) is entry:
            del self._by_key[entry.key]
            self._digest = None

    def _refuse_if_full(self, entry: Entry) -> None:
        if len(self._by_key) >= MAX_ENTRIES:
            raise Refused("full", f"the book has {MAX_ENTRIES} entries")
        if sum(1 for other in self._by_key.values() if other.author == entry.author) >= MAX_BY_AUTHOR:
            raise Refused("full", f"{entry.author} has written {MAX_BY_AUTHOR} entries")
        if entry.key.startswith(MEMBER) and sum(1 for key in self._by_key if key.startswith(MEMBER)) >= 4 * MAX_NODES:
            raise Refused("full", f"the book has {4 * MAX_NODES} names of members, old ones too")

    def next_version(self) -> int:
        """One more than the highest. Over `MAX_VERSION` when somebody has spoilt it."""
        return 1 + max((entry.version for entry in self._by_key.values()), default=0)

    def digest(self) -> bytes:
        """32 bytes that are the same for the same content."""
        if self._digest is None:
            content = msgspec.msgpack.encode([(e.key, *e.rank) for e in self])
            self._digest = blake3(content).digest()
        return self._digest
