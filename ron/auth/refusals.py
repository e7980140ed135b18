"""Why a token was not admitted: one type, a reason to count by, and the status it becomes.

In: a reason from `REASONS` and words for people. Out: `Refused`, a `RonError` with 401, 403, 429 or 503.
"""

from __future__ import annotations

from ron.proto.errors import ErrorCode, RonError

# Label values of `auth_refused_total`; a closed set, so that hostile input cannot grow the metric.
REASONS = (
    "missing",
    "too_long",
    "malformed",
    "forged",
    "retired",
    "expired",
    "revoked",
    "audience",
    "scope",
    "method",
    "path",
    "resource",
    "rate",
    "bytes",
    "unreadable",
)


class Refused(RonError):
    """A refusal by the authority; `reason` is one of `REASONS`."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        hint: str | None = None,
        code: ErrorCode = ErrorCode.NO_CAPABILITY,
        status: int | None = None,
        retry_after_s: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(code, message, hint=hint, status=status, retry_after_s=retry_after_s, headers=headers)
        self.reason = reason


def unauthorized(reason: str, message: str, hint: str) -> Refused:
    """401: there is no usable token."""
    return Refused(reason, message, hint=hint, status=401, headers={"WWW-Authenticate": 'Bearer realm="ron"'})


def forbidden(reason: str, message: str) -> Refused:
    """403: a good token that does not cover the call."""
    return Refused(reason, message, hint="mint a capability that covers this call", status=403)


def spent(reason: str, message: str, retry_after_s: int) -> Refused:
    """429: the token's own allowance is used up; it comes back after `retry_after_s` seconds."""
    return Refused(reason, message, code=ErrorCode.BACKPRESSURE, retry_after_s=retry_after_s)


def unreadable(cause: RonError) -> Refused:
    """503: who has been revoked cannot be told, so nobody is let in."""
    return Refused(
        "unreadable",
        f"capabilities cannot be checked: {cause.message}",
        hint=cause.hint,
        code=ErrorCode.STORE_UNAVAILABLE,
    )
