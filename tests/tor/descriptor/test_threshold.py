"""A descriptor of an address whose key no node has: t of n members sign its one certificate, in shares."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import group
from ron.crypto.frost import shamir, signing
from ron.crypto.frost.blinding import blind_group, blind_share
from ron.crypto.frost.keys import GroupKey, KeyShare
from ron.proto.errors import ErrorCode, RonError
from ron.tor.descriptor.build import build, certify
from ron.tor.descriptor.intropoints import read_backend
from ron.tor.descriptor.periods import TimePeriod
from ron.tor.descriptor.refused import Reason, Refused
from ron.tor.onionkeys import onion_address
from tests.tor.descriptor.samples import NOW_S, RECORDED_PERIOD, finish, intro_point


class Members:
    """A `Signer` made of members in one process; each blinds its own share, and shares meet nowhere."""

    def __init__(self, key: GroupKey, present: list[KeyShare]) -> None:
        self.identity = key.public
        self._key = key
        self._present = present

    async def sign(self, period: TimePeriod, message: bytes) -> bytes:
        if len(self._present) < self._key.threshold:
            raise RonError(ErrorCode.STORE_UNAVAILABLE, "too few members answer")
        shares = [blind_share(share, period.number, period.length_min) for share in self._present]
        nonces = {share.identifier: signing.commit(share) for share in shares}
        commitments = [nonces[share.identifier].commitment for share in shares]
        made = {
            share.identifier: signing.sign_share(share, nonces[share.identifier], commitments, message)
            for share in shares
        }
        return signing.aggregate(blind_group(self._key, period.number, period.length_min), made, commitments, message)


class WrongPeriod(Members):
    """Blinds for another period than it is asked for."""

    async def sign(self, period: TimePeriod, message: bytes) -> bytes:
        return await super().sign(period.shifted(1), message)


def dealt(threshold: int, members: int) -> tuple[GroupKey, list[KeyShare]]:
    secret = shamir.random_scalar()
    polynomial = shamir.Polynomial.random(secret, threshold)
    points = {member: polynomial.at(member) for member in range(1, members + 1)}
    public = {member: group.public_of(point) for member, point in points.items()}
    key = GroupKey(public=group.public_of(secret), threshold=threshold, shares=public)
    return key, [KeyShare(identifier=member, secret=point, group=key) for member, point in points.items()]


class Threshold(SynchronousTestCase):
    def test_too_few(self) -> None:
        key, shares = dealt(3, 5)
        error = self.assertRaises(RonError, finish, certify(Members(key, shares[:2]), RECORDED_PERIOD, NOW_S))
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)

    def test_signed_for_another_period(self) -> None:
        key, shares = dealt(2, 3)
        error = self.assertRaises(Refused, finish, certify(WrongPeriod(key, shares[:2]), RECORDED_PERIOD, NOW_S))
        self.assertIs(error.reason, Reason.BAD_SIGNATURE)

    def test_any_quorum_makes_a_descriptor(self) -> None:
        points = (intro_point("a"), intro_point("b"))
        for threshold, members in ((2, 3), (3, 5)):
            key, shares = dealt(threshold, members)
            for present in (shares[:threshold], shares[-threshold:], shares):
                signed = finish(certify(Members(key, present), RECORDED_PERIOD, NOW_S))
                text = build(signed, points, 1)
                self.assertEqual(read_backend(text, onion_address(key.public), [RECORDED_PERIOD], NOW_S).points, points)
