"""Keys that an address has in one time period, and who signs under them (rend-spec-v3 §A.2, §2.1 subcredential).

In: an address or its key, a time period. Out: the blinded key, and signatures that verify under it. One certificate a
period is signed so, whatever the number of descriptors; a `Signer` may be this process or several that hold shares.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Protocol

from nacl import bindings
from nacl.exceptions import BadSignatureError

from ron.crypto import group
from ron.crypto.frost.blinding import blinded_public, blinding_factor
from ron.crypto.group import InvalidElementError
from ron.proto.errors import bad_request
from ron.tor.clientauth import service_id
from ron.tor.descriptor.periods import TimePeriod
from ron.tor.onionkeys import OnionKey, public_key

KEY_BYTES = 32
SIGNATURE_BYTES = 64
_PREFIX_LABEL = b"Derive temporary signing key hash input"


@dataclass(frozen=True, slots=True)
class BlindedKey:
    """What `identity` (32 bytes) is in `period`: `public` is for directories, `subcredential` for clients."""

    identity: bytes
    period: TimePeriod
    public: bytes
    subcredential: bytes


class Signer(Protocol):
    """Whoever can sign for an address, by whatever means. Every signature is verified before it is used."""

    @property
    def identity(self) -> bytes:
        """The address's Ed25519 key, 32 bytes."""
        ...

    async def sign(self, period: TimePeriod, message: bytes) -> bytes:
        """An Ed25519 signature (64 bytes) of `message` under the blinded key of `period`. Raises `RonError` if none."""
        ...


class KeySigner:
    """A `Signer` that holds the whole key of the address."""

    def __init__(self, key: OnionKey) -> None:
        self._expanded = base64.b64decode(key.blob.partition(":")[2])
        self._identity = public_key(key)

    @property
    def identity(self) -> bytes:
        """The address's Ed25519 key, 32 bytes."""
        return self._identity

    async def sign(self, period: TimePeriod, message: bytes) -> bytes:
        """As `Signer.sign`; deterministic, in well under a millisecond."""
        factor = blinding_factor(self._identity, period.number, period.length_min)
        return sign_expanded(blind_secret(self._expanded, factor), message)


def identity_of(onion: str) -> bytes:
    """The Ed25519 key (32 bytes) in a v3 address. Raises `RonError` for no address, or a key outside the subgroup."""
    identity = base64.b32decode(service_id(onion).upper())[:KEY_BYTES]
    try:
        group.check_element(identity)
    except InvalidElementError:
        raise bad_request("the address holds no proper Ed25519 key") from None
    return identity


def blind(identity: bytes, period: TimePeriod) -> BlindedKey:
    """The key of `period`. Raises `RonError` unless `identity` is in the prime-order group."""
    try:
        public = blinded_public(identity, blinding_factor(identity, period.number, period.length_min))
    except InvalidElementError:
        raise bad_request("not an Ed25519 key of the prime-order group") from None
    return BlindedKey(identity, period, public, subcredential(identity, public))


def subcredential(identity: bytes, public: bytes) -> bytes:
    """32 bytes that whoever knows the address can make, and no directory."""
    credential = hashlib.sha3_256(b"credential" + identity).digest()
    return hashlib.sha3_256(b"subcredential" + credential + public).digest()


def blind_secret(expanded: bytes, factor: bytes) -> bytes:
    """The expanded secret (scalar and prefix, 64 bytes) times `factor`, with the prefix that tor derives for it."""
    # libsodium multiplies scalars below L only for certain; tor's clamped one is above
    scalar = group.scalar_from_wide(expanded[:32] + bytes(32))
    prefix = hashlib.sha512(_PREFIX_LABEL + expanded[32:]).digest()[:32]
    return group.scalar_mul(factor, scalar) + prefix


def sign_expanded(expanded: bytes, message: bytes) -> bytes:
    """RFC 8032 §5.1.6 from the expanded secret on, which no library of ours offers: they all begin with a seed."""
    scalar, prefix = expanded[:32], expanded[32:]
    nonce = group.scalar_from_wide(hashlib.sha512(prefix + message).digest())
    commitment = group.public_of(nonce)
    hashed = hashlib.sha512(commitment + group.public_of(scalar) + message).digest()
    return commitment + group.scalar_add(nonce, group.scalar_mul(group.scalar_from_wide(hashed), scalar))


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Is `signature` one of `message` under `public`? libsodium's strict rules: canonical, no small order."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        bindings.crypto_sign_open(signature + message, public)
    except BadSignatureError:
        return False
    return True
