"""What a node lets be signed, and nothing that differs from it in a single bit."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.group import GENERATOR
from ron.proto.errors import RonError
from ron.services.balance.vault.judge import judged
from ron.tor.descriptor.blinding import blind
from ron.tor.descriptor.certs import HOUR_S, Certificate, Purpose, expiry_h
from ron.tor.descriptor.refused import Reason, Refused
from tests.services.balance.vault.support import NOW_S, PERIOD, PERIODS

KEY = bytes(range(32))


def certificate(
    purpose: Purpose = Purpose.SIGN_DESCRIPTOR, shift: int = 0, expires_h: int = 0, identity: bytes = GENERATOR
) -> bytes:
    by = blind(identity, PERIOD.shifted(shift)).public
    return Certificate(purpose, KEY, by=by, expires_h=expires_h or expiry_h(NOW_S)).message


class Judged(SynchronousTestCase):
    def refuse(self, message: bytes, reason: Reason) -> None:
        refused = self.assertRaises(Refused, judged, message, GENERATOR, PERIODS, NOW_S)
        self.assertEqual(refused.reason, reason)

    def test_other_purposes(self) -> None:
        self.refuse(certificate(Purpose.INTRO_AUTH), Reason.MALFORMED)
        self.refuse(certificate(Purpose.INTRO_ENCRYPT), Reason.MALFORMED)

    def test_other_periods_and_addresses(self) -> None:
        self.refuse(certificate(shift=2), Reason.STRANGER)
        self.refuse(certificate(shift=-2), Reason.STRANGER)
        self.refuse(certificate(identity=blind(GENERATOR, PERIOD).public), Reason.STRANGER)
        self.refuse(
            Certificate(Purpose.SIGN_DESCRIPTOR, KEY, by=GENERATOR, expires_h=expiry_h(NOW_S)).message, Reason.STRANGER
        )

    def test_hours(self) -> None:
        now_h = NOW_S // HOUR_S
        self.refuse(certificate(expires_h=now_h), Reason.EXPIRED)
        self.refuse(certificate(expires_h=now_h + 56), Reason.EXPIRED)
        self.refuse(certificate(expires_h=10**7), Reason.EXPIRED)
        far = certificate()
        # a year that no calendar here has
        self.refuse(far[:2] + b"\xff" * 4 + far[6:], Reason.MALFORMED)
        self.assertEqual(judged(certificate(expires_h=now_h + 1), GENERATOR, PERIODS, NOW_S), PERIOD)

    def test_what_is_no_certificate(self) -> None:
        good = certificate()
        for wrong in (b"", b"m", good[:-1], good + b"\0", bytes(len(good)), good * 2, b"\xff" * 200):
            self.refuse(wrong, Reason.MALFORMED)

    def test_more_in_it_than_there_has_to_be(self) -> None:
        good = certificate()
        twice = good[:39] + b"\x02" + good[40:] + good[40:]
        flagged = good[:43] + b"\x02" + good[44:]
        unknown = good[:39] + b"\x02" + good[40:] + b"\x00\x01\x05\x00x"
        for wrong in (twice, flagged, unknown):
            self.refuse(wrong, Reason.MALFORMED)

    def test_each_period_that_is_due(self) -> None:
        for shift in (-1, 0, 1):
            self.assertEqual(judged(certificate(shift=shift), GENERATOR, PERIODS, NOW_S), PERIOD.shifted(shift))
        self.refuse(certificate(shift=1)[:-1] + b"\0", Reason.STRANGER)

    @given(st.integers(0, len(certificate()) * 8 - 1))
    def test_another_bit(self, bit: int) -> None:
        """Only another key, or another hour within bounds, is another certificate that may be signed."""
        message = bytearray(certificate())
        message[bit // 8] ^= 1 << bit % 8
        if 2 <= bit // 8 < 6 or 7 <= bit // 8 < 39:
            return
        self.assertRaises(Refused, judged, bytes(message), GENERATOR, PERIODS, NOW_S)

    @given(st.binary(max_size=300))
    @settings(max_examples=100)
    def test_any_bytes(self, message: bytes) -> None:
        self.assertRaises(RonError, judged, message, GENERATOR, PERIODS, NOW_S)
