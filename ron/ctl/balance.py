"""`ronctl balance`: one onion address before many nodes, as an operator sees and steers it.

In: names and times. Out: what the node says, as text or JSON. The commands that make a cluster and its members are in
`balance_cluster`, those about keys and shares in `balance_keys`.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text
from twisted.internet.task import deferLater

from ron.ctl.balance_cluster import approve, invite, leave, remove, token
from ron.ctl.balance_keys import refresh, reshare, service
from ron.ctl.balance_node import init, join
from ron.ctl.balance_reach import ask, ask_for_long, for_option, reach, seconds
from ron.ctl.balance_text import drawn, ghosts_text, member_line, text
from ron.ctl.control import confirm, is_asked, yes_option
from ron.ctl.node import print_json
from ron.ctl.plain import plain_text
from ron.proto.balanceviews import ROULETTE_WARNING
from ron.proto.errors import RonError

if TYPE_CHECKING:
    from ron.proto.balanceviews import BalanceView
    from ron.sdk.balance import Balance

_switch = click.Choice(["on", "off"])


@click.group("balance")
def balance() -> None:
    """RustBalance: one onion address before many nodes, with no leader whose end is the address's end.

    \b
    Examples, a cluster of two:
      ronctl balance init alpha --listen 10.7.0.1:9470 --service main --port 80:127.0.0.1:8080
      twistd -n ron-balance --config etc/balance.toml
      ronctl balance service add main
      ronctl balance invite beta --out beta.bundle        # goes to beta, as a secret
      ronctl balance join beta.bundle --listen 10.7.0.2:9470 --service main --port 80:127.0.0.1:8080
      ronctl balance approve beta
      ronctl balance status --watch
    """


@balance.command("status")
@click.option("--watch", is_flag=True, help="Look again and again, until Ctrl-C.")
@click.option("--every", default=1.0, show_default=True, type=click.FloatRange(0.1, 3600), metavar="SECONDS")
@reach
def status(watch: bool, every: float, control: str | None, cap: str | None, as_json: bool) -> None:
    """The cluster as this node sees it: leader and lease, nodes, who hears whom, what is published and who holds it.

    With --watch and --json it prints one object a line.

    \b
    Examples:
      ronctl balance status
      ronctl balance status --watch
      ronctl balance status --json | jq -r '.leader.name'
      ronctl balance status --json | jq '.members[] | select(.in_descriptor | not) | {name, out}'
    """
    if not watch:
        _show(ask(control, cap, lambda balance: balance.status()), as_json)
        return
    ask_for_long(control, cap, lambda reactor, balance: _watch(reactor, balance, every, as_json))


@balance.command("promote")
@click.argument("node", required=False)
@click.option("--end", is_flag=True, help="End the order: the longest uptime counts again.")
@for_option
@reach
def promote(
    node: str | None, end: bool, for_text: str | None, control: str | None, cap: str | None, as_json: bool
) -> None:
    """Have NODE lead, if it can, until another order; with --for until then.

    \b
    Examples:
      ronctl balance promote beta --for 2h
      ronctl balance promote --end
    """
    if (node is None) != end or (end and for_text is not None):
        raise click.UsageError("name a NODE, or give --end alone")
    leader = ask(control, cap, lambda balance: balance.promote(node, for_s=seconds(for_text)))
    if as_json:
        print_json(leader)
    else:
        click.echo(f"leader: {leader.name or 'nobody'} ({plain_text(leader.why)})")


@balance.command("siege")
@click.argument("node")
@click.argument("switch", type=_switch, metavar="on|off")
@for_option
@reach
def siege(node: str, switch: str, for_text: str | None, control: str | None, cap: str | None, as_json: bool) -> None:
    """Take NODE's head for attacked: it leaves the descriptor at once, and keeps the visitors it has.

    \b
    Examples:
      ronctl balance siege beta on --for 30m
      ronctl balance siege beta off
    """
    shown = ask(control, cap, lambda balance: balance.siege(node, switch == "on", for_s=seconds(for_text)))
    if as_json:
        print_json(shown)
    else:
        click.echo(member_line(shown))


@balance.command("roulette")
@click.argument("switch", type=_switch, metavar="on|off")
@for_option
@yes_option
@reach
def roulette(switch: str, for_text: str | None, yes: bool, control: str | None, cap: str | None, as_json: bool) -> None:
    """Rotate the heads through the descriptor. It costs visitors time, says so, and ends by itself.

    On a terminal it asks first.

    \b
    Examples:
      ronctl balance roulette on --for 2h
      ronctl balance roulette on --yes
      ronctl balance roulette off
    """
    if switch == "on":
        click.echo(f"warning: {ROULETTE_WARNING}", err=True)
        if is_asked(yes):
            confirm("Turn it on?")
    answer = ask(control, cap, lambda balance: balance.roulette(switch == "on", for_s=seconds(for_text)))
    if as_json:
        print_json(answer)
    else:
        click.echo(f"roulette: on until {answer.until}" if answer.until is not None else "roulette: off")


@balance.command("ghosts")
@reach
def ghosts(control: str | None, cap: str | None, as_json: bool) -> None:
    """Heads that have left the descriptor and keep the visitors they have. Whoever still comes to one is an attacker.

    \b
    Examples:
      ronctl balance ghosts
      ronctl balance ghosts --json | jq '[.ghosts[].attacks] | add'
    """
    found = ask(control, cap, lambda balance: balance.ghosts())
    if as_json:
        print_json({"ghosts": found})
    elif found:
        click.echo(ghosts_text(found))
    else:
        click.echo("no ghosts: every head that is up is in the descriptor", err=True)


@balance.command("publish")
@click.argument("name", required=False, metavar="[SERVICE]")
@reach
def publish(name: str | None, control: str | None, cap: str | None, as_json: bool) -> None:
    """Have the leader publish now what it would publish anyhow; all services, or one.

    \b
    Examples:
      ronctl balance publish
      ronctl balance publish main
    """
    answer = ask(control, cap, lambda balance: balance.publish(name))
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{answer.leader} publishes {', '.join(answer.services) or 'nothing: there is no service yet'}")


for _command in (init, join, invite, approve, remove, leave, token, service, refresh, reshare):
    balance.add_command(_command)


def _show(view: BalanceView, as_json: bool) -> None:
    if as_json:
        print_json(view)
    elif sys.stdout.isatty():
        Console().print(drawn(view))
    else:
        click.echo(text(view))


async def _watch(reactor: Any, balance: Balance, every_s: float, as_json: bool) -> None:
    """Show it again and again; a node that does not answer for a while is waited for."""
    with ExitStack() as screen:
        live = None
        if sys.stdout.isatty() and not as_json:
            live = screen.enter_context(Live(console=Console(), auto_refresh=False, screen=True))
        while True:
            try:
                view = await balance.status()
            except RonError as error:
                if not error.retryable:
                    raise
                _trouble(live, error)
            else:
                if live is None:
                    _show(view, as_json)
                else:
                    live.update(drawn(view), refresh=True)
            await deferLater(reactor, every_s)


def _trouble(live: Live | None, error: RonError) -> None:
    if live is None:
        click.echo(f"ronctl: {error.one_line()}", err=True)
    else:
        live.update(Text(f"{error.one_line()}; looking again"), refresh=True)
