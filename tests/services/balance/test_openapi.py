"""The OpenAPI file is what the service does: made from it, and held against its answers."""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import unavailable
from ron.services.balance import api
from ron.services.balance.openapi import text
from tests.services.balance.desk import World

FILE = Path(__file__).parents[3] / "docs" / "openapi" / "balance.json"
REMAKE = "python -m ron.services.balance.openapi docs/openapi/balance.json"
KEY_B64 = base64.b64encode(bytes(range(64))).decode()
OP = {"op_id": "00000000-0000-4000-8000-000000000001"}


@cache
def spec() -> dict[str, Any]:
    """What is written down."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


@cache
def closed() -> dict[str, Any]:
    """The components, with no field let through that they do not name: an answer must not say more than its schema."""
    components: dict[str, Any] = json.loads(json.dumps(spec()["components"]))
    for schema in components["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return components


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, one) for path, methods in spec()["paths"].items() for method, one in methods.items()]


class WhatIsWritten(SynchronousTestCase):
    def test_up_to_date(self) -> None:
        self.assertEqual(FILE.read_text(), text(), f"run {REMAKE}")

    def test_every_route_and_no_other(self) -> None:
        world = World()
        served = {(e.method.lower(), e.path.replace("<", "{").replace(">", "}"), e.scope) for e in
                  api.endpoints(world.desk, world.clock)}  # fmt: skip
        self.assertEqual({(method, path, one["x-scope"]) for path, method, one in operations()}, served)

    def test_schemas_and_references(self) -> None:
        for schema in spec()["components"]["schemas"].values():
            Draft202012Validator.check_schema(schema)
        for name in re.findall(r'"\$ref": "#/components/schemas/([A-Za-z]+)"', FILE.read_text()):
            self.assertIn(name, spec()["components"]["schemas"])
        self.assertNotIn("\\\\Z", FILE.read_text())

    def test_bodies_with_unknown_fields_are_refused(self) -> None:
        for path, _method, one in operations():
            if "requestBody" in one:
                reference = one["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                schema = spec()["components"]["schemas"][reference.rpartition("/")[2]]
                self.assertFalse(schema["additionalProperties"], path)

    def test_operations_have_names_and_sentences_of_their_own(self) -> None:
        for key in ("operationId", "summary"):
            names = [one[key] for _path, _method, one in operations()]
            self.assertEqual(len(set(names)), len(names))


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.token: str | None = self.world.bearer(("scope", "balance:*"))

    def ask(self, method: str, template: str, body: Any = None) -> int:
        """The status, after body and answer were held against the file."""
        operation = spec()["paths"][f"/v1/balance{template}"][method.lower()]
        answer = self.world.ask(self.token, method, f"/v1/balance{template.format(name='beta')}", body)
        if "requestBody" in operation and answer.status == 200:
            self.assertTrue(self.valid(operation["requestBody"], body, spec()["components"]), body)
        self.assertIn(str(answer.status), operation["responses"])
        self.assertTrue(self.valid(operation["responses"][str(answer.status)], answer.body, closed()), answer)
        return answer.status

    def valid(self, content: dict[str, Any], value: Any, components: dict[str, Any]) -> bool:
        schema = {**content["content"]["application/json"]["schema"], "components": components}
        return bool(Draft202012Validator(schema).is_valid(value))


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
        self.assertEqual({(m.upper(), p.removeprefix("/v1/balance")) for p, m, _one in operations()}, set(BODIES))
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

    @settings(max_examples=150, deadline=None)
    @given(
        st.sampled_from([key for key, body in BODIES.items() if body]),
        st.dictionaries(st.sampled_from(["op_id", "name", "node", "on", "for_s", "mode", "key", "odd"]), VALUES),
    )
    def test_what_the_file_forbids_the_service_refuses(self, key: tuple[str, str], odd: dict[str, Any]) -> None:
        self.setUp()
        body = {**BODIES[key], **odd}
        operation = spec()["paths"][f"/v1/balance{key[1]}"][key[0].lower()]
        status = self.ask(*key, body)
        if not self.valid(operation["requestBody"], body, spec()["components"]):
            self.assertEqual(status, 400, body)
