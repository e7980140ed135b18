"""What the threshold tests share: members who talk in any order, through whoever tampers. There are no tests here."""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import settings

from ron.crypto import group
from ron.crypto.frost import dkg
from ron.crypto.frost.ceremony import Ceremony
from ron.crypto.frost.errors import Refused
from ron.crypto.frost.keys import GroupKey, KeyShare
from ron.crypto.frost.session import Coordinator, Request, Signer
from ron.crypto.frost.shamir import Polynomial
from ron.crypto.frost.wire import Kind
from tests.crypto.test_schnorr import P

VECTORS = Path(__file__).parent.parent / "vectors" / "frost"
COORDINATOR = 1
HEAD = 36
# order 4
TORSION = (pow(2, (P - 1) // 4, P), 0)
# some milliseconds an example
few = settings(max_examples=25, deadline=None)
# sender, receiver, message → what the receiver gets; None keeps it back
Tamper = Callable[[int, int, bytes], bytes | None]


def vectors(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


def nonce() -> bytes:
    return secrets.token_bytes(32)


def integer(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def scalar(number: int) -> bytes:
    return (number % group.ORDER).to_bytes(32, "little")


def flipped(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit // 8 % len(raw)] ^= 1 << bit % 8
    return bytes(changed)


def dealt(secret: bytes, threshold: int, members: Sequence[int]) -> dict[int, KeyShare]:
    """Shares from one who knows the secret: quick, for tests of what comes after."""
    polynomial = Polynomial.random(secret, threshold)
    points = {member: polynomial.at(member) for member in members}
    public = {member: group.public_of(point) for member, point in points.items()}
    key = GroupKey(public=group.public_of(secret), threshold=threshold, shares=public)
    return {member: KeyShare(identifier=member, secret=point, group=key) for member, point in points.items()}


@cache
def some_shares(threshold: int, count: int) -> Mapping[int, KeyShare]:
    """The same shares all through a test run."""
    return dealt(scalar(secrets.randbelow(group.ORDER - 1) + 1), threshold, range(1, count + 1))


def secret_from(shares: Iterable[KeyShare]) -> int:
    """Interpolation at 0 in plain integers: what whoever seizes these shares can compute."""
    points = {share.identifier: integer(share.secret) for share in shares}
    total = 0
    for i, value in points.items():
        for j in points:
            if j != i:
                value = value * j * pow(j - i, -1, group.ORDER) % group.ORDER
        total += value
    return total % group.ORDER


def subsets(shares: Mapping[int, KeyShare], size: int) -> Iterator[dict[int, KeyShare]]:
    for chosen in itertools.combinations(sorted(shares), size):
        yield {member: shares[member] for member in chosen}


class Signing:
    """A coordinator and its signers, a step at a time."""

    def __init__(self, shares: Mapping[int, KeyShare], message: bytes = b"m", key: GroupKey | None = None) -> None:
        key = key or next(iter(shares.values())).group
        self.request = Request(message=message, nonce=nonce())
        self.coordinator = Coordinator(key, self.request, COORDINATOR, list(shares))
        self.signers = {member: Signer(share, self.request, COORDINATOR) for member, share in shares.items()}

    def commit(self) -> Signing:
        for member, signer in self.signers.items():
            self.coordinator.receive(member, signer.commitment())
        return self

    def sign(self) -> bytes:
        package = self.coordinator.package()
        for member, signer in self.signers.items():
            self.coordinator.receive(member, signer.sign(COORDINATOR, package))
        return self.coordinator.signature()


def signed(shares: Mapping[int, KeyShare], message: bytes = b"m") -> bytes:
    return Signing(shares, message).commit().sign()


class Network:
    """Ceremonies that send each other messages. `refused` are the refusals, with who raised them."""

    def __init__(self, ceremonies: Mapping[int, Ceremony], tamper: Tamper = lambda _s, _r, raw: raw) -> None:
        self.ceremonies = ceremonies
        self.tamper = tamper
        self.refused: list[tuple[int, Refused]] = []
        self.seen: list[tuple[int, int, bytes]] = []
        self.private: list[bool] = []

    def run(self, pick: Callable[[int], int] = lambda _count: 0) -> Network:
        """Until nobody has anything to say. `pick` says which of so many messages on their way comes next."""
        under_way = self._gather()
        while under_way:
            sender, receiver, raw = under_way.pop(pick(len(under_way)))
            self.deliver(sender, receiver, raw)
            under_way += self._gather()
        return self

    def deliver(self, sender: int, receiver: int, raw: bytes) -> None:
        try:
            self.ceremonies[receiver].receive(sender, raw)
        except Refused as refused:
            self.refused.append((receiver, refused))

    def _gather(self) -> list[tuple[int, int, bytes]]:
        sent = []
        for sender, ceremony in self.ceremonies.items():
            for message in ceremony.outgoing():
                for receiver in self.ceremonies:
                    if receiver != sender and message.to in (None, receiver):
                        raw = self.tamper(sender, receiver, message.body)
                        sent += [(sender, receiver, raw)] if raw is not None else []
                        self.private.append(message.private)
        self.seen += sent
        return sent

    @property
    def states(self) -> set[str]:
        return {ceremony.state for ceremony in self.ceremonies.values()}

    @property
    def results(self) -> dict[int, KeyShare]:
        return {member: one.result for member, one in self.ceremonies.items() if one.result}

    def failures(self) -> dict[int, tuple[str, tuple[int, ...]]]:
        """Who failed, why, and whom that names."""
        return {
            member: (one.failure.reason.value, one.failure.members)
            for member, one in self.ceremonies.items()
            if one.failure
        }


def keygen_network(threshold: int, members: Sequence[int], tamper: Tamper = lambda _s, _r, raw: raw) -> Network:
    plan = dkg.keygen_plan(nonce(), threshold, members)
    return Network({member: dkg.keygen(plan, member) for member in plan.receivers}, tamper)


@cache
def born(threshold: int, count: int) -> Mapping[int, KeyShare]:
    """Shares of a key that was never whole, the same all through a test run."""
    return keygen_network(threshold, range(1, count + 1)).run().results


def kind(raw: bytes) -> Kind:
    return Kind(raw[1])


def with_wrong_share(dealer: int, receiver: int) -> Tamper:
    def tamper(sender: int, to: int, raw: bytes) -> bytes:
        if (sender, to, kind(raw)) == (dealer, receiver, Kind.SHARE):
            wrong = scalar(integer(raw[HEAD : HEAD + 32]) + 1)
            return raw[:HEAD] + wrong + raw[HEAD + 32 :]
        return raw

    return tamper
