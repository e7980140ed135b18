"""New shares of a key that stays: for the same members (refresh), or for others and another threshold (reshare).

In: the group there is, a fresh nonce, who takes part. Out: a `Plan` and each participant's `Ceremony`. A refresh adds
shares of zero (Herzberg et al., CRYPTO '95); resharing shares each share anew (Desmedt and Jajodia 1997; the checks are
of Wong, Wang and Wing 2002). Old shares are worth as much as before until they are wiped: see docs/threshold.rst.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from ron.crypto import group
from ron.crypto.frost import shamir
from ron.crypto.frost.ceremony import Ceremony
from ron.crypto.frost.errors import InvalidGroupError
from ron.crypto.frost.keys import GroupKey, KeyShare
from ron.crypto.frost.plan import Plan, Purpose


def refresh_plan(nonce: bytes, key: GroupKey) -> Plan:
    """New shares for all members of `key`. Old and new shares do not go together."""
    return Plan(
        purpose=Purpose.REFRESH,
        nonce=nonce,
        threshold=key.threshold,
        dealers=key.members,
        receivers=key.members,
        public=key.public,
        previous=key,
    )


def refresh(plan: Plan, share: KeyShare, *, token_bytes: Callable[[int], bytes] = secrets.token_bytes) -> Ceremony:
    """A member's part in a refresh. `share` is not wiped here: wipe it when the ceremony is done."""
    _check(plan, Purpose.REFRESH, share)
    return Ceremony(plan, share.identifier, constant=shamir.ZERO, share=share, token_bytes=token_bytes)


def reshare_plan(
    nonce: bytes, key: GroupKey, *, dealers: Sequence[int], threshold: int, receivers: Sequence[int]
) -> Plan:
    """The key of `key` for `receivers`, from `dealers`, who are at least a threshold of its members.

    Raises `InvalidGroupError`. A number that named somebody else before is best not used again.
    """
    return Plan(
        purpose=Purpose.RESHARE,
        nonce=nonce,
        threshold=threshold,
        dealers=tuple(sorted(dealers)),
        receivers=tuple(sorted(receivers)),
        public=key.public,
        previous=key,
    )


def reshare_from(plan: Plan, share: KeyShare, *, token_bytes: Callable[[int], bytes] = secrets.token_bytes) -> Ceremony:
    """The part of a member that hands on its share, whether it stays in the group or leaves."""
    _check(plan, Purpose.RESHARE, share)
    weight = shamir.lagrange(share.identifier, plan.dealers)
    constant = group.scalar_mul(weight, share.secret)
    return Ceremony(plan, share.identifier, constant=constant, token_bytes=token_bytes)


def reshare_to(plan: Plan, me: int) -> Ceremony:
    """The part of one that only receives. `plan.previous` has to come from members it trusts to tell the epoch."""
    if plan.purpose is not Purpose.RESHARE:
        raise InvalidGroupError(f"a plan for {plan.purpose.name.lower()}")
    return Ceremony(plan, me)


def _check(plan: Plan, purpose: Purpose, share: KeyShare) -> None:
    if plan.purpose is not purpose or plan.previous != share.group:
        raise InvalidGroupError(f"a plan for {plan.purpose.name.lower()}, or of another epoch than the share")
