"""Why a handshake came to nothing: a reason for our own records, and one answer for the peer whatever the reason.

In: a reason from `REASONS`. Out: `Refused`, always the same 403 outside.
"""

from __future__ import annotations

from ron.proto.errors import ErrorCode, RonError

# A closed set: audit records and metrics may carry it, hostile input cannot grow it.
REASONS = (
    "address",
    "not_allowed",
    "no_holding",
    "time",
    "nonce",
    "roster",
    "channel",
    "proof",
    "session",
    "tag",
    "sequence",
    "busy",
)


class Refused(RonError):
    """`reason` is one of `REASONS` and stays here; what the peer is told does not depend on it."""

    def __init__(self, reason: str) -> None:
        super().__init__(ErrorCode.NO_CAPABILITY, "the federation handshake was refused")
        self.reason = reason
