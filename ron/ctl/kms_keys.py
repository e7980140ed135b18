"""`ronctl kms key`: keys come, get new versions, are shown, and go.

In: names of tenants, purposes and keys. Out: what the service answers, as text or with --json as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from ron.ctl.control import confirm, is_asked, yes_option
from ron.ctl.kms_public import jwk_set, pem_text
from ron.ctl.kms_reach import NODE, act_option, ask
from ron.ctl.node import print_json
from ron.proto.errors import bad_request
from ron.proto.kms import KeyView

if TYPE_CHECKING:
    from ron.sdk.kms import Kms

_ALGS = ("ed25519", "ml-dsa", "x25519", "ml-kem", "hybrid")


@click.group("key")
def key() -> None:
    """Keys: make one, rotate it, look at it.

    \b
    Examples:
      ronctl kms key create --tenant core --purpose audit --alg hybrid
      ronctl kms key rotate core/audit/hybrid/0b2e…
      ronctl kms key show core/audit/hybrid/0b2e…#v1 --json
    """


@key.command("create")
@click.option("--tenant", required=True, metavar="T", help="Whose key.")
@click.option("--purpose", required=True, metavar="P", help="What for; kem or wrap makes a key to wrap with.")
@click.option("--alg", type=click.Choice(_ALGS), default="hybrid", show_default=True)
@click.option("--hints", metavar="JSON", help='What policy may want to know: {"rotate_days": 30}.')
@act_option
@NODE.reach
def create(
    tenant: str,
    purpose: str,
    alg: Any,
    hints: str | None,
    op_id: str | None,
    control: str | None,
    cap: str | None,
    as_json: bool,
) -> None:
    """Make a key; its private halves never leave the service.

    \b
    Examples:
      ronctl kms key create --tenant core --purpose audit
      ronctl kms key create --tenant core --purpose kem --alg x25519 --json
    """
    policy = _hints(hints)
    made = ask(control, cap, lambda k: k.create(tenant, purpose, alg, policy_hints=policy, op_id=op_id))
    if as_json:
        print_json(made)
    else:
        click.echo(made.kid)


@key.command("rotate")
@click.argument("kid")
@act_option
@NODE.reach
def rotate(kid: str, op_id: str | None, control: str | None, cap: str | None, as_json: bool) -> None:
    """Make a new version of KID. What earlier ones have signed still verifies.

    \b
    Example:
      ronctl kms key rotate core/audit/hybrid/0b2e…
    """
    made = ask(control, cap, lambda k: k.rotate(kid, op_id=op_id))
    if as_json:
        print_json(made)
    else:
        click.echo(f"{made.kid}  (before: {made.previous})")


@key.command("show")
@click.argument("kid")
@click.option("--pem", "form", flag_value="pem", help="Public halves as PEM, one block for each.")
@click.option(
    "--jwk", "form", flag_value="jwk", help="Public halves as a JWK Set; without ML-KEM, which has no name there."
)
@NODE.reach
def show(kid: str, form: str | None, control: str | None, cap: str | None, as_json: bool) -> None:
    """What is public of KID, at the version it names or its newest.

    \b
    Examples:
      ronctl kms key show core/audit/hybrid/0b2e…
      ronctl kms key show core/audit/hybrid/0b2e…#v1 --json | jq -r .public.pubkey_b64
      ronctl kms key show core/audit/hybrid/0b2e… --pem > audit.pem
      ronctl kms key show core/audit/hybrid/0b2e… --jwk > audit.jwks
    """
    if form is not None and as_json:
        raise bad_request(f"give either --{form} or --json")
    found = ask(control, cap, lambda k: k.get(kid))
    if form == "pem":
        click.echo(pem_text(found), nl=False)
    elif form == "jwk":
        print_json(jwk_set(found))
    elif as_json:
        print_json(found)
    else:
        click.echo(key_text(found))


@key.command("list")
@click.option("--tenant", metavar="T", help="Of this tenant only.")
@NODE.reach
def list_command(tenant: str | None, control: str | None, cap: str | None, as_json: bool) -> None:
    """All keys, one a line: newest version, number of versions, where it lives.

    \b
    Examples:
      ronctl kms key list
      ronctl kms key list --tenant core --json | jq -r '.keys[].kid'
    """

    async def every(k: Kms) -> list[KeyView]:
        return [one async for one in k.all_keys(tenant)]

    found = ask(control, cap, every)
    if as_json:
        print_json({"keys": found})
    elif found:
        for one in found:
            click.echo(f"{one.kid}  versions {len(one.versions)}  {one.attestation_class or '-'}")
    else:
        click.echo("no keys yet: ronctl kms key create", err=True)


@key.command("destroy")
@click.argument("kid")
@click.option("--proposal", required=True, metavar="ID", help="The executed proposal that allows it.")
@act_option
@yes_option
@NODE.reach
def destroy(
    kid: str, proposal: str, op_id: str | None, yes: bool, control: str | None, cap: str | None, as_json: bool
) -> None:
    """Destroy the private halves of a version, or of all versions of KID. On a terminal it asks first.

    What it signed still verifies. It takes a quorum: `ronctl governance propose` comes first.

    \b
    Example:
      ronctl kms key destroy core/audit/hybrid/0b2e…#v1 --proposal 01a1…
    """
    if is_asked(yes):
        confirm(f"Destroy {kid} for good?")
    done = ask(control, cap, lambda k: k.destroy(kid, proposal, op_id=op_id))
    if as_json:
        print_json(done)
    else:
        click.echo(f"{done.kid}: destroyed")


def key_text(found: KeyView) -> str:
    """A key for people."""
    lines = [
        found.kid,
        f"  made       {found.created_at or '-'}",
        f"  versions   {' '.join(found.versions)}",
        f"  lives in   {found.attestation_class or '-'}",
    ]
    lines += [f"  {half.alg:<9}  {half.pubkey_b64}" for half in found.public.halves]
    return "\n".join(lines)


def _hints(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise bad_request("--hints is no JSON object", 'like {"rotate_days": 30}') from None
