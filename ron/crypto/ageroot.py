"""The master key of `ron.crypto.sealing` in an age file (age-encryption.org/v1) under a passphrase.

In: a passphrase. Out: a file that `age --decrypt` opens too, for operators who keep their backups with it. The engine
is rage, through `pyrage` (extra `age`), which chooses the cost of scrypt by itself: about a second.
"""

from __future__ import annotations

from typing import Any

from cryptography.utils import Buffer

from ron.crypto.kdf import SECRET_BYTES
from ron.crypto.sealing import Aead, BrokenSealError, Sealer, WrongPassphraseError, check_passphrase, fresh_sealer
from ron.crypto.secrets import SecretBuffer
from ron.proto.errors import ErrorCode, RonError

MAGIC = b"age-encryption.org/v1\n"
MAX_ROOT_BYTES = 4096


def new_root(passphrase: Buffer, aead: Aead, *, allow_unlocked: bool = False) -> tuple[bytes, Sealer]:
    """As `sealing.new_root`. Raises `RonError` (Unsupported) where pyrage is not installed."""
    sealer = fresh_sealer(aead, allow_unlocked=allow_unlocked)
    try:
        return reseal_root(sealer, passphrase), sealer
    except BaseException:
        sealer.close()
        raise


def reseal_root(sealer: Sealer, passphrase: Buffer) -> bytes:
    """The same master key under another passphrase. Raises as `new_root`, `ValueError` also for no UTF-8."""
    check_passphrase(passphrase)
    engine = _engine()
    # the engine takes `bytes` and `str`: copies that CPython may keep for a while, see docs/vault.rst
    with sealer.lend() as master:
        made: bytes = engine.passphrase.encrypt(bytes(master), bytes(passphrase).decode())
    return made


def open_root(root: bytes, passphrase: Buffer, aead: Aead, *, allow_unlocked: bool = False) -> Sealer:
    """As `sealing.open_root`. age bounds the work that a file may ask for."""
    if not root.startswith(MAGIC) or len(root) > MAX_ROOT_BYTES:
        raise BrokenSealError("not an age file")
    engine = _engine()
    try:
        master = bytearray(engine.passphrase.decrypt(root, bytes(passphrase).decode()))
    except (engine.DecryptError, UnicodeDecodeError):
        raise WrongPassphraseError("the passphrase is wrong, or the root was changed") from None
    if len(master) != SECRET_BYTES:
        raise BrokenSealError("the age file holds something else")
    return Sealer(SecretBuffer.taking(master, allow_unlocked=allow_unlocked), aead)


def _engine() -> Any:
    try:
        import pyrage
    except ImportError:
        raise RonError(
            ErrorCode.UNSUPPORTED,
            "the key store is an age file, and pyrage is not installed",
            hint='pip install "rustyonions[age]", or set backends.file.kdf to scrypt for a new store',
        ) from None
    return pyrage
