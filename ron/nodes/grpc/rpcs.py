"""What each RPC needs: its scope, the node's command behind it, and its messages as plain values.

In: request messages. Out: commands for the bus service `node`, and their replies as response messages. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from google.protobuf.message import Message

from ron.kernel.health import Readiness
from ron.kernel.supervisor import UnitStatus
from ron.nodes.grpc import control_pb2 as pb
from ron.proto.errors import bad_request
from ron.proto.facts import NodeStatus

SERVICE = "ron.control.v1.Control"
READ, ADMIN = "node:read", "node:admin"
_NAME = re.compile(r"[a-z][a-z0-9.-]{0,62}")


class Reloaded(msgspec.Struct, frozen=True):
    """What the command `reload` answers, as far as it is told here."""

    version: int
    restart_needed: tuple[str, ...]


class Rpc(NamedTuple):
    """scope: None is public. command: of the service `node`. answer: what that must reply; None is anything.

    body: the command's body from the request; raises `RonError` BadRequest. reply: the response from the answer.
    """

    scope: str | None
    command: str
    answer: Any
    reply: Callable[[Any], Message]
    body: Callable[[Any], Any] = lambda _request: None


def _health(found: Readiness) -> pb.HealthResponse:
    return pb.HealthResponse(
        ready=found.ready, missing=found.missing, degraded=found.degraded, reasons=dict(found.reasons)
    )


def _status(found: NodeStatus) -> pb.StatusResponse:
    return pb.StatusResponse(json=msgspec.json.encode(found).decode())


def _service(found: UnitStatus) -> pb.Service:
    return pb.Service(
        name=found.name, state=found.state, restarts=found.restarts, reason=found.reason, pid=found.pid or 0
    )


def _name(request: Any) -> str:
    name: str = request.name
    if not _NAME.fullmatch(name):
        raise bad_request("name is no service name", "ronctl service list has them")
    return name


# By method name; a test holds them against control.proto.
RPCS: dict[str, Rpc] = {
    "Health": Rpc(None, "ready", Readiness, _health),
    "Status": Rpc(READ, "status", NodeStatus, _status),
    "Services": Rpc(
        READ, "services", tuple[UnitStatus, ...], lambda found: pb.ServicesResponse(services=map(_service, found))
    ),
    "ConfigVersion": Rpc(READ, "version", int, lambda version: pb.ConfigVersionResponse(version=version)),
    "Release": Rpc(ADMIN, "release", UnitStatus, lambda found: pb.ReleaseResponse(service=_service(found)), body=_name),
    "Drain": Rpc(
        ADMIN,
        "drain",
        None,
        lambda _nothing: pb.DrainResponse(),
        body=lambda request: _name(request) if request.name else "",
    ),
    "Reload": Rpc(
        ADMIN,
        "reload",
        Reloaded,
        lambda found: pb.ReloadResponse(version=found.version, restart_needed=found.restart_needed),
    ),
}
