"""The control API as an OpenAPI 3.1 document, made from the routes and structs themselves.

In: the routes of the control API and of federation, what they answer, the structs' own schemas. Out:
docs/openapi/oniond.json, written by `python -m ron.services.oniond.openapi docs/openapi/oniond.json`; tests compare it
with what is served.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

from ron.proto.onionevents import EVENTS_PATH, EVENTS_SCOPE, EventView, Lagged
from ron.services.oniond import api
from ron.services.oniond.federation import routes as federation
from ron.services.oniond.service import OniondService
from ron.web import Endpoint, openapi

_REFUSALS = {
    400: "The request is malformed, or asks for what this host's tor cannot do.",
    403: "The capability does not cover this call, or is for another app.",
    404: "There is no such onion, for this caller.",
    409: "It contradicts what is there: an op_id used for another act, a limit, the onion's state.",
}
_EVENTS_ROUTE = ("GET", EVENTS_PATH)
# On the federation onion nobody shows a capability: who may is what the handshake finds out.
_STRANGERS_ALWAYS = tuple(status for status in openapi.ALWAYS if status != 401)
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
    """The whole of it. Raises KeyError for a route whose answer `ANSWERS` does not name."""
    routes = _routes()
    made = openapi.document(
        openapi.Described(
            title="svc-oniond control API",
            description=(
                "Onions of the apps on one host. Over the Unix socket run/oniond.sock of the home, and over the admin "
                "listener where there is one. A capability with a caveat on an app sees and touches that app's onions "
                "alone; all others are, to it, not there. Calls that change something are repeated safely under the "
                "same op_id. Where federation is enabled, `/v1/federation` is the operator's part of it, and "
                "`/federate/` is what peers call on an onion of its own (docs/federation.rst)."
            ),
            server="curl --unix-socket $RON_HOME/run/oniond.sock",
            routes=routes,
            answers=ANSWERS,
            summary=_summary,
            refusals=_REFUSALS,
            more=(EventView, Lagged),
        )
    )
    paths = made["paths"]
    for route in routes:
        operation = paths[openapi.template(route.path)][route.method.lower()]
        body = [415] if route.body else []
        if route.scope is None:
            del operation["x-scope"]
            operation |= {"security": [], "servers": _PEERS_SERVER}
            _refuse(operation, {*_STRANGERS_ALWAYS, *body}, _STRANGERS)
        elif (route.method, route.path) in federation.ANSWERS:
            _refuse(operation, {*openapi.ALWAYS, 404, *([409] if body else []), *body}, {**_REFUSALS, **_OPERATORS})
    paths[EVENTS_PATH] = {"get": _events()}
    return made


def _routes() -> list[Endpoint]:
    """All but the events'; their handlers are looked at and never called."""
    desk = cast(federation.Desk, None)
    control = [
        route for route in api.endpoints(cast(OniondService, None)) if (route.method, route.path) != _EVENTS_ROUTE
    ]
    return [*control, *federation.operator_endpoints(desk), *federation.peer_endpoints(desk)]


def _refuse(operation: dict[str, Any], statuses: set[int], words: dict[int, str]) -> None:
    operation["responses"] = {
        "200": operation["responses"]["200"],
        **openapi.refusals(statuses, {**_REFUSALS, **words}),
    }


def _events() -> dict[str, Any]:
    return {
        "operationId": "events",
        "summary": "What happens, as it happens: a WebSocket of JSON text messages.",
        "x-scope": EVENTS_SCOPE,
        "x-messages": [openapi.ref(EventView), openapi.ref(Lagged)],
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
            **openapi.refusals({*openapi.ALWAYS, 426}, _REFUSALS),
        },
    }


def _summary(route: Endpoint) -> str:
    """What the service says of the call that the route is for."""
    name = str(getattr(route.handler, "__name__", route.path))
    call = route.handler
    if not call.__doc__:
        call = getattr(OniondService, {"show": "view"}.get(name, name), call)
    return (call.__doc__ or name).strip().splitlines()[0]


def text() -> str:
    """The document as the file has it."""
    return openapi.text(document())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
