"""`ronctl validate`: is this config one a daemon would start with?"""

from __future__ import annotations

from pathlib import Path

import click

from ron.ctl.node import json_option, print_json
from ron.kernel.config import ConfigError, convert, parse
from ron.services.configs import SCHEMAS, daemon_of


@click.command("validate")
@click.option(
    "--file", "-f", "path", required=True, type=click.Path(path_type=Path), help="The config file (TOML or YAML)."
)
@json_option
def validate(path: Path, as_json: bool) -> None:
    """Check a config file and name the first key that is wrong, with the fix.

    \b
    Examples:
      ronctl validate --file etc/micronode.toml
      ronctl validate --file etc/oniond.toml --json
    """
    try:
        tables = parse(path)
        daemon = daemon_of(tables)
        schema, check = SCHEMAS[daemon]
        check(convert(tables, schema))
    except ConfigError as error:
        if as_json:
            print_json({"ok": False, "key": error.key, "message": error.message, "hint": error.hint})
            raise SystemExit(3) from None
        raise
    if as_json:
        print_json({"ok": True, "daemon": daemon, "file": str(path)})
    else:
        click.echo(f"{path}: fine for {daemon}")
