"""What two nodes say to each other when they federate: the JSON bodies, and nothing that is not a shape.

In: bytes from a peer. Out: strict structs, or msgspec's error. Every length is bounded here, before anything is
computed. Bytes are standard base64 with padding. Unix times are whole seconds.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal

import msgspec

from ron.crypto import hpke
from ron.crypto.group import InvalidElementError, check_element
from ron.crypto.schnorr import KEY_BYTES, MAX_KEYS, PROOF_BYTES_A_KEY
from ron.proto.errors import bad_request
from ron.tor.onionkeys import onion_address

PROTOCOL: Literal["ron-federation/1"] = "ron-federation/1"
CHANNEL_SUITE = hpke.Suite.PQ
NONCE_BYTES = 32
SECRET_BYTES = 32
DIGEST_BYTES = 32
TAG_BYTES = 32
SEALED_BYTES = SECRET_BYTES + CHANNEL_SUITE.overhead_bytes
# The longest proof in base64 and everything else, with room.
MAX_BODY_BYTES = 96 * 1024
_PUBLIC_BYTES = 32

Onion = Annotated[str, msgspec.Meta(pattern=r"^[a-z2-7]{56}\.onion\Z")]
SessionId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
UnixSeconds = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
Label = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9.:/-]{0,31}\Z")]
Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
Tag = Annotated[bytes, msgspec.Meta(min_length=TAG_BYTES, max_length=TAG_BYTES)]
Sealed = Annotated[bytes, msgspec.Meta(min_length=SEALED_BYTES, max_length=SEALED_BYTES)]
ChannelKey = Annotated[
    bytes, msgspec.Meta(min_length=CHANNEL_SUITE.public_bytes, max_length=CHANNEL_SUITE.public_bytes)
]
Zk = Annotated[bytes, msgspec.Meta(min_length=PROOF_BYTES_A_KEY, max_length=PROOF_BYTES_A_KEY * MAX_KEYS)]
Key = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Labels = Annotated[tuple[Label, ...], msgspec.Meta(max_length=16)]


class RosterRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names one list of holder keys: its version, `KeyList.digest`, and how many keys it has."""

    version: Count
    digest: Digest
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_KEYS)]


class RosterListing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The list itself, as its issuer gives it to every holder: the same for all of them."""

    protocol: Literal["ron-federation/1"]
    onion: Onion
    version: Count
    keys: Annotated[tuple[Key, ...], msgspec.Meta(min_length=1, max_length=MAX_KEYS)]


class Challenge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answer of `GET /federate/challenge`, the same for whoever asks but for what is random in it.

    channel_key: public key of `CHANNEL_SUITE`, made for this nonce. roster: the list to prove against. expires_at is
    for people and logs; the verifier's own clock decides.
    """

    protocol: Literal["ron-federation/1"]
    onion: Onion
    nonce: Nonce
    channel_key: ChannelKey
    roster: RosterRef
    expires_at: UnixSeconds


class InitiatorProof(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="role", tag="initiator"
):
    """What the side that began says to the other.

    nonce: the challenge's. own_nonce, own_roster: the challenge to the other side. sealed: a fresh secret, for the
    challenge's channel_key.
    """

    nonce: Nonce
    own_nonce: Nonce
    time: UnixSeconds
    roster: RosterRef
    own_roster: RosterRef
    sealed: Sealed
    zk: Zk


class ResponderProof(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="role", tag="responder"
):
    """What the other side says in return, at the initiator's own onion. nonce: the initiator's `own_nonce`."""

    nonce: Nonce
    time: UnixSeconds
    roster: RosterRef
    zk: Zk


class ZkHandshake(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /federate/zk_handshake`. peer_onion: who says so; it is a claim until the handshake is over."""

    peer_onion: Onion
    proof: InitiatorProof | ResponderProof


class HandshakeAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ok is always true: refusals are error envelopes.

    state: `pending` until the sender's onion has been called back, `open` at the end of that call. confirm: only with
    `open`, shows that the onion's operator is who made the first proof.
    """

    ok: bool
    state: Literal["pending", "open"]
    session_id: SessionId
    expires_at: UnixSeconds
    confirm: Tag | None = None


class TransportFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that federated nodes tell each other: how to reach and not to overload one another. Nothing about apps,
    tenants, content or people has a place in it.

    onion: where this node takes federated traffic. protocols: `oap/1`. regions: the operator's own labels.
    """

    onion: Onion
    protocols: Labels
    regions: Labels = ()
    load: Literal["low", "normal", "high", "full"] = "normal"


class FactsMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body and answer of `POST /federate/facts`. sequence: the asking side counts up; the answer repeats it."""

    session_id: SessionId
    sequence: Count
    facts: TransportFacts
    tag: Tag


def check_onion(address: str) -> str:
    """`address` when it is a v3 onion address in its one spelling (rend-spec-v3 §6). Raises `RonError` BadRequest.

    The key in it must be of prime order: one key with parts of small order would have several addresses.
    """
    try:
        public = base64.b32decode(address.removesuffix(".onion").upper())[:_PUBLIC_BYTES]
        check_element(public)
    except (binascii.Error, InvalidElementError):
        raise bad_request("not a v3 onion address", "56 characters and .onion, in lower case") from None
    if onion_address(public) != address:
        raise bad_request("not a v3 onion address", "its checksum does not match: compare it with the original")
    return address
