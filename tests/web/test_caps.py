"""`/v1/caps` in memory: nobody mints more than they hold, an op_id is good once, revoking holds at the next call."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import AUDIENCE, AuthFiles, Caveat, ReplayGuard, Wanted, attenuate, inspect
from ron.auth.rootkeys import DAY_S
from ron.auth.wire import MAX_TTL_S
from ron.kernel import Metrics
from ron.proto.errors import RonError
from ron.web import Edge, make_site
from ron.web.caps import OwnReplay, cap_endpoints
from tests.web.wire import Response, exchange, request, split_response

NOW = 1_800_000_000.0
SEND = Wanted("mailbox:send", "POST", "/v1/send", frozenset({"tenant", "app", "topic"}))


def op() -> str:
    return str(uuid.uuid4())


class Caps(SynchronousTestCase):
    def setUp(self) -> None:
        self.now_s = NOW
        self.folder: Path | None = Path(self.mktemp()).absolute() / "auth"
        self.begin()

    def begin(self) -> None:
        self.files = AuthFiles(self.folder, lambda: self.now_s)
        self.authority = self.files.authority(AUDIENCE)
        edge = Edge(authority=self.authority, metrics=Metrics(), reactor=Clock())
        replay = OwnReplay(ReplayGuard(DAY_S, 100, lambda: self.now_s))
        self.site = make_site(edge, cap_endpoints(self.authority, self.files, replay))

    def holder(self, *caveats: tuple[str, str]) -> str:
        return self.authority.mint(Caveat(*caveat) for caveat in caveats)

    def call(self, path: str, token: str | None, body: object = None) -> Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        raw = None if body is None else json.dumps(body).encode()
        answer = exchange(self.site, request("GET" if raw is None else "POST", path, headers, raw))
        whole = split_response(answer)
        assert whole is not None
        return whole[0]

    def mint(self, token: str, **fields: object) -> Any:
        answer = self.call("/v1/caps/mint", token, {"scope": "mailbox:send", "ttl_s": 60, **fields})
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json

    def refused(self, status: int, code: str, path: str, token: str | None, body: object = None) -> str:
        answer = self.call(path, token, body)
        self.assertEqual((answer.status, answer.json["error"]["code"]), (status, code), answer.body)
        return str(answer.json["error"]["message"])


class Minting(Caps):
    def test_what_was_asked_for(self) -> None:
        got = self.mint(
            self.holder(),
            app="notes",
            tenant="t",
            topic="bob",
            method="POST",
            path="/v1",
            rps=2.5,
            bytes_per_day=1000,
            label="phone",
        )
        self.assertEqual(
            got["caveats"],
            [
                "aud = ron-node",
                "scope = mailbox:send",
                "app = notes",
                "tenant = t",
                "topic = bob",
                "method = POST",
                "path = /v1",
                "bytes_per_day = 1000",
                "rps = 2.5",
                "exp = 2027-01-15T08:01:00Z",
            ],
        )
        self.assertEqual((got["kid"], got["expires_at"]), (1, "2027-01-15T08:01:00Z"))
        self.assertEqual(self.authority.admit(got["token"], SEND).cap_id, got["cap_id"])
        self.now_s += 60
        self.assertRaises(RonError, self.authority.admit, got["token"], SEND)

    def test_bad_requests(self) -> None:
        good = {"scope": "mailbox:send", "ttl_s": 60}
        for body in (
            {},
            [],
            {"scope": "a:b"},
            {"ttl_s": 60},
            {**good, "ttl_s": 0},
            {**good, "ttl_s": -1},
            {**good, "ttl_s": MAX_TTL_S + 1},
            {**good, "ttl_s": "60"},
            {**good, "scope": ""},
            {**good, "scope": " a:b"},
            {**good, "topic": "x" * 300},
            {**good, "topic": "x\n"},
            {**good, "rps": 0},
            {**good, "rps": 1e9},
            {**good, "bytes_per_day": 0},
            {**good, "bytes_per_day": 1.5},
            {**good, "label": "two\nlines"},
            {**good, "colour": "red"},
            {**good, "parent": None},
        ):
            self.refused(400, "BadRequest", "/v1/caps/mint", self.holder(), body)
        self.assertEqual(self.files.listed(), ())

    def test_the_scope_it_needs(self) -> None:
        body = {"scope": "mailbox:send", "ttl_s": 60}
        self.refused(401, "NoCapability", "/v1/caps/mint", None, body)
        for scope in ("mailbox:send", "cap:read", "cap:revoke,cap:rotate"):
            self.refused(403, "NoCapability", "/v1/caps/mint", self.holder(("scope", scope)), body)

    def test_not_beyond_the_callers_scope(self) -> None:
        caller = self.holder(("scope", "cap:mint,mailbox:*,edge:prefetch"))
        for scope in ("mailbox:send", "mailbox:*", "mailbox:recv,edge:prefetch", "cap:mint"):
            self.mint(caller, scope=scope)
        for scope in ("*", "edge:*", "node:read", "mailbox:send,node:read", "cap:*"):
            message = self.refused(403, "NoCapability", "/v1/caps/mint", caller, {"scope": scope, "ttl_s": 60})
            self.assertIn("scope", message)

    def test_not_beyond_the_callers_resources(self) -> None:
        caller = self.holder(("tenant", "mine"))
        self.assertIn("tenant = mine", self.mint(caller)["caveats"])
        self.mint(caller, tenant="mine", topic="t")
        body = {"scope": "mailbox:send", "ttl_s": 60, "tenant": "yours"}
        self.refused(403, "NoCapability", "/v1/caps/mint", caller, body)

    def test_not_beyond_the_callers_time(self) -> None:
        caller = self.holder(("exp", "2027-01-15T08:00:10Z"))
        got = self.mint(caller, ttl_s=1000)
        self.assertEqual(got["expires_at"], "2027-01-15T08:00:10Z")
        self.now_s += 10
        self.assertRaises(RonError, self.authority.admit, got["token"], SEND)

    def test_a_limited_one_cannot_multiply_its_allowance(self) -> None:
        for caveat in (("rps", "5"), ("bytes_per_day", "1000")):
            message = self.refused(
                403, "NoCapability", "/v1/caps/mint", self.holder(caveat), {"scope": "mailbox:send", "ttl_s": 60}
            )
            self.assertIn(caveat[0], message)

    @settings(max_examples=80, deadline=None)
    @given(st.data())
    def test_never_more_than_the_caller(self, data: st.DataObject) -> None:
        """Whatever the caller's caveats and the request: what the child may do, the caller may do."""
        self.folder = None
        self.begin()
        kinds = [
            ("scope", "cap:mint,mailbox:*"),
            ("scope", "*"),
            ("tenant", "a"),
            ("topic", "x"),
            ("path", "/v1"),
            ("path", "/v1/caps"),
            ("method", "POST"),
            ("exp", "2027-01-15T08:00:30Z"),
        ]
        caller = self.holder(*data.draw(st.lists(st.sampled_from(kinds), max_size=4)))
        asked = data.draw(
            st.fixed_dictionaries(
                {"scope": st.sampled_from(["mailbox:send", "mailbox:*", "*", "node:read"]), "ttl_s": st.just(60)},
                optional={"tenant": st.sampled_from("ab"), "topic": st.sampled_from("xy"), "path": st.just("/v1/send")},
            )
        )
        answer = self.call("/v1/caps/mint", caller, asked)
        if answer.status != 200:
            self.assertEqual(answer.status, 403, answer.body)
            return
        for scope in ("mailbox:send", "node:read"):
            for path in ("/v1/send", "/v1/caps", "/"):
                for self.now_s in (NOW, NOW + 31):
                    wanted = SEND._replace(scope=scope, path=path)
                    if self.passes(answer.json["token"], wanted):
                        self.assertTrue(self.passes(caller, wanted))
        self.now_s = NOW

    def passes(self, token: str, wanted: Wanted) -> bool:
        try:
            self.authority.admit(token, wanted)
        except RonError:
            return False
        return True


