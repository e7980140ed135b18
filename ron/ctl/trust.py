"""Whom `ronctl` trusts over TLS, as its options before the command say.

In: --ca, --cert, --key, --identity. Out: a `Trust` that every command of this run finds. Loads no Twisted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

_FILE = click.Path(path_type=Path)
_OPTIONS = (
    click.option("--ca", type=_FILE, help="For a node at https://…: the CA that signed its certificate (ca.pem)."),
    click.option("--cert", type=_FILE, help="Our own certificate, for a node that asks for one."),
    click.option("--key", type=_FILE, help="The certificate's private key."),
    click.option(
        "--identity", metavar="NAME", help="Whom the node must prove to be: ron://node/NAME.  [the URL's host]"
    ),
)


class Trust(NamedTuple):
    """ca: who signed the node's certificate; None without TLS. cert, key: ours, for mutual TLS.

    identity: `ron://node/<name>`, a DNS name or an IP address; None is the URL's host.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    identity: str | None = None


def trust_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The four options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def given_trust() -> Trust:
    """What was given to the `ronctl` that runs now; nothing outside of one."""
    context = click.get_current_context(silent=True)
    return (context.find_object(Trust) if context is not None else None) or Trust()
