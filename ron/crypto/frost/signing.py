"""FROST(Ed25519, SHA-512) of RFC 9591 §4–§6: commitments, binding factors, signature shares, aggregation.

In: a `KeyShare`, the message, the commitments of all signers. Out: an ordinary Ed25519 signature (RFC 8032), or who
spoilt it. Values here are already decoded; the messages they travel in are `ron.crypto.frost.session`'s.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence

import msgspec
from nacl import bindings
from nacl.exceptions import BadSignatureError

from ron.crypto import group
from ron.crypto.frost import shamir
from ron.crypto.frost.errors import InvalidGroupError, NoncesUsedError, Reason, Refused
from ron.crypto.frost.keys import GroupKey, KeyShare
from ron.crypto.group import InvalidElementError

SIGNATURE_BYTES = 64
_RANDOM_BYTES = 32
_CONTEXT = b"FROST-ED25519-SHA512-v1"


class Commitment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a signer shows of its two nonces. `check` before use: construction does not look."""

    identifier: int
    hiding: bytes
    binding: bytes

    def check(self) -> None:
        """Raises `Refused` unless both are elements of the prime-order group other than the identity."""
        try:
            group.check_element(self.hiding)
            group.check_element(self.binding)
        except InvalidElementError:
            raise Refused(Reason.MALFORMED, [self.identifier], "a commitment outside the group") from None


class SigningNonces:
    """Two secret nonces that can be taken once, in the process that made them. They cannot be copied or stored."""

    __slots__ = ("_pid", "_unused", "commitment")

    def __init__(self, identifier: int, hiding: bytes, binding: bytes) -> None:
        self._unused = [(bytearray(hiding), bytearray(binding))]
        # A fork would be a copy, and two signatures with one pair of nonces are enough to compute the share.
        self._pid = os.getpid()
        self.commitment = Commitment(
            identifier=identifier, hiding=group.public_of(hiding), binding=group.public_of(binding)
        )

    def take(self) -> tuple[bytes, bytes]:
        """Hiding and binding nonce, wiped in here. Raises `NoncesUsedError` the second time and in a forked process."""
        if os.getpid() != self._pid:
            raise NoncesUsedError("nonces are for the process that made them")
        try:
            pair = self._unused.pop()
        except IndexError:
            raise NoncesUsedError("these nonces were used or dropped") from None
        taken = bytes(pair[0]), bytes(pair[1])
        for nonce in pair:
            shamir.wipe(nonce)
        return taken

    def drop(self) -> None:
        """Wipe them unused: the session will not come to a signature."""
        while self._unused:
            for nonce in self._unused.pop():
                shamir.wipe(nonce)

    def __copy__(self) -> SigningNonces:
        raise TypeError("nonces are not copied")

    def __deepcopy__(self, _memo: object) -> SigningNonces:
        raise TypeError("nonces are not copied")

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("nonces are not stored")

    def __repr__(self) -> str:
        return f"<SigningNonces of member {self.commitment.identifier}, {'unused' if self._unused else 'used'}>"


def commit(share: KeyShare, *, token_bytes: Callable[[int], bytes] = secrets.token_bytes) -> SigningNonces:
    """Round one (RFC 9591 §5.1). The nonces are hedged: predictable randomness does not make the share predictable."""
    hiding, binding = (_h3(token_bytes(_RANDOM_BYTES) + share.secret) for _ in range(2))
    return SigningNonces(share.identifier, hiding, binding)


def binding_factors(key: GroupKey, commitments: Sequence[Commitment], message: bytes) -> dict[int, bytes]:
    """Each signer's binding factor (RFC 9591 §4.4). `commitments` in ascending order of identifiers."""
    encoded = b"".join(_identifier(one) + one.hiding + one.binding for one in commitments)
    prefix = key.public + _h4(message) + _h5(encoded)
    return {one.identifier: _h1(prefix + _identifier(one)) for one in commitments}


def sign_share(share: KeyShare, nonces: SigningNonces, commitments: Sequence[Commitment], message: bytes) -> bytes:
    """Round two (RFC 9591 §5.2): this member's 32-byte signature share. The nonces are gone afterwards.

    Raises `InvalidGroupError` for signers who are not at least a threshold of members in order, with this member and
    the very commitment of `nonces` among them; `Refused` for a commitment outside the group; `NoncesUsedError`.
    """
    check_commitments(share.group, commitments)
    if nonces.commitment not in commitments or nonces.commitment.identifier != share.identifier:
        raise InvalidGroupError("the package has not the commitment that this member made")
    factors, group_commitment = _combined(share.group, commitments, message)
    challenge = _challenge(group_commitment, share.group.public, message)
    weight = shamir.lagrange(share.identifier, [one.identifier for one in commitments])
    hiding, binding = nonces.take()
    nonce = group.scalar_add(hiding, group.scalar_mul(binding, factors[share.identifier]))
    return group.scalar_add(nonce, group.scalar_mul(group.scalar_mul(weight, share.secret), challenge))


