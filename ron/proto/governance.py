"""What nobody may do alone to a key service, on the wire: proposals, votes and how they stand (specs/ron-kms.md,
GOVERNANCE).

In: objects that people signed, as text. Out: strict structs for the service, the SDK and `ronctl`. Shapes, no rules.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PATH = "/v1/kms/governance"
MAX_OBJECT = 16 * 1024
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"

Role = Literal["policy-owner", "security-officer", "custodian", "auditor"]
Action = Literal[
    "destroy_key",
    "root_rotation",
    "backend_change",
    "pq_mode",
    "attest_require",
    "hybrid_off",
    "amnesia_off",
    "rollback",
    "freeze",
    "signers",
    "override",
]
State = Literal["draft", "pending", "approved", "executed", "rejected", "expired"]
Voice = Literal["policy-owner", "security-officer", "custodian", "auditor", "joint"]
Verb = Literal["submit", "approve", "reject", "tiebreak", "dispute", "acknowledge", "triage", "extend", "resolve"]
KeyId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z", description="First half of SHA-256 of the public key.")]
BookId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z", description="Names one service's book: no vote fits another.")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="SHA-256 of the canonical JSON.")]
ProposalId = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
Scope = Annotated[str, Meta(pattern=rf"^(global|tenant:{_NAME})\Z")]
PublicHex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="An Ed25519 public key.")]
SignatureB64 = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]{86}==\Z")]
Subject = Annotated[str, Meta(pattern=r"^((request|cap|proposal|kid|audit):[!-~]{1,300})?\Z")]
GroupHex = Annotated[
    str,
    Meta(
        pattern=r"^(([0-9a-f]{2}){102,578})?\Z",
        description="A joint key: threshold, count, its Ed25519 public key, each member's verification share "
        "(RFC 9591; docs/threshold.rst). Empty for none.",
    ),
]
Unix = Annotated[int, Meta(ge=0, le=253_402_300_799, description="Seconds since 1970, UTC.")]
_Text = Annotated[str, Meta(max_length=2000)]
_ChangeKey = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_.]{0,63}\Z")]
_ChangeValue = Annotated[str, Meta(max_length=4096)]
Change = Annotated[dict[_ChangeKey, _ChangeValue], Meta(min_length=1, max_length=16)]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing is left out where it is written: what is signed has one spelling."""


# Signed


class Proposal(_Strict, frozen=True, kw_only=True):
    """What its author signs. signer_set: digest of the set that is to decide; with another one it decides nothing.

    draft: it waits for its author's `submit`. risk, rollback: in words. attachments: where evidence is (CI runs).
    """

    type: Literal["ron-kms/governance/proposal/1"] = "ron-kms/governance/proposal/1"
    book: BookId
    id: ProposalId
    author: KeyId
    action: Action
    scope: Scope
    change: Change
    rationale: Annotated[str, Meta(min_length=1, max_length=2000)]
    risk: _Text = ""
    rollback: _Text = ""
    attachments: Annotated[tuple[Annotated[str, Meta(max_length=500)], ...], Meta(max_length=16)] = ()
    signer_set: Digest
    created_at: Unix
    expires_at: Unix
    draft: bool = False


class Statement(_Strict, frozen=True, kw_only=True):
    """A signer's word. Of a proposal: its id and its digest, so that a vote is for exactly what was read.

    Of a dispute: `subject`, and `proposal` and `digest` are empty.
    """

    type: Literal["ron-kms/governance/statement/1"] = "ron-kms/governance/statement/1"
    book: BookId
    verb: Verb
    signer: KeyId
    role: Role
    at: Unix
    proposal: Annotated[str, Meta(max_length=36)] = ""
    digest: Annotated[str, Meta(max_length=64)] = ""
    subject: Subject = ""
    reason: _Text = ""


class JointStatement(_Strict, frozen=True, kw_only=True):
    """An approval that several signers make together, with one signature of their joint key. by: who they are, in
    order; each of them signs only together with exactly these. signer: the joint key's id.

    at: of whoever began it.
    """

    type: Literal["ron-kms/governance/joint/1"] = "ron-kms/governance/joint/1"
    book: BookId
    verb: Literal["approve"] = "approve"
    signer: KeyId
    by: Annotated[tuple[KeyId, ...], Meta(min_length=2, max_length=16)]
    at: Unix
    proposal: ProposalId
    digest: Digest
    reason: _Text = ""


