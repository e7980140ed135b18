"""Exit codes of `ronctl` and of the daemons' start-up checks. Stable: scripts branch on them (docs/ronctl.rst)."""

from __future__ import annotations

import enum

from ron.proto.errors import ErrorCode, RonError


class Exit(enum.IntEnum):
    """What happened, for scripts."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INVALID = 3
    UNREACHABLE = 4
    REFUSED = 5
    TIMEOUT = 6
    NOT_FOUND = 7
    UNAVAILABLE = 8
    CUT_OFF = 9


_BY_CODE = {
    ErrorCode.BAD_REQUEST: Exit.INVALID,
    ErrorCode.TOO_LARGE: Exit.INVALID,
    ErrorCode.UNSUPPORTED: Exit.INVALID,
    ErrorCode.CONFLICT: Exit.INVALID,
    ErrorCode.NO_CAPABILITY: Exit.REFUSED,
    ErrorCode.ATTESTATION_MISSING: Exit.REFUSED,
    ErrorCode.TIMEOUT: Exit.TIMEOUT,
    ErrorCode.NOT_FOUND: Exit.NOT_FOUND,
    ErrorCode.STORE_UNAVAILABLE: Exit.UNAVAILABLE,
    ErrorCode.BACKPRESSURE: Exit.UNAVAILABLE,
}


class Unreachable(RonError):
    """The other side does not answer at all: no node, no tor, no network."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(ErrorCode.STORE_UNAVAILABLE, message, hint=hint)


def exit_code(error: RonError) -> Exit:
    """The exit code that stands for `error`."""
    if isinstance(error, Unreachable):
        return Exit.UNREACHABLE
    return _BY_CODE.get(error.code, Exit.FAILED)
