"""`ronctl onion`: onions for local ports, from the first to the last.

In: what an onion is to be, or which one is meant. Out: its address alone on stdout, explanations and progress on
stderr; with --json the onion as the runtime shows it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from twisted.internet.task import deferLater

from ron.ctl.console import StageConsole
from ron.ctl.control import confirm, is_asked, op_id_option, yes_option
from ron.ctl.node import json_option, print_json
from ron.ctl.onion_clients import client, write_new
from ron.ctl.onion_events import events
from ron.ctl.onion_reach import ask, check_ready, find, find_id, reach, until_ready, wait_option
from ron.ctl.onion_text import backends_text, details, parse_clients, parse_ports, parse_pow, summary, table
from ron.kernel.units import parse_quantity
from ron.proto.errors import ErrorCode, RonError, bad_request

if TYPE_CHECKING:
    from ron.proto.onions import ExportAnswer, Isolation, OnionView
    from ron.sdk.onions import Onions

POLL_S = 0.5
# The runtime looks once a second whether the last visitor has gone.
DRAIN_SLACK_S = 5.0

_port_option = click.option(
    "--port",
    "ports",
    multiple=True,
    required=True,
    metavar="ONION:LOCAL",
    help="80:127.0.0.1:8080, in short 80:8080, or 80:unix:/path. Repeat for several.",
)


@click.group("onion")
def onion() -> None:
    """Onions of local ports: make, show, rotate, drain, delete.

    ID is an onion's id or the beginning of it, its address, or its app's name when the app has just one.

    \b
    Examples:
      ronctl onion create --app wiki --port 80:127.0.0.1:8080
      ronctl onion list
      ronctl onion rotate wiki --grace 1h
      ronctl onion client add wiki bob 3Q6K…
      ronctl onion events --app wiki
      ronctl onion delete wiki
    """


@onion.command("create")
@click.option("--app", required=True, help="Whose it is: a-z, 0-9 and -. A capability can be narrowed to one app.")
@_port_option
@click.option("--ephemeral", is_flag=True, help="Its key is kept in memory only, and gone when the daemon ends.")
@click.option("--isolation", type=click.Choice(["shared", "process"]), help="process: a tor of its own.")
@click.option("--client", "clients", multiple=True, metavar="NAME=PUBKEY", help="Only these can find it. Repeat.")
@click.option("--pow", "with_pow", is_flag=True, help="tor's proof of work for visitors, asked for under load.")
@click.option("--pow-rate", type=int, metavar="N", help="With --pow: so many requests a second.  [250]")
@click.option("--pow-burst", type=int, metavar="N", help="With --pow: so many at once.  [2500]")
@click.option("--max-streams", type=int, default=0, metavar="N", help="Connections a visitor may have; 0 is no limit.")
@click.option("--region", "regions", multiple=True, metavar="LABEL", help="Where it should be met: own relays' labels.")
@wait_option
@op_id_option
@reach
def create(
    app: str,
    ports: tuple[str, ...],
    ephemeral: bool,
    isolation: Isolation | None,
    clients: tuple[str, ...],
    with_pow: bool,
    pow_rate: int | None,
    pow_burst: int | None,
    max_streams: int,
    regions: tuple[str, ...],
    wait_s: float,
    op_id: str | None,
    control: str | None,
    cap: str | None,
    as_json: bool,
) -> None:
    """Make an onion for local ports, and wait until it can be found.

    \b
    Examples:
      ronctl onion create --app wiki --port 80:127.0.0.1:8080
      ronctl onion create --app chat --port 80:unix:/run/chat.sock --port 6667:6667 --client bob=3Q6K…
      ADDRESS=$(ronctl onion create --app drop --port 80:8080 --ephemeral)
    """
    from ron.proto.onions import Hints, Limits
    from ron.sdk.onions import new_op_id

    bound, visitors = parse_ports(ports), parse_clients(clients)
    pow_, one_act = parse_pow(with_pow, pow_rate, pow_burst), op_id or new_op_id()

    async def work(reactor: Any, onions: Onions) -> OnionView:
        async def act(seconds: float) -> OnionView:
            return await onions.create(
                app,
                bound,
                persistence="ephemeral" if ephemeral else "durable",
                isolation=isolation,
                clients=visitors,
                pow=pow_,
                hints=Hints(regions=regions),
                limits=Limits(streams=max_streams),
                wait_s=seconds,
                op_id=one_act,
            )

        return await until_ready(reactor, f"making one for {app}", wait_s, act)

    _show(ask(control, cap, work), wait_s, as_json)


@onion.command("list")
@click.option("--app", help="Only those of this app.")
@reach
def list_command(app: str | None, control: str | None, cap: str | None, as_json: bool) -> None:
    """Every onion that the capability lets us see.

    \b
    Examples:
      ronctl onion list
      ronctl onion list --json | jq -r '.onions[] | select(.ready | not) | .app'
    """
    found = ask(control, cap, lambda _reactor, onions: onions.list())
    found = tuple(one for one in found if app in (None, one.app))
    if as_json:
        print_json({"onions": found})
    elif found:
        click.echo(table(found))
    else:
        _say("no onions; make one: ronctl onion create --app NAME --port 80:127.0.0.1:8080")


@onion.command("status")
@click.argument("onion_id", metavar="ID")
@reach
def status(onion_id: str, control: str | None, cap: str | None, as_json: bool) -> None:
    """One onion in full: whether it can be found, its ports, clients, visitors, and its app's own way out.

    \b
    Examples:
      ronctl onion status wiki
      ronctl onion status 3f0c --json | jq .ready
    """

    async def work(_reactor: Any, onions: Onions) -> OnionView:
        return await onions.get(await find_id(onions, onion_id))

    found = ask(control, cap, work)
    if as_json:
        print_json(found)
    else:
        click.echo(details(found))


@onion.command("bind")
@click.argument("onion_id", metavar="ID")
@_port_option
@wait_option
@op_id_option
@reach
def bind(
    onion_id: str,
    ports: tuple[str, ...],
    wait_s: float,
    op_id: str | None,
    control: str | None,
    cap: str | None,
    as_json: bool,
) -> None:
    """Lead an onion to other local ports; one that was drained serves again.

    \b
    Example:
      ronctl onion bind wiki --port 80:127.0.0.1:8081
    """
    from ron.sdk.onions import new_op_id

    bound, one_act = parse_ports(ports), op_id or new_op_id()

    async def work(reactor: Any, onions: Onions) -> OnionView:
        meant = await find_id(onions, onion_id)

        async def act(seconds: float) -> OnionView:
            return await onions.bind(meant, bound, wait_s=seconds, op_id=one_act)

        return await until_ready(reactor, "leading it to other ports", wait_s, act)

    _show(ask(control, cap, work), wait_s, as_json)


@onion.command("rotate")
@click.argument("onion_id", metavar="ID")
@click.option("--grace", default="24h", show_default=True, metavar="TIME", help="How long the old address is served.")
@wait_option
@op_id_option
@reach
def rotate(
    onion_id: str, grace: str, wait_s: float, op_id: str | None, control: str | None, cap: str | None, as_json: bool
) -> None:
    """A new key and so a new address; the old one is served for a while. Its clients stay, and need a new line each.

    \b
    Examples:
      ronctl onion rotate wiki --grace 7d
      ronctl onion rotate wiki --grace 0s
    """
    from ron.sdk.onions import new_op_id

    grace_s, one_act = int(parse_quantity(grace, "s")), op_id or new_op_id()

    async def work(reactor: Any, onions: Onions) -> OnionView:
        meant = await find_id(onions, onion_id)

        async def act(seconds: float) -> OnionView:
            return await onions.rotate(meant, grace_s=grace_s, wait_s=seconds, op_id=one_act)

        return await until_ready(reactor, "making a new key", wait_s, act)

    found = ask(control, cap, work)
    _show(found, wait_s, as_json)
    if found.previous is not None and not as_json:
        _say(f"the old address {found.previous.onion} is served until {found.previous.until}")


@onion.command("drain")
@click.argument("onion_id", metavar="ID")
@click.option("--deadline", default="60s", show_default=True, metavar="TIME", help="How long visitors may stay.")
@click.option("--wait/--no-wait", "wait", default=True, help="Wait until the last has gone.")
@op_id_option
@reach
def drain(
    onion_id: str, deadline: str, wait: bool, op_id: str | None, control: str | None, cap: str | None, as_json: bool
) -> None:
    """No new visitors; those who are there may finish. `bind` puts it into service again, at the same address.

    \b
    Example:
      ronctl onion drain wiki --deadline 5m && systemctl stop wiki
    """
    from ron.sdk.onions import new_op_id

    deadline_s, one_act = int(parse_quantity(deadline, "s")), op_id or new_op_id()

    async def work(reactor: Any, onions: Onions) -> OnionView:
        meant = await find_id(onions, onion_id)
        view = await onions.drain(meant, deadline_s=deadline_s, op_id=one_act)
        ends_s = reactor.seconds() + deadline_s + DRAIN_SLACK_S
        with StageConsole(sys.stderr) as console:
            while wait and view.state == "draining" and reactor.seconds() < ends_s:
                console.show("drain", 0, 1, f"{view.circuits} circuits of visitors")
                await deferLater(reactor, POLL_S)
                view = await onions.drain(meant, deadline_s=deadline_s, op_id=one_act)
        return view

    found = ask(control, cap, work)
    if as_json:
        print_json(found)
    else:
        click.echo(f"{found.id}: {found.state}")
    if wait and found.state == "draining":
        raise RonError(ErrorCode.TIMEOUT, "it is still draining", hint=f"ronctl onion status {found.id}")


@onion.command("delete")
@click.argument("onion_id", metavar="ID")
@yes_option
@op_id_option
@reach
def delete(onion_id: str, yes: bool, op_id: str | None, control: str | None, cap: str | None, as_json: bool) -> None:
    """End an onion for good, its key with it: nobody can bring the address back. On a terminal it asks first.

    \b
    Examples:
      ronctl onion delete wiki
      ronctl onion delete 3f0c… --yes
    """

    async def work(_reactor: Any, onions: Onions) -> str:
        if is_asked(yes):
            view = await find(onions, onion_id)
            confirm(f"Delete {view.onion} of {view.app}, key and all?")
            meant = view.id
        else:
            meant = await find_id(onions, onion_id)
        await onions.delete(meant, op_id=op_id)
        return meant

    gone = ask(control, cap, work)
    if as_json:
        print_json({"id": gone, "deleted": True})
    else:
        click.echo(f"{gone}: deleted")


@onion.command("export")
@click.argument("onion_id", metavar="ID")
@click.option("--out", type=click.Path(path_type=Path), help="A new file for the key, its owner's alone.  [stdout]")
@yes_option
@op_id_option
@reach
def export(
    onion_id: str, out: Path | None, yes: bool, op_id: str | None, control: str | None, cap: str | None, as_json: bool
) -> None:
    """Hand out an onion's private key: whoever has it is the onion. Needs scope onion:export, and is written down.

    It is printed as tor's control port takes it. On a terminal it asks first.

    \b
    Example:
      ronctl onion export wiki --out wiki.key
    """

    async def work(_reactor: Any, onions: Onions) -> ExportAnswer:
        if is_asked(yes):
            view = await find(onions, onion_id)
            confirm(f"Export the private key of {view.onion} ({view.app})?")
            return await onions.export(view.id, op_id=op_id)
        return await onions.export(await find_id(onions, onion_id), op_id=op_id)

    if out is not None and out.exists():
        raise bad_request(f"{out} exists", "name a file that does not")
    found = ask(control, cap, work)
    if out is not None:
        write_new(out, f"{found.key}\n")
    if as_json:
        print_json(found if out is None else {"id": found.id, "onion": found.onion, "file": str(out)})
    else:
        click.echo(found.key if out is None else f"the key of {found.onion} is in {out}")


@onion.command("backends")
@click.option("--tor", "tor_binary", default="tor", show_default=True, help="The tor program, a name or a path.")
@click.option("--arti", "arti_binary", default="arti", show_default=True, help="The arti program, likewise.")
@json_option
def backends(tor_binary: str, arti_binary: str, as_json: bool) -> None:
    """What this host could run onions on, what each can do, and what it cannot and why. Asks no daemon.

    \b
    Examples:
      ronctl onion backends
      ronctl onion backends --json | jq '.backends[] | {name, available, version}'
    """
    from ron.tor.backends import detect

    found = detect(tor_binary, arti_binary)
    if as_json:
        print_json({"backends": msgspec.to_builtins(found, order="sorted")})
    else:
        click.echo(backends_text(found))


onion.add_command(client)
onion.add_command(events)


def _show(view: OnionView, wait_s: float, as_json: bool) -> None:
    """What became of an act; Timeout when it is not what was waited for."""
    if as_json:
        print_json(view)
    else:
        _say(summary(view))
        click.echo(view.onion)
    check_ready(view, wait_s)


def _say(text: str) -> None:
    click.echo(text, err=True)
