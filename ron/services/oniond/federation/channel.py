"""What ties a proof to one conversation: a secret only its two ends have, and a transcript with all they agreed on.

In: both onions, both nonces, the lists, the key and the sealed secret. Out: keys, transcripts, tags. The initiator
seals 32 random bytes to the challenge's one-time key (HPKE, X-Wing); the rest grows from them by HKDF-SHA256.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Any, Literal

import cbor2
import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ron.services.oniond.federation.messages import (
    PROTOCOL,
    TAG_BYTES,
    Challenge,
    FactsMessage,
    InitiatorProof,
    RosterRef,
    TransportFacts,
)

Role = Literal["initiator", "responder"]
_SESSION_ID_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """All that is public between two nodes before the first proof. nonce, channel_key, roster: the responder's."""

    initiator: str
    responder: str
    nonce: bytes
    own_nonce: bytes
    channel_key: bytes
    roster: RosterRef
    own_roster: RosterRef

    @classmethod
    def begun(cls, initiator: str, challenge: Challenge, own_nonce: bytes, own_roster: RosterRef) -> Meeting:
        """As the initiator sees it."""
        return cls(
            initiator=initiator,
            responder=challenge.onion,
            nonce=challenge.nonce,
            own_nonce=own_nonce,
            channel_key=challenge.channel_key,
            roster=challenge.roster,
            own_roster=own_roster,
        )

    @classmethod
    def joined(cls, initiator: str, responder: str, channel_key: bytes, proof: InitiatorProof) -> Meeting:
        """As the responder sees it."""
        return cls(
            initiator=initiator,
            responder=responder,
            nonce=proof.nonce,
            own_nonce=proof.own_nonce,
            channel_key=channel_key,
            roster=proof.roster,
            own_roster=proof.own_roster,
        )

    def encoded(self) -> bytes:
        """The HPKE `info` under which the secret is sealed."""
        rosters = [list(msgspec.structs.astuple(ref)) for ref in (self.roster, self.own_roster)]
        names = [self.initiator, self.responder]
        return _encoded("meeting", *names, self.nonce, self.own_nonce, self.channel_key, *rosters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """The keys of one handshake and of the session that comes of it. The same at both ends, and nowhere else."""

    meeting: Meeting
    session_id: str
    _binding: bytes = field(repr=False)
    _confirm: bytes = field(repr=False)
    _facts: bytes = field(repr=False)

    @classmethod
    def agree(cls, meeting: Meeting, sealed: bytes, secret: bytes) -> Channel:
        """`secret` is what `sealed` holds; both ends name the same meeting or get different keys."""
        context = hashlib.sha256(_encoded("channel", meeting.encoded(), sealed)).digest()
        derived = HKDF(SHA256(), length=3 * TAG_BYTES + _SESSION_ID_BYTES, salt=None, info=context).derive(secret)
        return cls(
            meeting=meeting,
            session_id=derived[3 * TAG_BYTES :].hex(),
            _binding=derived[:TAG_BYTES],
            _confirm=derived[TAG_BYTES : 2 * TAG_BYTES],
            _facts=derived[2 * TAG_BYTES : 3 * TAG_BYTES],
        )

    def transcript(self, prover: Role, time: int) -> bytes:
        """What the proof of this side is bound to; see the table in docs/federation.rst."""
        meeting = self.meeting
        mine = (meeting.initiator, meeting.own_nonce)
        theirs = (meeting.responder, meeting.nonce)
        ref = meeting.roster
        if prover == "responder":
            mine, theirs, ref = theirs, mine, meeting.own_roster
        return _encoded(
            "proof",
            prover,
            mine[0],
            theirs[0],
            theirs[1],
            mine[1],
            time,
            ref.version,
            ref.digest,
            ref.size,
            self._binding,
        )

    def confirmation(self) -> bytes:
        """What the initiator's onion answers, so that the responder knows whom it has called back."""
        return self._mac(self._confirm, "confirm", self.session_id)

    def facts_message(
        self, sender: Role, kind: Literal["ask", "answer"], sequence: int, facts: TransportFacts
    ) -> FactsMessage:
        """`facts` with the tag that says who sends them, in which call, and whether they ask or answer."""
        tag = self._mac(self._facts, sender, kind, self.session_id, sequence, msgspec.to_builtins(facts))
        return FactsMessage(session_id=self.session_id, sequence=sequence, facts=facts, tag=tag)

    def sent(self, sender: Role, kind: Literal["ask", "answer"], message: FactsMessage) -> bool:
        """True when `sender` made `message` in this session."""
        wanted = self.facts_message(sender, kind, message.sequence, message.facts)
        return message.session_id == self.session_id and hmac.compare_digest(wanted.tag, message.tag)

    @staticmethod
    def _mac(key: bytes, *fields: Any) -> bytes:
        return hmac.digest(key, _encoded(*fields), "sha256")


def _encoded(*fields: Any) -> bytes:
    """Deterministic CBOR (RFC 8949 §4.2.1): no two lists of fields read the same."""
    return cbor2.dumps([PROTOCOL, *fields], canonical=True)
