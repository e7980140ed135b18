"""What one app's capability can learn of another app: nothing.

The property compares two hosts. On one there are two apps; on the other the second one never existed. Whatever the
first app asks, about whichever ids, under whichever op_ids, in whatever order and with whatever the second one does
meanwhile, both hosts answer it alike. So no status, text, order or count depends on the other app.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.services.oniond import api
from ron.services.oniond.telemetry import EVENTS
from ron.tor.clientauth import generate
from tests.services.oniond.memory import NOW_S, Answer, World

ALICE, BOB = "alice", "bob-of-the-secret"
SCOPE = ("scope", "onion:*")
UNKNOWN = str(uuid.UUID(int=7, version=4))
OP_IDS = [str(uuid.UUID(int=number, version=4)) for number in range(100, 108)]
NAMES = ["laptop", "phone", "desk"]
KEYS = [generate().public.base32 for _ in range(2)]
PORTS = [{"onion_port": 80, "local": "127.0.0.1:8080"}], [{"onion_port": 81, "local": "unix:/run/app.sock"}]
# Every route about one onion: method, what follows its id, and what the body says besides its op_id.
ROUTES: dict[str, tuple[str, str, Callable[[Any], dict[str, Any]] | None]] = {
    "show": ("GET", "", None),
    "delete": ("DELETE", "", lambda _step: {}),
    "bind": ("POST", "/bind", lambda step: {"ports": PORTS[step.choice]}),
    "rotate": ("POST", "/rotate", lambda _step: {"grace_s": 60}),
    "drain": ("POST", "/drain", lambda _step: {"deadline_s": 60}),
    "export": ("POST", "/export", lambda _step: {}),
    "add_client": (
        "POST",
        "/clients",
        lambda step: {"client": {"name": step.name, "public_key": KEYS[step.choice]}},
    ),
    "remove_client": ("DELETE", "/clients/{name}", lambda _step: {}),
}
# Random each time, in every answer; what else there is must be the same.
RANDOM = {"id", "onion", "key", "password", "username", "request_id", "ts"}


class Step(NamedTuple):
    """Something that an app does. target: whose onion, and which; for `create` also the app that it is for."""

    does: str
    target: tuple[str, int]
    op_id: str
    name: str
    choice: int


STEPS = st.builds(
    Step,
    st.sampled_from(["create", "list", *ROUTES]),
    st.tuples(st.sampled_from([ALICE, ALICE, BOB, BOB, "nobody"]), st.integers(0, 1)),
    st.sampled_from(OP_IDS),
    st.sampled_from(NAMES),
    st.integers(0, 1),
)
ACTS = st.tuples(st.sampled_from([ALICE, ALICE, BOB]), STEPS)
# In the end Alice looks once more at everything.
ENDING = [
    (ALICE, Step(does, target, OP_IDS[5], NAMES[0], 0))
    for does, target in (("list", (ALICE, 0)), *[("show", (app, number)) for app in (ALICE, BOB) for number in (0, 1)])
]
# Both have onions to begin with, under op_ids that they share.
BEGINNING = [
    (app, Step("create", (app, number), OP_IDS[number], NAMES[number], number))
    for number in range(2)
    for app in (BOB, ALICE)
]
PROGRAMS = st.lists(ACTS, min_size=5, max_size=25).map(lambda acts: [*BEGINNING, *acts, *ENDING])


class Host:
    """A world with the ids that its apps have come to."""

    def __init__(self) -> None:
        self.world = World()
        self.ids: dict[str, list[str]] = {ALICE: [], BOB: []}
        self.tokens = {app: self.world.bearer(SCOPE, ("app", app)) for app in self.ids}

    def do(self, app: str, step: Step, target: str | None = None) -> Answer:
        """`step` by `app`'s own capability. target: an id, where it is not one of this host's own."""
        method, path, body = self._request(app, step, target)
        answer = self.world.ask(self.tokens[app], method, path, body)
        if step.does == "create" and answer.status == 200 and answer.body["id"] not in self.ids[app]:
            self.ids[app].append(answer.body["id"])
        return answer

    def id_of(self, target: tuple[str, int]) -> str:
        """The id of that app's so manieth onion; an unknown one where there is none."""
        known = self.ids.get(target[0], [])
        return known[target[1]] if target[1] < len(known) else UNKNOWN

    def _request(self, app: str, step: Step, target: str | None) -> tuple[str, str, dict[str, Any] | None]:
        if step.does == "list":
            return "GET", "/v1/onions", None
        if step.does == "create":
            return "POST", "/v1/onions", self._create(app, step)
        method, end, body = ROUTES[step.does]
        path = f"/v1/onions/{target or self.id_of(step.target)}{end.format(name=step.name)}"
        return method, path, {"op_id": step.op_id, **body(step)} if body else None

    def _create(self, app: str, step: Step) -> dict[str, Any]:
        restricted = [{"name": step.name, "public_key": KEYS[step.choice]}] if step.target[1] else []
        return {
            "op_id": step.op_id,
            "app": BOB if step.target[0] == BOB else app,
            "ports": PORTS[step.choice],
            "persistence": ["durable", "ephemeral"][step.choice],
            "isolation": ["shared", "process"][step.choice],
            "client_auth": restricted,
        }


