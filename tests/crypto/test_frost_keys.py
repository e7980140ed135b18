"""Groups and shares at rest: one spelling, checked as a whole, and no secret where it does not belong."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import group
from ron.crypto.frost import shamir
from ron.crypto.frost.errors import InvalidGroupError
from ron.crypto.frost.keys import GroupKey, KeyShare
from ron.crypto.frost.shamir import Polynomial
from tests.crypto.test_frost_support import (
    few,
    flipped,
    integer,
    nonce,
    scalar,
    some_shares,
)
from tests.crypto.test_schnorr import NEUTRAL, encode


class Groups(SynchronousTestCase):
    def setUp(self) -> None:
        self.key = some_shares(3, 5)[1].group

    def test_they_come_back_as_they_were(self) -> None:
        again = GroupKey.decode(self.key.encode())
        self.assertEqual((again, again.digest, hash(again)), (self.key, self.key.digest, hash(self.key)))
        self.assertEqual((again.members, again.threshold), ((1, 2, 3, 4, 5), 3))

    @few
    @given(bit=st.integers(0, 8 * (34 + 5 * 34) - 1))
    def test_any_flipped_bit_is_noticed(self, bit: int) -> None:
        self.assertRaises(InvalidGroupError, GroupKey.decode, flipped(self.key.encode(), bit))

    @few
    @given(junk=st.binary(max_size=300))
    def test_junk(self, junk: bytes) -> None:
        self.assertRaises(InvalidGroupError, GroupKey.decode, junk)
        self.assertRaises(InvalidGroupError, KeyShare.decode, junk)

    def test_other_spellings(self) -> None:
        raw = self.key.encode()
        entries = [raw[at : at + 34] for at in range(34, len(raw), 34)]
        for members in (
            entries[::-1],
            entries[:1] * 5,
            entries[:2],
            [bytes(2) + entries[0][2:], *entries[1:]],
            [entries[0][:2] + encode(NEUTRAL), *entries[1:]],
        ):
            body = bytes([3, len(members)]) + raw[2:34] + b"".join(members)
            self.assertRaises(InvalidGroupError, GroupKey.decode, body)
        for cut in (raw[:-1], raw + b"\0", raw[:33]):
            self.assertRaises(InvalidGroupError, GroupKey.decode, cut)

    def test_every_members_share_must_lie_on_the_polynomial(self) -> None:
        for member in self.key.members:
            wrong = {**self.key.shares, member: group.GENERATOR}
            with self.assertRaises(InvalidGroupError):
                GroupKey(public=self.key.public, threshold=3, shares=wrong)
        with self.assertRaises(InvalidGroupError):
            GroupKey(public=group.GENERATOR, threshold=3, shares=self.key.shares)


class Shares(SynchronousTestCase):
    def test_they_come_back_as_they_were(self) -> None:
        for share in some_shares(3, 5).values():
            again = KeyShare.decode(share.encode())
            self.assertEqual((again.secret, again.group), (share.secret, share.group))
            self.assertEqual(again.identifier, share.identifier)

    @few
    @given(bit=st.integers(0, 8 * (17 + 34) - 1))
    def test_any_flipped_bit_is_noticed(self, bit: int) -> None:
        self.assertRaises(InvalidGroupError, KeyShare.decode, flipped(some_shares(3, 5)[2].encode(), bit))

    def test_another_members_share_and_other_spellings(self) -> None:
        one = some_shares(3, 5)[1]
        with self.assertRaises(InvalidGroupError):
            KeyShare(identifier=2, secret=one.secret, group=one.group)
        with self.assertRaises(InvalidGroupError):
            KeyShare(identifier=9, secret=one.secret, group=one.group)
        for secret in (bytes(32), (integer(one.secret) + group.ORDER).to_bytes(32, "little"), one.secret[:31], b""):
            with self.assertRaises(InvalidGroupError):
                KeyShare(identifier=1, secret=secret, group=one.group)

    def test_the_secret_is_in_no_repr_and_gone_after_wiping(self) -> None:
        one = KeyShare.decode(some_shares(3, 5)[1].encode())
        self.assertNotIn(one.secret.hex(), repr(one))
        one.wipe()
        self.assertRaises(InvalidGroupError, lambda: one.secret)


class Arithmetic(SynchronousTestCase):
    @few
    @given(
        coefficients=st.lists(st.integers(1, group.ORDER - 1), min_size=2, max_size=5), member=st.integers(1, 65_535)
    )
    def test_shares_fit_their_commitments(self, coefficients: list[int], member: int) -> None:
        polynomial = Polynomial([scalar(number) for number in coefficients])
        expected = sum(number * member**power for power, number in enumerate(coefficients)) % group.ORDER
        self.assertEqual(integer(polynomial.at(member)), expected)
        assume(expected)
        self.assertEqual(shamir.commitment_at(member, polynomial.commitments()), group.public_of(scalar(expected)))

    def test_weights_are_for_those_who_sign(self) -> None:
        self.assertRaises(InvalidGroupError, shamir.lagrange, 3, [1, 2])
        self.assertRaises(InvalidGroupError, shamir.lagrange, 1, [1, 1, 2])
        self.assertEqual(integer(shamir.lagrange(1, [1, 2])), 2)
        self.assertEqual(integer(shamir.lagrange(2, [1, 2])), group.ORDER - 1)

    def test_a_wiped_polynomial_has_nothing_left(self) -> None:
        polynomial = Polynomial.random(group.scalar_from_wide(nonce() + nonce()), 3)
        kept = list(polynomial._coefficients)
        polynomial.wipe()
        self.assertEqual({bytes(one) for one in kept}, {bytes(32)})
        self.assertEqual(polynomial.at(1), bytes(32))
