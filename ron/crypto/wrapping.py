"""Keys wrapped for a key: HPKE envelopes (RFC 9180, base mode) in three suites, bound to a key id and its version.

In: the public halves of a key version and a short secret. Out: version(1) ‖ suite(1) ‖ key version(4, big-endian) ‖
enc ‖ ciphertext ‖ tag. All suites end in HKDF-SHA256 and ChaCha20-Poly1305. Unlike `ron.crypto.hpke`, whose hybrid key
is one X-Wing seed, a key here has two halves, so that one key serves all three suites.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
)
from cryptography.hazmat.primitives.hpke import Suite as Engine
from cryptography.utils import Buffer

from ron.crypto import hpke
from ron.crypto.secrets import Uncopied
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.proto.kms import MAX_WRAPPED_KEY_BYTES, Alg, KemMode, Kid

SEED_BYTES = {Alg.X25519: 32, Alg.ML_KEM: 64}
PUBLIC_BYTES = {Alg.X25519: 32, Alg.ML_KEM: 1184}
WRAPPING_ALGS = tuple(SEED_BYTES)
TAG_BYTES = 16
_VERSION = 1
_HEAD = struct.Struct(">BBI")
_LABEL = b"ron-kms/wrap/1"
_CHANGED = "the envelope does not open with this key: it was changed, or is another key's"


class Suite(enum.StrEnum):
    """By the name that answers and the audit log carry (`WrapResponse.alg`)."""

    HYBRID = "hybrid(x25519+ml-kem)"
    """MLKEM768-X25519, also called X-Wing, KEM id 0x647a: safe while either half stands."""
    CLASSICAL = "x25519"
    """DHKEM(X25519, HKDF-SHA256), KEM id 0x0020."""
    PQ = "ml-kem"
    """ML-KEM-768, KEM id 0x0041."""

    @property
    def algs(self) -> tuple[Alg, ...]:
        """The halves it needs, in the order of the hybrid's public key."""
        return _ALGS[self]

    @property
    def overhead_bytes(self) -> int:
        """How much longer an envelope is than what it wraps."""
        return _HEAD.size + _KEMS[self].enc_length() + TAG_BYTES


# The number on the wire never changes meaning
_NUMBERS = {Suite.HYBRID: 1, Suite.CLASSICAL: 2, Suite.PQ: 3}
_SUITES = {number: suite for suite, number in _NUMBERS.items()}
_ALGS = {
    Suite.HYBRID: (Alg.ML_KEM, Alg.X25519),
    Suite.CLASSICAL: (Alg.X25519,),
    Suite.PQ: (Alg.ML_KEM,),
}
_KEMS = {Suite.HYBRID: KEM.MLKEM768_X25519, Suite.CLASSICAL: KEM.X25519, Suite.PQ: KEM.MLKEM768}
_ENGINES = {suite: Engine(kem, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305) for suite, kem in _KEMS.items()}
_MODES: dict[KemMode, Suite] = {"hybrid": Suite.HYBRID, "classical": Suite.CLASSICAL, "pq": Suite.PQ}
MAX_ENVELOPE_BYTES = MAX_WRAPPED_KEY_BYTES + Suite.HYBRID.overhead_bytes


class Head(NamedTuple):
    """What an envelope says of itself before it is opened. It is bound too: `info_of` has all of it."""

    suite: Suite
    key_version: int


def suite_of(mode: KemMode) -> Suite:
    """The suite a request's `kem_mode` asks for."""
    return _MODES[mode]


def info_of(kid: Kid, suite: Suite) -> bytes:
    """HPKE's `info`: the key, its version and the suite. kid has a version. Raises `ValueError` for one without."""
    if not kid.version:
        raise ValueError("an envelope is bound to one version of a key")
    return b"\0".join((_LABEL, suite.value.encode(), str(kid).encode()))


def wrap(kid: Kid, suite: Suite, halves: Mapping[Alg, bytes], secret: bytes) -> bytes:
    """`secret` (1 to 4096 bytes) for the owner of `kid`, which has a version. halves: raw public keys by algorithm.

    Raises `RonError` (Unsupported) where `suite` needs a half that is missing, (BadRequest) for a secret of a wrong
    size; `hpke.InvalidKeyError` for a half that is no key.
    """
    if not 1 <= len(secret) <= MAX_WRAPPED_KEY_BYTES:
        raise bad_request(f"1 to {MAX_WRAPPED_KEY_BYTES} bytes are wrapped at a time")
    _check_halves(suite, halves)
    key = load_public(suite, halves)
    return _HEAD.pack(_VERSION, _NUMBERS[suite], kid.version) + _ENGINES[suite].encrypt(
        secret, key, info_of(kid, suite)
    )


