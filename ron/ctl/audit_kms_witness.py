"""`ronctl audit verify --witness`: who else has seen a key service's log, and how much of it.

In: the witnesses' verifier keys, the checkpoint that was kept with their cosignatures. Out: when each signed it. That
it is one of this log's is for whoever reads the log: its head is compared there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ron.crypto.notes import BadNoteError, Head, Kind, NoteKey, cosigned_at, parse_head, parse_note, parse_vkey
from ron.ctl.plain import plain_text
from ron.proto.clock import rfc3339
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.sdk import Api
from ron.services.kms.audit.shelf import COSIGNED

PATH = "/v1/kms/audit/witnessed"


class Cosigned(NamedTuple):
    """By whom. size: of the checkpoint that they saw, 0 where there is none. at: when each did, None for who did not.
    quorum: so many are wanted."""

    size: int = 0
    at: Mapping[NoteKey, int | None] = MappingProxyType({})
    quorum: int = 0

    @property
    def enough(self) -> bool:
        """Have so many?"""
        return self.signed >= self.quorum

    @property
    def signed(self) -> int:
        """How many have."""
        return sum(at is not None for at in self.at.values())

    def view(self) -> dict[str, Any]:
        """For JSON."""
        witnesses = [
            {"name": key.name, "key": key.key_id.hex(), "at": None if at is None else rfc3339(at)}
            for key, at in self.at.items()
        ]
        return {"witnessed": self.size, "witnesses": witnesses, "witnesses_enough": self.enough}

    def lines(self) -> list[str]:
        """For people; none where no witness was asked for."""
        if not self.at:
            return []
        wanted = "" if self.enough else f", {self.quorum} wanted"
        lines = [f"witnesses: {self.signed} of {len(self.at)} have seen {self.size} records{wanted}"]
        for key, at in self.at.items():
            when = "has not signed" if at is None else f"at {rfc3339(at)}"
            lines.append(f"  {plain_text(key.name)} ({key.key_id.hex()}) {when}")
        return lines


def witnesses_of(given: Sequence[str], quorum: int | None) -> list[NoteKey]:
    """Keys, or files of them. Raises `RonError` (BadRequest, NotFound) for what is neither."""
    found: dict[NoteKey, None] = {}
    for text in given:
        for line in _lines(text):
            if line.strip() and not line.startswith("#"):
                found[_witness(line.strip())] = None
    if quorum is not None and quorum > len(found):
        raise bad_request(f"--witness-quorum is {quorum}, of {len(found)} witnesses", "name more with --witness")
    return list(found)


def _lines(text: str) -> list[str]:
    path = Path(text)
    try:
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else [text]
    except (OSError, UnicodeDecodeError):
        raise RonError(ErrorCode.NOT_FOUND, f"{path} cannot be read", hint="name another") from None


def _witness(line: str) -> NoteKey:
    try:
        key = parse_vkey(line)
    except BadNoteError as error:
        raise bad_request(f"--witness: {error}", "a verifier key NAME+ID+KEY, or a file of them") from None
    if key.kind is not Kind.COSIGNATURE:
        raise bad_request("--witness: this key is no witness's", "the line in the witness's witness.vkey")
    return key


def cosigned_of(seen: bytes | None, witnesses: Sequence[NoteKey], quorum: int | None) -> Cosigned:
    """Who of `witnesses` signed `seen`. quorum: None for all of them."""
    heads = head_of(seen)
    times = cosigned_at(seen, witnesses) if seen is not None and heads else {}
    wanted = len(witnesses) if quorum is None else quorum
    return Cosigned(heads[0].size if heads else 0, {key: times.get(key) for key in witnesses}, wanted)


def seen_in(directory: Path) -> bytes | None:
    """What a log's directory has of it. Raises OSError."""
    try:
        return (directory / COSIGNED).read_bytes()
    except FileNotFoundError:
        return None


async def seen_at(api: Api) -> bytes | None:
    """What a service has of it. Raises `RonError`."""
    try:
        return (await api.fetch("GET", PATH)).body
    except RonError as error:
        if error.code is ErrorCode.NOT_FOUND:
            return None
        raise


def head_of(note: bytes | None) -> list[Head]:
    """What it says; nothing where it is none, and then nobody has signed it either."""
    try:
        return [parse_head(parse_note(note).text)] if note is not None else []
    except BadNoteError:
        return []
