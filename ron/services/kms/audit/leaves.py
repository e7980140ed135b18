"""A record as bytes: the one way to write it, the number it has among those of its key, and what was said last.

In: an `AuditEntry`. Out: canonical JSON, sorted keys and no spaces, which is hashed and written as it is. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import msgspec

from ron.proto.errors import bad_request, too_large
from ron.services.kms.ports import AuditEntry

# A continuity record with two keys of two halves has 16 KiB; a bundle of tlog-tiles takes 64 KiB less one.
MAX_LEAF_BYTES = 32 * 1024
# Keys whose last number is in memory. Beyond it those that were not used for longest are forgotten, see `KeySeqs`.
MAX_KEYS = 65_536
# Names of extras that are remembered: ours are a few dozen, and nothing else bounds what a record may say.
MOST_NAMES = 256
# While a log is read, which has no batches, forgetting lags behind by more than the largest batch.
_LAG = 4096
_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(AuditEntry, strict=True)


class BadLeafError(ValueError):
    """These bytes are no record, or not as this log writes one."""


def encode(entry: AuditEntry) -> bytes:
    """The leaf. Raises `RonError`: TooLarge, BadRequest for one that could not be read again, which would be found when
    the log is opened the next time and too late."""
    try:
        leaf = _encoder.encode(entry)
        _decoder.decode(leaf)
    except (UnicodeEncodeError, OverflowError, TypeError, msgspec.MsgspecError):
        raise bad_request("an audit record that cannot be written") from None
    if len(leaf) > MAX_LEAF_BYTES:
        raise too_large(f"an audit record has at most {MAX_LEAF_BYTES} bytes")
    return leaf


def decode(leaf: bytes) -> AuditEntry:
    """The record. Raises BadLeafError for anything that `encode` would not have made."""
    try:
        entry = _decoder.decode(leaf)
        whole = _encoder.encode(entry) == leaf and len(leaf) <= MAX_LEAF_BYTES
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        whole = False
    if not whole:
        raise BadLeafError("it is no record as this log writes them")
    return entry


def numbered(entry: AuditEntry, kid_seq: int) -> AuditEntry:
    """`entry` with its number."""
    return msgspec.structs.replace(entry, kid_seq=kid_seq)


def key_of(entry: AuditEntry) -> str:
    """The key whose records are counted: `entry.kid` without its version; empty for a record that is about none."""
    return entry.kid.partition("#")[0]


class Said:
    """By each name in records' extras, those of the newest record that has it: how what stands beside the log stood
    then (the store, the backend, the book of governance, the log's own key). So an older copy of it is found out."""

    def __init__(self) -> None:
        self._newest: dict[str, Mapping[str, Any]] = {}

    def note(self, entry: AuditEntry) -> None:
        """The next record."""
        for name in entry.extra:
            if name in self._newest or len(self._newest) < MOST_NAMES:
                self._newest[name] = entry.extra

    def newest(self, name: str) -> Mapping[str, Any]:
        """Empty where no record has it."""
        return self._newest.get(name, {})


class KeySeqs:
    """The last number of each key, so that its records are 1, 2, 3 ….

    At most `limit` keys are kept. One that was forgotten goes on above the highest number of all forgotten ones: its
    numbers still only rise, and are without a gap as long as nothing had to be forgotten.
    """

    def __init__(self, limit: int = MAX_KEYS) -> None:
        self._limit = limit
        self._last: OrderedDict[str, int] = OrderedDict()
        self._floor = 0
        self._full = False
        self._fresh: dict[str, int] = {}

    def next(self, key: str) -> int:
        """The number of the next record of `key`, given out for good by `commit`. 0 for no key."""
        if not key:
            return 0
        number = (self._fresh.get(key) or self._last.get(key, self._floor)) + 1
        self._fresh[key] = number
        return number

    def take_back(self, key: str) -> None:
        """The number that `key` was given last is not used."""
        if key and self._fresh[key] - 1 > self._last.get(key, self._floor):
            self._fresh[key] -= 1
        else:
            self._fresh.pop(key, None)

    def commit(self) -> None:
        """What was given out is on disk."""
        for key, number in self._fresh.items():
            self._last[key] = number
            self._last.move_to_end(key)
        self._fresh.clear()
        self._forget(self._limit)

    def rollback(self) -> None:
        """What was given out since the last `commit` never was."""
        self._fresh.clear()

    def accept(self, key: str, number: int) -> bool:
        """`number` was read from a log as the next of `key`. False when it cannot be."""
        if not key:
            return number == 0
        last = self._last.get(key, self._floor)
        fits = number > last if self._full else number == last + 1
        if fits:
            self._last[key] = number
            self._last.move_to_end(key)
            self._full = self._full or len(self._last) > self._limit
            self._forget(self._limit + _LAG)
        return fits

    def _forget(self, limit: int) -> None:
        while len(self._last) > limit:
            _key, number = self._last.popitem(last=False)
            self._floor = max(self._floor, number)
            self._full = True
