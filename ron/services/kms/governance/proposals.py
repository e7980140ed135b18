"""A proposal's life: what each word of a signer makes of it, and what time does. Pure.

In: a case as it stands, a signer's statement or an event, the time. Out: the case as it stands then, or `RonError`.
"""

from __future__ import annotations

from typing import NamedTuple

from ron.kernel.units import DAY_S, HOUR_S, MINUTE_S
from ron.proto.errors import bad_request, conflict
from ron.proto.governance import JointStatement, Proposal, Signer, SignerSet, State, Statement
from ron.services.kms.governance import joint
from ron.services.kms.governance.actions import RULES, check_action
from ron.services.kms.governance.signers import AUDITOR, Profile, counts, key_id, member, refused, set_digest

# A decision is due in a day (GOVERNANCE §3); an escalation takes three
DEFAULT_FOR_S = DAY_S
LONGEST_FOR_S = 7 * DAY_S
# How far the clock of an author may be ahead of ours
SKEW_S = 5 * MINUTE_S
DEADLOCK_S = 24 * HOUR_S
LOCK_S = 48 * HOUR_S
OPEN: tuple[State, ...] = ("draft", "pending", "approved")

# (state, what happens) → state. Whatever is not here does not happen.
TRANSITIONS: dict[tuple[State, str], State] = {
    ("draft", "submit"): "pending",
    ("draft", "withdraw"): "rejected",
    ("draft", "expire"): "expired",
    ("pending", "carry"): "approved",
    ("pending", "refuse"): "rejected",
    ("pending", "withdraw"): "rejected",
    ("pending", "expire"): "expired",
    ("approved", "execute"): "executed",
    ("approved", "withdraw"): "rejected",
    ("approved", "expire"): "expired",
}


class Vote(NamedTuple):
    """at: when the service took it, Unix seconds. counted: of the set that decides, and not too old a key."""

    statement: Statement | JointStatement
    signature: str
    at: int
    counted: bool

    @property
    def signers(self) -> tuple[str, ...]:
        """The ids of those who said it; of a joint one, those that it names."""
        said = self.statement
        return said.by if isinstance(said, JointStatement) else (said.signer,)


class Case(NamedTuple):
    """A proposal and where it stands. text: the canonical JSON that was signed. Times are Unix seconds, 0: not yet.

    used: the permission it gives was taken up, or lapsed. opened_at: since when it may be voted on.
    """

    proposal: Proposal
    text: str
    digest: str
    signature: str
    state: State
    votes: tuple[Vote, ...] = ()
    opened_at: int = 0
    closed_at: int = 0
    used: bool = False
    why: str = ""

    @property
    def approvals(self) -> int:
        """Members for it, the auditor not among them: each counts once, by themselves or in a joint vote."""
        return len(
            {who for vote in self.votes if vote.counted and vote.statement.verb == "approve" for who in vote.signers}
        )

    @property
    def refusals(self) -> int:
        """Members against it."""
        return sum(vote.counted and vote.statement.verb == "reject" for vote in self.votes)

    @property
    def tiebreak(self) -> Vote | None:
        """The auditor's vote."""
        return next((vote for vote in self.votes if vote.statement.verb == "tiebreak"), None)

    @property
    def is_open(self) -> bool:
        """May anything still become of it?"""
        return self.state in OPEN

    def is_over(self, at: int) -> bool:
        """Has its time run out?"""
        return at >= self.proposal.expires_at


def moved(case: Case, event: str, at: int, why: str = "") -> Case:
    """The case after `event`. Raises `RonError` (Conflict) for what cannot happen to it now."""
    state = TRANSITIONS.get((case.state, event))
    if state is None:
        hint = "ronctl governance show says what is missing" if case.is_open else "make a new one"
        raise conflict(f"this proposal is {case.state}", hint)
    opened_at = at if state == "pending" else case.opened_at
    return case._replace(state=state, opened_at=opened_at, closed_at=0 if state in OPEN else at, why=why)


def check_proposal(proposal: Proposal, author: Signer, signers: SignerSet, at: int) -> None:
    """Raise `RonError` for one that may not be made now: of an auditor, of another set, out of its time, without
    sense."""
    if author.role == AUDITOR or proposal.author != key_id(author.public):
        raise refused("this signer does not propose", "the author signs it; auditors mark disputes")
    if proposal.signer_set != set_digest(signers):
        raise conflict("this proposal is for another set of signers", "make it anew")
    if proposal.created_at > at + SKEW_S:
        raise bad_request("this proposal is made in the future", "one of the two clocks is wrong")
    if not proposal.created_at < proposal.expires_at <= proposal.created_at + LONGEST_FOR_S:
        raise bad_request("a proposal lasts up to 7 days", "--expires 24h")
    if at >= proposal.expires_at:
        raise bad_request("this proposal has run out already", "make a new one, or set the clock")
    check_action(proposal.action, proposal.scope, proposal.change)


