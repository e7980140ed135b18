"""Letters between signers, as files in a folder that all of them reach: a share on a server, a stick that goes round.

In: bodies to send, the keys of those who take part. Out: what the others wrote, each letter once and with who wrote it.
Each letter is signed with its sender's governance key, so whoever can only write to the folder can spoil a ceremony and
not speak in anybody's name. A body for one receiver is sealed to that key (libsodium's sealed box).
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta
from nacl.exceptions import CryptoError
from nacl.public import SealedBox
from nacl.signing import SigningKey, VerifyKey

from ron.proto.errors import RonError, bad_request, conflict
from ron.proto.governance import KeyId, SignedObject
from ron.services.kms.governance.canonical import decode_canonical, digest
from ron.services.kms.governance.signers import key_id, sign

MAX_BODY = 12 * 1024
MAX_LETTER_BYTES = 32 * 1024
MAX_LETTERS = 2000
SUFFIX = ".letter"
_TOPIC_CHARACTERS = 32


class Letter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is signed. topic: of which ceremony. number: the sender's own, from 0. to: "" for everybody."""

    type: Literal["ron-kms/governance/letter/1"] = "ron-kms/governance/letter/1"
    topic: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    sender: KeyId
    number: Annotated[int, Meta(ge=0, le=MAX_LETTERS)]
    to: Annotated[str, Meta(max_length=32)] = ""
    body: Annotated[str, Meta(max_length=MAX_BODY)]


class Post(NamedTuple):
    """A letter that came. sender: the public key in hex."""

    sender: str
    number: int
    body: bytes


class Postbox:
    """The letters of one ceremony. publics: of all who take part, in hex. key: one's own; None only reads.

    topic: 32 characters of hex that name the ceremony. Raises `RonError` for a folder that is none.
    """

    def __init__(self, folder: Path, publics: Sequence[str], topic: str, key: SigningKey | None = None) -> None:
        if not folder.is_dir():
            raise bad_request(f"{folder} is no folder", "one that all signers reach: --folder")
        self._folder = folder
        self._topic = topic[:_TOPIC_CHARACTERS]
        self._key = key
        self._own = bytes(key.verify_key).hex() if key is not None else ""
        self._publics = {key_id(public): public for public in publics}
        self._seen: set[str] = set()
        self._next = 0
        self.spoilt: set[str] = set()
        """Names of files that are no letters of those who take part."""

    def is_begun(self) -> bool:
        """Does a letter of our own lie there?"""
        return self._key is not None and any(self._own_letters())

    def go_on(self) -> None:
        """Number our next letter after those of ours that lie there."""
        self._next = 1 + max((int(path.stem.rpartition("-")[2]) for path in self._own_letters()), default=-1)

    def put(self, body: bytes, *, to: str = "") -> None:
        """The next letter. to: a public key in hex, for its owner's eyes only. Raises `RonError`."""
        if self._key is None:
            raise AssertionError("unreachable: who only reads writes nothing")
        if to:
            body = SealedBox(VerifyKey(bytes.fromhex(to)).to_curve25519_public_key()).encrypt(body)
        letter = Letter(
            topic=self._topic,
            sender=self._own_id(),
            number=self._next,
            to=key_id(to) if to else "",
            body=base64.b64encode(body).decode(),
        )
        name = f"{self._topic}-{letter.sender[:16]}-{self._next:04}{SUFFIX}"
        self._write(self._folder / name, msgspec.json.encode(sign(letter, self._key)))
        self._next += 1

    def new(self, *, own: bool = False) -> Iterator[Post]:
        """What was written since, sender by sender in order; not what is for another one. own: also what we wrote."""
        for path in sorted(self._folder.glob(f"{self._topic}-*{SUFFIX}"))[: MAX_LETTERS + 1]:
            if path.name in self._seen:
                continue
            try:
                post = self._opened(path)
            except (OSError, RonError, msgspec.MsgspecError, CryptoError, ValueError):
                # looked at again: a folder that is copied between machines may have it in part
                self.spoilt.add(path.name)
                continue
            self.spoilt.discard(path.name)
            self._seen.add(path.name)
            if post is not None and (own or post.sender != self._own):
                yield post

    def _own_letters(self) -> Iterator[Path]:
        return self._folder.glob(f"{self._topic}-{self._own_id()[:16]}-[0-9][0-9][0-9][0-9]{SUFFIX}")

    def _own_id(self) -> str:
        return key_id(self._own) if self._own else ""

    def _write(self, path: Path, content: bytes) -> None:
        """Whole or not at all: the others look at any time."""
        draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        try:
            draft.write_bytes(content)
            os.link(draft, path)
        except FileExistsError:
            raise conflict(f"{path} exists", "an earlier attempt lies there: take an empty folder") from None
        except OSError as error:
            raise bad_request(f"cannot write to {self._folder}: {error.strerror}") from None
        finally:
            draft.unlink(missing_ok=True)

    def _opened(self, path: Path) -> Post | None:
        """Raises various things for what is no letter of those who take part."""
        if path.stat().st_size > MAX_LETTER_BYTES:
            raise ValueError("too long")
        signed = msgspec.json.decode(path.read_bytes(), type=SignedObject)
        content, public = signed.object.encode(), self._publics[_known(signed.key_id, self._publics)]
        VerifyKey(bytes.fromhex(public)).verify(digest(content), base64.b64decode(signed.signature))
        letter = decode_canonical(content, Letter)
        expected = f"{letter.topic}-{letter.sender[:16]}-{letter.number:04}{SUFFIX}"
        if letter.sender != signed.key_id or letter.topic != self._topic or path.name != expected:
            raise ValueError("another letter's name")
        body = base64.b64decode(letter.body, validate=True)
        if letter.to:
            if letter.to != self._own_id() or self._key is None:
                return None
            body = SealedBox(self._key.to_curve25519_private_key()).decrypt(body)
        return Post(public, letter.number, body)


def _known(name: str, publics: dict[str, str]) -> str:
    if name not in publics:
        raise ValueError("a stranger's")
    return name
