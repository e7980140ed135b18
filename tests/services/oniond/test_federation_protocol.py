"""The handshake's two sides by plain calls: what is refused, what every message is bound to, what lists may do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.schnorr import HolderKey
from ron.proto.errors import ErrorCode, RonError
from ron.services.oniond.federation.challenges import CHALLENGE_LIFE_S, MASTER_LIFE_S, Challenges
from ron.services.oniond.federation.messages import (
    Challenge,
    InitiatorProof,
    ResponderProof,
    ZkHandshake,
)
from ron.services.oniond.federation.protocol import Attempt, Claim, Policy, Prover, Verifier
from ron.services.oniond.federation.refusals import REASONS, Refused
from ron.services.oniond.federation.roster import Roster, RosterBook
from ron.tor.onionkeys import address_of, new_key

NOW, WALL = 1000.0, 1_800_000_000.0
ANNA, BERT, MALLORY = (address_of(new_key()) for _ in range(3))
ANNAS_KEY, BERTS_KEY, MALLORYS_KEY = (HolderKey.generate() for _ in range(3))
OTHERS = [HolderKey.generate().public for _ in range(2)]
few = settings(max_examples=30, deadline=None)


class Node:
    """One side: `keys` are those it has given out, `holdings` what it has been given."""

    def __init__(self, onion: str, allow: set[str], keys: list[bytes], holdings: dict[str, HolderKey]) -> None:
        self.policy = Policy(onion=onion, allow=frozenset(allow), roster=Roster(1, keys), holdings=holdings)
        self.book = RosterBook()
        self.prover = Prover(self.book)
        self.verifier = Verifier(Challenges())

    def challenge(self) -> Challenge:
        return self.verifier.challenge(self.policy, NOW, WALL)

    def begin(self, peer: Node) -> Attempt:
        self.book.admit(peer.policy.onion, peer.policy.roster)
        return self.prover.begin(self.policy, peer.policy.onion, peer.challenge(), NOW)

    def first(self, message: ZkHandshake, *, now: float = NOW, wall: float = WALL) -> Claim:
        assert isinstance(message.proof, InitiatorProof)
        return self.verifier.first(self.policy, message.peer_onion, message.proof, now, wall)

    def second(self, message: ZkHandshake, *, now: float = NOW, wall: float = WALL) -> Claim:
        assert isinstance(message.proof, ResponderProof)
        return self.verifier.second(self.policy, message.peer_onion, message.proof, self.prover, now, wall)


def pair() -> tuple[Node, Node]:
    """Anna's key stands second on Bert's list, Bert's first on Anna's."""
    anna = Node(ANNA, {BERT}, [BERTS_KEY.public, *OTHERS], {BERT: ANNAS_KEY})
    bert = Node(BERT, {ANNA}, [OTHERS[0], ANNAS_KEY.public], {ANNA: BERTS_KEY})
    return anna, bert


class Case(SynchronousTestCase):
    def refused(self, reason: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        refusal = self.assertRaises(Refused, call, *args, **kwargs)
        self.assertEqual(refusal.reason, reason)
        self.assertIn(reason, REASONS)

    def conflicts(self, call: Callable[..., Any], *args: Any) -> None:
        self.assertEqual(self.assertRaises(RonError, call, *args).code, ErrorCode.CONFLICT)


class Placement(Case):
    """Refused before any proof is looked at."""

    def altered(self, **changes: Any) -> tuple[Node, ZkHandshake]:
        anna, bert = pair()
        message = anna.begin(bert).prove(WALL)
        return bert, msgspec.structs.replace(message, proof=msgspec.structs.replace(message.proof, **changes))

    def test_all_refusals_look_the_same_outside(self) -> None:
        seen = {(str(r), r.code, r.status, r.hint, str(r.headers)) for r in map(Refused, REASONS)}
        self.assertEqual(len(seen), 1)

    def test_strangers_and_those_who_gave_us_nothing(self) -> None:
        anna, bert = pair()
        message = anna.begin(bert).prove(WALL)
        self.refused("not_allowed", bert.first, msgspec.structs.replace(message, peer_onion=MALLORY))
        bert.policy = dataclasses.replace(bert.policy, holdings={})
        self.refused("no_holding", bert.first, message)

    def test_what_is_no_address(self) -> None:
        bert, message = self.altered()
        wrong_checksum = ANNA[:-8] + ("aa" if ANNA[-8:-6] != "aa" else "bb") + ANNA[-6:]
        for address in (wrong_checksum, "a" * 56 + ".onion", "1" * 56 + ".onion"):
            self.refused("address", bert.first, msgspec.structs.replace(message, peer_onion=address))

    def test_refusing_strangers_uses_up_no_nonce(self) -> None:
        anna, bert = pair()
        message = anna.begin(bert).prove(WALL)
        self.refused("not_allowed", bert.first, msgspec.structs.replace(message, peer_onion=MALLORY))
        bert.first(message).verify()

    def test_time_a_minute_either_way(self) -> None:
        for off, fine in ((-61, False), (-60, True), (60, True), (61, False)):
            anna, bert = pair()
            message = anna.begin(bert).prove(WALL + off)
            if fine:
                bert.first(message).verify()
            else:
                self.refused("time", bert.first, message)

    def test_replay(self) -> None:
        anna, bert = pair()
        message = anna.begin(bert).prove(WALL)
        bert.first(message).verify()
        self.refused("nonce", bert.first, message)

    def test_nonces_of_others_and_of_yesterday(self) -> None:
        bert, message = self.altered(nonce=bytes(32))
        self.refused("nonce", bert.first, message)
        anna, bert = pair()
        message = anna.begin(bert).prove(WALL)
        self.refused("nonce", bert.first, message, now=NOW + CHALLENGE_LIFE_S)
        bert.verifier = Verifier(Challenges())  # another process
        self.refused("nonce", bert.first, message)

    def test_a_list_that_has_changed(self) -> None:
        anna, bert = pair()
        message = anna.begin(bert).prove(WALL)
        bert.policy = dataclasses.replace(bert.policy, roster=Roster(2, bert.policy.roster.keys.keys))
        self.refused("roster", bert.first, message)

    def test_a_proof_of_another_length(self) -> None:
        self.refused("proof", *self.altered_call(zk=bytes(64)))

    def test_a_secret_sealed_to_somebody_else(self) -> None:
        anna, bert = pair()
        other = anna.begin(bert)
        self.refused("channel", *self.altered_call(sealed=other.sealed))

    def altered_call(self, **changes: Any) -> tuple[Callable[..., Any], ZkHandshake]:
        bert, message = self.altered(**changes)
        return bert.first, message

    def test_an_answer_nobody_asked_for(self) -> None:
        anna, bert = pair()
        claim = bert.first(anna.begin(bert).prove(WALL))
        bert.book.admit(ANNA, anna.policy.roster)
        answer = claim.answer(bert.policy, anna.policy.roster, WALL)
        stranger, _ = pair()
        self.refused("nonce", stranger.second, answer)
        self.refused("nonce", anna.second, answer, now=NOW + CHALLENGE_LIFE_S)

    def test_an_answer_by_another_allowed_peer(self) -> None:
        anna, bert = pair()
        allow = frozenset({BERT, MALLORY})
        anna.policy = dataclasses.replace(anna.policy, allow=allow, holdings={BERT: ANNAS_KEY, MALLORY: ANNAS_KEY})
        claim = bert.first(anna.begin(bert).prove(WALL))
        answer = claim.answer(bert.policy, anna.policy.roster, WALL)
        self.refused("nonce", anna.second, msgspec.structs.replace(answer, peer_onion=MALLORY))


class Soundness(Case):
    """What convinces, and that nothing else does."""

    def test_both_convince_each_other_and_have_the_same_channel(self) -> None:
        anna, bert = pair()
        attempt = anna.begin(bert)
        claim = bert.first(attempt.prove(WALL))
        claim.verify()
        back = anna.second(claim.answer(bert.policy, anna.policy.roster, WALL))
        back.verify()
        self.assertEqual(back.channel, claim.channel)
        self.assertEqual(back.channel.confirmation(), claim.channel.confirmation())
        self.assertEqual((claim.role, back.role), ("responder", "initiator"))
        self.assertEqual((claim.peer, back.peer), (ANNA, BERT))

    def test_an_allowed_onion_without_a_capability_does_not_convince(self) -> None:
        anna, bert = pair()
        attempt = anna.begin(bert)
        impostor = HolderKey.generate()
        impostor.public = ANNAS_KEY.public
        forged = dataclasses.replace(attempt, holder=impostor).prove(WALL)
        self.refused("proof", bert.first(forged).verify)

    def test_every_field_of_the_first_message_is_bound(self) -> None:
        """Whatever a relay changes, one check or another refuses."""
        anna, bert = pair()
        bert.policy = dataclasses.replace(
            bert.policy, allow=frozenset({ANNA, MALLORY}), holdings={ANNA: BERTS_KEY, MALLORY: BERTS_KEY}
        )
        for name, value in {
            "time": int(WALL) + 1,
            "own_nonce": bytes(32),
            "own_roster": bert.policy.roster.ref,
            "zk": bytes(128),
        }.items():
            message = anna.begin(bert).prove(WALL)
            changed = msgspec.structs.replace(message, proof=msgspec.structs.replace(message.proof, **{name: value}))
            self.assertRaises(Refused, lambda m: bert.first(m).verify(), changed)
        claimed = msgspec.structs.replace(anna.begin(bert).prove(WALL), peer_onion=MALLORY)
        self.assertRaises(Refused, lambda: bert.first(claimed).verify())

    def test_a_relay_cannot_pass_a_proof_on(self) -> None:
        """Anna federates with Mallory too, who passes on Bert's challenge as her own and Anna's proof as hers."""
        anna, bert = pair()
        mallory = Node(MALLORY, {ANNA, BERT}, [OTHERS[0], ANNAS_KEY.public], {BERT: MALLORYS_KEY, ANNA: MALLORYS_KEY})
        anna.policy = dataclasses.replace(
            anna.policy, allow=frozenset({BERT, MALLORY}), holdings={BERT: ANNAS_KEY, MALLORY: ANNAS_KEY}
        )
        berts = bert.challenge()
        anna.book.admit(MALLORY, mallory.policy.roster)
        self.conflicts(anna.prover.begin, anna.policy, MALLORY, berts, NOW)
        dressed_up = msgspec.structs.replace(berts, onion=MALLORY)
        message = anna.prover.begin(anna.policy, MALLORY, dressed_up, NOW).prove(WALL)
        self.assertRaises(Refused, lambda: bert.first(message).verify())

    def test_a_man_in_the_middle_with_a_channel_of_his_own_cannot_reuse_the_proof(self) -> None:
        """The same nonces and onions, but the secret is his: the proof was made for another channel."""
        anna, bert = pair()
        challenge = bert.challenge()
        anna.book.admit(BERT, bert.policy.roster)
        annas = anna.prover.begin(anna.policy, BERT, challenge, NOW).prove(WALL)
        mallorys = anna.prover.begin(anna.policy, BERT, challenge, NOW)
        meeting = dataclasses.replace(mallorys.channel.meeting, own_nonce=annas.proof.own_nonce)
        attempt = anna.prover._attempt(meeting, ANNAS_KEY, bert.policy.roster, anna.policy.roster, NOW + 60)
        spliced = msgspec.structs.replace(annas.proof, sealed=attempt.sealed)
        self.refused("proof", bert.first(msgspec.structs.replace(annas, proof=spliced)).verify)

    def test_a_proof_does_not_work_in_the_other_direction(self) -> None:
        anna, bert = pair()
        bert.policy = dataclasses.replace(bert.policy, roster=anna.policy.roster, holdings={ANNA: BERTS_KEY})
        anna.policy = dataclasses.replace(anna.policy, holdings={BERT: BERTS_KEY})
        message = anna.begin(bert).prove(WALL)
        proof = message.proof
        mirrored = ResponderProof(nonce=proof.own_nonce, time=proof.time, roster=proof.roster, zk=proof.zk)
        self.refused("proof", anna.second(ZkHandshake(peer_onion=BERT, proof=mirrored)).verify)

    def test_the_transcript_changes_with_everything_it_names(self) -> None:
        """Also on its own, with equal channel keys: no binding stands only on another one."""
        anna, bert = pair()
        channel = anna.begin(bert).channel
        seen = {
            channel.transcript("initiator", 1),
            channel.transcript("initiator", 2),
            channel.transcript("responder", 1),
        }
        ref = channel.meeting.roster
        refs = [
            msgspec.structs.replace(ref, **change) for change in ({"version": 9}, {"size": 9}, {"digest": bytes(32)})
        ]
        changes: list[dict[str, Any]] = [{"roster": other} for other in refs]
        changes += [{"initiator": MALLORY}, {"responder": MALLORY}, {"nonce": bytes(32)}, {"own_nonce": bytes(32)}]
        for change in changes:
            meeting = dataclasses.replace(channel.meeting, **change)
            seen.add(dataclasses.replace(channel, meeting=meeting).transcript("initiator", 1))
        seen.add(dataclasses.replace(channel, _binding=bytes(32)).transcript("initiator", 1))
        self.assertEqual(len(seen), 3 + len(changes) + 1)

    def test_holders_look_alike_on_the_wire(self) -> None:
        """Two holders of one list: equal shapes and lengths, nothing else but random bytes."""
        shapes = set()
        for key in (ANNAS_KEY, MALLORYS_KEY):
            anna, bert = pair()
            bert.policy = dataclasses.replace(bert.policy, roster=Roster(1, [ANNAS_KEY.public, MALLORYS_KEY.public]))
            anna.policy = dataclasses.replace(anna.policy, holdings={BERT: key})
            message = anna.begin(bert).prove(WALL)
            bert.first(message).verify()
            shapes.add(len(msgspec.json.encode(message)))
        self.assertEqual(len(shapes), 1)


class Beginning(Case):
    """What a prover does not answer to."""

    def test_lists_that_are_not_ours(self) -> None:
        anna, bert = pair()
        self.conflicts(anna.prover.begin, anna.policy, BERT, bert.challenge(), NOW)  # unknown list
        bert.policy = dataclasses.replace(bert.policy, roster=Roster(1, OTHERS))
        self.conflicts(anna.begin, bert)  # we are not on it
        self.conflicts(anna.prover.begin, anna.policy, BERT, pair()[1].challenge(), NOW)  # another one of that version

    def test_a_channel_key_that_is_none(self) -> None:
        anna, bert = pair()
        anna.book.admit(BERT, bert.policy.roster)
        challenge = msgspec.structs.replace(bert.challenge(), channel_key=b"\xff" * 1216)
        self.conflicts(anna.prover.begin, anna.policy, BERT, challenge, NOW)

    def test_attempts_are_bounded_and_forgotten(self) -> None:
        anna, bert = pair()
        anna.book.admit(BERT, bert.policy.roster)
        challenge = bert.challenge()
        with self.assertRaises(RonError) as caught:
            for _ in range(1000):
                anna.prover.begin(anna.policy, BERT, challenge, NOW)
        self.assertEqual(caught.exception.code, ErrorCode.BACKPRESSURE)
        anna.prover.begin(anna.policy, BERT, challenge, NOW + CHALLENGE_LIFE_S)

    def test_a_policy_holds_addresses_only(self) -> None:
        anna, _ = pair()
        self.assertRaises(RonError, dataclasses.replace, anna.policy, allow=frozenset({"example.com"}))
        self.assertRaises(RonError, dataclasses.replace, anna.policy, allow=frozenset({ANNA}))
        self.assertNotIn(ANNAS_KEY.secret.hex(), repr(anna.policy))


class ChallengeMemory(Case):
    """Challenges cost nothing until they are used, and are used once."""

    @few
    @given(bit=st.integers(0, 255))
    def test_any_flipped_bit_makes_a_nonce_foreign(self, bit: int) -> None:
        challenges = Challenges()
        nonce = bytearray(challenges.issue(NOW).nonce)
        nonce[bit // 8] ^= 1 << bit % 8
        self.refused("nonce", challenges.spend, bytes(nonce), NOW)

    def test_used_nonces_are_remembered_up_to_a_bound_and_as_long_as_they_live(self) -> None:
        challenges = Challenges(capacity=2)
        nonces = [challenges.issue(NOW + at).nonce for at in (0, 1, 2)]
        challenges.spend(nonces[0], NOW)
        challenges.spend(nonces[1], NOW)
        self.refused("busy", challenges.spend, nonces[2], NOW)
        self.refused("nonce", challenges.spend, nonces[0], NOW)
        challenges.spend(nonces[2], NOW + CHALLENGE_LIFE_S)  # the first has made room

    def test_a_challenge_outlives_the_next_master_and_not_the_one_after(self) -> None:
        challenges = Challenges()
        challenges.renew(NOW)
        late = NOW + MASTER_LIFE_S - 1
        issued = challenges.issue(late)
        self.assertEqual(challenges.spend(issued.nonce, late + 30).public.raw, issued.channel_key)
        challenges.renew(late + 30 + MASTER_LIFE_S)
        challenges._spent.clear()
        self.refused("nonce", challenges.spend, issued.nonce, late)

    def test_keys_and_nonces_do_not_repeat(self) -> None:
        challenges = Challenges()
        issued = [challenges.issue(NOW) for _ in range(20)]
        self.assertEqual(len({one.nonce for one in issued} | {one.channel_key for one in issued}), 40)
