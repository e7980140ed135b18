"""What is refused of consensuses, descriptors and signers, each with a reason that a metric can count.

In: nothing. Out: `Refused`, a `RonError` (BadRequest), and its `Reason`.
"""

from __future__ import annotations

import enum

from ron.proto.errors import ErrorCode, RonError


class Reason(enum.StrEnum):
    """Why: a metric's label."""

    TOO_LONG = "too_long"
    """More bytes, or more introduction points, than tor allows; looked at no further."""
    MALFORMED = "malformed"
    """Not of the form, truncated, or with a part that no tor would have written."""
    STRANGER = "stranger"
    """Not certified by the address it is said to be of, or not for a time period that is asked for."""
    BAD_SIGNATURE = "bad_signature"
    """A signature on it does not verify."""
    OLD_REVISION = "old_revision"
    """Its revision counter is not above the last one."""
    EXPIRED = "expired"
    """A certificate in it is past its hour."""
    SEALED = "sealed"
    """It does not open with the address alone: somebody else's, altered, or restricted to clients."""


class Refused(RonError):
    """Not used, and nothing of it. The message quotes nothing of what was refused."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(ErrorCode.BAD_REQUEST, message)
        self.reason = reason