def comparable(answer: Answer, own: list[str]) -> Any:
    """`answer` with the asker's own ids numbered and without what is random."""
    text = json.dumps(answer.body)
    for number, onion_id in enumerate(own):
        text = text.replace(onion_id, f"own {number}")
    return answer.status, _scrubbed(json.loads(text))


def _scrubbed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _scrubbed(inner) for key, inner in value.items() if key not in RANDOM or inner is None}
    return [_scrubbed(inner) for inner in value] if isinstance(value, list) else value


class NothingOfAnother(SynchronousTestCase):
    """Two hosts, with the other app and without it."""

    @settings(max_examples=40, deadline=None)
    @given(PROGRAMS)
    def test_every_answer_is_what_it_is_without_the_other_app(self, program: list[tuple[str, Step]]) -> None:
        both, alone = Host(), Host()
        try:
            for number, (app, step) in enumerate(program):
                both.world.now = alone.world.now = NOW_S + number
                if app == BOB:
                    both.do(BOB, step)
                else:
                    self.same(both, alone, step)
        finally:
            both.world.stop()
            alone.world.stop()

    def same(self, both: Host, alone: Host, step: Step) -> None:
        # where only one host has the other app, both are asked about its very id
        target = both.id_of(step.target) if step.target[0] == BOB else None
        with_bob, without = both.do(ALICE, step, target), alone.do(ALICE, step, target)
        self.assertEqual(comparable(with_bob, both.ids[ALICE]), comparable(without, alone.ids[ALICE]), step)
        self.assertEqual(len(both.ids[ALICE]), len(alone.ids[ALICE]))


