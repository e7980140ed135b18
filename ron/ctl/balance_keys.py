"""`ronctl balance service|refresh|reshare`: master addresses, and who can sign for them.

In: names, t-of-n, an onion's key file. Out: the address. A key is read from a private file, goes to the node over its
control socket, and is nowhere else.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ron.ctl.balance_reach import ask, op_id_option, reach
from ron.ctl.balance_text import service_line
from ron.ctl.control import confirm, is_asked, yes_option
from ron.ctl.node import print_json
from ron.kernel.files import read_private
from ron.proto.errors import RonError, bad_request

if TYPE_CHECKING:
    from ron.proto.balance import Mode
    from ron.proto.balanceviews import ServiceView

# The file hs_ed25519_secret_key of a tor's HiddenServiceDir begins so, padded to 32 bytes.
_TOR_HEADER = b"== ed25519v1-secret: type0 ==".ljust(32, b"\x00")
_SHARES = re.compile(r"([0-9]{1,3})-of-([0-9]{1,3})")
_mode_option = click.option(
    "--threshold", metavar="T-of-N", help="No node has the key; any T of N sign (2-of-3, 3-of-5).  [every node has it]"
)
_among_option = click.option("--among", metavar="NODE", multiple=True, help="With --threshold: those N. Repeat.")


@click.group("service")
def service() -> None:
    """Master addresses: a new one, or one that exists.

    \b
    Examples:
      ronctl balance service add main
      ronctl balance service add vault --threshold 3-of-5
      ronctl balance service import shop --key /var/lib/tor/shop/hs_ed25519_secret_key
    """


@service.command("add")
@click.argument("name")
@_mode_option
@_among_option
@op_id_option
@reach
def add(
    name: str,
    threshold: str | None,
    among: tuple[str, ...],
    op_id: str | None,
    control: str | None,
    cap: str | None,
    as_json: bool,
) -> None:
    """Make a new address called NAME, and print it. With --threshold its key never exists anywhere.

    \b
    Examples:
      ronctl balance service add main
      ronctl balance service add main --threshold 2-of-3 --among alpha --among beta --among gamma
    """
    mode, needed, members = parse_shares(threshold, among)
    _report(
        ask(
            control,
            cap,
            lambda balance: balance.create(
                name, mode=mode, threshold=needed, members=members, among=among, op_id=op_id
            ),
        ),
        as_json,
    )


@service.command("import")
@click.argument("name")
@click.option("--key", "key_path", required=True, type=click.Path(path_type=Path), help="The key, in a private file.")
@_mode_option
@_among_option
@yes_option
@op_id_option
@reach
def import_command(
    name: str,
    key_path: Path,
    threshold: str | None,
    among: tuple[str, ...],
    yes: bool,
    op_id: str | None,
    control: str | None,
    cap: str | None,
    as_json: bool,
) -> None:
    """Take over an address that exists, called NAME from now on. Its tor must not publish it any more.

    The key is tor's hs_ed25519_secret_key, or what `ronctl onion export` printed. The node keeps it in memory only, or
    shares it out and forgets it. The file stays as it is: move it offline as the copy for the day all nodes are lost.
    On a terminal it asks first.

    \b
    Example:
      ronctl balance service import shop --key shop.key --threshold 2-of-3
    """
    from ron.tor.onionkeys import OnionKey, address_of

    mode, needed, members = parse_shares(threshold, among)
    key = read_key(key_path)
    address = address_of(OnionKey("ED25519-V3:" + base64.b64encode(key).decode()))
    if is_asked(yes):
        confirm(f"Give the key of {address} to the cluster?")
    _report(
        ask(
            control,
            cap,
            lambda balance: balance.create(
                name, mode=mode, threshold=needed, members=members, among=among, key=key, op_id=op_id
            ),
        ),
        as_json,
    )


@click.command("refresh")
@click.argument("name", metavar="SERVICE")
@op_id_option
@reach
def refresh(name: str, op_id: str | None, control: str | None, cap: str | None, as_json: bool) -> None:
    """New shares of the same key, at the same address: what somebody may have stolen is worth nothing afterwards.

    \b
    Example:
      ronctl balance refresh vault
    """
    _report(ask(control, cap, lambda balance: balance.refresh(name, op_id=op_id)), as_json)


@click.command("reshare")
@click.argument("name", metavar="SERVICE")
@click.option("--threshold", type=click.IntRange(2, 16), metavar="T", help="So many sign from now on.")
@click.option("--add", "added", metavar="NODE", multiple=True, help="Gets a share. Repeat for several.")
@click.option("--remove", "removed", metavar="NODE", multiple=True, help="Loses its share. Repeat for several.")
@op_id_option
@reach
def reshare(
    name: str,
    threshold: int | None,
    added: tuple[str, ...],
    removed: tuple[str, ...],
    op_id: str | None,
    control: str | None,
    cap: str | None,
    as_json: bool,
) -> None:
    """Share the key of SERVICE out anew, among others or with another threshold; the address stays.

    A node that was restarted has lost its share with its memory: --add gives it another.

    \b
    Examples:
      ronctl balance reshare vault --add delta --remove gamma
      ronctl balance reshare vault --threshold 3
    """
    shown = ask(
        control,
        cap,
        lambda balance: balance.reshare(name, threshold=threshold, add=added, remove=removed, op_id=op_id),
    )
    _report(shown, as_json)


def parse_shares(text: str | None, among: tuple[str, ...] = ()) -> tuple[Mode, int | None, int | None]:
    """(mode, t, n) of `2-of-3`; of None (`shared`, None, None). Raises `click.UsageError`."""
    if text is None:
        if among:
            raise click.UsageError("--among needs --threshold")
        return "shared", None, None
    match = _SHARES.fullmatch(text)
    if match is None or not 2 <= int(match[1]) <= int(match[2]) <= 16:
        raise click.BadParameter(f"{text!r} is not T-of-N with 2 ≤ T ≤ N ≤ 16", param_hint="--threshold")
    if among and len(set(among)) != int(match[2]):
        raise click.UsageError(f"--threshold {text} needs {match[2]} different --among, or none")
    return "threshold", int(match[1]), int(match[2])


def read_key(path: Path) -> bytes:
    """The 64 bytes of an onion's key, from tor's own file or from a line `ED25519-V3:…`. Raises `RonError`."""
    from ron.tor.onionkeys import parse_key

    try:
        content = read_private(path)
    except OSError as error:
        raise bad_request(f"cannot read {path}: {error.strerror}") from None
    if content.startswith(_TOR_HEADER):
        line = "ED25519-V3:" + base64.b64encode(content[len(_TOR_HEADER) :]).decode()
    else:
        line = content.decode("ascii", "replace").strip()
    try:
        blob = parse_key(line).blob
    except RonError:
        raise bad_request(f"{path} holds no v3 onion key", "tor's hs_ed25519_secret_key, or ED25519-V3:…") from None
    return base64.b64decode(blob.partition(":")[2])


def _report(shown: ServiceView, as_json: bool) -> None:
    if as_json:
        print_json(shown)
    else:
        click.echo(service_line(shown), err=True)
        click.echo(shown.onion)
