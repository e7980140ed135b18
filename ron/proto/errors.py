"""The one error taxonomy of the house, and its envelope on the wire (ron-kms API §3, Appendix A).

A room raises a `RonError` with a code; `ron.web` maps it to a status and an envelope, `ron.sdk` maps the
envelope back to the same type, and `ronctl` maps it to an exit code.
"""

from __future__ import annotations

import enum

import msgspec


class ErrorCode(enum.StrEnum):
    """Stable codes; clients branch on these and never on the message."""

    NO_CAPABILITY = "NoCapability"
    NOT_FOUND = "NotFound"
    BAD_REQUEST = "BadRequest"
    STORE_UNAVAILABLE = "StoreUnavailable"
    ATTESTATION_MISSING = "AttestationMissing"
    BACKPRESSURE = "Backpressure"
    TIMEOUT = "Timeout"
    CONFLICT = "Conflict"
    TOO_LARGE = "TooLarge"
    UNSUPPORTED = "Unsupported"
    INTERNAL = "Internal"


HTTP_STATUS: dict[ErrorCode, int] = {
    ErrorCode.NO_CAPABILITY: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.BAD_REQUEST: 400,
    ErrorCode.STORE_UNAVAILABLE: 503,
    ErrorCode.ATTESTATION_MISSING: 403,
    ErrorCode.BACKPRESSURE: 429,
    ErrorCode.TIMEOUT: 504,
    ErrorCode.CONFLICT: 409,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.UNSUPPORTED: 400,
    ErrorCode.INTERNAL: 500,
}

RETRYABLE = frozenset({ErrorCode.STORE_UNAVAILABLE, ErrorCode.BACKPRESSURE, ErrorCode.TIMEOUT})


class RonError(Exception):
    """An error with a stable code, a redacted message for people and, where there is one, the way out.

    `status` overrides the code's usual HTTP status (401 for a missing capability, 405 for a wrong method).
    `headers` are added to the HTTP answer (`Allow`, `Content-Range`).
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        hint: str | None = None,
        status: int | None = None,
        retry_after_s: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.status = status if status is not None else HTTP_STATUS[code]
        self.retry_after_s = retry_after_s
        self.headers = headers or {}

    def one_line(self) -> str:
        """What happened and the way out, for a terminal."""
        return f"{self.message}; fix: {self.hint}" if self.hint else self.message

    @property
    def retryable(self) -> bool:
        """True when the same request may succeed later without a change."""
        return self.code in RETRYABLE


def bad_request(message: str, hint: str | None = None) -> RonError:
    """400: the request is malformed; repeating it will not help."""
    return RonError(ErrorCode.BAD_REQUEST, message, hint=hint)


def not_found(message: str) -> RonError:
    """404: nothing lives under that name."""
    return RonError(ErrorCode.NOT_FOUND, message)


def too_large(message: str, hint: str | None = None) -> RonError:
    """413: over a size limit; refused before work was done."""
    return RonError(ErrorCode.TOO_LARGE, message, hint=hint)


def conflict(message: str, hint: str | None = None) -> RonError:
    """409: the request contradicts what is already there."""
    return RonError(ErrorCode.CONFLICT, message, hint=hint)


def backpressure(message: str) -> RonError:
    """429: a bounded queue is full; come back after `Retry-After`."""
    return RonError(ErrorCode.BACKPRESSURE, message)


def unavailable(message: str, hint: str | None = None) -> RonError:
    """503: something this request stands on is down; come back after `Retry-After`."""
    return RonError(ErrorCode.STORE_UNAVAILABLE, message, hint=hint)


class ErrorBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Inside of the envelope. `ts` is RFC 3339 UTC; `request_id` is in the server's log."""

    code: str
    message: str
    retryable: bool
    ts: str
    request_id: str
    hint: str | None = None


class ErrorEnvelope(msgspec.Struct):
    """`{"error": {...}}`, the body of every answer that is not 2xx or 3xx."""

    error: ErrorBody


def envelope(error: RonError, *, ts: str, request_id: str) -> ErrorEnvelope:
    """The wire form of `error`."""
    return ErrorEnvelope(
        ErrorBody(
            code=error.code.value,
            message=error.message,
            retryable=error.retryable,
            hint=error.hint,
            ts=ts,
            request_id=request_id,
        )
    )


def from_envelope(body: bytes, status: int) -> RonError:
    """The error a peer sent, as the type it was raised as. A body that is no envelope becomes `Internal`."""
    try:
        error = msgspec.json.decode(body, type=ErrorEnvelope).error
        return RonError(ErrorCode(error.code), error.message, hint=error.hint, status=status)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return RonError(ErrorCode.INTERNAL, f"answer {status} without an error envelope", status=status)
