"""defaults < file < environment < flags, judged as one. Every value remembers the layer it came from.

In: a schema, its rules across keys, a file's path, the environment, flags. Out: the struct, or `ConfigError` that names
the key and the layer. An `RON_*` variable that means nothing is refused: a misspelt one must not be ignored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from ron.kernel.config.converting import convert
from ron.kernel.config.errors import ConfigError
from ron.kernel.config.reading import parse_bytes, read
from ron.kernel.config.schema import Leaf, leaves, sections, suggest, suggest_key
from ron.kernel.config.text import value_of

T = TypeVar("T")
PREFIX = "RON_"
# how a process is told where it lives and who asks; not config
RESERVED = frozenset({"RON_HOME", "RON_CAP", "RON_NODE", "RON_CA_PASSPHRASE"})
RESERVED_PREFIX = "RON_PROCESS_"
DEFAULT = "default"


class Inputs(NamedTuple):
    """What a config is made of at one moment; equal inputs give equal configs. content: None when there is no file."""

    content: bytes | None
    variables: tuple[tuple[str, str], ...]
    flags: tuple[tuple[str, str], ...]


class Resolved(NamedTuple, Generic[T]):
    """The config, whether its file said anything, and `sources`: dotted path → the layer that set it."""

    value: T
    from_file: bool
    sources: Mapping[str, str]

    def source(self, key: str) -> str:
        """Where the value of `key` came from: a variable, a flag, a file's path, or `default`."""
        return _source(key, self.sources)


class Layers(Generic[T]):
    """The layers of one process's config.

    check: rules across keys, raises `ConfigError`. path: None when there is no file. environ: the process's
    environment; what does not begin with `RON_` is ignored. flags: `section.key` → text, from `--set`.
    """

    def __init__(
        self,
        schema: type[T],
        check: Callable[[T], None],
        path: Path | None = None,
        environ: Mapping[str, str] | None = None,
        flags: Mapping[str, str] | None = None,
    ) -> None:
        self.schema = schema
        self.path = path
        self._check = check
        self._environ = environ if environ is not None else {}
        self._flags = flags if flags is not None else {}

    def resolve(self) -> T:
        """The config as the layers are now. Raises `ConfigError`."""
        return self.judge(self.inputs()).value

    def inputs(self) -> Inputs:
        """Read the file and the environment. Raises `ConfigError` when the file cannot be read."""
        return Inputs(
            read(self.path) if self.path is not None else None,
            tuple(sorted((k, v) for k, v in self._environ.items() if _is_config(k))),
            tuple(sorted(self._flags.items())),
        )

    def judge(self, inputs: Inputs) -> Resolved[T]:
        """The config that `inputs` make. Raises `ConfigError` naming the key and the layer."""
        sources: dict[str, str] = {}
        tables: dict[str, Any] = {}
        if inputs.content is not None and self.path is not None:
            tables = parse_bytes(inputs.content, self.path)
            _note(tables, "", str(self.path), sources)
        from_file = bool(tables)
        tables = copy.deepcopy(tables)
        for name, text in inputs.variables:
            self._put(tables, sources, self._key_of(name), text, name)
        for key, text in inputs.flags:
            self._put(tables, sources, key, text, f"--set {key}")
        try:
            value = convert(tables, self.schema)
            self._check(value)
        except ConfigError as error:
            where = _source(error.key, sources) if error.key else str(self.path or "")
            raise error.from_source(where) from None
        return Resolved(value, from_file, sources)

    def _put(self, tables: dict[str, Any], sources: dict[str, str], key: str, text: str, source: str) -> None:
        try:
            value = value_of(text, self._leaf(key), key)
        except ConfigError as error:
            raise error.from_source(source) from None
        *parents, last = key.split(".")
        here: Any = tables
        for depth, part in enumerate(parents, 1):
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                section = ".".join(parents[:depth])
                raise ConfigError(
                    "expected a section", key=section, hint=f"write [{section}] with keys below it"
                ).from_source(_source(section, sources))
        here[last] = value
        sources[key] = source

    def _leaf(self, key: str) -> Leaf:
        known = leaves(self.schema)
        if key not in known:
            raise ConfigError("unknown key", key=key, hint=suggest_key(key, self.schema))
        return known[key]

    def _key_of(self, name: str) -> str:
        known = {variable_of(key): key for key in leaves(self.schema)}
        if name in known:
            return known[name]
        raise ConfigError(f"{name} is no variable of this program", hint=self._variable_hint(name, known), source=name)

    def _variable_hint(self, name: str, known: Mapping[str, str]) -> str:
        section = name.removeprefix(PREFIX).split("_")[0].lower()
        if section in sections(self.schema):
            near = [variable for variable, key in known.items() if key.split(".")[0] == section]
            return suggest(name, near or known, where=f"of [{section}]")
        hint = suggest(name, [*known, *RESERVED])
        return hint if hint.startswith("did you mean") else f"unset it; variables are {PREFIX}<SECTION>_<KEY>"


def variable_of(key: str) -> str:
    """The environment variable of a dotted key: `mailbox.max_inflight` is `RON_MAILBOX_MAX_INFLIGHT`."""
    return PREFIX + key.replace(".", "_").upper()


def _is_config(name: str) -> bool:
    return name.startswith(PREFIX) and name not in RESERVED and not name.startswith(RESERVED_PREFIX)


def _note(value: Any, path: str, source: str, sources: dict[str, str]) -> None:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            _note(below, f"{path}.{key}".lstrip("."), source, sources)
    elif path:
        sources[path] = source


def _source(key: str, sources: Mapping[str, str]) -> str:
    """The source of `key`, of the value it stands in (`apps` for `apps[0].name`), or of what is below it."""
    trimmed = key
    while trimmed:
        if trimmed in sources:
            return sources[trimmed]
        trimmed = trimmed[: max(trimmed.rfind("."), trimmed.rfind("["), 0)]
    below = {source for path, source in sources.items() if path.startswith(f"{key}.")} if key else set()
    return below.pop() if len(below) == 1 else " and ".join(sorted(below)) or DEFAULT
