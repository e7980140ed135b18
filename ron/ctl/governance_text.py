"""Governance as lines for a terminal. In: views. Out: text, in which nothing of anybody else's is obeyed."""

from __future__ import annotations

from ron.ctl.plain import plain_text
from ron.proto.governance import GovernanceView, Proposal, ProposalView, RecordView


def proposal_line(view: ProposalView) -> str:
    """In a list."""
    marks = "".join(f", {mark}" for mark, is_so in (("used", view.used), ("disputed", view.disputed)) if is_so)
    return (
        f"{view.id}  {view.state:<8}  {view.approvals}/{view.needed}  {view.action} {plain_text(view.scope)} "
        f"({_changes(view.change)}), until {view.expires_at}{marks}"
    )


def proposal_text(view: ProposalView) -> str:
    """All of it."""
    lines = [
        f"proposal   {view.id}",
        f"state      {view.state}{f': {plain_text(view.why)}' if view.why else ''}",
        f"action     {view.action} for {plain_text(view.scope)}",
        *(f"change     {plain_text(key)} = {plain_text(value)}" for key, value in sorted(view.change.items())),
        f"rationale  {plain_text(view.rationale)}",
        *(
            f"{name:<9}  {plain_text(text)}"
            for name, text in (("risk", view.risk), ("rollback", view.rollback))
            if text
        ),
        *(f"evidence   {plain_text(one)}" for one in view.attachments),
        f"author     {view.author}, {view.created_at}",
        f"until      {view.expires_at}",
        f"digest     {view.digest}",
        f"approvals  {view.approvals} of {view.needed}",
    ]
    for vote in view.signatures:
        locked = f", counts from {vote.counts_from}" if vote.counts_from else ""
        reason = f": {plain_text(vote.reason)}" if vote.reason else ""
        together = f" of {', '.join(vote.by)}" if vote.by else ""
        lines.append(f"  {vote.verb:<8} {vote.role} {vote.key_id}{together}, {vote.at}{locked}{reason}")
    if view.used:
        lines.append("used       this permission is no longer good")
    if view.disputed:
        lines.append("disputed   an auditor has marked it")
    return "\n".join(lines)


def question(proposal: Proposal) -> str:
    """What somebody is about to sign for, from the very bytes that are signed."""
    why = plain_text(proposal.rationale)
    return f"{proposal.action} for {plain_text(proposal.scope)}: {_changes(proposal.change)} ({why})"


def standing_text(view: GovernanceView) -> str:
    """Who decides, and what holds."""
    voters = sum(one.role != "auditor" for one in view.signers)
    lines = [
        f"book       {view.book}, {view.records} records, head {view.head}",
        f"quorum     {view.threshold} of {voters}",
    ]
    for one in view.signers:
        note = ", due for rotation" if one.due else ""
        lines.append(f"  {one.role:<16} {one.key_id}, since {one.since}{note}")
    if view.group:
        # threshold, count, then the public key: `GroupKey.encode`
        lines.append(f"joint key  {view.group[4:68]}")
    lines += [f"pq mode    {plain_text(scope)}: {mode}" for scope, mode in sorted(view.pq_modes.items())]
    lines += [f"FROZEN     {plain_text(one.scope)} by {one.proposal}, {one.left_s} s left" for one in view.freezes]
    for mark in view.disputes:
        late = ", LATE" if mark.late else ""
        open_ = f"disputed; {mark.next} until {mark.until}{late}"
        state = open_ if mark.disputed else f"resolved: {plain_text(mark.resolution or '')}"
        lines.append(f"dispute    {plain_text(mark.subject)}: {plain_text(mark.reason)}; {state}")
    return "\n".join(lines)


def record_line(record: RecordView) -> str:
    """A line of the book."""
    about = f" {record.proposal}" if record.proposal else ""
    return f"{record.at}  {record.seq:>5}  {record.what:<9}{about} by {plain_text(record.actor) or 'the service'}"


def _changes(change: dict[str, str]) -> str:
    return ", ".join(f"{plain_text(key)}={plain_text(value)}" for key, value in sorted(change.items()))
