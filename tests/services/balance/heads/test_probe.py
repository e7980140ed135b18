"""Targets that answer, and targets that do not."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from ron.services.balance.heads.probe import CONNECT_TIMEOUT_S, PROBE_EVERY_S, Probe, Verdict, all_healthy


class VerdictTests(SynchronousTestCase):
    def test_one_success_two_failures(self) -> None:
        verdict = Verdict()
        seen = []
        for answered in (False, True, False, True, False, False, False, True):
            verdict.heard(answered=answered)
            seen.append(verdict.healthy)
        self.assertEqual(seen, [None, True, True, True, True, False, False, True])


@implementer(IStreamClientEndpoint)
class Waiting:
    """Attempts wait until the test answers them."""

    def __init__(self) -> None:
        self.attempts: list[Deferred[Protocol]] = []

    def connect(self, _factory: IProtocolFactory) -> Deferred[Protocol]:
        self.attempts.append(Deferred())
        return self.attempts[-1]


class ProbeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.endpoint, self.told = Clock(), Waiting(), list[bool | None]()
        self.probe = Probe(self.clock, lambda: self.endpoint, lambda: self.told.append(self.probe.healthy))
        self.probe.start()

    def refuse(self) -> None:
        self.endpoint.attempts[-1].errback(Failure(Refused()))

    def test_silence_is_a_failure(self) -> None:
        for _ in range(2):
            self.clock.advance(CONNECT_TIMEOUT_S)
            self.clock.advance(PROBE_EVERY_S)
        self.assertEqual(self.told, [False])

    def test_told_of_changes_only(self) -> None:
        for answered in (True, True, False, False, False, True):
            if answered:
                self.endpoint.attempts[-1].callback(Protocol())
            else:
                self.refuse()
            self.clock.advance(PROBE_EVERY_S)
        self.assertEqual(self.told, [True, False, True])
        self.assertEqual(len(self.endpoint.attempts), 7)

    def test_stopped_it_asks_no_more(self) -> None:
        self.probe.stop()
        self.clock.advance(100)
        self.assertEqual((len(self.endpoint.attempts), self.clock.getDelayedCalls(), self.told), (1, [], []))
        self.probe.start()
        self.refuse()
        self.probe.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_all(self) -> None:
        other = Probe(self.clock, Waiting, lambda: None)
        self.assertIsNone(all_healthy([self.probe, other]))
        self.endpoint.attempts[-1].callback(Protocol())
        self.assertIsNone(all_healthy([self.probe, other]))
        self.assertIs(all_healthy([self.probe]), True)
        self.assertIs(all_healthy([]), True)


class RealProbeTests(TestCase):
    async def test_a_port_that_opens_and_closes(self) -> None:
        port = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        changed: list[Deferred[None]] = [Deferred(), Deferred()]
        waiting = list(changed)
        probe = Probe(reactor, lambda: endpoint, lambda: waiting.pop(0).callback(None), every_s=0.02)
        self.addCleanup(probe.stop)
        probe.start()
        await changed[0]
        self.assertIs(probe.healthy, True)
        await port.stopListening()
        await changed[1]
        self.assertIs(probe.healthy, False)
