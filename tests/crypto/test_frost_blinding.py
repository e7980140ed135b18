"""Tor's key blinding on shares: tor's own vectors, and signatures that verify under the period's key."""

from __future__ import annotations

from typing import ClassVar

from hypothesis import given
from hypothesis import strategies as st
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import group
from ron.crypto.frost import blinding, dkg
from ron.crypto.frost.errors import Reason, Refused
from ron.crypto.group import InvalidElementError
from tests.crypto.test_frost_support import (
    Signing,
    born,
    dealt,
    few,
    integer,
    scalar,
    secret_from,
    signed,
    some_shares,
    subsets,
    unhex,
    vectors,
)
from tests.crypto.test_schnorr import P, add, decode, encode, times

PERIOD, LENGTH = 20_777, 1440


class TorVectors(SynchronousTestCase):
    def test_keys_under_given_parameters(self) -> None:
        cases = vectors("tor-blinding.json")["keys"]
        self.assertEqual(len(cases), 10)
        for case in cases:
            factor = blinding.factor_of(unhex(case["parameter"]))
            secret = dkg.secret_of(unhex(case["expanded"]))
            self.assertEqual(group.public_of(secret).hex(), case["public"])
            self.assertEqual(blinding.blinded_public(unhex(case["public"]), factor).hex(), case["blinded_public"])
            self.assertEqual(group.scalar_mul(secret, factor).hex(), case["blinded_scalar"])
            self.assertEqual(group.public_of(unhex(case["blinded_scalar"])).hex(), case["blinded_public"])

    def test_a_whole_period(self) -> None:
        case = vectors("tor-blinding.json")["period"]
        public, period = unhex(case["public"]), (case["period_number"], case["period_length_min"])
        self.assertEqual(blinding.blinding_parameter(public, *period).hex(), case["parameter"])
        factor = blinding.blinding_factor(public, *period)
        self.assertEqual(blinding.blinded_public(public, factor).hex(), case["blinded_public"])
        self.assertEqual(group.scalar_mul(dkg.secret_of(unhex(case["expanded"])), factor).hex(), case["blinded_scalar"])

    def test_shares_of_a_tor_key_make_the_blinded_secret(self) -> None:
        case = vectors("tor-blinding.json")["period"]
        shares = dealt(dkg.secret_of(unhex(case["expanded"])), 3, [1, 2, 3, 4])
        blinded = {i: blinding.blind_share(one, 1234, 1440) for i, one in shares.items()}
        for chosen in subsets(blinded, 3):
            self.assertEqual(scalar(secret_from(chosen.values())).hex(), case["blinded_scalar"])

    @few
    @given(parameter=st.binary(min_size=32, max_size=32))
    def test_integers_agree(self, parameter: bytes) -> None:
        number = integer(parameter) & ((1 << 255) - 8) & ((1 << 254) - 1) | 1 << 254
        factor = blinding.factor_of(parameter)
        self.assertEqual(integer(factor), number % group.ORDER)
        self.assertNotEqual(integer(factor), 0)
        public = some_shares(2, 3)[1].group.public
        self.assertEqual(blinding.blinded_public(public, factor), encode(times(number, decode(public))))


class Refusals(SynchronousTestCase):
    def test_keys_with_a_part_of_small_order_are_not_blinded(self) -> None:
        """Two addresses of one service would otherwise blind to keys that differ only in what nobody checks."""
        public = some_shares(2, 3)[1].group.public
        factor = blinding.blinding_factor(public, PERIOD, LENGTH)
        for bad in (encode(add(decode(public), (0, P - 1))), (1).to_bytes(32, "little"), public[:31], b""):
            self.assertRaises(InvalidElementError, blinding.blinded_public, bad, factor)
            self.assertRaises(InvalidElementError, blinding.blinding_factor, bad, PERIOD, LENGTH)

    def test_factors_have_one_spelling(self) -> None:
        public = some_shares(2, 3)[1].group.public
        for number in (0, group.ORDER, 2**255):
            self.assertRaises(InvalidElementError, blinding.blinded_public, public, number.to_bytes(32, "little"))
            self.assertRaises(InvalidElementError, some_shares(2, 3)[1].times, number.to_bytes(32, "little"))
        self.assertRaises(InvalidElementError, blinding.factor_of, bytes(31))

    def test_periods_are_two_numbers_of_64_bits(self) -> None:
        public = some_shares(2, 3)[1].group.public
        for number, length in ((-1, LENGTH), (2**64, LENGTH), (PERIOD, 0), (PERIOD, -1), (PERIOD, 2**64)):
            self.assertRaises(ValueError, blinding.blinding_factor, public, number, length)


class Signed(SynchronousTestCase):
    message: ClassVar[bytes] = b"a certificate for the descriptor's signing key"

    def test_every_threshold_signs_under_the_blinded_key(self) -> None:
        for threshold, count in ((2, 3), (3, 5)):
            shares = born(threshold, count)
            public = shares[1].group.public
            key = blinding.blinded_public(public, blinding.blinding_factor(public, PERIOD, LENGTH))
            blinded = {i: blinding.blind_share(one, PERIOD, LENGTH) for i, one in shares.items()}
            self.assertEqual(blinding.blind_group(shares[1].group, PERIOD, LENGTH), blinded[1].group)
            for chosen in subsets(blinded, threshold):
                signature = signed(chosen, self.message)
                VerifyKey(key).verify(self.message, signature)
                self.assertRaises(BadSignatureError, VerifyKey(public).verify, self.message, signature)

    def test_everything_else_makes_another_key(self) -> None:
        public, other = born(2, 3)[1].group.public, some_shares(2, 3)[1].group.public
        factors = {
            blinding.blinding_factor(public, PERIOD, LENGTH),
            blinding.blinding_factor(public, PERIOD + 1, LENGTH),
            blinding.blinding_factor(public, PERIOD, LENGTH + 1),
            blinding.blinding_factor(public, PERIOD, LENGTH, b"secret"),
            blinding.blinding_factor(other, PERIOD, LENGTH),
        }
        self.assertEqual(len(factors), 5)

    def test_members_of_two_periods_do_not_sign_together(self) -> None:
        shares = born(2, 3)
        now = {i: blinding.blind_share(shares[i], PERIOD, LENGTH) for i in (1, 2)}
        mixed = {1: now[1], 2: blinding.blind_share(shares[2], PERIOD + 1, LENGTH)}
        refused = self.assertRaises(Refused, Signing(mixed, key=now[1].group).commit)
        self.assertEqual((refused.reason, refused.members), (Reason.OTHER_SESSION, (2,)))

    def test_a_member_who_signs_with_its_bare_share_is_named(self) -> None:
        shares = born(2, 3)
        now = {i: blinding.blind_share(shares[i], PERIOD, LENGTH) for i in (1, 2)}
        flow = Signing(now)
        flow.signers[2]._share._secret[:] = shares[2].secret
        refused = self.assertRaises(Refused, flow.commit().sign)
        self.assertEqual((refused.reason, refused.members), (Reason.BAD_SHARE, (2,)))
