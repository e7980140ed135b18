"""Keys of v3 onion services: made by us, so that they are kept before tor hears of them, and read back strictly.

In: nothing, or tor's key blob. Out: the blob that ADD_ONION takes (control-spec §3.27) and the address that belongs to
it (rend-spec-v3 §6). The key is the expanded form of RFC 8032 §5.1.5: 32 bytes of clamped scalar, 32 of prefix.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field

from nacl.bindings import crypto_scalarmult_ed25519_base_noclamp
from nacl.utils import random as random_bytes

from ron.proto.errors import bad_request

SEED_BYTES = 32
_PREFIX = "ED25519-V3:"
_BLOB = re.compile(r"^ED25519-V3:[A-Za-z0-9+/]{86}==\Z")
_VERSION = b"\x03"


@dataclass(frozen=True, slots=True)
class OnionKey:
    """tor's private key blob (`ED25519-V3:<base64>`). Its repr keeps the secret."""

    blob: str = field(repr=False)


def new_key() -> OnionKey:
    """A fresh key from the system's random source."""
    expanded = bytearray(hashlib.sha512(random_bytes(SEED_BYTES)).digest())
    expanded[0] &= 248
    expanded[31] = (expanded[31] & 63) | 64
    return OnionKey(_PREFIX + base64.b64encode(expanded).decode())


def parse_key(text: str) -> OnionKey:
    """A stored key blob. Raises `RonError` when it is not one."""
    if not _BLOB.match(text) or not _is_clamped(text):
        raise bad_request(
            "not a v3 onion key", hint="restore the key file from a backup, or remove it for a new address"
        )
    return OnionKey(text)


def public_key(key: OnionKey) -> bytes:
    """The Ed25519 public key, 32 bytes."""
    scalar = base64.b64decode(key.blob.removeprefix(_PREFIX))[:32]
    return crypto_scalarmult_ed25519_base_noclamp(scalar)


def onion_address(public: bytes) -> str:
    """`<56 characters>.onion` of a 32-byte public key."""
    checksum = hashlib.sha3_256(b".onion checksum" + public + _VERSION).digest()[:2]
    return base64.b32encode(public + checksum + _VERSION).decode().lower() + ".onion"


def address_of(key: OnionKey) -> str:
    """The address at which tor will publish `key`."""
    return onion_address(public_key(key))


def _is_clamped(text: str) -> bool:
    """tor takes any 64 bytes; what is not a clamped scalar no tor has made, and most likely somebody's mistake."""
    scalar = base64.b64decode(text.removeprefix(_PREFIX))[:32]
    return scalar[0] & 7 == 0 and scalar[31] & 192 == 64
