"""The control API as an OpenAPI 3.1 document, made from the routes and structs themselves.

In: the routes of the control API and of federation, what they answer, the structs' own schemas. Out:
docs/openapi/oniond.json, written by `python -m ron.services.oniond.openapi docs/openapi/oniond.json`; tests compare it
with what is served.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

import ron
from ron.proto.errors import ErrorCode, ErrorEnvelope
from ron.proto.onionevents import EVENTS_PATH, EVENTS_SCOPE, EventView, Lagged
from ron.services.oniond import api
from ron.services.oniond.federation import routes as federation
from ron.services.oniond.service import OniondService
from ron.web import Endpoint

_SCHEMAS = "#/components/schemas/{name}"
_JSON = "application/json"
# What each status stands for, in the envelope; the codes are those of `ron.proto.errors`.
REFUSALS = {
    400: "The request is malformed, or asks for what this host's tor cannot do.",
    401: "There is no capability, or not a usable one.",
    403: "The capability does not cover this call, or is for another app.",
    404: "There is no such onion, for this caller.",
    409: "It contradicts what is there: an op_id used for another act, a limit, the onion's state.",
    413: "The body is too large.",
    415: "The body's encoding is not known here.",
    426: "This is a WebSocket.",
    429: "Too much is asked for; come back after Retry-After seconds.",
    500: "A mistake of ours; the log has it under the request's id.",
    503: "Something that it stands on is down; come back after Retry-After seconds.",
    504: "Not done within the deadline.",
}
_ALWAYS = (400, 401, 403, 413, 429, 500, 503, 504)
_EVENTS_ROUTE = ("GET", EVENTS_PATH)
# On the federation onion nobody shows a capability: who may is what the handshake finds out.
_STRANGERS_ALWAYS = tuple(status for status in _ALWAYS if status != 401)
_STRANGERS = {
    403: "Refused. Why is told to nobody outside: it is in the audit log of the node.",
    503: "Federation is not ready yet, or is busy; come back after Retry-After seconds.",
}
_OPERATORS = {
    404: "Federation is not enabled here.",
    409: "The peer refused, or policy and keys do not fit; the hint says which.",
    504: "The peer did not answer, or did not call back.",
}
_PEERS_SERVER = [
    {"url": "http://federation.onion", "description": "The federation onion, port 80; nothing else is there"}
]
ANSWERS = {**api.ANSWERS, **federation.ANSWERS}


def document() -> dict[str, Any]:
    """The whole of it. Raises KeyError for a route whose answer `api.ANSWERS` does not name."""
    routes = _routes()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "svc-oniond control API",
            "version": ron.__version__,
            "license": {"name": "MIT", "identifier": "MIT"},
            "description": (
                "Onions of the apps on one host. Over the Unix socket run/oniond.sock of the home, and over the admin "
                "listener where there is one. A capability with a caveat on an app sees and touches that app's onions "
                "alone; all others are, to it, not there. Calls that change something are repeated safely under the "
                "same op_id. Where federation is enabled, `/v1/federation` is the operator's part of it, and "
                "`/federate/` is what peers call on an onion of its own (docs/federation.rst)."
            ),
        },
        "servers": [{"url": "http://localhost", "description": "curl --unix-socket $RON_HOME/run/oniond.sock"}],
        "security": [{"capability": []}],
        "paths": _paths(routes),
        "components": {
            "securitySchemes": {
                "capability": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "macaroon",
                    "description": "A capability whose scope covers the call's x-scope.",
                }
            },
            "schemas": _components(routes),
        },
    }


def _routes() -> list[Endpoint]:
    """All of them; their handlers are looked at and never called."""
    desk = cast(federation.Desk, None)
    return [
        *api.endpoints(cast(OniondService, None)),
        *federation.operator_endpoints(desk),
        *federation.peer_endpoints(desk),
    ]


def _paths(routes: Iterable[Endpoint]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for route in routes:
        if (route.method, route.path) != _EVENTS_ROUTE:
            paths.setdefault(_template(route.path), {})[route.method.lower()] = _operation(route)
    paths[EVENTS_PATH] = {"get": _events()}
    return paths


def _template(path: str) -> str:
    return path.replace("<", "{").replace(">", "}")


def _operation(route: Endpoint) -> dict[str, Any]:
    names = re.findall(r"<([a-z_]+)>", route.path)
    operation: dict[str, Any] = {
        "operationId": _name(route),
        "summary": _summary(route),
        "responses": {
            "200": _content("Done; what is there now.", ANSWERS[route.method, route.path]),
            **_refusals(route, may_miss=bool(names)),
        },
    }
    if route.scope is None:
        operation |= {"security": [], "servers": _PEERS_SERVER}
    else:
        operation["x-scope"] = route.scope
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if route.body is not None:
        content = {_JSON: {"schema": _ref(route.body)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _refusals(route: Endpoint, *, may_miss: bool) -> dict[str, Any]:
    """By status. may_miss: its path names something that may not be there."""
    if route.scope is None:
        statuses, words = {*_STRANGERS_ALWAYS, *([415] if route.body else [])}, _STRANGERS
    elif (route.method, route.path) in federation.ANSWERS:
        statuses, words = {*_ALWAYS, 404, *([409, 415] if route.body else [])}, _OPERATORS
    else:
        missing = [404] if may_miss or route.body else []
        statuses, words = {*_ALWAYS, *missing, *([409, 415] if route.body else [])}, {}
    return {str(status): _refusal(status, words) for status in sorted(statuses)}


def _events() -> dict[str, Any]:
    statuses = sorted({*_ALWAYS, 426})
    return {
        "operationId": "events",
        "summary": "What happens, as it happens: a WebSocket of JSON text messages.",
        "x-scope": EVENTS_SCOPE,
        "x-messages": [_ref(EventView), _ref(Lagged)],
        "parameters": [
            {
                "name": "after",
                "in": "query",
                "description": "The number of the last event that the caller has: those kept since come first.",
                "schema": {"type": "integer", "minimum": 0},
            }
        ],
        "responses": {
            "101": {"description": "The connection is a WebSocket now."},
            **{str(status): _refusal(status, {}) for status in statuses},
        },
    }


def _name(route: Endpoint) -> str:
    return str(getattr(route.handler, "__name__", route.path))


def _summary(route: Endpoint) -> str:
    """What the service says of the call that the route is for."""
    name = _name(route)
    call = route.handler
    if not call.__doc__:
        call = getattr(OniondService, {"show": "view"}.get(name, name), call)
    return (call.__doc__ or name).strip().splitlines()[0]


def _content(description: str, answer: type) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": _ref(answer)}}}


def _refusal(status: int, words: Mapping[int, str]) -> dict[str, Any]:
    return _content(words.get(status, REFUSALS[status]), ErrorEnvelope)


def _ref(struct: type) -> dict[str, str]:
    return {"$ref": _SCHEMAS.format(name=struct.__name__)}


def _components(routes: Iterable[Endpoint]) -> dict[str, Any]:
    structs = {route.body for route in routes if route.body is not None}
    structs |= {*ANSWERS.values(), ErrorEnvelope, EventView, Lagged}
    ordered = sorted(structs, key=lambda struct: struct.__name__)
    _refs, components = msgspec.json.schema_components(ordered, ref_template=_SCHEMAS)
    components["ErrorBody"]["properties"]["code"]["enum"] = [code.value for code in ErrorCode]
    return cast(dict[str, Any], _ecma(components))


def _ecma(value: Any) -> Any:
    """Patterns as JSON Schema has them: a Python pattern's end is `\\Z`, which means something else there."""
    if isinstance(value, dict):
        plain = {key: _ecma(inner) for key, inner in value.items()}
        if isinstance(plain.get("pattern"), str):
            plain["pattern"] = plain["pattern"].replace("\\Z", "$")
        return plain
    return [_ecma(inner) for inner in value] if isinstance(value, list) else value


def text() -> str:
    """The document as the file has it."""
    return json.dumps(document(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
