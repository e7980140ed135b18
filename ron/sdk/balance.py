"""A RustBalance node as a program uses it: how the cluster stands, and the orders an operator may give.

In: an `Api` on the node's control socket (`balance_at`) or any other transport. Out: views of `ron.proto.balanceviews`.
Whatever makes something has an op_id, which its tries share, so that an answer that was lost is never a second act.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from ron.proto.balance import Mode
from ron.proto.balanceviews import (
    ApproveRequest,
    BalanceView,
    GhostsAnswer,
    GhostView,
    InvitationAnswer,
    InvitationRequest,
    LeaderView,
    LeaveAnswer,
    LeaveRequest,
    MemberView,
    NewServiceRequest,
    PromoteRequest,
    PublishAnswer,
    PublishRequest,
    RefreshRequest,
    RemoveAnswer,
    RemoveRequest,
    ReshareRequest,
    RouletteAnswer,
    RouletteRequest,
    ServiceView,
    SiegeRequest,
    TokenAnswer,
    TokenRequest,
)
from ron.proto.errors import bad_request
from ron.sdk.client import Api
from ron.sdk.onions import new_op_id
from ron.sdk.transport import unix_http

# Longer than the node takes for any act (`ron.services.balance.api`).
DEADLINE_S = 95.0
KEY_BYTES = 64
_PATH = "/v1/balance"
_Body = TypeVar("_Body", bound=msgspec.Struct)
_Answer = TypeVar("_Answer", bound=msgspec.Struct)


def balance_at(reactor: Any, socket: Path, capability: str | None, *, tries: int = 5) -> Api:
    """An `Api` on the node that listens on the Unix socket `socket`, for `Balance`."""
    return Api(reactor, unix_http(reactor, socket), "http://balance", capability, deadline_s=DEADLINE_S, tries=tries)


class Balance:
    """Calls of one node; each raises `RonError`, BadRequest without asking it for what cannot be.

    for_s: an order ends by itself after so many seconds (a week at most). op_id: a UUID of the caller's, for an act
    that outlives this process; the node remembers it for ten minutes.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    async def status(self) -> BalanceView:
        """The cluster as the node sees it. Needs scope `balance:read`, as `ghosts` does."""
        return await self._api.call("GET", _PATH, BalanceView)

    async def ghosts(self) -> tuple[GhostView, ...]:
        """Heads that are out of the descriptor and still there."""
        return (await self._api.call("GET", f"{_PATH}/ghosts", GhostsAnswer)).ghosts

    # Needs scope `balance:operate`

    async def promote(self, node: str | None, *, for_s: int | None = None) -> LeaderView:
        """`node` leads if it can; None ends the order."""
        return await self._post("promote", LeaderView, PromoteRequest(node=node, for_s=for_s))

    async def siege(self, node: str, on: bool, *, for_s: int | None = None) -> MemberView:
        """The head of `node` is taken for attacked, or is not, whatever it measures."""
        return await self._post("siege", MemberView, SiegeRequest(node=node, on=on, for_s=for_s))

    async def roulette(self, on: bool, *, for_s: int | None = None) -> RouletteAnswer:
        """Rotate heads; the answer says what that costs visitors."""
        return await self._post("roulette", RouletteAnswer, RouletteRequest(on=on, for_s=for_s))

    async def publish(self, service: str | None = None) -> PublishAnswer:
        """Have the leader publish now; None is every service."""
        return await self._post("publish", PublishAnswer, PublishRequest(service=service))

    async def leave(self) -> LeaveAnswer:
        """The node leaves its cluster for good."""
        return await self._post("leave", LeaveAnswer, LeaveRequest())

    async def remove(self, name: str) -> RemoveAnswer:
        """The member called `name` is cut off, and the cluster token rotates; or it is asked for, where more members
        have to (`balance.remove_by`)."""
        return await self._api.call("DELETE", _path("members", name), RemoveAnswer, RemoveRequest())

    async def rotate_token(self, *, op_id: str | None = None) -> TokenAnswer:
        """A new token for joins."""
        return await self._post("token/rotate", TokenAnswer, TokenRequest(op_id=op_id or new_op_id()))

    # Needs scope `balance:key`

    async def approve(self, name: str) -> MemberView:
        """The member called `name` may have keys or shares, in the run that it is in now."""
        return await self._api.call("POST", _path("members", name, "approve"), MemberView, ApproveRequest())

    async def invite(self, name: str, addresses: Sequence[str] = (), *, op_id: str | None = None) -> InvitationAnswer:
        """A bundle, which is a secret, with which a node called `name` can join. addresses: `host:port` it has."""
        body = InvitationRequest(op_id=op_id or new_op_id(), name=name, addresses=tuple(addresses))
        return await self._post("invitations", InvitationAnswer, body)

    async def create(
        self,
        name: str,
        *,
        mode: Mode = "shared",
        threshold: int | None = None,
        members: int | None = None,
        among: Sequence[str] = (),
        key: bytes | None = None,
        op_id: str | None = None,
    ) -> ServiceView:
        """A master address. key: the 64 bytes of one that exists, None makes a new one. The others count in mode
        `threshold`: `threshold` of `members`, of those called `among` when there are any."""
        body = NewServiceRequest(
            op_id=op_id or new_op_id(),
            name=name,
            mode=mode,
            threshold=threshold,
            members=members,
            among=tuple(among),
            key=_encoded(key) if key is not None else None,
        )
        return await self._post("services", ServiceView, body)

    async def refresh(self, service: str, *, op_id: str | None = None) -> ServiceView:
        """New shares of the same key, so that an old one is worth nothing."""
        return await self._post("refresh", ServiceView, RefreshRequest(op_id=op_id or new_op_id(), service=service))

    async def reshare(
        self,
        service: str,
        *,
        threshold: int | None = None,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
        op_id: str | None = None,
    ) -> ServiceView:
        """The same address, shared among others or with another threshold."""
        body = ReshareRequest(
            op_id=op_id or new_op_id(), service=service, threshold=threshold, add=tuple(add), remove=tuple(remove)
        )
        return await self._post("reshare", ServiceView, body)

    async def _post(self, path: str, answer: type[_Answer], body: msgspec.Struct) -> _Answer:
        return await self._api.call("POST", f"{_PATH}/{path}", answer, _checked(body))


def _encoded(key: bytes) -> str:
    if len(key) != KEY_BYTES:
        raise bad_request(f"an onion's key has {KEY_BYTES} bytes, this has {len(key)}")
    return base64.b64encode(key).decode()


def _checked(body: _Body) -> _Body:
    """`body` if its values are within their bounds, which msgspec looks at only when it decodes."""
    try:
        return msgspec.convert(msgspec.to_builtins(body), type(body))
    except msgspec.ValidationError as error:
        raise bad_request(f"a node would not take that: {error}") from None


def _path(*segments: str) -> str:
    """Of what lies below the cluster. No segment can lead elsewhere."""
    if not all(segment.strip(".") for segment in segments):
        raise bad_request("a node's name is not empty")
    return "/".join([_PATH, *(quote(segment, safe="") for segment in segments)])
