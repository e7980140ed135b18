"""What vaults say to each other over the mesh, and the one thing they write into its book.

In: MessagePack. Out: strict structs with bounds. What is inside frames and boxes is for `ron.crypto.frost` to judge.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ron.crypto.frost.plan import Purpose
from ron.crypto.frost.shamir import MAX_MEMBERS
from ron.proto.balance import NodeName, ServiceName

ASK = "vault/ask"
COMMIT = "vault/commit"
SIGN = "vault/sign"
PROPOSE = "vault/propose"
BEGIN = "vault/begin"
DEAL = "vault/deal"
GAVE_UP = "vault/gave-up"
STANDING = "vault/standing"

MAX_VOTES = 32
APPROVED = "approved/"
SERVICE = "service/"
_RUN_LABEL = b"ron-balance/1 run"
_ID_LABEL = b"ron-balance/1 ceremony"

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Number = Annotated[int, Meta(ge=0, le=65_535)]
Numbers = Annotated[tuple[Number, ...], Meta(max_length=MAX_MEMBERS)]
Millis = Annotated[int, Meta(ge=0, le=2**63 - 1)]
# The longest frame is a package of 16 commitments; a box adds what X-Wing does.
FrameBytes = Annotated[bytes, Meta(max_length=4096)]


class _Word(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Vote(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A holder's word that a run may have a share, or the key. number: whose share made the proof, 0 the whole key."""

    service: ServiceName
    number: Number
    at_ms: Millis
    proof: Annotated[bytes, Meta(max_length=64)]


class Approval(_Word, frozen=True, kw_only=True):
    """In the book under `approved/<node>`. run: digest of the node's seal key, which it makes anew at each start."""

    run: Digest
    by: NodeName
    at_ms: Millis
    votes: Annotated[tuple[Vote, ...], Meta(max_length=MAX_VOTES)] = ()


class Ask(_Word, frozen=True, kw_only=True):
    """Give me the key, or have me dealt a share. run: the one that asks."""

    service: ServiceName
    run: Digest


class Given(_Word, frozen=True, kw_only=True):
    """The key, sealed to the run that asked."""

    box: FrameBytes


class Commit(_Word, frozen=True, kw_only=True):
    """Round one of a signature. epoch: the unblinded group's digest. nonce: names the session."""

    service: ServiceName
    epoch: Digest
    nonce: Digest
    message: Annotated[bytes, Meta(max_length=1024)]


class Package(_Word, frozen=True, kw_only=True):
    """Round two: everybody's commitments."""

    nonce: Digest
    frame: FrameBytes


class Framed(_Word, frozen=True, kw_only=True):
    """A signer's answer in either round."""

    frame: FrameBytes


class Seat(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who sits where in a ceremony. number: 0 for the owner of a key to import. run: the one that takes part."""

    number: Number
    name: NodeName
    run: Digest


class Proposal(_Word, frozen=True, kw_only=True):
    """A ceremony that everybody in it has to agree to. public, previous: empty where there is none.

    removed: numbers that get no share again without an operator's order, unlike those that are only away."""

    service: ServiceName
    purpose: Purpose
    nonce: Digest
    threshold: Annotated[int, Meta(ge=2, le=MAX_MEMBERS)]
    dealers: Numbers
    receivers: Numbers
    seats: Annotated[tuple[Seat, ...], Meta(max_length=2 * MAX_MEMBERS)]
    removed: Numbers = ()
    public: Annotated[bytes, Meta(max_length=32)] = b""
    previous: Annotated[bytes, Meta(max_length=1024)] = b""

    @property
    def ceremony(self) -> bytes:
        """The 32 bytes by which all call it; they cover every field."""
        return hashlib.sha512(_ID_LABEL + msgspec.msgpack.encode(self)).digest()[:32]

    def seat(self, number: int) -> Seat | None:
        """Who has this number."""
        return next((seat for seat in self.seats if seat.number == number), None)


class Begin(_Word, frozen=True, kw_only=True):
    """All have agreed."""

    ceremony: Digest


class Dealt(_Word, frozen=True, kw_only=True):
    """A message of a ceremony. sealed: the frame is a box for the receiver's run."""

    ceremony: Digest
    of: Number
    to: Number
    sealed: bool
    frame: FrameBytes


class GaveUp(_Word, frozen=True, kw_only=True):
    """The sender's part in a ceremony has failed. members: whom it holds that against."""

    ceremony: Digest
    reason: Annotated[str, Meta(max_length=40)]
    members: Numbers = ()


class Standing(_Word, frozen=True, kw_only=True):
    """How did this ceremony end for you? epoch: the digest of the group that came out."""

    service: ServiceName
    ceremony: Digest
    epoch: Digest


class Stands(_Word, frozen=True, kw_only=True):
    """adopted: that epoch is, or was, in use here. confirmed: the share is here and waits. failed: never confirmed."""

    state: Literal["unknown", "open", "confirmed", "adopted", "failed"]


class Agreed(_Word, frozen=True, kw_only=True):
    """Yes, or: heard."""


def run_digest(seal_key: bytes) -> bytes:
    """What names the run of a node whose HPKE public key is `seal_key`; empty for none."""
    return hashlib.sha512(_RUN_LABEL + seal_key).digest()[:32] if seal_key else b""


def joined(label: bytes, *parts: bytes) -> bytes:
    """Each part behind its length, so that no two sequences of parts read the same."""
    return label + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