def read_head(envelope: bytes) -> Head:
    """Raises `RonError` (BadRequest) for what is no envelope, before any key is touched."""
    if len(envelope) <= _HEAD.size or len(envelope) > MAX_ENVELOPE_BYTES:
        raise bad_request("this is no wrapped key", hint="give `wrapped_b64` as `wrap` returned it")
    version, number, key_version = _HEAD.unpack_from(envelope)
    suite = _SUITES.get(number)
    if version != _VERSION or suite is None or not key_version or len(envelope) <= suite.overhead_bytes:
        raise bad_request("this is no wrapped key of a version this program knows", hint="is it cut short?")
    return Head(suite, key_version)


def load_public(suite: Suite, halves: Mapping[Alg, bytes]) -> Any:
    """The engine's public key. Raises `hpke.InvalidKeyError` for wrong lengths, low-order points, wild coefficients."""
    loaded: list[Any] = [_PUBLIC[alg](halves[alg]) for alg in suite.algs]
    return MLKEM768X25519PublicKey(*loaded) if suite is Suite.HYBRID else loaded[0]


def check_public(alg: Alg, public: bytes) -> None:
    """Raises `hpke.InvalidKeyError` for what is no public key of `alg`, `RonError` (Unsupported) for one that signs."""
    _check_wraps(alg)
    _PUBLIC[alg](public)


class PrivateHalves(Uncopied):
    """What opens envelopes: one or both halves of a key version. `publics` is all that is seen of it.

    The engine keeps the keys in its own memory, which we cannot lock. It is not copied, stored or shown.
    """

    __slots__ = ("_keys", "publics")
    _called = "a private key"

    def __init__(self, seeds: Mapping[Alg, Buffer]) -> None:
        """seeds: 32 bytes of X25519, 64 of ML-KEM-768 (d ‖ z of FIPS 203 §6.1); the caller overwrites them.

        Raises `hpke.InvalidKeyError` for another length, `RonError` (Unsupported) for an algorithm that signs.
        """
        self._keys = {alg: _private(alg, seed) for alg, seed in seeds.items()}
        self.publics = {alg: key.public_key().public_bytes_raw() for alg, key in self._keys.items()}

    def open(self, suite: Suite, envelope: bytes, info: bytes) -> bytes:
        """What was wrapped. From any thread. Raises `RonError` (BadRequest) for anything that does not open, and
        (Unsupported) where a half is missing."""
        if read_head(envelope).suite is not suite:
            raise bad_request("the envelope is of another suite")
        _check_halves(suite, self._keys)
        loaded = [self._keys[alg] for alg in suite.algs]
        key = MLKEM768X25519PrivateKey(*loaded) if suite is Suite.HYBRID else loaded[0]
        try:
            return _ENGINES[suite].decrypt(envelope[_HEAD.size :], key, info)
        except (InvalidTag, ValueError):
            raise bad_request(_CHANGED) from None

    def __repr__(self) -> str:
        return f"<PrivateHalves {' '.join(self.publics)}>"


def _check_halves(suite: Suite, halves: Mapping[Alg, object]) -> None:
    missing = [alg for alg in suite.algs if alg not in halves]
    if missing:
        raise RonError(
            ErrorCode.UNSUPPORTED,
            f"this key has no half of {' and '.join(missing)}",
            hint="choose the kem_mode it was made for, or create a key of alg hybrid",
        )


def _check_wraps(alg: Alg) -> None:
    if alg not in WRAPPING_ALGS:
        raise RonError(ErrorCode.UNSUPPORTED, f"{alg} does not wrap", hint="x25519, ml-kem and hybrid keys wrap")


def _private(alg: Alg, seed: Buffer) -> Any:
    _check_wraps(alg)
    if memoryview(seed).nbytes != SEED_BYTES[alg]:
        raise hpke.InvalidKeyError(f"the seed of a {alg} key is {SEED_BYTES[alg]} bytes long")
    if alg is Alg.X25519:
        return X25519PrivateKey.from_private_bytes(seed)
    try:
        return MLKEM768PrivateKey.from_seed_bytes(seed)
    except UnsupportedAlgorithm:
        raise RonError(
            ErrorCode.UNSUPPORTED,
            "this build of the package cryptography has no ML-KEM-768",
            hint="install its wheel from PyPI (50.0 or later), or take ml-kem out of service.allowed_algs",
        ) from None


def _x25519(raw: bytes) -> X25519PublicKey:
    hpke.PublicKey(hpke.Suite.CLASSICAL, raw)
    return X25519PublicKey.from_public_bytes(raw)


def _mlkem(raw: bytes) -> MLKEM768PublicKey:
    try:
        return MLKEM768PublicKey.from_public_bytes(raw)
    except ValueError:
        raise hpke.InvalidKeyError("not a public ml-kem key") from None


_PUBLIC = {Alg.X25519: _x25519, Alg.ML_KEM: _mlkem}
