"""The onion runtime as a program uses it: an onion for a local port in one call, looked after until it is deleted.

In: an `Api` on oniond's control API, over its Unix socket (`oniond_at`) or any other transport. Out: `OnionView`s. Each
act has an op_id, which its tries share, so that an answer that was lost on the way is never a second onion.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from ron.proto.errors import bad_request
from ron.proto.ids import uuid7
from ron.proto.onions import (
    AddClientRequest,
    BindRequest,
    Client,
    CreateRequest,
    DeleteAnswer,
    DeleteRequest,
    DrainRequest,
    ExportAnswer,
    ExportRequest,
    Hints,
    Isolation,
    Limits,
    ListAnswer,
    OnionView,
    Persistence,
    Port,
    Pow,
    RemoveClientRequest,
    RotateRequest,
)
from ron.sdk.client import Api
from ron.sdk.transport import unix_http

# Longer than the runtime takes for any act: a tor of its own to start (60 s), or the longest wait for a descriptor.
DEADLINE_S = 95.0
_PATH = "/v1/onions"
_Body = TypeVar("_Body", bound=msgspec.Struct)


def oniond_at(reactor: Any, socket: Path, capability: str | None, *, tries: int = 5) -> Api:
    """An `Api` on the runtime that listens on the Unix socket `socket`, for `Onions`."""
    return Api(reactor, unix_http(reactor, socket), "http://oniond", capability, deadline_s=DEADLINE_S, tries=tries)


def new_op_id() -> str:
    """For an act that is to be repeated by its caller, too: the runtime remembers it for a day."""
    return str(uuid7())


class Onions:
    """Calls of the onion runtime; each raises `RonError`, BadRequest without asking it for what cannot be.

    wait_s: answer when clients can find the onion, or after so many seconds (at most 60) as it stands then; the
    deadline of `api` must be longer. op_id: a UUID of the caller's, for an act that outlives this process.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    async def create(
        self,
        app: str,
        ports: Sequence[Port],
        *,
        persistence: Persistence = "durable",
        isolation: Isolation | None = None,
        clients: Sequence[Client] = (),
        pow: Pow | None = None,
        hints: Hints | None = None,
        limits: Limits | None = None,
        wait_s: float = 0.0,
        op_id: str | None = None,
    ) -> OnionView:
        """A new onion of `app`. clients: not empty, only these can find it. isolation: None is as the operator says."""
        body = CreateRequest(
            op_id=op_id or new_op_id(),
            app=app,
            ports=tuple(ports),
            persistence=persistence,
            client_auth=tuple(clients),
            pow=pow,
            hints=hints or Hints(),
            limits=limits or Limits(),
            isolation=isolation,
            wait_s=wait_s,
        )
        return await self._api.call("POST", _PATH, OnionView, _checked(body))

    async def list(self) -> tuple[OnionView, ...]:
        """All that the capability lets us see."""
        return (await self._api.call("GET", _PATH, ListAnswer)).onions

    async def get(self, onion_id: str) -> OnionView:
        """As it stands, with the app's own way out (`socks`)."""
        return await self._api.call("GET", _path(onion_id), OnionView)

    async def bind(
        self, onion_id: str, ports: Sequence[Port], *, wait_s: float = 0.0, op_id: str | None = None
    ) -> OnionView:
        """Other ports from now on; a drained onion serves again."""
        body = BindRequest(op_id=op_id or new_op_id(), ports=tuple(ports), wait_s=wait_s)
        return await self._api.call("POST", _path(onion_id, "bind"), OnionView, _checked(body))

    async def rotate(
        self, onion_id: str, *, grace_s: int = 24 * 3600, wait_s: float = 0.0, op_id: str | None = None
    ) -> OnionView:
        """A new key; the old address, in `previous`, is served for `grace_s` seconds more (at most a week)."""
        body = RotateRequest(op_id=op_id or new_op_id(), grace_s=grace_s, wait_s=wait_s)
        return await self._api.call("POST", _path(onion_id, "rotate"), OnionView, _checked(body))

    async def drain(self, onion_id: str, *, deadline_s: int = 60, op_id: str | None = None) -> OnionView:
        """No new visitors; `drained` once the last has gone, or after `deadline_s` seconds (at most a day)."""
        body = DrainRequest(op_id=op_id or new_op_id(), deadline_s=deadline_s)
        return await self._api.call("POST", _path(onion_id, "drain"), OnionView, _checked(body))

    async def delete(self, onion_id: str, *, op_id: str | None = None) -> None:
        """The service and its key are gone for good."""
        body = DeleteRequest(op_id=op_id or new_op_id())
        await self._api.call("DELETE", _path(onion_id), DeleteAnswer, _checked(body))

    async def export(self, onion_id: str, *, op_id: str | None = None) -> ExportAnswer:
        """The key itself: whoever has it is the onion. The runtime writes down who asked."""
        body = ExportRequest(op_id=op_id or new_op_id())
        return await self._api.call("POST", _path(onion_id, "export"), ExportAnswer, _checked(body))

    async def add_client(self, onion_id: str, client: Client, *, op_id: str | None = None) -> OnionView:
        """`client` may find it; the first one makes a public onion restricted."""
        body = AddClientRequest(op_id=op_id or new_op_id(), client=client)
        return await self._api.call("POST", _path(onion_id, "clients"), OnionView, _checked(body))

    async def remove_client(self, onion_id: str, name: str, *, op_id: str | None = None) -> OnionView:
        """The client called `name` may not any more; the last one stays (Conflict)."""
        body = RemoveClientRequest(op_id=op_id or new_op_id())
        return await self._api.call("DELETE", _path(onion_id, "clients", name), OnionView, _checked(body))


def checked_port(onion_port: int, local: str) -> Port:
    """`onion_port`, answered by `local`: 127.0.0.1:PORT or unix:/path. Raises `RonError` (BadRequest)."""
    return _checked(Port(onion_port=onion_port, local=local))


def _checked(body: _Body) -> _Body:
    """`body` if its values are within their bounds, which msgspec looks at only when it decodes."""
    try:
        return msgspec.convert(msgspec.to_builtins(body), type(body))
    except msgspec.ValidationError as error:
        raise bad_request(f"the onion runtime would not take that: {error}") from None


def _path(*segments: str) -> str:
    """Of what lies below an onion. No segment can lead elsewhere."""
    if not all(segment.strip(".") for segment in segments):
        raise bad_request("an onion's id, and a client's name, is not empty")
    return "/".join([_PATH, *(quote(segment, safe="") for segment in segments)])
