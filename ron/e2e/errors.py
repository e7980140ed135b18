"""What can go wrong while sealing and opening, as types.

Each carries a code of the house taxonomy. None carries key material, plaintext, or which cryptographic step failed:
whoever can send us envelopes and watch the errors must learn nothing but the type.
"""

from __future__ import annotations

from typing import ClassVar

from ron.proto.errors import ErrorCode, RonError


class E2EError(RonError):
    """Every error this room raises on purpose. `code` may be given where one type covers several causes."""

    default_code: ClassVar[ErrorCode] = ErrorCode.BAD_REQUEST

    def __init__(self, message: str, *, hint: str | None = None, code: ErrorCode | None = None) -> None:
        super().__init__(code or self.default_code, message, hint=hint)


class EnvelopeMalformed(E2EError):
    """The bytes are not an envelope in its one canonical form."""


class UnsupportedVersion(E2EError):
    """An envelope of a version this build does not speak."""

    default_code = ErrorCode.UNSUPPORTED


class UnsupportedSuite(E2EError):
    """An envelope or a key of a suite this build does not speak."""

    default_code = ErrorCode.UNSUPPORTED


class LimitExceeded(E2EError):
    """Over one of the limits of `ron.e2e.envelope`; refused before any cryptography was done."""

    default_code = ErrorCode.TOO_LARGE


class RecipientsInvalid(E2EError):
    """Nobody to seal to, the same key twice, or keys of different suites."""


class NotARecipient(E2EError):
    """A well-formed envelope that names other keys than ours. Key ids are public, so saying so gives nothing away."""

    default_code = ErrorCode.NOT_FOUND


class DecryptionFailed(E2EError):
    """Altered, sealed with another `aad`, or never sealed properly. It does not say which."""


class KeyInvalid(E2EError):
    """Not a usable public or private key."""


class KeyFileError(E2EError):
    """A key file that cannot be read, written, trusted or understood."""
