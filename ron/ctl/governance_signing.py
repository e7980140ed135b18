"""Proposals and votes as `ronctl` puts them together and signs them, on the machine of whoever decides.

In: a signer's key, what it is to sign, how the service stands. Out: signed objects. A vote is for the digest of the
bytes that were read here, whatever else the service shows of them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ron.ctl.control import confirm
from ron.ctl.governance_text import question
from ron.proto.errors import bad_request, conflict
from ron.proto.governance import GovernanceView, Proposal, ProposalView, Role, SignedObject, Statement, Verb
from ron.proto.ids import uuid7

if TYPE_CHECKING:
    from nacl.signing import SigningKey

    from ron.sdk.governance import Governance


def parse_changes(texts: tuple[str, ...]) -> dict[str, str]:
    """`KEY=VALUE` each. Raises `click.BadParameter` for one that is not, and for a key given twice."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals) or key in found:
            raise click.BadParameter(f"{text!r} is no KEY=VALUE of its own", param_hint="--change")
        found[key] = value
    return found


def proposed(standing: GovernanceView, key: SigningKey, fields: dict[str, Any], for_s: int) -> SignedObject:
    """A proposal of these `fields` that lasts for_s seconds, signed. Raises `RonError` (BadRequest)."""
    from ron.services.kms.governance.signers import key_id, sign

    now = int(time.time())
    made = {
        "book": standing.book,
        "id": str(uuid7()),
        "author": key_id(bytes(key.verify_key)),
        "signer_set": standing.signer_set,
        "created_at": now,
        "expires_at": now + for_s,
        **fields,
    }
    try:
        return sign(msgspec.convert(made, Proposal), key)
    except msgspec.ValidationError as error:
        raise bad_request(f"this is no proposal: {error}".replace("`", "")) from None


def said(
    standing: GovernanceView, key: SigningKey, verb: Verb, *, role: Role | None = None, **fields: str
) -> SignedObject:
    """What the key's owner says, in the role that the key has there. Raises `RonError` (BadRequest)."""
    from ron.services.kms.governance.signers import key_id, sign

    name = key_id(bytes(key.verify_key))
    own = next((one.role for one in standing.signers if one.key_id == name), None)
    if own is None:
        raise bad_request(f"key {name} is none of the service's signers", "ronctl governance list --signers")
    if role is not None and role != own:
        raise bad_request(f"this key decides as {own}, not as {role}", "--key FILE names another one")
    made = {"book": standing.book, "verb": verb, "signer": name, "role": own, "at": int(time.time()), **fields}
    try:
        return sign(msgspec.convert(made, Statement), key)
    except msgspec.ValidationError as error:
        raise bad_request(f"this cannot be said: {error}".replace("`", "")) from None


async def vote(
    service: Governance,
    verb: Verb,
    proposal: str,
    key: SigningKey,
    *,
    role: Role | None = None,
    reason: str = "",
    ask_first: bool = False,
) -> ProposalView:
    """Sign what the proposal's own bytes say, whatever else the service shows of it."""
    from ron.services.kms.governance.canonical import decode_canonical, digest

    standing, view = await service.standing(), await service.proposal(proposal)
    content = view.object.encode()
    read = decode_canonical(content, Proposal)
    if read.id != proposal or read.book != standing.book:
        raise conflict("the service shows another proposal than was asked for", "do not sign; look at its log")
    if ask_first:
        click.echo(question(read), err=True)
        confirm(f"{verb}?")
    word = said(standing, key, verb, role=role, proposal=read.id, digest=digest(content).hex(), reason=reason)
    return await service.vote(read.id, word)
