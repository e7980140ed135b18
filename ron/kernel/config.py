"""A config file becomes one immutable, strict struct, or one clear complaint that names the key and the fix.

In: a TOML or YAML file and the `msgspec.Struct` it must fit. Out: the struct, or `ConfigError`.
Unknown keys, wrong types and values out of range are refused (DESIGN §4).
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from ron.proto.errors import ErrorCode, RonError

T = TypeVar("T")
MAX_CONFIG_BYTES = 1024 * 1024

_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>[^`]*)`(?: - at `\$(?P<path>.*)`)?$")
_OTHER = re.compile(r"^(?P<what>.*?)(?: - at (?P<name>`key` in )?`\$(?P<path>.*)`)?$", re.DOTALL)


class ConfigError(RonError):
    """The config is wrong. `key` is the dotted path (`edge.packs[0]`), empty when the file as a whole is."""

    def __init__(self, message: str, *, key: str = "", hint: str | None = None) -> None:
        super().__init__(ErrorCode.BAD_REQUEST, f"{key}: {message}" if key else message, hint=hint)
        self.key = key


def load(path: Path, schema: type[T]) -> T:
    """The file at `path` as `schema`. Raises `ConfigError`."""
    return convert(parse(path), schema)


def parse(path: Path) -> dict[str, Any]:
    """The file's tables as plain values; `.yaml`/`.yml` is YAML, anything else TOML. Raises `ConfigError`."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path} is over {MAX_CONFIG_BYTES} bytes", hint="is this the right file?")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="name a readable file with --config") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", hint="save it as UTF-8") from None
    try:
        tables = yaml.safe_load(text) if path.suffix in {".yaml", ".yml"} else tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply", hint="is this the right file?") from None
    except Exception as error:  # noqa: BLE001 - both parsers let built-in errors out on hostile text (`a: 2001-99-99`)
        what = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path}: {what}", hint="correct the syntax at that line") from None
    if tables is None:
        return {}
    if not isinstance(tables, dict):
        raise ConfigError(f"{path} holds no sections", hint="write [section] headers with key = value lines")
    return tables


def convert(tables: dict[str, Any], schema: type[T]) -> T:
    """Plain values as `schema`, strictly. Raises `ConfigError` naming the key's path."""
    try:
        return msgspec.convert(tables, schema, strict=True)
    except msgspec.ValidationError as error:
        raise _explain(str(error), schema) from None


def _explain(complaint: str, schema: type[Any]) -> ConfigError:
    if unknown := _UNKNOWN.match(complaint):
        parent = (unknown["path"] or "").lstrip(".")
        field = unknown["field"]
        return ConfigError("unknown key", key=f"{parent}.{field}".lstrip("."), hint=_suggest(field, parent, schema))
    other = _OTHER.match(complaint)
    what, path = (other["what"], other["path"]) if other else (complaint, None)
    what = what[:1].lower() + what[1:].replace("`", "")
    if other and other["name"]:
        what = f"a key here is no name ({what})"
    return ConfigError(what, key=(path or "").lstrip("."), hint="see docs/configuration.rst for what this key takes")


def _suggest(field: str, parent: str, schema: type[Any]) -> str:
    known = _fields_at(parent, schema)
    close = difflib.get_close_matches(field, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known keys here: {', '.join(known)}" if known else "remove it"


def _fields_at(path: str, schema: Any) -> list[str]:
    """Names of the keys that `schema` knows at a dotted `path`; list indices are skipped."""
    node = msgspec.inspect.type_info(schema)
    for part in [p for p in re.split(r"[.\[]", path) if p and not p.endswith("]") and p != "..."]:
        node = _struct_of(node)
        if not isinstance(node, msgspec.inspect.StructType):
            return []
        fields = {f.encode_name: f.type for f in node.fields}
        if part not in fields:
            return []
        node = fields[part]
    node = _struct_of(node)
    return [f.encode_name for f in node.fields] if isinstance(node, msgspec.inspect.StructType) else []


def _struct_of(node: msgspec.inspect.Type) -> msgspec.inspect.Type:
    """`node` itself, or the struct inside a sequence or an optional."""
    if isinstance(node, msgspec.inspect.UnionType):
        structs = [t for t in node.types if isinstance(t, msgspec.inspect.StructType)]
        return structs[0] if structs else node
    if isinstance(node, msgspec.inspect.VarTupleType | msgspec.inspect.ListType):
        return _struct_of(node.item_type)
    return node
