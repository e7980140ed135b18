"""What people are shown of governance. In: the ledger, the book, the hours. Out: views of `ron.proto.governance`. Pure
but for reading the clock."""

from __future__ import annotations

from bisect import bisect_left
from itertools import islice

import msgspec

from ron.proto.clock import rfc3339
from ron.proto.governance import (
    DisputeView,
    FreezeView,
    GovernanceView,
    JointStatement,
    LogAnswer,
    ProposalList,
    ProposalView,
    RecordView,
    SignerView,
    State,
    VoteView,
)
from ron.services.kms.governance.book import Book, Record
from ron.services.kms.governance.joint import VOICE
from ron.services.kms.governance.proposals import LOCK_S, Case, Vote
from ron.services.kms.governance.quorum import FREEZE, Governance
from ron.services.kms.governance.signers import counts, is_due, key_id, set_digest

PAGE = 50
LOG_PAGE = 200


class _Said(msgspec.Struct):
    """What of a signed object a line of the log names."""

    verb: str = ""
    proposal: str = ""
    id: str = ""


def standing(governance: Governance) -> GovernanceView:
    """All of it in short."""
    ledger, hours = governance.ledger, governance.hours
    signers = ledger.deciders()
    shown = signer_views(governance)
    freezes = (
        FreezeView(scope=scope, proposal=one.proposal, left_s=int(hours.left_s(FREEZE, one.proposal)))
        for scope, one in ledger.freezes.items()
        if not hours.is_over(FREEZE, one.proposal)
    )
    return GovernanceView(
        book=ledger.book,
        records=len(governance.book),
        head=governance.book.head,
        micronode=ledger.profile.micronode,
        signer_set=set_digest(signers),
        threshold=signers.threshold,
        signers=shown,
        freezes=tuple(freezes),
        pq_modes=dict(ledger.pq_modes),
        disputes=disputes(governance),
        open=len(ledger.open_cases()),
        rotation_due=any(one.due for one in shown),
        group=signers.group,
    )


def signer_views(governance: Governance) -> tuple[SignerView, ...]:
    """Who decides."""
    at, profile = governance.hours.unix(), governance.ledger.profile
    return tuple(
        SignerView(
            role=one.role,
            key_id=key_id(one.public),
            public=one.public,
            since=rfc3339(one.since),
            counts=counts(one, at, profile),
            due=is_due(one, at, profile),
        )
        for one in governance.ledger.deciders().members
    )


def disputes(governance: Governance) -> tuple[DisputeView, ...]:
    """What auditors have marked, what is to be said of it next, and what came of it."""
    at = governance.hours.unix()
    return tuple(
        DisputeView(
            subject=subject,
            disputed=one.resolution is None,
            reason=one.statement.reason,
            at=rfc3339(one.at),
            resolution=one.resolution,
            next=one.due.goal if one.due is not None else "",
            until=rfc3339(one.due.until) if one.due is not None else "",
            late=one.due is not None and at > one.due.until,
        )
        for subject, one in governance.ledger.disputes.items()
    )


def proposal_view(case: Case, governance: Governance) -> ProposalView:
    """A proposal, its votes, what became of it. One whose time is over is shown so before that was noted."""
    proposal = case.proposal
    dispute = governance.ledger.disputes.get(f"proposal:{proposal.id}")
    over = case.is_open and case.is_over(governance.hours.unix())
    return ProposalView(
        id=proposal.id,
        digest=case.digest,
        state="expired" if over else case.state,
        action=proposal.action,
        scope=proposal.scope,
        change=dict(proposal.change),
        author=proposal.author,
        rationale=proposal.rationale,
        risk=proposal.risk,
        rollback=proposal.rollback,
        attachments=proposal.attachments,
        created_at=rfc3339(proposal.created_at),
        expires_at=rfc3339(proposal.expires_at),
        needed=governance.ledger.deciders().threshold,
        approvals=case.approvals,
        signatures=tuple(map(_vote, case.votes)),
        object=case.text,
        used=case.used,
        disputed=dispute is not None and dispute.resolution is None,
        why=case.why,
    )


def proposal_list(governance: Governance, state: State | None, before: str | None, limit: int = PAGE) -> ProposalList:
    """Newest first, `limit` at a time. before: the id to go on after. Raises NotFound for one that is none."""
    cases = list(governance.ledger.cases.values())
    if before is not None:
        cases = cases[: cases.index(governance.ledger.case(before))]
    views = (proposal_view(case, governance) for case in reversed(cases))
    found = list(islice((view for view in views if state is None or view.state == state), limit + 1))
    more = len(found) > limit
    return ProposalList(proposals=tuple(found[:limit]), next=found[limit - 1].id if more else None)


def log_page(book: Book, start: int, since: int) -> LogAnswer:
    """Records from `start` on that are not older than `since` (Unix seconds). Neither is below 0."""
    # records are in the order of their time
    first = max(start, bisect_left(book.records, since, key=lambda record: record.at))
    shown = book.records[first : first + LOG_PAGE]
    after = first + len(shown)
    more = after if after < len(book) else None
    return LogAnswer(records=tuple(_record(one, book.hash_of(one.seq)) for one in shown), next=more)


def _vote(vote: Vote) -> VoteView:
    said = vote.statement
    locked = rfc3339(vote.at + LOCK_S) if said.verb == "tiebreak" else None
    return VoteView(
        verb=said.verb,
        role=VOICE if isinstance(said, JointStatement) else said.role,
        key_id=said.signer,
        at=rfc3339(vote.at),
        reason=said.reason,
        signature=vote.signature,
        counts_from=locked,
        by=vote.signers if isinstance(said, JointStatement) else (),
    )


def _record(record: Record, line_hash: str) -> RecordView:
    said = _Said() if record.signed is None else msgspec.json.decode(record.signed.object, type=_Said)
    return RecordView(
        seq=record.seq,
        at=rfc3339(record.at),
        what=record.event or said.verb or record.kind,
        actor=record.signed.key_id if record.signed is not None else record.actor,
        proposal=record.proposal or said.proposal or said.id,
        hash=line_hash,
        detail=record.signed.object if record.signed is not None else "",
    )