class Revoking(Caps):
    def test_by_token_and_by_cap_id(self) -> None:
        for field in ("token", "cap_id"):
            got = self.mint(self.holder())
            child = attenuate(got["token"], [Caveat("method", "POST")])
            value = child if field == "token" else got["cap_id"]
            answer = self.call("/v1/caps/revoke", self.holder(), {"op_id": op(), field: value})
            self.assertEqual((answer.status, answer.json), (200, {"revoked": [got["cap_id"]]}))
            for token in (got["token"], child):
                self.assertRaises(RonError, self.authority.admit, token, SEND)

    def test_the_minter_and_what_it_minted(self) -> None:
        minter = self.mint(self.holder(), scope="cap:mint,mailbox:*")
        child = self.mint(minter["token"])
        answer = self.call("/v1/caps/revoke", self.holder(), {"op_id": op(), "cap_id": minter["cap_id"]})
        self.assertEqual(answer.json["revoked"], [minter["cap_id"], child["cap_id"]])
        self.assertRaises(RonError, self.authority.admit, child["token"], SEND)
        self.refused(401, "NoCapability", "/v1/caps/mint", minter["token"], {"scope": "mailbox:send", "ttl_s": 60})

    def test_an_altered_token_names_nobody(self) -> None:
        """Its cap_id could be anybody's, and whoever revoked it would believe the real one void."""
        token = self.mint(self.holder())["token"]
        for bad in (token[:-2], token[:-1] + ("A" if token[-1] != "A" else "B"), "", "x"):
            self.refused(400, "BadRequest", "/v1/caps/revoke", self.holder(), {"op_id": op(), "token": bad})
        self.assertEqual(len(self.files.revocations), 0)

    def test_an_expired_one_may_be_revoked(self) -> None:
        got = self.mint(self.holder())
        self.now_s += 100
        answer = self.call("/v1/caps/revoke", self.holder(), {"op_id": op(), "token": got["token"]})
        self.assertEqual(answer.status, 200)

    def test_bad_requests(self) -> None:
        admin, cap_id = self.holder(), "a" * 32
        for body in (
            {"op_id": op()},
            {"cap_id": cap_id},
            {"op_id": "1", "cap_id": cap_id},
            {"op_id": op(), "cap_id": "zz"},
            {"op_id": op(), "cap_id": cap_id, "token": self.holder()},
        ):
            self.refused(400, "BadRequest", "/v1/caps/revoke", admin, body)
        self.refused(403, "NoCapability", "/v1/caps/revoke", self.holder(("scope", "cap:mint")), {})

    def test_an_op_id_is_good_once(self) -> None:
        admin, body = self.holder(), {"op_id": op(), "cap_id": "a" * 32}
        self.assertEqual(self.call("/v1/caps/revoke", admin, body).status, 200)
        self.refused(409, "Conflict", "/v1/caps/revoke", admin, body)
        self.refused(409, "Conflict", "/v1/caps/rotate", admin, {"op_id": body["op_id"]})
        self.now_s += DAY_S
        self.assertEqual(self.call("/v1/caps/revoke", admin, body).status, 200)

    def test_one_that_failed_may_be_tried_again(self) -> None:
        admin, body = self.holder(), {"op_id": op(), "cap_id": "not a cap_id"}
        self.refused(400, "BadRequest", "/v1/caps/revoke", admin, body)
        body["cap_id"] = "a" * 32
        self.assertEqual(self.call("/v1/caps/revoke", admin, body).status, 200)


