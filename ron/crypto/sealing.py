"""Secrets at rest: a master key under a passphrase, and blobs sealed under the master key.

In: a passphrase, labels, small plaintexts. Out: bytes that may lie on a disk somebody else reads and writes; any change
to them is found out. scrypt runs once, when the master key is opened; each blob has a key of its own.
Formats, big-endian: root = magic ‖ log2 N ‖ r ‖ p ‖ salt(32) ‖ blob; blob = magic ‖ AEAD ‖ salt(32) ‖ ciphertext ‖ tag.
"""

from __future__ import annotations

import enum
import os
import struct
from contextlib import AbstractContextManager
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.utils import Buffer

from ron.crypto.kdf import SECRET_BYTES, Label, subkey
from ron.crypto.secrets import SecretBuffer

MAX_PLAINTEXT_BYTES = 16 * 1024 * 1024
SALT_BYTES = 32
TAG_BYTES = 16
MIN_PASSPHRASE_BYTES = 8
MAX_PASSPHRASE_BYTES = 1024
# 128 · N · r bytes of memory: what a file may make us spend before we know who wrote it
MAX_SCRYPT_BYTES = 512 * 1024 * 1024
_BLOB_MAGIC, _ROOT_MAGIC = b"RKB\x01", b"RKR\x01"
_BLOB = struct.Struct(f">4sB{SALT_BYTES}s")
_ROOT = struct.Struct(f">4sBBB{SALT_BYTES}s")
BLOB_OVERHEAD = _BLOB.size + TAG_BYTES
_MASTER = Label("root", "master", "key")


class Aead(enum.IntEnum):
    """The number is the one in the blob and never changes meaning."""

    CHACHA20_POLY1305 = 1
    AES_256_GCM = 2

    @property
    def label(self) -> str:
        """As the configuration has it."""
        return "chacha20poly1305" if self is Aead.CHACHA20_POLY1305 else "aes-gcm"


class BrokenSealError(ValueError):
    """Not sealed under this key and label, cut short, or changed since. It does not say which."""


class WrongPassphraseError(ValueError):
    """The root does not open: a wrong passphrase, or a changed root. Nobody can tell the two apart."""


class ScryptCost(NamedTuple):
    """RFC 7914: 128 · 2^log_n · r bytes of memory (default: 128 MiB, half a second), `p` times over."""

    log_n: int = 17
    r: int = 8
    p: int = 1

    def check(self) -> None:
        """Raises `BrokenSealError` for a cost that nobody here would have chosen."""
        fits = 4 <= self.log_n <= 22 and 1 <= self.r <= 32 and 1 <= self.p <= 4
        if not fits or 128 * self.r << self.log_n > MAX_SCRYPT_BYTES:
            raise BrokenSealError("the scrypt parameters are out of bounds")


class Sealer:
    """Seals and opens under one master key, which it keeps in locked memory until `close`. From any thread."""

    __slots__ = ("_aead", "_master")

    def __init__(self, master: SecretBuffer, aead: Aead = Aead.CHACHA20_POLY1305) -> None:
        """master: 32 bytes, taken over. aead: of new blobs; `open` takes both. Raises `ValueError` for a wrong size."""
        if len(master) != SECRET_BYTES:
            raise ValueError(f"a master key has {SECRET_BYTES} bytes")
        self._master = master
        self._aead = aead

    def seal(self, label: Label, plaintext: Buffer) -> bytes:
        """`plaintext` (at most 16 MiB) and `BLOB_OVERHEAD` bytes. Raises `ValueError` for a longer one."""
        if memoryview(plaintext).nbytes > MAX_PLAINTEXT_BYTES:
            raise ValueError(f"at most {MAX_PLAINTEXT_BYTES} bytes are sealed at a time")
        head = _BLOB.pack(_BLOB_MAGIC, self._aead, os.urandom(SALT_BYTES))
        return head + self._engine(label, head).encrypt(_nonce(), plaintext, head)

    def open(self, label: Label, blob: bytes) -> bytearray:
        """What was sealed under `label`: overwrite it after use. Raises `BrokenSealError`, whatever the bytes are."""
        if not BLOB_OVERHEAD <= len(blob) <= BLOB_OVERHEAD + MAX_PLAINTEXT_BYTES:
            raise BrokenSealError("not a sealed blob")
        head, sealed = blob[: _BLOB.size], memoryview(blob)[_BLOB.size :]
        opened = bytearray(len(sealed) - TAG_BYTES)
        try:
            self._engine(label, head).decrypt_into(_nonce(), sealed, head, opened)
        except InvalidTag:
            raise BrokenSealError("a sealed blob was changed, or is of another key") from None
        return opened

    def lend(self) -> AbstractContextManager[memoryview]:
        """The master key itself, for whoever seals it in another way. Raises `ValueError` once it was wiped."""
        return self._master.open()

    def close(self) -> None:
        """Wipe the master key. `seal` and `open` raise `ValueError` from then on."""
        self._master.close()

    def __repr__(self) -> str:
        return f"<Sealer {self._aead.label}>"

    def _engine(self, label: Label, head: bytes) -> ChaCha20Poly1305 | AESGCM:
        magic, number, salt = _BLOB.unpack(head)
        if magic != _BLOB_MAGIC or number not in set(Aead):
            raise BrokenSealError("not a sealed blob of a version this program knows")
        aead = Aead(number)
        # the AEAD is part of the label: one key never serves two of them
        bound = label._replace(ctx=f"{label.ctx}/{aead.label}")
        with self._master.open() as master:
            key = subkey(master, bound, salt=salt)
        try:
            return ChaCha20Poly1305(key) if aead is Aead.CHACHA20_POLY1305 else AESGCM(key)
        finally:
            key[:] = bytes(len(key))


