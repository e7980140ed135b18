"""The control API: decode, call, encode. In: DTOs of `ron.proto.onions` behind `ron.web`. Out: `endpoints`.

A capability with an `app` caveat sees and touches that app's onions alone; another app's are, to it, not there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ron.proto.onions import (
    AddClientRequest,
    BindRequest,
    CreateRequest,
    DeleteAnswer,
    DeleteRequest,
    DrainRequest,
    ExportAnswer,
    ExportRequest,
    ListAnswer,
    OnionView,
    RemoveClientRequest,
    RotateRequest,
)
from ron.services.oniond.service import OniondService
from ron.web import Call, Endpoint, Raw

BODY_LIMIT_BYTES = 64 * 1024
# Longer than anybody may ask to wait for an onion.
DEADLINE_S = 90.0
_APP = frozenset({"app"})
# Two different apps at once are nobody.
_NOBODY = ""
# These take as long as their caller will wait, or as a tor of an onion's own takes to start or to end.
_WAITING = frozenset({"create", "bind", "rotate", "delete"})


def endpoints(oniond: OniondService) -> list[Endpoint]:
    """The routes of `oniond`."""
    api = _Api(oniond)

    def endpoint(method: str, path: str, scope: str, handler: Callable[..., Any], body: Any = None) -> Endpoint:
        return Endpoint(
            method=method,
            path=f"/v1/onions{path}",
            scope=f"onion:{scope}",
            handler=handler,
            body=body,
            enforces=_APP,
            deadline_s=DEADLINE_S,
            writes=method == "POST" and scope != "export",
            waits=scope in _WAITING,
            # asked again and again by whoever waits for an onion
            hot=scope == "read",
        )

    return [
        endpoint("POST", "", "create", api.create, CreateRequest),
        endpoint("GET", "", "read", api.list),
        endpoint("GET", "/<onion_id>", "read", api.show),
        endpoint("DELETE", "/<onion_id>", "delete", api.delete, DeleteRequest),
        endpoint("POST", "/<onion_id>/bind", "bind", api.bind, BindRequest),
        endpoint("POST", "/<onion_id>/rotate", "rotate", api.rotate, RotateRequest),
        endpoint("POST", "/<onion_id>/drain", "drain", api.drain, DrainRequest),
        endpoint("POST", "/<onion_id>/export", "export", api.export, ExportRequest),
        endpoint("POST", "/<onion_id>/clients", "client", api.add_client, AddClientRequest),
        endpoint("DELETE", "/<onion_id>/clients/<name>", "client", api.remove_client, RemoveClientRequest),
    ]


# What each call answers, for the OpenAPI file.
ANSWERS: dict[tuple[str, str], type[msgspec.Struct]] = {
    ("POST", "/v1/onions"): OnionView,
    ("GET", "/v1/onions"): ListAnswer,
    ("GET", "/v1/onions/<onion_id>"): OnionView,
    ("DELETE", "/v1/onions/<onion_id>"): DeleteAnswer,
    ("POST", "/v1/onions/<onion_id>/bind"): OnionView,
    ("POST", "/v1/onions/<onion_id>/rotate"): OnionView,
    ("POST", "/v1/onions/<onion_id>/drain"): OnionView,
    ("POST", "/v1/onions/<onion_id>/export"): ExportAnswer,
    ("POST", "/v1/onions/<onion_id>/clients"): OnionView,
    ("DELETE", "/v1/onions/<onion_id>/clients/<name>"): OnionView,
}


class _Api:
    def __init__(self, oniond: OniondService) -> None:
        self._oniond = oniond

    async def create(self, call: Call, body: CreateRequest) -> OnionView:
        call.require("app", body.app)
        return await self._oniond.create(body)

    def list(self, call: Call) -> Raw:
        return Raw(self._oniond.listed(may(call)), "application/json")

    def show(self, call: Call, onion_id: str) -> Raw:
        return Raw(self._oniond.shown(self._oniond.find(onion_id, may(call))), "application/json")

    async def delete(self, call: Call, body: DeleteRequest, onion_id: str) -> DeleteAnswer:
        await self._oniond.delete(onion_id, body, may(call))
        return DeleteAnswer(onion_id)

    async def bind(self, call: Call, body: BindRequest, onion_id: str) -> OnionView:
        return await self._oniond.bind(onion_id, body, may(call))

    async def rotate(self, call: Call, body: RotateRequest, onion_id: str) -> OnionView:
        return await self._oniond.rotate(onion_id, body, may(call))

    async def drain(self, call: Call, body: DrainRequest, onion_id: str) -> OnionView:
        return await self._oniond.drain(onion_id, body, may(call))

    async def export(self, call: Call, body: ExportRequest, onion_id: str) -> ExportAnswer:
        by = call.capability.cap_id if call.capability is not None else ""
        return await self._oniond.export(onion_id, body, by, may(call))

    async def add_client(self, call: Call, body: AddClientRequest, onion_id: str) -> OnionView:
        return await self._oniond.add_client(onion_id, body, may(call))

    async def remove_client(self, call: Call, body: RemoveClientRequest, onion_id: str, name: str) -> OnionView:
        return await self._oniond.remove_client(onion_id, name, body, may(call))


def may(call: Call) -> str | None:
    """The app that the caller is narrowed to, None for an operator."""
    if call.capability is None:
        return None
    apps = {caveat.value for caveat in call.capability.caveats if caveat.name == "app"}
    if not apps:
        return None
    return apps.pop() if len(apps) == 1 else _NOBODY
