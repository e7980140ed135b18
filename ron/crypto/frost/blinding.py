"""The key under which tor looks for a descriptor in one time period, made from shares (rend-spec-v3 §A.2).

In: the onion's public key or a member's share, a time period. Out: the blinded public key, or the share of it. The
factor is a public number: blinding hides which address a descriptor belongs to from those who do not know the address.
Each member computes the factor itself, from the period; one that somebody sends is not to be used (docs/threshold.rst).
"""

from __future__ import annotations

import hashlib

from ron.crypto import group
from ron.crypto.frost import shamir
from ron.crypto.frost.keys import GroupKey, KeyShare
from ron.crypto.group import InvalidElementError

PARAMETER_BYTES = 32
MAX_UINT64 = 2**64 - 1
_LABEL = b"Derive temporary signing key\x00"
_NONCE_LABEL = b"key-blind"
# tor hashes the base point as this text, in decimal.
_BASE_POINT = (
    b"(15112221349535400772501151409588531511454012693041857206046113283949847762202, "
    b"46316835694926478169428394003475163141307993866256225615783033603165251855960)"
)


def blinding_parameter(public: bytes, period_number: int, period_length_min: int, secret: bytes = b"") -> bytes:
    """The 32-byte hash that the factor is made of. Raises `InvalidElementError` for a key outside the group.

    `period_length_min` is in minutes and comes from the consensus; `secret` is empty in everything tor deploys.
    Raises `ValueError` for a period that is not two unsigned 64-bit numbers, the length not 0.
    """
    group.check_element(public)
    if not 0 <= period_number <= MAX_UINT64 or not 0 < period_length_min <= MAX_UINT64:
        raise ValueError("a time period has an unsigned 64-bit number and length")
    period = period_number.to_bytes(8, "big") + period_length_min.to_bytes(8, "big")
    return hashlib.sha3_256(_LABEL + public + secret + _BASE_POINT + _NONCE_LABEL + period).digest()


def factor_of(parameter: bytes) -> bytes:
    """The parameter clamped as Ed25519 clamps a secret, then reduced below L.

    Reducing changes nothing for elements of the prime-order group and never gives 0: a clamped number is 8k, 0 < k < L.
    Raises `InvalidElementError` unless there are 32 bytes.
    """
    if len(parameter) != PARAMETER_BYTES:
        raise InvalidElementError("not a blinding parameter")
    clamped = bytearray(parameter)
    clamped[0] &= 248
    clamped[31] = clamped[31] & 63 | 64
    return group.scalar_from_wide(bytes(clamped) + bytes(group.WIDE_BYTES - len(clamped)))


def blinding_factor(public: bytes, period_number: int, period_length_min: int, secret: bytes = b"") -> bytes:
    """The scalar that turns the onion's key into the period's. Raises as `blinding_parameter` does."""
    return factor_of(blinding_parameter(public, period_number, period_length_min, secret))


def blinded_public(public: bytes, factor: bytes) -> bytes:
    """factor · public. Raises `InvalidElementError` for a key outside the group or a factor that is no scalar."""
    group.check_element(public)
    group.check_scalar(factor)
    return shamir.times(factor, public)


def blind_group(key: GroupKey, period_number: int, period_length_min: int) -> GroupKey:
    """The group as a coordinator needs it to have something signed under the period's key."""
    return key.times(blinding_factor(key.public, period_number, period_length_min))


def blind_share(share: KeyShare, period_number: int, period_length_min: int) -> KeyShare:
    """A member's share of the period's key; wipe it after use, it is worth as much as the share itself."""
    return share.times(blinding_factor(share.group.public, period_number, period_length_min))