class SignedObject(_Strict, frozen=True, kw_only=True):
    """object: canonical JSON (RFC 8785) of a `Proposal`, `Statement` or `JointStatement`. signature: Ed25519 over its
    SHA-256."""

    object: Annotated[str, Meta(max_length=MAX_OBJECT)]
    key_id: KeyId
    signature: SignatureB64


class Signer(_Strict, frozen=True, kw_only=True):
    """since: when this key became a signer."""

    role: Role
    public: PublicHex
    since: Unix


class SignerSet(_Strict, frozen=True, kw_only=True, omit_defaults=True):
    """threshold: of the members that are no auditors. rotated_at: when it became so.

    group: the joint key of those members, if they have one; left out otherwise, as in books from before there was any.
    """

    members: Annotated[tuple[Signer, ...], Meta(min_length=1, max_length=16)]
    threshold: Annotated[int, Meta(ge=1, le=16)]
    rotated_at: Unix
    group: GroupHex = ""


# Asked


class ExecuteRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST …/proposals/{id}/execute`."""


# Shown


class _Shown(msgspec.Struct, frozen=True, kw_only=True):
    pass


class SignerView(_Shown, frozen=True, kw_only=True):
    """counts: it does at present; a micronode's second key counts for a week. due: it ought to be rotated."""

    role: Role
    key_id: str
    public: str
    since: str
    counts: bool
    due: bool


class VoteView(_Shown, frozen=True, kw_only=True):
    """A signer's word on a proposal. counts_from: of a tie-break, when its lock opens. by: who made a joint one."""

    verb: Verb
    role: Voice
    key_id: str
    at: str
    reason: str
    signature: str
    counts_from: str | None = None
    by: tuple[str, ...] = ()


class ProposalView(_Shown, frozen=True, kw_only=True):
    """A proposal and what became of it. object: what was signed. used: its one permission was made use of.

    needed: approvals; approvals: those that count. why: of a state nobody voted for.
    """

    id: str
    digest: str
    state: State
    action: Action
    scope: str
    change: dict[str, str]
    author: str
    rationale: str
    risk: str
    rollback: str
    attachments: tuple[str, ...]
    created_at: str
    expires_at: str
    needed: int
    approvals: int
    signatures: tuple[VoteView, ...]
    object: str
    used: bool = False
    disputed: bool = False
    why: str = ""


class FreezeView(_Shown, frozen=True, kw_only=True):
    """proposal: the freeze's id. left_s: it ends by itself after so long."""

    scope: str
    proposal: str
    left_s: int


class DisputeView(_Shown, frozen=True, kw_only=True):
    """A mark of an auditor. resolution: None while it is open; nothing is ever rolled back by it. next: what is to be
    said of it (`acknowledge`, `triage`, `resolve`), and until when; late: that is over. Empty once it is resolved."""

    subject: str
    disputed: bool
    reason: str
    at: str
    resolution: str | None = None
    next: str = ""
    until: str = ""
    late: bool = False


class GovernanceView(_Shown, frozen=True, kw_only=True):
    """How it stands. head: hash of the book's newest record. pq_modes: by scope, what quorums decided. group: the
    signers' joint key, "" for none."""

    book: str
    records: int
    head: str
    micronode: bool
    signer_set: str
    threshold: int
    signers: tuple[SignerView, ...]
    freezes: tuple[FreezeView, ...]
    pq_modes: dict[str, str]
    disputes: tuple[DisputeView, ...]
    open: int
    rotation_due: bool
    group: str = ""


class ProposalList(_Shown, frozen=True, kw_only=True):
    """Newest first. next: give it as `before` for those that came earlier, None at the end."""

    proposals: tuple[ProposalView, ...]
    next: str | None = None


class RecordView(_Shown, frozen=True, kw_only=True):
    """A line of the book. hash: SHA-256 of the line; the next one names it."""

    seq: int
    at: str
    what: str
    actor: str
    proposal: str
    hash: str
    detail: str = ""


class LogAnswer(_Shown, frozen=True, kw_only=True):
    """Oldest first. next: the `start` that goes on, None at the end."""

    records: tuple[RecordView, ...]
    next: int | None = None
