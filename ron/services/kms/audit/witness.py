"""Cosignatures: another node says that it saw this log grow, and never saw it shrink or change (C2SP tlog-witness).

In: a checkpoint, the size the witness is said to know, a proof. Out: its signature line, once what it knows now is on
disk; and for the log, the lines of those it trusts. Both sides speak through callables: how they are reached is not
their business.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec
from msgspec import Meta
from twisted.internet.defer import TimeoutError as DeadlineError

from ron.crypto.merkle import EMPTY_ROOT, verify_consistency
from ron.crypto.notes import (
    MAX_SIGNATURES,
    BadNoteError,
    KeySet,
    NoteKey,
    cosignature,
    cosigned_at,
    open_by,
    parse_head,
    with_signatures,
)
from ron.kernel.aio import within
from ron.kernel.files import write_private
from ron.proto.errors import ErrorCode, RonError, bad_request, conflict, not_found, unavailable
from ron.services.kms.ports import Checkpoint

MAX_PROOF = 63
_Count = Annotated[int, Meta(ge=0)]
_Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Ask(NamedTuple):
    """What a log sends. old: the size that it believes the witness saw last. proof: from `old` to the checkpoint's."""

    old: int
    proof: tuple[bytes, ...]
    note: bytes


class Seen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The largest tree of a log that was cosigned."""

    size: _Count = 0
    root: _Hex = EMPTY_ROOT.hex()


def judge(ask: Ask, seen: Seen, origin: str, keys: Sequence[KeySet]) -> tuple[bytes, Seen]:
    """The text to cosign, and what is seen then. Pure.

    Raises `RonError`: 403 for a note the log's keys did not sign, BadRequest for what is malformed or of another log,
    409 Conflict whose hint is the size seen, when `old` is not that; 422 for a tree that does not go on from it.
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


class Witness:
    """Cosigns the logs of `logs` (name → its keys). sign: Ed25519 with the private half of `key`, of kind COSIGNATURE;
    now: Unix seconds. Blocks; one call at a time: two at once could cosign two trees of one size."""

    def __init__(
        self,
        key: NoteKey,
        sign: Callable[[bytes], bytes],
        *,
        logs: Mapping[str, Sequence[KeySet]],
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
        keys = self._logs.get(origin)
        if keys is None:
            raise not_found("this witness does not know that log")
        text, seen = judge(ask, self._book.seen(origin), origin, keys)
        try:
            self._book.keep(origin, seen)
        except OSError as error:
            raise unavailable(f"the witness cannot remember: {error.strerror}") from None
        return cosignature(text, self._key, self._sign, int(self._now()))


# The side of the log

AskWitness = Callable[[str, Ask], Awaitable[bytes]]
_SIZE = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z")


class Witnesses:
    """The witnesses that a log asks. ask: name of the witness' key → how it is asked; deadline_s: for each."""

    def __init__(
        self,
        origin: str,
        witnesses: Mapping[NoteKey, AskWitness],
        *,
        consistency: Callable[[int, int], Sequence[bytes]],
        reactor: Any,
        deadline_s: float = 5.0,
    ) -> None:
        if len(witnesses) > MAX_SIGNATURES // 2:
            raise ValueError("more witnesses than a note has room for")
        self._origin = origin
        self._witnesses = witnesses
        self._consistency = consistency
        self._reactor = reactor
        self._deadline_s = deadline_s
        self._known: dict[NoteKey, int] = {}

    async def collect(self, checkpoint: Checkpoint) -> tuple[list[bytes], dict[str, RonError]]:
        """The lines of those who cosigned `checkpoint`, and why the others (by name) did not. One after the other."""
        lines: list[bytes] = []
        refused: dict[str, RonError] = {}
        for key, ask in self._witnesses.items():
            try:
                lines.append(await self._line(key, ask, checkpoint))
            except DeadlineError:
                refused[key.name] = RonError(ErrorCode.TIMEOUT, "no answer in time")
            except RonError as error:
                refused[key.name] = error
        return lines, refused

    async def _line(self, key: NoteKey, ask: AskWitness, checkpoint: Checkpoint) -> bytes:
        try:
            line = await self._asked(key, ask, checkpoint)
        except RonError as error:
            # it says what it saw last; the second answer counts
            if error.code is not ErrorCode.CONFLICT or not _SIZE.match(error.hint or ""):
                raise
            self._known[key] = int(error.hint or "")
            line = await self._asked(key, ask, checkpoint)
        try:
            valid = cosigned_at(with_signatures(checkpoint.note, [line]), [key])
        except (BadNoteError, UnicodeDecodeError):
            valid = {}
        if not valid:
            raise bad_request("the witness answered with something else than its cosignature")
        self._known[key] = checkpoint.size
        return line

    async def _asked(self, key: NoteKey, ask: AskWitness, checkpoint: Checkpoint) -> bytes:
        old = self._known.get(key, 0)
        if old > checkpoint.size:
            # it saw more than there is: either we forgot, or it is another log
            raise conflict(f"the witness saw {old} records, the checkpoint is of {checkpoint.size}")
        # of nothing, and of itself, the path is empty
        proof = tuple(self._consistency(old, checkpoint.size))

        async def asking() -> bytes:
            return await ask(self._origin, Ask(old, proof, checkpoint.note))

        return await within(self._reactor, self._deadline_s, asking())
