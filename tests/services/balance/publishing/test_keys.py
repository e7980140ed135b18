"""Descriptor-signing keys: signers that fail, lie or keep silent first."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Metrics
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.services.balance.publishing.keys import (
    CERTIFY_TIMEOUT_S,
    LEAST_LEFT_S,
    RENEW_BEFORE_S,
    RETRY_S,
    Keys,
)
from ron.services.balance.publishing.outside import Figures
from ron.tor.descriptor.blinding import KeySigner
from ron.tor.descriptor.build import DescriptorKey
from ron.tor.descriptor.periods import TimePeriod
from ron.tor.descriptor.refused import Reason, Refused
from tests.services.balance.publishing.samples import MASTER, NEWER, NOW_S, OLDER


class Signing:
    """A `Signer` with the master's key, that can be slow, silent, wrong, or gone."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._key = KeySigner(MASTER)
        self.asked = 0
        self.takes_s = 0.0
        self.wrong = self.gone = False

    @property
    def identity(self) -> bytes:
        return self._key.identity

    async def sign(self, period: TimePeriod, message: bytes) -> bytes:
        self.asked += 1
        if self.takes_s:
            done: Deferred[None] = Deferred()
            self._clock.callLater(self.takes_s, done.callback, None)
            await done
        if self.gone:
            raise unavailable("too few others take part")
        return bytes(64) if self.wrong else await self._key.sign(period, message)


class Making(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.signing = Signing(self.clock)
        self.metrics = Metrics()
        self.keys = Keys(
            self.clock,
            signer=lambda service: self.signing,
            now_s=lambda: NOW_S + self.clock.seconds(),
            figures=Figures(self.metrics),
        )

    def asking(self, period: TimePeriod = OLDER) -> Deferred[DescriptorKey]:
        return Deferred.fromCoroutine(self.keys.key("shop", period))

    def key(self, period: TimePeriod = OLDER) -> DescriptorKey:
        return self.successResultOf(self.asking(period))

    def failing(self, asked: Deferred[Any]) -> RonError:
        error = self.failureResultOf(asked).value
        assert isinstance(error, RonError)
        return error

    def certified(self, result: str) -> float:
        value = self.metrics.registry.get_sample_value("balance_certifications_total", {"result": result})
        return value or 0.0

    def test_a_signer_that_lies(self) -> None:
        self.signing.wrong = True
        error = self.failing(self.asking())
        assert isinstance(error, Refused)
        self.assertIs(error.reason, Reason.BAD_SIGNATURE)
        self.signing.wrong = False
        self.assertEqual(self.key().blinded.period, OLDER)
        self.assertEqual((self.certified("failed"), self.certified("made")), (1, 1))

    def test_a_signer_that_keeps_silent(self) -> None:
        self.signing.takes_s = 1e6
        asked = self.asking()
        self.clock.advance(CERTIFY_TIMEOUT_S)
        self.assertIs(self.failing(asked).code, ErrorCode.TIMEOUT)
        self.signing.takes_s = 0
        self.key()

    def test_no_signer_here(self) -> None:
        def nobody(service: str) -> Signing:
            raise unavailable(f"no share of {service}")

        self.keys = Keys(self.clock, signer=nobody, now_s=lambda: NOW_S, figures=Figures(Metrics()))
        self.assertIs(self.failing(self.asking()).code, ErrorCode.STORE_UNAVAILABLE)

    def test_once_a_period(self) -> None:
        first, second = self.key(), self.key(NEWER)
        self.assertIs(self.key(), first)
        self.assertNotEqual(first.signing, second.signing)
        self.assertEqual(self.signing.asked, 2)

    def test_one_signing_however_many_ask(self) -> None:
        self.signing.takes_s = 1.0
        asked = [self.asking() for _ in range(5)]
        asked[0].addErrback(lambda failure: None)
        asked[0].cancel()
        self.clock.advance(1)
        made = [self.successResultOf(each) for each in asked[1:]]
        self.assertEqual((len({id(key) for key in made}), self.signing.asked), (1, 1))

    def test_all_who_wait_learn_of_a_failure(self) -> None:
        self.signing.takes_s, self.signing.gone = 1.0, True
        asked = [self.asking() for _ in range(3)]
        self.clock.advance(1)
        self.assertEqual({self.failing(each).code for each in asked}, {ErrorCode.STORE_UNAVAILABLE})
        self.assertEqual(self.signing.asked, 1)

    def test_renewed_while_the_last_one_is_in_use(self) -> None:
        first = self.key()
        self.signing.takes_s = 1.0
        self.clock.advance(first.expires_s - NOW_S - RENEW_BEFORE_S)
        self.assertIs(self.key(), first)
        self.clock.advance(1)
        second = self.key()
        self.assertGreater(second.expires_s, first.expires_s)
        self.assertEqual(self.signing.asked, 2)

    def test_a_renewal_that_fails(self) -> None:
        first = self.key()
        self.signing.gone = True
        self.clock.advance(first.expires_s - NOW_S - RENEW_BEFORE_S)
        self.assertIs(self.key(), first)
        self.assertIs(self.key(), first)
        self.assertEqual(self.signing.asked, 2)
        self.clock.advance(RETRY_S)
        self.assertIs(self.key(), first)
        self.assertEqual(self.signing.asked, 3)
        self.clock.advance(RENEW_BEFORE_S - LEAST_LEFT_S)
        self.assertIs(self.failing(self.asking()).code, ErrorCode.STORE_UNAVAILABLE)

    def test_ready_beforehand(self) -> None:
        self.assertFalse(self.keys.ready("shop", (OLDER, NEWER)))
        self.keys.prepare("shop", (OLDER, NEWER))
        self.keys.prepare("shop", (OLDER, NEWER))
        self.assertTrue(self.keys.ready("shop", (OLDER, NEWER)))
        self.assertEqual(self.signing.asked, 2)
        self.signing.gone = True
        self.key(OLDER)
        self.keys.prepare("other", (OLDER,))
        self.assertFalse(self.keys.ready("other", (OLDER,)))

    def test_forgotten(self) -> None:
        self.key(OLDER)
        self.key(NEWER)
        self.keys.keep_only((NEWER,))
        self.assertEqual((self.keys.ready("shop", (OLDER,)), self.keys.ready("shop", (NEWER,))), (False, True))
        self.keys.forget("shop")
        self.assertFalse(self.keys.ready("shop", (NEWER,)))
        self.signing.takes_s = 1.0
        asked = self.asking()
        self.keys.forget("shop")
        self.clock.advance(1)
        self.assertIs(self.failing(asked).code, ErrorCode.CONFLICT)
        self.assertFalse(self.keys.ready("shop", (OLDER,)))
