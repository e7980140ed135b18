"""What this node holds: whole keys, and shares with the epochs they are of. In locked memory, and nowhere else.

In: keys and shares as they come. Out: signatures under the whole key; shares by epoch, blinded for a period. Two epochs
are kept while nobody knows whether a ceremony has ended well: whichever the others use, this node can sign.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ron.crypto.frost.blinding import blind_group, blind_share, blinding_factor
from ron.crypto.frost.dkg import secret_of
from ron.crypto.frost.keys import GroupKey, KeyShare
from ron.crypto.group import InvalidElementError, public_of
from ron.crypto.secrets import SecretBuffer
from ron.proto.balance import ServiceName
from ron.proto.errors import bad_request, conflict, unavailable
from ron.tor.descriptor.blinding import blind_secret, sign_expanded
from ron.tor.descriptor.periods import TimePeriod
from ron.tor.onionkeys import onion_address

MAX_PAST = 64
_SEED_BYTES = 32


def new_expanded() -> bytearray:
    """A fresh expanded secret key (RFC 8032 §5.1.5), 64 bytes: for whoever overwrites it after use."""
    expanded = bytearray(hashlib.sha512(secrets.token_bytes(_SEED_BYTES)).digest())
    expanded[0] &= 248
    expanded[31] = expanded[31] & 63 | 64
    return expanded


class WholeKey:
    """The expanded Ed25519 key of an address (64 bytes), in locked memory."""

    def __init__(self, expanded: bytearray, *, allow_unlocked: bool = False) -> None:
        """Takes `expanded` over and overwrites it. Raises `RonError` for what is no onion key, and `NotLockedError`."""
        try:
            self.identity = public_of(secret_of(expanded))
            self._buffer = SecretBuffer.taking(expanded, allow_unlocked=allow_unlocked)
        except InvalidElementError:
            raise bad_request("not a v3 onion key", hint="it is the last 64 bytes of hs_ed25519_secret_key") from None
        finally:
            expanded[:] = bytes(len(expanded))

    @property
    def onion(self) -> str:
        """Its address."""
        return onion_address(self.identity)

    @property
    def locked(self) -> bool:
        """Is it kept out of the swap?"""
        return self._buffer.locked

    def copy(self) -> bytearray:
        """The 64 bytes, for whoever hands them on: overwrite them after use."""
        with self._buffer.open() as view:
            return bytearray(view)

    def scalar(self) -> bytes:
        """The secret scalar, below the group's order."""
        with self._buffer.open() as view:
            return secret_of(bytes(view))

    def sign(self, period: TimePeriod, message: bytes) -> bytes:
        """64 bytes, under the key of `period`."""
        factor = blinding_factor(self.identity, period.number, period.length_min)
        with self._buffer.open() as view:
            return sign_expanded(blind_secret(bytes(view), factor), message)

    def wipe(self) -> None:
        """Forget it."""
        self._buffer.close()


class WholeKeySigner:
    """`ron.tor.descriptor.blinding.Signer` with the whole key of a service, as long as the node holds it."""

    def __init__(self, ring: Keyring, service: ServiceName) -> None:
        self._ring = ring
        self._service = service
        self.identity: bytes = ring.whole[service].identity

    async def sign(self, period: TimePeriod, message: bytes) -> bytes:
        """At once. Raises `RonError` (Unavailable) when the key was forgotten."""
        key = self._ring.whole.get(self._service)
        if key is None:
            raise unavailable(f"this node holds the key of {self._service} no more")
        return key.sign(period, message)


@dataclass(slots=True)
class Epoch:
    """A share, and in which runs the members of its group got theirs. ceremony: what it came out of."""

    share: KeyShare
    runs: Mapping[int, bytes]
    ceremony: bytes
    _shares: dict[TimePeriod, KeyShare] = field(default_factory=dict)
    _groups: dict[TimePeriod, GroupKey] = field(default_factory=dict)

    @property
    def group(self) -> GroupKey:
        """The public half."""
        return self.share.group

    def blinded_group(self, period: TimePeriod) -> GroupKey:
        """The group under the period's key; reckoned once."""
        if period not in self._groups:
            self._groups[period] = blind_group(self.group, period.number, period.length_min)
        return self._groups[period]

    def blinded_share(self, period: TimePeriod, *, allow_unlocked: bool) -> KeyShare:
        """The share of the period's key, in locked memory; reckoned once."""
        if period not in self._shares:
            made = blind_share(self.share, period.number, period.length_min)
            self._shares[period] = made.lock(allow_unlocked=allow_unlocked)
        return self._shares[period]

    def keep_only(self, periods: Collection[TimePeriod]) -> None:
        """Forget what was reckoned for other periods."""
        for period in set(self._shares) - set(periods):
            self._shares.pop(period).wipe()
        for period in set(self._groups) - set(periods):
            del self._groups[period]

    def wipe(self) -> None:
        """Forget everything."""
        self.keep_only(())
        self.share.wipe()


