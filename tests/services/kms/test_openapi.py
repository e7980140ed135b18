"""The OpenAPI file is what the service does: made from it, served by it, and held against its answers."""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml
from jsonschema import Draft202012Validator
from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.notes import Kind, cosignature, note_key, parse_note
from ron.services.kms import api
from ron.services.kms.openapi import served, text
from ron.services.kms.ports import Checkpoint
from tests.services.kms.world import B3, UNKNOWN, World, at, bare, op_id

FILE = Path(__file__).parents[3] / "docs" / "openapi" / "ron-kms.yaml"
REMAKE = "python -m ron.services.kms.openapi docs/openapi/ron-kms.yaml"


@cache
def spec() -> dict[str, Any]:
    """What is written down."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


@cache
def closed() -> dict[str, Any]:
    """The components, with no field let through that they do not name: an answer must not say more than its schema."""
    components: dict[str, Any] = json.loads(json.dumps(spec()["components"]))
    for schema in components["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return components


def cosigned(checkpoint: Checkpoint) -> bytes:
    """A witness's line."""
    secret = SigningKey(b"w" * 32)
    key = note_key("witness.example/w", Kind.COSIGNATURE, bytes(secret.verify_key))
    return cosignature(parse_note(checkpoint.note).text, key, lambda text: secret.sign(text).signature, 7)


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, one) for path, methods in spec()["paths"].items() for method, one in methods.items()]


