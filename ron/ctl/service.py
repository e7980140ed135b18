"""`ronctl service`: the services of a running node, and a second chance for one that kept crashing.

In: the node's gateway, a capability (node:read to look, node:admin to release). Out: a table, or JSON.
"""

from __future__ import annotations

import click
import msgspec

from ron.ctl.node import cap_option, connect, json_option, node_option, print_json, run
from ron.ctl.plain import plain_text

_UP = "up"


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A service as the node shows it. state: idle, starting, up, waiting, quarantined or stopping (docs/kernel.rst).

    reason: of its latest crash. pid: of its process, where it has one of its own.
    """

    name: str
    state: str
    restarts: int = 0
    reason: str = ""
    pid: int | None = None


class Release(msgspec.Struct, frozen=True):
    """Body of `POST /v1/services/release`."""

    service: str


@click.group("service")
def service() -> None:
    """The services of a running node.

    \b
    Examples:
      ronctl service list
      ronctl service release edge
    """


@service.command("list")
@node_option
@cap_option
@json_option
def list_command(node: str | None, cap: str | None, as_json: bool) -> None:
    """Every service with its state, how often it was started again, and why it last crashed.

    \b
    Examples:
      ronctl service list
      ronctl service list --json | jq '.services[] | select(.state != "up")'
    """
    found = run(lambda reactor: connect(reactor, node, cap).call("GET", "/v1/services", list[Service]))
    if as_json:
        print_json({"services": found})
    else:
        click.echo(table(found))


@service.command("release")
@click.argument("name")
@node_option
@cap_option
@json_option
def release(name: str, node: str | None, cap: str | None, as_json: bool) -> None:
    """Start NAME again after it was quarantined. One that is not in quarantine is left as it is.

    \b
    Example:
      ronctl service release edge
    """
    path, body = "/v1/services/release", Release(name)
    found = run(lambda reactor: connect(reactor, node, cap).call("POST", path, Service, body))
    if as_json:
        print_json(found)
    else:
        click.echo(f"{found.name}: {found.state}")


def table(services: list[Service]) -> str:
    """One line a service under a heading."""
    rows = [("service", "state", "restarts", "pid", "last crash")]
    rows += [(s.name, s.state, str(s.restarts), str(s.pid or "-"), plain_text(s.reason) or "-") for s in services]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*map(str.ljust, row[:4], widths), row[4]]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def not_up(services: list[Service]) -> list[Service]:
    """Those an operator should know of."""
    return [one for one in services if one.state != _UP]
