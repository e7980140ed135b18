"""Signed notes, and the checkpoints of transparency logs in them (C2SP signed-note, tlog-checkpoint, tlog-cosignature).

In: a text and who signs it; or a note from elsewhere and the keys that are trusted. Out: the note; or its text, once
it is known who signed it. Three kinds of keys: Ed25519 (0x01), Ed25519 cosignatures with a time (0x04), and ML-DSA-65,
which has no byte of its own: 0xff and a long name, as the specification has it for such.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from nacl import bindings
from nacl.exceptions import CryptoError

from ron.crypto.merkle import HASH_BYTES, MAX_SIZE

KEY_ID_BYTES = 4
# Sixteen must be taken; a checkpoint of ours with two keys and its witnesses is far below.
MAX_SIGNATURES = 32
MAX_NOTE_BYTES = 256 * 1024
_DASH = "— "
# what str.isspace finds beyond these is a control character, which no note may hold
_NAME = re.compile(r"[^\s+\x00-\x1f]+\Z")
_SIZE = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z")
_VKEY = re.compile(r"([^+]+)\+([0-9a-f]{8})\+(.+)\Z")
_TIME_BYTES = 8


class BadNoteError(ValueError):
    """This is no note, or not by whom it must be. The message says why and quotes nothing of it."""


class UnknownSignerError(BadNoteError):
    """A note that nobody signed whose key is trusted. It may be a good one all the same."""


class Kind(enum.Enum):
    """What a key's signatures are over. The value is what precedes the public key in its id and its `vkey`."""

    ED25519 = b"\x01"
    """The text."""
    COSIGNATURE = b"\x04"
    """The text with a time before it: a witness's."""
    ML_DSA_65 = b"\xffrustyonions/ml-dsa-65\n"
    """The text; pure, with an empty context."""

    @property
    def public_bytes(self) -> int:
        """Length of a raw public key."""
        return 1952 if self is Kind.ML_DSA_65 else 32

    @property
    def signature_bytes(self) -> int:
        """Length of a signature line's bytes after the key id."""
        return {Kind.ED25519: 64, Kind.COSIGNATURE: _TIME_BYTES + 64, Kind.ML_DSA_65: 3309}[self]


class NoteKey(NamedTuple):
    """A public key that signs notes under a name. Made by `note_key` and `parse_vkey`, which check it."""

    name: str
    kind: Kind
    public: bytes

    @property
    def key_id(self) -> bytes:
        """Four bytes; with the name it says which key a signature is by."""
        named = self.name.encode() + b"\n" + self.kind.value + self.public
        return hashlib.sha256(named).digest()[:KEY_ID_BYTES]

    def vkey(self) -> str:
        """The key as people hand it on, a line of text."""
        return f"{self.name}+{self.key_id.hex()}+{_base64(self.kind.value + self.public)}"

    def verifies(self, text: bytes, signature: bytes) -> bool:
        """Is it a signature of `text`? signature: what follows the key id in a signature line."""
        if len(signature) != self.kind.signature_bytes:
            return False
        if self.kind is Kind.ML_DSA_65:
            return _ml_dsa_holds(self.public, text, signature)
        if self.kind is Kind.COSIGNATURE:
            time_s, signature = int.from_bytes(signature[:_TIME_BYTES], "big"), signature[_TIME_BYTES:]
            return time_s < MAX_SIZE and _ed25519_holds(self.public, cosigned_text(text, time_s), signature)
        return _ed25519_holds(self.public, text, signature)


# The keys that one signer has at a time: a note is by it when all of them signed
KeySet = Sequence[NoteKey]


class Signature(NamedTuple):
    """A signature line. Nothing is known of it yet."""

    name: str
    key_id: bytes
    signature: bytes

    def line(self) -> bytes:
        """As it stands in a note, with its end."""
        return f"{_DASH}{self.name} {_base64(self.key_id + self.signature)}\n".encode()


class Note(NamedTuple):
    """A note taken apart. text: with its last newline; not to be believed before `open_note` did."""

    text: bytes
    signatures: tuple[Signature, ...]


