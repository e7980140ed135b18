"""What a capability may be narrowed by. Pure: text in, decisions out (DESIGN §4 Capabilities).

A caveat is one line, `name = value`. A name that is not in `KNOWN` is refused: what is not understood is not granted.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

# Checked by the authority itself, for every call.
GENERAL = frozenset({"aud", "scope", "method", "path", "exp"})
# Name a resource; the endpoint must say that it enforces them, or the call is refused.
RESOURCE = frozenset({"tenant", "app", "topic", "rps", "bytes_per_day"})
KNOWN = GENERAL | RESOURCE
MAX_CAVEAT_CHARS = 512


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
    if name == "exp":
        _instant(value)
    return Caveat(name, value)


def scope_allows(pattern: str, scope: str) -> bool:
    """True when the comma-separated `pattern` (`mailbox:send,edge:*` or `*`) covers `scope`."""
    family = scope.partition(":")[0]
    return any(part in {"*", scope, f"{family}:*"} for part in (p.strip() for p in pattern.split(",")))


def path_allows(prefix: str, path: str) -> bool:
    """True when `path` is `prefix` or lies below it; `/v1` covers `/v1/send` and not `/v10`."""
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")


def expired(value: str, now_s: float) -> bool:
    """True when the RFC 3339 instant `value` has passed at Unix time `now_s`."""
    return now_s >= _instant(value).timestamp()


def expiry(now_s: float, ttl_s: float) -> Caveat:
    """The `exp` caveat that ends `ttl_s` seconds after `now_s`."""
    instant = datetime.fromtimestamp(now_s + ttl_s, tz=UTC)
    return Caveat("exp", instant.isoformat(timespec="seconds").replace("+00:00", "Z"))


def _instant(value: str) -> datetime:
    instant = datetime.fromisoformat(value)
    if instant.tzinfo is None:
        raise ValueError("exp needs a time zone")
    return instant