class WithBob(SynchronousTestCase):
    """Both apps have onions."""

    def setUp(self) -> None:
        self.host = Host()
        self.addCleanup(self.host.world.stop)
        self.world = self.host.world
        self.views = {
            app: self.host.do(app, Step("create", (app, 1), OP_IDS[number], NAMES[number], number)).body
            for number, app in enumerate((ALICE, BOB))
        }

    def alice(self, method: str, path: str, body: Any = None) -> Answer:
        return self.world.ask(self.host.tokens[ALICE], method, path, body)

    def step(self, does: str, target: str) -> Answer:
        return self.host.do(ALICE, Step(does, (BOB, 0), OP_IDS[5], NAMES[1], 0), target)

    def test_each_has_one(self) -> None:
        """What the property stands on: the calls do work for those who may."""
        self.assertNotEqual(self.views[ALICE]["id"], self.views[BOB]["id"])
        self.assertEqual(self.alice("GET", f"/v1/onions/{self.views[ALICE]['id']}").status, 200)
        operator = self.world.bearer(SCOPE)
        self.assertEqual(len(self.world.ask(operator, "GET", "/v1/onions").body["onions"]), 2)

    def test_the_list_is_ones_own(self) -> None:
        listed = self.alice("GET", "/v1/onions").body["onions"]
        self.assertEqual([onion["id"] for onion in listed], [self.views[ALICE]["id"]])

    def test_its_id_is_as_unknown_as_any(self) -> None:
        bobs = self.views[BOB]["id"]
        for does in ROUTES:
            theirs, nobodys = self.step(does, bobs), self.step(does, UNKNOWN)
            self.assertEqual(theirs.status, 404)
            self.assertEqual(
                json.dumps(_scrubbed(theirs.body)).replace(bobs, "?"),
                json.dumps(_scrubbed(nobodys.body)).replace(UNKNOWN, "?"),
            )

    def test_a_wrong_body_is_refused_alike(self) -> None:
        for target in (self.views[BOB]["id"], UNKNOWN):
            answer = self.alice("POST", f"/v1/onions/{target}/rotate", {"op_id": 7})
            self.assertEqual((answer.status, answer.body["error"]["code"]), (400, "BadRequest"))
            self.assertNotIn(target, answer.body["error"]["message"])

    def test_an_address_is_no_id(self) -> None:
        address = self.views[BOB]["onion"]
        for name in (address, address.removesuffix(".onion"), BOB):
            self.assertEqual(self.alice("GET", f"/v1/onions/{name}").status, 404)

    def test_an_onion_for_it_is_refused_whether_or_not_it_exists(self) -> None:
        """The same words for an app that has onions and for one that nobody ever heard of."""
        answers = [
            self.alice("POST", "/v1/onions", {"op_id": OP_IDS[3], "app": app, "ports": PORTS[0]})
            for app in (BOB, "never-heard-of")
        ]
        self.assertEqual([answer.status for answer in answers], [403, 403])
        self.assertEqual(*[_scrubbed(answer.body) for answer in answers])
        self.assertNotIn(BOB, json.dumps(answers[0].body))

    def test_two_apps_at_once_are_nobody(self) -> None:
        token = self.world.bearer(SCOPE, ("app", ALICE), ("app", BOB))
        self.assertEqual(self.world.ask(token, "GET", "/v1/onions").body, {"onions": []})
        for app, view in self.views.items():
            self.assertEqual(self.world.ask(token, "GET", f"/v1/onions/{view['id']}").status, 404)
            body = {"op_id": OP_IDS[4], "app": app, "ports": PORTS[0]}
            self.assertEqual(self.world.ask(token, "POST", "/v1/onions", body).status, 403)

    def test_the_same_app_twice_is_that_app(self) -> None:
        token = self.world.bearer(SCOPE, ("app", ALICE), ("app", ALICE))
        self.assertEqual(len(self.world.ask(token, "GET", "/v1/onions").body["onions"]), 1)

    def test_readiness_names_nobody(self) -> None:
        """Anybody may read it; Bob's onion is not published, and that is all it says."""
        self.world.service._readiness.tell()
        told = json.dumps(self.world.ask(None, "GET", "/readyz").body)
        self.assertIn("onions", told)
        for secret in (BOB, ALICE, self.views[BOB]["id"], self.views[BOB]["onion"]):
            self.assertNotIn(secret, told)

    def test_metrics_carry_no_address_and_no_id(self) -> None:
        view = self.views[BOB]
        address = view["onion"].removesuffix(".onion")
        self.world.telemetry.tor_up("onion")
        for event, text in (
            ("HS_DESC", f"UPLOADED {address} UNKNOWN $A"),
            ("CIRC", f"5 BUILT PURPOSE=HS_SERVICE_REND HS_STATE=HSSR_JOINED REND_QUERY={address}"),
        ):
            self.assertIn(event, EVENTS)
            self.world.telemetry.heard("onion", event, text)
        exposition = self.world.metrics.render().decode()
        self.assertIn(f'app="{BOB}"', exposition, "the events were counted")
        for secret in (address, view["id"], view["socks"]["password"]):
            self.assertNotIn(secret, exposition)

    def test_metrics_are_for_no_app(self) -> None:
        token = self.world.bearer(("scope", "*"), ("app", ALICE))
        self.assertEqual(self.world.ask(token, "GET", "/metrics").status, 403)

    def test_as_many_steps_for_its_id_as_for_none(self) -> None:
        """Counted, not timed: every line that our own code runs for a call, whichever id it is about.

        With equal lines the only difference left is one comparison of two short strings, a matter of nanoseconds
        behind a socket. Alice has acts of her own, so that a search through them would show.
        """
        for number in range(2):
            self.host.do(ALICE, Step("rotate", (ALICE, 0), OP_IDS[number + 2], NAMES[0], 0))
        for does in ROUTES:
            self.step(does, UNKNOWN)  # what is made once is made
            self.assertEqual(
                self.lines_of(lambda does=does: self.step(does, self.views[BOB]["id"])),
                self.lines_of(lambda does=does: self.step(does, UNKNOWN)),
                does,
            )

    def lines_of(self, call: Callable[[], object]) -> int:
        count = 0

        def trace(frame: FrameType, event: str, _arg: object) -> Any:
            nonlocal count
            if "/services/oniond/" not in frame.f_code.co_filename or "/tests/" in frame.f_code.co_filename:
                return None
            count += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            call()
        finally:
            sys.settrace(before)
        self.assertGreater(count, 0)
        return count


