"""`ronctl tornet init|join|add-relay|rotate-certs|replace-authority|check`: a private Tor network over several hosts.

In: the operator's folder, and what should change; on a host, a bundle. Out: bundles to carry; a node ready to start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ron.ctl.node import home, json_option, print_json
from ron.kernel.files import read_private
from ron.kernel.units import parse_duration_s
from ron.proto.errors import bad_request

if TYPE_CHECKING:
    from ron.tor.hostnet.plan import Node
    from ron.tor.hostnet.workshop import Result, Workshop

F = TypeVar("F", bound=Callable[..., Any])
PASSPHRASE_VARIABLE = "RON_TORNET_PASSPHRASE"  # noqa: S105 - the variable's name

_NET = click.option(
    "--net", type=click.Path(path_type=Path), help="The operator's folder, made by init.  [$RON_HOME/network]"
)
_TOR = click.option("--tor", "tor_binary", default="tor", show_default=True, help="The tor program, a name or a path.")
_REGION = click.option(
    "--region",
    "regions",
    multiple=True,
    metavar="[NAME=]LABEL",
    help="Where nodes stand, for the manifest: all of them, or the one called NAME. Repeat.",
)
_PASSPHRASE = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help=f"The vault's passphrase is the first line of this file (else ${PASSPHRASE_VARIABLE}, else it is asked for).",
)


@click.command("init")
@click.option(
    "--authority", "authorities", multiple=True, metavar="NAME=HOST[:ORPORT[:DIRPORT]]", help="Repeat: 3 to 9."
)
@click.option("--relay", "relays", multiple=True, metavar="NAME=HOST[:ORPORT]", help="Repeat: at least two.")
@click.option("--out", type=click.Path(path_type=Path), help="A new folder for it all.  [$RON_HOME/network]")
@_REGION
@click.option("--voting-interval", default="5m", show_default=True, help="How often the authorities agree anew.")
@_PASSPHRASE
@_TOR
@json_option
def init(
    authorities: tuple[str, ...],
    relays: tuple[str, ...],
    out: Path | None,
    regions: tuple[str, ...],
    voting_interval: str,
    passphrase_file: Path | None,
    tor_binary: str,
    as_json: bool,
) -> None:
    """Plan a network over several hosts and make its bundles: one per node, one for clients.

    HOST is an IPv4 address the others reach. Ports are 9001 and 9030 for an authority, 9101 for a relay, if not given.
    The authorities' identity keys stay in vault/, under a passphrase: keep that folder offline.

    \b
    Examples:
      ronctl tornet init --out net --authority a1=10.0.0.1 --authority a2=10.0.0.2 --authority a3=10.0.0.3 \\
          --relay r1=10.0.0.4 --relay r2=10.0.0.5 --region eu --region r2=us
      ronctl tornet init --out net --authority a1=10.0.0.1:443:80 … --voting-interval 10m --passphrase-file pass
    """
    from ron.tor.hostnet.plan import check_interval, check_nodes

    nodes = _nodes("authority", authorities, regions) + _nodes("relay", relays, regions)
    check_nodes(nodes)
    _refuse_unused(regions, nodes)
    interval_s = check_interval(parse_duration_s(voting_interval))
    workshop = _workshop(out, tor_binary)
    result = workshop.init(nodes, interval_s, _passphrase(passphrase_file, confirm=True))
    _report(result, as_json, f"Keep {result.directory}/vault offline; its passphrase cannot be recovered.")


@click.command("join")
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="NAME.tar, readable by its owner only.")
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path), help="Where the node lives.")
@click.option("--user", help="Who tor runs as, when root joins: debian-tor.  [default: whoever runs this]")
@click.option("--socks-port", type=int, help="For a client: where programs find it.  [default: 9050]")
@click.option("--sha256", help="What the bundle's SHA-256 must be.")
@_TOR
@json_option
def join(
    bundle: Path,
    directory: Path,
    user: str | None,
    socks_port: int | None,
    sha256: str | None,
    tor_binary: str,
    as_json: bool,
) -> None:
    """On a host: unpack a bundle, or update the node by a newer one. Starts nothing.

    \b
    Examples:
      sudo ronctl tornet join --bundle a1.tar --dir /var/lib/ron-tor/a1 --user debian-tor
      ronctl tornet join --bundle client.tar --dir ~/tor-client --socks-port 9150
    """
    from ron.tor.binary import find_tor
    from ron.tor.hostnet.bundles import read_bundle
    from ron.tor.hostnet.join import join as join_node

    read = read_bundle(bundle, sha256)
    joined = join_node(read, directory.absolute(), find_tor(tor_binary), user=user, socks_port=socks_port)
    if as_json:
        print_json(joined)
        return
    click.echo(f"{joined.role} {joined.name}, generation {joined.generation}, in {joined.directory}, for {joined.user}")
    if joined.user == "root":
        click.echo("tor would run as root: better join again with --user debian-tor", err=True)
    unit = f"ron-tor-{joined.name}"
    click.echo(f"  install  cp {joined.directory}/{unit}.service /etc/systemd/system/ && systemctl daemon-reload")
    click.echo(f"  start    systemctl enable --now {unit}    (a running one: systemctl reload {unit})")


@click.command("add-relay")
@click.argument("relays", nargs=-1, required=True, metavar="NAME=HOST[:ORPORT]...")
@_NET
@_REGION
@_TOR
@json_option
def add_relay(
    relays: tuple[str, ...], net: Path | None, regions: tuple[str, ...], tor_binary: str, as_json: bool
) -> None:
    """Make bundles for further relays, and updates for the authorities, which admit nobody else.

    \b
    Examples:
      ronctl tornet add-relay --net net r3=10.0.0.6 r4=10.0.0.7:443 --region us
    """
    nodes = _nodes("relay", relays, regions)
    _refuse_unused(regions, nodes)
    _report(_workshop(net, tor_binary).add_relays(nodes), as_json, "Update the authorities first: join, then reload.")


@click.command("rotate-certs")
@_NET
@click.option("--before", default="30d", show_default=True, help="Renew certificates that end within this time.")
@click.option("--authority", "names", multiple=True, metavar="NAME", help="This one in any case. Repeat.")
@_PASSPHRASE
@_TOR
@json_option
def rotate_certs(
    net: Path | None,
    before: str,
    names: tuple[str, ...],
    passphrase_file: Path | None,
    tor_binary: str,
    as_json: bool,
) -> None:
    """New signing keys and certificates for authorities, before the old ones end. Identities stay.

    Needs the vault. Does nothing when none is due, so a timer may run it.

    \b
    Examples:
      ronctl tornet rotate-certs --net net
      ronctl tornet rotate-certs --net net --before 90d --passphrase-file pass
      ronctl tornet rotate-certs --net net --authority a2
    """
    from ron.tor.hostnet.workshop import due_for_renewal

    workshop, within = _workshop(net, tor_binary), timedelta(seconds=parse_duration_s(before))
    now = datetime.now(UTC)
    manifest = workshop.manifest()
    needed = names or due_for_renewal(manifest, now, within)
    passphrase = _passphrase(passphrase_file, confirm=False) if needed else b""
    result = workshop.rotate_certificates(now, within, passphrase, names)
    _report(result, as_json, "Carry them soon: join, then reload." if needed else "No certificate is due.")


@click.command("replace-authority")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW=HOST[:ORPORT[:DIRPORT]]")
@_NET
@_REGION
@_PASSPHRASE
@_TOR
@json_option
def replace_authority(
    old: str,
    new: str,
    net: Path | None,
    regions: tuple[str, ...],
    passphrase_file: Path | None,
    tor_binary: str,
    as_json: bool,
) -> None:
    """A new authority in the place of one that is lost. Everybody gets an update: each tor knows all authorities.

    The network goes on meanwhile as long as more than half of the authorities vote. Update the authorities first.

    \b
    Examples:
      ronctl tornet replace-authority a2 a4=10.0.0.8 --net net
    """
    nodes = _nodes("authority", [new], regions)
    _refuse_unused(regions, nodes)
    workshop = _workshop(net, tor_binary)
    workshop.manifest().node(old)
    result = workshop.replace_authority(old, nodes[0], _passphrase(passphrase_file, confirm=False))
    _report(result, as_json, "Update authorities, then relays, then clients: join, then reload.")


def _workshop(directory: Path | None, tor_binary: str) -> Workshop:
    from ron.tor.binary import find_tor
    from ron.tor.hostnet.workshop import Workshop

    return Workshop(network_folder(directory), find_tor(tor_binary))


def network_folder(directory: Path | None) -> Path:
    """The operator's folder: the one named, else `$RON_HOME/network`."""
    return (directory or home() / "network").absolute()


