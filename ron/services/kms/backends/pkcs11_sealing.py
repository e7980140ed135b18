"""Halves that a token cannot hold, sealed by a key that never leaves it.

In: a session, a half's seed, a key as python-pkcs11 has it (its type does not say what it can do). Out: bytes that only
this token opens. Each key version has a sealing key of its own, made for it and destroyed with it: no nonce can come
twice under one key, which seals each half once, and old copies of what it sealed are worth nothing then. Blocks.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, MechanismFlag, Session
from pkcs11.exceptions import PKCS11Error

from ron.proto.kms import Alg

NONCE_BYTES = 12
TAG_BITS = 128
_KEY_BITS = 256


class NotOpenedError(Exception):
    """Not sealed by this key, or changed since; or the token failed, which a caller finds out by asking it."""


class Sealer(Protocol):
    """A way to seal that a token offers."""

    name: Literal["aes-gcm", "hmac-sha256"]

    def make_key(self, session: Session, label: str, key_id: bytes) -> Any:
        """A new key in the token, which never leaves it in any form."""

    def seal(self, key: Any, alg: Alg, seed: bytes, bound: bytes) -> bytes:
        """Once for each algorithm and key. bound: authenticated, not kept."""

    def unseal(self, key: Any, alg: Alg, sealed: bytes, bound: bytes) -> bytes:
        """Raises `NotOpenedError`."""


class InTokenGcm:
    """AES-256-GCM by the token. The nonce is the algorithm's number: a key version has one half of each."""

    name: Literal["aes-gcm", "hmac-sha256"] = "aes-gcm"

    def make_key(self, session: Session, label: str, key_id: bytes) -> Any:
        """CKK_AES of 256 bits."""
        may = MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT
        return _make(session, KeyType.AES, Mechanism.AES_KEY_GEN, may, label, key_id)

    def seal(self, key: Any, alg: Alg, seed: bytes, bound: bytes) -> bytes:
        """48 or 80 bytes."""
        gcm = GCMParams(_nonce(alg), bound, TAG_BITS)
        return bytes(key.encrypt(seed, mechanism=Mechanism.AES_GCM, mechanism_param=gcm))

    def unseal(self, key: Any, alg: Alg, sealed: bytes, bound: bytes) -> bytes:
        """Modules name a wrong tag in various ways; SoftHSM says CKR_GENERAL_ERROR."""
        gcm = GCMParams(_nonce(alg), bound, TAG_BITS)
        try:
            return bytes(key.decrypt(sealed, mechanism=Mechanism.AES_GCM, mechanism_param=gcm))
        except PKCS11Error as error:
            raise NotOpenedError from error


class InTokenHmac:
    """For tokens (and p11-kit's wire before 0.25) without AES-GCM: HMAC-SHA256 by the token makes the key of one half.

    ChaCha20-Poly1305 then seals it here. That key is for this half alone, so its one nonce is zero. HMAC-SHA256 as a
    key derivation with a fixed-length output: NIST SP 800-108r1 §4.1 with one block.
    """

    name: Literal["aes-gcm", "hmac-sha256"] = "hmac-sha256"

    def make_key(self, session: Session, label: str, key_id: bytes) -> Any:
        """CKK_GENERIC_SECRET of 256 bits."""
        may = MechanismFlag.SIGN
        return _make(session, KeyType.GENERIC_SECRET, Mechanism.GENERIC_SECRET_KEY_GEN, may, label, key_id)

    def seal(self, key: Any, alg: Alg, seed: bytes, bound: bytes) -> bytes:
        """48 or 80 bytes."""
        return self._aead(key, alg, bound).encrypt(bytes(NONCE_BYTES), seed, bound)

    def unseal(self, key: Any, alg: Alg, sealed: bytes, bound: bytes) -> bytes:
        """The token's own errors pass."""
        try:
            return self._aead(key, alg, bound).decrypt(bytes(NONCE_BYTES), sealed, bound)
        except InvalidTag as error:
            raise NotOpenedError from error

    def _aead(self, key: Any, alg: Alg, bound: bytes) -> ChaCha20Poly1305:
        label = b"\x00\x00\x00\x01ron-kms/1 sealing key\0" + alg.encode() + b"\0" + bound + b"\x00\x00\x01\x00"
        return ChaCha20Poly1305(key.sign(label, mechanism=Mechanism.SHA256_HMAC))


GCM = InTokenGcm()
HMAC = InTokenHmac()
SEALERS: dict[str, Sealer] = {sealer.name: sealer for sealer in (GCM, HMAC)}


def sealer_of(mechanisms: set[Mechanism]) -> Sealer | None:
    """The best way this token offers; None for a token that has neither."""
    if {Mechanism.AES_GCM, Mechanism.AES_KEY_GEN} <= mechanisms:
        return GCM
    if {Mechanism.SHA256_HMAC, Mechanism.GENERIC_SECRET_KEY_GEN} <= mechanisms:
        return HMAC
    return None


def _nonce(alg: Alg) -> bytes:
    # by its place in `Alg`, which only grows at its end
    return list(Alg).index(alg).to_bytes(NONCE_BYTES, "big")


def _make(session: Session, kind: KeyType, how: Mechanism, may: MechanismFlag, label: str, key_id: bytes) -> Any:
    never_leaves = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.PRIVATE: True}
    return session.generate_key(
        kind,
        _KEY_BITS,
        id=key_id,
        label=label,
        store=True,
        capabilities=may,
        mechanism=how,
        template=never_leaves,
    )