def voted(
    case: Case, statement: Statement, signature: str, signers: SignerSet, at: int, profile: Profile
) -> Case | None:
    """The case after a signer's word on it, None when the same was said before. Raises `RonError`."""
    one = member(signers, statement.signer)
    if one is None or one.role != statement.role:
        raise refused(f"this signer is no {statement.role}", "--role is the one of the signer's key")
    _check_words(case, statement, at)
    earlier = [vote.statement.verb for vote in case.votes if statement.signer in vote.signers]
    if statement.verb in earlier:
        return None
    if set(earlier) - {"submit"}:
        raise conflict("this signer has voted already", "a vote stands; propose anew")
    vote = Vote(statement, signature, at, counts(one, at, profile))
    if statement.verb == "submit":
        _check_author(case, statement)
        return moved(case._replace(votes=(*case.votes, vote)), "submit", at)
    if statement.verb == "tiebreak":
        _check_tie(case, one, signers, at)
        return case._replace(votes=(*case.votes, vote))
    if statement.verb == "reject" and statement.signer == case.proposal.author:
        return moved(case._replace(votes=(*case.votes, vote)), "withdraw", at, "withdrawn by its author")
    if one.role == AUDITOR:
        raise refused("an auditor does not vote", "tie-break a deadlock, or mark a dispute")
    if not vote.counted:
        raise refused("this key is older than a week and does not count", "rotate it: action signers")
    if case.state != "pending":
        raise conflict(f"this proposal is {case.state}", "its author submits a draft; an approved one is executed")
    return _decided(case._replace(votes=(*case.votes, vote)), signers, at)


def voted_jointly(
    case: Case, statement: JointStatement, signature: str, signers: SignerSet, at: int, profile: Profile
) -> Case | None:
    """The case after several signers approved it with their joint key, None when that was said before. Raises
    `RonError`: also where one of those who are named is against it, or too old to count."""
    _check_words(case, statement, at)
    if any(vote.statement == statement for vote in case.votes):
        return None
    named = joint.named(statement, signers)
    others = {who for vote in case.votes if vote.statement.verb not in ("submit", "approve") for who in vote.signers}
    if others & set(statement.by):
        raise conflict("a signer who is named has voted otherwise already", "a vote stands; propose anew")
    if not all(counts(one, at, profile) for one in named):
        raise refused("a signer who is named has a key that does not count", "rotate it: action signers")
    if case.state != "pending":
        raise conflict(f"this proposal is {case.state}", "its author submits a draft; an approved one is executed")
    return _decided(case._replace(votes=(*case.votes, Vote(statement, signature, at, True))), signers, at)


def opened_lock(case: Case, signers: SignerSet, at: int) -> Case:
    """The tie-break's 48 hours are over and it counts. Raises `RonError` (Conflict) when they are not."""
    tie = case.tiebreak
    if case.state != "pending" or tie is None or at < tie.at + LOCK_S:
        raise conflict("there is no tie-break that counts by now")
    if case.approvals + 1 < signers.threshold:
        raise conflict("a tie-break is one vote, and more are missing")
    return moved(case, "carry", at, "by the auditor's tie-break")


def _decided(case: Case, signers: SignerSet, at: int) -> Case:
    voters = sum(one.role != AUDITOR for one in signers.members)
    if case.approvals >= signers.threshold:
        return moved(case, "carry", at)
    if case.refusals > voters - signers.threshold:
        return moved(case, "refuse", at)
    return case


def _check_words(case: Case, statement: Statement | JointStatement, at: int) -> None:
    if statement.digest != case.digest or (isinstance(statement, Statement) and statement.subject):
        raise refused("this vote is for something else than this proposal", "look at it again and vote anew")
    if not case.proposal.created_at - SKEW_S <= statement.at <= at + SKEW_S:
        raise bad_request("this vote is of another time than its proposal", "one of the clocks is wrong")
    if case.is_over(at):
        raise conflict("this proposal has run out", "make a new one")
    if not case.is_open:
        raise conflict(f"this proposal is {case.state}", "make a new one")


def _check_author(case: Case, statement: Statement) -> None:
    if statement.signer != case.proposal.author:
        raise refused("a draft is submitted by its author")


def _check_tie(case: Case, one: Signer, signers: SignerSet, at: int) -> None:
    if one.role != AUDITOR:
        raise refused("only an auditor breaks a tie")
    if case.state != "pending":
        raise conflict(f"this proposal is {case.state}")
    if not RULES[case.proposal.action].neutral:
        raise refused(f"{case.proposal.action} is for the signers alone", "no tie-break where safety is at stake")
    if at < case.opened_at + DEADLOCK_S:
        raise conflict("this is no deadlock yet", "after 24 hours without a decision")
    if not 1 <= case.approvals == signers.threshold - 1:
        raise conflict("this is no tie: one approval, and one alone, has to be missing")
