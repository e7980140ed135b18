"""What a schema knows: its keys, their types and units, and the nearest known name to a misspelt one.

In: a `msgspec.Struct` type. Out: answers; nothing here reads a value.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

R = TypeVar("R")


class Leaf(NamedTuple):
    """One key that holds a value: its type, its unit (ms, s, bytes) and whether it changes without a restart."""

    type: inspect.Type
    unit: str | None
    live: bool


def _once(function: Callable[[Any], R]) -> Callable[[Any], R]:
    """`function`, computed once for each schema: walking one costs a millisecond."""
    return functools.lru_cache(maxsize=64)(function)


@_once
def info(schema: type[Any]) -> inspect.Type:
    """`msgspec.inspect.type_info`, remembered."""
    return inspect.type_info(schema)


def bare(node: inspect.Type) -> inspect.Type:
    """`node` without its metadata and without `None`: the type that a written value must have."""
    if isinstance(node, inspect.Metadata):
        return bare(node.type)
    if isinstance(node, inspect.UnionType):
        some = [t for t in node.types if not isinstance(t, inspect.NoneType)]
        return bare(some[0]) if len(some) == 1 else node
    return node


def extra(node: inspect.Type) -> Mapping[str, Any]:
    """The `Meta(extra=...)` of a type, also when it stands inside an optional."""
    if isinstance(node, inspect.Metadata):
        return node.extra or {}
    if isinstance(node, inspect.UnionType):
        return next((extra(t) for t in node.types if isinstance(t, inspect.Metadata)), {})
    return {}


def item_of(node: inspect.Type) -> inspect.Type | None:
    """The type of a list's items; None for what is no list."""
    if isinstance(node, inspect.VarTupleType | inspect.ListType):
        return node.item_type
    return None


@_once
def leaves(schema: type[Any]) -> Mapping[str, Leaf]:
    """Every key that holds a value, by dotted path; lists are values."""
    found: dict[str, Leaf] = {}
    _collect(info(schema), "", found)
    return found


@_once
def sections(schema: type[Any]) -> tuple[str, ...]:
    """Names of the schema's top-level keys."""
    node = info(schema)
    return tuple(f.encode_name for f in node.fields) if isinstance(node, inspect.StructType) else ()


def _collect(node: inspect.Type, path: str, found: dict[str, Leaf]) -> None:
    struct = bare(node)
    if isinstance(struct, inspect.StructType):
        for field in struct.fields:
            _collect(field.type, f"{path}.{field.encode_name}".lstrip("."), found)
    else:
        notes = extra(node)
        found[path] = Leaf(struct, notes.get("unit"), bool(notes.get("reload")))


def keys_of(schema: type[Any]) -> tuple[str, ...]:
    """Dotted paths of all keys that hold a value."""
    return tuple(leaves(schema))


def has_key(schema: type[Any], key: str) -> bool:
    """Does `schema` know `key`, be it a value or a section?"""
    return any(known == key or known.startswith(f"{key}.") for known in leaves(schema))


def fields_at(path: str, schema: type[Any]) -> list[str]:
    """Names of the keys that `schema` knows at a dotted `path`; list indices are skipped."""
    node = _inside(info(schema))
    for part in [p for p in re.split(r"[.\[]", path) if p and not p.endswith("]") and p != "..."]:
        if not isinstance(node, inspect.StructType):
            return []
        below = next((f.type for f in node.fields if f.encode_name == part), None)
        if below is None:
            return []
        node = _inside(below)
    return [f.encode_name for f in node.fields] if isinstance(node, inspect.StructType) else []


def _inside(node: inspect.Type) -> inspect.Type:
    """`node` itself, or the struct inside a sequence or an optional."""
    node = bare(node)
    item = item_of(node)
    return node if item is None else _inside(item)


def suggest(name: str, known: Iterable[str], *, where: str = "here") -> str:
    """A hint for an unknown `name`: the nearest known one, or what there is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known keys {where}: {', '.join(known)}" if known else "remove it"


def suggest_key(key: str, schema: type[Any]) -> str:
    """A hint for a dotted `key` that `schema` does not know."""
    known = keys_of(schema)
    section = key.split(".", 1)[0]
    near = [k for k in known if k.split(".", 1)[0] == section]
    hint = suggest(key, near or known)
    if near or hint.startswith("did you mean"):
        return hint
    return f"write section.key; sections here: {', '.join(sections(schema))}"


def default_at(schema: type[Any], key: str) -> Any:
    """The default of a dotted key; `msgspec.NODEFAULT` where its section is required."""
    first, *rest = key.split(".")
    defaults = {field.encode_name: field.default for field in msgspec.structs.fields(schema)}
    value = defaults[first]
    return value if value is msgspec.NODEFAULT else value_at(value, ".".join(rest)) if rest else value


def value_at(config: Any, key: str) -> Any:
    """The value at a dotted path; None below a section that is not there."""
    for part in key.split("."):
        config = getattr(config, part, None)
    return config


def structs(schema: type[Any]) -> list[inspect.StructType]:
    """Every struct in the schema, itself first, each once."""
    found: dict[type, inspect.StructType] = {}

    def visit(node: inspect.Type) -> None:
        node = _inside(node)
        if isinstance(node, inspect.StructType) and node.cls not in found:
            found[node.cls] = node
            for field in node.fields:
                visit(field.type)

    visit(info(schema))
    return list(found.values())
