"""Entry point of `ronctl`: joins the commands, turns every `RonError` into one clear line and a stable exit code."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import NoReturn

import click

import ron
from ron.ctl.trust import Trust, trust_options
from ron.proto.errors import RonError
from ron.proto.exitcodes import exit_code

# command → where it lives; imported only when asked for, so that `ronctl e2e` need not load Twisted
_COMMANDS = {
    "balance": ("ron.ctl.balance", "balance", "RustBalance: one onion address before many nodes."),
    "audit": ("ron.ctl.audit", "audit", "The audit log: is it whole, what does it say."),
    "ca": ("ron.ctl.ca", "ca", "The node CA: init, issue, renew, show."),
    "cap": ("ron.ctl.cap", "cap", "Capabilities: mint, attenuate, inspect, revoke, rotate, list."),
    "config": ("ron.ctl.config", "config", "Show, check and compare configs; their JSON Schema."),
    "e2e": ("ron.ctl.e2e", "e2e", "Seal, open and make keys for end-to-end messages."),
    "federation": ("ron.ctl.federation", "federation", "Federate with other operators' nodes: grant, hold, connect."),
    "governance": ("ron.ctl.governance", "governance", "What nobody may do alone to a key service."),
    "hello": ("ron.ctl.hello", "hello", "Fetch a tile and ping end to end, through the onion."),
    "kms": ("ron.ctl.kms", "kms", "The key service: keys, signatures, wrapped keys."),
    "mailbox": ("ron.ctl.mailbox", "mailbox", "Send and receive messages."),
    "onion": ("ron.ctl.onion", "onion", "Onions of local ports: create, list, rotate, drain, delete."),
    "pack": ("ron.ctl.pack", "pack", "Build and inspect tile packs."),
    "profile": ("ron.ctl.profile", "profile", "Where the node spends CPU time and memory; a flame graph."),
    "service": ("ron.ctl.service", "service", "The node's services: list, release."),
    "status": ("ron.ctl.status", "status", "Show the node: tor, onions, queues, packs."),
    "tail": ("ron.ctl.tail", "tail", "What happens on the node's bus, as it happens."),
    "tornet": ("ron.ctl.tornet", "tornet", "A private Tor network: on this host, or over several."),
    "validate": ("ron.ctl.validate", "validate", "Check a config file."),
}


class LazyGroup(click.Group):
    """Loads a command's module when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, sorted."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command called `cmd_name`, or None."""
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _help = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line a command, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][2]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ron.__version__, prog_name="ronctl")
@trust_options
@click.pass_context
def ronctl(context: click.Context, ca: Path | None, cert: Path | None, key: Path | None, identity: str | None) -> None:
    """Look after a RustyOnions node.

    \b
    ronctl finds the node by --node URL or RON_HOME (default ./var), and its capability by
    --cap, RON_CAP (a token or a file) or $RON_HOME/admin.cap, in that order. A node on another
    host is reached over TLS: --ca (and --cert and --key), before the command, say whom to trust.

    \b
    Examples:
      ronctl status
      ronctl hello --json
      ronctl validate --file etc/micronode.toml
      ronctl tornet up --dir /tmp/net
      ronctl --ca ca.pem status --node https://alpha.internal:9443 --cap alpha.cap

    \b
    Exit codes: 0 fine · 1 failed · 2 wrong usage · 3 invalid input or config · 4 unreachable
    5 capability refused · 6 timed out · 7 not found · 8 unavailable, try again
    """
    context.obj = Trust(ca, cert, key, identity)


def main() -> NoReturn:
    """Run, and exit with a code scripts can branch on."""
    try:
        ronctl(standalone_mode=True)
    except RonError as error:
        click.echo(f"ronctl: {error.one_line()}", err=True)
        sys.exit(int(exit_code(error)))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(0)
