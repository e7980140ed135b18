"""The OpenAPI file is what the service does: made from it, and held against its answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.onionevents import EVENTS_PATH as PATH
from ron.proto.onionevents import EVENTS_SCOPE as SCOPE
from ron.services.oniond import api
from ron.services.oniond.events import events_endpoint
from ron.services.oniond.federation.routes import operator_endpoints, peer_endpoints
from ron.services.oniond.openapi import document, text
from ron.tor.clientauth import generate
from ron.web import Endpoint
from tests.services.oniond.fakes import op_id
from tests.services.oniond.memory import World
from tests.services.oniond.nodesk import NoDesk
from tests.web.wsclient import HANDSHAKE, Client

FILE = Path(__file__).parents[3] / "docs" / "openapi" / "oniond.json"
PORTS = [{"onion_port": 80, "local": "127.0.0.1:8080"}]
UNKNOWN = "00000000-0000-4000-8000-00000000ffff"
REMAKE = "python -m ron.services.oniond.openapi docs/openapi/oniond.json"


@cache
def spec() -> dict[str, Any]:
    """What is written down."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    """One that knows where the document's references lead."""
    return Draft202012Validator({**schema, "components": spec()["components"]})


@cache
def closed() -> dict[str, Any]:
    """The components, with no field let through that they do not name: an answer must not say more than its schema."""
    components = json.loads(json.dumps(spec()["components"]))
    for schema in components["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    found: dict[str, Any] = components
    return found


class WhatIsWritten(SynchronousTestCase):
    def test_up_to_date(self) -> None:
        self.assertEqual(FILE.read_text(), text(), f"run {REMAKE}")

    def test_every_route_and_no_other(self) -> None:
        world = World()
        self.addCleanup(world.stop)
        routes = [*api.endpoints(world.service), *operator_endpoints(NoDesk()), *peer_endpoints(NoDesk())]
        served = {(e.method, e.path) for e in routes} | {("GET", PATH)}
        written = {
            (method.upper(), path.replace("{", "<").replace("}", ">"))
            for path, methods in spec()["paths"].items()
            for method in methods
        }
        self.assertEqual(written, served)

    def test_every_schema_is_one(self) -> None:
        for schema in spec()["components"]["schemas"].values():
            Draft202012Validator.check_schema(schema)

    def test_every_reference_leads_somewhere(self) -> None:
        for name in re.findall(r'"\$ref": "#/components/schemas/([A-Za-z]+)"', FILE.read_text()):
            self.assertIn(name, spec()["components"]["schemas"])

    def test_patterns_are_those_of_json_schema(self) -> None:
        self.assertNotIn("\\\\Z", FILE.read_text())

    def test_bodies_with_unknown_fields_are_refused(self) -> None:
        for operations in spec()["paths"].values():
            for operation in operations.values():
                if "requestBody" in operation:
                    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                    schema = spec()["components"]["schemas"][reference.rpartition("/")[2]]
                    self.assertFalse(schema["additionalProperties"], reference)

    def test_operations_have_names_of_their_own(self) -> None:
        names = [operation["operationId"] for methods in document()["paths"].values() for operation in methods.values()]
        self.assertEqual(len(set(names)), len(names))


def control_paths() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and operation of all that the control API has; what peers call is on a listener of its own."""
    for path, methods in spec()["paths"].items():
        for method, operation in methods.items():
            if "servers" not in operation:
                yield path, method.upper(), operation


def control_endpoints(world: World) -> list[Endpoint]:
    """Events, and federation that is not ready yet."""
    return [events_endpoint(world.service, lambda: world.now), *operator_endpoints(NoDesk())]


class Case(SynchronousTestCase):
    """Every answer is held against the file."""

    def setUp(self) -> None:
        self.world = World(extra=control_endpoints)
        self.addCleanup(self.world.stop)
        self.token: str | None = self.world.bearer(("scope", "onion:*"))
        self.ops = 0

    def op(self) -> str:
        self.ops += 1
        return op_id(self.ops)

    def ask(self, method: str, template: str, body: Any = None, *, valid: bool = True, **params: str) -> Any:
        """The checked answer. valid: what the file says of `body` must be this."""
        operation = spec()["paths"][template][method.lower()]
        if "requestBody" in operation and not isinstance(body, bytes):
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            self.assertEqual(validator(schema).is_valid(body), valid, body)
        self.assertEqual(set(params), {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"})
        answer = self.world.ask(self.token, method, template.format(**params), body)
        self.check(operation, answer.status, answer.body)
        return answer

    def check(self, operation: dict[str, Any], status: int, body: Any) -> None:
        self.assertIn(str(status), operation["responses"])
        schema = operation["responses"][str(status)]["content"]["application/json"]["schema"]
        errors = list(Draft202012Validator({**schema, "components": closed()}).iter_errors(body))
        self.assertEqual([error.message for error in errors], [])

    def created(self, **more: Any) -> dict[str, Any]:
        body = {"op_id": self.op(), "app": "wiki", "ports": PORTS, **more}
        answer = self.ask("POST", "/v1/onions", body)
        self.assertEqual(answer.status, 200)
        found: dict[str, Any] = answer.body
        return found


class Answers(Case):
    """Every route, done."""

    def test_an_onions_whole_life(self) -> None:
        first, second = generate().public.base32, generate().public.base32
        onion = self.created(client_auth=[{"name": "laptop", "public_key": first}], hints={"regions": ["eu"]})
        one = {"onion_id": onion["id"]}
        route = "/v1/onions/{onion_id}"
        client = {"name": "phone", "public_key": second}
        for method, path, body, more in (
            ("GET", "/v1/onions", None, {}),
            ("GET", route, None, one),
            ("POST", f"{route}/clients", {"op_id": self.op(), "client": client}, one),
            ("DELETE", f"{route}/clients/{{name}}", {"op_id": self.op()}, {**one, "name": "phone"}),
            ("POST", f"{route}/rotate", {"op_id": self.op(), "grace_s": 60}, one),
            ("POST", f"{route}/export", {"op_id": self.op()}, one),
            ("POST", f"{route}/drain", {"op_id": self.op()}, one),
            ("POST", f"{route}/bind", {"op_id": self.op(), "ports": PORTS}, one),
            ("DELETE", route, {"op_id": self.op()}, one),
        ):
            self.assertEqual(self.ask(method, path, body, **more).status, 200, path)

    def test_one_with_everything(self) -> None:
        self.created(persistence="ephemeral", isolation="process", wait_s=0)

    def test_events(self) -> None:
        operation = spec()["paths"][PATH]["get"]
        self.world.telemetry.watch("a" * 56, "wiki")
        self.world.telemetry.tor_up("onion")
        client = Client(self.world.site)
        (accepted,) = client.connect(self.token, PATH)
        self.assertIn("101", operation["responses"])
        self.assertEqual(type(accepted).__name__, "AcceptConnection")
        self.world.telemetry.heard("onion", "HS_DESC", f"UPLOADED {'a' * 56} UNKNOWN $A")
        (event,) = client.events()
        schema = {"oneOf": operation["x-messages"], "components": closed()}
        Draft202012Validator(schema).validate(json.loads(event.data))
        client.gone()

    def test_events_refused(self) -> None:
        operation = spec()["paths"][PATH]["get"]
        for token, path, headers, status in (
            (self.token, PATH, {}, 426),
            (None, PATH, HANDSHAKE, 401),
            (self.world.bearer(("scope", "onion:read")), PATH, HANDSHAKE, 403),
            (self.token, f"{PATH}?after=x", HANDSHAKE, 400),
            (self.token, PATH, {**HANDSHAKE, "Origin": "https://evil.example"}, 403),
        ):
            answer = self.world.exchange(token, "GET", path, headers=headers)
            self.assertEqual(answer.status, status)
            self.check(operation, answer.status, answer.json)


class Refusals(Case):
    """Every refusal is the envelope, with a status that the file names."""

    def test_who_may_not(self) -> None:
        for token, status in ((None, 401), (self.world.bearer(("scope", "mailbox:*")), 403)):
            self.token = token
            for path, method, operation in control_paths():
                plain = path.format(onion_id=UNKNOWN, name="laptop")
                answer = self.world.ask(token, method, plain, {} if "requestBody" in operation else None)
                self.assertEqual(answer.status, status, path)
                self.check(operation, status, answer.body)

    def test_the_scope_that_is_written_opens_it(self) -> None:
        for path, method, operation in control_paths():
            plain = path.format(onion_id=UNKNOWN, name="laptop")
            token = self.world.bearer(("scope", operation["x-scope"]))
            body = {} if "requestBody" in operation else None
            self.assertNotIn(self.world.ask(token, method, plain, body).status, {401, 403}, path)
        self.assertEqual(spec()["paths"][PATH]["get"]["x-scope"], SCOPE)

    def test_federation_that_is_not_ready(self) -> None:
        self.token = self.world.bearer(("scope", "federation:*"))
        self.assertEqual(self.ask("GET", "/v1/federation").status, 503)
        self.assertEqual(self.ask("POST", "/v1/federation/connect", {"peer": f"{'a' * 56}.onion"}).status, 503)
        for wrong in ({}, {"peer": "x.onion"}, {"peer": f"{'a' * 56}.onion", "more": 1}):
            self.assertEqual(self.ask("POST", "/v1/federation/connect", wrong, valid=False).status, 400)

    def test_nothing_there(self) -> None:
        route = "/v1/onions/{onion_id}"
        for method, path, body, more in (
            ("GET", route, None, {}),
            ("POST", f"{route}/rotate", {"op_id": self.op()}, {}),
            ("DELETE", f"{route}/clients/{{name}}", {"op_id": self.op()}, {"name": "x"}),
        ):
            self.assertEqual(self.ask(method, path, body, onion_id=UNKNOWN, **more).status, 404)

    def test_conflicts(self) -> None:
        onion = self.created()
        body = {"op_id": op_id(1), "app": "wiki", "ports": [{"onion_port": 81, "local": "127.0.0.1:8080"}]}
        self.assertEqual(self.ask("POST", "/v1/onions", body).status, 409)
        route = "/v1/onions/{onion_id}/drain"
        self.ask("POST", route, {"op_id": self.op()}, onion_id=onion["id"])
        self.assertEqual(self.ask("POST", route, {"op_id": self.op()}, onion_id=onion["id"]).status, 409)

    def test_no_json_at_all(self) -> None:
        for body in (b"", b"{", b"[]", b"null", b"\xff", b'"a"'):
            self.assertEqual(self.ask("POST", "/v1/onions", body).status, 400)

    def test_too_large(self) -> None:
        self.assertEqual(self.ask("POST", "/v1/onions", b" " * (api.BODY_LIMIT_BYTES + 1)).status, 413)

    def test_a_body_where_there_is_none(self) -> None:
        self.assertEqual(self.ask("GET", "/v1/onions", {"app": "wiki"}).status, 400)

    def test_an_encoding_that_nobody_knows(self) -> None:
        headers = {"Content-Encoding": "brotli"}
        answer = self.world.exchange(self.token, "POST", "/v1/onions", b"{}", headers)
        self.assertEqual(answer.status, 415)
        self.check(spec()["paths"]["/v1/onions"]["post"], 415, answer.json)

    def test_what_only_the_service_knows(self) -> None:
        """Right by the file, and yet refused: rules that no schema says."""
        good = {"op_id": self.op(), "app": "wiki", "ports": PORTS}
        for wrong in (
            {"op_id": "x" * 36},
            {"ports": [*PORTS, *PORTS]},
            {"ports": [{"onion_port": 80, "local": "127.0.0.1:99999"}]},
        ):
            self.assertEqual(self.ask("POST", "/v1/onions", {**good, **wrong}).status, 400, wrong)

    def test_what_the_file_forbids_is_refused(self) -> None:
        good: dict[str, Any] = {"op_id": self.op(), "app": "wiki", "ports": PORTS}
        for wrong in (
            {"op_id": 7},
            {"op_id": "short"},
            {"app": "UPPER"},
            {"app": ""},
            {"app": "wiki\n!"},
            {"ports": []},
            {"ports": [{"onion_port": 0, "local": "127.0.0.1:1"}]},
            {"ports": [{"onion_port": "80", "local": "127.0.0.1:1"}]},
            {"ports": [{"onion_port": 80, "local": "10.0.0.1:1"}]},
            {"ports": PORTS * 17},
            {"persistence": "for-ever"},
            {"isolation": 1},
            {"wait_s": -1},
            {"wait_s": 61},
            {"wait_s": "5"},
            {"client_auth": [{"name": "laptop", "public_key": "short"}]},
            {"hints": {"regions": ["EU"]}},
            {"pow": {"queue_rate": 0}},
            {"unknown": 1},
        ):
            self.assertEqual(self.ask("POST", "/v1/onions", {**good, **wrong}, valid=False).status, 400, wrong)
        for missing in good:
            less = {key: value for key, value in good.items() if key != missing}
            self.assertEqual(self.ask("POST", "/v1/onions", less, valid=False).status, 400, missing)


ODD = st.none() | st.booleans() | st.integers(-5, 70_000) | st.floats(allow_nan=False) | st.text(max_size=40)
VALUES = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
FIELDS = ["op_id", "app", "ports", "persistence", "client_auth", "pow", "hints", "isolation", "more"]


class AnyBody(Case):
    """The file and the service agree on bodies that nobody thought of."""

    @settings(max_examples=150, deadline=None)
    @given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3))
    def test_what_the_file_forbids_the_service_refuses(self, odd: dict[str, Any]) -> None:
        body = {"op_id": self.op(), "app": "wiki", "ports": PORTS, **odd}
        operation = spec()["paths"]["/v1/onions"]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        answer = self.world.ask(self.token, "POST", "/v1/onions", body)
        if not validator(schema).is_valid(body):
            self.assertEqual(answer.status, 400, body)
        self.check(operation, answer.status, answer.body)
