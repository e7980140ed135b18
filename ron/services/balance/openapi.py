"""The operator's API as an OpenAPI 3.1 document.

In: `api.endpoints`, `api.ANSWERS`. Out: docs/openapi/balance.json, written by
`python -m ron.services.balance.openapi docs/openapi/balance.json`; a test compares it with what is served.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

from ron.kernel.clock import Clock
from ron.services.balance import api
from ron.services.balance.desk import Desk
from ron.web import Endpoint, openapi

_REFUSALS = {
    404: "There is no such node or service.",
    409: "It contradicts how things stand: an op_id used for another act, a name that is taken, the service's mode.",
    503: "Too few nodes take part, or what it stands on is down; come back after Retry-After seconds.",
}


def document() -> dict[str, Any]:
    """The whole of it. Raises KeyError for a route whose answer `api.ANSWERS` does not name."""
    return openapi.document(
        openapi.Described(
            title="RustBalance control API",
            description=(
                "One onion address before many nodes: how the cluster stands, as the asked node sees it, and an "
                "operator's orders. Over the Unix socket run/balance.sock of the home. Calls that make something are "
                "repeated safely under the same op_id, by the same capability, for ten minutes. A key that comes in "
                "and a bundle that goes out are secrets, and in no log."
            ),
            server="curl --unix-socket $RON_HOME/run/balance.sock",
            # its handlers are looked at and never called
            routes=api.endpoints(cast(Desk, None), cast(Clock, None)),
            answers=api.ANSWERS,
            summary=_summary,
            refusals=_REFUSALS,
        )
    )


def _summary(route: Endpoint) -> str:
    """What the desk says of the call that the route is for."""
    call = getattr(Desk, route.handler.__name__)
    return str(call.__doc__).strip().splitlines()[0]


def text() -> str:
    """The document as the file has it."""
    return openapi.text(document())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
