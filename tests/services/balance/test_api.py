"""The operator's API over HTTP: what is refused, who may what, what reaches the desk, what comes back."""

from __future__ import annotations

import base64
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.balanceviews import InvitationAnswer, NewServiceRequest
from ron.proto.errors import RonError, unavailable
from ron.services.balance import api
from ron.services.balance.once import KEPT_S, MOST, Once
from tests.services.balance.desk import Answer, World

KEY = bytes(range(64))
KEY_B64 = base64.b64encode(KEY).decode()


def op_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.desk = self.world.desk
        self.token = self.world.bearer(("scope", "balance:*"))

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        return self.world.ask(self.token, method, f"/v1/balance{path}", body)

    def post(self, path: str, **body: Any) -> Answer:
        return self.ask("POST", path, body)

    def refused(self, status: int, path: str, **body: Any) -> str:
        """Nothing reaches the desk."""
        before = list(self.desk.calls)
        answer = self.post(path, **body)
        self.assertEqual((answer.status, self.desk.calls), (status, before), body)
        return str(answer.body)


class Bad(Case):
    """What is refused, before the desk hears of it."""

    def test_shapes(self) -> None:
        one = op_id(1)
        for path, body in (
            ("/promote", {}),
            ("/promote", {"node": "UPPER"}),
            ("/promote", {"node": "beta", "for_s": 0}),
            ("/promote", {"node": "beta", "for_s": 8 * 24 * 3600}),
            ("/promote", {"node": "beta", "for_s": 1.5}),
            ("/promote", {"node": "beta", "until": 5}),
            ("/siege", {"node": "beta"}),
            ("/siege", {"node": "beta", "on": "yes"}),
            ("/roulette", {}),
            ("/publish", {"service": "No"}),
            ("/leave", {"really": True}),
            ("/token/rotate", {}),
            ("/token/rotate", {"op_id": "x"}),
            ("/token/rotate", {"op_id": "x" * 36}),
            ("/invitations", {"op_id": one}),
            ("/invitations", {"op_id": one, "name": "../x"}),
            ("/invitations", {"op_id": one, "name": "delta", "addresses": ["nowhere"]}),
            ("/invitations", {"op_id": one, "name": "delta", "addresses": ["a:1"] * 17}),
            ("/refresh", {"service": "main"}),
            ("/reshare", {"op_id": one, "service": "main"}),
            ("/reshare", {"op_id": one, "service": "main", "threshold": 1}),
            ("/reshare", {"op_id": one, "service": "main", "add": ["beta"], "remove": ["beta"]}),
            ("/members/beta/approve", {"op_id": one}),
        ):
            self.refused(400, path, **body)

    def test_a_new_service_that_cannot_be(self) -> None:
        for body in (
            {"name": "Shop"},
            {"name": "shop", "mode": "both"},
            {"name": "shop", "threshold": 2},
            {"name": "shop", "among": ["beta"]},
            {"name": "shop", "mode": "threshold", "threshold": 4, "members": 3},
            {"name": "shop", "mode": "threshold", "threshold": 1},
            {"name": "shop", "mode": "threshold", "members": 17},
            {"name": "shop", "mode": "threshold", "members": 3, "among": ["alpha", "beta"]},
            {"name": "shop", "mode": "threshold", "among": ["alpha", "alpha", "beta"]},
            {"name": "shop", "key": ""},
            {"name": "shop", "key": KEY_B64[:-4]},
            {"name": "shop", "key": KEY_B64 + "AAAA"},
            {"name": "shop", "key": "-" + KEY_B64[1:]},
            {"name": "shop", "key": KEY_B64 + "\n"},
        ):
            said = self.refused(400, "/services", op_id=op_id(1), **body)
            self.assertNotIn(KEY_B64[:40], said, "an error does not repeat the key")

    def test_bodies_that_are_none(self) -> None:
        for body in (b"", b"{", b"[]", b"null", b"\xff", b"x" * 10):
            self.assertEqual(self.ask("POST", "/leave", body).status, 400)
        self.assertEqual(self.ask("POST", "/services", b" " * (api.BODY_LIMIT_BYTES + 1)).status, 413)
        self.assertEqual(self.ask("GET", "", {}).status, 400)
        self.assertEqual(self.desk.calls, [])

    def test_names_in_paths(self) -> None:
        for name in ("UPPER", "%ff", "..%2f..", "a" * 500, "%00", "delta"):
            for method, path in (("DELETE", f"/members/{name}"), ("POST", f"/members/{name}/approve")):
                answer = self.ask(method, path, {})
                self.assertIn(answer.status, {400, 404}, path)
                self.assertLess(len(str(answer.body)), 500)
        self.assertEqual(set(self.desk.members), {"alpha", "beta", "gamma"})

    def test_other_methods(self) -> None:
        for method, path in (("POST", ""), ("GET", "/promote"), ("PUT", "/services"), ("POST", "/members/beta")):
            self.assertEqual(self.ask(method, path).status, 405, path)

    def test_what_the_desk_refuses_comes_through(self) -> None:
        self.assertEqual(self.post("/promote", node="delta").status, 404)
        self.assertEqual(self.post("/refresh", op_id=op_id(1), service="shop").status, 404)
        self.desk.refusal = unavailable("2 of 3 signers are needed and 1 is there")
        answer = self.post("/publish")
        self.assertEqual((answer.status, answer.body["error"]["code"]), (503, "StoreUnavailable"))

    ODD = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.text(max_size=5), max_size=3)

    @settings(max_examples=100, deadline=None)
    @given(
        st.sampled_from([e.path for e in api.endpoints(None, None) if e.body]),  # type: ignore[arg-type]
        st.dictionaries(
            st.sampled_from(["op_id", "name", "node", "on", "key", "mode", "among", "threshold", "service", "odd"]), ODD
        ),
    )
    def test_no_body_is_a_mistake_of_ours(self, path: str, body: dict[str, Any]) -> None:
        plain = path.replace("<name>", "beta")
        self.assertNotEqual(self.world.ask(self.token, "POST", plain, body).status, 500)


