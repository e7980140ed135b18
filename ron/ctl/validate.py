"""`ronctl validate`: is this config one a daemon would start with?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from ron.ctl.node import json_option, print_json
from ron.kernel.config import ConfigError, convert, parse
from ron.services.configs import SCHEMAS, daemon_of, not_built

Warnings = Sequence[tuple[str, str]]
file_option = click.option(
    "--file", "-f", "path", required=True, type=click.Path(path_type=Path), help="The config file (TOML or YAML)."
)


@click.command("validate")
@file_option
@json_option
def validate(path: Path, as_json: bool) -> None:
    """Check a config file and name the first key that is wrong, with the fix.

    Keys that are known and not built yet are told as warnings; they are no mistake.

    \b
    Examples:
      ronctl validate --file etc/micronode.toml
      ronctl validate --file etc/oniond.toml --json
    """
    with refusals_as_json(as_json):
        tables = parse(path)
        daemon = daemon_of(tables)
        schema, check = SCHEMAS[daemon]
        config = convert(tables, schema)
        check(config)
    warnings = not_built(config)
    if as_json:
        print_json({"ok": True, "daemon": daemon, "file": str(path), "warnings": warnings_as_json(warnings)})
    else:
        click.echo(f"{path}: fine for {daemon}")
        print_warnings(warnings)


@contextmanager
def refusals_as_json(as_json: bool) -> Iterator[None]:
    """With `--json`, a `ConfigError` is an object on stdout and exit code 3 instead of a line on stderr."""
    try:
        yield
    except ConfigError as error:
        if not as_json:
            raise
        print_json({"ok": False, "key": error.key, "message": error.message, "hint": error.hint})
        raise SystemExit(3) from None


def print_warnings(warnings: Warnings) -> None:
    """One line each, for people."""
    for key, sentence in warnings:
        click.echo(f"  warning: {key}: {sentence}")


def warnings_as_json(warnings: Warnings) -> list[dict[str, str]]:
    """The same for programs."""
    return [{"key": key, "message": sentence} for key, sentence in warnings]
