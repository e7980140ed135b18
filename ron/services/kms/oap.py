"""The key service over OAP/1: application protocol 0x0501, many calls under way on one connection, each answer its own.

In: requests of `ron.oap` (code: `KmsCall`, payload: the JSON of its struct, capability with START). Out: the JSON that
HTTP would answer; refusals are `ron.oap`'s envelopes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ron.oap import Request, Response
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.proto.kmscalls import OAP_PROTOCOL
from ron.proto.strictjson import strict_decoder
from ron.services.kms.door import OPERATIONS, Asked, Door, Operation, strictly

TRANSPORT = "OAP"


class OapCalls:
    """A handler for `ron.oap.OapServer`. door: made with `TRANSPORT`."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._calls: dict[int, tuple[Operation, Callable[[bytes], Any]]] = {
            one.call: (one, strict_decoder(one.body)) for one in OPERATIONS
        }

    async def __call__(self, request: Request) -> Response:
        """The answer to one request. Raises `RonError`.

        Never compressed: an unwrapped key stands beside text that its caller chose.
        """
        if request.app_proto_id != OAP_PROTOCOL:
            raise bad_request("there is no such protocol here", f"the key service is {OAP_PROTOCOL:#06x}")
        found = self._calls.get(request.code)
        if found is None:
            raise bad_request("there is no such call", "sign is 1, verify 2: see KmsCall")
        if request.e2e:
            raise RonError(ErrorCode.UNSUPPORTED, "a request for the key service is not sealed", hint="send JSON")
        operation, decode = found
        asked = Asked(
            operation=operation,
            token=_token(request.cap),
            corr_id=request.corr_id,
            size=len(request.payload),
            read=lambda: strictly(lambda: decode(request.payload or b"{}")),
            write=msgspec.json.encode,
        )
        return Response(payload=await self._door.ask(asked))


def _token(cap: bytes) -> str | None:
    """The macaroon's text, as after `Bearer`. Bytes that are no text stay what nobody minted."""
    return cap.decode("latin-1") or None
