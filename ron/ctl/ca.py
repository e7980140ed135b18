"""`ronctl ca`: the node CA and the certificates of its nodes, as files.

In: a directory and names. Out: PEM files, keys 0600; nothing that exists is overwritten but by `renew`.
Layout: `ca.pem`, `ca.key`, and for every node `nodes/<name>.pem`; `nodes/<name>.key` too, unless `--out` was given.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from ron.ctl.node import home, json_option, print_json
from ron.kernel.files import DirectoryLock, private_dir, read_private, write_private
from ron.proto.errors import ErrorCode, RonError, bad_request, conflict

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from ron.crypto.x509 import CertificateFacts, Keyed

LOOPBACK_DNS, LOOPBACK_ADDRESSES = ("localhost",), ("127.0.0.1", "::1")
PASSPHRASE_VARIABLE = "RON_CA_PASSPHRASE"  # noqa: S105 - the variable's name

_DIR = click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="The CA's directory.  [default: $RON_HOME/ca]"
)
_PASSPHRASE = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help=f"The CA key's passphrase is the first line of this file (else of ${PASSPHRASE_VARIABLE}, else none).",
)
_OUT = click.option(
    "--out", type=click.Path(path_type=Path), help="Put the node's files and ca.pem here.  [default: <dir>/nodes]"
)


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate as `--json` shows it. days_left: begun days, negative once expired. file, key_file: paths."""

    name: str
    identity: str | None
    dns: tuple[str, ...]
    addresses: tuple[str, ...]
    serial: str
    not_after: datetime
    days_left: int
    sha256: str
    file: str
    key_file: str | None = None


class CaShown(msgspec.Struct, frozen=True, kw_only=True):
    """What `ronctl ca show --json` prints. damaged: files in `nodes/` that hold no certificate."""

    directory: str
    ca: Listed
    nodes: list[Listed]
    damaged: list[str]


@click.group("ca")
def ca() -> None:
    """The node CA: certificates by which nodes know one another.

    \b
    Examples:
      ronctl ca init --name "my nodes"
      ronctl ca issue alpha --dns alpha.internal --ip 10.0.0.7 --out /etc/ron/tls
      ronctl ca show
      ronctl ca renew alpha --out /etc/ron/tls
    """


