"""The two sides of the handshake, pure: who may, what is proved against what, what is refused before it costs anything.

In: a policy, messages, the time (`now_s` of a clock that does not go back, `wall_s` Unix time). Out: attempts and
claims, or `Refused`. Only `prove`, `verify` and `answer` are slow (0.2 ms a key): run them in a thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ron.crypto import hpke, schnorr
from ron.crypto.hpke import InvalidKeyError, OpenError
from ron.crypto.schnorr import HolderKey, InvalidProofError, NotAHolderError
from ron.proto.errors import RonError, backpressure, bad_request, conflict
from ron.services.oniond.federation.challenges import CHALLENGE_LIFE_S, Challenges
from ron.services.oniond.federation.channel import Channel, Meeting, Role
from ron.services.oniond.federation.messages import (
    CHANNEL_SUITE,
    NONCE_BYTES,
    PROTOCOL,
    SECRET_BYTES,
    Challenge,
    InitiatorProof,
    ResponderProof,
    ZkHandshake,
    check_onion,
)
from ron.services.oniond.federation.refusals import Refused
from ron.services.oniond.federation.roster import Roster, RosterBook

TIME_WINDOW_S = 60
MAX_ATTEMPTS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """onion: ours. allow: whom we federate with. roster: whose holders we let in. holdings: our secret for each issuer.

    A change is a new policy. Raises `RonError` BadRequest for what is no onion address.
    """

    onion: str
    allow: frozenset[str]
    roster: Roster
    holdings: Mapping[str, HolderKey]

    def __post_init__(self) -> None:
        for address in {self.onion, *self.allow, *self.holdings}:
            check_onion(address)
        if self.onion in self.allow:
            raise bad_request("a node does not federate with itself", "take its own onion off the allow list")

    def holding(self, peer: str) -> HolderKey:
        """What we prove to `peer` with. Raises `Refused` unless we allow it and hold a capability of its."""
        if peer not in self.allow:
            raise Refused("not_allowed")
        if peer not in self.holdings:
            raise Refused("no_holding")
        return self.holdings[peer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A handshake this node has begun. roster: the peer's list. own_roster: ours as we named it."""

    channel: Channel
    sealed: bytes
    holder: HolderKey
    roster: Roster
    own_roster: Roster
    expires_s: float

    def prove(self, wall_s: float) -> ZkHandshake:
        """What to send to the peer. Slow."""
        meeting, time = self.channel.meeting, int(wall_s)
        zk = schnorr.prove(self.channel.transcript("initiator", time), self.roster.keys, self.holder)
        proof = InitiatorProof(
            nonce=meeting.nonce,
            own_nonce=meeting.own_nonce,
            time=time,
            roster=meeting.roster,
            own_roster=meeting.own_roster,
            sealed=self.sealed,
            zk=zk,
        )
        return ZkHandshake(peer_onion=meeting.initiator, proof=proof)


