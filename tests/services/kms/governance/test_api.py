"""Governance over HTTP: who may bring what, and what is shown."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import unavailable
from ron.proto.governance import SignedObject
from ron.proto.ids import uuid7
from ron.services.kms.governance.api import ANSWERS, endpoints
from tests.services.kms.governance.memory import Answer, WebWorld
from tests.services.kms.governance.people import AUDITOR, CUSTODIAN, DAY, HOUR, OFFICER, OWNER, START

AND = {"pq_mode": "and"}


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = WebWorld()
        self.addCleanup(lambda: self.world.governance.stop())

    def code(self, answer: Answer) -> tuple[int, str]:
        return answer.status, answer.body["error"]["code"]

    def proposed(self, **more: Any) -> Any:
        signed = self.world.signed(self.world.proposal("pq_mode", AND, **more))
        answer = self.world.ask("POST", "/proposals", signed)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.body

    def voted(self, verb: Any, shown: Any, role: Any) -> Answer:
        case = self.world.governance.ledger.case(shown["id"])
        return self.world.ask("POST", f"/proposals/{shown['id']}/votes", self.world.word(verb, case, role))


class Bad(Case):
    def tearDown(self) -> None:
        self.assertEqual(len(self.world.governance.book), 1, "nothing was written down")

    def test_whoever_may_not(self) -> None:
        for endpoint in endpoints(self.world.governance):
            path = endpoint.path.removeprefix("/v1/kms/governance").replace("<proposal>", str(uuid7()))
            self.assertEqual(self.world.ask(endpoint.method, path, token="").status, 401)
            for caveats in ([("scope", "kms:sign")], [("scope", "kms:governance"), ("tenant", "acme")]):
                token = self.world.bearer(*caveats)
                self.assertEqual(self.code(self.world.ask(endpoint.method, path, {}, token)), (403, "NoCapability"))

    def test_bodies_that_are_none(self) -> None:
        signed = json.loads(_encoded(self.world.signed(self.world.proposal("pq_mode", AND))))
        for body in (
            None,
            b"",
            b"{",
            b"[" * 10_000,
            {},
            [],
            {**signed, "more": 1},
            {**signed, "key_id": "x"},
            {**signed, "signature": "AAAA"},
            {**signed, "object": 5},
            {**signed, "object": "x" * 16_385},
            {**signed, "object": "{}"},
            {**signed, "object": signed["object"] + " "},
        ):
            status = self.world.ask("POST", "/proposals", body).status
            self.assertIn(status, (400, 403), body)
        self.assertEqual(self.world.ask("POST", "/proposals", b" " * 70_000).status, 413)

    def test_paths_and_questions_that_are_none(self) -> None:
        self.assertEqual(self.code(self.world.ask("GET", f"/proposals/{uuid7()}")), (404, "NotFound"))
        for path in ("/proposals/x", "/proposals/%ff", "/proposals/..%2fx", f"/proposals/{'a' * 3000}"):
            self.assertIn(self.world.ask("GET", path).status, (400, 404), path)
        for query in ("state=done", "before=x", f"before={uuid7()}"):
            self.assertIn(self.world.ask("GET", f"/proposals?{query}").status, (400, 404), query)
        for query in ("start=-1", "start=x", "since=1.5", "start=1e9", "since=%ff", "start=" + "9" * 13):
            self.assertEqual(self.world.ask("GET", f"/log?{query}").status, 400, query)
        self.assertEqual(self.world.ask("PUT").status, 405)

    def test_a_vote_where_a_proposal_belongs(self) -> None:
        proposal = self.world.signed(self.world.proposal("pq_mode", AND))
        self.assertEqual(self.code(self.world.ask("POST", "/disputes", proposal)), (400, "BadRequest"))


class Deciding(Case):
    def test_from_proposal_to_effect(self) -> None:
        shown = self.proposed(risk="low", rollback="hybrid_off", attachments=("https://ci/1",))
        self.assertEqual((shown["state"], shown["needed"], shown["approvals"]), ("pending", 2, 0))
        path = f"/proposals/{shown['id']}"
        self.assertEqual(self.code(self.world.ask("POST", f"{path}/execute", {})), (409, "Conflict"))
        self.assertEqual(self.voted("approve", shown, OFFICER).body["approvals"], 1)
        approved = self.voted("approve", shown, CUSTODIAN).body
        self.assertEqual(approved["state"], "approved")
        self.assertEqual([vote["role"] for vote in approved["signatures"]], [OFFICER, CUSTODIAN])
        done = self.world.ask("POST", f"{path}/execute", {})
        self.assertEqual((done.status, done.body["state"]), (200, "executed"))
        self.assertEqual(self.world.ask("POST", f"{path}/execute", {}), done, "again changes nothing")
        self.assertEqual(self.world.ask("GET", path), done)
        self.assertEqual(self.world.ask("GET").body["pq_modes"], {"tenant:acme": "and"})

    def test_nothing_without_the_audit_log(self) -> None:
        shown = self.proposed()
        self.world.trouble = unavailable("the audit log is away")
        answer = self.voted("approve", shown, OFFICER)
        self.assertEqual(self.code(answer), (503, "StoreUnavailable"))
        self.world.trouble = None
        self.assertEqual(self.voted("approve", shown, OFFICER).body["approvals"], 1)

    def test_a_vote_is_for_the_proposal_it_is_sent_to(self) -> None:
        one, other = self.proposed(), self.proposed()
        word = self.world.word("approve", self.world.governance.ledger.case(one["id"]), OFFICER)
        answer = self.world.ask("POST", f"/proposals/{other['id']}/votes", word)
        self.assertEqual(self.code(answer), (400, "BadRequest"))
        self.assertEqual(self.world.ask("GET", f"/proposals/{one['id']}").body["approvals"], 0)

    def test_who_brought_it_is_in_the_audit_log(self) -> None:
        token = self.world.bearer()
        self.world.ask("POST", "/proposals", self.world.signed(self.world.proposal("pq_mode", AND)), token)
        self.assertEqual(self.world.events[-1].actor, self.world.authority.recognise(token).cap_id)

    def test_one_that_ran_out_is_shown_so_at_once(self) -> None:
        shown = self.proposed()
        self.world.clock.advance(DAY)
        token = self.world.bearer()
        self.assertEqual(self.world.ask("GET", f"/proposals/{shown['id']}", token=token).body["state"], "expired")


class Shown(Case):
    def test_how_it_stands(self) -> None:
        view = self.world.ask("GET").body
        self.assertEqual((view["threshold"], view["micronode"], view["rotation_due"]), (2, False, False))
        self.assertEqual([one["role"] for one in view["signers"]], [OWNER, OFFICER, CUSTODIAN, AUDITOR])
        self.assertEqual([one["counts"] for one in view["signers"]], [True, True, True, False])
        self.world.decide("freeze", {"freeze": "on"})
        self.world.clock.advance(HOUR / 2)
        self.world.dispute("dispute", "cap:1")
        view = self.world.ask("GET").body
        self.assertEqual([(one["scope"], one["left_s"]) for one in view["freezes"]], [("tenant:acme", HOUR // 2)])
        self.assertEqual([(one["subject"], one["disputed"]) for one in view["disputes"]], [("cap:1", True)])
        self.assertEqual((view["records"], view["head"]), (5, self.world.governance.book.head))

    def test_keys_that_are_due(self) -> None:
        self.world.clock.advance(91 * DAY)
        self.assertTrue(self.world.ask("GET").body["rotation_due"])

    def test_a_disputed_proposal(self) -> None:
        shown = self.proposed()
        case = self.world.governance.ledger.case(shown["id"])
        self.assertFalse(shown["disputed"])
        word = self.world.word(
            "dispute", case, AUDITOR, proposal="", digest="", subject=f"proposal:{shown['id']}", reason="x"
        )
        self.assertEqual(self.world.ask("POST", "/disputes", word).status, 200)
        self.assertTrue(self.world.ask("GET", f"/proposals/{shown['id']}").body["disputed"])

    def test_lists_newest_first_and_page_by_page(self) -> None:
        authors = (OWNER, OFFICER, CUSTODIAN) * 16
        made = [self.world.propose("pq_mode", AND, author=author).proposal.id for author in authors]
        self.world.say("reject", self.world.governance.ledger.case(made[0]), OWNER)
        first = self.world.ask("GET", "/proposals").body
        found = [one["id"] for one in first["proposals"]]
        self.assertEqual(found, made[::-1])
        self.assertIsNone(first["next"])
        self.assertEqual(
            [one["id"] for one in self.world.ask("GET", "/proposals?state=rejected").body["proposals"]], made[:1]
        )
        rest = self.world.ask("GET", f"/proposals?before={made[2]}").body["proposals"]
        self.assertEqual([one["id"] for one in rest], [made[1], made[0]])

    def test_more_than_a_page(self) -> None:
        for _ in range(4):
            for author in (OWNER, OFFICER, CUSTODIAN):
                for _ in range(5):
                    case = self.world.propose("pq_mode", AND, author=author)
                    self.world.say("reject", case, author)
        first = self.world.ask("GET", "/proposals").body
        second = self.world.ask("GET", f"/proposals?before={first['next']}").body
        ids = [one["id"] for page in (first, second) for one in page["proposals"]]
        self.assertEqual((len(ids), len(set(ids)), second["next"]), (60, 60, None))

    def test_the_log(self) -> None:
        shown = self.proposed()
        self.world.clock.advance(HOUR)
        self.voted("approve", shown, OFFICER)
        log = self.world.ask("GET", "/log").body
        self.assertEqual([one["what"] for one in log["records"]], ["genesis", "propose", "approve"])
        self.assertEqual([one["proposal"] for one in log["records"]], ["", shown["id"], shown["id"]])
        self.assertEqual(log["records"][-1]["hash"], self.world.governance.book.head)
        late = self.world.ask("GET", f"/log?since={START + HOUR}").body["records"]
        self.assertEqual([one["seq"] for one in late], [2])
        self.assertEqual(self.world.ask("GET", "/log?start=99").body, {"records": [], "next": None})

    def test_every_route_has_its_answer(self) -> None:
        routes = {(one.method, one.path) for one in endpoints(self.world.governance)}
        self.assertEqual(routes, set(ANSWERS))


def _encoded(signed: SignedObject) -> bytes:
    return msgspec.json.encode(signed)
