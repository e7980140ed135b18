"""The HTTP interface `/v1/kms`: decode, call, encode. In: DTOs of `ron.proto.kms` behind `ron.web`. Out: `endpoints`.

A capability with a `tenant` caveat reaches that tenant's keys alone. A key's name stands percent-encoded in a path.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from ron.kernel import correlation
from ron.proto.errors import bad_request, not_found
from ron.proto.kms import (
    AttestResponse,
    CreateKeyRequest,
    CreateKeyResponse,
    DestroyRequest,
    DestroyResponse,
    KeyList,
    KeyView,
    Kid,
    RotateRequest,
    RotateResponse,
    SignRequest,
    SignResponse,
    TenantName,
    UnwrapRequest,
    UnwrapResponse,
    VerifyRequest,
    VerifyResponse,
    WrapRequest,
    WrapResponse,
    parse_kid,
)
from ron.proto.kmsaudit import AuditPage, AuditProof, RotateLogKeyRequest, RotateLogKeyResponse
from ron.services.kms.model import Caller
from ron.services.kms.ports import AuditLog
from ron.web import Call, Endpoint, Raw

PATH = "/v1/kms"
OPENAPI_PATH = "/openapi.yaml"
SPAN = "svc.kms.http"
_KEYS = f"{PATH}/keys/"
CACHE_AGE_HEADER = "X-KMS-Cache-Age"
# Longer than a backend takes for anything (`lanes`), and less than a client waits.
DEADLINE_S = 5.0
# A token may take its time to make a key; it is made even if nobody waits any more.
SLOW_DEADLINE_S = 20.0
PAGE = 100
MOST_ENTRIES = 1000
_TENANT = frozenset({"tenant"})
_NUMBER_DIGITS = 15


class KmsDesk(Protocol):
    """Who does it: the service. Every call raises `RonError`."""

    async def sign(self, caller: Caller, body: SignRequest) -> SignResponse: ...
    async def verify(self, caller: Caller, body: VerifyRequest) -> VerifyResponse: ...
    async def wrap(self, caller: Caller, body: WrapRequest) -> WrapResponse: ...
    async def unwrap(self, caller: Caller, body: UnwrapRequest) -> UnwrapResponse: ...
    async def create(self, caller: Caller, body: CreateKeyRequest) -> CreateKeyResponse: ...
    async def rotate(self, caller: Caller, kid: Kid, body: RotateRequest) -> RotateResponse: ...
    async def destroy(self, caller: Caller, kid: Kid, body: DestroyRequest) -> DestroyResponse: ...
    async def get(self, caller: Caller, kid: Kid) -> KeyView: ...
    async def list(self, caller: Caller, tenant: str | None, after: str) -> KeyList: ...
    async def attest(self, caller: Caller, kid: Kid | None) -> AttestResponse: ...

    async def rotate_log_key(self, caller: Caller, body: RotateLogKeyRequest) -> RotateLogKeyResponse: ...

    @property
    def log(self) -> AuditLog:
        """The audit log."""


def endpoints(desk: KmsDesk, openapi: Callable[[], bytes]) -> list[Endpoint]:
    """The routes of `desk`. openapi: the text of its description."""
    api, log = _Api(desk), _Log(desk)

    def endpoint(method: str, path: str, scope: str, handler: Callable[..., Any], body: Any = None) -> Endpoint:
        slow = scope in {"rotate", "destroy"}
        return Endpoint(
            method=method,
            path=f"{PATH}{path}",
            scope=f"kms:{scope}",
            handler=handler,
            body=body,
            enforces=_TENANT,
            deadline_s=SLOW_DEADLINE_S if slow else DEADLINE_S,
            writes=scope in {"sign", "wrap", "unwrap", "rotate", "destroy"},
            hot=method == "POST" and "<" not in path and path != "/keys",
            bare=body is RotateRequest,
            span=SPAN,
        )

    return [
        endpoint("POST", "/sign", "sign", api.sign, SignRequest),
        endpoint("POST", "/verify", "verify", api.verify, VerifyRequest),
        endpoint("POST", "/wrap", "wrap", api.wrap, WrapRequest),
        endpoint("POST", "/unwrap", "unwrap", api.unwrap, UnwrapRequest),
        endpoint("POST", "/keys", "rotate", api.create, CreateKeyRequest),
        endpoint("GET", "/keys", "read", api.list),
        endpoint("GET", "/keys/<path:kid>", "read", api.get),
        endpoint("DELETE", "/keys/<path:kid>", "destroy", api.destroy, DestroyRequest),
        endpoint("POST", "/keys/<path:kid>/rotate", "rotate", api.rotate, RotateRequest),
        endpoint("GET", "/attest", "read", api.attest),
        endpoint("GET", "/audit/checkpoint", "audit", log.checkpoint),
        endpoint("GET", "/audit/witnessed", "audit", log.witnessed),
        endpoint("GET", "/audit/entries", "audit", log.entries),
        endpoint("GET", "/audit/proof", "audit", log.proof),
        endpoint("POST", "/audit/rotate-key", "rotate", log.rotate_key, RotateLogKeyRequest),
        Endpoint(
            method="GET",
            path=OPENAPI_PATH,
            handler=lambda _call: Raw(openapi(), "application/yaml"),
            scope=None,
            hot=True,
        ),
    ]


# What each call answers, for the OpenAPI file; None where it is no JSON.
ANSWERS: dict[tuple[str, str], type[msgspec.Struct]] = {
    ("POST", f"{PATH}/sign"): SignResponse,
    ("POST", f"{PATH}/verify"): VerifyResponse,
    ("POST", f"{PATH}/wrap"): WrapResponse,
    ("POST", f"{PATH}/unwrap"): UnwrapResponse,
    ("POST", f"{PATH}/keys"): CreateKeyResponse,
    ("GET", f"{PATH}/keys"): KeyList,
    ("GET", f"{PATH}/keys/<path:kid>"): KeyView,
    ("DELETE", f"{PATH}/keys/<path:kid>"): DestroyResponse,
    ("POST", f"{PATH}/keys/<path:kid>/rotate"): RotateResponse,
    ("GET", f"{PATH}/attest"): AttestResponse,
    ("GET", f"{PATH}/audit/entries"): AuditPage,
    ("GET", f"{PATH}/audit/proof"): AuditProof,
    ("POST", f"{PATH}/audit/rotate-key"): RotateLogKeyResponse,
}


class _Api:
    def __init__(self, desk: KmsDesk) -> None:
        self._desk = desk

    async def sign(self, call: Call, body: SignRequest) -> SignResponse:
        return await self._desk.sign(_caller(call), body)

    async def verify(self, call: Call, body: VerifyRequest) -> VerifyResponse | Raw:
        answer = await self._desk.verify(_caller(call), body)
        if answer.cache_age_ms is None:
            return answer
        headers = {CACHE_AGE_HEADER: str(answer.cache_age_ms)}
        return Raw(msgspec.json.encode(answer), "application/json", headers=headers)

    async def wrap(self, call: Call, body: WrapRequest) -> WrapResponse:
        return await self._desk.wrap(_caller(call), body)

    async def unwrap(self, call: Call, body: UnwrapRequest) -> UnwrapResponse:
        return await self._desk.unwrap(_caller(call), body)

    async def create(self, call: Call, body: CreateKeyRequest) -> CreateKeyResponse:
        return await self._desk.create(_caller(call), body)

    async def rotate(self, call: Call, body: RotateRequest | None = None, *, kid: str) -> RotateResponse:
        key = parse_kid(kid)
        if key.version:
            raise bad_request("a key is rotated, not a version of it", "leave out #vN")
        return await self._desk.rotate(_caller(call), key, body or RotateRequest())

    async def destroy(self, call: Call, body: DestroyRequest, kid: str) -> DestroyResponse:
        return await self._desk.destroy(_caller(call), parse_kid(kid), body)

    async def get(self, call: Call, kid: str) -> KeyView:
        return await self._desk.get(_caller(call), parse_kid(kid))

    async def list(self, call: Call) -> KeyList:
        tenant = call.asked("tenant")
        if tenant is not None:
            tenant = _tenant(tenant)
        after = call.asked("after") or ""
        return await self._desk.list(_caller(call), tenant, str(parse_kid(after)) if after else "")

    async def attest(self, call: Call) -> AttestResponse:
        kid = call.asked("kid")
        return await self._desk.attest(_caller(call), parse_kid(kid) if kid is not None else None)


class _Log:
    """What an auditor reads. The log has all tenants' records: a capability of one tenant does not reach it."""

    def __init__(self, desk: KmsDesk) -> None:
        self._desk = desk

    def checkpoint(self, call: Call) -> Raw:
        log = self._of(call)
        latest = log.latest()
        if latest is None:
            raise not_found("there is no checkpoint yet")
        return Raw(latest.note, "text/plain; charset=utf-8")

    def witnessed(self, call: Call) -> Raw:
        found = self._of(call).witnessed()
        if found is None:
            raise not_found("no witness has signed yet")
        return Raw(found.note, "text/plain; charset=utf-8")

    async def rotate_key(self, call: Call, body: RotateLogKeyRequest) -> RotateLogKeyResponse:
        return await self._desk.rotate_log_key(_caller(call), body)

    def entries(self, call: Call) -> AuditPage:
        log = self._of(call)
        start, count = _number(call, "start", 0), _number(call, "count", PAGE)
        if not 1 <= count <= MOST_ENTRIES:
            raise bad_request(f"count is 1 to {MOST_ENTRIES}")
        size = log.size
        leaves = log.entries(start, count) if start < size else ()
        return AuditPage(entries=tuple(map(_b64, leaves)), start=start, size=size)

    def proof(self, call: Call) -> AuditProof:
        log = self._of(call)
        size = _number(call, "size", log.size)
        if call.asked("index") is not None:
            index = _number(call, "index", 0)
            return AuditProof(hashes=tuple(map(_b64, log.inclusion(index, size))), size=size, index=index)
        if call.asked("old") is not None:
            old = _number(call, "old", 0)
            return AuditProof(hashes=tuple(map(_b64, log.consistency(old, size))), size=size, old=old)
        raise bad_request("a proof of what?", "index and size: that a record is in; old and size: that nothing changed")

    def _of(self, call: Call) -> AuditLog:
        if _caller(call).tenants:
            call.require("tenant", "")
        return self._desk.log


def _caller(call: Call) -> Caller:
    # for log lines; it ends with the call, whose own context this is
    peer = {"peer_addr": call.peer} if call.peer else {}
    correlation.tell(request_id=call.corr_id, route=_route(call.path), **peer)
    return Caller.of(call.capability, call.corr_id)


def _route(path: str) -> str:
    """Without the key's name, which is for no log."""
    if not path.startswith(_KEYS):
        return path
    return f"{_KEYS}<kid>/rotate" if path.endswith("/rotate") else f"{_KEYS}<kid>"


def _tenant(text: str) -> str:
    try:
        tenant: str = msgspec.convert(text, TenantName)
    except msgspec.ValidationError:
        raise bad_request("tenant is no tenant's name") from None
    return tenant


def _number(call: Call, name: str, default: int) -> int:
    text = call.asked(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= _NUMBER_DIGITS):
        raise bad_request(f"{name} is a whole number")
    return int(text)


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
