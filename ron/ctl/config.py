"""`ronctl config`: what a daemon's config may say, what it says in effect and why, and how two differ.

In: files, `RON_*` variables, `--set`. Out: values with the layer each came from; secrets are not shown.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec

from ron.ctl.node import cap_option, connect, json_option, node_option, print_json, run
from ron.ctl.validate import file_option, print_warnings, refusals_as_json, warnings_as_json
from ron.kernel.config import (
    ConfigError,
    Layers,
    Resolved,
    convert,
    default_at,
    differences,
    json_schema,
    keys_of,
    parse,
    shown,
    suggest_key,
    value_at,
)
from ron.services.configs import SCHEMAS, daemon_of, not_built

DAEMONS = tuple(SCHEMAS)
daemon_option = click.option("--for", "daemon", type=click.Choice(DAEMONS), help="Whose config. [by the file]")
set_option = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Over file and environment; may be repeated."
)


@click.group("config")
def config() -> None:
    """What a daemon's config may say, and what it says: defaults < file < RON_* variables < --set.

    \b
    Examples:
      ronctl config get mailbox.max_inflight --file etc/micronode.toml
      ronctl config check --file etc/micronode.toml
      ronctl config diff etc/micronode.toml etc/macronode.toml
      ronctl config schema --for ron-node > ron-node.schema.json
      ronctl config rollback
    """


@config.command("schema")
@click.option("--for", "daemon", type=click.Choice(DAEMONS), default="ron-node", show_default=True)
def schema_command(daemon: str) -> None:
    """Print the JSON Schema (2020-12) of a daemon's config, for editors and checkers.

    \b
    Example:
      ronctl config schema --for ron-oniond
    """
    wire = msgspec.json.encode(json_schema(SCHEMAS[daemon][0], title=daemon))
    click.echo(msgspec.json.format(wire, indent=2).decode())


@config.command("get")
@click.argument("key")
@click.option("--file", "-f", "path", type=click.Path(path_type=Path), help="The config file. [none: defaults]")
@daemon_option
@set_option
@json_option
def get(key: str, path: Path | None, daemon: str | None, assignments: tuple[str, ...], as_json: bool) -> None:
    """The value of KEY in effect, and the layer it came from. A section gives all its keys.

    \b
    Examples:
      ronctl config get gateway.bind
      ronctl config get mailbox --file etc/micronode.toml --json
    """
    with refusals_as_json(as_json):
        daemon, resolved = _resolve(path, daemon, assignments)
        known = keys_of(SCHEMAS[daemon][0])
        wanted = [k for k in known if k == key or k.startswith(f"{key}.")]
        if not wanted:
            raise ConfigError("unknown key", key=key, hint=suggest_key(key, SCHEMAS[daemon][0]))
    if as_json:
        print_json({"ok": True, "daemon": daemon, "values": [_as_json(k, resolved) for k in wanted]})
    else:
        _print_values(wanted, resolved)


@config.command("check")
@file_option
@daemon_option
@set_option
@json_option
def check(path: Path, daemon: str | None, assignments: tuple[str, ...], as_json: bool) -> None:
    """Check a config as its daemon would see it here, with this environment; show what differs from the defaults.

    \b
    Examples:
      ronctl config check --file etc/micronode.toml
      RON_LOG_LEVEL=debug ronctl config check --file etc/micronode.toml
    """
    with refusals_as_json(as_json):
        daemon, resolved = _resolve(path, daemon, assignments)
    warnings = not_built(resolved.value)
    changed = _not_default(resolved, SCHEMAS[daemon][0])
    if as_json:
        values = [_as_json(key, resolved) for key in changed]
        about = {"daemon": daemon, "file": str(path), "values": values, "warnings": warnings_as_json(warnings)}
        print_json({"ok": True, **about})
        return
    click.echo(f"{path}: fine for {daemon}{'' if changed else ', all as by default'}")
    _print_values(changed, resolved, indent="  ")
    print_warnings(warnings)


@config.command("diff")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@json_option
def diff(old: Path, new: Path, as_json: bool) -> None:
    """What changes in effect from the config file OLD to NEW, and which of it needs a restart.

    \b
    Example:
      ronctl config diff etc/micronode.toml /etc/ron/micronode.toml
    """
    with refusals_as_json(as_json):
        daemon, first = _read(old)
        other, second = _read(new)
        if other != daemon:
            raise ConfigError(f"{old} is for {daemon}, {new} for {other}", hint="compare two files of one daemon")
    changes = differences(first, second)
    restart = changes.restart_needed
    if as_json:
        listed = [{"key": key, "old": was, "new": now, "restart": key in restart} for key, was, now in changes]
        print_json({"ok": True, "daemon": daemon, "changes": listed})
        return
    for key, was, now in changes:
        click.echo(f"{key}: {was} → {now}{'  (restart)' if key in restart else ''}")
    if not changes:
        click.echo("no difference in effect")


@config.command("reload")
@node_option
@cap_option
@json_option
def reload_command(node: str | None, cap: str | None, as_json: bool) -> None:
    """Have the running node take its config as it is now. What is wrong with it is told, and the old one stays.

    \b
    Example:
      ronctl config reload
    """
    _print_changes(_order("reload", node, cap), as_json)


@config.command("rollback")
@node_option
@cap_option
@json_option
def rollback_command(node: str | None, cap: str | None, as_json: bool) -> None:
    """Have the running node go back to the config before. Mend the file too: a restart reads it.

    \b
    Example:
      ronctl config rollback
    """
    _print_changes(_order("rollback", node, cap), as_json)


def _order(what: str, node: str | None, cap: str | None) -> dict[str, Any]:
    return run(lambda reactor: connect(reactor, node, cap).call("POST", f"/v1/config/{what}", dict[str, Any]))


def _print_changes(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    click.echo(f"config version {answer['version']}")
    for change in answer["changes"]:
        restart = "  (restart)" if change["key"] in answer["restart_needed"] else ""
        click.echo(f"  {change['key']}: {change['old']} → {change['new']}{restart}")
    if not answer["changes"]:
        click.echo("  nothing has changed")


def _resolve(path: Path | None, daemon: str | None, assignments: Iterable[str]) -> tuple[str, Resolved[Any]]:
    daemon = daemon or (daemon_of(parse(path)) if path is not None else DAEMONS[0])
    schema, rules = SCHEMAS[daemon]
    layers: Layers[Any] = Layers(schema, rules, path, os.environ, _flags(assignments))
    return daemon, layers.judge(layers.inputs())


def _flags(assignments: Iterable[str]) -> dict[str, str]:
    flags: dict[str, str] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise click.BadParameter("write section.key=value", param_hint="--set")
        flags[key] = text
    return flags


def _read(path: Path) -> tuple[str, Any]:
    tables = parse(path)
    daemon = daemon_of(tables)
    schema, rules = SCHEMAS[daemon]
    try:
        value = convert(tables, schema)
        rules(value)
    except ConfigError as error:
        raise error.from_source(str(path)) from None
    return daemon, value


def _not_default(resolved: Resolved[Any], schema: type[Any]) -> list[str]:
    return [key for key in keys_of(schema) if value_at(resolved.value, key) != default_at(schema, key)]


def _as_json(key: str, resolved: Resolved[Any]) -> dict[str, Any]:
    text = shown(key, value_at(resolved.value, key), whole=True)
    return {"key": key, "value": msgspec.json.decode(text), "source": resolved.source(key)}


def _print_values(keys: Iterable[str], resolved: Resolved[Any], indent: str = "") -> None:
    for key in keys:
        value = shown(key, value_at(resolved.value, key), whole=True)
        click.echo(f"{indent}{key} = {value}  ({resolved.source(key)})")