class Who(Case):
    """Scopes."""

    def served(self, scope: str) -> set[str]:
        """The paths that a capability with `scope` opens."""
        token = self.world.bearer(("scope", scope))
        opened = set()
        for route in api.endpoints(self.desk, self.world.clock):
            path = route.path.replace("<name>", "delta")
            status = self.world.ask(token, route.method, path, {} if route.body else None).status
            self.assertIn(status, {200, 400, 403, 404})
            if status != 403:
                opened.add(f"{route.method} {route.path.removeprefix('/v1/balance')}")
        return opened

    def test_nobody(self) -> None:
        for route in api.endpoints(self.desk, self.world.clock):
            path = route.path.replace("<name>", "beta")
            self.assertEqual(self.world.ask(None, route.method, path, {} if route.body else None).status, 401)
        for scope in ("onion:*", "balance:nonsense", "mailbox:send"):
            self.assertEqual(self.served(scope), set())
        self.assertEqual(self.desk.calls, [])

    def test_each_scope_opens_its_own(self) -> None:
        self.assertEqual(self.served("balance:read"), {"GET ", "GET /ghosts"})
        self.assertEqual(
            self.served("balance:operate"),
            {
                "POST /promote",
                "POST /siege",
                "POST /roulette",
                "POST /publish",
                "POST /leave",
                "POST /token/rotate",
                "DELETE /members/<name>",
            },
        )
        self.assertEqual(
            self.served("balance:key"),
            {
                "POST /members/<name>/approve",
                "POST /invitations",
                "POST /services",
                "POST /refresh",
                "POST /reshare",
            },
        )

    def test_one_that_is_narrowed_to_an_app_is_none_of_ours(self) -> None:
        token = self.world.bearer(("scope", "balance:*"), ("app", "wiki"))
        self.assertEqual(self.world.ask(token, "GET", "/v1/balance").status, 403)


