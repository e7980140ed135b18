"""`ronctl balance init|join`: the files of a node that has not run yet.

In: a name and addresses, or an invitation. Out: the node's directory in `$RON_HOME`, a config file, and for the first
node the cluster's CA in the layout of `ronctl ca`. Everything is checked before anything is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ron.ctl.balance_config import Wanted, config_path, tables, write
from ron.ctl.balance_keys import parse_shares
from ron.ctl.node import home, json_option, print_json
from ron.kernel.files import private_dir, read_private, write_private
from ron.proto.errors import ErrorCode, RonError, bad_request, conflict, unavailable

if TYPE_CHECKING:
    from ron.crypto.x509 import Keyed
    from ron.services.balance.mesh.files import NodeFiles

F = TypeVar("F", bound=Callable[..., Any])
DIRECTORY = "balance"
PASSPHRASE_VARIABLE = "RON_CA_PASSPHRASE"  # noqa: S105 - the variable's name
# More than any invitation has.
BUNDLE_BYTES = 256 * 1024
_path = click.Path(path_type=Path)
ca_option = click.option("--ca-dir", type=_path, metavar="DIR", help="The cluster's CA.  [$RON_HOME/ca]")
_OPTIONS = (
    click.option("--listen", required=True, metavar="HOST:PORT", help="Where other nodes reach this one."),
    click.option("--advertise", default="", metavar="HOST:PORT", help="If they reach it elsewhere, e.g. at an onion."),
    click.option("--socks", default="", metavar="127.0.0.1:PORT", help="A client tor, for nodes that are at onions."),
    click.option("--service", default="main", show_default=True, metavar="NAME", help="The address's name among us."),
    click.option(
        "--port",
        "ports",
        required=True,
        multiple=True,
        metavar="PORT:TARGET",
        help="80:127.0.0.1:8080, 80:unix:/run/app.sock or 80:<onion>:80. Repeat for several.",
    ),
    click.option("--threshold", metavar="T-of-N", help="No node has the key; any T of N sign.  [every node has it]"),
    click.option(
        "--approval",
        type=click.Choice(["operator", "token"]),
        default="operator",
        show_default=True,
        help="Who gets key or share: whom an operator approved, each time it starts; or any node with the token.",
    ),
    click.option("--torrc", type=_path, metavar="FILE", help="The nodes' own Tor network: its lines for clients."),
    click.option("--public", is_flag=True, help="The public Tor network, as a client and host of onions only."),
    click.option("--admin", default="", metavar="127.0.0.1:PORT", help="Health and metrics.  [127.0.0.1:9909]"),
    click.option(
        "--out", type=_path, default=Path("etc"), show_default=True, metavar="DIR", help="Where balance.toml goes."
    ),
)


def _node_options(command: F) -> F:
    """What both a first and a later node are told."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command("init")
@click.argument("name")
@_node_options
@ca_option
@json_option
def init(name: str, ca_dir: Path | None, out: Path, as_json: bool, **given: Any) -> None:
    """Begin a cluster: the files and the config of its first node, called NAME.

    A CA that is in --ca-dir signs for the nodes; without one it is made. Its key lets others join: keep it as one.
    Without --torrc and --public the node gets a private Tor network on this host, which other hosts cannot share.

    \b
    Examples:
      ronctl balance init alpha --listen 10.7.0.1:9470 --port 80:127.0.0.1:8080 --torrc /etc/ron/snippet.torrc
      ronctl balance init alpha --listen 10.7.0.1:9470 --port 80:unix:/run/app.sock --threshold 2-of-3 --public
    """
    from ron.services.balance.mesh.files import found

    wanted = _wanted(name, (), given)
    config, directory = tables(wanted), _new_directory(out)
    ca_folder = (ca_dir or home() / "ca").absolute()
    authority = load_ca(ca_folder) if (ca_folder / "ca.pem").exists() else _make_ca(ca_folder)
    files = found(directory, name, authority)
    path = write(out, config)
    _report(files, path, ca_folder, as_json, _next_of_first(path, wanted))


