"""How a key comes to be shared: born of all members at once, so that it never exists, or brought by its owner.

In: a fresh nonce, the members, a threshold. Out: a `Plan` and each participant's `Ceremony`. Key generation is
Pedersen's with proofs of possession, as in FROST (Komlo and Goldberg 2020, figure 1); an import is Feldman's sharing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from ron.crypto import group
from ron.crypto.frost import shamir
from ron.crypto.frost.ceremony import Ceremony
from ron.crypto.frost.errors import InvalidGroupError
from ron.crypto.frost.plan import OWNER, Plan, Purpose
from ron.crypto.group import InvalidElementError

EXPANDED_BYTES = 64


def keygen_plan(nonce: bytes, threshold: int, members: Sequence[int]) -> Plan:
    """A new key for `members`, of which `threshold` sign. Raises `InvalidGroupError`: 2 ≤ threshold ≤ members ≤ 16."""
    ordered = tuple(sorted(members))
    return Plan(purpose=Purpose.KEYGEN, nonce=nonce, threshold=threshold, dealers=ordered, receivers=ordered)


def keygen(plan: Plan, me: int, *, token_bytes: Callable[[int], bytes] = secrets.token_bytes) -> Ceremony:
    """A member's part in a key's birth."""
    _check(plan, Purpose.KEYGEN)
    return Ceremony(plan, me, constant=shamir.random_scalar(token_bytes), token_bytes=token_bytes)


def import_plan(nonce: bytes, threshold: int, members: Sequence[int], public: bytes) -> Plan:
    """Shares for `members` of the key whose 32-byte Ed25519 public key is `public`."""
    ordered = tuple(sorted(members))
    return Plan(
        purpose=Purpose.IMPORT, nonce=nonce, threshold=threshold, dealers=(OWNER,), receivers=ordered, public=public
    )


def import_owner(
    plan: Plan, expanded: bytearray, *, token_bytes: Callable[[int], bytes] = secrets.token_bytes
) -> Ceremony:
    """The owner's part. `expanded` is the 64 bytes of tor's `hs_ed25519_secret_key`, and is overwritten in any case.

    Raises `InvalidGroupError` unless it is the secret of the key in the plan. The half that makes nonces is dropped.
    """
    try:
        _check(plan, Purpose.IMPORT)
        constant = secret_of(expanded)
        if group.public_of(constant) != plan.public:
            raise InvalidGroupError("not the secret of the key in the plan")
    except InvalidElementError:
        raise InvalidGroupError("not a secret key") from None
    finally:
        shamir.wipe(expanded)
    return Ceremony(plan, OWNER, constant=constant, token_bytes=token_bytes)


def import_member(plan: Plan, me: int) -> Ceremony:
    """The part of a member that receives a share."""
    _check(plan, Purpose.IMPORT)
    return Ceremony(plan, me)


def secret_of(expanded: bytes | bytearray) -> bytes:
    """The scalar below L in an expanded Ed25519 secret key (RFC 8032 §5.1.5, clamped). Raises `InvalidElementError`."""
    if len(expanded) != EXPANDED_BYTES or expanded[0] & 7 or expanded[31] & 192 != 64:
        raise InvalidElementError("not an expanded Ed25519 secret key")
    return group.scalar_from_wide(bytes(expanded[: group.SCALAR_BYTES]) + bytes(group.SCALAR_BYTES))


def _check(plan: Plan, purpose: Purpose) -> None:
    if plan.purpose is not purpose:
        raise InvalidGroupError(f"a plan for {plan.purpose.name.lower()}")
