"""`ronctl kms`: sign, verify, wrap, unwrap with keys of the key service, and evidence of where they live.

In: names of keys, files or stdin. Out: what the service answers, as text or with --json as it is. A payload is hashed
here and does not leave this host.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from ron.ctl.kms_audit import audit
from ron.ctl.kms_keys import key
from ron.ctl.kms_passphrase import passphrase
from ron.ctl.kms_reach import NODE, ask, sign_option
from ron.ctl.node import print_json
from ron.proto.errors import bad_request
from ron.proto.kms import Signature, VerifyResponse

_CHUNK_BYTES = 1024 * 1024
_file = click.Path(path_type=Path, dir_okay=False, allow_dash=True)
kid_option = click.option("--kid", required=True, metavar="KID", help="The key, as `key list` shows it.")
hash_option = click.option("--payload-b3", metavar="HEX", help="The payload's BLAKE3, instead of FILE.")
payload_argument = click.argument("payload", required=False, type=_file, metavar="[FILE]")


@click.group("kms")
def kms() -> None:
    """The key service: custody of keys, hybrid signatures.

    \b
    Examples:
      ronctl kms key create --tenant core --purpose audit --alg hybrid
      ronctl kms key list
      ronctl kms sign --kid core/audit/hybrid/… report.pdf --json > report.sigs
      ronctl kms verify --kid core/audit/hybrid/… report.pdf --sigs report.sigs --mode and
    """


@kms.command("sign")
@kid_option
@hash_option
@click.option("--hybrid/--classical", default=None, help="With the post-quantum half, or not.  [tenant's phase]")
@payload_argument
@sign_option
@NODE.reach
def sign(
    kid: str,
    payload_b3: str | None,
    hybrid: bool | None,
    payload: Path | None,
    op_id: str | None,
    control: str | None,
    cap: str | None,
    as_json: bool,
) -> None:
    """Sign FILE (or stdin), which is hashed here, or the hash itself.

    \b
    Examples:
      ronctl kms sign --kid core/audit/hybrid/0b2e… report.pdf --json > report.sigs
      git archive HEAD | ronctl kms sign --kid core/release/hybrid/77aa…
    """
    hashed = _hashed(payload_b3, payload)
    made = ask(control, cap, lambda k: k.sign(kid, hashed, produce_hybrid=hybrid, op_id=op_id))
    if as_json:
        print_json(made)
    else:
        click.echo(f"{made.kid}\npayload_b3  {hashed}")
        for one in made.sigs:
            click.echo(f"{one.alg:<10}  {one.signature_b64}")


@kms.command("verify")
@click.option("--kid", metavar="KID", help="Whose signatures they are.  [that in --sigs]")
@hash_option
@click.option("--sigs", "sigs_path", required=True, type=_file, help="What `sign --json` printed.")
@click.option("--mode", type=click.Choice(["and", "or", "pq_only"]), help="[the tenant's phase]")
@payload_argument
@NODE.reach
def verify(
    kid: str | None,
    payload_b3: str | None,
    sigs_path: Path,
    mode: Any,
    payload: Path | None,
    control: str | None,
    cap: str | None,
    as_json: bool,
) -> None:
    """Do the signatures in --sigs hold for FILE (or stdin)? Exit code 1 when they do not.

    \b
    Examples:
      ronctl kms verify --kid core/audit/hybrid/0b2e… report.pdf --sigs report.sigs --mode and
      ronctl kms verify --sigs report.sigs --payload-b3 9f64… --json
    """
    signed = _sigs(sigs_path)
    hashed = _hashed(payload_b3, payload)
    by = kid or signed.kid
    found = ask(control, cap, lambda k: k.verify(hashed, signed.sigs, kid=by or None, mode=mode))
    if as_json:
        print_json(found)
    else:
        click.echo(verdict_text(found))
    if not found.ok:
        raise SystemExit(1)


@kms.command("wrap")
@kid_option
@click.option("--size", type=int, metavar="BYTES", help="So many fresh random bytes, instead of FILE.")
@click.option("--mode", type=click.Choice(["hybrid", "classical", "pq"]), default="hybrid", show_default=True)
@payload_argument
@NODE.reach
def wrap(
    kid: str, size: int | None, mode: Any, payload: Path | None, control: str | None, cap: str | None, as_json: bool
) -> None:
    """Seal the key in FILE (or stdin; at most 4096 bytes) for KID.

    \b
    Examples:
      ronctl kms wrap --kid core/kem/hybrid/3c8b… data.key > data.key.wrapped
      ronctl kms wrap --kid core/kem/hybrid/3c8b… --size 32 --json
    """
    raw = None if size is not None else _read(payload)
    made = ask(control, cap, lambda k: k.wrap(kid, raw, size=size, kem_mode=mode))
    if as_json:
        print_json(made)
    else:
        click.echo(made.wrapped_b64)


@kms.command("unwrap")
@kid_option
@payload_argument
@NODE.reach
def unwrap(kid: str, payload: Path | None, control: str | None, cap: str | None, as_json: bool) -> None:
    """Open what `wrap` sealed, from FILE or stdin. The key goes to stdout as it is.

    \b
    Example:
      ronctl kms unwrap --kid core/kem/hybrid/3c8b… data.key.wrapped > data.key
    """
    text = _read(payload).decode("ascii", "replace").strip()
    opened = ask(control, cap, lambda k: k.unwrap(kid, text))
    if as_json:
        print_json(opened)
    else:
        sys.stdout.buffer.write(base64.b64decode(opened.plaintext_key_b64))
        sys.stdout.buffer.flush()


@kms.command("attest")
@click.argument("kid", required=False)
@NODE.reach
def attest(kid: str | None, control: str | None, cap: str | None, as_json: bool) -> None:
    """Evidence of where KID lives, or of the backend as a whole.

    \b
    Examples:
      ronctl kms attest
      ronctl kms attest core/audit/hybrid/0b2e… --json | jq -r .attestation.evidence
    """
    found = ask(control, cap, lambda k: k.attest(kid))
    if as_json:
        print_json(found)
    elif found.attestation is None:
        click.echo(f"{found.backend}: no evidence")
    else:
        click.echo(f"{found.backend}: {found.attestation.class_}\n{found.attestation.evidence or 'no evidence'}")


def verdict_text(found: VerifyResponse) -> str:
    """One line: what holds, by which key, how old what is known of it."""
    held = " and ".join(found.details.checked) or "none"
    age = f", known for {found.cache_age_ms / 1000:.1f} s" if found.cache_age_ms is not None else ""
    if found.ok:
        return f"good: {held} hold, mode {found.details.satisfied_mode}, by {found.kid}{age}"
    return f"BAD: {held} of the signatures hold{age}"


def _hashed(payload_b3: str | None, payload: Path | None) -> str:
    if payload_b3 is not None:
        if payload is not None:
            raise bad_request("give either FILE or --payload-b3")
        return payload_b3
    from blake3 import blake3

    found = blake3()
    with _opened(payload) as file:
        while chunk := file.read(_CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def _read(payload: Path | None) -> bytes:
    with _opened(payload) as file:
        raw: bytes = file.read(_CHUNK_BYTES + 1)
    if len(raw) > _CHUNK_BYTES:
        raise bad_request("that is no key: it has over a MiB")
    return raw


def _opened(payload: Path | None) -> Any:
    if payload is None or str(payload) == "-":
        return click.open_file("-", "rb")
    try:
        return payload.open("rb")
    except OSError as error:
        raise bad_request(f"{payload} cannot be read: {error.strerror}") from None


class _Signed(msgspec.Struct, frozen=True, kw_only=True):
    """What `sign --json` printed, or its `sigs` alone."""

    sigs: tuple[Signature, ...]
    kid: str = ""


def _sigs(path: Path) -> _Signed:
    raw = _read(path)
    try:
        return msgspec.json.decode(raw, type=_Signed)
    except msgspec.MsgspecError:
        pass
    try:
        return _Signed(sigs=msgspec.json.decode(raw, type=tuple[Signature, ...]))
    except msgspec.MsgspecError:
        raise bad_request(f"{path} has no signatures", "give what `ronctl kms sign --json` printed") from None


kms.add_command(audit)
kms.add_command(key)
kms.add_command(passphrase)
