"""A schema for editors and other programs: JSON Schema 2020-12 of what a config file may say.

In: a struct type. Out: plain values for JSON. Keys with a unit take a whole number or a text like `5s`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import inspect

from ron.kernel.config.schema import bare, extra, item_of, structs
from ron.kernel.units import pattern_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_LONG = {"ms": "milliseconds", "s": "seconds", "bytes": "bytes"}


def json_schema(schema: type[Any], *, title: str) -> dict[str, Any]:
    """What `convert` takes for `schema`, as JSON Schema 2020-12."""
    found = structs(schema)
    references, definitions = msgspec.json.schema_components(
        [struct.cls for struct in found], ref_template="#/$defs/{name}"
    )
    for struct, reference in zip(found, references, strict=True):
        properties = definitions[reference["$ref"].rpartition("/")[2]]["properties"]
        for field in struct.fields:
            _with_units(properties[field.encode_name], field.type)
    root = {"$schema": DIALECT, "title": title, **references[0], "$defs": definitions}
    portable: dict[str, Any] = _portable(root)
    return portable


def _with_units(wire: dict[str, Any], node: inspect.Type) -> None:
    """Let `wire`, the schema of `node`, take quantities as text too."""
    unit, item = extra(node).get("unit"), item_of(bare(node))
    if unit is not None:
        plain: list[dict[str, Any]] = wire.get("anyOf", [wire])
        numbers = [{k: v for k, v in one.items() if k != "default"} for one in plain]
        numbers.append({"type": "string", "pattern": pattern_of(unit)})
        default = {"default": wire["default"]} if "default" in wire else {}
        wire.clear()
        wire.update({"anyOf": numbers, "description": f"{_LONG[unit]}, or a text with a unit", **default})
    elif item is not None and "items" in wire:
        _with_units(wire["items"], item)


def _portable(value: Any) -> Any:
    """Python's end of text, `\\Z`, as the `$` of every other dialect."""
    if isinstance(value, dict):
        return {
            key: below.replace(r"\Z", "$") if key == "pattern" and isinstance(below, str) else _portable(below)
            for key, below in value.items()
        }
    return [_portable(below) for below in value] if isinstance(value, list) else value
