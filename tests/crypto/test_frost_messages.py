"""The messages of a signature: everything that is no message, comes twice, from elsewhere, or changed on its way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import group
from ron.crypto.frost import session, signing, wire
from ron.crypto.frost.errors import InvalidGroupError, Reason, Refused
from ron.crypto.frost.session import Coordinator, Request, Signer
from ron.crypto.frost.wire import Kind
from tests.crypto.test_frost_support import (
    COORDINATOR,
    HEAD,
    TORSION,
    Signing,
    few,
    flipped,
    integer,
    nonce,
    scalar,
    signed,
    some_shares,
)
from tests.crypto.test_schnorr import NEUTRAL, P, add, decode, encode


class BadCommitments(SynchronousTestCase):
    def setUp(self) -> None:
        self.shares = {i: some_shares(2, 3)[i] for i in (1, 2)}
        self.flow = Signing(self.shares)
        self.session = self.flow.request.session(self.shares[1].group)

    def refusal(self, sender: int, raw: bytes) -> Refused:
        return self.assertRaises(Refused, self.flow.coordinator.receive, sender, raw)

    def test_points_outside_the_group_are_refused_and_named(self) -> None:
        good = group.public_of(scalar(7))
        bad = {
            "identity": encode(NEUTRAL),
            "order 2": encode((0, P - 1)),
            "order 4": encode(TORSION),
            "a part of order 4": encode(add(decode(good), TORSION)),
            "a second spelling of the identity": (P + 1).to_bytes(32, "little"),
            "above the field": (2**255 - 1).to_bytes(32, "little"),
            "zeroes": bytes(32),
        }
        for name, point in bad.items():
            for body in (point + good, good + point):
                refused = self.refusal(2, wire.frame(Kind.COMMITMENT, self.session, 2, body))
                self.assertEqual((refused.reason, refused.members), (Reason.MALFORMED, (2,)), name)

    def test_lengths_kinds_and_names(self) -> None:
        good = self.flow.signers[2].commitment()
        for raw in (b"", good[:-1], good + b"\0", good[: HEAD - 1], good[:HEAD]):
            self.assertEqual(self.refusal(2, raw).reason, Reason.MALFORMED)
        # another member's message under the own name, and the other way round
        self.assertEqual(self.refusal(1, good).reason, Reason.MALFORMED)
        self.assertEqual(self.refusal(3, good).reason, Reason.STRANGER)
        self.assertEqual(self.refusal(2, wire.frame(Kind.PACKAGE, self.session, 2, b"")).reason, Reason.OUT_OF_PLACE)
        early = wire.frame(Kind.SIGNATURE_SHARE, self.session, 2, bytes(64))
        self.assertEqual(self.refusal(2, early).reason, Reason.OUT_OF_PLACE)

    def test_a_replay_and_a_second_commitment(self) -> None:
        first = self.flow.signers[2].commitment()
        self.flow.coordinator.receive(2, first)
        repeated = self.refusal(2, first)
        self.assertEqual((repeated.reason, repeated.harmless, repeated.blames), (Reason.REPEATED, True, False))
        second = Signer(self.shares[2], self.flow.request, COORDINATOR).commitment()
        other = self.refusal(2, second)
        self.assertEqual((other.reason, other.members, other.blames), (Reason.EQUIVOCATED, (2,), True))
        other_session = Signing(self.shares).signers[2].commitment()
        self.assertEqual(self.refusal(2, other_session).reason, Reason.OTHER_SESSION)

    def test_who_is_missing(self) -> None:
        self.assertRaises(InvalidGroupError, self.flow.coordinator.package)
        self.flow.coordinator.receive(2, self.flow.signers[2].commitment())
        self.assertEqual(self.flow.coordinator.waiting_for, {1})
        self.flow.coordinator.receive(1, self.flow.signers[1].commitment())
        package = self.flow.coordinator.package()
        self.assertEqual(self.flow.coordinator.waiting_for, {1, 2})
        self.flow.coordinator.receive(1, self.flow.signers[1].sign(COORDINATOR, package))
        self.assertEqual(self.flow.coordinator.waiting_for, {2})
        self.assertRaises(InvalidGroupError, self.flow.coordinator.signature)

    def test_a_request_has_a_whole_nonce_and_a_bounded_message(self) -> None:
        for request in (
            Request(message=b"m", nonce=bytes(31)),
            Request(message=bytes(session.MAX_MESSAGE_BYTES + 1), nonce=nonce()),
        ):
            self.assertRaises(InvalidGroupError, request.session, self.shares[1].group)
            self.assertRaises(InvalidGroupError, Signer, self.shares[1], request, 1)

    def test_signers_must_be_different_members(self) -> None:
        key = self.shares[1].group
        for signers in ([1], [1, 1], [1, 4], []):
            self.assertRaises(InvalidGroupError, Coordinator, key, self.flow.request, 1, signers)


class BadPackages(SynchronousTestCase):
    def setUp(self) -> None:
        self.shares = {i: some_shares(2, 3)[i] for i in (1, 2)}
        self.flow = Signing(self.shares).commit()
        self.package = self.flow.coordinator.package()
        self.session = self.flow.request.session(self.shares[1].group)
        self.body = self.package[HEAD:]
        self.signer = self.flow.signers[2]

    def refusal(self, body: bytes, sender: int = COORDINATOR) -> Refused:
        raw = wire.frame(Kind.PACKAGE, self.session, sender, body)
        refused = self.assertRaises(Refused, self.signer.sign, sender, raw)
        self.assertEqual(refused.members, (sender,))
        return refused

    def test_what_is_no_package_names_the_coordinator_and_costs_no_nonces(self) -> None:
        entry = len(self.body) // 2
        first, second = self.body[:entry], self.body[entry:]
        stranger = (9).to_bytes(2, "big") + first[2:]
        nobody = bytes(2) + first[2:]
        identity = first[:2] + encode(NEUTRAL) + first[34:]
        torsion = first[:2] + encode(add(decode(first[2:34]), TORSION)) + first[34:]
        other = Signing(self.shares).signers[2].commitment()[HEAD:]
        bodies = {
            "nothing": b"",
            "one alone": second,
            "twice": first + first,
            "the same again": first + second + second,
            "out of order": second + first,
            "a stranger": second + stranger,
            "nobody": nobody + second,
            "without me": first + (3).to_bytes(2, "big") + second[2:],
            "identity": identity + second,
            "not of prime order": torsion + second,
            "another commitment of mine": first + second[:2] + other,
            "a byte short": self.body[:-1],
            "a byte long": self.body + b"\0",
            "seventeen": first * 17,
        }
        for name, body in bodies.items():
            self.assertEqual(self.refusal(body).reason, Reason.MALFORMED, name)
        self.assertEqual(self.refusal(self.body, sender=3).reason, Reason.STRANGER)
        wrong_kind = wire.frame(Kind.COMMITMENT, self.session, COORDINATOR, self.body)
        refused = self.assertRaises(Refused, self.signer.sign, COORDINATOR, wrong_kind)
        self.assertEqual(refused.reason, Reason.OUT_OF_PLACE)
        VerifyKey(self.shares[1].group.public).verify(b"m", self.flow.sign())

    def test_an_old_package_is_of_another_session(self) -> None:
        fresh = Signing(self.shares).commit()
        refused = self.assertRaises(Refused, fresh.signers[2].sign, COORDINATOR, self.package)
        self.assertEqual((refused.reason, refused.harmless), (Reason.OTHER_SESSION, True))

    def test_another_message_or_another_epoch_is_another_session(self) -> None:
        moved = Request(message=b"n", nonce=self.flow.request.nonce)
        self.assertNotEqual(moved.session(self.shares[1].group), self.session)
        self.assertNotEqual(self.flow.request.session(some_shares(2, 4)[1].group), self.session)


class BadShares(SynchronousTestCase):
    def setUp(self) -> None:
        self.shares = {i: some_shares(2, 3)[i] for i in (1, 2)}
        self.flow = Signing(self.shares).commit()
        self.package = self.flow.coordinator.package()
        self.good = self.flow.signers[2].sign(COORDINATOR, self.package)

    def refusal(self, raw: bytes) -> Refused:
        refused = self.assertRaises(Refused, self.flow.coordinator.receive, 2, raw)
        self.assertEqual(refused.members, (2,))
        return refused

    def test_scalars_have_one_spelling(self) -> None:
        value = integer(self.good[-32:])
        for number in (0, group.ORDER, value + group.ORDER, 2**256 - 1):
            self.assertEqual(self.refusal(self.good[:-32] + number.to_bytes(32, "little")).reason, Reason.MALFORMED)
        self.assertEqual(self.refusal(self.good[:-1]).reason, Reason.MALFORMED)
        self.assertEqual(self.refusal(self.good + b"\0").reason, Reason.MALFORMED)

    def test_replays_and_second_thoughts(self) -> None:
        self.flow.coordinator.receive(2, self.good)
        self.assertEqual(self.refusal(self.good).reason, Reason.REPEATED)
        changed = self.good[:-32] + scalar(integer(self.good[-32:]) + 1)
        self.assertEqual(self.refusal(changed).reason, Reason.EQUIVOCATED)

    def test_a_share_for_another_package(self) -> None:
        self.assertEqual(self.refusal(flipped(self.good, 8 * HEAD)).reason, Reason.BAD_SHARE)


class FlippedBits(SynchronousTestCase):
    """Whatever bit of whatever message changes on its way, somebody refuses it and says whose message it was."""

    @few
    @given(bit=st.integers(0, 8 * (HEAD + 64) - 1))
    def test_of_a_commitment(self, bit: int) -> None:
        flow = Signing({i: some_shares(2, 3)[i] for i in (1, 2)})
        try:
            flow.coordinator.receive(2, flipped(flow.signers[2].commitment(), bit))
        except Refused as refused:
            self.assertEqual(refused.members, (2,))
            return
        flow.coordinator.receive(1, flow.signers[1].commitment())
        package = flow.coordinator.package()
        flow.coordinator.receive(1, flow.signers[1].sign(COORDINATOR, package))
        # it was another point of the group: its maker does not sign for it …
        self.assertRaises(Refused, flow.signers[2].sign, COORDINATOR, package)
        # … and whatever it answers in its place is found out
        digest = session._package_digest(package[HEAD:])
        own = flow.request.session(some_shares(2, 3)[1].group)
        flow.coordinator.receive(2, wire.frame(Kind.SIGNATURE_SHARE, own, 2, digest + scalar(12345)))
        self.assertEqual(self.assertRaises(Refused, flow.coordinator.signature).members, (2,))

    @few
    @given(bit=st.integers(0, 8 * (HEAD + 2 * 66) - 1))
    def test_of_a_package(self, bit: int) -> None:
        flow = Signing({i: some_shares(2, 3)[i] for i in (1, 2)}).commit()
        package = flow.coordinator.package()
        try:
            answer = flow.signers[2].sign(COORDINATOR, flipped(package, bit))
        except Refused as refused:
            self.assertEqual(refused.members, (COORDINATOR,))
            return
        refused = self.assertRaises(Refused, flow.coordinator.receive, 2, answer)
        self.assertEqual((refused.reason, refused.members), (Reason.BAD_SHARE, (2,)))

    @few
    @given(bit=st.integers(0, 8 * (HEAD + 64) - 1))
    def test_of_a_signature_share(self, bit: int) -> None:
        flow = Signing({i: some_shares(2, 3)[i] for i in (1, 2)}).commit()
        package = flow.coordinator.package()
        flow.coordinator.receive(1, flow.signers[1].sign(COORDINATOR, package))
        answer = flipped(flow.signers[2].sign(COORDINATOR, package), bit)
        try:
            flow.coordinator.receive(2, answer)
            flow.coordinator.signature()
        except Refused as refused:
            self.assertEqual(refused.members, (2,))
        else:
            self.fail("a changed share made a signature")

    @few
    @given(junk=st.binary(max_size=200))
    def test_junk(self, junk: bytes) -> None:
        flow = Signing({i: some_shares(2, 3)[i] for i in (1, 2)})
        self.assertRaises(Refused, flow.coordinator.receive, 2, junk)
        self.assertRaises(Refused, flow.signers[2].sign, COORDINATOR, junk)

    @few
    @given(bit=st.integers(0, 511))
    def test_of_the_signature(self, bit: int) -> None:
        key = some_shares(2, 3)[1].group
        signature = flipped(signed({i: some_shares(2, 3)[i] for i in (1, 2)}), bit)
        self.assertFalse(signing.verify(key.public, b"m", signature))
        self.assertRaises(BadSignatureError, VerifyKey(key.public).verify, b"m", signature)
