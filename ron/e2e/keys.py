"""End-to-end keys: who a message is sealed to, and what opens it.

`PublicKey` travels as one line of text, `KeyPair` rests in a private file (0600). Both know their suite and their key
id (`kid`). Reading and writing files blocks; on the reactor it belongs in a thread.
"""

from __future__ import annotations

import base64
import binascii
import os
import shlex
import stat
from pathlib import Path
from typing import Final, Literal

import cbor2
import msgspec
from blake3 import blake3

from ron.crypto import hpke
from ron.crypto.hpke import Suite
from ron.e2e.errors import KeyFileError, KeyInvalid, UnsupportedSuite
from ron.kernel.files import sync_dir
from ron.proto.errors import ErrorCode

DEFAULT_SUITE: Final = Suite.PQ
KID_BYTES: Final = 16
KID_DOMAIN: Final = "ron-e2e/1 kid"
PUBLIC_LINE_PREFIX: Final = "ron-e2e-pub"
MAX_KEY_FILE_BYTES: Final = 4096
"""Twice the longest key file; a larger file is not a key and is not read."""

_SUITE_BY_NUMBER = {str(int(suite)): suite for suite in Suite}
_SUITE_BY_LABEL = {suite.label: suite for suite in Suite}
_OTHERS_CAN_ACCESS = 0o077


class PublicKey:
    """An address for sealed messages: `suite`, the KEM's `raw` key and its `kid`. Equal when they are equal."""

    __slots__ = ("_hpke", "kid", "raw", "suite")

    def __init__(self, suite: Suite, raw: bytes) -> None:
        """Raises `KeyInvalid` for a wrong length, coefficients out of range or a low-order point."""
        try:
            self._hpke = hpke.PublicKey(suite, raw)
        except hpke.InvalidKeyError as error:
            raise KeyInvalid(str(error)) from None
        self.suite = suite
        self.raw = self._hpke.raw
        self.kid = key_id(suite, self.raw)

    def seal(self, plaintext: bytes, *, info: bytes) -> bytes:
        """One HPKE sealing to this key. For messages use `ron.e2e.seal`."""
        return self._hpke.seal(plaintext, info=info)

    def to_line(self) -> str:
        """`ron-e2e-pub:<suite number>:<base64url of raw, unpadded>`, without a line end."""
        return f"{PUBLIC_LINE_PREFIX}:{int(self.suite)}:{_encode(self.raw)}"

    @classmethod
    def from_line(cls, line: str) -> PublicKey:
        """The inverse of `to_line`, and only that: no padding, no white space, no second spelling."""
        match line.split(":"):
            case [prefix, number, text] if prefix == PUBLIC_LINE_PREFIX:
                suite = _SUITE_BY_NUMBER.get(number)
                if suite is None:
                    raise UnsupportedSuite("public key of an unknown cipher suite", hint="upgrade to use it")
                return cls(suite, _decode(text, suite.public_bytes))
        raise KeyInvalid("not a public key", hint=f"it is one line that starts with {PUBLIC_LINE_PREFIX}:")

    def save(self, path: Path) -> None:
        """Write the line to a new file (0644). Never overwrites; raises `KeyFileError`."""
        _create(path, self.to_line() + "\n", mode=0o644)

    @classmethod
    def load(cls, path: Path) -> PublicKey:
        """The key in a file `save` wrote. Raises `KeyFileError`, `KeyInvalid` or `UnsupportedSuite`."""
        return cls.from_line(_text(path, _read(path, private=False)).strip())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and (self.suite, self.raw) == (other.suite, other.raw)

    def __hash__(self) -> int:
        return hash(self.kid)

    def __repr__(self) -> str:
        return f"<PublicKey {self.suite.label} {self.kid.hex()}>"


