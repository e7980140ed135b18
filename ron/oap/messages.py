"""What applications see of OAP/1: a request, an answer; no frames.

In: the payload of a whole conversation, put together again. Out: the same for the way back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from ron.kernel.tracing import Span

# A push of the server: app_proto_id, code and payload of an EVENT. False: dropped, for the peer reads slowly.
Push = Callable[[int, int, bytes], bool]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request, whole. code: what is asked for, as its protocol has it. tenant_id: 0 for none. cap: unchecked.

    e2e: the payload is sealed for somebody else. corr_id: UUID of what caused it. span: of this request, when it is
    traced. peer: as `ron.kernel.limits.peer_name` has it. identity: of the peer's certificate, None without mTLS.
    """

    app_proto_id: int
    code: int
    tenant_id: int
    cap: bytes
    payload: bytes
    e2e: bool
    corr_id: str
    peer: str
    identity: str | None
    push: Push
    span: Span | None = None


class Response(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer, whole. code: 0 or 2xx; for anything else raise `RonError`. compress: where the peer takes COMP.

    Compression lets whoever sees lengths learn of secrets that stand beside text of a stranger: not for such payloads.
    """

    payload: bytes = b""
    code: int = 0
    e2e: bool = False
    compress: bool = False


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a server pushes. number: the `corr_id` of the frame, that of the request it belongs to."""

    app_proto_id: int
    code: int
    payload: bytes
    number: int


Handler = Callable[[Request], Awaitable[Response]]
