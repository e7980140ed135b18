"""What nobody may do alone: votes, permissions, freezes, tie-breaks, disputes, changed signers (K-G4)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

import ron
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.proto.governance import Role, Verb
from ron.proto.ids import uuid7
from ron.services.kms.governance.actions import RULES, check_action, meant
from ron.services.kms.governance.proposals import TRANSITIONS, Case
from ron.services.kms.governance.signers import key_id
from tests.services.kms.governance.people import (
    AUDITOR,
    CUSTODIAN,
    DAY,
    HOUR,
    KID,
    OFFICER,
    OWNER,
    START,
    World,
    code_of,
    key_of,
    public_of,
)

few = settings(deadline=None, max_examples=60)
AND = {"pq_mode": "and"}
DESTROY = {"kid": KID}
NO_CAPABILITY, CONFLICT, BAD = "NoCapability", "Conflict", "BadRequest"


class CaseOf(SynchronousTestCase):
    micronode = False

    def setUp(self) -> None:
        self.world = World(micronode=self.micronode)
        self.governance = self.world.governance
        self.addCleanup(self.world.governance.stop)

    def refused(self, code: str, call: Any, *args: Any, **more: Any) -> RonError:
        error = self.assertRaises(RonError, call, *args, **more)
        self.assertEqual(error.code.value, code, error.message)
        return error

    def require(self, case: Case, **other: Any) -> None:
        """Take up its permission, or another one that looks like it."""
        proposal = case.proposal
        known = {"action": proposal.action, "scope": proposal.scope, "change": proposal.change}
        self.governance.require(**{**known, "proposal": proposal.id, **other})


class Bad(CaseOf):
    """Refused, and nothing has changed."""

    def tearDown(self) -> None:
        self.assertEqual(len(self.governance.book), self.records)

    def setUp(self) -> None:
        super().setUp()
        self.case = self.world.propose("destroy_key", DESTROY)
        self.records = len(self.governance.book)

    def test_proposals_of_another_time(self) -> None:
        now = START
        for made, ends in (
            (now + 301, now + DAY),
            (now - 2 * DAY, now - DAY),
            (now - DAY, now),
            (now, now),
            (now, now - 5),
            (now, now + 7 * DAY + 1),
        ):
            self.refused(BAD, self.world.propose, "pq_mode", AND, created_at=made, expires_at=ends)

    def test_proposals_without_sense(self) -> None:
        wrong: list[tuple[Any, dict[str, str], str]] = [
            ("pq_mode", {"pq_mode": "or"}, "tenant:acme"),
            ("pq_mode", {"pq_mode": "and", "more": "x"}, "tenant:acme"),
            ("pq_mode", {"more": "x"}, "global"),
            ("hybrid_off", {"pq_mode": "and"}, "tenant:acme"),
            ("rollback", {"pq_mode": "or"}, "tenant:acme"),
            ("freeze", {"freeze": "yes"}, "global"),
            ("destroy_key", {"kid": KID}, "global"),
            ("destroy_key", {"kid": KID}, "tenant:other"),
            ("destroy_key", {"kid": "acme"}, "tenant:acme"),
            ("destroy_key", {"key": KID}, "tenant:acme"),
            ("backend_change", {"backend": "pkcs11"}, "tenant:acme"),
            ("signers", {"signers": "x"}, "global"),
            ("signers", {"signers": "x", "threshold": "2"}, "global"),
            ("signers", {"signers": f"custodian:{public_of('a')}", "threshold": "1"}, "global"),
            ("signers", {"signers": f"custodian:{public_of('a')}", "threshold": "-1"}, "global"),
        ]
        for action, change, scope in wrong:
            self.refused(BAD, self.world.propose, action, change, scope)

    def test_proposals_of_those_who_may_not(self) -> None:
        self.refused(NO_CAPABILITY, self.world.propose, "pq_mode", AND, author=AUDITOR)
        made = self.world.proposal("pq_mode", AND, author=OWNER)
        self.refused(NO_CAPABILITY, lambda: self.world.do(self.governance.propose(self.world.signed(made, OFFICER))))

    def test_another_services_proposal(self) -> None:
        self.refused(NO_CAPABILITY, self.world.propose, "pq_mode", AND, book="00" * 16)
        self.refused(NO_CAPABILITY, self.world.say, "approve", self.case, OFFICER, book="00" * 16)
        self.refused(CONFLICT, self.world.propose, "pq_mode", AND, signer_set="00" * 32)

    def test_one_id_for_two_proposals(self) -> None:
        self.refused(CONFLICT, self.world.propose, "pq_mode", AND, id=self.case.proposal.id)

    def test_votes_of_those_who_may_not(self) -> None:
        say = self.world.say
        self.refused(NO_CAPABILITY, say, "approve", self.case, OFFICER, by="stranger")
        self.refused(NO_CAPABILITY, say, "approve", self.case, AUDITOR)
        self.refused(NO_CAPABILITY, say, "reject", self.case, AUDITOR)
        self.refused(NO_CAPABILITY, say, "approve", self.case, OFFICER, by=CUSTODIAN)
        self.refused(NO_CAPABILITY, say, "approve", self.case, OFFICER, role=CUSTODIAN)

    def test_one_who_speaks_for_another(self) -> None:
        other = key_id(public_of(CUSTODIAN))
        self.refused(NO_CAPABILITY, self.world.say, "approve", self.case, OFFICER, signer=other, role=CUSTODIAN)

    def test_who_tried_is_in_the_audit_log(self) -> None:
        """K-G4: a rogue operator fails, and is seen to."""
        self.refused(NO_CAPABILITY, self.world.say, "approve", self.case, OFFICER, by="stranger")
        last = self.world.events[-1]
        self.assertEqual((last.op, last.result, last.actor), ("governance.state", NO_CAPABILITY, "cap-1"))
        self.assertEqual(last.extra["signer"], key_id(public_of("stranger")))
        self.world.trouble = unavailable("the audit log is away")
        self.refused(NO_CAPABILITY, self.world.say, "approve", self.case, OFFICER, by="stranger")
        self.world.trouble = None

    def test_votes_for_something_else(self) -> None:
        say = self.world.say
        self.refused(NO_CAPABILITY, say, "approve", self.case, OFFICER, digest="00" * 32)
        self.refused(NO_CAPABILITY, say, "approve", self.case, OFFICER, subject="kid:x")
        self.refused("NotFound", say, "approve", self.case, OFFICER, proposal=str(uuid7()))
        word = self.world.word("approve", self.case, OFFICER)
        self.refused(BAD, lambda: self.world.do(self.governance.state(word, about=str(uuid7()))))

    def test_votes_of_another_time(self) -> None:
        for at in (START - 301, START + 301):
            self.refused(BAD, self.world.say, "approve", self.case, OFFICER, at=at)

    def test_what_was_not_approved(self) -> None:
        self.refused(CONFLICT, lambda: self.world.do(self.governance.execute(self.case.proposal.id)))
        self.refused("NotFound", lambda: self.world.do(self.governance.execute(str(uuid7()))))
        self.refused(NO_CAPABILITY, self.require, self.case)
        self.refused(NO_CAPABILITY, self.require, self.case, proposal=None)
        self.refused(NO_CAPABILITY, self.require, self.case, proposal=str(uuid7()))
        self.refused(NO_CAPABILITY, self.require, self.case, proposal="")

    def test_drafts_and_ties_and_disputes_where_there_are_none(self) -> None:
        say = self.world.say
        self.refused(CONFLICT, say, "submit", self.case, OWNER)
        self.refused(NO_CAPABILITY, say, "tiebreak", self.case, AUDITOR)
        self.refused(NO_CAPABILITY, say, "tiebreak", self.case, OFFICER)
        self.refused(NO_CAPABILITY, self.world.dispute, "dispute", "cap:1", role=OWNER)
        self.refused(CONFLICT, self.world.dispute, "resolve", "cap:1")
        self.refused(BAD, self.world.dispute, "dispute", "cap:1", reason="")


class Voting(CaseOf):
    def test_two_of_three(self) -> None:
        case = self.world.propose("destroy_key", DESTROY)
        self.assertEqual((case.state, case.approvals), ("pending", 0), "to propose is not to approve")
        case = self.world.approve(case, OWNER)
        self.assertEqual((case.state, case.approvals), ("pending", 1))
        self.assertEqual(self.world.approve(case, CUSTODIAN).state, "approved")

    def test_one_who_says_it_twice_is_one(self) -> None:
        case = self.world.propose("destroy_key", DESTROY)
        for _ in range(3):
            case = self.world.approve(case, OFFICER)
        again = self.world.say("approve", case, OFFICER, reason="really")
        self.assertEqual((again.state, again.approvals, len(again.votes)), ("pending", 1, 1))
        records = len(self.governance.book)
        self.world.approve(case, OFFICER)
        self.assertEqual(len(self.governance.book), records)

    def test_a_vote_stands(self) -> None:
        case = self.world.approve(self.world.propose("destroy_key", DESTROY), OFFICER)
        self.refused(CONFLICT, self.world.say, "reject", case, OFFICER)

    def test_two_against_it(self) -> None:
        case = self.world.propose("destroy_key", DESTROY)
        case = self.world.say("reject", case, OFFICER)
        self.assertEqual(case.state, "pending")
        self.assertEqual(self.world.say("reject", case, CUSTODIAN).state, "rejected")
        self.refused(CONFLICT, self.world.approve, case, OWNER)

    def test_its_author_takes_it_back(self) -> None:
        case = self.world.propose("destroy_key", DESTROY)
        self.assertEqual(self.world.say("reject", case, OWNER).state, "rejected")
        case = self.world.approve(self.world.propose("destroy_key", DESTROY), OFFICER, CUSTODIAN)
        self.assertEqual(self.world.say("reject", case, OWNER).state, "rejected")

    def test_a_draft_waits_for_its_author(self) -> None:
        case = self.world.propose("destroy_key", DESTROY, draft=True)
        self.assertEqual(case.state, "draft")
        self.refused(CONFLICT, self.world.approve, case, OFFICER)
        self.refused(NO_CAPABILITY, self.world.say, "submit", case, OFFICER)
        case = self.world.say("submit", case, OWNER)
        self.assertEqual(self.world.approve(case, OWNER, OFFICER).state, "approved")

    def test_the_same_proposal_again_is_the_same(self) -> None:
        made = self.world.signed(self.world.proposal("pq_mode", AND))
        one, other = (self.world.do(self.governance.propose(made)) for _ in range(2))
        self.assertEqual(one, other)
        self.assertEqual(len(self.governance.ledger.cases), 1)

    def test_not_decided_in_a_day(self) -> None:
        case = self.world.approve(self.world.propose("destroy_key", DESTROY), OFFICER)
        self.world.pass_(DAY)
        self.assertEqual(self.governance.ledger.case(case.proposal.id).state, "expired")
        self.refused(CONFLICT, self.world.approve, case, OWNER)
        self.assertIn("governance.expire", [event.op for event in self.world.events])

    def test_so_many_at_a_time(self) -> None:
        for _ in range(16):
            self.world.propose("pq_mode", AND)
        self.refused(CONFLICT, self.world.propose, "pq_mode", AND)
        self.world.propose("pq_mode", AND, author=OFFICER)

    def test_so_many_a_week(self) -> None:
        for _ in range(200):
            self.world.say("reject", self.world.propose("pq_mode", AND), OWNER)
        self.refused(CONFLICT, self.world.propose, "pq_mode", AND)
        self.world.propose("pq_mode", AND, author=OFFICER)
        self.world.clock.advance(7 * DAY + 1)
        self.world.propose("pq_mode", AND)

    def test_each_change_of_state_is_counted_once(self) -> None:
        self.world.decide("pq_mode", AND)
        states = [state for _what, state in self.world.noted if state]
        self.assertEqual(states, ["pending", "approved", "executed"])

    def test_the_table_in_the_docs_is_the_one_in_the_code(self) -> None:
        text = (Path(ron.__file__).parents[1] / "docs/kms/governance.rst").read_text()
        rows = re.findall(r"^(draft|pending|approved) +([a-z]+) +([a-z]+)  ", text, re.MULTILINE)
        self.assertEqual({(state, event): after for state, event, after in rows}, TRANSITIONS)
        for action in RULES:
            self.assertRegex(text, rf"(?m)^{action} ")

    def test_the_table_is_what_happens(self) -> None:
        """Nothing leaves rejected, expired and executed; everything else may end by time."""
        for state, _event in TRANSITIONS:
            self.assertIn(state, ("draft", "pending", "approved"))
        self.assertEqual([TRANSITIONS[state, "expire"] for state in ("draft", "pending", "approved")], ["expired"] * 3)

    @few
    @given(
        some.lists(
            some.tuples(some.sampled_from(["approve", "reject"]), some.sampled_from([OWNER, OFFICER, CUSTODIAN])),
            max_size=8,
        )
    )
    def test_any_votes(self, votes: list[tuple[Verb, Role]]) -> None:
        """Approved takes two different signers for it, whatever is said in which order."""
        world = World()
        case = world.propose("destroy_key", DESTROY)
        taken: dict[Role, Verb] = {}
        for verb, role in votes:
            if code_of(lambda verb=verb, role=role: world.say(verb, case, role)) == "":  # type: ignore[misc]
                taken.setdefault(role, verb)
        after = world.governance.ledger.case(case.proposal.id)
        yes = sum(verb == "approve" for verb in taken.values())
        if after.state == "approved":
            self.assertGreaterEqual(yes, 2)
        if yes >= 2 and taken.get(OWNER) != "reject":
            self.assertEqual(after.state, "approved")
        world.governance.stop()


class Permissions(CaseOf):
    """K-G4: good for once, for exactly what was decided, in its time."""

    def test_kg4_sensitive_actions_take_a_quorum(self) -> None:
        changes = {
            "destroy_key": ("tenant:acme", DESTROY),
            "root_rotation": ("global", {"root": "new"}),
            "backend_change": ("global", {"backend": "pkcs11", "slot": "1"}),
            "attest_require": ("global", {"attest_require": "required"}),
            "amnesia_off": ("global", {"amnesia": "off"}),
        }
        for action, (scope, change) in changes.items():
            self.refused(NO_CAPABILITY, self.governance.require, action, scope, change, None)
            case = self.world.propose(action, change, scope)  # type: ignore[arg-type]
            self.refused(NO_CAPABILITY, self.require, case)
            case = self.world.approve(case, OFFICER)
            self.refused(NO_CAPABILITY, self.require, case)
            case = self.world.approve(case, CUSTODIAN)
            self.refused(NO_CAPABILITY, self.require, case)
            self.world.do(self.governance.execute(case.proposal.id))
            self.require(case)
            self.refused(NO_CAPABILITY, self.require, case)

    def test_exactly_this(self) -> None:
        case = self.world.decide("backend_change", {"backend": "pkcs11", "slot": "1"}, "global")
        for other in (
            {"action": "root_rotation"},
            {"scope": "tenant:acme"},
            {"change": {"backend": "pkcs11"}},
            {"change": {"backend": "pkcs11", "slot": "1", "pin": "x"}},
            {"change": {"backend": "file", "slot": "1"}},
            {"change": {}},
        ):
            self.refused(NO_CAPABILITY, self.require, case, **other)
        self.require(case)

    def test_it_runs_out(self) -> None:
        case = self.world.decide("destroy_key", DESTROY)
        self.world.clock.advance(DAY)
        self.refused(NO_CAPABILITY, self.require, case)

    def test_an_approval_runs_out(self) -> None:
        case = self.world.approve(self.world.propose("destroy_key", DESTROY), OWNER, OFFICER)
        self.world.clock.advance(DAY - 1)
        self.world.clock.advance(1)
        self.refused(CONFLICT, lambda: self.world.do(self.governance.execute(case.proposal.id)))

    def test_what_failed_may_be_tried_again(self) -> None:
        case = self.world.decide("destroy_key", DESTROY)
        self.refused(CONFLICT, self.governance.give_back, case.proposal.id)
        self.require(case)
        self.governance.give_back(case.proposal.id)
        self.require(case)
        self.refused(NO_CAPABILITY, self.require, case)

    def test_a_decision_that_took_effect_is_no_permission(self) -> None:
        case = self.world.decide("pq_mode", AND)
        self.refused(NO_CAPABILITY, self.require, case)

    def test_to_execute_again_changes_nothing(self) -> None:
        case = self.world.decide("destroy_key", DESTROY)
        self.require(case)
        self.assertTrue(self.world.do(self.governance.execute(case.proposal.id)).used)
        self.refused(NO_CAPABILITY, self.require, case)

    def test_an_approval_changes_nothing_else(self) -> None:
        """What one proposal decided leaves all others as they were."""
        other = self.world.propose("destroy_key", DESTROY)
        self.world.decide("destroy_key", DESTROY)
        self.assertEqual(self.governance.ledger.case(other.proposal.id), other)
        self.assertIsNone(self.governance.frozen("acme"))
        self.assertIsNone(self.governance.pq_mode("acme"))

    def test_its_use_is_in_the_audit_log(self) -> None:
        self.require(self.world.decide("destroy_key", DESTROY))
        self.assertEqual(self.world.events[-1].op, "governance.use")
        self.assertEqual(self.world.events[-1].extra["book_head"], self.governance.book.head)


class PqModes(CaseOf):
    def test_for_one_tenant(self) -> None:
        self.world.decide("pq_mode", {"pq_mode": "pq_only"})
        self.assertEqual((self.governance.pq_mode("acme"), self.governance.pq_mode("other")), ("pq_only", None))
        self.world.decide("hybrid_off", {"pq_mode": "or"})
        self.assertEqual(self.governance.pq_mode("acme"), "or")

    def test_for_everybody_but_those_with_one_of_their_own(self) -> None:
        self.world.decide("pq_mode", AND)
        self.world.decide("pq_mode", {"pq_mode": "pq_only"}, "global")
        self.assertEqual((self.governance.pq_mode("acme"), self.governance.pq_mode("other")), ("and", "pq_only"))

    def test_a_rollback_is_for_all(self) -> None:
        self.world.decide("pq_mode", {"pq_mode": "pq_only"})
        self.world.decide("rollback", {"pq_mode": "or"}, "global")
        self.assertEqual((self.governance.pq_mode("acme"), self.governance.pq_mode("other")), ("or", "or"))
        self.world.decide("rollback", {"pq_mode": "config"}, "global")
        self.assertIsNone(self.governance.pq_mode("acme"))

    def test_not_before_it_is_executed(self) -> None:
        self.world.approve(self.world.propose("pq_mode", AND), OWNER, OFFICER)
        self.assertIsNone(self.governance.pq_mode("acme"))


class Freezes(CaseOf):
    for_s = HOUR

    def freeze(self, scope: str = "tenant:acme", on: str = "on") -> Case:
        return self.world.decide("freeze", {"freeze": on}, scope)

    def test_one_signer_freezes_nothing(self) -> None:
        self.world.approve(self.world.propose("freeze", {"freeze": "on"}), OFFICER)
        self.assertIsNone(self.governance.frozen("acme"))

    def test_with_the_last_approval(self) -> None:
        case = self.freeze()
        self.assertEqual(case.state, "executed")
        self.assertEqual(self.governance.frozen("acme"), case.proposal.id)
        self.assertIsNone(self.governance.frozen("other"))
        self.assertIn(("freeze", "executed"), self.world.noted)

    def test_everybody(self) -> None:
        case = self.freeze("global")
        self.assertEqual(self.governance.frozen("any"), case.proposal.id)

    def test_it_ends_by_itself(self) -> None:
        self.freeze()
        self.world.clock.advance(self.for_s - 1)
        self.assertIsNotNone(self.governance.frozen("acme"))
        self.world.clock.advance(1)
        self.assertIsNone(self.governance.frozen("acme"), "at once, not with the next look at it")
        self.world.clock.advance(15)
        self.assertEqual(self.world.events[-1].op, "governance.thaw")
        self.assertEqual(self.governance.ledger.freezes, {})

    def test_a_quorum_ends_it_earlier(self) -> None:
        self.freeze()
        self.freeze(on="off")
        self.assertIsNone(self.governance.frozen("acme"))

    def test_longer_takes_another_decision(self) -> None:
        self.freeze()
        self.world.clock.advance(self.for_s / 2)
        second = self.freeze()
        self.world.clock.advance(self.for_s * 3 / 4)
        self.assertEqual(self.governance.frozen("acme"), second.proposal.id)

    def test_a_clock_set_forward_does_not_end_it(self) -> None:
        self.freeze()
        self.world.wrong_s = 30 * DAY
        self.world.pass_(60)
        self.assertIsNotNone(self.governance.frozen("acme"))

    def test_a_clock_set_back_does_not_keep_it(self) -> None:
        self.freeze()
        self.world.wrong_s = -30 * DAY
        self.world.clock.advance(self.for_s)
        self.assertIsNone(self.governance.frozen("acme"))


class Micronode(Freezes):
    """1-of-2, and stricter for it: half an hour, and the second key for a week."""

    micronode = True
    for_s = HOUR // 2

    def freeze(self, scope: str = "tenant:acme", on: str = "on") -> Case:
        return self.world.approve(self.world.propose("freeze", {"freeze": on}, scope), OWNER)

    def test_one_signer_freezes_nothing(self) -> None:
        """But one does, here; not by proposing alone."""
        self.world.propose("freeze", {"freeze": "on"})
        self.assertIsNone(self.governance.frozen("acme"))

    def test_the_second_key_after_a_week(self) -> None:
        self.world.clock.advance(7 * DAY + 1)
        case = self.world.propose("destroy_key", DESTROY)
        self.refused(NO_CAPABILITY, self.world.approve, case, OFFICER)
        self.assertEqual(self.world.approve(case, OWNER).state, "approved")
        members = f"{OWNER}:{public_of(OWNER)},{OFFICER}:{public_of('new')}"
        rotated = self.world.approve(
            self.world.propose("signers", {"signers": members, "threshold": "1"}, "global"), OWNER
        )
        self.world.do(self.governance.execute(rotated.proposal.id))
        case = self.world.propose("destroy_key", DESTROY)
        self.assertEqual(self.world.say("approve", case, OFFICER, by="new").state, "approved")


class Signers(CaseOf):
    def rotate(self, *names: str, threshold: int = 2) -> Case:
        roles = (OWNER, OFFICER, CUSTODIAN)
        text = ",".join(f"{role}:{public_of(name)}" for role, name in zip(roles, names, strict=True))
        return self.world.decide("signers", {"signers": text, "threshold": str(threshold)}, "global")

    def test_others_decide_from_now_on(self) -> None:
        self.rotate(OWNER, "new", CUSTODIAN)
        case = self.world.propose("destroy_key", DESTROY)
        self.refused(NO_CAPABILITY, self.world.approve, case, OFFICER)
        case = self.world.say("approve", case, OFFICER, by="new")
        self.assertEqual(self.world.approve(case, CUSTODIAN).state, "approved")

    def test_what_was_open_and_what_was_not_used_lapses(self) -> None:
        pending = self.world.approve(self.world.propose("destroy_key", DESTROY), OFFICER)
        approved = self.world.approve(self.world.propose("destroy_key", DESTROY), OFFICER, CUSTODIAN)
        unused = self.world.decide("destroy_key", DESTROY)
        self.world.decide("pq_mode", AND)
        self.rotate(OWNER, "new", CUSTODIAN)
        states = [self.governance.ledger.case(case.proposal.id).state for case in (pending, approved)]
        self.assertEqual(states, ["expired", "expired"])
        self.refused(NO_CAPABILITY, self.require, unused)
        self.refused(CONFLICT, self.governance.give_back, unused.proposal.id)
        self.assertEqual(self.governance.pq_mode("acme"), "and", "what took effect stays")

    def test_a_set_that_may_not_decide(self) -> None:
        for threshold in (1, 4):
            self.refused(BAD, self.rotate, OWNER, OFFICER, CUSTODIAN, threshold=threshold)
        self.refused(BAD, self.rotate, OWNER, OWNER, CUSTODIAN)


class Ties(CaseOf):
    """An auditor's vote: after a day of deadlock, open after two more, and one vote only."""

    def tied(self, **more: Any) -> Case:
        change: dict[str, str] = more.pop("change", {"quota": "20"})
        made = self.world.propose(more.pop("action", "override"), change, expires_at=START + 6 * DAY, **more)
        return self.world.approve(made, OWNER)

    def test_not_before_a_day(self) -> None:
        case = self.tied()
        self.world.clock.advance(DAY - 1)
        self.refused(CONFLICT, self.world.say, "tiebreak", case, AUDITOR)

    def test_it_opens_after_two_days(self) -> None:
        case = self.tied()
        self.world.clock.advance(DAY)
        self.world.say("tiebreak", case, AUDITOR)
        self.world.pass_(2 * DAY - 30)
        self.assertEqual(self.governance.ledger.case(case.proposal.id).state, "pending")
        self.world.pass_(30)
        after = self.governance.ledger.case(case.proposal.id)
        self.assertEqual((after.state, after.why), ("approved", "by the auditor's tie-break"))
        self.world.do(self.governance.execute(case.proposal.id))
        self.require(case)

    def test_the_members_may_still_decide(self) -> None:
        case = self.tied()
        self.world.clock.advance(DAY)
        case = self.world.say("tiebreak", case, AUDITOR)
        self.assertEqual(case.approvals, 1, "it is none of theirs")
        self.world.say("reject", case, OFFICER)
        self.assertEqual(self.world.say("reject", case, CUSTODIAN).state, "rejected")
        self.world.pass_(3 * DAY)
        self.assertEqual(self.governance.ledger.case(case.proposal.id).state, "rejected")

    def test_no_tie_and_no_auditor(self) -> None:
        nobody = self.world.propose("override", {"a": "b"}, expires_at=START + 6 * DAY)
        case = self.tied()
        self.world.clock.advance(DAY)
        self.refused(CONFLICT, self.world.say, "tiebreak", nobody, AUDITOR)
        self.refused(NO_CAPABILITY, self.world.say, "tiebreak", case, OFFICER)

    def test_not_where_safety_is_at_stake(self) -> None:
        for action, change in (("destroy_key", DESTROY), ("hybrid_off", {"pq_mode": "or"})):
            case = self.tied(action=action, change=change)
            self.world.clock.advance(DAY)
            self.refused(NO_CAPABILITY, self.world.say, "tiebreak", case, AUDITOR)

    def test_a_clock_that_is_a_little_ahead_makes_no_deadlock(self) -> None:
        """Dates say that a day has passed. The steady clock knows better."""
        case = self.tied()
        self.world.clock.advance(DAY - 1800)
        self.world.wrong_s = 1800
        self.refused(NO_CAPABILITY, self.world.say, "tiebreak", case, AUDITOR)
        self.world.clock.advance(1800)
        self.world.say("tiebreak", case, AUDITOR)

    def test_clocks_set_forward_open_nothing(self) -> None:
        case = self.tied()
        self.world.wrong_s = 2 * DAY
        self.refused("StoreUnavailable", self.world.say, "tiebreak", case, AUDITOR)
        self.world.wrong_s = 0
        self.world.clock.advance(DAY)
        self.world.say("tiebreak", case, AUDITOR)
        self.world.wrong_s = 2 * DAY + 60
        self.world.pass_(60)
        self.assertEqual(self.governance.ledger.case(case.proposal.id).state, "pending")