class Signer(NamedTuple):
    """A key and what signs with its private half: gets the text, gives the bytes after the key id."""

    key: NoteKey
    sign: Callable[[bytes], bytes]


class Head(NamedTuple):
    """The text of a checkpoint. origin: the log's name. root: of its first `size` leaves."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> bytes:
        """To be signed."""
        lines = (self.origin, str(self.size), _base64(self.root), *self.extensions)
        return "".join(f"{line}\n" for line in lines).encode()


# Keys


def note_key(name: str, kind: Kind, public: bytes) -> NoteKey:
    """Raises BadNoteError for a name or a public key that cannot be one."""
    if not _NAME.match(name):
        raise BadNoteError("the name of a key has no space and no plus, and is not empty")
    if len(public) != kind.public_bytes:
        raise BadNoteError(f"a public key of this kind has {kind.public_bytes} bytes")
    return NoteKey(name, kind, public)


def parse_vkey(text: str) -> NoteKey:
    """A verifier key as `NoteKey.vkey` writes it. Raises BadNoteError."""
    found = _VKEY.match(text)
    if found is None:
        raise BadNoteError("this is no verifier key: NAME+ID+KEY")
    name, key_id, encoded = found.groups()
    material = _decoded(encoded)
    for kind in Kind:
        if material.startswith(kind.value):
            key = note_key(name, kind, material[len(kind.value) :])
            if key.key_id.hex() != key_id:
                raise BadNoteError("the id of a verifier key is that of another key")
            return key
    raise BadNoteError("a verifier key of a kind that is not known here")


# Notes


def parse_note(raw: bytes) -> Note:
    """Raises BadNoteError for what is none, and for one of more than `MAX_SIGNATURES` or `MAX_NOTE_BYTES`."""
    if len(raw) > MAX_NOTE_BYTES:
        raise BadNoteError("a note that is too long")
    try:
        whole = raw.decode()
    except UnicodeDecodeError:
        raise BadNoteError("a note is UTF-8") from None
    if any(char < " " and char != "\n" for char in whole):
        raise BadNoteError("a note holds no control characters")
    text, separator, lines = whole.rpartition("\n\n")
    if not separator or not lines.endswith("\n"):
        raise BadNoteError("a note is a text, an empty line and signatures")
    signatures = lines[:-1].split("\n")
    if len(signatures) > MAX_SIGNATURES:
        raise BadNoteError(f"more than {MAX_SIGNATURES} signatures")
    return Note(f"{text}\n".encode(), tuple(map(_signature, signatures)))


def open_note(raw: bytes, keys: Iterable[NoteKey]) -> tuple[bytes, tuple[NoteKey, ...]]:
    """The text of a note and which of `keys` signed it, at least one. Others' signatures are passed over.

    Raises BadNoteError for what is no note, and as soon as a signature that is said to be by one of them is not;
    UnknownSignerError when there is none by any of them.
    """
    note = parse_note(raw)
    known = {(key.name, key.key_id): key for key in keys}
    signed: dict[NoteKey, None] = {}
    for signature in note.signatures:
        key = known.get((signature.name, signature.key_id))
        if key is not None:
            if not key.verifies(note.text, signature.signature):
                raise BadNoteError("a signature in it is not by the key that it names")
            signed[key] = None
    if not signed:
        raise UnknownSignerError("none of the keys that are trusted signed it")
    return note.text, tuple(signed)


def open_by(raw: bytes, sets: Sequence[KeySet]) -> tuple[bytes, KeySet]:
    """The text of a note and the first of `sets` of which every key signed it: half of a hybrid signature is none.

    Raises BadNoteError as `open_note` does.
    """
    text, signed = open_note(raw, [key for keys in sets for key in keys])
    for keys in sets:
        if keys and all(key in signed for key in keys):
            return text, keys
    raise BadNoteError("not all keys of its signer signed it")


def sign_note(text: bytes, signers: Sequence[Signer]) -> bytes:
    """`text`, which ends in a newline, as a note. Raises BadNoteError for a text that no note can have."""
    raw = text + b"\n" + b"".join(_made(text, signer).line() for signer in signers)
    if not signers or parse_note(raw).text != text:
        raise BadNoteError("a note has a text that ends in a newline, and somebody who signs it")
    return raw


def with_signatures(raw: bytes, lines: Iterable[bytes]) -> bytes:
    """A note with more signature lines, each once. Raises BadNoteError when the whole is none any more."""
    note = parse_note(raw)
    added = dict.fromkeys([*note.signatures, *(_signature(line.decode().removesuffix("\n")) for line in lines)])
    whole = note.text + b"\n" + b"".join(signature.line() for signature in added)
    parse_note(whole)
    return whole


# Checkpoints


def parse_head(text: bytes) -> Head:
    """The text of a checkpoint. Raises BadNoteError for what is none."""
    lines = text.decode().split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
        raise BadNoteError("a checkpoint has three lines or more, none of them empty")
    origin, size, encoded, *extensions = lines[:-1]
    if not _SIZE.match(size) or int(size) >= MAX_SIZE:
        raise BadNoteError("the size of a checkpoint is a number without leading zeros, below 2^63")
    root = _decoded(encoded)
    if len(root) != HASH_BYTES:
        raise BadNoteError(f"the root of a checkpoint has {HASH_BYTES} bytes")
    return Head(origin, int(size), root, tuple(extensions))


def cosigned_text(text: bytes, time_s: int) -> bytes:
    """What a witness signs of a checkpoint's `text` at the Unix time `time_s`."""
    return b"cosignature/v1\ntime %d\n%b" % (time_s, text)


