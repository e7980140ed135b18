"""The OpenAPI file is what the service does: made from it, and held against its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from ron.services.oniond.openapi import text
from ron.tor.clientauth import generate
from ron.web import Endpoint
from tests.openapifile import OpenApiFile, Written
from tests.services.oniond.fakes import op_id
from tests.services.oniond.memory import World
from tests.services.oniond.nodesk import NoDesk
from tests.web.wsclient import HANDSHAKE, Client

FILE = OpenApiFile("oniond.json", text, "python -m ron.services.oniond.openapi")
PORTS = [{"onion_port": 80, "local": "127.0.0.1:8080"}]
UNKNOWN = "00000000-0000-4000-8000-00000000ffff"


class WhatIsWritten(Written, SynchronousTestCase):
    file = FILE

    def test_every_route_and_no_other(self) -> None:
        world = World()
        self.addCleanup(world.stop)
        routes = [*api.endpoints(world.service), *operator_endpoints(NoDesk()), *peer_endpoints(NoDesk())]
        served = {(e.method, e.path) for e in routes} | {("GET", PATH)}
        written = {
            (method.upper(), path.replace("{", "<").replace("}", ">")) for path, method, _one in FILE.operations()
        }
        self.assertEqual(written, served)


def control_paths() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and operation of all that the control API has; what peers call is on a listener of its own."""
    for path, method, operation in FILE.operations():
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
        operation = FILE.operation(method, template)
        if "requestBody" in operation and not isinstance(body, bytes):
            self.assertEqual(not FILE.errors(operation["requestBody"], body, closed=False), valid, body)
        self.assertEqual(set(params), {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"})
        answer = self.world.ask(self.token, method, template.format(**params), body)
        self.check(operation, answer.status, answer.body)
        return answer

    def check(self, operation: dict[str, Any], status: int, body: Any) -> None:
        self.assertIn(str(status), operation["responses"])
        self.assertEqual(FILE.errors(operation["responses"][str(status)], body, closed=True), [])

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
        operation = FILE.operation("GET", PATH)
        self.world.telemetry.watch("a" * 56, "wiki")
        self.world.telemetry.tor_up("onion")
        client = Client(self.world.site)
        (accepted,) = client.connect(self.token, PATH)
        self.assertIn("101", operation["responses"])
        self.assertEqual(type(accepted).__name__, "AcceptConnection")
        self.world.telemetry.heard("onion", "HS_DESC", f"UPLOADED {'a' * 56} UNKNOWN $A")
        (event,) = client.events()
        schema = {"oneOf": operation["x-messages"], "components": FILE.closed}
        Draft202012Validator(schema).validate(json.loads(event.data))
        client.gone()

    def test_events_refused(self) -> None:
        operation = FILE.operation("GET", PATH)
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
        self.assertEqual(FILE.operation("GET", PATH)["x-scope"], SCOPE)

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
        self.check(FILE.operation("POST", "/v1/onions"), 415, answer.json)

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

    @settings(max_examples=100, deadline=None)
    @given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3))
    def test_what_the_file_forbids_the_service_refuses(self, odd: dict[str, Any]) -> None:
        body = {"op_id": self.op(), "app": "wiki", "ports": PORTS, **odd}
        operation = FILE.operation("POST", "/v1/onions")
        answer = self.world.ask(self.token, "POST", "/v1/onions", body)
        if FILE.errors(operation["requestBody"], body, closed=False):
            self.assertEqual(answer.status, 400, body)
        self.check(operation, answer.status, answer.body)
