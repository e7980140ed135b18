"""A Twisted service under the supervisor: started again in place, and never twice at once."""

from __future__ import annotations

from collections.abc import Callable

from twisted.application.service import MultiService, Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.inprocess import ServiceUnit


class Shop(Service):
    """Closes when told."""

    def __init__(self) -> None:
        self.closing: list[Deferred[None]] = []
        self.opened = 0
        self.on_crash: Callable[[str], None] | None = None

    def startService(self) -> None:
        """Open."""
        assert all(closing.called for closing in self.closing), "opened while it is being closed"
        super().startService()
        self.opened += 1

    def stopService(self) -> Deferred[None]:
        """Begin to close."""
        super().stopService()
        self.closing.append(Deferred())
        return self.closing[-1]


class Units(SynchronousTestCase):
    def setUp(self) -> None:
        self.shop = Shop()
        self.unit = ServiceUnit("shop", self.shop)
        self.crashes: list[str] = []

    def start(self, unit: ServiceUnit | None = None) -> Deferred[None]:
        """As the supervisor starts it."""
        return Deferred.fromCoroutine((unit or self.unit).start(self.crashes.append))

    def stop(self, unit: ServiceUnit | None = None) -> Deferred[None]:
        """As the supervisor stops it."""
        return Deferred.fromCoroutine((unit or self.unit).stop())

    def test_up_when_it_says_so(self) -> None:
        ready: Deferred[None] = Deferred()

        async def is_ready() -> None:
            await ready

        starting = self.start(ServiceUnit("shop", self.shop, ready=is_ready))
        self.assertNoResult(starting)
        ready.callback(None)
        self.successResultOf(starting)

    def test_it_can_tell_that_it_cannot_go_on(self) -> None:
        self.successResultOf(self.start())
        assert self.shop.on_crash is not None
        self.shop.on_crash("out of bread")
        self.assertEqual(self.crashes, ["out of bread"])

    def test_stopped_when_it_has_closed(self) -> None:
        self.start()
        stopping = self.stop()
        self.assertNoResult(stopping)
        self.shop.closing[0].callback(None)
        self.successResultOf(stopping)
        self.successResultOf(self.stop())
        self.assertEqual(len(self.shop.closing), 1)

    def test_stopping_what_never_started(self) -> None:
        self.successResultOf(self.stop())
        self.unit.abort()
        self.assertEqual(self.shop.closing, [])

    def test_a_stop_that_fails_says_so(self) -> None:
        self.start()
        stopping = self.stop()
        self.shop.closing[0].errback(ValueError("jammed"))
        self.failureResultOf(stopping, ValueError)

    def test_after_an_abort_the_next_start_waits_for_the_end(self) -> None:
        self.start()
        self.unit.abort()
        starting = self.start()
        self.assertEqual(self.shop.opened, 1)
        self.shop.closing[0].callback(None)
        self.successResultOf(starting)
        self.assertEqual(self.shop.opened, 2)

    def test_a_start_given_up_while_it_waits_does_not_make_the_next_hasty(self) -> None:
        self.start()
        self.unit.abort()
        first = self.start()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        second = self.start()
        self.assertEqual(self.shop.opened, 1)
        self.shop.closing[0].callback(None)
        self.successResultOf(second)
        self.assertEqual(self.shop.opened, 2)

    def test_a_stop_after_an_abort_waits_for_the_end_too(self) -> None:
        self.start()
        self.unit.abort()
        stopping = self.stop()
        self.assertNoResult(stopping)
        self.shop.closing[0].callback(None)
        self.successResultOf(stopping)

    def test_an_abort_that_fails_is_logged_and_no_obstacle(self) -> None:
        self.start()
        self.unit.abort()
        self.shop.closing[0].errback(ValueError("jammed"))
        self.successResultOf(self.start())
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_an_end_that_waits_for_something_else_still(self) -> None:
        """A Deferred that was called and has another in its chain has not ended."""
        self.start()
        self.unit.abort()
        more: Deferred[None] = Deferred()
        self.shop.closing[0].addCallback(lambda _none: more)
        self.shop.closing[0].callback(None)
        starting = self.start()
        self.assertNoResult(starting)
        more.callback(None)
        self.successResultOf(starting)

    def test_a_service_that_fails_half_way_through_its_start(self) -> None:
        """Its parts that came up are stopped, and it can be started again."""

        class Part(Service):
            broken = False

            def startService(self) -> None:
                if self.broken:
                    raise OSError("no port")
                super().startService()

        good, bad, whole = Part(), Part(), MultiService()
        whole.addService(good)
        whole.addService(bad)
        bad.broken = True
        unit = ServiceUnit("whole", whole)
        self.failureResultOf(self.start(unit), OSError)
        unit.abort()
        self.assertEqual((good.running, bad.running), (0, 0))
        bad.broken = False
        self.successResultOf(self.start(unit))
        self.assertEqual((good.running, bad.running), (1, 1))
        self.successResultOf(self.stop(unit))
