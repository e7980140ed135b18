"""One dealer's contribution: a committed polynomial with a proof, and the shares cut from it (Feldman; FROST 2020 §5).

In: a `Plan`, a dealer's secret constant. Out: `Dealing`s to broadcast and shares to send in private; what all dealings
together make, as a `GroupKey`. The proof of possession covers the plan, the dealer and every commitment: it cannot be
carried into another session or group, nor be made by somebody who chose the commitment after seeing the others'.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence

import msgspec

from ron.crypto import group, schnorr
from ron.crypto.frost import shamir, wire
from ron.crypto.frost.errors import InvalidGroupError, Reason, Refused
from ron.crypto.frost.keys import GroupKey
from ron.crypto.frost.plan import Plan, Purpose
from ron.crypto.frost.shamir import Polynomial
from ron.crypto.group import InvalidElementError
from ron.crypto.schnorr import HolderKey, InvalidProofError, KeyList

DIGEST_BYTES = 32
PROOF_BYTES = schnorr.PROOF_BYTES_A_KEY
_LABEL = b"ron-frost/1 dealing"


class Dealing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a dealer broadcasts: the commitments from `plan.first_power` up, and the proof that it knows the first."""

    dealer: int
    commitments: tuple[bytes, ...]
    proof: bytes

    def encode(self) -> bytes:
        """The body of the message."""
        return b"".join(self.commitments) + self.proof

    def digest(self) -> bytes:
        """32 bytes that name this dealing, for members to compare what they were told."""
        return hashlib.sha512(_LABEL + self.encode()).digest()[:DIGEST_BYTES]


def deal(
    plan: Plan, dealer: int, constant: bytes, *, token_bytes: Callable[[int], bytes] = secrets.token_bytes
) -> tuple[Polynomial, Dealing]:
    """A fresh polynomial that is `constant` at 0, and what there is to broadcast of it."""
    polynomial = Polynomial.random(constant, plan.threshold, token_bytes=token_bytes)
    commitments = polynomial.commitments(first_power=plan.first_power)
    known = HolderKey(polynomial.coefficient(plan.first_power))
    transcript = _transcript(plan, dealer, commitments)
    proof = schnorr.prove(transcript, KeyList([known.public]), known, token_bytes=token_bytes)
    return polynomial, Dealing(dealer=dealer, commitments=commitments, proof=proof)


def dealing_in(plan: Plan, message: wire.Frame) -> Dealing:
    """The dealing in a message, with everything checked that can be seen from outside. Raises `Refused`."""
    size = group.ELEMENT_BYTES
    wire.check_length(message, plan.commitments * size + PROOF_BYTES)
    end = plan.commitments * size
    commitments = tuple(wire.element_in(message, message.body[at : at + size]) for at in range(0, end, size))
    dealing = Dealing(dealer=message.sender, commitments=commitments, proof=message.body[end:])
    _check(plan, dealing)
    return dealing


def share_fits(plan: Plan, dealing: Dealing, receiver: int, share: bytes) -> bool:
    """True when `share` is `receiver`'s point on the polynomial that the dealing commits to."""
    try:
        group.check_scalar(share)
        expected = shamir.commitment_at(receiver, dealing.commitments, first_power=plan.first_power)
        return group.public_of(share) == expected
    except InvalidElementError:
        return False


def resulting_group(plan: Plan, dealings: Sequence[Dealing]) -> GroupKey:
    """The group that all dealings make together. Raises `Refused` (`DISPUTED`) when they cancel each other out."""
    try:
        sums = [shamir.total(column) for column in zip(*(one.commitments for one in dealings), strict=True)]
        shares = {receiver: _verification_share(plan, receiver, sums) for receiver in plan.receivers}
        public = sums[0] if plan.first_power == 0 else plan.public
        made = GroupKey(public=public or b"", threshold=plan.threshold, shares=shares)
    except (InvalidElementError, InvalidGroupError):
        raise Refused(Reason.DISPUTED, plan.dealers, "dealings that make no group") from None
    if plan.public is not None and made.public != plan.public:
        raise Refused(Reason.DISPUTED, plan.dealers, "dealings that make another key")
    return made


def _verification_share(plan: Plan, receiver: int, sums: Sequence[bytes]) -> bytes:
    dealt = shamir.commitment_at(receiver, sums, first_power=plan.first_power)
    if plan.purpose is Purpose.REFRESH and plan.previous:
        return shamir.add(plan.previous.shares[receiver], dealt)
    return dealt


def _check(plan: Plan, dealing: Dealing) -> None:
    expected = plan.constant_of(dealing.dealer)
    if expected is not None and dealing.commitments[0] != expected:
        raise Refused(Reason.BAD_PROOF, [dealing.dealer], "a dealing of something else than was to be dealt")
    transcript = _transcript(plan, dealing.dealer, dealing.commitments)
    try:
        schnorr.verify(transcript, KeyList([dealing.commitments[0]]), dealing.proof)
    except InvalidProofError:
        raise Refused(Reason.BAD_PROOF, [dealing.dealer], "a dealing without its proof") from None


def _transcript(plan: Plan, dealer: int, commitments: Sequence[bytes]) -> bytes:
    return _LABEL + plan.digest + dealer.to_bytes(2, "big") + b"".join(commitments)
