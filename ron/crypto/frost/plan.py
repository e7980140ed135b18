"""What a ceremony is to do, agreed on before it begins: who deals, who receives, and what must come out.

In: members, thresholds, the group there is. Out: a `Plan`, checked, whose `digest` is the session's name. The callers'
mesh has to bring the same plan to every participant; participants with different plans refuse each other's messages.
"""

from __future__ import annotations

import enum
import hashlib
import struct

import msgspec

from ron.crypto import group
from ron.crypto.frost import shamir, wire
from ron.crypto.frost.errors import InvalidGroupError
from ron.crypto.frost.keys import GroupKey
from ron.crypto.group import InvalidElementError

NONCE_BYTES = 32
OWNER = 0
"""The identifier of whoever brings an existing key; no member has it."""
_LABEL = b"ron-frost/1 plan"


class Purpose(enum.IntEnum):
    """What the shares are dealt for."""

    KEYGEN = 1
    """A new key, which is the sum of what the members draw."""
    REFRESH = 2
    """New shares of the same key for the same members: the dealings are of zero."""
    RESHARE = 3
    """New shares of the same key for other members or another threshold."""
    IMPORT = 4
    """Shares of a key that its owner has whole until then."""


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ceremony. `nonce` is 32 fresh random bytes: an attempt that failed is never repeated under the same plan.

    `public` is the key that must come out, or None when it is to be born. Construction raises `InvalidGroupError` for
    a plan that cannot be carried out.
    """

    purpose: Purpose
    nonce: bytes
    threshold: int
    dealers: tuple[int, ...]
    receivers: tuple[int, ...]
    public: bytes | None = None
    previous: GroupKey | None = None

    def __post_init__(self) -> None:
        if len(self.nonce) != NONCE_BYTES:
            raise InvalidGroupError(f"a plan has a nonce of {NONCE_BYTES} bytes")
        shamir.check_threshold(self.threshold, self.receivers)
        _CHECKS[self.purpose](self)

    @property
    def participants(self) -> frozenset[int]:
        """Everybody with a part in it."""
        return frozenset(self.dealers) | frozenset(self.receivers)

    @property
    def first_power(self) -> int:
        """The lowest power with a commitment: 1 when the constant is zero for all to know."""
        return 1 if self.purpose is Purpose.REFRESH else 0

    @property
    def commitments(self) -> int:
        """How many commitments a dealing has."""
        return self.threshold - self.first_power

    @property
    def digest(self) -> bytes:
        """The session's 32-byte name: equal only for equal plans."""
        head = struct.pack(">BBBB", self.purpose, self.threshold, len(self.dealers), len(self.receivers))
        members = struct.pack(f">{len(self.dealers) + len(self.receivers)}H", *self.dealers, *self.receivers)
        result = self.public or bytes(group.ELEMENT_BYTES)
        before = self.previous.digest if self.previous else bytes(wire.SESSION_BYTES)
        text = _LABEL + head + members + self.nonce + result + before
        return hashlib.sha512(text).digest()[: wire.SESSION_BYTES]

    def constant_of(self, dealer: int) -> bytes | None:
        """The commitment that `dealer` has to begin with; None where any will do."""
        if self.purpose is Purpose.RESHARE and self.previous:
            return shamir.times(shamir.lagrange(dealer, self.dealers), self.previous.shares[dealer])
        return self.public if self.purpose is Purpose.IMPORT else None


def _check_keygen(plan: Plan) -> None:
    if plan.dealers != plan.receivers or plan.previous or plan.public:
        raise InvalidGroupError("a key is born of exactly those who will share it")


def _check_refresh(plan: Plan) -> None:
    before = _previous(plan)
    if not plan.dealers == plan.receivers == before.members or plan.threshold != before.threshold:
        raise InvalidGroupError("a refresh keeps members and threshold, and all members take part")


def _check_reshare(plan: Plan) -> None:
    before = _previous(plan)
    shamir.check_members(plan.dealers, at_least=before.threshold)
    if not set(plan.dealers) <= set(before.members):
        raise InvalidGroupError("only members hand on shares")


def _check_import(plan: Plan) -> None:
    if plan.dealers != (OWNER,) or plan.previous or plan.public is None:
        raise InvalidGroupError("an import has the owner as its only dealer and a key that must come out")
    try:
        group.check_element(plan.public)
    except InvalidElementError:
        raise InvalidGroupError("the key to import is no key") from None


def _previous(plan: Plan) -> GroupKey:
    if plan.previous is None or plan.public != plan.previous.public:
        raise InvalidGroupError("the group whose key stays is missing or has another key")
    return plan.previous


_CHECKS = {
    Purpose.KEYGEN: _check_keygen,
    Purpose.REFRESH: _check_refresh,
    Purpose.RESHARE: _check_reshare,
    Purpose.IMPORT: _check_import,
}