class Prover:
    """Begins handshakes, and remembers them until the peer has called back or a minute has passed."""

    def __init__(self, book: RosterBook, *, token_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._book = book
        self._token_bytes = token_bytes
        self._attempts: dict[bytes, Attempt] = {}

    def begin(self, policy: Policy, peer: str, challenge: Challenge, now_s: float) -> Attempt:
        """`challenge` came from the onion `peer` itself. Raises `Refused`, or `RonError` Conflict when it does not fit
        (another onion's, a list we do not know), Backpressure when too many attempts are under way."""
        holder = policy.holding(peer)
        if challenge.onion != peer:
            raise conflict("the peer gave the challenge of another onion", "it relays; do not federate with it")
        roster = self._book.newest(peer)
        if roster is None or roster.ref != challenge.roster:
            raise conflict("the peer's list of holder keys is not the one we know", "fetch its list and begin again")
        if holder.public not in roster.keys:
            raise conflict("our holder key is not on the peer's list", "ask its operator for a new capability")
        self._attempts = {nonce: one for nonce, one in self._attempts.items() if now_s < one.expires_s}
        if len(self._attempts) >= MAX_ATTEMPTS:
            raise backpressure("too many handshakes are under way")
        meeting = Meeting.begun(policy.onion, challenge, self._token_bytes(NONCE_BYTES), policy.roster.ref)
        attempt = self._attempt(meeting, holder, roster, policy.roster, now_s + CHALLENGE_LIFE_S)
        self._attempts[meeting.own_nonce] = attempt
        return attempt

    def take(self, own_nonce: bytes, now_s: float) -> Attempt:
        """The attempt that awaits an answer to `own_nonce`, once. Raises `Refused`."""
        attempt = self._attempts.pop(own_nonce, None)
        if attempt is None or now_s >= attempt.expires_s:
            raise Refused("nonce")
        return attempt

    def drop(self, attempt: Attempt) -> None:
        """It came to nothing."""
        self._attempts.pop(attempt.channel.meeting.own_nonce, None)

    def _attempt(self, meeting: Meeting, holder: HolderKey, roster: Roster, own: Roster, expires_s: float) -> Attempt:
        secret = self._token_bytes(SECRET_BYTES)
        try:
            sealed = hpke.PublicKey(CHANNEL_SUITE, meeting.channel_key).seal(secret, info=meeting.encoded())
        except InvalidKeyError:
            raise conflict("the peer's channel key is not valid") from None
        channel = Channel.agree(meeting, sealed, secret)
        return Attempt(
            channel=channel, sealed=sealed, holder=holder, roster=roster, own_roster=own, expires_s=expires_s
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A peer's proof that is well placed in every way and not checked yet. role: ours. roster: our list."""

    channel: Channel
    role: Role
    peer: str
    roster: Roster
    transcript: bytes
    zk: bytes

    def verify(self) -> None:
        """Raises `Refused` unless the peer knows the secret of one of our holders. Slow."""
        try:
            schnorr.verify(self.transcript, self.roster.keys, self.zk)
        except InvalidProofError:
            raise Refused("proof") from None

    def answer(self, policy: Policy, roster: Roster, wall_s: float) -> ZkHandshake:
        """Our own proof, for the onion the peer claims to be. roster: the peer's list. Slow.

        Raises `Refused` when `roster` is not the list it named, or lacks our key.
        """
        if roster.ref != self.channel.meeting.own_roster:
            raise Refused("roster")
        time = int(wall_s)
        try:
            holder = policy.holding(self.peer)
            zk = schnorr.prove(self.channel.transcript("responder", time), roster.keys, holder)
        except NotAHolderError:
            raise Refused("no_holding") from None
        proof = ResponderProof(nonce=self.channel.meeting.own_nonce, time=time, roster=roster.ref, zk=zk)
        return ZkHandshake(peer_onion=policy.onion, proof=proof)


class Verifier:
    """Gives challenges to everybody and considers proofs of those who are allowed, cheap checks first."""

    def __init__(self, challenges: Challenges) -> None:
        self._challenges = challenges

    def challenge(self, policy: Policy, now_s: float, wall_s: float) -> Challenge:
        """The same for whoever asks: it does not know who does."""
        issued = self._challenges.issue(now_s)
        return Challenge(
            protocol=PROTOCOL,
            onion=policy.onion,
            nonce=issued.nonce,
            channel_key=issued.channel_key,
            roster=policy.roster.ref,
            expires_at=int(wall_s) + CHALLENGE_LIFE_S,
        )

    def first(self, policy: Policy, peer: str, proof: InitiatorProof, now_s: float, wall_s: float) -> Claim:
        """A proof by a peer that began. Raises `Refused`; the nonce is used up from its check on."""
        self._gate(policy, peer, proof.time, wall_s)
        key = self._challenges.spend(proof.nonce, now_s)
        if proof.roster != policy.roster.ref:
            raise Refused("roster")
        meeting = Meeting.joined(peer, policy.onion, key.public.raw, proof)
        try:
            secret = key.open(proof.sealed, info=meeting.encoded())
        except OpenError:
            raise Refused("channel") from None
        channel = Channel.agree(meeting, proof.sealed, secret)
        return self._claim(channel, "responder", peer, policy.roster, proof)

    def second(
        self, policy: Policy, peer: str, proof: ResponderProof, prover: Prover, now_s: float, wall_s: float
    ) -> Claim:
        """A proof in return for one that `prover` has begun. Raises `Refused`."""
        self._gate(policy, peer, proof.time, wall_s)
        attempt = prover.take(proof.nonce, now_s)
        if attempt.channel.meeting.responder != peer:
            raise Refused("nonce")
        if proof.roster != policy.roster.ref or attempt.own_roster.ref != policy.roster.ref:
            raise Refused("roster")
        return self._claim(attempt.channel, "initiator", peer, policy.roster, proof)

    @staticmethod
    def _gate(policy: Policy, peer: str, time: int, wall_s: float) -> None:
        try:
            check_onion(peer)
        except RonError:
            raise Refused("address") from None
        policy.holding(peer)
        if abs(wall_s - time) > TIME_WINDOW_S:
            raise Refused("time")

    @staticmethod
    def _claim(
        channel: Channel, role: Role, peer: str, roster: Roster, proof: InitiatorProof | ResponderProof
    ) -> Claim:
        if len(proof.zk) != roster.keys.proof_bytes:
            raise Refused("proof")
        prover: Role = "initiator" if role == "responder" else "responder"
        transcript = channel.transcript(prover, proof.time)
        return Claim(channel=channel, role=role, peer=peer, roster=roster, transcript=transcript, zk=proof.zk)
