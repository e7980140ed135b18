"""Durations and sizes as people write them: `250ms`, `10m`, `7d`; `64KB`, `1MiB`.

In: text. Out: whole milliseconds, seconds or bytes, or `UnitError`. A config key says which unit its plain numbers are
in through its type: `Milliseconds`, `Seconds`, `Bytes`, or `Meta(extra={"unit": ...})` of its own.
"""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from ron.proto.errors import ErrorCode, RonError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
MINUTE_S = 60
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S

Milliseconds = Annotated[int, Meta(extra={"unit": "ms"})]
Seconds = Annotated[int, Meta(extra={"unit": "s"})]
Bytes = Annotated[int, Meta(extra={"unit": "bytes"})]

_DURATION_MS = {"ms": 1, "s": 1000, "m": MINUTE_S * 1000, "h": HOUR_S * 1000, "d": DAY_S * 1000}
_SIZE = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": 1024 * GIB,
}
# one spelling each, no sign, no fraction, no space; twelve digits are more than any limit of ours
DURATION_PATTERN = "^[0-9]{1,12}(ms|s|m|h|d)$"
SIZE_PATTERN = "^[0-9]{1,12}(B|[KMGT]i?B)$"
_QUANTITY = re.compile(r"([0-9]{1,12})([A-Za-z]{1,3})", re.ASCII)
_LONG = {"ms": "milliseconds", "s": "seconds", "bytes": "bytes"}


class UnitError(RonError, ValueError):
    """A duration or size that is not one; the message says what would be."""

    def __init__(self, message: str, *, hint: str) -> None:
        RonError.__init__(self, ErrorCode.BAD_REQUEST, message, hint=hint)


def parse_duration_ms(text: str) -> int:
    """`250ms 5s 10m 24h 7d` in milliseconds. Raises `UnitError`."""
    return _parse(text, _DURATION_MS, "a duration", "write it like 250ms, 5s, 10m, 24h or 7d")


def parse_duration_s(text: str) -> float:
    """`250ms 5s 10m 24h 7d` in seconds. Raises `UnitError`."""
    return parse_duration_ms(text) / 1000


def parse_size(text: str) -> int:
    """`512B 64KB 16KiB 1MB 1MiB 2GiB` in bytes; KB is 1000, KiB is 1024. Raises `UnitError`."""
    return _parse(text, _SIZE, "a size", "write it like 512B, 64KB, 16KiB or 1MiB")


def parse_quantity(text: str, unit: str, *, whole: bool = True) -> float:
    """`text` as a number of `unit` (ms, s, bytes); an `int` unless `whole` is false. Raises `UnitError`."""
    if unit == "bytes":
        return parse_size(text)
    milliseconds = parse_duration_ms(text)
    if unit == "ms":
        return milliseconds
    if not whole:
        return milliseconds / 1000
    if milliseconds % 1000:
        raise UnitError(f"{text} is no whole number of {_LONG[unit]}", hint="this key counts whole seconds")
    return milliseconds // 1000


def pattern_of(unit: str) -> str:
    """The regular expression of texts that `unit` (ms, s, bytes) takes, for schemas."""
    return SIZE_PATTERN if unit == "bytes" else DURATION_PATTERN


def _parse(text: str, factors: dict[str, int], what: str, hint: str) -> int:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in factors:
        raise UnitError(f"{text[:32]!r} is not {what}", hint=hint)
    return int(match[1]) * factors[match[2]]
