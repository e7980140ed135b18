"""Polynomials over the scalars, and the same in the exponent (Shamir 1979, Feldman 1987; RFC 9591 §4.2, appendix C).

In: scalars and elements as 32-byte encodings, members' identifiers. Out: shares, commitments, interpolations. Whatever
touches a secret is libsodium's, in constant time; Lagrange coefficients are public and made of plain integers.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce

from nacl import bindings
from nacl.exceptions import CryptoError

from ron.crypto import group
from ron.crypto.frost.errors import InvalidGroupError
from ron.crypto.group import InvalidElementError

MIN_THRESHOLD = 2
MAX_MEMBERS = 16
MAX_IDENTIFIER = 2**16 - 1
ZERO = bytes(group.SCALAR_BYTES)


def check_members(members: Sequence[int], *, at_least: int = 1) -> None:
    """Raises `InvalidGroupError` unless there are `at_least` to 16 identifiers from 1 to 65535, in ascending order."""
    if not at_least <= len(members) <= MAX_MEMBERS:
        raise InvalidGroupError(f"a group has {at_least} to {MAX_MEMBERS} members")
    if list(members) != sorted(set(members)) or members[0] < 1 or members[-1] > MAX_IDENTIFIER:
        raise InvalidGroupError(f"identifiers are different numbers from 1 to {MAX_IDENTIFIER}, in ascending order")


def check_threshold(threshold: int, members: Sequence[int]) -> None:
    """Raises `InvalidGroupError` unless 2 ≤ threshold ≤ members ≤ 16. With a threshold of 1 each member has the key."""
    check_members(members, at_least=MIN_THRESHOLD)
    if not MIN_THRESHOLD <= threshold <= len(members):
        raise InvalidGroupError(f"a threshold is from {MIN_THRESHOLD} to the number of members")


def scalar_of(number: int) -> bytes:
    """A public number as a scalar."""
    return (number % group.ORDER).to_bytes(group.SCALAR_BYTES, "little")


def random_scalar(token_bytes: Callable[[int], bytes] = secrets.token_bytes) -> bytes:
    """Uniform from 1 to L−1."""
    scalar = group.scalar_from_wide(token_bytes(group.WIDE_BYTES))
    group.check_scalar(scalar)
    return scalar


def lagrange(member: int, signers: Sequence[int]) -> bytes:
    """How much `member`'s point counts at 0 when exactly `signers` interpolate (RFC 9591 §4.2)."""
    if member not in signers or len(set(signers)) != len(signers):
        raise InvalidGroupError("the signers do not name this member once")
    numerator = denominator = 1
    for other in signers:
        if other != member:
            numerator = numerator * other % group.ORDER
            denominator = denominator * (other - member) % group.ORDER
    return scalar_of(numerator * pow(denominator, -1, group.ORDER))


def times(scalar: bytes, element: bytes) -> bytes:
    """scalar · element. Raises `InvalidElementError` for zero and for what is no element of the group."""
    try:
        return bindings.crypto_scalarmult_ed25519_noclamp(scalar, element)
    except CryptoError:
        raise InvalidElementError("no such multiple") from None


def add(left: bytes, right: bytes) -> bytes:
    """left + right; the sum may be the identity, which `group.check_element` then refuses."""
    try:
        return bindings.crypto_core_ed25519_add(left, right)
    except CryptoError:
        raise InvalidElementError("not two elements") from None


def total(elements: Iterable[bytes]) -> bytes:
    """The sum of one or more elements."""
    return reduce(add, elements)


def scalar_total(scalars: Iterable[bytes]) -> bytes:
    """The sum of any number of scalars."""
    return reduce(group.scalar_add, scalars, ZERO)


def commitment_at(member: int, commitments: Sequence[bytes], *, first_power: int = 0) -> bytes:
    """What a share for `member` must be the logarithm of (RFC 9591 §C.2 `vss_verify`).

    `commitments` belong to the powers from `first_power` up: 1 for a polynomial whose constant is zero.
    """
    powers = (pow(member, first_power + place, group.ORDER) for place in range(len(commitments)))
    return total(times(scalar_of(power), element) for power, element in zip(powers, commitments, strict=True))


def interpolate(points: Mapping[int, bytes]) -> bytes:
    """The element at 0 of the polynomial through these elements."""
    return total(times(lagrange(member, list(points)), element) for member, element in points.items())


def interpolate_at(member: int, points: Mapping[int, bytes]) -> bytes:
    """The element at `member`, which is none of the `points`: interpolation at 0 with everything moved by `member`."""
    moved = {other - member: element for other, element in points.items()}
    return interpolate(moved)


class Polynomial:
    """A secret polynomial, lowest power first. Wiped with `wipe`, which leaves nothing to evaluate."""

    __slots__ = ("_coefficients",)

    def __init__(self, coefficients: Sequence[bytes]) -> None:
        self._coefficients = [bytearray(coefficient) for coefficient in coefficients]

    @classmethod
    def random(
        cls, constant: bytes, threshold: int, *, token_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> Polynomial:
        """Uniform among those of degree below `threshold` that are `constant` at 0."""
        return cls([constant, *(random_scalar(token_bytes) for _ in range(threshold - 1))])

    def coefficient(self, power: int) -> bytes:
        """The secret coefficient itself, for a proof that one knows it."""
        return bytes(self._coefficients[power])

    def at(self, member: int) -> bytes:
        """`member`'s share, by Horner's rule."""
        position = scalar_of(member)
        value = ZERO
        for coefficient in reversed(self._coefficients):
            value = group.scalar_add(group.scalar_mul(value, position), bytes(coefficient))
        return value

    def commitments(self, *, first_power: int = 0) -> tuple[bytes, ...]:
        """The public element of every coefficient from `first_power` up."""
        return tuple(group.public_of(bytes(coefficient)) for coefficient in self._coefficients[first_power:])

    def wipe(self) -> None:
        """Overwrite the coefficients and forget them."""
        for coefficient in self._coefficients:
            wipe(coefficient)
        self._coefficients.clear()

    def __repr__(self) -> str:
        return f"<Polynomial of {len(self._coefficients)} coefficients>"


def wipe(buffer: bytearray) -> None:
    """Zero the buffer where it lies. Copies that CPython made on the way are out of reach (docs/threshold.rst)."""
    buffer[:] = bytes(len(buffer))
