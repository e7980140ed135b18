"""FROST(Ed25519, SHA-512): RFC 9591's vectors, a second implementation in integers, and everything that is refused."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import secrets
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import VerifyKey
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import group
from ron.crypto.frost import shamir, signing
from ron.crypto.frost.errors import InvalidGroupError, NoncesUsedError, Reason, Refused
from ron.crypto.frost.keys import GroupKey, KeyShare
from ron.crypto.frost.session import Signer
from tests.crypto.test_frost_support import (
    COORDINATOR,
    Signing,
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
from tests.crypto.test_schnorr import NEUTRAL, Point, add, decode, encode, times

# --- RFC 9591 in plain integers; nothing here comes from libsodium


def rfc_hash(label: bytes, text: bytes) -> bytes:
    return hashlib.sha512(b"FROST-ED25519-SHA512-v1" + label + text).digest()


def rfc_lambda(me: int, signers: list[int]) -> int:
    value = 1
    for other in signers:
        if other != me:
            value = value * other * pow(other - me, -1, group.ORDER) % group.ORDER
    return value


def rfc_factors(public: bytes, committed: dict[int, tuple[bytes, bytes]], message: bytes) -> dict[int, int]:
    listed = b"".join(scalar(i) + d + e for i, (d, e) in sorted(committed.items()))
    prefix = public + rfc_hash(b"msg", message) + rfc_hash(b"com", listed)
    return {i: integer(rfc_hash(b"rho", prefix + scalar(i))) % group.ORDER for i in committed}


def rfc_commitment(factors: dict[int, int], committed: dict[int, tuple[bytes, bytes]]) -> Point:
    total = NEUTRAL
    for i, (d, e) in committed.items():
        total = add(total, add(decode(d), times(factors[i], decode(e))))
    return total


def rfc_share(
    share: KeyShare, nonces: tuple[bytes, bytes], committed: dict[int, tuple[bytes, bytes]], message: bytes
) -> int:
    public = share.group.public
    factors = rfc_factors(public, committed, message)
    text = encode(rfc_commitment(factors, committed)) + public + message
    challenge = integer(hashlib.sha512(text).digest())
    own = rfc_lambda(share.identifier, sorted(committed)) * integer(share.secret) * challenge
    return (integer(nonces[0]) + integer(nonces[1]) * factors[share.identifier] + own) % group.ORDER


def rfc_shares(vector: Any) -> dict[int, KeyShare]:
    secret = {int(member): unhex(value) for member, value in vector["shares"].items()}
    public = {member: group.public_of(value) for member, value in secret.items()}
    key = GroupKey(public=unhex(vector["group_public"]), threshold=vector["threshold"], shares=public)
    return {member: KeyShare(identifier=member, secret=value, group=key) for member, value in secret.items()}


class Rfc9591(SynchronousTestCase):
    """Appendix E.1, every intermediate value that the interface shows."""

    def setUp(self) -> None:
        self.vector = vectors("rfc9591-e1.json")
        self.shares = rfc_shares(self.vector)
        self.message = unhex(self.vector["message"])

    def nonces(self, member: int) -> signing.SigningNonces:
        drawn = self.vector["round_one"][str(member)]
        fresh = iter([unhex(drawn["hiding_randomness"]), unhex(drawn["binding_randomness"])])
        return signing.commit(self.shares[member], token_bytes=lambda _count: next(fresh))

    def test_the_shares_lie_on_the_given_polynomial(self) -> None:
        polynomial = shamir.Polynomial([unhex(self.vector["group_secret"]), unhex(self.vector["coefficient"])])
        for member, share in self.shares.items():
            self.assertEqual(polynomial.at(member), share.secret)
            self.assertEqual(
                shamir.commitment_at(member, polynomial.commitments()), self.shares[1].group.shares[member]
            )

    def test_nonces_and_commitments(self) -> None:
        for member in self.vector["signers"]:
            drawn, made = self.vector["round_one"][str(member)], self.nonces(member)
            self.assertEqual(made.commitment.hiding.hex(), drawn["hiding"])
            self.assertEqual(made.commitment.binding.hex(), drawn["binding"])
            self.assertEqual([one.hex() for one in made.take()], [drawn["hiding_nonce"], drawn["binding_nonce"]])

    def test_the_signature_and_all_that_leads_to_it(self) -> None:
        nonces = {member: self.nonces(member) for member in self.vector["signers"]}
        commitments = [one.commitment for one in nonces.values()]
        key = self.shares[1].group
        factors = signing.binding_factors(key, commitments, self.message)
        made = {i: signing.sign_share(self.shares[i], nonces[i], commitments, self.message) for i in nonces}
        for member in nonces:
            self.assertEqual(factors[member].hex(), self.vector["round_one"][str(member)]["binding_factor"])
            self.assertEqual(made[member].hex(), self.vector["signature_shares"][str(member)])
            self.assertTrue(signing.verify_share(key, member, made[member], commitments, self.message))
        signature = signing.aggregate(key, made, commitments, self.message)
        self.assertEqual(signature.hex(), self.vector["signature"])


class SecondImplementation(SynchronousTestCase):
    @settings(max_examples=5, deadline=None)
    @given(message=st.binary(max_size=40), seed=st.integers(0, 2**64))
    def test_integers_and_libsodium_make_the_same_shares(self, message: bytes, seed: int) -> None:
        shares = {i: some_shares(3, 5)[i] for i in (1, 3, 4)}
        made = {i: signing.commit(share) for i, share in shares.items()}
        listed = [made[i].commitment for i in shares]
        committed = {one.identifier: (one.hiding, one.binding) for one in listed}
        for i, share in shares.items():
            pair = made[i].take()
            again = signing.SigningNonces(i, *pair)
            mine = signing.sign_share(share, again, listed, message)
            self.assertEqual(integer(mine), rfc_share(share, pair, committed, message))


class Signatures(SynchronousTestCase):
    """Any t of n sign; fewer never do."""

    def test_every_threshold_signs_and_anybody_verifies(self) -> None:
        for threshold, count in ((2, 3), (3, 5)):
            shares = some_shares(threshold, count)
            for chosen in subsets(shares, threshold):
                signature = signed(chosen, b"certificate")
                VerifyKey(shares[1].group.public).verify(b"certificate", signature)

    def test_more_than_a_threshold_sign_too(self) -> None:
        VerifyKey(some_shares(2, 4)[1].group.public).verify(b"m", signed(some_shares(2, 4)))

    def test_identifiers_need_not_be_small_nor_next_to_each_other(self) -> None:
        shares = dealt(scalar(secrets.randbelow(group.ORDER - 1) + 1), 3, [2, 77, 40_000, 65_535])
        for chosen in subsets(shares, 3):
            VerifyKey(shares[2].group.public).verify(b"m", signed(chosen))

    def test_fewer_than_a_threshold_are_not_heard(self) -> None:
        for chosen in subsets(some_shares(3, 5), 2):
            self.assertRaises(InvalidGroupError, Signing, chosen)

    def test_fewer_than_a_threshold_make_another_key_and_no_signature(self) -> None:
        """They agree among themselves that two are enough: what they make verifies under nothing of the group's."""
        shares = some_shares(3, 5)
        for chosen in subsets(shares, 2):
            secret = secret_from(chosen.values())
            self.assertNotEqual(group.public_of(scalar(secret)), shares[1].group.public)
            low = GroupKey._trusted(shares[1].group.public, 2, shares[1].group.shares)
            cheats = {i: KeyShare(identifier=i, secret=one.secret, group=low) for i, one in chosen.items()}
            self.assertRaises(InvalidGroupError, signed, cheats)

    def test_a_threshold_has_the_key_in_its_hands(self) -> None:
        for chosen in subsets(some_shares(3, 5), 3):
            self.assertEqual(group.public_of(scalar(secret_from(chosen.values()))), chosen.popitem()[1].group.public)

    def test_two_signatures_of_one_message_differ(self) -> None:
        chosen = dict(list(some_shares(2, 3).items())[:2])
        self.assertNotEqual(signed(chosen), signed(chosen))