@click.command("join")
@click.argument("bundle", type=click.Path(path_type=Path, allow_dash=True))
@_node_options
@json_option
def join(bundle: Path, out: Path, as_json: bool, **given: Any) -> None:
    """Make the files and the config of a node that was invited.

    BUNDLE is what `ronctl balance invite` gave, - is stdin. It asks nobody: the node joins when it runs. The bundle is
    a secret; delete it afterwards. --service must be as on the other nodes; its ports are this node's own.

    \b
    Examples:
      ronctl balance join beta.bundle --listen 10.7.0.2:9470 --port 80:127.0.0.1:8080 --torrc /etc/ron/snippet.torrc
      ssh alpha ronctl balance invite beta | ronctl balance join - --listen 10.7.0.2:9470 --port 80:8080 --public
    """
    import msgspec

    from ron.services.balance.mesh.files import Invitation, accept

    text = _read_bundle(bundle)
    try:
        invited = msgspec.json.decode(text, type=Invitation)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise bad_request(f"{bundle} is no invitation", "give the whole file that invite wrote") from None
    wanted = _wanted(invited.name, invited.seeds, given)
    config, directory = tables(wanted), _new_directory(out)
    files = accept(directory, text)
    path = write(out, config)
    lines = [f"twistd -n ron-balance --config {path}"]
    if wanted.approval == "operator":
        lines += [f"ronctl balance approve {files.name}      # on a node that is in the cluster"]
    _report(files, path, None, as_json, [*lines, "ronctl balance status"])


def load_ca(folder: Path) -> Keyed:
    """The CA in `folder`, as `ronctl ca init` made it. Raises `RonError`."""
    from ron.crypto import x509

    passphrase = os.environ.get(PASSPHRASE_VARIABLE)
    try:
        key, certificate = read_private(folder / "ca.key"), (folder / "ca.pem").read_bytes()
    except FileNotFoundError:
        raise RonError(
            ErrorCode.NOT_FOUND, f"there is no CA with its key in {folder}", hint="name its directory with --ca-dir"
        ) from None
    except OSError as error:
        raise bad_request(f"cannot read the CA in {folder}: {error.strerror}") from None
    return x509.load_ca(certificate, key, passphrase.encode() if passphrase else None)


def _make_ca(folder: Path) -> Keyed:
    from ron.crypto import x509

    if folder.exists() and any(folder.iterdir()):
        raise conflict(f"there are other files in {folder}", "name a new directory, or one with a CA, with --ca-dir")
    made = x509.init_ca("RustBalance CA")
    passphrase = os.environ.get(PASSPHRASE_VARIABLE)
    try:
        private_dir(folder)
        write_private(folder / "ca.key", x509.key_pem(made.key, passphrase.encode() if passphrase else None))
        write_private(folder / "ca.pem", x509.certificate_pem(made.certificate))
    except OSError as error:
        raise unavailable(f"cannot write {folder}: {error.strerror}") from None
    return made


def _wanted(name: str, seeds: tuple[str, ...], given: dict[str, Any]) -> Wanted:
    mode, threshold, members = parse_shares(given.pop("threshold"))
    ports = tuple(_port(text) for text in given.pop("ports"))
    return Wanted(
        node=name,
        seeds=seeds,
        ports=ports,
        mode=mode,
        threshold=threshold,
        members=members,
        directory=DIRECTORY,
        **given,
    )


def _port(text: str) -> str:
    """`80:8080` is short for `80:127.0.0.1:8080`."""
    onion_port, _, target = text.partition(":")
    return f"{onion_port}:127.0.0.1:{target}" if target.isdigit() else text


def _new_directory(out: Path) -> Path:
    """Where the node's files go, when neither they nor its config are there yet."""
    config_path(out)
    directory = home() / DIRECTORY
    if (directory / "node.json").exists():
        raise conflict(f"{directory} holds a node already", "set RON_HOME to another home, or remove this one")
    return directory


def _read_bundle(path: Path) -> str:
    if str(path) == "-":
        content = sys.stdin.buffer.read(BUNDLE_BYTES + 1)
    else:
        try:
            content = read_private(path)
        except OSError as error:
            raise bad_request(f"cannot read {path}: {error.strerror}") from None
    if len(content) > BUNDLE_BYTES:
        raise bad_request(f"{path} is no invitation: it is too long")
    return content.decode("utf-8", "replace")


def _next_of_first(path: Path, wanted: Wanted) -> list[str]:
    shares = f" --threshold {wanted.threshold}-of-{wanted.members}" if wanted.mode == "threshold" else ""
    add = f"ronctl balance service add {wanted.service}{shares}"
    run, invite = f"twistd -n ron-balance --config {path}", "ronctl balance invite NAME --out NAME.bundle"
    # shares need their holders first
    return [run, invite, add] if shares else [run, add, invite]


def _report(files: NodeFiles, config: Path, ca_folder: Path | None, as_json: bool, following: list[str]) -> None:
    if as_json:
        ca = {"ca": str(ca_folder)} if ca_folder is not None else {}
        made = {"node": files.name, "cluster": files.cluster.hex(), "directory": str(files.directory)}
        print_json({**made, "config": str(config), **ca, "next": following})
        return
    click.echo(f"node {files.name} of cluster {files.cluster.hex()[:8]}: {config}, {files.directory}")
    if ca_folder is not None:
        click.echo(f"the CA is in {ca_folder}; whoever has its key can make nodes")
    click.echo("next:")
    for line in following:
        click.echo(f"  {line}")
