"""A new key of the log itself: the record that the old one and the new one sign, so that who trusts one can go on.

In: the log's name, where it stands, the keys before and after. Out: a text that both sign, as a signed note for the
audit record's `extra`; and whether such a note is one. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ron.crypto.notes import (
    BadNoteError,
    Head,
    KeySet,
    NoteKey,
    Signer,
    open_by,
    open_note,
    parse_head,
    parse_vkey,
    sign_note,
)
from ron.services.kms.ports import AuditEntry

OP = "rotate"
FIELD = "continuity"
_FIRST = "ron-kms/key-continuity/v1"
_MAX_KEYS = 4
_LINE = re.compile(r"(old|new) (\S.*)\Z")


class Continuity(NamedTuple):
    """From `head` on the log is signed with `new`, and no more with `old`."""

    head: Head
    old: tuple[NoteKey, ...]
    new: tuple[NoteKey, ...]

    def text(self) -> bytes:
        """To be signed by all of `old` and all of `new`."""
        lines = [_FIRST, *(f"old {key.vkey()}" for key in self.old), *(f"new {key.vkey()}" for key in self.new)]
        return "".join(f"{line}\n" for line in lines).encode() + self.head.text()


def build(head: Head, old: Sequence[Signer], new: Sequence[Signer]) -> bytes:
    """The note. Raises BadNoteError for no keys, more than four, or the same before and after."""
    record = Continuity(head, tuple(one.key for one in old), tuple(one.key for one in new))
    _check(record)
    return sign_note(record.text(), [*old, *new])


def unsigned(head: Head, old: KeySet, new: KeySet) -> bytes:
    """The text alone, for signers that are not here. Raises as `build` does."""
    record = Continuity(head, tuple(old), tuple(new))
    _check(record)
    return record.text()


def verify(note: bytes, trusted: KeySet) -> Continuity:
    """What a note says, signed by all of `trusted`, which are its old keys, and by all its new ones.

    Raises BadNoteError. That its head is one of the log's is for whoever reads the log.
    """
    text, _keys = open_by(note, [trusted])
    record = _parsed(text)
    if set(record.old) != set(trusted):
        raise BadNoteError("it is about other keys than those that are trusted")
    _text, signed = open_note(note, record.new)
    if set(signed) != set(record.new):
        raise BadNoteError("not all of its new keys signed it")
    return record


def of(entry: AuditEntry) -> bytes | None:
    """The note in a record, if it is a continuity record."""
    note = entry.extra.get(FIELD) if entry.op == OP else None
    return note.encode() if isinstance(note, str) else None


def _parsed(text: bytes) -> Continuity:
    first, *lines = text.decode().split("\n")
    if first != _FIRST:
        raise BadNoteError("this is no continuity record")
    keys: dict[str, list[NoteKey]] = {"old": [], "new": []}
    while lines and (found := _LINE.match(lines[0])):
        keys[found[1]].append(parse_vkey(found[2]))
        lines.pop(0)
    record = Continuity(parse_head("\n".join(lines).encode()), tuple(keys["old"]), tuple(keys["new"]))
    _check(record)
    if record.text() != text:
        raise BadNoteError("a continuity record in another form")
    return record


def _check(record: Continuity) -> None:
    for keys in (record.old, record.new):
        if not 0 < len(keys) <= _MAX_KEYS or len(set(keys)) != len(keys):
            raise BadNoteError(f"a continuity record has one to {_MAX_KEYS} keys before and after")
    if set(record.old) & set(record.new):
        raise BadNoteError("a key that is new is not an old one")
