"""The operator's API: decode, call, encode. In: DTOs of `ron.proto.balanceviews` behind `ron.web`. Out: `endpoints`.

Three scopes, each more than the one before: `balance:read` looks, `balance:operate` steers what is published and who
belongs, `balance:key` decides who can sign. An invitation is of the last: it brings a stranger as far as the key.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import msgspec

from ron.kernel.clock import Clock
from ron.proto.balance import NodeName
from ron.proto.balanceviews import (
    ApproveRequest,
    BalanceView,
    GhostsAnswer,
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
from ron.proto.errors import bad_request, not_found
from ron.services.balance.desk import Desk
from ron.services.balance.once import Once
from ron.web import Call, Endpoint

PATH = "/v1/balance"
BODY_LIMIT_BYTES = 64 * 1024
# Longer than a ceremony among five nodes with one that does not answer.
DEADLINE_S = 90.0
THRESHOLD, MEMBERS = 2, 3
# These take as long as other nodes do.
_WAITING = frozenset({"refresh", "reshare", "create", "publish", "leave"})


def endpoints(desk: Desk, clock: Clock) -> list[Endpoint]:
    """The routes of `desk`. clock: by which acts are remembered."""
    api = _Api(desk, Once(clock))

    def endpoint(method: str, path: str, scope: str, handler: Callable[..., Any], body: Any = None) -> Endpoint:
        return Endpoint(
            method=method,
            path=f"{PATH}{path}",
            scope=f"balance:{scope}",
            handler=handler,
            body=body,
            deadline_s=DEADLINE_S,
            waits=handler.__name__ in _WAITING,
        )

    return [
        endpoint("GET", "", "read", api.status),
        endpoint("GET", "/ghosts", "read", api.ghosts),
        endpoint("POST", "/promote", "operate", api.promote, PromoteRequest),
        endpoint("POST", "/siege", "operate", api.siege, SiegeRequest),
        endpoint("POST", "/roulette", "operate", api.roulette, RouletteRequest),
        endpoint("POST", "/publish", "operate", api.publish, PublishRequest),
        endpoint("POST", "/leave", "operate", api.leave, LeaveRequest),
        endpoint("DELETE", "/members/<name>", "operate", api.remove, RemoveRequest),
        endpoint("POST", "/token/rotate", "operate", api.rotate_token, TokenRequest),
        endpoint("POST", "/members/<name>/approve", "key", api.approve, ApproveRequest),
        endpoint("POST", "/invitations", "key", api.invite, InvitationRequest),
        endpoint("POST", "/services", "key", api.create, NewServiceRequest),
        endpoint("POST", "/refresh", "key", api.refresh, RefreshRequest),
        endpoint("POST", "/reshare", "key", api.reshare, ReshareRequest),
    ]


# What each call answers, for the OpenAPI file.
ANSWERS: dict[tuple[str, str], type[msgspec.Struct]] = {
    ("GET", PATH): BalanceView,
    ("GET", f"{PATH}/ghosts"): GhostsAnswer,
    ("POST", f"{PATH}/promote"): LeaderView,
    ("POST", f"{PATH}/siege"): MemberView,
    ("POST", f"{PATH}/roulette"): RouletteAnswer,
    ("POST", f"{PATH}/publish"): PublishAnswer,
    ("POST", f"{PATH}/leave"): LeaveAnswer,
    ("DELETE", f"{PATH}/members/<name>"): RemoveAnswer,
    ("POST", f"{PATH}/token/rotate"): TokenAnswer,
    ("POST", f"{PATH}/members/<name>/approve"): MemberView,
    ("POST", f"{PATH}/invitations"): InvitationAnswer,
    ("POST", f"{PATH}/services"): ServiceView,
    ("POST", f"{PATH}/refresh"): ServiceView,
    ("POST", f"{PATH}/reshare"): ServiceView,
}


class _Api:
    def __init__(self, desk: Desk, once: Once) -> None:
        self._desk = desk
        self._once = once

    async def status(self, _call: Call) -> BalanceView:
        return await self._desk.status()

    async def ghosts(self, _call: Call) -> GhostsAnswer:
        return GhostsAnswer(ghosts=await self._desk.ghosts())

    async def promote(self, _call: Call, body: PromoteRequest) -> LeaderView:
        return await self._desk.promote(body.node, body.for_s)

    async def siege(self, _call: Call, body: SiegeRequest) -> MemberView:
        return await self._desk.siege(body.node, body.on, body.for_s)

    async def roulette(self, _call: Call, body: RouletteRequest) -> RouletteAnswer:
        return await self._desk.roulette(body.on, body.for_s)

    async def publish(self, _call: Call, body: PublishRequest) -> PublishAnswer:
        return await self._desk.publish(body.service)

    async def leave(self, _call: Call, _body: LeaveRequest) -> LeaveAnswer:
        return LeaveAnswer(node=await self._desk.leave())

    async def remove(self, _call: Call, _body: RemoveRequest, name: str) -> RemoveAnswer:
        return await self._desk.remove(node_name(name))

    async def approve(self, _call: Call, _body: ApproveRequest, name: str) -> MemberView:
        return await self._desk.approve(node_name(name))

    async def rotate_token(self, call: Call, body: TokenRequest) -> TokenAnswer:
        return await self._once.do(_caller(call), "token", body, self._desk.rotate_token)

    async def invite(self, call: Call, body: InvitationRequest) -> InvitationAnswer:
        async def act() -> InvitationAnswer:
            return await self._desk.invite(body.name, body.addresses)

        return await self._once.do(_caller(call), "invite", body, act)

    async def refresh(self, call: Call, body: RefreshRequest) -> ServiceView:
        async def act() -> ServiceView:
            return await self._desk.refresh(body.service)

        return await self._once.do(_caller(call), "refresh", body, act)

    async def reshare(self, call: Call, body: ReshareRequest) -> ServiceView:
        both = set(body.add) & set(body.remove)
        if both or not (body.add or body.remove or body.threshold):
            raise bad_request(
                f"{min(both)} cannot come and go" if both else "this would change nothing",
                "name members to add or to remove, or another threshold",
            )

        async def act() -> ServiceView:
            return await self._desk.reshare(body.service, body.threshold, body.add, body.remove)

        return await self._once.do(_caller(call), "reshare", body, act)

    async def create(self, call: Call, body: NewServiceRequest) -> ServiceView:
        threshold, members = shares(body)

        async def act() -> ServiceView:
            key = bytearray(base64.b64decode(body.key)) if body.key is not None else None
            try:
                return await self._desk.create(body.name, body.mode, threshold, members, body.among, key)
            finally:
                if key is not None:
                    key[:] = bytes(len(key))

        return await self._once.do(_caller(call), "create", body, act)


def shares(body: NewServiceRequest) -> tuple[int, int]:
    """(t, n) as the request means them, (0, 0) in mode `shared`. Raises `RonError` (BadRequest)."""
    if body.mode == "shared":
        if body.threshold or body.members or body.among:
            raise bad_request("in mode shared every approved node has the key", 'leave shares out, or "threshold"')
        return 0, 0
    members = body.members or len(body.among) or MEMBERS
    threshold = body.threshold or THRESHOLD
    if threshold > members:
        raise bad_request(f"{threshold} of {members} can never sign", "lower threshold, or raise members")
    if body.among and len(set(body.among)) != members:
        raise bad_request(f"{members} members, and not as many names", "name each once, or none")
    return threshold, members


def node_name(text: str) -> NodeName:
    """A node's name from a path. Raises NotFound for what no node can be called."""
    try:
        name: str = msgspec.convert(text, NodeName)
    except msgspec.ValidationError:
        raise not_found("there is no such node") from None
    return name


def _caller(call: Call) -> str:
    return call.capability.cap_id if call.capability is not None else ""
