"""What can be wrong with a key store at rest: told at `open`, with the key it is about and the way out."""

from __future__ import annotations

from ron.kernel.logs import kid_hash
from ron.proto.errors import ErrorCode, RonError


class CustodyError(RonError):
    """The store is not opened as it is. kid: whose file it is about; empty for the store as a whole.

    The message has its hash only: readiness is shown to anybody, and a refusal to every tenant (I-9).
    """

    code_of_kind = ErrorCode.STORE_UNAVAILABLE

    def __init__(self, message: str, *, hint: str, kid: str = "") -> None:
        super().__init__(self.code_of_kind, f"{message} (kid_hash {kid_hash(kid)})" if kid else message, hint=hint)
        self.kid = kid


class DamagedError(CustodyError):
    """A file is missing, cut short or changed."""


class ForeignFileError(CustodyError):
    """A file lies there that this store did not write, or wrote and gave up long ago."""


class LockedError(CustodyError):
    """The passphrase is wrong, or not to be had."""


class RolledBackError(CustodyError):
    """An older copy was put in place of what was there (I-6). Not retried: somebody has to look at it."""

    code_of_kind = ErrorCode.CONFLICT
