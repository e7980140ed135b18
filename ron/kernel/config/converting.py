"""Plain values become a strict struct; quantities with a unit become the plain numbers the struct holds.

In: tables as a parser made them, and a schema. Out: the struct, or `ConfigError` with the key's path and the fix.
Unknown keys, wrong types and values out of range are refused (DESIGN §4).
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from ron.kernel.config.errors import ConfigError
from ron.kernel.config.schema import bare, extra, fields_at, info, item_of, suggest
from ron.kernel.units import UnitError, parse_quantity

T = TypeVar("T")

_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>.*?)`(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_OTHER = re.compile(r"^(?P<what>.*?)(?: - at (?P<name>`key` in )?`\$(?P<path>.*)`)?$", re.DOTALL)


def convert(tables: dict[str, Any], schema: type[T]) -> T:
    """Plain values as `schema`, strictly. Raises `ConfigError` naming the key's path."""
    try:
        return msgspec.convert(in_units(tables, schema), schema, strict=True)
    except msgspec.ValidationError as error:
        raise _explain(str(error), schema) from None


def in_units(tables: dict[str, Any], schema: type[Any]) -> dict[str, Any]:
    """A copy of `tables` where text at keys with a unit is a number. Raises `ConfigError`; other values stay."""
    converted: dict[str, Any] = _number(tables, info(schema), "")
    return converted


def _number(value: Any, node: inspect.Type, path: str) -> Any:
    unit, kind = extra(node).get("unit"), bare(node)
    if unit is not None and isinstance(value, str):
        try:
            return parse_quantity(value, unit, whole=not isinstance(kind, inspect.FloatType))
        except UnitError as error:
            raise ConfigError(error.message, key=path, hint=error.hint) from None
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        types = {field.encode_name: field.type for field in kind.fields}
        return {
            key: _number(below, types[key], f"{path}.{key}".lstrip(".")) if key in types else below
            for key, below in value.items()
        }
    item = item_of(kind)
    if item is not None and isinstance(value, list):
        return [_number(below, item, f"{path}[{index}]") for index, below in enumerate(value)]
    return value


def _explain(complaint: str, schema: type[Any]) -> ConfigError:
    if unknown := _UNKNOWN.match(complaint):
        parent = (unknown["path"] or "").lstrip(".")
        field = unknown["field"]
        hint = suggest(field, fields_at(parent, schema))
        return ConfigError("unknown key", key=f"{parent}.{field}".lstrip("."), hint=hint)
    other = _OTHER.match(complaint)
    what, path = (other["what"], other["path"]) if other else (complaint, None)
    what = what[:1].lower() + what[1:].replace("`", "")
    if other and other["name"]:
        what = f"a key here is no name ({what})"
    return ConfigError(what, key=(path or "").lstrip("."), hint="see docs/configuration.rst for what this key takes")
