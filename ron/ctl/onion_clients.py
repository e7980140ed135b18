"""`ronctl onion client`: who may find a restricted onion, and the keys they need for it.

In: which onion, names and public keys. Out: the list as it is then; keys made here, without asking any daemon.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ron.ctl.control import op_id_option
from ron.ctl.node import json_option, print_json
from ron.ctl.onion_reach import ask, find_id, reach
from ron.ctl.onion_text import parse_client
from ron.kernel.files import read_private
from ron.proto.errors import bad_request, unavailable

if TYPE_CHECKING:
    from ron.proto.onions import OnionView
    from ron.sdk.onions import Onions

_PREFIX = "descriptor:x25519:"
_out_option = click.option(
    "--out", type=click.Path(path_type=Path), help="A new file for the private line, its owner's alone.  [stdout]"
)


@click.group("client")
def client() -> None:
    """Who may find a restricted onion. Without any client, everybody can who knows its address.

    \b
    Examples, the visitor first:
      ronctl onion client new-key --out bob.key
      ronctl onion client add wiki bob 3Q6K…
      ronctl onion client line --key bob.key y3cx….onion --out wiki.auth_private
    """


@client.command("add")
@click.argument("onion_id", metavar="ID")
@click.argument("name")
@click.argument("public_key", metavar="PUBKEY")
@op_id_option
@reach
def add(
    onion_id: str, name: str, public_key: str, op_id: str | None, control: str | None, cap: str | None, as_json: bool
) -> None:
    """Let NAME find the onion. The first client closes it to everybody else.

    PUBKEY is what `new-key` printed, or a line `descriptor:x25519:…` of tor's.

    \b
    Example:
      ronctl onion client add wiki bob 3Q6K…
    """
    who = parse_client(name, public_key)

    async def work(_reactor: Any, onions: Onions) -> OnionView:
        return await onions.add_client(await find_id(onions, onion_id), who, op_id=op_id)

    _show(ask(control, cap, work), as_json)


@client.command("remove")
@click.argument("onion_id", metavar="ID")
@click.argument("name")
@op_id_option
@reach
def remove(onion_id: str, name: str, op_id: str | None, control: str | None, cap: str | None, as_json: bool) -> None:
    """NAME cannot find the onion any more. The last client stays: without any, it would be open to everybody.

    \b
    Example:
      ronctl onion client remove wiki bob
    """

    async def work(_reactor: Any, onions: Onions) -> OnionView:
        return await onions.remove_client(await find_id(onions, onion_id), name, op_id=op_id)

    _show(ask(control, cap, work), as_json)


@client.command("list")
@click.argument("onion_id", metavar="ID")
@reach
def list_command(onion_id: str, control: str | None, cap: str | None, as_json: bool) -> None:
    """The onion's clients.

    \b
    Example:
      ronctl onion client list wiki --json
    """

    async def work(_reactor: Any, onions: Onions) -> OnionView:
        return await onions.get(await find_id(onions, onion_id))

    _show(ask(control, cap, work), as_json)


@client.command("new-key")
@click.argument("address", metavar="[ONION]", required=False)
@_out_option
@json_option
def new_key(address: str | None, out: Path | None, as_json: bool) -> None:
    """Make a visitor's key, offline: the public half is for the onion's operator, the private one never leaves here.

    With the ONION's address the private line is complete; without, `line` completes it once the address is known.

    \b
    Examples:
      ronctl onion client new-key --out bob.key
      ronctl onion client new-key y3cx….onion --out wiki.auth_private
    """
    from ron.tor.clientauth import generate

    key = generate()
    private = key.auth_private_line(address) if address else _PREFIX + key.base32
    _hand_out(out, private, as_json, {"public_key": key.public.base32, "public_line": key.public.to_line()})


@client.command("line")
@click.argument("address", metavar="ONION")
@click.option("--key", "key_path", required=True, type=click.Path(path_type=Path), help="What new-key wrote.")
@_out_option
@json_option
def line(address: str, key_path: Path, out: Path | None, as_json: bool) -> None:
    """The private line of a key for the onion with this address, offline; after a rotation again, for the new one.

    It goes as a file NAME.auth_private (0600) into the folder that the visitor's torrc calls ClientOnionAuthDir.

    \b
    Example:
      ronctl onion client line y3cx….onion --key bob.key --out wiki.auth_private
    """
    from ron.tor.clientauth import parse_secret

    try:
        text = read_private(key_path).decode("ascii", "replace").strip()
    except OSError as error:
        raise bad_request(f"cannot read {key_path}: {error.strerror}") from None
    key = parse_secret(text.rpartition(":")[2])
    _hand_out(out, key.auth_private_line(address), as_json, {"public_key": key.public.base32})


def write_new(path: Path, text: str) -> None:
    """`path`, 0600, with `text`; one that exists is never overwritten. Raises `RonError`."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise bad_request(f"{path} exists", "name a file that does not") from None
    except OSError as error:
        raise unavailable(f"cannot write {path}: {error.strerror}") from None
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _hand_out(out: Path | None, private: str, as_json: bool, public: dict[str, str]) -> None:
    """The private line to its file, or beside the public half."""
    if out is not None:
        write_new(out, f"{private}\n")
    shown = {**public, **({"private_line": private} if out is None else {"private_file": str(out)})}
    if as_json:
        print_json(shown)
        return
    click.echo(f"public   {shown['public_key']}  for the operator: ronctl onion client add ID NAME PUBKEY")
    click.echo(f"private  {shown.get('private_line') or shown['private_file']}")


def _show(view: OnionView, as_json: bool) -> None:
    if as_json:
        print_json({"id": view.id, "onion": view.onion, "clients": view.clients})
    elif view.clients:
        for one in view.clients:
            click.echo(f"{one.name}  {one.public_key}")
    else:
        click.echo(f"{view.onion} has no clients: everybody can find it who knows its address", err=True)
