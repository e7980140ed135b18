"""What a threshold group is in public, and the one share of it that a member keeps.

In: elements and scalars, at rest or from a ceremony. Out: `GroupKey` and `KeyShare`, each checked as a whole: every
member's public share lies on one polynomial, whose value at 0 is the group's Ed25519 public key.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from types import MappingProxyType

from ron.crypto import group
from ron.crypto.frost import shamir
from ron.crypto.frost.errors import InvalidGroupError
from ron.crypto.group import InvalidElementError
from ron.crypto.secrets import SecretBuffer

DIGEST_BYTES = 32
_LABEL = b"ron-frost/1 group"
_SHARE_LABEL = b"ron-frost/1 share"
_HEAD = struct.Struct(">BB32s")
_MEMBER = struct.Struct(">H32s")


class GroupKey:
    """The public half: the Ed25519 public key, the threshold, and every member's verification share.

    `digest` names exactly this state: a refresh leaves `public` as it is and changes the digest.
    """

    __slots__ = ("digest", "public", "shares", "threshold")

    def __init__(self, *, public: bytes, threshold: int, shares: Mapping[int, bytes]) -> None:
        """Raises `InvalidGroupError` unless all values are one polynomial's of degree below `threshold`."""
        self._fill(public, threshold, shares)
        try:
            for element in (public, *shares.values()):
                group.check_element(element)
            fits = self._on_one_polynomial()
        except InvalidElementError:
            raise InvalidGroupError("a group key has a value that is no element") from None
        if not fits:
            raise InvalidGroupError("the members' shares do not make the group's key")

    @classmethod
    def _trusted(cls, public: bytes, threshold: int, shares: Mapping[int, bytes]) -> GroupKey:
        """Without the check of the polynomial, for values computed from a checked group."""
        made = cls.__new__(cls)
        made._fill(public, threshold, shares)
        return made

    def _fill(self, public: bytes, threshold: int, shares: Mapping[int, bytes]) -> None:
        members = sorted(shares)
        shamir.check_threshold(threshold, members)
        self.public = bytes(public)
        self.threshold = threshold
        self.shares = MappingProxyType({member: bytes(shares[member]) for member in members})
        self.digest = hashlib.sha512(_LABEL + self.encode()).digest()[:DIGEST_BYTES]

    def _on_one_polynomial(self) -> bool:
        head = dict(list(self.shares.items())[: self.threshold])
        if shamir.interpolate(head) != self.public:
            return False
        rest = list(self.shares.items())[self.threshold :]
        return all(shamir.interpolate_at(member, head) == element for member, element in rest)

    @property
    def members(self) -> tuple[int, ...]:
        """The identifiers in ascending order."""
        return tuple(self.shares)

    def times(self, factor: bytes) -> GroupKey:
        """The group of the key multiplied by a public scalar: every value times `factor`, 32 bytes from 1 to L−1."""
        group.check_scalar(factor)
        multiplied = {member: shamir.times(factor, element) for member, element in self.shares.items()}
        return GroupKey._trusted(shamir.times(factor, self.public), self.threshold, multiplied)

    def encode(self) -> bytes:
        """threshold u8 ‖ count u8 ‖ public ‖ count × (identifier u16 ‖ verification share), big-endian, ascending."""
        head = _HEAD.pack(self.threshold, len(self.shares), self.public)
        return head + b"".join(_MEMBER.pack(member, element) for member, element in self.shares.items())

    @classmethod
    def decode(cls, raw: bytes) -> GroupKey:
        """Raises `InvalidGroupError` for anything `encode` would not have written."""
        if len(raw) < _HEAD.size:
            raise InvalidGroupError("a group key that breaks off")
        threshold, count, public = _HEAD.unpack_from(raw)
        if len(raw) != _HEAD.size + count * _MEMBER.size:
            raise InvalidGroupError("a group key of another length than it says")
        pairs = list(_MEMBER.iter_unpack(raw[_HEAD.size :]))
        shamir.check_members([member for member, _ in pairs])
        return cls(public=public, threshold=threshold, shares=dict(pairs))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GroupKey) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<GroupKey {self.public.hex()} {self.threshold} of {len(self.shares)} epoch {self.digest.hex()[:8]}>"


class KeyShare:
    """One member's secret share with the group it belongs to. The secret is in no `repr` and is wiped by `wipe`."""

    __slots__ = ("_secret", "group", "identifier")

    def __init__(self, *, identifier: int, secret: bytes | bytearray, group: GroupKey) -> None:
        """Raises `InvalidGroupError` unless `secret` is the logarithm of that member's verification share."""
        self._secret: bytearray | SecretBuffer = bytearray(secret)
        self.identifier = identifier
        self.group = group
        try:
            fits = _public_of(bytes(secret)) == group.shares.get(identifier)
        except InvalidElementError:
            fits = False
        if not fits:
            self.wipe()
            raise InvalidGroupError("not this member's share of this group")

    @property
    def secret(self) -> bytes:
        """The scalar, as a copy that nobody can wipe. Raises `InvalidGroupError` after `wipe`."""
        if isinstance(self._secret, SecretBuffer) and not self._secret.closed:
            with self._secret.open() as view:
                return bytes(view)
        if isinstance(self._secret, SecretBuffer) or not self._secret:
            raise InvalidGroupError("the share was wiped")
        return bytes(self._secret)

    def lock(self, *, allow_unlocked: bool = False) -> KeyShare:
        """Move the secret into locked memory; this very share. Raises `NotLockedError`: then it was wiped."""
        if isinstance(self._secret, bytearray):
            self._secret = SecretBuffer.taking(self._secret, allow_unlocked=allow_unlocked)
        return self

    @property
    def locked(self) -> bool:
        """Is the secret in memory that is never swapped out?"""
        return isinstance(self._secret, SecretBuffer) and self._secret.locked

    def times(self, factor: bytes) -> KeyShare:
        """This member's share of `group.times(factor)`."""
        multiplied = group.scalar_mul(self.secret, factor)
        return KeyShare(identifier=self.identifier, secret=multiplied, group=self.group.times(factor))

    def wipe(self) -> None:
        """Overwrite the secret. Everything that needs it is refused from now on."""
        if isinstance(self._secret, SecretBuffer):
            self._secret.close()
            return
        shamir.wipe(self._secret)
        self._secret.clear()

    def encode(self) -> bytes:
        """The share with its group, **in the clear**: for a sealed store or locked memory and nothing else."""
        return _SHARE_LABEL + _MEMBER.pack(self.identifier, self.secret) + self.group.encode()

    @classmethod
    def decode(cls, raw: bytes) -> KeyShare:
        """Raises `InvalidGroupError` for anything `encode` would not have written."""
        start = len(_SHARE_LABEL)
        if len(raw) < start + _MEMBER.size or not raw.startswith(_SHARE_LABEL):
            raise InvalidGroupError("not a share")
        identifier, secret = _MEMBER.unpack_from(raw, start)
        return cls(identifier=identifier, secret=secret, group=GroupKey.decode(raw[start + _MEMBER.size :]))

    def __repr__(self) -> str:
        return f"<KeyShare of member {self.identifier} in {self.group!r}>"


def _public_of(secret: bytes) -> bytes:
    group.check_scalar(secret)
    return group.public_of(secret)