class Rotating(Caps):
    def test_a_new_epoch(self) -> None:
        admin = self.holder()
        answer = self.call("/v1/caps/rotate", admin, {"op_id": op(), "grace_s": 60})
        self.assertEqual([epoch["kid"] for epoch in answer.json["epochs"]], [1, 2])
        self.assertEqual([e["retires_at"] for e in answer.json["epochs"]], ["2027-01-15T08:01:00Z", None])
        self.assertEqual(inspect(self.holder()).kid, 2)
        self.now_s += 60
        self.refused(401, "NoCapability", "/v1/caps", admin)

    def test_bad_requests(self) -> None:
        for body in ({}, {"op_id": "x"}, {"op_id": op(), "grace_s": -1}, {"op_id": op(), "grace_s": 10**6}):
            self.refused(400, "BadRequest", "/v1/caps/rotate", self.holder(), body)
        self.refused(403, "NoCapability", "/v1/caps/rotate", self.holder(("scope", "cap:revoke")), {"op_id": op()})
        self.assertEqual(self.files.keys.current.kid, 1)


class Listing(Caps):
    def test_what_could_still_be_used_and_no_token(self) -> None:
        admin = self.holder()
        first, second = self.mint(admin, label="first"), self.mint(admin, label="second", ttl_s=100)
        self.call("/v1/caps/revoke", admin, {"op_id": op(), "cap_id": second["cap_id"]})
        answer = self.call("/v1/caps", self.holder(("scope", "cap:read")))
        shown = [(cap["label"], cap["revoked"], cap["parent"]) for cap in answer.json["capabilities"]]
        parent = inspect(admin).cap_id
        self.assertEqual(shown, [("first", False, parent), ("second", True, parent)])
        self.assertEqual([epoch["kid"] for epoch in answer.json["epochs"]], [1])
        self.assertNotIn(first["token"][-43:].encode(), answer.body)
        self.assertNotIn(b"key", answer.body)
        self.now_s += 61
        answer = self.call("/v1/caps", admin)
        self.assertEqual([cap["label"] for cap in answer.json["capabilities"]], ["second"])

    def test_the_scope_it_needs(self) -> None:
        self.refused(403, "NoCapability", "/v1/caps", self.holder(("scope", "cap:mint")))
        self.refused(403, "NoCapability", "/v1/caps", self.holder(("tenant", "a")))
