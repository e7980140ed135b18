"""What keys of people are called, and how they are told no. In: public keys. Out: names, errors. Pure."""

from __future__ import annotations

from ron.proto.errors import ErrorCode, RonError
from ron.proto.governance import Role
from ron.services.kms.governance.canonical import digest

AUDITOR: Role = "auditor"


def key_id(public: bytes | str) -> str:
    """The name of a public key (32 bytes, or those in hex): 32 characters."""
    raw = bytes.fromhex(public) if isinstance(public, str) else public
    return digest(raw).hex()[:32]


def refused(message: str, hint: str | None = None) -> RonError:
    """403: not allowed by the people who would have to."""
    return RonError(ErrorCode.NO_CAPABILITY, message, hint=hint)