# Which scope opens which route; a change of one is a change of what capabilities out there can do.
SCOPES = {
    ("POST", "/v1/onions"): "onion:create",
    ("GET", "/v1/onions"): "onion:read",
    ("GET", "/v1/onions/<onion_id>"): "onion:read",
    ("DELETE", "/v1/onions/<onion_id>"): "onion:delete",
    ("POST", "/v1/onions/<onion_id>/bind"): "onion:bind",
    ("POST", "/v1/onions/<onion_id>/rotate"): "onion:rotate",
    ("POST", "/v1/onions/<onion_id>/drain"): "onion:drain",
    ("POST", "/v1/onions/<onion_id>/export"): "onion:export",
    ("POST", "/v1/onions/<onion_id>/clients"): "onion:client",
    ("DELETE", "/v1/onions/<onion_id>/clients/<name>"): "onion:client",
}


class Scopes(SynchronousTestCase):
    """Each route has its own, and the others do not open it."""

    def setUp(self) -> None:
        self.world = World()
        self.addCleanup(self.world.stop)

    def statuses(self, *caveats: tuple[str, str]) -> dict[tuple[str, str], int]:
        token = self.world.bearer(*caveats)
        found = {}
        for method, path in SCOPES:
            plain = path.replace("<onion_id>", UNKNOWN).replace("<name>", "laptop")
            found[method, path] = self.world.ask(token, method, plain, None if method == "GET" else {}).status
        return found

    def test_the_table_is_whole(self) -> None:
        known = {(e.method, e.path): e.scope for e in api.endpoints(self.world.service)}
        self.assertEqual({route: known[route] for route in SCOPES}, SCOPES)
        self.assertTrue(all(scope and scope.startswith("onion:") for scope in known.values()))

    def test_a_scope_opens_its_own_routes_and_no_other(self) -> None:
        for scope in set(SCOPES.values()):
            opened = {route for route, status in self.statuses(("scope", scope)).items() if status != 403}
            self.assertEqual(opened, {route for route, needs in SCOPES.items() if needs == scope}, scope)

    def test_export_is_opened_by_itself_and_by_the_whole_family(self) -> None:
        export = ("POST", "/v1/onions/<onion_id>/export")
        others = ",".join(sorted(set(SCOPES.values()) - {"onion:export"}))
        self.assertEqual(self.statuses(("scope", others))[export], 403)
        for scope in ("onion:export", "onion:*"):
            self.assertEqual(self.statuses(("scope", scope))[export], 400, "let through, to an empty body")

    def test_without_a_capability(self) -> None:
        for method, path in SCOPES:
            self.assertEqual(self.world.ask(None, method, path.replace("<onion_id>", UNKNOWN)).status, 401)

    def test_a_caveat_that_is_not_enforced_here(self) -> None:
        self.assertEqual(set(self.statuses(SCOPE, ("tenant", "t1")).values()), {403})