def new_root(passphrase: Buffer, cost: ScryptCost, aead: Aead, *, allow_unlocked: bool = False) -> tuple[bytes, Sealer]:
    """A fresh random master key: sealed under `passphrase` for the disk, and ready for use.

    The master key is random rather than scrypt's own output, so that a new passphrase leaves the blobs as they are.
    Raises `ValueError` for a passphrase under 8 or over 1024 bytes, `NotLockedError` as `SecretBuffer`.
    """
    sealer = fresh_sealer(aead, allow_unlocked=allow_unlocked)
    try:
        return reseal_root(sealer, passphrase, cost, aead, allow_unlocked=allow_unlocked), sealer
    except BaseException:
        sealer.close()
        raise


def reseal_root(
    sealer: Sealer, passphrase: Buffer, cost: ScryptCost, aead: Aead, *, allow_unlocked: bool = False
) -> bytes:
    """The same master key under another passphrase. Raises as `new_root`."""
    check_passphrase(passphrase)
    cost.check()
    head = _ROOT.pack(_ROOT_MAGIC, *cost, os.urandom(SALT_BYTES))
    outer = _under_passphrase(head, passphrase, aead, allow_unlocked=allow_unlocked)
    try:
        with sealer.lend() as master:
            return head + outer.seal(_MASTER, master)
    finally:
        outer.close()


def open_root(root: bytes, passphrase: Buffer, aead: Aead, *, allow_unlocked: bool = False) -> Sealer:
    """The master key that `new_root` sealed. aead: for new blobs. Half a second of work at the usual cost.

    Raises `WrongPassphraseError`, `BrokenSealError` for what is no root, `NotLockedError` as `SecretBuffer`.
    """
    if len(root) != _ROOT.size + BLOB_OVERHEAD + SECRET_BYTES or not root.startswith(_ROOT_MAGIC):
        raise BrokenSealError("not a root of a version this program knows")
    head = root[: _ROOT.size]
    outer = _under_passphrase(head, passphrase, aead, allow_unlocked=allow_unlocked)
    try:
        master = outer.open(_MASTER, root[_ROOT.size :])
    except BrokenSealError:
        raise WrongPassphraseError("the passphrase is wrong, or the root was changed") from None
    finally:
        outer.close()
    return Sealer(SecretBuffer.taking(master, allow_unlocked=allow_unlocked), aead)


def fresh_sealer(aead: Aead = Aead.CHACHA20_POLY1305, *, allow_unlocked: bool = False) -> Sealer:
    """A new random master key, which lives as long as this object unless somebody seals it."""
    master = bytearray(os.urandom(SECRET_BYTES))
    return Sealer(SecretBuffer.taking(master, allow_unlocked=allow_unlocked), aead)


def check_passphrase(passphrase: Buffer) -> None:
    """Raises `ValueError` for one under 8 or over 1024 bytes."""
    if not MIN_PASSPHRASE_BYTES <= memoryview(passphrase).nbytes <= MAX_PASSPHRASE_BYTES:
        raise ValueError(f"a passphrase has {MIN_PASSPHRASE_BYTES} to {MAX_PASSPHRASE_BYTES} bytes")


def _under_passphrase(head: bytes, passphrase: Buffer, aead: Aead, *, allow_unlocked: bool) -> Sealer:
    """The header is bound by itself: every field of it goes into scrypt, or says how to read the rest."""
    _magic, *numbers, salt = _ROOT.unpack(head)
    cost = ScryptCost(*numbers)
    cost.check()
    grown = SecretBuffer(SECRET_BYTES, allow_unlocked=allow_unlocked)
    with grown.open() as view:
        Scrypt(salt, SECRET_BYTES, 1 << cost.log_n, cost.r, cost.p).derive_into(passphrase, view)
    return Sealer(grown, aead)


def _nonce() -> bytes:
    """Always zero: the key is used for one message. It comes of 32 fresh random bytes for each blob, so that a nonce
    meets a key a second time with probability 2⁻¹²⁸ after 2⁶⁴ blobs, whatever was restored, copied or counted wrong."""
    return bytes(12)