class Disputes(CaseOf):
    def test_marked_and_resolved(self) -> None:
        case = self.world.decide("pq_mode", AND)
        subject = f"proposal:{case.proposal.id}"
        self.world.dispute("dispute", subject)
        self.assertEqual(
            (self.world.events[-1].op, self.world.events[-1].extra["disputed"]), ("governance.dispute", True)
        )
        self.assertEqual(self.governance.pq_mode("acme"), "and", "nothing is rolled back")
        records = len(self.governance.book)
        self.world.dispute("dispute", subject)
        self.assertEqual(len(self.governance.book), records)
        self.world.dispute("resolve", subject, "it was right")
        self.assertEqual(self.governance.ledger.disputes[subject].resolution, "it was right")
        self.refused(CONFLICT, self.world.dispute, "resolve", subject)
        self.world.dispute("dispute", subject, "again")
        self.assertIsNone(self.governance.ledger.disputes[subject].resolution)

    def test_an_auditor_does_not_fill_the_book(self) -> None:
        for _ in range(4):
            self.world.dispute("dispute", "cap:1")
            self.world.dispute("resolve", "cap:1")
        self.refused(CONFLICT, self.world.dispute, "dispute", "cap:1")


class Clocks(CaseOf):
    def test_a_clock_that_jumps_decides_nothing(self) -> None:
        case = self.world.decide("destroy_key", DESTROY)
        for wrong_s in (-2 * HOUR, 2 * HOUR, 1e6, -1e9):
            self.world.wrong_s = wrong_s
            self.refused("StoreUnavailable", self.world.propose, "pq_mode", AND)
            self.refused("StoreUnavailable", self.require, case)
        self.world.wrong_s = 60
        self.require(case)

    def test_set_back_it_brings_nothing_back(self) -> None:
        case = self.world.decide("destroy_key", DESTROY)
        self.world.clock.advance(DAY)
        self.world.wrong_s = -HOUR + 1
        self.refused(NO_CAPABILITY, self.require, case)

    def test_dates_never_go_back(self) -> None:
        self.world.propose("pq_mode", AND)
        self.world.wrong_s = -HOUR + 60
        self.world.propose("pq_mode", AND)
        dates = [record.at for record in self.governance.book.records]
        self.assertEqual(dates, sorted(dates))


class Actions(SynchronousTestCase):
    def test_what_a_change_means(self) -> None:
        known = {
            "pq_mode": {"pq_mode": "and"},
            "hybrid_off": {"pq_mode": "or"},
            "freeze": {"freeze": "on"},
            "destroy_key": {"kid": KID},
            "backend_change": {"backend": "file", "x": "y"},
            "signers": {"signers": "x", "threshold": "2"},
        }
        for action, change in known.items():
            self.assertEqual(meant(change), action)
        for unclear in ({"x": "y"}, {}, {"freeze": "on", "kid": KID}):
            error = self.assertRaises(RonError, meant, unclear)
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)

    def test_every_action_has_a_scope(self) -> None:
        for action, rule in RULES.items():
            self.assertTrue(rule.scopes)
            self.assertRaises(RonError, check_action, action, "elsewhere", {})

    def test_keys_are_named_by_their_public_half(self) -> None:
        self.assertNotEqual(public_of("a"), public_of("b"))
        self.assertEqual(len(bytes(key_of("a"))), 32)