class KeyPair:
    """A private key and its `public` half. `seed` is the secret: 32 bytes that never appear in `repr` or an error."""

    __slots__ = ("_hpke", "public")

    def __init__(self, suite: Suite, seed: bytes) -> None:
        """The pair that grows from `seed`. Raises `KeyInvalid` unless it is 32 bytes."""
        try:
            self._hpke = hpke.PrivateKey(suite, seed)
        except hpke.InvalidKeyError as error:
            raise KeyInvalid(str(error)) from None
        self.public = PublicKey(suite, self._hpke.public.raw)

    @classmethod
    def generate(cls, suite: Suite = DEFAULT_SUITE) -> KeyPair:
        """A fresh pair from the operating system's randomness."""
        return cls(suite, hpke.PrivateKey.generate(suite).seed)

    @property
    def suite(self) -> Suite:
        """The suite of both halves."""
        return self.public.suite

    @property
    def seed(self) -> bytes:
        """The secret itself, to be stored and nothing else."""
        return self._hpke.seed

    def open(self, sealed: bytes, *, info: bytes) -> bytes:
        """One HPKE opening; raises `hpke.OpenError`. For messages use `ron.e2e.open`."""
        return self._hpke.open(sealed, info=info)

    def save(self, path: Path) -> None:
        """Write to a new file only its owner can read (0600), on disk when this returns. Never overwrites."""
        record = _PrivateFile(suite=self.suite.label, kid=self.public.kid.hex(), seed=_encode(self.seed))
        _create(path, msgspec.json.encode(record).decode() + "\n", mode=0o600)

    @classmethod
    def load(cls, path: Path) -> KeyPair:
        """The pair in a file `save` wrote. Refuses a file that group or others may touch. Raises `KeyFileError`."""
        try:
            record = msgspec.json.decode(_read(path, private=True), type=_PrivateFile)
            keypair = cls(_SUITE_BY_LABEL[record.suite], _decode(record.seed, hpke.SEED_BYTES))
        except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, KeyInvalid):
            # The cause may quote the file, and the file is a secret.
            raise _not_a_key(path) from None
        if keypair.public.kid.hex() != record.kid:
            raise KeyFileError(f"{path} is damaged: the key id does not match the key", hint="restore a backup")
        return keypair

    def __repr__(self) -> str:
        return f"<KeyPair {self.suite.label} {self.public.kid.hex()}>"


class _PrivateFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The private key file, one JSON object. `kid` is there to be looked at, and to notice damage."""

    kind: Literal["ron-e2e-private-key"] = "ron-e2e-private-key"
    version: Literal[1] = 1
    suite: str
    kid: str
    seed: str

    def __repr__(self) -> str:
        return f"<_PrivateFile {self.suite} {self.kid}>"


def key_id(suite: Suite, raw: bytes) -> bytes:
    """The first 16 bytes of BLAKE3 over deterministic CBOR `[domain, suite, raw]`: short, public, one per suite."""
    return blake3(cbor2.dumps([KID_DOMAIN, int(suite), raw], canonical=True)).digest(length=KID_BYTES)


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _decode(text: str, length: int) -> bytes:
    """Exactly `length` bytes from their one unpadded base64url spelling. Raises `KeyInvalid` without quoting it."""
    if len(text) == -(-length * 4 // 3):  # before decoding: no work for text of another length
        try:
            raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except (binascii.Error, ValueError):
            raw = b""
        # The decoder skips characters it does not know and ignores spare bits; the way back does not.
        if len(raw) == length and _encode(raw) == text:
            return raw
    raise KeyInvalid("not a key: wrong length or not base64url", hint="was it cut or wrapped when copied?")


def _create(path: Path, text: str, *, mode: int) -> None:
    """A new file with `text`, synced together with its directory. A half-written file is removed again."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise KeyFileError(
            f"{path} exists already", code=ErrorCode.CONFLICT, hint="choose another name; keys are never overwritten"
        ) from None
    except OSError as error:
        raise _file_error("write", path, error) from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        sync_dir(path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _file_error("write", path, error) from None


def _read(path: Path, *, private: bool) -> bytes:
    """The content of a key file. Type and permissions are those of the file read, not of a name looked at before."""
    try:
        # O_NONBLOCK: opening a named pipe must not hang. It means nothing to a regular file.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _check_file(path, os.fstat(descriptor).st_mode, private=private)
            octets = os.read(descriptor, MAX_KEY_FILE_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _file_error("read", path, error) from None
    if len(octets) > MAX_KEY_FILE_BYTES:
        raise _not_a_key(path)
    return octets


def _check_file(path: Path, mode: int, *, private: bool) -> None:
    if not stat.S_ISREG(mode):
        raise KeyFileError(f"{path} is not a regular file")
    if private and mode & _OTHERS_CAN_ACCESS:
        raise KeyFileError(
            f"{path} can be accessed by others (mode {stat.S_IMODE(mode):04o})",
            hint=f"chmod 600 {shlex.quote(str(path))}, and make a new key if somebody may have read it",
        )


def _text(path: Path, octets: bytes) -> str:
    try:
        return octets.decode("ascii")
    except UnicodeDecodeError:
        raise _not_a_key(path) from None


def _not_a_key(path: Path) -> KeyFileError:
    return KeyFileError(f"{path} is not a key file", hint="make one with: ronctl e2e keygen --out FILE")


def _file_error(verb: str, path: Path, error: OSError) -> KeyFileError:
    code = ErrorCode.NOT_FOUND if isinstance(error, FileNotFoundError) else ErrorCode.BAD_REQUEST
    return KeyFileError(f"cannot {verb} {path}: {error.strerror}", code=code)