class Orders(Case):
    """What reaches the desk, and what is answered."""

    def test_status(self) -> None:
        shown = self.ask("GET", "")
        self.assertEqual((shown.status, shown.body["leader"]["name"]), (200, "alpha"))
        self.assertEqual([one["name"] for one in shown.body["members"]], ["alpha", "beta", "gamma"])
        self.assertEqual(shown.body["services"][0]["publications"][1]["taken"], 5)

    def test_promotion_and_its_end(self) -> None:
        self.assertEqual(self.post("/promote", node="beta", for_s=60).body["name"], "beta")
        self.post("/promote", node=None)
        self.assertEqual(self.desk.calls, [("promote", "beta", 60), ("promote", None, None)])

    def test_siege_and_ghosts(self) -> None:
        shown = self.post("/siege", node="beta", on=True).body
        self.assertEqual((shown["in_descriptor"], shown["out"]), (False, "under siege"))
        self.assertEqual([one["node"] for one in self.ask("GET", "/ghosts").body["ghosts"]], ["beta"])
        self.post("/siege", node="beta", on=False)
        self.assertEqual(self.ask("GET", "/ghosts").body, {"ghosts": []})

    def test_roulette_warns(self) -> None:
        on = self.post("/roulette", on=True, for_s=600).body
        self.assertTrue(on["warning"])
        self.assertEqual(self.ask("GET", "").body["roulette_until"], on["until"])
        self.assertEqual(self.post("/roulette", on=False).body, {"until": None, "warning": ""})

    def test_members(self) -> None:
        self.assertTrue(self.post("/members/gamma/approve").body["approved"])
        removed = {"name": "gamma", "removed": True, "asked_by": ["alpha"], "needed": 1}
        self.assertEqual(self.ask("DELETE", "/members/gamma", {}).body, removed)
        self.assertEqual(self.ask("DELETE", "/members/gamma", {}).status, 404)
        self.assertEqual(self.post("/leave").body, {"node": "alpha", "left": True})

    def test_shares(self) -> None:
        self.assertEqual(self.post("/refresh", op_id=op_id(1), service="main").body["epoch"], 2)
        body = {"op_id": op_id(2), "service": "main", "threshold": 3, "remove": ["gamma"]}
        self.assertEqual(self.post("/reshare", **body).body["epoch"], 3)
        self.assertEqual(self.desk.calls[-1], ("reshare", "main", 3, (), ("gamma",)))

    def test_defaults_of_a_new_service(self) -> None:
        for number, (body, meant) in enumerate(
            (
                ({}, ("shared", 0, 0, ())),
                ({"mode": "threshold"}, ("threshold", 2, 3, ())),
                ({"mode": "threshold", "threshold": 3, "members": 5}, ("threshold", 3, 5, ())),
                ({"mode": "threshold", "among": ["alpha", "beta"]}, ("threshold", 2, 2, ("alpha", "beta"))),
            )
        ):
            name = f"s{number}"
            answer = self.post("/services", op_id=op_id(number), name=name, **body)
            self.assertEqual((answer.status, self.desk.calls[-1]), (200, ("create", name, *meant, None)))


class Secrets(Case):
    """The key comes in and never out; the bundle goes out once and is never shown elsewhere."""

    def test_the_key_reaches_the_desk_and_is_wiped(self) -> None:
        answer = self.post("/services", op_id=op_id(1), name="shop", key=KEY_B64)
        self.assertEqual(answer.status, 200)
        self.assertEqual(self.desk.calls[-1][-1], KEY)
        self.assertEqual(self.desk.keys, [bytearray(64)])
        self.assertNotIn(KEY_B64[:40], str(answer.body))

    def test_it_is_wiped_when_the_desk_refuses(self) -> None:
        self.desk.refusal = unavailable("no")
        self.post("/services", op_id=op_id(1), name="shop", key=KEY_B64)
        self.assertEqual(self.desk.keys, [bytearray(64)])

    def test_neither_is_in_a_repr_or_in_the_log(self) -> None:
        body = NewServiceRequest(op_id=op_id(1), name="shop", key=KEY_B64)
        self.assertNotIn(KEY_B64[:8], f"{body} {body!r} {[body]}")
        bundle = InvitationAnswer(name="delta", bundle="SECRET")
        self.assertNotIn("SECRET", f"{bundle} {bundle!r} {[bundle]}")
        # the worst that can happen to a call: a mistake of ours in the middle of it
        self.desk.refusal = ValueError("boom")
        self.assertEqual(self.post("/services", op_id=op_id(1), name="shop", key=KEY_B64).status, 500)
        (failure,) = self.flushLoggedErrors(ValueError)
        self.assertNotIn(KEY_B64[:8], failure.getTraceback())


