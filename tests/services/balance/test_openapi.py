"""The OpenAPI file is what the service does: made from it, and held against its answers."""

from __future__ import annotations

import base64
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import unavailable
from ron.services.balance import api
from ron.services.balance.openapi import text
from tests.openapifile import OpenApiFile, Written
from tests.services.balance.desk import World

FILE = OpenApiFile("balance.json", text, "python -m ron.services.balance.openapi")
KEY_B64 = base64.b64encode(bytes(range(64))).decode()
OP = {"op_id": "00000000-0000-4000-8000-000000000001"}


class WhatIsWritten(Written, SynchronousTestCase):
    file = FILE

    def test_every_route_and_no_other(self) -> None:
        world = World()
        served = {(e.method.lower(), e.path.replace("<", "{").replace(">", "}"), e.scope) for e in
                  api.endpoints(world.desk, world.clock)}  # fmt: skip
        self.assertEqual({(method, path, one["x-scope"]) for path, method, one in FILE.operations()}, served)


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.token: str | None = self.world.bearer(("scope", "balance:*"))

    def ask(self, method: str, template: str, body: Any = None) -> int:
        """The status, after body and answer were held against the file."""
        operation = FILE.operation(method, f"/v1/balance{template}")
        answer = self.world.ask(self.token, method, f"/v1/balance{template.format(name='beta')}", body)
        if "requestBody" in operation and answer.status == 200:
            self.assertEqual(FILE.errors(operation["requestBody"], body, closed=False), [], body)
        self.assertIn(str(answer.status), operation["responses"])
        self.assertEqual(FILE.errors(operation["responses"][str(answer.status)], answer.body, closed=True), [], answer)
        return answer.status


BODIES: dict[tuple[str, str], Any] = {
    ("GET", ""): None,
    ("GET", "/ghosts"): None,
    ("POST", "/promote"): {"node": "beta", "for_s": 5},
    ("POST", "/siege"): {"node": "beta", "on": True},
    ("POST", "/roulette"): {"on": True},
    ("POST", "/publish"): {"service": "main"},
    ("POST", "/leave"): {},
    ("POST", "/members/{name}/approve"): {},
    ("DELETE", "/members/{name}"): {},
    ("POST", "/token/rotate"): OP,
    ("POST", "/invitations"): {**OP, "name": "delta", "addresses": ["10.7.0.4:9470"]},
    ("POST", "/services"): {**OP, "name": "shop", "key": KEY_B64},
    ("POST", "/refresh"): {**OP, "service": "main"},
    ("POST", "/reshare"): {**OP, "service": "main", "threshold": 3},
}


class Answers(Case):
    def test_every_route_done(self) -> None:
        self.assertEqual({(m.upper(), p.removeprefix("/v1/balance")) for p, m, _one in FILE.operations()}, set(BODIES))
        for (method, path), body in BODIES.items():
            self.setUp()
            self.assertEqual(self.ask(method, path, body), 200, path)

    def test_ghosts_that_are_there(self) -> None:
        self.ask("POST", "/siege", {"node": "beta", "on": True})
        self.assertEqual(self.ask("GET", "/ghosts"), 200)

    def test_every_refusal_is_named(self) -> None:
        for (method, path), body in BODIES.items():
            for token, status in ((None, 401), (self.world.bearer(("scope", "onion:*")), 403)):
                self.token = token
                self.assertEqual(self.ask(method, path, body), status)
        self.token = self.world.bearer(("scope", "balance:*"))
        self.assertEqual(self.ask("POST", "/promote", {"node": "delta"}), 404)
        self.assertEqual(self.ask("POST", "/services", {**OP, "name": "main"}), 409)
        self.world.desk.refusal = unavailable("no")
        self.assertEqual(self.ask("POST", "/publish", {}), 503)

    VALUES = st.none() | st.booleans() | st.integers(-5, 70_000) | st.text(max_size=40) | st.lists(st.text(max_size=9))

    @settings(max_examples=100, deadline=None)
    @given(
        st.sampled_from([key for key, body in BODIES.items() if body]),
        st.dictionaries(st.sampled_from(["op_id", "name", "node", "on", "for_s", "mode", "key", "odd"]), VALUES),
    )
    def test_what_the_file_forbids_the_service_refuses(self, key: tuple[str, str], odd: dict[str, Any]) -> None:
        self.setUp()
        body = {**BODIES[key], **odd}
        operation = FILE.operation(key[0], f"/v1/balance{key[1]}")
        status = self.ask(*key, body)
        if FILE.errors(operation["requestBody"], body, closed=False):
            self.assertEqual(status, 400, body)
