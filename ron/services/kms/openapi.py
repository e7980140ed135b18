"""The HTTP interface as an OpenAPI 3.1 document, made from the routes and structs themselves.

In: `api.endpoints`, `api.ANSWERS`, those of governance. Out: docs/openapi/ron-kms.yaml, written by
`python -m ron.services.kms.openapi docs/openapi/ron-kms.yaml`, and the same text for `/openapi.yaml`; a test compares
it with what is served.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

from ron.services.kms import api
from ron.services.kms.governance import api as governance
from ron.services.kms.governance.quorum import Governance
from ron.web import Endpoint, openapi

_REFUSALS = {
    400: "The request is malformed, or asks for what this key or the policy does not have (Unsupported).",
    403: "The capability does not cover this call, or a quorum or evidence is missing (AttestationMissing).",
    404: "There is no such key or version.",
    409: "It contradicts what is there: an op_id used for another act, another rotation under way.",
    429: "Too much is asked for, of the service or for this tenant; come back after Retry-After seconds.",
    503: "The backend or the audit log is down; come back after Retry-After seconds. Verifying may still work.",
}
_SUMMARIES = {
    "checkpoint": "The newest signed head of the audit log, a C2SP checkpoint.",
    "witnessed": "The newest head of the audit log that witnesses have signed, too.",
    "entries": "Records of the audit log, as they are hashed.",
    "rotate_key": "Another key for the audit log; the old one and the new one say so in it.",
    "proof": "That a record is in the log (index, size), or that nothing in it was changed (old, size).",
}
_QUERIES: dict[str, tuple[tuple[str, str, str], ...]] = {
    f"{api.PATH}/keys": (("tenant", "string", "Its keys only."), ("after", "string", "Where the page before ended.")),
    f"{api.PATH}/attest": (("kid", "string", "A key; left out, the backend as a whole."),),
    f"{api.PATH}/audit/entries": (
        ("start", "integer", "The first record, from 0."),
        ("count", "integer", "1 to 1000."),
    ),
    f"{api.PATH}/audit/proof": (
        ("index", "integer", "A record."),
        ("old", "integer", "The size before."),
        ("size", "integer", "The size that it is of; left out, the present one."),
    ),
}
_KID = {
    "name": "kid",
    "in": "path",
    "required": True,
    "description": "The key's name, percent-encoded: `core%2Faudit%2Fed25519%2F<uuid>%23v3`.",
    "schema": {"type": "string"},
}
_AGE = {
    "description": "The age of what is known of the key, while the backend is away; as `cache_age_ms`.",
    "schema": {"type": "integer", "minimum": 0},
}


def document() -> dict[str, Any]:
    """The whole of it. Raises KeyError for a route whose answer is not named."""
    routes = [route for route in _routes() if (route.method, route.path) in _answers()]
    made = openapi.document(
        openapi.Described(
            title="ron-kms",
            description=(
                "Custody of keys, hybrid signatures, an audit log that nobody can rewrite. Payloads are never sent: "
                "what is signed is the 32 bytes of payload_b3, the BLAKE3-256 of the payload's canonical form, ML-DSA "
                "in pure mode with an empty context. A capability with a caveat on a tenant reaches that tenant's keys "
                "alone. Whatever makes or destroys is repeated safely under the same op_id."
            ),
            server="the listener (bind_addr), or curl --unix-socket $RON_HOME/run/kms.sock",
            routes=routes,
            answers=_answers(),
            summary=_summary,
            refusals=_REFUSALS,
        )
    )
    made["paths"] = {_plain(path): methods for path, methods in made["paths"].items()}
    for path, methods in made["paths"].items():
        for operation in methods.values():
            _add_parameters(path, operation)
    made["paths"][f"{api.PATH}/verify"]["post"]["responses"]["200"]["headers"] = {api.CACHE_AGE_HEADER: _AGE}
    made["paths"][f"{api.PATH}/keys/{{kid}}/rotate"]["post"]["requestBody"]["required"] = False
    for name in ("checkpoint", "witnessed"):
        made["paths"][f"{api.PATH}/audit/{name}"] = {"get": _note(name)}
    made["paths"][api.OPENAPI_PATH] = {"get": _itself()}
    return made


def _routes() -> list[Endpoint]:
    """Their handlers are looked at and never called."""
    return [
        *api.endpoints(cast(api.KmsDesk, None), lambda: b""),
        *governance.endpoints(cast(Governance, None)),
    ]


@cache
def _answers() -> dict[tuple[str, str], Any]:
    return {**api.ANSWERS, **governance.ANSWERS}


def _summary(route: Endpoint) -> str:
    """What the service says of the call that the route is for."""
    from ron.services.kms.keys import Keys
    from ron.services.kms.operations import Custody

    name = str(getattr(route.handler, "__name__", route.path))
    if name in _SUMMARIES:
        return _SUMMARIES[name]
    if route.scope == governance.SCOPE:
        return f"Governance: {name}, at {_plain(openapi.template(route.path)).removeprefix(api.PATH)}."
    call = getattr(Custody, name, None) or getattr(Keys, name)
    return str(call.__doc__).strip().splitlines()[0]


def _plain(path: str) -> str:
    return re.sub(r"\{path:([a-z_]+)\}", r"{\1}", path)


def _add_parameters(path: str, operation: dict[str, Any]) -> None:
    if "{kid}" in path:
        operation["parameters"] = [_KID]
        operation["responses"] |= openapi.refusals([404], _REFUSALS)
    if path in _QUERIES and "requestBody" not in operation:
        operation["parameters"] = [
            {"name": name, "in": "query", "description": text, "schema": {"type": kind}}
            for name, kind, text in _QUERIES[path]
        ]
        operation["responses"] |= openapi.refusals([404], _REFUSALS)
    if "operationId" in operation and "/governance" in path:
        operation["operationId"] = f"governance_{operation['operationId']}"


def _note(name: str) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": _SUMMARIES[name],
        "x-scope": "kms:audit",
        "responses": {
            "200": {"description": "A signed note.", "content": {"text/plain": {"schema": {"type": "string"}}}},
            **openapi.refusals({*openapi.ALWAYS, 404}, _REFUSALS),
        },
    }


def _itself() -> dict[str, Any]:
    return {
        "operationId": "openapi",
        "summary": "This document.",
        "security": [],
        "responses": {
            "200": {"description": "YAML.", "content": {"application/yaml": {"schema": {"type": "string"}}}},
            **openapi.refusals([400, 429, 503], _REFUSALS),
        },
    }


def text() -> str:
    """The document as the file has it."""
    return yaml.safe_dump(document(), sort_keys=True, allow_unicode=True, width=120)


@cache
def served() -> bytes:
    """The same, made once."""
    return text().encode()


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