@ca.command()
@_DIR
@click.option("--name", default="RustyOnions node CA", show_default=True, help="What certificates call their issuer.")
@click.option("--days", default=3650, show_default=True, help="How long it is valid.")
@click.option("--permit-dns", multiple=True, metavar="DOMAIN", help="Besides the private ones, sign for this domain.")
@click.option("--permit-net", multiple=True, metavar="CIDR", help="Besides the private ones, sign for this network.")
@_PASSPHRASE
@json_option
def init(
    directory: Path | None,
    name: str,
    days: int,
    permit_dns: tuple[str, ...],
    permit_net: tuple[str, ...],
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Make a CA: ca.key (keep it secret, best with a passphrase) and ca.pem (give it to every node).

    It may sign for localhost, *.internal, *.local, *.home.arpa, *.onion and private networks only, so that whoever
    steals the key cannot pose as a public site. Name other domains and networks now: it cannot be changed later.

    \b
    Examples:
      ronctl ca init
      ronctl ca init --name "example nodes" --permit-dns nodes.example.org --permit-net 203.0.113.0/24
      ronctl ca init --dir /mnt/stick/ca --passphrase-file ~/ca.pass
    """
    from ron.crypto import x509

    folder, passphrase = _folder(directory), _passphrase(passphrase_file)
    domains, networks = (*x509.PRIVATE_DNS, *permit_dns), (*x509.PRIVATE_NETWORKS, *permit_net)
    made = x509.init_ca(name, days, permitted_dns=domains, permitted_networks=networks)
    _refuse_full(folder)
    with _owned(folder):
        _refuse_existing(folder / "ca.key", folder / "ca.pem", hint="choose another directory with --dir")
        _write(folder / "ca.key", x509.key_pem(made.key, passphrase))
        _write(folder / "ca.pem", x509.certificate_pem(made.certificate))
    _report(made.certificate, folder / "ca.pem", folder / "ca.key", as_json)


@ca.command()
@click.argument("name")
@_DIR
@click.option("--dns", multiple=True, metavar="NAME", help="A DNS name it answers to. Repeat for several.")
@click.option("--ip", multiple=True, metavar="ADDRESS", help="An IP address it answers at. Repeat for several.")
@click.option("--days", default=90, show_default=True, help="How long it is valid (never longer than the CA).")
@_OUT
@_PASSPHRASE
@json_option
def issue(
    name: str,
    directory: Path | None,
    dns: tuple[str, ...],
    ip: tuple[str, ...],
    days: int,
    out: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Make NAME.key and NAME.pem for the node NAME, whose identity is ron://node/NAME.

    Good as a server's and as a client's certificate. With neither --dns nor --ip it is for localhost.

    \b
    Examples:
      ronctl ca issue alpha
      ronctl ca issue alpha --dns alpha.internal --ip 10.0.0.7 --days 30 --out /etc/ron/tls
    """
    from ron.crypto import x509

    folder = _existing(directory)
    x509.check_node_name(name)  # before it becomes a path
    if not dns and not ip:
        dns, ip = LOOPBACK_DNS, LOOPBACK_ADDRESSES
    authority = _load_ca(folder, passphrase_file)
    made = x509.issue(authority, name, dns=dns, addresses=ip, valid_days=days)
    record, target = folder / "nodes" / f"{name}.pem", _target(folder, out)
    with _owned(folder):
        _refuse_existing(
            record, target / f"{name}.pem", target / f"{name}.key", hint=f"ronctl ca renew {name}, or another name"
        )
        _put_node(target, record, name, authority, made.certificate, x509.key_pem(made.key))
    _report(made.certificate, target / f"{name}.pem", target / f"{name}.key", as_json)


@ca.command()
@click.argument("name")
@_DIR
@click.option("--days", default=90, show_default=True, help="How long the new certificate is valid.")
@click.option("--new-key", is_flag=True, help="A new private key too (written where the certificate goes).")
@_OUT
@_PASSPHRASE
@json_option
def renew(
    name: str,
    directory: Path | None,
    days: int,
    new_key: bool,
    out: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Replace NAME.pem by one with the same names and a later end. A running node takes it up within a second.

    The key stays, and need not be here. Give the same --out as with `issue`.

    \b
    Examples:
      ronctl ca renew alpha
      ronctl ca renew alpha --new-key --out /etc/ron/tls
    """
    from ron.crypto import x509

    folder = _existing(directory)
    record, target = folder / "nodes" / f"{x509.check_node_name(name)}.pem", _target(folder, out)
    with _owned(folder):
        if not _exists(record):
            raise RonError(ErrorCode.NOT_FOUND, f"no certificate was issued to {name}", hint=f"ronctl ca issue {name}")
        old = _load_certificate(record)
        authority = _load_ca(folder, passphrase_file)
        key, certificate = x509.renew(authority, old, new_key=new_key, valid_days=days)
        _put_node(target, record, name, authority, certificate, x509.key_pem(key) if key is not None else None)
    written = target / f"{name}.key"
    _report(certificate, target / f"{name}.pem", written if _exists(written) else None, as_json)


@ca.command()
@_DIR
@json_option
def show(directory: Path | None, as_json: bool) -> None:
    """List the CA and its nodes' certificates with the days they have left. Needs no passphrase.

    \b
    Examples:
      ronctl ca show
      ronctl ca show --json | jq '.nodes[] | select(.days_left < 14) | .name'
    """
    folder = _existing(directory)
    nodes, damaged = [], []
    for path in sorted((folder / "nodes").glob("*.pem")):
        try:
            nodes.append(_listed(_load_certificate(path), path, path.with_suffix(".key")))
        except RonError:
            damaged.append(str(path))
    authority = _listed(_load_certificate(folder / "ca.pem"), folder / "ca.pem", folder / "ca.key")
    if as_json:
        print_json(CaShown(directory=str(folder), ca=authority, nodes=nodes, damaged=damaged))
        return
    click.echo(f"{authority.name}, {_time_left(authority)}, in {folder}")
    for node in nodes:
        click.echo(f"  {node.name:<20} {_time_left(node):<34} {', '.join((*node.dns, *node.addresses))}")
    for name in damaged:
        click.echo(f"  damaged: {name}; fix: restore it from a backup, or remove it and issue anew")


def _folder(directory: Path | None) -> Path:
    return (directory or home() / "ca").absolute()


def _existing(directory: Path | None) -> Path:
    """The CA's directory. Raises `RonError` NotFound when there is no CA in it."""
    folder = _folder(directory)
    if not _exists(folder / "ca.pem"):
        raise RonError(
            ErrorCode.NOT_FOUND,
            f"there is no CA in {folder}",
            hint=f"make one (ronctl ca init --dir {folder}) or --dir",
        )
    return folder


def _target(folder: Path, out: Path | None) -> Path:
    return out.absolute() if out is not None else folder / "nodes"


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """One `ronctl ca` at a time writes here."""
    try:
        lock = DirectoryLock(folder)
    except OSError as error:
        raise bad_request(f"cannot use {folder}: {error.strerror}", hint="name a writable one with --dir") from None
    try:
        yield
    finally:
        lock.release()


def _passphrase(path: Path | None) -> bytes | None:
    """The first line of the file, or the environment's; None for neither. An empty one would protect nothing."""
    if path is None:
        given = os.environ.get(PASSPHRASE_VARIABLE)
        return given.encode() if given else None
    try:
        passphrase = read_private(path).split(b"\n", 1)[0].rstrip(b"\r")
    except OSError as error:
        raise bad_request(f"cannot read {path}: {error.strerror}", hint="name a readable file") from None
    if not passphrase:
        raise bad_request(f"the first line of {path} is empty", hint="write the passphrase there")
    return passphrase


def _load_ca(folder: Path, passphrase_file: Path | None) -> Keyed:
    from ron.crypto import x509

    passphrase = _passphrase(passphrase_file)
    try:
        key = read_private(folder / "ca.key")
        return x509.load_ca((folder / "ca.pem").read_bytes(), key, passphrase)
    except OSError as error:
        raise bad_request(
            f"cannot read the CA in {folder}: {error.strerror}", hint="restore ca.key and ca.pem"
        ) from None


def _load_certificate(path: Path) -> Certificate:
    from ron.crypto import x509

    try:
        return x509.load_certificate(path.read_bytes())
    except RonError:
        raise bad_request(f"{path} holds no PEM certificate", hint="restore it from a backup") from None
    except OSError as error:
        raise bad_request(f"cannot read {path}: {error.strerror}", hint="restore it from a backup") from None


def _exists(path: Path) -> bool:
    """True also for a link that leads nowhere: writing there would surprise."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise bad_request(f"cannot look at {path}: {error.strerror}", hint="name another directory") from None
    return True


def _refuse_existing(*paths: Path, hint: str) -> None:
    for path in paths:
        if _exists(path):
            raise conflict(f"{path} exists and is not overwritten", hint=hint)


def _refuse_full(folder: Path) -> None:
    """A CA gets a directory of its own: it will be made 0700, which somebody's home or /etc must not become."""
    if not _exists(folder):
        return
    try:
        inside = any(folder.iterdir())
    except OSError as error:
        raise bad_request(f"cannot use {folder}: {error.strerror}", hint="name another with --dir") from None
    if inside:
        what = "there is a CA" if _exists(folder / "ca.key") or _exists(folder / "ca.pem") else "there are other files"
        raise conflict(f"{what} in {folder} already", hint="name a new or empty directory with --dir")


def _put_node(
    target: Path, record: Path, name: str, authority: Keyed, certificate: Certificate, key: bytes | None
) -> None:
    """The key before the certificate, which is what a running node waits for; our record at the end."""
    from ron.crypto import x509

    pem = x509.certificate_pem(certificate)
    if key is not None:
        _write(target / f"{name}.key", key)
    if target != record.parent:
        _write(target / f"{name}.pem", pem)
        _write(target / "ca.pem", x509.certificate_pem(authority.certificate))
    private_dir(record.parent)
    _write(record, pem)


def _write(path: Path, content: bytes) -> None:
    try:
        write_private(path, content)
    except OSError as error:
        raise bad_request(f"cannot write {path}: {error.strerror}", hint="name a writable directory") from None


def _listed(certificate: Certificate, path: Path, key: Path | None) -> Listed:
    from ron.crypto.x509 import describe

    facts: CertificateFacts = describe(certificate)
    days = (facts.not_after - datetime.now(UTC)) / timedelta(days=1)
    return Listed(
        name=facts.subject.removeprefix("CN="),
        identity=facts.identity,
        dns=facts.dns,
        addresses=facts.addresses,
        serial=facts.serial,
        not_after=facts.not_after,
        days_left=math.ceil(days) if days > 0 else math.floor(days),
        sha256=facts.sha256,
        file=str(path),
        key_file=str(key) if key is not None and _exists(key) else None,
    )


def _report(certificate: Certificate, path: Path, key: Path | None, as_json: bool) -> None:
    listed = _listed(certificate, path, key)
    if as_json:
        print_json(listed)
        return
    click.echo(f"{listed.identity or listed.name}, {_time_left(listed)}")
    click.echo(f"  certificate  {listed.file}")
    click.echo(
        f"  key          {listed.key_file or 'not here: put the certificate beside it, or name its place with --out'}"
    )


def _time_left(listed: Listed) -> str:
    until = f"{listed.not_after:%Y-%m-%d}"
    return f"until {until} ({listed.days_left} days)" if listed.days_left > 0 else f"EXPIRED on {until}"