class WhatIsWritten(SynchronousTestCase):
    def test_up_to_date(self) -> None:
        self.assertEqual(FILE.read_text(), text(), f"run {REMAKE}")
        self.assertEqual(served().decode(), text())

    def test_every_route_and_no_other(self) -> None:
        routes = api.endpoints(cast(api.KmsDesk, None), lambda: b"")
        plain = {(r.method.lower(), re.sub(r"<(?:path:)?([a-z]+)>", r"{\1}", r.path), r.scope) for r in routes}
        written = {
            (method, path, one.get("x-scope")) for path, method, one in operations() if "/governance" not in path
        }
        self.assertEqual(written, plain)

    def test_schemas_and_references(self) -> None:
        for schema in spec()["components"]["schemas"].values():
            Draft202012Validator.check_schema(schema)
        for name in re.findall(r"#/components/schemas/([A-Za-z0-9_]+)", FILE.read_text()):
            self.assertIn(name, spec()["components"]["schemas"])
        self.assertNotIn("\\Z", FILE.read_text())

    def test_bodies_with_unknown_fields_are_refused(self) -> None:
        for path, _method, one in operations():
            if "requestBody" in one:
                reference = one["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                schema = spec()["components"]["schemas"][reference.rpartition("/")[2]]
                self.assertFalse(schema["additionalProperties"], path)

    def test_operations_have_names_and_sentences_of_their_own(self) -> None:
        for key in ("operationId", "summary"):
            names = [one[key] for _path, _method, one in operations()]
            self.assertEqual(len(set(names)), len(names), names)


class Answers(World):
    """Every route's answers, good and bad, against the file."""

    async def held(self, method: str, template: str, path: str, body: Any = None) -> int:
        """The status, after body and answer were held against the file."""
        operation = spec()["paths"][f"/v1/kms{template}"][method.lower()]
        answer = await self.ask(method, path, body)
        if "requestBody" in operation and answer.status == 200 and body is not None:
            self.assertTrue(self.valid(operation["requestBody"], body, spec()["components"]), body)
        self.assertIn(str(answer.status), operation["responses"], path)
        self.assertTrue(self.valid(operation["responses"][str(answer.status)], answer.body, closed()), answer)
        return answer.status

    def valid(self, content: dict[str, Any], value: Any, components: dict[str, Any]) -> bool:
        kind, one = next(iter(content["content"].items()))
        if kind != "application/json":
            return isinstance(value, bytes)
        return bool(Draft202012Validator({**one["schema"], "components": components}).is_valid(value))

    async def test_every_route_done(self) -> None:
        kid = await self.create("hybrid", policy_hints={"rotate_days": 30})
        kem = await self.create("hybrid", purpose="kem")
        sigs = (await self.sign(kid))["sigs"]
        wrapped = await self.done("POST", "/wrap", {"kid": kem, "size": 32})
        checkpoint = await self.service.log.checkpoint()
        self.service.log.cosigned(checkpoint, [cosigned(checkpoint)])  # type: ignore[attr-defined]
        self.votes.allowed["p"] = ("destroy_key", "tenant:core", {"kid": kid})
        self.backend.evidence = "cXVvdGU="
        key = base64.b64encode(bytes(32)).decode()
        asked: list[tuple[str, str, str, Any]] = [
            ("POST", "/keys", "/keys", {"tenant": "core", "purpose": "x", "alg": "ed25519", "op_id": op_id(1)}),
            ("GET", "/keys", "/keys", None),
            ("GET", "/keys/{kid}", at(kid), None),
            ("POST", "/keys/{kid}/rotate", at(bare(kid)) + "/rotate", {"op_id": op_id(2)}),
            ("POST", "/sign", "/sign", {"kid_or_set": {"kid_set": [kid]}, "payload_b3": B3}),
            (
                "POST",
                "/verify",
                "/verify",
                {"payload_b3": B3, "sigs": sigs, "kid_or_set": kid, "policy": {"mode": "and"}},
            ),
            ("POST", "/wrap", "/wrap", {"kid": kem, "plaintext_key_b64": key}),
            ("POST", "/unwrap", "/unwrap", {"kid": bare(kem), "wrapped_b64": wrapped["wrapped_b64"]}),
            ("GET", "/attest", f"/attest?kid={at(kid).removeprefix('/keys/')}", None),
            ("GET", "/audit/checkpoint", "/audit/checkpoint", None),
            ("GET", "/audit/witnessed", "/audit/witnessed", None),
            ("POST", "/audit/rotate-key", "/audit/rotate-key", {"op_id": op_id(3)}),
            ("GET", "/audit/entries", "/audit/entries?count=3", None),
            ("GET", "/audit/proof", "/audit/proof?index=0", None),
            ("GET", "/audit/proof", "/audit/proof?old=1", None),
            ("DELETE", "/keys/{kid}", at(kid), {"proposal": "p"}),
        ]
        for method, template, path, body in asked:
            self.assertEqual(await self.held(method, template, path, body), 200, path)
        written = {(method.upper(), path.removeprefix("/v1/kms")) for path, method, _one in operations()}
        left = written - {one[:2] for one in asked} - {("GET", "/openapi.yaml")}
        self.assertEqual({path for _method, path in left if "governance" not in path}, set())

    async def test_every_refusal_is_named(self) -> None:
        body = {"kid_or_set": {"kid": UNKNOWN}, "payload_b3": B3}
        for token, status in ((None, 401), (self.bearer(("scope", "mailbox:*")), 403)):
            self.token = token
            self.assertEqual(await self.held("POST", "/sign", "/sign", body), status)
            self.assertEqual(await self.held("GET", "/keys/{kid}", at(UNKNOWN)), status)
        self.token = self.bearer(("scope", "*"))
        self.assertEqual(await self.held("POST", "/sign", "/sign", {}), 400)
        self.assertEqual(await self.held("POST", "/sign", "/sign", body), 404)
        self.assertEqual(await self.held("GET", "/keys", "/keys?tenant=%20"), 400)
        kid = await self.create(op_id=op_id(1))
        again = {"tenant": "core", "purpose": "other", "alg": "ed25519", "op_id": op_id(1)}
        self.assertEqual(await self.held("POST", "/keys", "/keys", again), 409)
        self.backend.away = True
        await self.until(lambda: "backend_ready" in self.health.snapshot().degraded, "the outage")
        self.assertEqual(await self.held("POST", "/sign", "/sign", {**body, "kid_or_set": {"kid": kid}}), 503)
