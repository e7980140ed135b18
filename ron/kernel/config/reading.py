"""A config file's bytes become plain tables, within bounds of size and work: nothing here may hold a daemon up.

In: a path. Out: tables, or `ConfigError`. Regular files only, of at most `MAX_CONFIG_BYTES`; a pipe or a device is
refused without waiting for it. Both parsers need quadratic time on text made for it, hence the bounds before them.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from ron.kernel.config.converting import convert
from ron.kernel.config.errors import ConfigError
from ron.proto.strictjson import check_names

T = TypeVar("T")
MAX_CONFIG_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_SCALAR_CHARS = 4096
MAX_FLOW_OPENERS = 2048
MAX_DOTS_IN_LINE = 64
_MAX_DOTS_WORK = 250_000

# libyaml's is ten times as fast, and its event stream needs no recursion
_YAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(path: Path, schema: type[T]) -> T:
    """The file at `path` as `schema`, no other layers. Raises `ConfigError`."""
    return convert(parse(path), schema)


def parse(path: Path) -> dict[str, Any]:
    """The file's tables as plain values; `.yaml`/`.yml` is YAML, `.json` JSON, all else TOML. Raises `ConfigError`."""
    return parse_bytes(read(path), path)


def read(path: Path) -> bytes:
    """The bytes of a regular file of at most `MAX_CONFIG_BYTES`; never waits for a writer. Raises `ConfigError`."""
    try:
        _regular(path.stat().st_mode, path)  # before opening: to open a device may already do something
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(handle, "rb") as file:
            _regular(os.fstat(handle).st_mode, path)
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise _wrong(f"cannot read {path}: {error.strerror}", path, "name a readable file with --config") from None
    except ValueError:
        raise _wrong(f"cannot read {str(path)!r}: no file has such a name", path, "name a readable file") from None
    if len(content) > MAX_CONFIG_BYTES:
        raise _wrong(f"{path} is over {MAX_CONFIG_BYTES} bytes", path, "is this the right file?")
    return content


def parse_bytes(content: bytes, path: Path) -> dict[str, Any]:
    """The tables in `content`, read from `path`. Raises `ConfigError` naming the path."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise _wrong(f"{path} is not UTF-8 text", path, "save it as UTF-8") from None
    try:
        tables = _PARSERS.get(path.suffix, _parse_toml)(text)
        _check_depth(tables, MAX_DEPTH)
    except RecursionError:
        raise _wrong(f"{path} is nested too deeply", path, "is this the right file?") from None
    except _TooMuch as error:
        raise _wrong(f"{path}: {error}", path, "is this the right file?") from None
    except Exception as error:  # noqa: BLE001 - both parsers let built-in errors out on hostile text (`a: 2001-99-99`)
        what = " ".join(str(error).split()) or type(error).__name__
        raise _wrong(f"{path}: {what[:300]}", path, "correct the syntax at that line") from None
    if tables is None:
        return {}
    if not isinstance(tables, dict):
        raise _wrong(f"{path} holds no sections", path, "write [section] headers with key = value lines")
    return tables


def _wrong(message: str, path: Path, hint: str) -> ConfigError:
    return ConfigError(message, hint=hint, source=str(path))


def _regular(mode: int, path: Path) -> None:
    if stat.S_ISREG(mode):
        return
    kind = "a directory" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "no regular file"
    raise _wrong(f"{path} is {kind}", path, "name a regular file with --config")


class _TooMuch(Exception):
    """Text that would cost its parser far more time than a config is worth."""


def _check_depth(value: Any, left: int) -> None:
    """Whoever walks the tables later may recurse."""
    if left == 0:
        raise RecursionError
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(below, left - 1)


def _parse_toml(text: str) -> Any:
    work = 0
    for number, line in enumerate(text.split("\n"), 1):
        dots = line.count(".")
        work += dots * dots
        if dots > MAX_DOTS_IN_LINE or work > _MAX_DOTS_WORK:
            raise _TooMuch(f"line {number} has too many dots (at most {MAX_DOTS_IN_LINE} in a line)")
    return tomllib.loads(text)


def _parse_json(text: str) -> Any:
    found = msgspec.json.decode(text)
    check_names(text.encode())
    return found


def _parse_yaml(text: str) -> Any:
    if text.count("[") + text.count("{") > MAX_FLOW_OPENERS:
        raise _TooMuch(f"it has over {MAX_FLOW_OPENERS} brackets")
    _check_events(text)
    return yaml.load(text, Loader=_YAML)  # noqa: S506 - a SafeLoader in either form


def _check_events(text: str) -> None:
    """Refuse aliases (a few lines of which can stand for gigabytes), deep nesting, long scalars and double keys."""
    # one entry for each open collection: None in a list; in a mapping the keys so far and whether a key comes next
    open_collections: list[_Keys | None] = []
    event: Any
    for event in yaml.parse(text, Loader=_YAML):
        where = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _TooMuch(f"{where}: aliases and anchors are not taken; write the value out")
        if isinstance(event, yaml.CollectionEndEvent):
            open_collections.pop()
        elif isinstance(event, yaml.NodeEvent):
            if open_collections and (keys := open_collections[-1]) is not None:
                keys.next(event, where)
            if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_SCALAR_CHARS:
                raise _TooMuch(f"{where}: a value of over {MAX_SCALAR_CHARS} characters")
            if isinstance(event, yaml.CollectionStartEvent):
                open_collections.append(_Keys() if isinstance(event, yaml.MappingStartEvent) else None)
                if len(open_collections) > MAX_DEPTH:
                    raise RecursionError


class _Keys:
    """The keys of one YAML mapping as its events pass by; PyYAML itself lets the last of two win, silently."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._key_next = True

    def next(self, event: Any, where: str) -> None:
        """A node directly in the mapping: keys and values take turns."""
        if self._key_next and isinstance(event, yaml.ScalarEvent):
            if event.value in self._seen:
                raise _TooMuch(f"{where}: the key {event.value[:64]!r} is there twice")
            self._seen.add(event.value)
        self._key_next = not self._key_next


_PARSERS: Mapping[str, Callable[[str], Any]] = {".yaml": _parse_yaml, ".yml": _parse_yaml, ".json": _parse_json}
