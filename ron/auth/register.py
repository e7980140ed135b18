"""What has been minted, for whoever has to look after it: `auth/minted.jsonl`, one line each, never a token.

In: one entry per capability given out. Out: the list, and who descends from whom, so that revoking reaches them all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from twisted.logger import Logger

from ron.auth.sharedfile import SharedLock, Signature, read_regular, signature
from ron.kernel.files import write_private
from ron.proto.errors import backpressure, unavailable

MAX_MINTED = 10_000
MAX_LABEL_CHARS = 64
_FILE_LIMIT_BYTES = 64 * 1024 * 1024
_log = Logger(namespace="ron.auth")


class Minted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One capability that was given out. Unix times; expires_at is None when only its epoch ends it.

    parent: the cap_id of the capability it was minted with, None when the operator minted it from the files.
    """

    cap_id: str
    kid: int
    caveats: tuple[str, ...]
    label: str
    minted_at: float
    expires_at: float | None = None
    parent: str | None = None


class Register:
    """At most `MAX_MINTED` entries. Without a path it lives in memory."""

    def __init__(self, path: Path | None = None, *, lock: SharedLock | None = None) -> None:
        self._path = path
        self._lock = lock or SharedLock(path.parent if path is not None else None)
        self._entries: tuple[Minted, ...] = ()
        self._seen: Signature | None = None

    def append(self, entry: Minted, over: Callable[[Minted], bool]) -> None:
        """Remember `entry`; on disk before this returns. When it is full, entries that are `over` make room.

        Raises `RonError`: Backpressure when there is no room, StoreUnavailable when it cannot be written.
        """
        with self._lock.held():
            entries = self.entries()
            if len(entries) >= MAX_MINTED:
                kept = tuple(e for e in entries if not over(e))
                if len(kept) >= MAX_MINTED:
                    raise backpressure(f"the register of capabilities is full ({MAX_MINTED}): revoke some")
                entries = kept
                self._write(entries)
            self._append(entry)
            self._entries = (*entries, entry)

    def entries(self) -> tuple[Minted, ...]:
        """Everything remembered, oldest first. Raises `RonError` StoreUnavailable."""
        if self._path is not None and signature(self._path) != self._seen:
            seen = signature(self._path)
            self._entries = _decode(read_regular(self._path, _FILE_LIMIT_BYTES) or b"", self._path)
            self._seen = seen
        return self._entries

    def find(self, cap_id: str) -> Minted | None:
        """The entry of `cap_id`, or None."""
        return next((entry for entry in self.entries() if entry.cap_id == cap_id), None)

    def descendants(self, cap_id: str) -> list[Minted]:
        """Whatever was minted with `cap_id`, with those, and so on."""
        entries, family, found = self.entries(), {cap_id}, list[Minted]()
        # a capability is minted after the one it was minted with, so one pass in order finds them all
        for entry in entries:
            if entry.parent in family and entry.cap_id not in family:
                family.add(entry.cap_id)
                found.append(entry)
        return found

    def _append(self, entry: Minted) -> None:
        if self._path is None:
            return
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            handle = os.open(self._path, flags, 0o600)
            with os.fdopen(handle, "r+b", buffering=0) as file:
                file.write(_unfinished(file.fileno()) + msgspec.json.encode(entry) + b"\n")
                os.fsync(file.fileno())
        except OSError as error:
            raise unavailable(f"cannot write {self._path}: {error.strerror}", hint="free or mend the disk") from error
        self._seen = signature(self._path)

    def _write(self, entries: Iterable[Minted]) -> None:
        if self._path is not None:
            write_private(self._path, b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))


def _unfinished(handle: int) -> bytes:
    """A newline when the last writer was cut off in the middle of its line, so that ours stays whole."""
    with contextlib.suppress(OSError):
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            return b"\n"
    return b""


def _decode(raw: bytes, path: Path) -> tuple[Minted, ...]:
    entries, damaged = list[Minted](), 0
    for line in raw.splitlines():
        try:
            entries.append(msgspec.json.decode(line, type=Minted))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            damaged += bool(line.strip())
    if damaged:
        _log.warn(
            "{path}: {damaged} lines cannot be read and are left out",
            event="auth_register_damaged",
            path=str(path),
            damaged=damaged,
        )
    return tuple(entries)