@dataclass(slots=True)
class Holding:
    """A threshold service here. pending: a new epoch that others may or may not have taken up.

    once: in which run a member last had a share. past: digests of epochs that were in use here, oldest first.
    """

    current: Epoch | None = None
    pending: Epoch | None = None
    once: dict[int, bytes] = field(default_factory=dict)
    past: list[bytes] = field(default_factory=list)

    def epochs(self) -> tuple[Epoch, ...]:
        """Those that can sign, the one in use first."""
        return tuple(epoch for epoch in (self.current, self.pending) if epoch is not None)

    def epoch(self, digest: bytes) -> Epoch | None:
        """The one with this digest."""
        return next((epoch for epoch in self.epochs() if epoch.group.digest == digest), None)

    def was_adopted(self, digest: bytes) -> bool:
        """Is, or was, this epoch in use here?"""
        return digest in self.past


class Keyring:
    """Everything secret of one node. allow_unlocked: go on where the system does not lock memory."""

    def __init__(self, *, allow_unlocked: bool = False) -> None:
        self.allow_unlocked = allow_unlocked
        self.whole: dict[ServiceName, WholeKey] = {}
        self.shared: dict[ServiceName, Holding] = {}

    def holds(self) -> frozenset[ServiceName]:
        """Services with a key or a share here."""
        return frozenset(self.whole) | {name for name, one in self.shared.items() if one.epochs()}

    def uses(self, service: ServiceName) -> bool:
        """Is there a key, or a share that is in use? One that waits for the end of a birth is not."""
        holding = self.shared.get(service)
        return service in self.whole or (holding is not None and holding.current is not None)

    @property
    def locked(self) -> bool:
        """Is all of it kept out of the swap?"""
        shares = [epoch.share for one in self.shared.values() for epoch in one.epochs()]
        return all(key.locked for key in self.whole.values()) and all(share.locked for share in shares)

    def take_whole(self, service: ServiceName, expanded: bytearray) -> WholeKey:
        """The key of `service`, which is overwritten where it was. Raises as `WholeKey`; Conflict for a second one."""
        made = WholeKey(expanded, allow_unlocked=self.allow_unlocked)
        if service in self.holds():
            made.wipe()
            raise conflict(f"this node holds a key of {service} already")
        self.whole[service] = made
        return made

    def holding(self, service: ServiceName) -> Holding:
        """What there is of a threshold service; nothing at first."""
        return self.shared.setdefault(service, Holding())

    def epoch(self, service: ServiceName, digest: bytes) -> Epoch | None:
        """The share of this epoch."""
        return self.holding(service).epoch(digest) if service in self.shared else None

    def current(self, service: ServiceName, written: bytes = b"") -> Epoch | None:
        """The epoch in use; a pending one when there is no other, or when its encoded group is the one `written` in
        the book: as long as it is open how a ceremony ended, all go by that."""
        found = self.shared[service].epochs() if service in self.shared else ()
        agreed = (epoch for epoch in found if written and epoch.group.encode() == written)
        return next(agreed, found[0] if found else None)

    def keep_pending(self, service: ServiceName, epoch: Epoch) -> None:
        """A new share that is not to replace the old one yet. One that waited in its place is forgotten."""
        holding = self.holding(service)
        epoch.share.lock(allow_unlocked=self.allow_unlocked)
        if holding.pending is not None:
            holding.pending.wipe()
        holding.pending = epoch

    def adopt(self, service: ServiceName, ceremony: bytes, removed: Collection[int] = ()) -> bool:
        """Use what came out of `ceremony` and forget what was before. False when that is not what waits."""
        holding = self.holding(service)
        if holding.pending is None or holding.pending.ceremony != ceremony:
            return False
        if holding.current is not None:
            holding.current.wipe()
        holding.current, holding.pending = holding.pending, None
        kept = {number: run for number, run in holding.once.items() if number not in removed}
        holding.once = {**kept, **holding.current.runs}
        holding.past = [*holding.past, holding.current.group.digest][-MAX_PAST:]
        return True

    def drop_pending(self, service: ServiceName, ceremony: bytes) -> None:
        """The ceremony has failed for certain."""
        holding = self.holding(service)
        if holding.pending is not None and holding.pending.ceremony == ceremony:
            holding.pending.wipe()
            holding.pending = None

    def drop(self, service: ServiceName) -> None:
        """Forget key and shares of `service`."""
        if (key := self.whole.pop(service, None)) is not None:
            key.wipe()
        if (holding := self.shared.pop(service, None)) is not None:
            for epoch in holding.epochs():
                epoch.wipe()

    def keep_only(self, periods: Collection[TimePeriod]) -> None:
        """Forget shares that were blinded for other periods."""
        for holding in self.shared.values():
            for epoch in holding.epochs():
                epoch.keep_only(periods)

    def wipe(self) -> None:
        """Forget everything."""
        for service in [*self.whole, *self.shared]:
            self.drop(service)
