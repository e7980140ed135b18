"""`ronctl kms passphrase`: what a file backend is sealed under is changed, offline.

In: the store's folder, the old passphrase's file, the new one. Out: the same keys under the new one. The service is
stopped meanwhile; a passphrase is never an argument, for arguments are shown to everybody on the host.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ron.ctl.node import home, json_option, print_json
from ron.kernel.files import read_private
from ron.proto.errors import RonError, bad_request, unavailable

STORE = "kms-sealed"
MADE = "kms/passphrase"
_MOST_BYTES = 4096
_file = click.Path(path_type=Path, dir_okay=False, allow_dash=True)
_SAYS = {
    "changed": "the store opens with the new passphrase",
    "finished": "a change that was begun is finished: the store opens with the new passphrase",
    "nothing": "the store opens with that passphrase already",
}


@click.group("passphrase")
def passphrase() -> None:
    """The passphrase of the file backend.

    \b
    Example:
      systemctl stop ron-kms && ronctl kms passphrase change && systemctl start ron-kms
    """


@passphrase.command("change")
@click.option("--store", type=click.Path(path_type=Path, file_okay=False), help=f"[$RON_HOME/{STORE}]")
@click.option(
    "--old",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The file that holds it now (0600).  [$RON_HOME/{MADE}]",
)
@click.option("--new", type=_file, help="A file (0600) with the new one, - for stdin.  [256 fresh bits]")
@click.option("--store-only", is_flag=True, help="Leave --old as it is: the service gets the new one from elsewhere.")
@click.option("--kdf", type=click.Choice(["scrypt", "age"]), help="How it is sealed from now on.  [as it is]")
@click.option("--allow-unlocked", is_flag=True, help="Go on where memory cannot be locked.")
@json_option
def change(
    store: Path | None,
    old: Path | None,
    new: Path | None,
    store_only: bool,
    kdf: Any,
    allow_unlocked: bool,
    as_json: bool,
) -> None:
    """Seal the master key anew; keys stay as they are. The service must not run.

    Interrupted at any point, the store opens with the passphrase in --old or the one in <old>.next; the same command
    once more brings it to its end. A copy of the old store still opens with the old passphrase.

    \b
    Examples:
      ronctl kms passphrase change
      ronctl kms passphrase change --old /etc/ron/kms.pass --new /root/new.pass
      ronctl kms passphrase change --old kms.pass --new - --store-only < new.pass
    """
    from ron.services.kms.backends.rekeying import Store, change_both, change_store

    wanted = Store(store or home() / STORE, kdf, allow_unlocked=allow_unlocked)
    file = old or home() / MADE
    chosen = _read(new) if new is not None else None
    if store_only and chosen is None:
        raise bad_request("--store-only takes the new passphrase: --new FILE")
    try:
        did = change_store(wanted, file, chosen) if store_only and chosen else change_both(wanted, file, chosen)
    except OSError as error:
        raise unavailable(
            f"{error.filename or wanted.directory}: {error.strerror}", "call it as the service's user"
        ) from None
    if as_json:
        print_json({"store": str(wanted.directory), "did": did})
    else:
        click.echo(f"{wanted.directory}: {_SAYS[did]}")


def _read(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read(_MOST_BYTES)
    try:
        return read_private(path)[:_MOST_BYTES]
    except OSError as error:
        raise bad_request(f"{path} cannot be read: {error.strerror}") from None
    except RonError as error:
        raise bad_request(error.message, error.hint or "") from None
