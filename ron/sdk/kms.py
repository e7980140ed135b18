"""The key service as a program uses it: sign, verify, wrap, unwrap, and the life of keys.

In: an `Api` on the service's control socket (`kms_at`) or any other transport. Out: answers of `ron.proto.kms`. What is
signed is hashed here: payloads do not travel. Whatever makes something has an op_id, which its tries share.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec
from blake3 import blake3

from ron.proto.errors import bad_request
from ron.proto.kms import (
    AttestResponse,
    CreateKeyRequest,
    CreateKeyResponse,
    DestroyRequest,
    DestroyResponse,
    KemMode,
    KeyAlg,
    KeyList,
    KeyView,
    RotateRequest,
    RotateResponse,
    Signature,
    SignPolicy,
    SignRequest,
    SignResponse,
    UnwrapRequest,
    UnwrapResponse,
    VerifyMode,
    VerifyPolicy,
    VerifyRequest,
    VerifyResponse,
    WrapRequest,
    WrapResponse,
    parse_kid,
)
from ron.proto.kmsaudit import AuditPage, AuditProof, RotateLogKeyRequest, RotateLogKeyResponse
from ron.sdk.client import Api
from ron.sdk.onions import new_op_id
from ron.sdk.transport import unix_http

# Longer than the service takes for anything.
DEADLINE_S = 25.0
_PATH = "/v1/kms"
_Body = TypeVar("_Body", bound=msgspec.Struct)
_Answer = TypeVar("_Answer", bound=msgspec.Struct)


def kms_at(reactor: Any, socket: Path, capability: str | None, *, tries: int = 5) -> Api:
    """An `Api` on the key service that listens on the Unix socket `socket`, for `Kms`."""
    return Api(reactor, unix_http(reactor, socket), "http://kms", capability, deadline_s=DEADLINE_S, tries=tries)


def payload_b3(payload: bytes) -> str:
    """What stands for a payload: its BLAKE3-256 in hex. These 32 bytes are what is signed."""
    return blake3(payload).hexdigest()


class Kms:
    """Calls of one service; each raises `RonError`, BadRequest without asking for what cannot be.

    op_id: a UUID of the caller's, for an act that outlives this process. The service remembers those that make or
    destroy for 30 days, over restarts too; those of signatures while it runs, the last 8192.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    # Using keys

    async def sign(
        self, kid: str, payload_b3: str, *, produce_hybrid: bool | None = None, op_id: str | None = None
    ) -> SignResponse:
        """Signatures of the 32 bytes that `payload_b3` spells. Needs scope `kms:sign`."""
        policy = SignPolicy(produce_hybrid=produce_hybrid) if produce_hybrid is not None else None
        body = SignRequest(kid_or_set=kid, payload_b3=payload_b3, policy=policy, op_id=op_id or new_op_id())
        return await self._post("/sign", SignResponse, body)

    async def verify(
        self,
        payload_b3: str,
        sigs: Sequence[Signature],
        *,
        kid: str | None = None,
        mode: VerifyMode | None = None,
    ) -> VerifyResponse:
        """Do they hold, and satisfy `mode`? None leaves it to the tenant's phase. Needs scope `kms:verify`."""
        policy = VerifyPolicy(mode=mode) if mode is not None else None
        body = VerifyRequest(payload_b3=payload_b3, sigs=tuple(sigs), policy=policy, kid_or_set=kid)
        return await self._post("/verify", VerifyResponse, body)

    async def wrap(
        self, kid: str, key: bytes | None = None, *, size: int | None = None, kem_mode: KemMode = "hybrid"
    ) -> WrapResponse:
        """`key`, or `size` fresh random bytes, sealed for `kid`. Needs scope `kms:wrap`."""
        text = base64.b64encode(key).decode() if key is not None else None
        body = WrapRequest(kid=kid, plaintext_key_b64=text, size=size, kem_mode=kem_mode)
        return await self._post("/wrap", WrapResponse, body)

    async def unwrap(self, kid: str, wrapped_b64: str) -> UnwrapResponse:
        """The key that was wrapped. Needs scope `kms:unwrap`."""
        return await self._post("/unwrap", UnwrapResponse, UnwrapRequest(kid=kid, wrapped_b64=wrapped_b64))

    # Keys

    async def create(
        self,
        tenant: str,
        purpose: str,
        alg: KeyAlg = "hybrid",
        *,
        policy_hints: dict[str, Any] | None = None,
        op_id: str | None = None,
    ) -> CreateKeyResponse:
        """A new key. Needs scope `kms:rotate`, as `rotate` does."""
        body = CreateKeyRequest(
            tenant=tenant, purpose=purpose, alg=alg, policy_hints=policy_hints, op_id=op_id or new_op_id()
        )
        return await self._post("/keys", CreateKeyResponse, body)

    async def rotate(self, kid: str, *, op_id: str | None = None) -> RotateResponse:
        """A new version of the key, whichever version `kid` names."""
        key = parse_kid(kid).key
        return await self._post(f"{_key(key)}/rotate", RotateResponse, RotateRequest(op_id=op_id or new_op_id()))

    async def get(self, kid: str) -> KeyView:
        """A key at the version that `kid` names, or its newest. Needs `kms:read`, as `all_keys` and `attest` do."""
        return await self._api.call("GET", _PATH + _key(kid), KeyView)

    async def all_keys(self, tenant: str | None = None) -> AsyncIterator[KeyView]:
        """All keys, of one tenant or of those the capability reaches, page after page."""
        after: str | None = None
        while True:
            asked = {name: text for name, text in (("tenant", tenant), ("after", after)) if text is not None}
            page = await self._api.call("GET", f"{_PATH}/keys?{urlencode(asked)}", KeyList)
            for key in page.keys:
                yield key
            # a page that leads back would go round for ever
            if page.next is None or page.next == after:
                return
            after = page.next

    async def destroy(self, kid: str, proposal: str, *, op_id: str | None = None) -> DestroyResponse:
        """The private halves are gone for good. proposal: the executed one that allows it. Needs `kms:destroy`."""
        body = _checked(DestroyRequest(proposal=proposal, op_id=op_id or new_op_id()))
        return await self._api.call("DELETE", _PATH + _key(kid), DestroyResponse, body)

    async def attest(self, kid: str | None = None) -> AttestResponse:
        """Evidence of where a key lives, or the backend as a whole."""
        query = f"?{urlencode({'kid': str(parse_kid(kid))})}" if kid is not None else ""
        return await self._api.call("GET", f"{_PATH}/attest{query}", AttestResponse)

    # The audit log; needs scope `kms:audit`

    async def checkpoint(self) -> bytes:
        """The newest signed head, a C2SP checkpoint."""
        return (await self._api.fetch("GET", f"{_PATH}/audit/checkpoint")).body

    async def witnessed(self) -> bytes:
        """The newest that witnesses have signed, too. Raises NotFound where none has."""
        return (await self._api.fetch("GET", f"{_PATH}/audit/witnessed")).body

    async def rotate_log_key(self, proposal: str | None = None, *, op_id: str | None = None) -> RotateLogKeyResponse:
        """Another key for the log. Needs `kms:rotate`, and where there is a quorum its decision."""
        body = _checked(RotateLogKeyRequest(proposal=proposal, op_id=op_id or new_op_id()))
        return await self._api.call("POST", f"{_PATH}/audit/rotate-key", RotateLogKeyResponse, body)

    async def entries(self, start: int, count: int) -> AuditPage:
        """Records as they are hashed."""
        return await self._api.call("GET", f"{_PATH}/audit/entries?start={start}&count={count}", AuditPage)

    async def inclusion(self, index: int, size: int) -> AuditProof:
        """That record `index` is in the first `size`."""
        return await self._api.call("GET", f"{_PATH}/audit/proof?index={index}&size={size}", AuditProof)

    async def consistency(self, old: int, size: int) -> AuditProof:
        """That the first `old` records of `size` are what they were."""
        return await self._api.call("GET", f"{_PATH}/audit/proof?old={old}&size={size}", AuditProof)

    async def _post(self, path: str, answer: type[_Answer], body: msgspec.Struct) -> _Answer:
        return await self._api.call("POST", _PATH + path, answer, _checked(body))


def _key(kid: str) -> str:
    """The path of a key. Raises `RonError` (BadRequest) for what is no key's name."""
    return f"/keys/{quote(str(parse_kid(kid)), safe='')}"


def _checked(body: _Body) -> _Body:
    """`body` if its values are within their bounds, which msgspec looks at only when it decodes."""
    try:
        return msgspec.convert(msgspec.to_builtins(body), type(body))
    except msgspec.ValidationError as error:
        raise bad_request(f"the service would not take that: {error}") from None
