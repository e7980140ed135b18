"""`ronctl governance keygen|signers`: a signer's key, and the file that says who decides at first.

In: a role, a passphrase if wished. Out: a private key nobody else may read, its public half, a signers file. The key is
a PKCS #8 PEM of Ed25519, as OpenSSL reads it; it never leaves the machine it is on.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from ron.ctl.node import home, json_option, print_json
from ron.kernel.files import read_private
from ron.kernel.units import parse_quantity
from ron.proto.errors import RonError, bad_request, conflict
from ron.proto.governance import PublicHex, Role

if TYPE_CHECKING:
    from nacl.signing import SigningKey

_ROLES: tuple[Role, ...] = ("policy-owner", "security-officer", "custodian", "auditor")
_file = click.Path(path_type=Path, dir_okay=False)
role_choice = click.Choice(_ROLES)
passphrase_option = click.option(
    "--passphrase-file", type=_file, help="A private file that holds the key's passphrase.  [asked for on a terminal]"
)


class PublicFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `keygen` writes beside the key, for everybody."""

    role: Role
    public: PublicHex
    key_id: str


@click.command("keygen")
@click.option("--out", "target", required=True, type=_file, help="The private key to create, 0600.")
@click.option("--role", type=role_choice, help="What its owner decides as.")
@click.option("--encrypt", is_flag=True, help="Ask for a passphrase; with --passphrase-file it is the one in there.")
@click.option("--threshold", type=click.IntRange(2, 16), help="Make a joint key instead: so many of you sign.")
@click.option("--member", "members", multiple=True, type=_file, metavar="FILE.pub", help="Who shares it. Repeat.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="For letters; all of you reach it.")
@click.option("--key", "key_path", type=_file, help="Your own key, with --threshold.")
@click.option("--wait", default="10m", show_default=True, metavar="TIME", help="For the others, with --threshold.")
@passphrase_option
@json_option
def keygen(
    target: Path,
    role: Role | None,
    encrypt: bool,
    threshold: int | None,
    members: tuple[Path, ...],
    folder: Path | None,
    key_path: Path | None,
    wait: str,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Make a signer's key: FILE (keep it secret) and FILE.pub (for whoever sets the service up).

    Neither file is ever overwritten. Make it on the machine of whoever is to decide, and nowhere else.

    With --threshold all who vote make a joint key, each on their own machine at the same time: FILE is your share of
    it, sealed to your key, and FILE.pub is what everybody may know.

    \b
    Examples:
      ronctl governance keygen --role security-officer --out alice.key --encrypt
      ronctl governance keygen --role auditor --out audit.key --passphrase-file pass.txt --json
      ronctl governance keygen --threshold 2 --member owner.key.pub --member officer.key.pub \\
        --member custodian.key.pub --folder /mnt/us --key owner.key --out owner.share
    """
    if threshold is not None:
        if role is not None or encrypt or not members or folder is None:
            raise click.UsageError(
                "--threshold goes with --member, --folder and --key, and without --role and --encrypt"
            )
        _joint_key(target, threshold, members, folder, signing_key(key_path, passphrase_file), wait, as_json)
        return
    if role is None:
        raise click.UsageError("--role says what its owner decides as")
    _own_key(target, role, encrypt, passphrase_file, as_json)


def _joint_key(
    target: Path, threshold: int, members: tuple[Path, ...], folder: Path, key: SigningKey, wait: str, as_json: bool
) -> None:
    from ron.ctl.governance_ceremony import KeyCeremony, group_file, made, sealed_share

    public_path = target.with_name(target.name + ".pub")
    if target.exists() or public_path.exists():
        raise conflict(f"{target} or {public_path} exists", "choose another name: it is not overwritten")
    publics = [_public(path).public for path in members]
    share = made(KeyCeremony(folder, key, publics, threshold), parse_quantity(wait, "s"))
    shown = group_file(share, publics)
    try:
        create(target, sealed_share(share, key), 0o600)
    finally:
        share.wipe()
    create(public_path, msgspec.json.encode(shown) + b"\n", 0o644)
    if as_json:
        print_json({**msgspec.to_builtins(shown), "share_file": str(target), "public_file": str(public_path)})
    else:
        click.echo(f"joint key {shown.key_id}, {threshold} of {len(publics)}: {target}, and {public_path} for all")


def _own_key(target: Path, role: Role, encrypt: bool, passphrase_file: Path | None, as_json: bool) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from ron.services.kms.governance.signers import key_id

    secret = _new_passphrase(passphrase_file) if encrypt or passphrase_file is not None else None
    key = Ed25519PrivateKey.generate()
    sealed = form.BestAvailableEncryption(secret) if secret is not None else form.NoEncryption()
    pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, sealed)
    public = key.public_key().public_bytes(form.Encoding.Raw, form.PublicFormat.Raw)
    shown = PublicFile(role=role, public=public.hex(), key_id=key_id(public))
    public_path = target.with_name(target.name + ".pub")
    create(target, pem, 0o600)
    try:
        create(public_path, msgspec.json.encode(shown) + b"\n", 0o644)
    except BaseException:
        target.unlink()
        raise
    if as_json:
        print_json(
            {**msgspec.to_builtins(shown), "private_file": str(target), "public_file": str(public_path),
             "encrypted": secret is not None}
        )  # fmt: skip
    else:
        click.echo(f"{role} {shown.key_id}: {target}, and {public_path} to hand out")


@click.command("signers")
@click.argument("publics", nargs=-1, required=True, type=_file, metavar="FILE.pub...")
@click.option("--threshold", type=click.IntRange(1, 16), default=2, show_default=True, help="So many have to agree.")
@click.option("--group", "group_path", type=_file, metavar="FILE.pub", help="The joint key of those who vote.")
@click.option("--micronode", is_flag=True, help="Allow 1 of 2, with shorter freezes and weekly renewed second keys.")
@click.option("--out", "target", type=_file, help="The file for governance.signers in the service's config.")
@json_option
def signers(
    publics: tuple[Path, ...],
    threshold: int,
    group_path: Path | None,
    micronode: bool,
    target: Path | None,
    as_json: bool,
) -> None:
    """Who decides: the signers file of a new service, and the change that hands an existing one over to them.

    \b
    Examples:
      ronctl governance signers owner.key.pub officer.key.pub custodian.key.pub --out signers.json
      ronctl governance signers owner.key.pub officer.key.pub custodian.key.pub --group owner.share.pub
      ronctl governance propose --scope global --rationale 'new officer' $(ronctl governance signers *.pub)
    """
    from ron.services.kms.governance.signers import MACRONODE, MICRONODE, signer_set

    members = [_public(path) for path in publics]
    pairs: list[tuple[Role, str]] = [(one.role, one.public) for one in members]
    group = _group(group_path, pairs) if group_path is not None else ""
    made = signer_set(pairs, threshold, int(time.time()), profile=MICRONODE if micronode else MACRONODE, group=group)
    text = ",".join(f"{role}:{public}" for role, public in pairs)
    if target is not None:
        create(target, msgspec.json.encode(made) + b"\n", 0o644)
    if as_json:
        print_json(made)
    elif target is None:
        joint = f" --change group={group}" if group else ""
        click.echo(f"--change signers={text} --change threshold={threshold}{joint}")
    else:
        click.echo(f"{threshold} of {sum(one.role != 'auditor' for one in members)}: {target}")


def signing_key(path: Path | None, passphrase_file: Path | None) -> SigningKey:
    """The key in `path`, else in `$RON_GOVERNANCE_KEY`, else in `$RON_HOME/governance.key`. Raises `RonError`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from nacl.signing import SigningKey

    place = path or Path(os.environ.get("RON_GOVERNANCE_KEY") or home() / "governance.key")
    try:
        pem = read_private(place)
    except OSError as error:
        raise bad_request(
            f"cannot read the key {place}: {error.strerror}", "--key FILE, as `ronctl governance keygen` makes it"
        ) from None
    secret = None
    if b"ENCRYPTED" in pem.partition(b"\n")[0]:
        secret = _passphrase(passphrase_file)
    try:
        key = load_pem_private_key(pem, secret)
    except (ValueError, TypeError):
        raise bad_request(f"{place} is no key, or the passphrase is another", "is it what keygen wrote?") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise bad_request(f"{place} is no Ed25519 key", "ronctl governance keygen")
    return SigningKey(key.private_bytes_raw())


def create(path: Path, content: bytes, mode: int) -> None:
    """A new file. Raises `RonError` (Conflict) for one that is there."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise conflict(f"{path} exists", "choose another name: it is not overwritten") from None
    except OSError as error:
        raise bad_request(f"cannot create {path}: {error.strerror}") from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(handle)


def _public(path: Path) -> PublicFile:
    try:
        return msgspec.json.decode(path.read_bytes(), type=PublicFile)
    except OSError as error:
        raise bad_request(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise bad_request(f"{path} is no signer's public key", "the .pub file that keygen wrote") from None


def _group(path: Path, pairs: Sequence[tuple[Role, str]]) -> str:
    """The joint key in the file that `keygen --threshold` wrote. Raises `RonError` for that of other members."""
    from ron.ctl.governance_ceremony import GroupFile

    try:
        found = msgspec.json.decode(path.read_bytes(), type=GroupFile)
    except OSError as error:
        raise bad_request(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise bad_request(f"{path} is no joint key", "the .pub file that keygen --threshold wrote") from None
    if sorted(found.members) != sorted(public for role, public in pairs if role != "auditor"):
        raise bad_request("this joint key is that of others", "of exactly those who vote: keygen --threshold")
    return found.group


def _passphrase(path: Path | None) -> bytes:
    if path is not None:
        return _read_passphrase(path)
    if not sys.stdin.isatty():
        raise bad_request("the key has a passphrase and nobody is here to say it", "--passphrase-file FILE")
    return str(click.prompt("Passphrase", hide_input=True, err=True)).encode()


def _new_passphrase(path: Path | None) -> bytes:
    if path is not None:
        return _read_passphrase(path)
    if not sys.stdin.isatty():
        raise bad_request("there is nobody to say a passphrase", "--passphrase-file FILE")
    return str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)).encode()


def _read_passphrase(path: Path) -> bytes:
    try:
        secret = read_private(path).rstrip(b"\r\n")
    except OSError as error:
        raise bad_request(f"cannot read {path}: {error.strerror}") from None
    if not secret:
        raise _empty(path)
    return secret


def _empty(path: Path) -> RonError:
    return bad_request(f"{path} holds no passphrase", "its first line is the passphrase")