class Acts(Case):
    """An op_id is one act."""

    def invite(self, number: int, name: str = "delta") -> Answer:
        return self.post("/invitations", op_id=op_id(number), name=name)

    def test_a_repetition_gets_the_same_bundle(self) -> None:
        first, again, other = self.invite(1), self.invite(1), self.invite(2)
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)
        self.assertEqual(len(self.desk.calls), 2)

    def test_for_another_act_it_is_a_conflict(self) -> None:
        self.invite(1)
        self.assertEqual(self.invite(1, "epsilon").status, 409)
        self.assertEqual(self.post("/token/rotate", op_id=op_id(1)).status, 409)

    def test_anothers_op_id_is_another_act(self) -> None:
        mine = self.invite(1)
        self.token = self.world.bearer(("scope", "balance:*"))
        self.assertNotEqual(self.invite(1), mine, "nobody gets at a bundle by its op_id")

    def test_one_that_failed_may_be_tried_again(self) -> None:
        self.desk.refusal = unavailable("no")
        self.assertEqual(self.invite(1).status, 503)
        self.desk.refusal = None
        self.assertEqual(self.invite(1).status, 200)

    def test_who_asks_while_it_is_under_way_waits_for_it(self) -> None:
        self.desk.held = Deferred()
        body = {"op_id": op_id(1), "service": "main"}
        first = self.world.begin(self.token, "POST", "/v1/balance/refresh", body)
        second = self.world.begin(self.token, "POST", "/v1/balance/refresh", body)
        self.assertEqual((first.response(), second.response()), (None, None))
        self.desk.held.callback(None)
        one, two = first.response(), second.response()
        assert one is not None
        assert two is not None
        self.assertEqual((one.json["epoch"], two.json["epoch"]), (2, 2))
        self.assertEqual(len(self.desk.calls), 1)

    def test_who_hangs_up_does_not_end_it(self) -> None:
        self.desk.held = Deferred()
        body = {"op_id": op_id(1), "service": "main"}
        self.world.begin(self.token, "POST", "/v1/balance/refresh", body).hang_up()
        self.desk.held.callback(None)
        self.desk.held = None
        self.assertEqual(self.post("/refresh", **body).body["epoch"], 2)
        self.assertEqual(len(self.desk.calls), 1)

    def test_a_failure_that_nobody_waits_for_is_in_the_log(self) -> None:
        self.desk.held, self.desk.refusal = Deferred(), unavailable("no")
        body = {"op_id": op_id(1), "service": "main"}
        self.world.begin(self.token, "POST", "/v1/balance/refresh", body).hang_up()
        self.desk.held.callback(None)
        self.assertEqual(len(self.flushLoggedErrors(RonError)), 1)

    def test_it_is_forgotten_in_time(self) -> None:
        first = self.invite(1)
        self.world.clock.advance(KEPT_S - 1)
        self.assertEqual(self.invite(1), first)
        self.world.clock.advance(1)
        self.assertNotEqual(self.invite(1), first)

    def test_so_many_and_no_more(self) -> None:
        once = Once(self.world.clock)

        async def act() -> int:
            return 1

        def do(number: int) -> Deferred[int]:
            body = NewServiceRequest(op_id=op_id(number), name="shop")
            return Deferred.fromCoroutine(once.do("cap", "create", body, act))

        for number in range(MOST):
            self.successResultOf(do(number))
        refusal = self.failureResultOf(do(MOST), RonError).value
        self.assertEqual((refusal.status, refusal.retry_after_s), (429, int(KEPT_S)))
        self.successResultOf(do(0))
        self.world.clock.advance(KEPT_S)
        self.successResultOf(do(MOST))
