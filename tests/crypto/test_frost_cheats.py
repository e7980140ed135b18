"""Ceremonies with somebody in them who lies, keeps silent, replays or talks nonsense: refused, and named."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import group, schnorr
from ron.crypto.frost import ceremony, dealing, dkg, shamir, wire
from ron.crypto.frost.errors import Reason, Refused
from ron.crypto.frost.wire import Kind
from tests.crypto.test_frost_support import (
    HEAD,
    TORSION,
    Network,
    few,
    flipped,
    integer,
    keygen_network,
    kind,
    nonce,
    scalar,
    signed,
    subsets,
    with_wrong_share,
)
from tests.crypto.test_schnorr import NEUTRAL, P, add, decode, encode


class BadDealings(SynchronousTestCase):
    """Member 1 hears from member 3, who cheats."""

    def setUp(self) -> None:
        self.plan = dkg.keygen_plan(nonce(), 2, [1, 2, 3])
        self.me = dkg.keygen(self.plan, 1)
        self.own = self.made(dkg.keygen(self.plan, 3))

    def made(self, one: ceremony.Ceremony) -> bytes:
        (message,) = one.outgoing()
        return message.body[HEAD:]

    def refusal(self, body: bytes) -> Refused:
        raw = wire.frame(Kind.DEALING, self.plan.digest, 3, body)
        refused = self.assertRaises(Refused, self.me.receive, 3, raw)
        self.assertEqual((refused.members, refused.blames), ((3,), True))
        self.assertEqual((self.me.state, self.me.failure), ("failed", refused))
        self.setUp()
        return refused

    def test_a_key_chosen_to_cancel_the_others_has_no_proof(self) -> None:
        """The rogue key: 3 waits for everybody and commits to its own key minus all theirs."""
        (mine,) = self.me.outgoing()
        theirs = mine.body[HEAD : HEAD + 32]
        rogue = schnorr.HolderKey.generate()
        minus = shamir.times(scalar(-1), theirs)
        commitments = (shamir.add(rogue.public, minus), group.public_of(scalar(9)))
        transcript = dealing._transcript(self.plan, 3, commitments)
        proof = schnorr.prove(transcript, schnorr.KeyList([rogue.public]), rogue)
        self.assertEqual(self.refusal(b"".join(commitments) + proof).reason, Reason.BAD_PROOF)

    def test_somebody_elses_dealing(self) -> None:
        self.assertEqual(self.refusal(self.made(dkg.keygen(self.plan, 2))).reason, Reason.BAD_PROOF)

    def test_the_own_dealing_of_another_session_or_group(self) -> None:
        for plan in (
            dkg.keygen_plan(nonce(), 2, [1, 2, 3]),
            dkg.keygen_plan(self.plan.nonce, 2, [1, 3]),
            dkg.keygen_plan(self.plan.nonce, 2, [1, 2, 3, 4]),
        ):
            body = self.made(dkg.keygen(plan, 3))
            self.assertEqual(self.refusal(body).reason, Reason.BAD_PROOF)

    def test_points_outside_the_group(self) -> None:
        torsion = encode(add(decode(self.own[:32]), TORSION))
        for bad in (encode(NEUTRAL), encode((0, P - 1)), torsion, (P + 1).to_bytes(32, "little"), bytes(32)):
            self.assertEqual(self.refusal(bad + self.own[32:]).reason, Reason.MALFORMED)
            self.assertEqual(self.refusal(self.own[:32] + bad + self.own[64:]).reason, Reason.MALFORMED)

    def test_lengths(self) -> None:
        for body in (b"", self.own[:-1], self.own + b"\0", self.own[:32] + self.own):
            self.assertEqual(self.refusal(body).reason, Reason.MALFORMED)

    def test_two_dealings_of_one_dealer(self) -> None:
        for body in (self.own, self.made(dkg.keygen(self.plan, 3))):
            raw = wire.frame(Kind.DEALING, self.plan.digest, 3, body)
            if body == self.own:
                self.me.receive(3, raw)
                self.assertEqual(self.assertRaises(Refused, self.me.receive, 3, raw).reason, Reason.REPEATED)
                self.assertEqual(self.me.state, "dealing")
            else:
                self.assertEqual(self.assertRaises(Refused, self.me.receive, 3, raw).reason, Reason.EQUIVOCATED)
        self.assertEqual(self.me.state, "failed")

    def test_what_does_no_harm_changes_nothing(self) -> None:
        good = wire.frame(Kind.DEALING, self.plan.digest, 3, self.own)
        old = wire.frame(Kind.DEALING, nonce(), 3, self.own)
        out_of_place = wire.frame(Kind.PACKAGE, self.plan.digest, 3, b"")
        for sender, raw, reason in (
            (4, good, Reason.STRANGER),
            (1, good, Reason.STRANGER),
            (3, old, Reason.OTHER_SESSION),
            (3, out_of_place, Reason.OUT_OF_PLACE),
        ):
            refused = self.assertRaises(Refused, self.me.receive, sender, raw)
            self.assertEqual((refused.reason, refused.harmless, self.me.state), (reason, True, "dealing"))
        self.me.receive(3, good)
        self.assertEqual(self.me.waiting_for, {2})


class Complaints(SynchronousTestCase):
    def test_a_wrong_share_is_named_and_made_good_before_everybodys_eyes(self) -> None:
        network = keygen_network(2, [1, 2, 3], with_wrong_share(2, 3)).run()
        ((receiver, refused),) = network.refused
        self.assertEqual((receiver, refused.reason, refused.members), (3, Reason.BAD_SHARE, (2,)))
        self.assertEqual(network.states, {"done"})
        for one in network.ceremonies.values():
            self.assertEqual(one.complaints, {(3, 2)})
        for chosen in subsets(network.results, 2):
            signed(chosen)

    def test_shares_of_another_length_or_spelling_are_complained_of_too(self) -> None:
        changes = (
            lambda raw: raw[:HEAD] + bytes(32) + raw[HEAD + 32 :],
            lambda raw: raw[:HEAD] + (integer(raw[HEAD : HEAD + 32]) + group.ORDER).to_bytes(32, "little") + raw[68:],
            lambda raw: raw[:-1],
            lambda raw: raw + b"\0",
            lambda raw: raw[:HEAD],
        )
        for change in changes:
            network = keygen_network(
                2, [1, 2, 3], lambda s, r, raw, c=change: c(raw) if (s, r, kind(raw)) == (2, 3, Kind.SHARE) else raw
            ).run()
            self.assertEqual([refused.members for _, refused in network.refused], [(2,)])
            self.assertEqual(network.states, {"done"})

    def test_who_stays_with_a_wrong_share_is_named_by_all(self) -> None:
        wrong = with_wrong_share(2, 3)

        def tamper(sender: int, to: int, raw: bytes) -> bytes:
            if kind(raw) is Kind.JUSTIFICATION:
                return raw[:-32] + scalar(integer(raw[-32:]) + 1)
            return wrong(sender, to, raw)

        network = keygen_network(2, [1, 2, 3], tamper).run()
        honest = {member: why for member, why in network.failures().items() if member != 2}
        self.assertEqual(honest, dict.fromkeys((1, 3), ("unjustified", (2,))))
        self.assertEqual(network.results, {})

    def test_who_does_not_answer_a_complaint_is_waited_for_by_all(self) -> None:
        wrong = with_wrong_share(2, 3)
        network = keygen_network(
            2, [1, 2, 3], lambda s, r, raw: None if kind(raw) is Kind.JUSTIFICATION else wrong(s, r, raw)
        ).run()
        for member in (1, 3):
            network.ceremonies[member].give_up()
            self.assertEqual(network.failures()[member], ("silent", (2,)))

    def test_a_false_complaint_brings_nothing_but_the_own_share(self) -> None:
        network = keygen_network(2, [1, 2, 3], lambda _s, _r, raw: raw if kind(raw) is not Kind.CONFIRMATION else None)
        network.run()
        plan = network.ceremonies[1].plan
        for member in (1, 2):
            network.deliver(3, member, wire.frame(Kind.COMPLAINT, plan.digest, 3, (2).to_bytes(2, "big")))
        network.tamper = lambda _s, _r, raw: raw
        network.run()
        (answer,) = {raw for _, _, raw in network.seen if kind(raw) is Kind.JUSTIFICATION}
        (sent,) = [raw for s, r, raw in network.seen if (s, r, kind(raw)) == (2, 3, Kind.SHARE)]
        self.assertEqual(answer[HEAD + 2 :], sent[HEAD : HEAD + 32])
        self.assertEqual(network.ceremonies[1].complaints, {(3, 2)})
        self.assertEqual(network.failures(), {})

    def test_an_answer_before_the_question_frames_nobody(self) -> None:
        """Dealer 2 justifies itself unasked and sends a wrong share afterwards: 3 is not the one that is waited for."""
        network = keygen_network(2, [1, 2, 3], with_wrong_share(2, 3))
        parts = network.ceremonies
        digest, polynomial = parts[2].plan.digest, parts[2]._polynomial
        assert polynomial is not None
        body = (3).to_bytes(2, "big") + polynomial.at(3)
        for member in (1, 3):
            network.deliver(2, member, wire.frame(Kind.JUSTIFICATION, digest, 2, body))
        network.run()
        self.assertEqual(network.states, {"done"})

    def test_complaints_about_nobody(self) -> None:
        for about in (0, 3, 4, 65_535):
            network = keygen_network(2, [1, 2, 3])
            plan = network.ceremonies[1].plan
            network.deliver(3, 1, wire.frame(Kind.COMPLAINT, plan.digest, 3, about.to_bytes(2, "big")))
            self.assertEqual(network.failures(), {1: ("malformed", (3,))})

    def test_two_stories_about_one_dealing_name_who_told_them(self) -> None:
        plan = dkg.keygen_plan(nonce(), 2, [1, 2, 3])
        (other,) = dkg.keygen(plan, 2).outgoing()

        def tamper(sender: int, to: int, raw: bytes) -> bytes:
            return other.body if (sender, to, kind(raw)) == (2, 3, Kind.DEALING) else raw

        network = Network({member: dkg.keygen(plan, member) for member in (1, 2, 3)}, tamper).run()
        failures = network.failures()
        self.assertEqual({why for why, _ in failures.values()}, {"disputed"})
        self.assertTrue({1, 3} <= set(failures))
        for _, names in failures.values():
            self.assertIn(2, names)
        self.assertEqual(network.results, {})


class Deliveries(SynchronousTestCase):
    @settings(max_examples=60, deadline=None)
    @given(place=st.integers(0, 17), bit=st.integers(min_value=0, max_value=8 * 200))
    def test_any_flipped_bit_is_refused_and_its_sender_named(self, place: int, bit: int) -> None:
        count = 0
        culprit = 0

        def tamper(sender: int, _to: int, raw: bytes) -> bytes:
            nonlocal count, culprit
            count += 1
            if count - 1 != place:
                return raw
            culprit = sender
            return flipped(raw, bit)

        network = keygen_network(2, [1, 2, 3], tamper).run()
        self.assertTrue(culprit)
        refusals = [refused for _, refused in network.refused]
        self.assertTrue(refusals)
        self.assertIn(culprit, refusals[0].members)

    def test_a_dealing_that_calls_itself_a_confirmation_is_not_kept_for_later(self) -> None:
        plan = dkg.keygen_plan(nonce(), 2, [1, 2, 3])
        (message,) = dkg.keygen(plan, 2).outgoing()
        renamed = wire.frame(Kind.CONFIRMATION, plan.digest, 2, message.body[HEAD:])
        refused = self.assertRaises(Refused, dkg.keygen(plan, 1).receive, 2, renamed)
        self.assertEqual((refused.reason, refused.members), (Reason.MALFORMED, (2,)))

    def test_everything_twice(self) -> None:
        network = keygen_network(2, [1, 2, 3])
        deliver = network.deliver

        def twice(sender: int, receiver: int, raw: bytes) -> None:
            deliver(sender, receiver, raw)
            deliver(sender, receiver, raw)

        self.patch(network, "deliver", twice)
        network.run()
        self.assertEqual(network.states, {"done"})
        self.assertEqual(len(network.refused), len(network.seen))
        self.assertTrue(all(refused.harmless for _, refused in network.refused))

    def test_yesterdays_messages(self) -> None:
        yesterday = keygen_network(2, [1, 2, 3]).run()
        today = keygen_network(2, [1, 2, 3])
        for sender, receiver, raw in yesterday.seen:
            today.deliver(sender, receiver, raw)
        self.assertEqual({refused.reason for _, refused in today.refused}, {Reason.OTHER_SESSION})
        self.assertEqual(today.run().states, {"done"})

    @few
    @given(junk=st.binary(max_size=200), sender=st.integers(0, 4))
    def test_junk(self, junk: bytes, sender: int) -> None:
        one = dkg.keygen(dkg.keygen_plan(nonce(), 2, [1, 2, 3]), 1)
        self.assertRaises(Refused, one.receive, sender, junk)

    def test_silence_is_named_once(self) -> None:
        network = keygen_network(2, [1, 2, 3], lambda s, _r, raw: None if s == 2 else raw).run()
        one = network.ceremonies[1]
        self.assertEqual(one.waiting_for, {2})
        one.give_up()
        one.give_up()
        failure = one.failure
        assert failure is not None
        self.assertEqual((failure.reason, failure.members, failure.blames), (Reason.SILENT, (2,), False))
        late = self.assertRaises(Refused, one.receive, 2, b"anything")
        self.assertTrue(late.harmless)

    def test_a_lost_confirmation_leaves_a_share_to_be_adopted(self) -> None:
        network = keygen_network(
            2, [1, 2, 3], lambda s, r, raw: None if (s, r, kind(raw)) == (1, 2, Kind.CONFIRMATION) else raw
        ).run()
        self.assertEqual((network.ceremonies[1].state, network.ceremonies[2].state), ("done", "confirming"))
        network.ceremonies[2].give_up()
        pending = network.ceremonies[2].pending
        assert pending is not None
        self.assertIsNone(network.ceremonies[2].result)
        signed({1: network.results[1], 2: pending})

    def test_another_result_is_disputed(self) -> None:
        network = keygen_network(
            2, [1, 2, 3], lambda s, _r, raw: flipped(raw, 8 * 40) if (s, kind(raw)) == (3, Kind.CONFIRMATION) else raw
        ).run()
        self.assertEqual(network.failures(), dict.fromkeys((1, 2), ("disputed", (3,))))
