"""How it stands: what all records of a book come to. Pure: the same records always come to the same.

In: records, in order. Out: the cases, who decides, what is frozen, which verify modes were decided, what is disputed;
`RonError` for a record that may not follow, and then nothing has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from ron.proto.errors import RonError, bad_request, conflict, not_found
from ron.proto.governance import Proposal, Role, SignedObject, Signer, SignerSet, Statement, Verb
from ron.services.kms.governance import joint
from ron.services.kms.governance.actions import RULES
from ron.services.kms.governance.appeals import MAX_DISPUTES, VERBS, Dispute, said
from ron.services.kms.governance.book import Record
from ron.services.kms.governance.canonical import digest
from ron.services.kms.governance.proposals import (
    LONGEST_FOR_S,
    Case,
    check_proposal,
    moved,
    opened_lock,
    voted,
    voted_jointly,
)
from ron.services.kms.governance.signers import (
    MACRONODE,
    MICRONODE,
    Profile,
    check_set,
    opened,
    parse_signers,
    refused,
    signer_set,
)

MAX_OPEN = 64
MAX_OPEN_EACH = 16
# What one signer may fill the book with, before the others have noticed and replaced them
MAX_WEEKLY_EACH = 200


class Freeze(NamedTuple):
    """since: Unix seconds; it ends `freeze_s` of the profile later."""

    proposal: str
    since: int


class Change(NamedTuple):
    """What a record does. what: for the audit log. commit: does it; called once, it cannot fail. None: nothing."""

    what: str
    case: Case | None
    commit: Callable[[], None] | None


class Ledger:
    """Of one book. `prepare` says what a record would do, its `commit` does it."""

    def __init__(self) -> None:
        self.book = ""
        self.profile: Profile = MACRONODE
        self.signers: SignerSet | None = None
        self.cases: dict[str, Case] = {}
        self.freezes: dict[str, Freeze] = {}
        self.pq_modes: dict[str, str] = {}
        self.disputes: dict[str, Dispute] = {}

    def deciders(self) -> SignerSet:
        """Who decides now. Raises `RonError` (Conflict) in a book without a beginning."""
        if self.signers is None:
            raise conflict("nobody governs this service", "name signers in its config")
        return self.signers

    def case(self, proposal: str) -> Case:
        """Raises NotFound."""
        found = self.cases.get(proposal)
        if found is None:
            raise not_found("there is no such proposal")
        return found

    def open_cases(self) -> list[Case]:
        """Those of which anything may still become."""
        return [case for case in self.cases.values() if case.is_open]

    def prepare(self, record: Record) -> Change:
        """What `record` would do. Raises `RonError` when it may not be."""
        if record.kind == "genesis":
            return self._genesis(record)
        if record.kind == "event":
            return self._event(record)
        if record.signed is None:
            raise bad_request("a record without what was signed")
        if record.kind == "propose":
            return self._propose(record.signed, record.at)
        return self._state(record.signed, record.at)

    def _genesis(self, record: Record) -> Change:
        start = record.genesis
        if start is None or self.signers is not None:
            raise conflict("a book begins once")
        profile = MICRONODE if start.micronode else MACRONODE
        check_set(start.signers, profile)

        def commit() -> None:
            self.book, self.profile, self.signers = start.book, profile, start.signers

        return Change("genesis", None, commit)

    # what people say

    def _propose(self, signed: SignedObject, at: int) -> Change:
        signers = self.deciders()
        proposal, author = opened(signed, Proposal, signers)
        self._check_book(proposal.book)
        text = signed.object
        known = self.cases.get(proposal.id)
        if known is not None:
            if known.text != text:
                raise conflict("another proposal has this id")
            return Change("propose", known, None)
        check_proposal(proposal, author, signers, at)
        if proposal.action == "signers":
            self.next_set(proposal, at)
        self._check_room(proposal.author, at)
        state, since = ("draft", 0) if proposal.draft else ("pending", at)
        case = Case(proposal, text, digest(text.encode()).hex(), signed.signature, state, opened_at=since)  # type: ignore[arg-type]
        return self._keeping("propose", case)

    def _check_room(self, author: str, at: int) -> None:
        # none that still lasts was made longer ago than the longest may last
        week = sum(
            case.proposal.author == author and case.proposal.created_at > at - LONGEST_FOR_S
            for case in self.cases.values()
        )
        if week >= MAX_WEEKLY_EACH:
            raise conflict("this signer has proposed too much this week", "wait, or have another signer propose it")
        cases = self.open_cases()
        mine = sum(case.proposal.author == author for case in cases)
        if len(cases) >= MAX_OPEN or mine >= MAX_OPEN_EACH:
            raise conflict("too many proposals are open", "decide or withdraw some first")

    def _state(self, signed: SignedObject, at: int) -> Change:
        signers = self.deciders()
        if joint.is_joint(signed, signers):
            return self._joint_state(signed, signers, at)
        statement, one = opened(signed, Statement, signers)
        self._check_book(statement.book)
        if statement.signer != signed.key_id:
            raise refused("one signer speaks for another")
        if statement.verb in VERBS:
            return self._dispute(statement, one, at)
        case = self.case(statement.proposal)
        after = voted(case, statement, signed.signature, signers, at, self.profile)
        return self._voted(statement.verb, case, after, at)

    def _joint_state(self, signed: SignedObject, signers: SignerSet, at: int) -> Change:
        statement = joint.opened(signed, signers)
        self._check_book(statement.book)
        case = self.case(statement.proposal)
        after = voted_jointly(case, statement, signed.signature, signers, at, self.profile)
        return self._voted(statement.verb, case, after, at)

    def _voted(self, verb: Verb, before: Case, after: Case | None, at: int) -> Change:
        if after is None:
            return Change(verb, before, None)
        if after.state == "approved" and RULES[after.proposal.action].at_once:
            after = moved(after, "execute", at)
        return self._keeping(verb, after, at)

    def _dispute(self, statement: Statement, one: Signer, at: int) -> Change:
        subject = statement.subject
        room = subject in self.disputes or len(self.disputes) < MAX_DISPUTES
        made = said(statement, one, self.disputes.get(subject), at, room=room)
        if made is None:
            return Change(statement.verb, None, None)

        def commit() -> None:
            self.disputes[subject] = made

        return Change(statement.verb, None, commit)

    def _check_book(self, book: str) -> None:
        if book != self.book:
            raise refused("this was signed for another service", "sign it anew, for this one")

    # what the service notes

    def _event(self, record: Record) -> Change:
        if record.event == "thaw":
            return self._thaw(record.proposal, record.at)
        case, at = self.case(record.proposal), record.at
        if record.event == "expire":
            if not case.is_over(at):
                raise conflict("this proposal has not run out")
            return self._keeping("expire", moved(case, "expire", at, "not decided in time"))
        if record.event == "carry":
            return self._keeping("carry", opened_lock(case, self.deciders(), at))
        if record.event == "execute":
            if case.state == "executed":
                return Change("execute", case, None)
            if case.is_over(at):
                raise conflict("this proposal has run out", "make a new one")
            return self._keeping("execute", moved(case, "execute", at), at)
        if record.event == "use":
            return self._keeping("use", self._usable(case)._replace(used=True))
        if record.event == "return":
            if not case.used or case.why or case.state != "executed":
                raise conflict("this permission was not in use")
            return self._keeping("return", case._replace(used=False))
        raise bad_request("an event that does not exist")

    def _usable(self, case: Case) -> Case:
        if case.state != "executed" or RULES[case.proposal.action].enacted:
            raise refused(f"this proposal is {case.state}, and no permission", "ronctl governance execute")
        if case.used:
            raise refused("this permission was used, or has lapsed", "it is good for once; propose anew")
        return case

    def _thaw(self, proposal: str, at: int) -> Change:
        scopes = [scope for scope, freeze in self.freezes.items() if freeze.proposal == proposal]
        if not scopes:
            raise conflict("this freeze is over")
        if at < self.freezes[scopes[0]].since + self.profile.freeze_s:
            raise conflict("this freeze is not over yet")

        def commit() -> None:
            for scope in scopes:
                del self.freezes[scope]

        return Change("thaw", self.cases.get(proposal), commit)

    # what it comes to

    def _keeping(self, what: str, case: Case, at: int = 0) -> Change:
        """The case as it is from now on, and what its decision does."""
        enacted = case.state == "executed" and what not in ("use", "return") and RULES[case.proposal.action].enacted
        after = self.next_set(case.proposal, at) if enacted and case.proposal.action == "signers" else None

        def commit() -> None:
            self.cases[case.proposal.id] = case
            if after is not None:
                self._rotate(after, case.proposal.id, at)
            elif enacted:
                self._enact(case, at)

        return Change(what, case, commit)

    def _enact(self, case: Case, at: int) -> None:
        proposal = case.proposal
        if proposal.action == "freeze":
            if proposal.change["freeze"] == "on":
                self.freezes[proposal.scope] = Freeze(proposal.id, at)
            else:
                self.freezes.pop(proposal.scope, None)
            return
        mode = proposal.change["pq_mode"]
        if proposal.action == "rollback":
            # back for everybody: what was decided for one tenant before is part of what is taken back
            self.pq_modes.clear()
        if mode != "config":
            self.pq_modes[proposal.scope] = mode

    def next_set(self, proposal: Proposal, at: int) -> SignerSet:
        """The signers that a `signers` proposal names. Raises `RonError` for a set that may not decide."""
        members = cast(list[tuple[Role, str]], parse_signers(proposal.change["signers"]))
        threshold = int(proposal.change["threshold"])
        group = proposal.change.get("group", "")
        return signer_set(members, threshold, at, profile=self.profile, before=self.signers, group=group)

    def _rotate(self, after: SignerSet, by: str, at: int) -> None:
        self.signers = after
        for case in list(self.cases.values()):
            if case.proposal.id != by:
                self.cases[case.proposal.id] = _lapsed(case, at)


def _lapsed(case: Case, at: int) -> Case:
    """Other people decide now: nothing that was not carried out yet is the word of theirs."""
    why = "the signers were changed"
    if case.is_open:
        return case._replace(state="expired", closed_at=at, why=why)
    if case.state == "executed" and not RULES[case.proposal.action].enacted and not case.used:
        return case._replace(used=True, why=why)
    return case


def prepared(ledger: Ledger, record: Record) -> Change:
    """What a record of the book will do. Raises `RonError` (Conflict), with its number, where it may not follow."""
    why = "it changes nothing"
    try:
        change = ledger.prepare(record)
        if change.commit is not None:
            return change
    except RonError as error:
        why = error.message
    raise conflict(f"record {record.seq} of the book of governance may not be there: {why}")


def apply(ledger: Ledger, record: Record) -> None:
    """Do what a record of the book says. Raises as `prepared`."""
    change = prepared(ledger, record)
    if change.commit is not None:
        change.commit()


def check_successor(archived: Sequence[Record], first: Record) -> None:
    """May a book that begins with `first` follow one that had `archived`? Raises `RonError` (Conflict) unless the same
    people decide in it, and nothing that was decided for longer than a moment is forgotten by it."""
    before = Ledger()
    for record in archived:
        apply(before, record)
    start = first.genesis
    if start is None or _who(start.signers) != _who(before.deciders()):
        raise conflict(
            "the book of governance begins with others than its archived one ended with", "change that first"
        )
    if before.freezes or before.pq_modes:
        raise conflict("what the archived book had frozen or decided would be gone", "take it back in that book first")


def _who(signers: SignerSet) -> tuple[object, ...]:
    """Who decides, whenever they became so."""
    return {(one.role, one.public) for one in signers.members}, signers.threshold, signers.group
