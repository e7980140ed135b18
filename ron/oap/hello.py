"""What the two ends tell each other first, and the JSON that rides in frames of protocol 0. Pure.

In: what one end offers, a refusal, where a request comes from. Out: payloads, or `RonError` for what is none.
"""

from __future__ import annotations

import contextlib
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from ron.oap.frames import CHUNK_BYTES, FIXED_BYTES, MAX_FRAME_BYTES, VERSION
from ron.proto.errors import ErrorBody, ErrorCode, RonError, bad_request, envelope, from_envelope

# `app_proto_id` of frames that are about the connection; applications have all others.
CONTROL = 0
# What an EVENT of protocol 0 is, by its `code`. All of them are ours alone; whoever does not know one ignores it.
CONTEXT, ACK, CANCEL = 1, 2, 3
MAX_INFLIGHT = 64
# A peer must take at least so much in a frame for chunks of a sensible size.
MIN_FRAME_BYTES = FIXED_BYTES + 1024
MAX_CONTROL_BYTES = 4096
# Flags an end may or may not understand; the other four every end does.
OPTIONAL_FLAGS = ("EVENT", "ACK_REQ", "COMP", "APP_E2E")
T = TypeVar("T")


class HelloRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of the HELLO a connection begins with: nothing, or a JSON object of which nothing is needed.

    This and the answer are where versions meet, so that fields of later ones are no error here.
    """


class HelloAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What this end offers. max_frame: bytes behind a frame's length. max_inflight: requests under way at a time.

    supported_flags: of `OPTIONAL_FLAGS`. transports: names like `tcp+tls`, `unix`, `tor`. pq: whether the transport's
    key exchange withstands quantum computers.
    """

    server_version: Annotated[str, Meta(max_length=64)]
    max_frame: Annotated[int, Meta(ge=MIN_FRAME_BYTES, le=2**32 - 1)] = MAX_FRAME_BYTES
    max_inflight: Annotated[int, Meta(ge=1, le=2**16)] = MAX_INFLIGHT
    supported_flags: Annotated[tuple[str, ...], Meta(max_length=16)] = OPTIONAL_FLAGS
    oap_versions: Annotated[tuple[int, ...], Meta(min_length=1, max_length=16)] = (VERSION,)
    transports: Annotated[tuple[str, ...], Meta(max_length=16)] = ("tcp+tls",)
    pq: bool = False

    @property
    def chunk_bytes(self) -> int:
        """How large the pieces of a long payload may be for this end."""
        return min(CHUNK_BYTES, self.max_frame - FIXED_BYTES)


class Context(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Payload of a CONTEXT event: the headers of `ron.kernel.tracing` for the request that follows it."""

    corr_id: str = msgspec.field(name="x-corr-id", default="")
    traceparent: str = ""


class Ack(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Payload of an ACK event: bytes of the conversation's payload, as sent, that have arrived so far."""

    received: int


class _Refusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Payload of an answer whose code is no success. retry_after_s: as in HTTP's header."""

    error: ErrorBody
    retry_after_s: int | None = None


def encode(payload: msgspec.Struct) -> bytes:
    """One of the above as JSON."""
    return msgspec.json.encode(payload)


def decode(payload: bytes, of: type[T]) -> T:
    """The `of` in `payload`. Raises `RonError` (BadRequest) for anything else, and for more than 4 KiB."""
    if len(payload) > MAX_CONTROL_BYTES:
        raise bad_request(f"{of.__name__}: {len(payload)} bytes")
    try:
        return msgspec.json.decode(payload, type=of)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise bad_request(f"no {of.__name__}: {type(error).__name__}") from None


def check_request(payload: bytes) -> HelloRequest:
    """What a HELLO says. Raises `RonError` (BadRequest)."""
    return decode(payload, HelloRequest) if payload else HelloRequest()


def check_answer(code: int, payload: bytes) -> HelloAnswer:
    """What the other end offers. Raises `RonError`: what it answered, or Unsupported when it speaks no version 1."""
    if is_refusal(code):
        raise error_of(code, payload)
    answer = decode(payload, HelloAnswer)
    if VERSION not in answer.oap_versions:
        raise RonError(ErrorCode.UNSUPPORTED, f"the peer speaks OAP {answer.oap_versions}, not {VERSION}")
    return answer


def is_refusal(code: int) -> bool:
    """True for the code of an answer that is no success: 0 and 2xx are."""
    return not (code == 0 or 200 <= code < 300)


def refusal(error: RonError, *, ts: str, request_id: str) -> bytes:
    """The payload that says `error`; its code is `error.status`. ts: RFC 3339. request_id: the correlation id."""
    whole = envelope(error, ts=ts, request_id=request_id)
    return encode(_Refusal(error=whole.error, retry_after_s=error.retry_after_s))


def error_of(code: int, payload: bytes) -> RonError:
    """The error in an answer, as it was raised over there; `Internal` when it carries none we know."""
    error = from_envelope(payload, code)
    with contextlib.suppress(msgspec.MsgspecError, RecursionError, ValueError):  # nobody says when to come back
        error.retry_after_s = msgspec.json.decode(payload, type=_Refusal).retry_after_s
    return error
