"""What a capability may be narrowed by. Pure: text in, decisions out (DESIGN §4 Capabilities).

A caveat is one line, `name = value`. A name that is not in `KNOWN` is refused: what is not understood is not granted.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

from ron.proto.clock import rfc3339

# Checked by the authority itself, for every call.
GENERAL = frozenset({"aud", "scope", "method", "path", "exp"})
# Allowances the authority keeps count of, per capability.
ALLOWANCES = frozenset({"rps", "bytes_per_day"})
# Name a resource; the endpoint must say that it enforces them, or the call is refused.
RESOURCE = frozenset({"tenant", "app", "topic", "holder"})
KNOWN = GENERAL | ALLOWANCES | RESOURCE
MAX_CAVEAT_CHARS = 512
# One spelling for each number: no sign, no exponent, no leading zeros, ASCII digits only.
_RPS = re.compile(r"(0|[1-9][0-9]{0,6})(\.[0-9]{1,3})?")
_BYTES = re.compile(r"[1-9][0-9]{0,14}")
# A public holder key; whether it is one is seen where it is used (docs/federation.rst).
_HOLDER = re.compile(r"[0-9a-f]{64}")


class Caveat(NamedTuple):
    """One predicate. `str()` gives the form that is signed."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.name} = {self.value}"


def parse_caveat(text: str) -> Caveat:
    """`text` as a caveat. Raises ValueError on a form or name that is not understood."""
    name, separator, value = text.partition(" = ")
    if not separator or name not in KNOWN or not value or value != value.strip() or len(text) > MAX_CAVEAT_CHARS:
        raise ValueError("caveat not understood")
    if name in _VALUES:
        _VALUES[name](value)
    return Caveat(name, value)


def scope_allows(pattern: str, scope: str) -> bool:
    """True when the comma-separated `pattern` (`mailbox:send,edge:*` or `*`) covers `scope`."""
    family = scope.partition(":")[0]
    return any(part in {"*", scope, f"{family}:*"} for part in scope_parts(pattern))


def scope_parts(pattern: str) -> list[str]:
    """The single scopes and families of a comma-separated `pattern`."""
    return [part.strip() for part in pattern.split(",")]


def path_allows(prefix: str, path: str) -> bool:
    """True when `path` is `prefix` or lies below it; `/v1` covers `/v1/send` and not `/v10`."""
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")


def expired(value: str, now_s: float) -> bool:
    """True when the RFC 3339 instant `value` has passed at Unix time `now_s`."""
    return now_s >= instant_s(value)


def expiry(now_s: float, ttl_s: float) -> Caveat:
    """The `exp` caveat that ends `ttl_s` seconds after `now_s`, rounded down to whole seconds."""
    return Caveat("exp", rfc3339(now_s + ttl_s))


def instant_s(value: str) -> float:
    """The RFC 3339 instant `value` in Unix seconds. Raises ValueError on anything else."""
    instant = datetime.fromisoformat(value)
    if instant.tzinfo is None:
        raise ValueError("exp needs a time zone")
    return instant.timestamp()


def requests_per_s(value: str) -> float:
    """The value of an `rps` caveat: 0.001 to 9999999.999. Raises ValueError on anything else."""
    if not _RPS.fullmatch(value) or not float(value) > 0:
        raise ValueError("rps is a decimal number over 0")
    return float(value)


def bytes_a_day(value: str) -> int:
    """The value of a `bytes_per_day` caveat: 1 to 10¹⁵−1. Raises ValueError on anything else."""
    if not _BYTES.fullmatch(value):
        raise ValueError("bytes_per_day is a whole number over 0")
    return int(value)


def holder_key(value: str) -> bytes:
    """The value of a `holder` caveat: 32 bytes in lower-case hex. Raises ValueError on anything else."""
    if not _HOLDER.fullmatch(value):
        raise ValueError("holder is 64 hex digits")
    return bytes.fromhex(value)


_VALUES = {"holder": holder_key, "exp": instant_s, "rps": requests_per_s, "bytes_per_day": bytes_a_day}
