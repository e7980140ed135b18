"""One value as text, in a variable or a flag, becomes the plain value a file would hold.

In: text and the type at its key. Out: a plain value for `convert`, or `ConfigError` without the text itself: it may be
a secret. Lists are comma-separated or JSON, tables JSON, truth values true/false/1/0.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import inspect

from ron.kernel.config.errors import ConfigError
from ron.kernel.config.schema import Leaf, bare, extra, item_of

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
MAX_TEXT_CHARS = 64 * 1024


def value_of(text: str, leaf: Leaf, key: str) -> Any:
    """`text` as the plain value of `key`. Raises `ConfigError`."""
    if len(text) > MAX_TEXT_CHARS:
        raise ConfigError(f"over {MAX_TEXT_CHARS} characters", key=key, hint="put it into the config file")
    return _value(text, leaf.type, leaf.unit, key)


def _value(text: str, kind: inspect.Type, unit: str | None, key: str) -> Any:
    item = item_of(kind)
    if item is not None:
        return _list(text, item, key)
    if isinstance(kind, inspect.BoolType):
        return _one_of(text, key)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return _number(text, kind, unit, key)
    if isinstance(kind, inspect.StructType | inspect.DictType):
        return _json(text, key, "a JSON object like {...}")
    return text


def _one_of(text: str, key: str) -> bool:
    truth = _TRUTH.get(text.lower())
    if truth is None:
        raise ConfigError("expected a truth value", key=key, hint="write true, false, 1 or 0")
    return truth


def _number(text: str, kind: inspect.Type, unit: str | None, key: str) -> Any:
    if _WHOLE.fullmatch(text):
        return int(text)
    if isinstance(kind, inspect.FloatType) and _DECIMAL.fullmatch(text):
        return float(text)
    if unit is not None:
        return text  # a quantity like 5s or 1MiB: `convert` knows them
    what = "a number" if isinstance(kind, inspect.FloatType) else "a whole number"
    raise ConfigError(f"expected {what}", key=key, hint="write decimal digits")


def _list(text: str, item: inspect.Type, key: str) -> Any:
    if text.lstrip().startswith("["):
        return _json(text, key, "a JSON array like [...], or items with commas between")
    if not text.strip():
        return []
    kind, unit = bare(item), extra(item).get("unit")
    return [_value(part.strip(), kind, unit, f"{key}[{index}]") for index, part in enumerate(text.split(","))]


def _json(text: str, key: str, wanted: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise ConfigError("is no valid JSON", key=key, hint=f"write {wanted}") from None