def _nodes(role: Any, given: Sequence[str], regions: Sequence[str]) -> list[Node]:
    from ron.tor.hostnet.plan import parse_node

    everywhere = [label for label in regions if "=" not in label]
    if len(everywhere) > 1:
        raise bad_request(f"two regions for all nodes: {', '.join(everywhere)}", "name the node: --region NAME=LABEL")
    own = dict(region.split("=", 1) for region in regions if "=" in region)
    usual = everywhere[0] if everywhere else None
    return [parse_node(role, text, own.get(text.partition("=")[0], usual)) for text in given]


def _refuse_unused(regions: Sequence[str], nodes: Sequence[Node]) -> None:
    names = {node.name for node in nodes}
    for region in regions:
        if "=" in region and region.split("=", 1)[0] not in names:
            raise bad_request(f"--region {region} names no node given here", "NAME is one of the nodes'")


def _passphrase(path: Path | None, *, confirm: bool) -> bytes:
    """The first line of the file, else the environment's, else what is typed."""
    from ron.tor.hostnet.vault import check_passphrase

    if path is not None:
        try:
            given = read_private(path).split(b"\n", 1)[0].rstrip(b"\r")
        except OSError as error:
            raise bad_request(f"cannot read {path}: {error.strerror}", "name a readable file") from None
    elif os.environ.get(PASSPHRASE_VARIABLE):
        given = os.environ[PASSPHRASE_VARIABLE].encode()
    elif sys.stdin.isatty():
        given = click.prompt("The vault's passphrase", hide_input=True, confirmation_prompt=confirm, err=True).encode()
    else:
        raise bad_request("the vault needs a passphrase", f"--passphrase-file FILE, or ${PASSPHRASE_VARIABLE}")
    return check_passphrase(given)


def _report(result: Result, as_json: bool, advice: str) -> None:
    if as_json:
        print_json(result)
        return
    manifest = result.manifest
    count = len(manifest.authorities())
    click.echo(
        f"network {manifest.network_id}, generation {manifest.generation}: {count} authorities, "
        f"{len(manifest.nodes) - count} relays, in {result.directory}"
    )
    for made in result.bundles:
        click.echo(f"  {made.name:<19} {made.role:<9} {'new   ' if made.whole else 'update'} {made.file}")
        click.echo(f"  {'':<19} sha256 {made.sha256}")
    click.echo(advice)
