"""HPKE (RFC 9180), base mode, single shot: one classical suite and one post-quantum hybrid.

In: a key of one suite, the `info` both sides agree on, a short plaintext. Out: `enc ‖ ciphertext ‖ tag`.
Both suites end in HKDF-SHA256 and ChaCha20-Poly1305 and differ only in the KEM; private keys are 32-byte seeds.
Knows nothing of recipients, envelopes or files: that is `ron.e2e`. The engine is `cryptography`.
"""

from __future__ import annotations

import enum
import hashlib
import secrets

from cryptography.exceptions import InvalidTag
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

SEED_BYTES = 32
TAG_BYTES = 16
_X25519_BYTES = 32
_MLKEM768_PUBLIC_BYTES = 1184
_MLKEM768_SEED_BYTES = 64


class Suite(enum.IntEnum):
    """A KEM with HKDF-SHA256 and ChaCha20-Poly1305. The number is the one on the wire and never changes meaning."""

    CLASSICAL = 0
    """DHKEM(X25519, HKDF-SHA256), KEM id 0x0020."""
    PQ = 1
    """MLKEM768-X25519, also called X-Wing, KEM id 0x647a: safe while either half stands."""

    @property
    def label(self) -> str:
        """The name people type: `classical` or `pq`."""
        return self.name.lower()

    @property
    def public_bytes(self) -> int:
        """Length of a raw public key."""
        return _X25519_BYTES + (_MLKEM768_PUBLIC_BYTES if self is Suite.PQ else 0)

    @property
    def overhead_bytes(self) -> int:
        """How much longer a sealed text is than its plaintext: the encapsulated key and the tag."""
        return _KEMS[self].enc_length() + TAG_BYTES


_KEMS = {Suite.CLASSICAL: KEM.X25519, Suite.PQ: KEM.MLKEM768_X25519}
_ENGINES = {suite: Engine(kem, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305) for suite, kem in _KEMS.items()}

# Any scalar shows a low-order point: clamped scalars are multiples of the cofactor. This one guards no secret.
_PROBE = X25519PrivateKey.from_private_bytes(b"\x01" * _X25519_BYTES)


class InvalidKeyError(ValueError):
    """Not a usable key of its suite: wrong length, out of range, or a point that would make the secret predictable."""


class OpenError(Exception):
    """Not sealed to this key under this `info`, or altered since. It does not say which."""


class PublicKey:
    """Where to seal to. `raw` is the KEM's own serialisation; for the hybrid ML-KEM-768 ‖ X25519."""

    __slots__ = ("_key", "raw", "suite")

    def __init__(self, suite: Suite, raw: bytes) -> None:
        """Raises `InvalidKeyError` now rather than let a bad key fail the first message."""
        if len(raw) != suite.public_bytes:
            raise InvalidKeyError(f"a {suite.label} public key is {suite.public_bytes} bytes long")
        self.suite = suite
        self.raw = bytes(raw)
        try:
            self._key = _load_public(suite, self.raw)
        except ValueError:
            raise InvalidKeyError(f"not a valid {suite.label} public key") from None

    def seal(self, plaintext: bytes, *, info: bytes) -> bytes:
        """`plaintext` to this key: RFC 9180 §6.1 `SealBase` with empty aad, as `enc ‖ ct`."""
        return _ENGINES[self.suite].encrypt(plaintext, self._key, info)


class PrivateKey:
    """A 32-byte seed and what grows from it. The seed is the whole secret; it never appears in `repr`."""

    __slots__ = ("_key", "public", "seed", "suite")

    def __init__(self, suite: Suite, seed: bytes) -> None:
        """`seed` is the X25519 private key, or the X-Wing decapsulation key (draft-connolly-cfrg-xwing-kem §5.2)."""
        if len(seed) != SEED_BYTES:
            raise InvalidKeyError(f"a {suite.label} private key is {SEED_BYTES} bytes long")
        self.suite = suite
        self.seed = bytes(seed)
        self._key, public_raw = _expand(suite, self.seed)
        self.public = PublicKey(suite, public_raw)

    @classmethod
    def generate(cls, suite: Suite) -> PrivateKey:
        """A fresh key from the operating system's randomness."""
        return cls(suite, secrets.token_bytes(SEED_BYTES))

    def open(self, sealed: bytes, *, info: bytes) -> bytes:
        """The plaintext of `enc ‖ ct` (RFC 9180 §6.1 `OpenBase`). Raises `OpenError`, whatever the bytes are."""
        try:
            return _ENGINES[self.suite].decrypt(sealed, self._key, info)
        except InvalidTag:
            raise OpenError from None

    def __repr__(self) -> str:
        return f"<PrivateKey {self.suite.label}>"


def _load_public(suite: Suite, raw: bytes) -> X25519PublicKey | MLKEM768X25519PublicKey:
    """Raises `ValueError` for ML-KEM coefficients out of range and for X25519 points of low order."""
    x25519 = X25519PublicKey.from_public_bytes(raw[-_X25519_BYTES:])
    _PROBE.exchange(x25519)
    if suite is Suite.CLASSICAL:
        return x25519
    return MLKEM768X25519PublicKey(MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM768_PUBLIC_BYTES]), x25519)


def _expand(suite: Suite, seed: bytes) -> tuple[X25519PrivateKey | MLKEM768X25519PrivateKey, bytes]:
    """The engine's private key and the raw public key. The hybrid's seed grows by X-Wing's `expandDecapsulationKey`."""
    if suite is Suite.CLASSICAL:
        x25519 = X25519PrivateKey.from_private_bytes(seed)
        return x25519, x25519.public_key().public_bytes_raw()
    expanded = hashlib.shake_256(seed).digest(_MLKEM768_SEED_BYTES + _X25519_BYTES)
    mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:_MLKEM768_SEED_BYTES])
    x25519 = X25519PrivateKey.from_private_bytes(expanded[_MLKEM768_SEED_BYTES:])
    public_raw = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    return MLKEM768X25519PrivateKey(mlkem, x25519), public_raw
