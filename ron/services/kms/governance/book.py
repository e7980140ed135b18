"""The book of a service's governance: each word and each event, in order, for good.

In: records. Out: after `append` a record is on disk. A line of canonical JSON each, which names the SHA-256 of the line
before it; what people said is in there as they signed it. A folder of its own, 0700, the file 0600.

What the service itself notes (that something was executed, used, ran out) has no signature: whoever may write the file
could take such lines off its end. `expect` is against that: the audit log has each record's number and hash.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ron.kernel.files import DirectoryLock, sync_dir
from ron.kernel.units import MIB
from ron.proto.errors import RonError, conflict, unavailable
from ron.proto.governance import BookId, SignedObject, SignerSet, Unix
from ron.services.kms.governance.canonical import canonical, decode_canonical, digest

FILE = "book.jsonl"
MAX_BYTES = 64 * MIB
MAX_RECORDS = 20_000
# Kept for votes and freezes when proposals are turned away already
RESERVE = 2_000
NO_RECORD = "0" * 64
BOOK_ID_LENGTH = 32
Kind = Literal["genesis", "propose", "state", "event"]
Event = Literal["", "carry", "expire", "execute", "use", "return", "lapse", "thaw"]


class Genesis(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first record: the book's name and who decides at first."""

    book: BookId
    signers: SignerSet
    micronode: bool


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line. seq: from 0. at: Unix seconds, never less than the record's before. prev: SHA-256 of the line before.

    kind: what is signed is a proposal (`propose`) or a statement (`state`); an `event` is the service's own. actor: the
    capability it came with. proposal: which one an event is about.
    """

    seq: int
    at: Unix
    prev: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    kind: Kind
    actor: Annotated[str, Meta(max_length=200)] = ""
    event: Event = ""
    proposal: Annotated[str, Meta(max_length=36)] = ""
    signed: SignedObject | None = None
    genesis: Genesis | None = None


class Book:
    """directory: None keeps it in memory (amnesia). It is one process's: `open` locks it, `close` lets go."""

    def __init__(
        self, directory: Path | None, *, max_records: int = MAX_RECORDS, sync: Callable[[int], None] = os.fdatasync
    ) -> None:
        self._directory = directory
        self._max = max_records
        self._sync = sync
        self._lock: DirectoryLock | None = None
        self._handle: int | None = None
        self._bytes = 0
        self._broken = False
        self._hashes: list[str] = []
        self.records: list[Record] = []
        self._at = 0

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def head(self) -> str:
        """Hash of the newest record."""
        return self._hashes[-1] if self._hashes else NO_RECORD

    @property
    def newest_at(self) -> int:
        """Its time, 0 in an empty book."""
        return self._at

    def hash_of(self, seq: int) -> str:
        """Of record `seq`."""
        return self._hashes[seq]

    def open(self) -> None:
        """Read what it holds into `records`. A last line without an end is cut off: nobody was told of it.

        Raises `RonError`: Conflict when another process has it, StoreUnavailable when it is not whole.
        """
        if self._directory is None:
            return
        self._lock = DirectoryLock(self._directory)
        try:
            self._read(self._directory / FILE)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def next(self, at: int, **fields: object) -> Record:
        """The record that `append` will take, of `Record`'s other fields. at: at least the newest one's."""
        return msgspec.convert(
            {"seq": len(self), "at": max(at, self._at), "prev": self.head, **fields}, Record, from_attributes=True
        )

    def room(self, *, vital: bool) -> bool:
        """Is there room for a record? vital: also what is kept for votes and freezes."""
        most = self._max if vital else self._max - min(RESERVE, self._max // 10)
        return len(self) < most and self._bytes < (MAX_BYTES if vital else MAX_BYTES * 9 // 10)

    def append(self, record: Record) -> None:
        """On disk when this returns. Raises `RonError` (StoreUnavailable), and then nothing was added.

        It blocks for a disk's flush: people vote a few times a day, and `require` has no way to wait.
        """
        if record.seq != len(self) or record.prev != self.head:
            raise conflict("another record came in between")
        if not self.room(vital=True):
            raise unavailable("the book of governance is full", "archive it, and begin a new one (docs/kms/audit.rst)")
        line = canonical(record)
        if self._directory is not None:
            self._write(line + b"\n")
        self._took(line, record)

    def expect(self, records: int, head: str) -> None:
        """Raise `RonError` (Conflict) unless it has had `records` records the newest of which hashed to `head`."""
        if records > len(self) or (self._hashes[records - 1] if records else NO_RECORD) != head:
            raise conflict(
                "the book of governance is older than the audit log says", "put the newest copy back in its place"
            )

    def archived(self, book: str) -> Book:
        """The one of that name that was in this folder before: `<name>.jsonl`, read and let go of. Raises `RonError`
        (Conflict) where there is none, StoreUnavailable where it is not whole."""
        path = self._directory / f"{book}.jsonl" if self._directory is not None and is_book(book) else None
        if path is None or not path.is_file():
            raise conflict(
                "the audit log knows another book of governance", "put it back, or its archived copy beside this one"
            )
        found = Book(None)
        for line in path.read_bytes().split(b"\n")[:-1]:
            found._check(line)
        return found

    def _took(self, line: bytes, record: Record) -> None:
        self._hashes.append(digest(line).hex())
        self.records.append(record)
        self._bytes += len(line) + 1
        self._at = record.at

    def _write(self, line: bytes) -> None:
        if self._handle is None or self._broken:
            raise unavailable("the book of governance cannot be written", "look at the disk, and restart")
        try:
            written = os.write(self._handle, line)
            if written < len(line):
                raise OSError(f"{written} of {len(line)} bytes")
            self._sync(self._handle)
        except OSError as error:
            self._undo(self._handle)
            raise unavailable(f"the book of governance was not written: {error}", "is the disk full?") from None

    def _undo(self, handle: int) -> None:
        """What was half written must not be found later: nobody was told that it is there."""
        try:
            os.ftruncate(handle, self._bytes)
            os.fsync(handle)
        except OSError:
            self._broken = True

    def _read(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.fchmod(self._handle, 0o600)
        sync_dir(path.parent)
        content = path.read_bytes()
        whole, newline, torn = content.rpartition(b"\n")
        for line in whole.split(b"\n") if newline else ():
            self._check(line)
        if torn:
            os.ftruncate(self._handle, len(content) - len(torn))
            os.fsync(self._handle)

    def _check(self, line: bytes) -> None:
        try:
            record = decode_canonical(line, Record)
        except RonError as error:
            raise _not_whole(len(self), error.message) from None
        if record.seq != len(self) or record.prev != self.head or record.at < self._at:
            raise _not_whole(len(self), "it does not follow the one before it")
        self._took(line, record)


def is_book(name: str) -> bool:
    """Can that be a book's name? It becomes one of a file."""
    return len(name) == BOOK_ID_LENGTH and set(name) <= set("0123456789abcdef")


def _not_whole(seq: int, why: str) -> RonError:
    return unavailable(f"record {seq} of the book of governance is not what it was: {why}", "put a whole copy back")
