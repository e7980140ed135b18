"""A `RonError` as gRPC tells it: a status code, a sentence, and trailing metadata with the rest. Pure.

In: an error. Out: code, details and metadata; `ron-error-code` is the code's stable name, `ron-error-bin` the envelope.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import grpc
import msgspec

from ron.proto.errors import ErrorCode, RonError, envelope

CODE_KEY = "ron-error-code"
ENVELOPE_KEY = "ron-error-bin"
CORR_ID_KEY = "x-corr-id"
# gRPC's own: clients that retry by themselves wait so long
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_STATUS = {
    ErrorCode.NO_CAPABILITY: grpc.StatusCode.PERMISSION_DENIED,
    ErrorCode.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorCode.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.STORE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.ATTESTATION_MISSING: grpc.StatusCode.PERMISSION_DENIED,
    ErrorCode.BACKPRESSURE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorCode.CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    ErrorCode.INTERNAL: grpc.StatusCode.INTERNAL,
}


class Refusal(NamedTuple):
    """How a call ends that is not answered."""

    code: grpc.StatusCode
    details: str
    metadata: tuple[tuple[str, str | bytes], ...]


def refusal(error: RonError, corr_id: str) -> Refusal:
    """`error` for the caller whose correlation id is `corr_id`."""
    code = _STATUS[error.code]
    if error.code is ErrorCode.NO_CAPABILITY and error.status == 401:
        code = grpc.StatusCode.UNAUTHENTICATED
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    body = msgspec.json.encode(envelope(error, ts=now, request_id=corr_id))
    metadata: list[tuple[str, str | bytes]] = [(CODE_KEY, error.code.value), (ENVELOPE_KEY, body)]
    if error.retry_after_s is not None:
        metadata.append((_PUSHBACK_KEY, str(1000 * error.retry_after_s)))
    return Refusal(code, error.one_line(), tuple(metadata))
