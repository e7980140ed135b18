"""Every key by its name, in memory: who has which, which version is the newest, which still verify.

In: what the store remembers, and every change of it. Out: entries; `RonError` (NotFound) for what is not there. Pure.
A destroyed version keeps its public halves: what it signed stays verifiable (I-5).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ron.proto.clock import rfc3339
from ron.proto.errors import not_found
from ron.proto.kms import Alg, Kid
from ron.services.kms.ports import Half
from ron.services.kms.store import KeyRecord, State, VersionRecord

_NOT_THERE = "there is no such key"
_VERIFIABLE = frozenset({"live", "destroying", "destroyed"})
# Above every character that a key's name may have.
_AFTER_ALL = "\x7f"


class Version(NamedTuple):
    """One version. by_alg: its public halves."""

    kid: Kid
    state: State
    halves: tuple[Half, ...]
    by_alg: dict[Alg, bytes]
    attestation: str
    created_at: str

    @property
    def usable(self) -> bool:
        """May sign and open."""
        return self.state == "live"


class KeyEntry:
    """One key and its versions, oldest first."""

    __slots__ = ("created_at", "hints", "kid", "versions")

    def __init__(self, kid: Kid, hints: dict[str, Any], created_at: str) -> None:
        self.kid = kid
        self.hints = hints
        self.created_at = created_at
        self.versions: dict[int, Version] = {}

    @property
    def head(self) -> int:
        """The newest version that was made, 0 for none."""
        return max((n for n, one in self.versions.items() if one.state in _VERIFIABLE), default=0)

    @property
    def usable(self) -> Version:
        """The newest version that may sign. Raises NotFound."""
        found = [one for one in self.versions.values() if one.usable]
        if not found:
            raise not_found(_NOT_THERE)
        return max(found, key=lambda one: one.kid.version)

    def at(self, version: int) -> Version:
        """That one, or the newest for 0. Raises NotFound."""
        found = self.versions.get(version or self.head)
        if found is None or found.state not in _VERIFIABLE:
            raise not_found(_NOT_THERE)
        return found

    def verifiable(self) -> tuple[Version, ...]:
        """Those that verify, oldest first."""
        return tuple(self.versions[n] for n in sorted(self.versions) if self.versions[n].state in _VERIFIABLE)


class KeyIndex:
    """All keys. Iterating gives every entry with a version that was made."""

    def __init__(self) -> None:
        self._keys: dict[str, KeyEntry] = {}
        self._names: list[str] = []
        # key versions, whatever their state
        self.size = 0

    def load(self, keys: Iterable[KeyRecord], versions: Iterable[VersionRecord]) -> None:
        """Once, at the start."""
        for record in keys:
            self._keys[record.key] = KeyEntry(_kid(record.key), record.hints, rfc3339(record.created_s))
        self._names = sorted(self._keys)
        for version in versions:
            self.put(version)

    def add(self, record: KeyRecord) -> None:
        """A key that is about to get its first version."""
        if record.key not in self._keys:
            self._keys[record.key] = KeyEntry(_kid(record.key), record.hints, rfc3339(record.created_s))
            insort(self._names, record.key)

    def put(self, record: VersionRecord) -> Version:
        """A version as it is now."""
        by_alg = {half.alg: half.public for half in record.halves}
        at = rfc3339(record.created_s)
        made = Version(record.kid, record.state, record.halves, by_alg, record.attestation, at)
        versions = self._keys[record.kid.key].versions
        self.size += record.kid.version not in versions
        versions[record.kid.version] = made
        return made

    def drop(self, kid: Kid) -> None:
        """A version that came to nothing, and its key with the last."""
        entry = self._keys.get(kid.key)
        if entry is None:
            return
        self.size -= entry.versions.pop(kid.version, None) is not None
        if not entry.versions:
            del self._keys[kid.key]
            self._names.pop(bisect_left(self._names, kid.key))

    def entry(self, kid: Kid) -> KeyEntry:
        """The key, whatever the version. Raises NotFound."""
        found = self._keys.get(kid.key)
        if found is None or not found.head:
            raise not_found(_NOT_THERE)
        return found

    def version(self, kid: Kid) -> Version:
        """This version, or the newest. Raises NotFound."""
        return self.entry(kid).at(kid.version)

    def signing(self, kid: Kid) -> Version:
        """What signs for `kid`: the version it names, or the newest. Raises NotFound for one that may not."""
        entry = self.entry(kid)
        found = entry.at(kid.version) if kid.version else entry.usable
        if not found.usable:
            raise not_found("this version is destroyed")
        return found

    def of_tenant(self, tenant: str, after: str = "") -> Iterator[KeyEntry]:
        """The tenant's keys by name, from the first that comes after `after`."""
        start = bisect_right(self._names, max(after, f"{tenant}/"))
        stop = bisect_left(self._names, f"{tenant}/{_AFTER_ALL}")
        yield from (self._keys[name] for name in self._names[start:stop] if self._keys[name].head)

    def everything(self, after: str = "") -> Iterator[KeyEntry]:
        """Every tenant's, from the first that comes after `after`."""
        names = self._names[bisect_right(self._names, after) :]
        yield from (self._keys[name] for name in names if self._keys[name].head)

    def unsettled(self) -> list[Version]:
        """What was begun and not ended: pending or destroying."""
        return [
            one
            for entry in self._keys.values()
            for one in entry.versions.values()
            if one.state in {"pending", "destroying"}
        ]

    def __iter__(self) -> Iterator[KeyEntry]:
        return self.everything()

    def __len__(self) -> int:
        return len(self._keys)


def _kid(key: str) -> Kid:
    tenant, purpose, alg, uuid = key.split("/")
    return Kid(tenant, purpose, alg, uuid)
