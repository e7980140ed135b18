"""A witness: it says that it saw a log grow, and never saw it shrink or change (C2SP tlog-witness, tlog-cosignature).

In: what a log sends: a checkpoint, the size the witness is said to know, a proof. Out: the witness's signature line,
once what it knows now is on disk. How the log asks is in `asking`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol

import msgspec
from msgspec import Meta
from twisted.logger import Logger

from ron.crypto.merkle import EMPTY_ROOT, HASH_BYTES, verify_consistency
from ron.crypto.notes import (
    MAX_NOTE_BYTES,
    BadNoteError,
    KeySet,
    NoteKey,
    cosignature,
    open_by,
    parse_head,
    parse_note,
)
from ron.kernel.files import write_private
from ron.proto.errors import ErrorCode, RonError, bad_request, conflict, not_found, unavailable
from ron.services.kms.audit.verify import read_keys

MAX_PROOF = 63
# The old size and the proof come before the note: a line of a hash has 45 bytes.
MAX_ASK_BYTES = MAX_NOTE_BYTES + 4096
_OLD = re.compile(rb"old (0|[1-9][0-9]{0,18})\Z")
_log = Logger(namespace="ron.kms.audit")
_Count = Annotated[int, Meta(ge=0)]
_Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Ask(NamedTuple):
    """What a log sends. old: the size that it believes the witness saw last. proof: from `old` to the checkpoint's."""

    old: int
    proof: tuple[bytes, ...]
    note: bytes

    def body(self) -> bytes:
        """As it goes over HTTP: a line `old N`, a line for each hash, an empty line, the note."""
        lines = [b"old %d" % self.old, *map(base64.b64encode, self.proof), b"", b""]
        return b"\n".join(lines) + self.note


def parse_ask(body: bytes) -> Ask:
    """Raises `RonError` (BadRequest) for what is none."""
    if len(body) > MAX_ASK_BYTES:
        raise bad_request("a checkpoint that is too long")
    top, separator, note = body.partition(b"\n\n")
    first, *hashes = top.split(b"\n")
    found = _OLD.match(first)
    if not separator or found is None:
        raise bad_request("this is no checkpoint for a witness", "`old N`, hashes in base64, an empty line, the note")
    if len(hashes) > MAX_PROOF:
        raise bad_request(f"a proof has at most {MAX_PROOF} hashes")
    return Ask(int(found[1]), tuple(map(_hash, hashes)), note)


def _hash(line: bytes) -> bytes:
    try:
        raw = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != HASH_BYTES or base64.b64encode(raw) != line:
        raise bad_request("a line of the proof is no hash in base64")
    return raw


def origin_of(note: bytes) -> str:
    """Whose checkpoint it says that it is; nothing of it is believed. Raises `RonError` (BadRequest)."""
    try:
        return parse_head(parse_note(note).text).origin
    except BadNoteError as error:
        raise bad_request(f"this is no checkpoint: {error}") from None