def cosignature(text: bytes, key: NoteKey, sign: Callable[[bytes], bytes], time_s: int) -> bytes:
    """The signature line of a witness. sign: Ed25519 with the private half of `key`, which is of that kind."""
    if key.kind is not Kind.COSIGNATURE or not 0 <= time_s < MAX_SIZE:
        raise BadNoteError("a cosignature is by a key for cosignatures, at a time since 1970")
    signed = time_s.to_bytes(_TIME_BYTES, "big") + sign(cosigned_text(text, time_s))
    return Signature(key.name, key.key_id, signed).line()


def cosigned_at(raw: bytes, keys: Iterable[NoteKey]) -> dict[NoteKey, int]:
    """When each of `keys` (of kind COSIGNATURE) cosigned a note, Unix seconds. What does not hold is left out."""
    note = parse_note(raw)
    times: dict[NoteKey, int] = {}
    for key in keys:
        for name, key_id, signature in note.signatures:
            ours = key.kind is Kind.COSIGNATURE and (name, key_id) == (key.name, key.key_id)
            if ours and key.verifies(note.text, signature):
                times[key] = int.from_bytes(signature[:_TIME_BYTES], "big")
    return times


def _made(text: bytes, signer: Signer) -> Signature:
    signature = signer.sign(text)
    if len(signature) != signer.key.kind.signature_bytes:
        raise BadNoteError("a signature of another length than its kind has")
    return Signature(signer.key.name, signer.key.key_id, signature)


def _signature(line: str) -> Signature:
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not space or not _NAME.match(name):
        raise BadNoteError("a signature line is a dash, a name and a signature")
    signature = _decoded(encoded)
    if len(signature) <= KEY_ID_BYTES:
        raise BadNoteError("a signature line without a signature")
    return Signature(name, signature[:KEY_ID_BYTES], signature[KEY_ID_BYTES:])


def _decoded(encoded: str) -> bytes:
    """Standard base64 in its one form. Raises BadNoteError."""
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not raw or _base64(raw) != encoded:
        raise BadNoteError("base64 that is none, or not in its one form")
    return raw


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _ed25519_holds(public: bytes, message: bytes, signature: bytes) -> bool:
    """libsodium: a point of small order is no key, and S is below the order."""
    try:
        bindings.crypto_sign_open(signature + message, public)
    except (CryptoError, ValueError):
        return False
    return True


def _ml_dsa_holds(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        MLDSA65PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
