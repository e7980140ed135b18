"""Layered configuration: defaults < file < environment < flags become one immutable struct, or one clear complaint.

In: a TOML or YAML file, `RON_*` variables, `section.key` flags and the `msgspec.Struct` they must fit (DESIGN §4).
Out: `Layers.resolve()` gives the struct; `Config` holds it, swaps it whole on reload and goes back when it must.
"""

from ron.kernel.config.changes import Change, Changes, differences, shown
from ron.kernel.config.converting import convert
from ron.kernel.config.errors import ConfigError
from ron.kernel.config.holder import Config
from ron.kernel.config.jsonschema import json_schema
from ron.kernel.config.layers import Layers, Resolved, variable_of
from ron.kernel.config.reading import MAX_CONFIG_BYTES, load, parse
from ron.kernel.config.schema import default_at, has_key, keys_of, suggest_key, value_at

__all__ = [
    "MAX_CONFIG_BYTES",
    "Change",
    "Changes",
    "Config",
    "ConfigError",
    "Layers",
    "Resolved",
    "convert",
    "default_at",
    "differences",
    "has_key",
    "json_schema",
    "keys_of",
    "load",
    "parse",
    "shown",
    "suggest_key",
    "value_at",
    "variable_of",
]