class Seen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The largest tree of a log that was cosigned."""

    size: _Count = 0
    root: _Hex = EMPTY_ROOT.hex()


def judge(ask: Ask, seen: Seen, origin: str, keys: Sequence[KeySet]) -> tuple[bytes, Seen]:
    """The text to cosign, and what is seen then. Pure.

    Raises `RonError`: 403 for a note the log's keys did not sign, BadRequest for what is malformed or of another log,
    409 Conflict whose hint is the size seen, when `old` is not that, or another tree of that size was seen; 422 for one
    that does not go on from it.
    """
    try:
        text, _keys = open_by(ask.note, keys)
        head = parse_head(text)
    except BadNoteError as error:
        raise RonError(ErrorCode.NO_CAPABILITY, f"the log's keys did not sign that: {error}") from None
    if head.origin != origin or ask.old > head.size or len(ask.proof) > MAX_PROOF:
        raise bad_request("a checkpoint of this log, not below `old`, and a proof of at most 63 hashes")
    if ask.old != seen.size:
        raise conflict(f"another size was cosigned last: {seen.size}", hint=str(seen.size))
    if head.size == seen.size and head.root.hex() != seen.root:
        raise conflict("another tree of this size was cosigned", hint=str(seen.size))
    if not verify_consistency(seen.size, head.size, bytes.fromhex(seen.root), head.root, ask.proof):
        raise RonError(ErrorCode.BAD_REQUEST, "that tree does not go on from the one that was cosigned", status=422)
    return text, Seen(size=head.size, root=head.root.hex())


class WitnessBook(Protocol):
    """What a witness remembers: by the name of a log."""

    def seen(self, origin: str) -> Seen:
        """Nothing yet: a tree of no leaves."""

    def keep(self, origin: str, seen: Seen) -> None:
        """Durably. Raises OSError."""


class WitnessFile:
    """`path`, a JSON object 0600. Raises ValueError for one that is not readable: without it nothing is cosigned."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._seen: dict[str, Seen] = msgspec.json.decode(path.read_bytes(), type=dict[str, Seen])
        except FileNotFoundError:
            self._seen = {}
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ValueError(f"{path} is no book of a witness") from None

    def seen(self, origin: str) -> Seen:
        """See `WitnessBook.seen`."""
        return self._seen.get(origin, Seen())

    def keep(self, origin: str, seen: Seen) -> None:
        """See `WitnessBook.keep`."""
        later = {**self._seen, origin: seen}
        write_private(self._path, msgspec.json.encode(later))
        self._seen = later


class LogFiles:
    """The logs that are witnessed: a file of verifier keys for each, as the log has them in `log.vkeys`; their name is
    the log's. A file that was changed is read anew: a log that has a new key is followed without a restart.

    Raises ValueError for a file that is none, OSError for one that cannot be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._stamps: list[tuple[int, int]] = []
        self._logs: dict[str, list[KeySet]] = {}
        self._read()

    def __len__(self) -> int:
        return len(self._logs)

    def keys(self, origin: str) -> list[KeySet] | None:
        """Those of the log of that name; None for one that is not witnessed. Blocks."""
        try:
            if self._stamped() != self._stamps:
                self._read()
        except (OSError, ValueError) as error:
            # somebody is writing it just now: what was read before holds
            _log.warn("the keys of a log that is witnessed: {why}", event="witness_keys_unread", why=str(error))
        return self._logs.get(origin)

    def _stamped(self) -> list[tuple[int, int]]:
        found = [path.stat() for path in self._paths]
        return [(one.st_mtime_ns, one.st_size) for one in found]

    def _read(self) -> None:
        stamps = self._stamped()
        logs: dict[str, list[KeySet]] = {}
        for path in self._paths:
            for keys in read_keys(path.read_text(encoding="utf-8")):
                if len({key.name for key in keys}) != 1:
                    raise ValueError(f"{path}: the keys of one set have one name, the log's")
                logs.setdefault(keys[0].name, []).append(keys)
        self._logs, self._stamps = logs, stamps


class Witness:
    """Cosigns logs. logs: the keys of one by its name. sign: Ed25519 with the private half of `key`, a COSIGNATURE's;
    now: Unix seconds. Blocks; one call at a time: two at once could cosign two trees of one size."""

    def __init__(
        self,
        key: NoteKey,
        sign: Callable[[bytes], bytes],
        *,
        logs: Callable[[str], Sequence[KeySet] | None],
        book: WitnessBook,
        now: Callable[[], float],
    ) -> None:
        self._key = key
        self._sign = sign
        self._logs = logs
        self._book = book
        self._now = now

    def cosign(self, origin: str, ask: Ask) -> bytes:
        """A signature line. Raises as `judge` does; NotFound for a log it does not know, StoreUnavailable when what it
        saw could not be kept: it signs nothing that it would forget."""
        keys = self._logs(origin)
        if keys is None:
            raise not_found("this witness does not know that log")
        text, seen = judge(ask, self._book.seen(origin), origin, keys)
        try:
            self._book.keep(origin, seen)
        except OSError as error:
            raise unavailable(f"the witness cannot remember: {error.strerror}") from None
        return cosignature(text, self._key, self._sign, int(self._now()))