class Liars(SynchronousTestCase):
    """A wrong share names its maker, and only its maker."""

    @few
    @given(liars=st.sets(st.sampled_from([1, 2, 4]), min_size=1), by=st.integers(1, group.ORDER - 1))
    def test_all_who_lie_are_named(self, liars: set[int], by: int) -> None:
        shares = {i: some_shares(3, 5)[i] for i in (1, 2, 4)}
        nonces = {i: signing.commit(share) for i, share in shares.items()}
        listed = [nonces[i].commitment for i in shares]
        made = {i: signing.sign_share(share, nonces[i], listed, b"m") for i, share in shares.items()}
        for liar in liars:
            made[liar] = scalar(integer(made[liar]) + by)
        key = shares[1].group
        wrong = {i for i in shares if not signing.verify_share(key, i, made[i], listed, b"m")}
        self.assertEqual(wrong, {liar for liar in liars if integer(made[liar])})
        refused = self.assertRaises(Refused, signing.aggregate, key, made, listed, b"m")
        self.assertEqual((refused.reason, refused.members), (Reason.BAD_SHARE, tuple(sorted(liars))))
        self.assertTrue(refused.blames)

    def test_lies_that_cancel_out_do_no_harm(self) -> None:
        """The sum is what counts; nobody is accused of a signature that is right."""
        shares = {i: some_shares(2, 3)[i] for i in (1, 3)}
        nonces = {i: signing.commit(share) for i, share in shares.items()}
        listed = [nonces[i].commitment for i in shares]
        made = {i: signing.sign_share(share, nonces[i], listed, b"m") for i, share in shares.items()}
        made[1], made[3] = scalar(integer(made[1]) + 5), scalar(integer(made[3]) - 5)
        VerifyKey(shares[1].group.public).verify(b"m", signing.aggregate(shares[1].group, made, listed, b"m"))

    def test_somebody_with_another_share_is_named(self) -> None:
        shares = {i: some_shares(2, 3)[i] for i in (1, 2)}
        key = shares[1].group
        other = scalar(integer(shares[2].secret) + 1)
        own = GroupKey._trusted(key.public, 2, {**key.shares, 2: group.public_of(other)})
        flow = Signing(shares)
        # the impostor talks as a member of the real epoch would, with a secret that is not the member's
        impostor = Signer(shares[2], flow.request, COORDINATOR)
        impostor._share = KeyShare(identifier=2, secret=other, group=own)
        flow.signers[2] = impostor
        refused = self.assertRaises(Refused, flow.commit().sign)
        self.assertEqual((refused.reason, refused.members), (Reason.BAD_SHARE, (2,)))