def verify_share(
    key: GroupKey, identifier: int, signature_share: bytes, commitments: Sequence[Commitment], message: bytes
) -> bool:
    """True when the member with this identifier did its part right (RFC 9591 §5.4). Raises as `sign_share` does."""
    check_commitments(key, commitments)
    factors, group_commitment = _combined(key, commitments, message)
    challenge = _challenge(group_commitment, key.public, message)
    own = next((one for one in commitments if one.identifier == identifier), None)
    if own is None:
        raise InvalidGroupError("no commitment of this member")
    weight = shamir.lagrange(identifier, [one.identifier for one in commitments])
    try:
        group.check_scalar(signature_share)
        expected = shamir.add(
            shamir.add(own.hiding, shamir.times(factors[identifier], own.binding)),
            shamir.times(group.scalar_mul(challenge, weight), key.shares[identifier]),
        )
        return group.public_of(signature_share) == expected
    except InvalidElementError:
        return False


def aggregate(
    key: GroupKey, signature_shares: Mapping[int, bytes], commitments: Sequence[Commitment], message: bytes
) -> bytes:
    """The 64-byte Ed25519 signature (RFC 9591 §5.3), checked before it is returned.

    Raises `Refused` (`BAD_SHARE`) naming every member whose share is wrong; `InvalidGroupError` for shares that are
    not of exactly the signers who committed.
    """
    check_commitments(key, commitments)
    if sorted(signature_shares) != [one.identifier for one in commitments]:
        raise InvalidGroupError("not one share of each signer")
    _, group_commitment = _combined(key, commitments, message)
    signature = group_commitment + shamir.scalar_total(_whole_scalars(signature_shares))
    if not verify(key.public, message, signature):
        # Checking each share costs three multiplications a signer, so it waits until it is known that somebody lied.
        wrong = [
            who for who, share in signature_shares.items() if not verify_share(key, who, share, commitments, message)
        ]
        if not wrong:
            raise InvalidGroupError("the verification shares do not make the group's key")
        raise Refused(Reason.BAD_SHARE, wrong, "signature shares that do not fit")
    return signature


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """True for an Ed25519 signature of `message` under `public`, by libsodium's own verification."""
    try:
        bindings.crypto_sign_open(signature + message, public)
    except BadSignatureError:
        return False
    return True


def check_commitments(key: GroupKey, commitments: Sequence[Commitment]) -> None:
    """Raises `InvalidGroupError` unless at least a threshold of members committed, each once, in ascending order."""
    signers = [one.identifier for one in commitments]
    if len(signers) < key.threshold or signers != sorted(set(signers)) or not set(signers) <= set(key.members):
        raise InvalidGroupError("the signers are not a threshold of different members in ascending order")
    for one in commitments:
        one.check()


def _whole_scalars(signature_shares: Mapping[int, bytes]) -> list[bytes]:
    for who, share in signature_shares.items():
        try:
            group.check_scalar(share)
        except InvalidElementError:
            raise Refused(Reason.MALFORMED, [who], "a signature share that is no scalar") from None
    return list(signature_shares.values())


def _combined(key: GroupKey, commitments: Sequence[Commitment], message: bytes) -> tuple[dict[int, bytes], bytes]:
    """Binding factors and the group's commitment (RFC 9591 §4.5)."""
    factors = binding_factors(key, commitments, message)
    try:
        parts = [shamir.add(one.hiding, shamir.times(factors[one.identifier], one.binding)) for one in commitments]
        return factors, shamir.total(parts)
    except InvalidElementError:
        raise InvalidGroupError("commitments without a sum") from None


def _challenge(group_commitment: bytes, public: bytes, message: bytes) -> bytes:
    """RFC 9591 §4.6 with §6.1's H2, which is RFC 8032's own hash."""
    return group.scalar_from_wide(hashlib.sha512(group_commitment + public + message).digest())


def _identifier(commitment: Commitment) -> bytes:
    return shamir.scalar_of(commitment.identifier)


def _hash(label: bytes, text: bytes) -> bytes:
    return hashlib.sha512(_CONTEXT + label + text).digest()


def _h1(text: bytes) -> bytes:
    return group.scalar_from_wide(_hash(b"rho", text))


def _h3(text: bytes) -> bytes:
    return group.scalar_from_wide(_hash(b"nonce", text))


def _h4(text: bytes) -> bytes:
    return _hash(b"msg", text)


def _h5(text: bytes) -> bytes:
    return _hash(b"com", text)
