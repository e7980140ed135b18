"""What differs between two configs, fit for a log: no secrets, no long lists.

In: two structs of one schema. Out: `Changes`, a tuple of (key path, old text, new text).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import msgspec

from ron.kernel.config.schema import leaves, value_at

MAX_SHOWN_ITEMS = 8
_MAX_SHOWN_CHARS = 200
_SECRET = re.compile(
    r"secret|token|passw|passphrase|(^|_)pin($|_)|private|credential|capability|cookie|authorization|api_?key"
)
_USER_IN_URL = re.compile(r"://[^/@\s]*@")
REDACTED = "[redacted]"


class Change(NamedTuple):
    """One key that differs. old, new: as text, redacted."""

    key: str
    old: str
    new: str


class Changes(tuple[Change, ...]):
    """What differs, in the schema's order; empty (and false) when nothing does.

    restart_needed: those keys among them that take effect only at the next start.
    """

    restart_needed: tuple[str, ...]

    def __new__(cls, changes: Iterable[Change] = (), restart_needed: Iterable[str] = ()) -> Self:
        """A tuple of changes with the keys that need a restart."""
        self = super().__new__(cls, changes)
        self.restart_needed = tuple(restart_needed)
        return self

    def __str__(self) -> str:
        return "; ".join(f"{key}: {old} → {new}" for key, old, new in self)


def differences(old: Any, new: Any) -> Changes:
    """What differs between two structs of one type."""
    schema = leaves(type(old))
    keys = [key for key in schema if value_at(old, key) != value_at(new, key)]
    return Changes(
        (Change(key, shown(key, value_at(old, key)), shown(key, value_at(new, key))) for key in keys),
        (key for key in keys if not schema[key].live),
    )


def shown(key: str, value: Any, *, whole: bool = False) -> str:
    """`value` as JSON, without secrets (by the key's name) and credentials in URLs.

    Long lists and texts are cut, and what is cut is no JSON any more; not when `whole`.
    """
    if _SECRET.search(key.lower()):
        return f'"{REDACTED}"'
    if isinstance(value, tuple | list) and len(value) > MAX_SHOWN_ITEMS and not whole:
        return f"[{len(value)} items]"
    text = msgspec.json.encode(_redacted(msgspec.to_builtins(value))).decode()
    return text if whole or len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…"


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: REDACTED if _SECRET.search(str(k).lower()) else _redacted(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(v) for v in value]
    return _USER_IN_URL.sub(f"://{REDACTED}@", value) if isinstance(value, str) else value
