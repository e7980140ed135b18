"""Endpoints as an OpenAPI 3.1 document, made from the routes and structs themselves, so it cannot say anything else.

In: a service's endpoints, what each answers, a few words. Out: the document as a dict, or as the text of its file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

import ron
from ron.proto.errors import ErrorCode, ErrorEnvelope
from ron.web.endpoint import Endpoint

_SCHEMAS = "#/components/schemas/{name}"
_JSON = "application/json"
# What each status stands for, in the envelope; the codes are those of `ron.proto.errors`.
REFUSALS = {
    400: "The request is malformed.",
    401: "There is no capability, or not a usable one.",
    403: "The capability does not cover this call.",
    404: "There is nothing of that name.",
    409: "It contradicts what is there: an op_id used for another act, or how things stand.",
    413: "The body is too large.",
    415: "The body's encoding is not known here.",
    426: "This is a WebSocket.",
    429: "Too much is asked for; come back after Retry-After seconds.",
    500: "A mistake of ours; the log has it under the request's id.",
    503: "Something that it stands on is down; come back after Retry-After seconds.",
    504: "Not done within the deadline.",
}
ALWAYS = (400, 401, 403, 413, 429, 500, 503, 504)


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a document is made of. server: how to get there, for curl. answers: by (method, path).

    summary: one line for a route. refusals: a service's own words for a status. more: schemas besides those of bodies
    and answers."""

    title: str
    description: str
    server: str
    routes: Sequence[Endpoint]
    answers: Mapping[tuple[str, str], type[msgspec.Struct]]
    summary: Callable[[Endpoint], str]
    refusals: Mapping[int, str] = field(default_factory=dict)
    more: Sequence[type[msgspec.Struct]] = ()


def document(about: Described) -> dict[str, Any]:
    """The whole of it. Raises KeyError for a route whose answer is not named."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": about.title,
            "version": ron.__version__,
            "license": {"name": "MIT", "identifier": "MIT"},
            "description": about.description,
        },
        "servers": [{"url": "http://localhost", "description": about.server}],
        "security": [{"capability": []}],
        "paths": _paths(about),
        "components": {
            "securitySchemes": {
                "capability": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "macaroon",
                    "description": "A capability whose scope covers the call's x-scope.",
                }
            },
            "schemas": components(
                [
                    *(route.body for route in about.routes if route.body is not None),
                    *about.answers.values(),
                    *about.more,
                ]
            ),
        },
    }


def text(made: dict[str, Any]) -> str:
    """The document as its file has it."""
    return json.dumps(made, indent=2, sort_keys=True) + "\n"


def components(structs: Iterable[type]) -> dict[str, Any]:
    """The schemas of `structs` and of the error envelope, and of all that is in them."""
    ordered = sorted({*structs, ErrorEnvelope}, key=lambda struct: struct.__name__)
    _refs, found = msgspec.json.schema_components(ordered, ref_template=_SCHEMAS)
    found["ErrorBody"]["properties"]["code"]["enum"] = [code.value for code in ErrorCode]
    return cast(dict[str, Any], _ecma(found))


def ref(struct: type) -> dict[str, str]:
    """Where `struct` is among the components."""
    return {"$ref": _SCHEMAS.format(name=struct.__name__)}


def template(path: str) -> str:
    """A route's path as OpenAPI writes it."""
    return path.replace("<", "{").replace(">", "}")


def _paths(about: Described) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for route in about.routes:
        paths.setdefault(template(route.path), {})[route.method.lower()] = _operation(about, route)
    return paths


def _operation(about: Described, route: Endpoint) -> dict[str, Any]:
    names = re.findall(r"<([a-z_]+)>", route.path)
    statuses = {*ALWAYS, *([404] if names or route.body else []), *([409, 415] if route.body else [])}
    operation: dict[str, Any] = {
        "operationId": str(getattr(route.handler, "__name__", route.path)),
        "summary": about.summary(route),
        "x-scope": route.scope,
        "responses": {
            "200": _content("Done; what is there now.", about.answers[route.method, route.path]),
            **refusals(statuses, about.refusals),
        },
    }
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": ref(route.body)}}}
    return operation


def refusals(statuses: Iterable[int], words: Mapping[int, str]) -> dict[str, Any]:
    """The responses that refuse a call, by status; `words` before our own."""
    said = {**REFUSALS, **words}
    return {str(status): _content(said[status], ErrorEnvelope) for status in sorted(statuses)}


def _content(description: str, answer: type) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": ref(answer)}}}


def _ecma(value: Any) -> Any:
    """Patterns as JSON Schema has them: a Python pattern's end is `\\Z`, which means something else there."""
    if isinstance(value, dict):
        plain = {key: _ecma(inner) for key, inner in value.items()}
        if isinstance(plain.get("pattern"), str):
            plain["pattern"] = plain["pattern"].replace("\\Z", "$")
        return plain
    return [_ecma(inner) for inner in value] if isinstance(value, list) else value
