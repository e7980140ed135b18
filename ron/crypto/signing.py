"""Signatures of one key half: Ed25519 (RFC 8032, PyNaCl) and ML-DSA-65 (FIPS 204 pure, empty context, `cryptography`).

In: 32-byte seeds, messages, raw public keys. Out: raw signatures and yes or no. Strict: one spelling of a key and of a
signature, exact lengths, no points of small order. A private half shows no byte of itself. Pure: no clock, no disk.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import cffi
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.utils import Buffer
from nacl import bindings
from nacl.exceptions import BadSignatureError, CryptoError

from ron.crypto import group
from ron.crypto.secrets import SecretBuffer, Uncopied
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg

SEED_BYTES = 32
PUBLIC_BYTES = {Alg.ED25519: 32, Alg.ML_DSA: 1952}
SIGNATURE_BYTES = {Alg.ED25519: 64, Alg.ML_DSA: 3309}
SIGNING_ALGS = tuple(PUBLIC_BYTES)
# Public ML-DSA keys that are taken apart already; it saves a quarter of a verification
_KNOWN_PUBLIC = 256

_ffi = cffi.FFI()


class InvalidKeyError(ValueError):
    """Not a key of its algorithm: wrong length, a second spelling, or a point outside the prime-order group."""


class PrivateHalf(Uncopied):
    """What signs. `alg` and `public` are all that is seen of it; it is not copied, stored or shown."""

    __slots__ = ("alg", "public")
    _called = "a private key"

    def __init__(self, alg: Alg, public: bytes) -> None:
        self.alg = alg
        self.public = public

    def sign(self, message: bytes) -> bytes:
        """`SIGNATURE_BYTES[alg]` bytes. From any thread."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<PrivateHalf {self.alg}>"


class _Ed25519(PrivateHalf):
    """libsodium reads the 64 bytes where they lie, in locked memory: there is no copy of them among Python's objects.

    They are wiped when nobody refers to this any more. Never sooner: a signature whose key is wiped half way through
    shares its nonce with a later good one, and the two of them give the key away.
    """

    __slots__ = ("_buffer", "_lent", "_secret")

    def __init__(self, seed: Buffer, *, allow_unlocked: bool) -> None:
        self._lent = contextlib.ExitStack()
        self._secret: Any = None
        self._buffer = SecretBuffer(bindings.crypto_sign_SECRETKEYBYTES, allow_unlocked=allow_unlocked)
        view = self._lent.enter_context(self._buffer.open())
        view[:SEED_BYTES] = memoryview(seed).cast("B")
        # not crypto_sign_seed_keypair: it takes and gives the secret as `bytes`, which nobody can wipe
        public = Ed25519PrivateKey.from_private_bytes(view[:SEED_BYTES]).public_key().public_bytes_raw()
        # what RFC 8032 calls the private key is the seed; libsodium's is seed ‖ public
        view[SEED_BYTES:] = public
        self._secret = _ffi.from_buffer("unsigned char[]", view)
        super().__init__(Alg.ED25519, public)

    def sign(self, message: bytes) -> bytes:
        return bindings.crypto_sign(message, self._secret)[: SIGNATURE_BYTES[Alg.ED25519]]

    def __del__(self) -> None:
        if getattr(self, "_secret", None) is not None:
            _ffi.release(self._secret)
        with contextlib.suppress(AttributeError):
            self._lent.close()
            self._buffer.close()


class _MlDsa(PrivateHalf):
    """The engine keeps the expanded key in its own memory, which we cannot lock. It wipes what it frees."""

    __slots__ = ("_key",)

    def __init__(self, seed: Buffer) -> None:
        self._key = _supported(MLDSA65PrivateKey.from_seed_bytes, seed)
        super().__init__(Alg.ML_DSA, self._key.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        signature: bytes = self._key.sign(message)
        return signature


def private_half(alg: Alg, seed: Buffer, *, allow_unlocked: bool = False) -> PrivateHalf:
    """The signing half that grows from `seed`, 32 bytes: for ML-DSA-65 the ξ of FIPS 204 §5.1, never the expanded key.

    The caller overwrites `seed`. Raises `InvalidKeyError` for another length, `NotLockedError` as `SecretBuffer` does,
    `RonError` (Unsupported) for an algorithm that does not sign or an engine without ML-DSA.
    """
    check_signs(alg)
    if memoryview(seed).nbytes != SEED_BYTES:
        raise InvalidKeyError(f"the seed of a {alg} key is {SEED_BYTES} bytes long")
    return _Ed25519(seed, allow_unlocked=allow_unlocked) if alg is Alg.ED25519 else _MlDsa(seed)


def check_signs(alg: Alg) -> None:
    """Raises `RonError` (Unsupported) for an algorithm that does not sign."""
    if alg not in SIGNING_ALGS:
        raise RonError(ErrorCode.UNSUPPORTED, f"{alg} does not sign", hint="ed25519, ml-dsa and hybrid keys sign")


def check_public(alg: Alg, public: bytes) -> None:
    """Raises `InvalidKeyError` for what is no public key of `alg`; of Ed25519 also for parts of small order."""
    check_signs(alg)
    if len(public) != PUBLIC_BYTES[alg]:
        raise InvalidKeyError(f"a public {alg} key is {PUBLIC_BYTES[alg]} bytes long")
    if alg is Alg.ED25519:
        try:
            group.check_element(public)
        except group.InvalidElementError:
            raise InvalidKeyError("not a public ed25519 key") from None


def verify(alg: Alg, public: bytes, message: bytes, signature: bytes) -> bool:
    """Did the owner of `public` sign exactly `message`? What is malformed is a no. All is public: no constant time.

    Of Ed25519, S must be below L, and neither R nor the key of small order or spelt a second way; RFC 8032 §5.1.7
    without the cofactor, as libsodium has it. Raises `RonError` (Unsupported) for an algorithm that does not sign.
    """
    check_signs(alg)
    if len(signature) != SIGNATURE_BYTES[alg] or len(public) != PUBLIC_BYTES[alg]:
        return False
    return (
        _verify_ed25519(public, message, signature) if alg is Alg.ED25519 else _verify_mldsa(public, message, signature)
    )


def _verify_ed25519(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        bindings.crypto_sign_open(signature + message, public)
    except (BadSignatureError, CryptoError):
        return False
    return True


def _verify_mldsa(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        _mldsa_public(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@functools.lru_cache(maxsize=_KNOWN_PUBLIC)
def _mldsa_public(raw: bytes) -> MLDSA65PublicKey:
    key: MLDSA65PublicKey = _supported(MLDSA65PublicKey.from_public_bytes, raw)
    return key


def _supported(make: Any, raw: Buffer) -> Any:
    try:
        return make(raw)
    except UnsupportedAlgorithm:
        raise RonError(
            ErrorCode.UNSUPPORTED,
            "this build of the package cryptography has no ML-DSA-65",
            hint="install its wheel from PyPI (50.0 or later), or take ml-dsa out of service.allowed_algs",
        ) from None
