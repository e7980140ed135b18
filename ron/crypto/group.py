"""The prime-order subgroup of edwards25519 (RFC 7748 §4.1, order L of RFC 8032 §5.1), through libsodium.

In: 32-byte encodings. Out: 32-byte encodings, or `InvalidElementError`. An element is accepted in one spelling only,
and never when it is the identity or has a part of small order: the cofactor is dealt with here, at the door, and
nowhere else. A scalar is accepted only below L. Arithmetic with scalars is libsodium's, in constant time.
"""

from __future__ import annotations

from nacl import bindings
from nacl.exceptions import CryptoError

ELEMENT_BYTES = 32
SCALAR_BYTES = 32
WIDE_BYTES = 64
ORDER = 2**252 + 27742317777372353535851937790883648493
GENERATOR = bindings.crypto_scalarmult_ed25519_base_noclamp((1).to_bytes(SCALAR_BYTES, "little"))


class InvalidElementError(ValueError):
    """Not the one spelling of an element of the subgroup other than the identity, or of a scalar from 1 to L−1."""


def check_element(element: bytes) -> None:
    """Raises `InvalidElementError` for a wrong length, a second spelling, a point off the curve or of another order."""
    if len(element) != ELEMENT_BYTES or not bindings.crypto_core_ed25519_is_valid_point(element):
        raise InvalidElementError("not an element of the prime-order group")


def check_scalar(scalar: bytes) -> None:
    """Raises `InvalidElementError` unless `scalar` is 32 bytes, little-endian, from 1 to L−1."""
    if len(scalar) != SCALAR_BYTES or not 0 < int.from_bytes(scalar, "little") < ORDER:
        raise InvalidElementError("not a scalar of the prime-order group")


def scalar_from_wide(wide: bytes) -> bytes:
    """64 uniform bytes as a scalar; its distance from uniform is below 2⁻²⁵⁰."""
    return bindings.crypto_core_ed25519_scalar_reduce(wide)


def scalar_add(left: bytes, right: bytes) -> bytes:
    """left + right mod L."""
    return bindings.crypto_core_ed25519_scalar_add(left, right)


def scalar_sub(left: bytes, right: bytes) -> bytes:
    """left − right mod L."""
    return bindings.crypto_core_ed25519_scalar_sub(left, right)


def scalar_mul(left: bytes, right: bytes) -> bytes:
    """left · right mod L."""
    return bindings.crypto_core_ed25519_scalar_mul(left, right)


def public_of(scalar: bytes) -> bytes:
    """scalar · G. Raises `InvalidElementError` for zero."""
    try:
        return bindings.crypto_scalarmult_ed25519_base_noclamp(scalar)
    except CryptoError:
        raise InvalidElementError("zero has no public element") from None


def combine(response: bytes, challenge: bytes, element: bytes) -> bytes:
    """response · G + challenge · element. `element` must have passed `check_element`.

    Raises `InvalidElementError` when a scalar is zero, which an honest one is with probability 2⁻²⁵².
    """
    try:
        return bindings.crypto_core_ed25519_add(
            bindings.crypto_scalarmult_ed25519_base_noclamp(response),
            bindings.crypto_scalarmult_ed25519_noclamp(challenge, element),
        )
    except CryptoError:
        raise InvalidElementError("a scalar is zero") from None