class Nonces(SynchronousTestCase):
    """Two signatures with one pair of nonces would give the share away: there is no way to make them."""

    def setUp(self) -> None:
        self.shares = {i: some_shares(2, 3)[i] for i in (1, 2)}
        self.made = {i: signing.commit(share) for i, share in self.shares.items()}
        self.listed = [one.commitment for one in self.made.values()]

    def test_they_sign_once(self) -> None:
        signing.sign_share(self.shares[1], self.made[1], self.listed, b"m")
        for message in (b"m", b"n"):
            self.assertRaises(NoncesUsedError, signing.sign_share, self.shares[1], self.made[1], self.listed, message)
        self.assertIn("used", repr(self.made[1]))

    def test_a_signer_signs_once(self) -> None:
        flow = Signing(self.shares).commit()
        package = flow.coordinator.package()
        flow.signers[1].sign(COORDINATOR, package)
        self.assertRaises(NoncesUsedError, flow.signers[1].sign, COORDINATOR, package)

    def test_dropped_nonces_do_not_sign(self) -> None:
        flow = Signing(self.shares).commit()
        flow.signers[1].drop()
        self.assertRaises(NoncesUsedError, flow.signers[1].sign, COORDINATOR, flow.coordinator.package())

    def test_they_cannot_be_copied_or_stored(self) -> None:
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            self.assertRaises(TypeError, attempt, self.made[1])

    def test_a_fork_has_none(self) -> None:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                signing.sign_share(self.shares[1], self.made[1], self.listed, b"m")
            except NoncesUsedError:
                os.write(writer, b"refused")
            finally:
                os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        self.assertEqual(os.read(reader, 100), b"refused")
        os.close(reader)
        signing.sign_share(self.shares[1], self.made[1], self.listed, b"m")

    def test_another_members_nonces_do_not_sign(self) -> None:
        self.assertRaises(InvalidGroupError, signing.sign_share, self.shares[1], self.made[2], self.listed, b"m")

    def test_they_are_wiped_where_they_lay(self) -> None:
        hiding, binding = self.made[1]._unused[0]
        self.made[1].take()
        self.assertEqual((bytes(hiding), bytes(binding)), (bytes(32), bytes(32)))

    def test_they_are_hedged(self) -> None:
        """With stuck randomness two shares still get different nonces, which nobody without the share can compute."""
        stuck = bytes(32)
        one, two = (signing.commit(share, token_bytes=lambda _n: stuck) for share in self.shares.values())
        self.assertNotEqual(one.commitment.hiding, two.commitment.hiding)
        unhedged = group.scalar_from_wide(hashlib.sha512(b"FROST-ED25519-SHA512-v1nonce" + stuck).digest())
        self.assertNotEqual(one.commitment.hiding, group.public_of(unhedged))
