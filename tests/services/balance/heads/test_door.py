"""Which services' targets answer: one that does not is no other's trouble."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import HealthState, Metrics
from ron.proto.balance import HeadDescriptor
from ron.proto.errors import ErrorCode, RonError
from ron.services.balance.config import BalanceConfig
from ron.services.balance.heads.door import Door
from ron.services.balance.heads.head import HEALTH_KEY, TorHead
from ron.services.balance.heads.probe import PROBE_EVERY_S

ONION = "a" * 56 + ".onion"
SERVICES = {"main": ("80:127.0.0.1:8080", "443:127.0.0.1:8443"), "shop": ("81:127.0.0.1:8081", "80:127.0.0.1:8080")}


class Targets:
    """What listens on this host, in memory: connections that a `MemoryReactorClock` was asked for."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.up = {8080, 8081, 8443}
        self._answered = 0

    def pass_s(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.5)):
            self._answer()
            self.reactor.advance(0.5)
        self._answer()

    def _answer(self) -> None:
        new, self._answered = self.reactor.tcpClients[self._answered :], len(self.reactor.tcpClients)
        for host, port, factory, _timeout, _bind in new:
            connector = self.reactor.connectors[self.reactor.tcpClients.index((host, port, factory, _timeout, _bind))]
            if port in self.up:
                protocol = factory.buildProtocol(IPv4Address("TCP", host, port))
                protocol.makeConnection(_Transport())
            else:
                factory.clientConnectionFailed(connector, Failure(ConnectionRefusedError()))


class _Transport:
    def loseConnection(self) -> None:
        """Hung up."""


class Doors(SynchronousTestCase):
    def setUp(self) -> None:
        self.targets = Targets()
        self.told = 0
        self.door = Door(
            self.targets.reactor,
            folder=Path(self.mktemp()),
            services=SERVICES,
            socks_port=None,
            told=self._told,
            refused=lambda: None,
        )
        opening = Deferred.fromCoroutine(self.door.open())
        self.successResultOf(opening)
        self.addCleanup(lambda: self.successResultOf(Deferred.fromCoroutine(self.door.close())))

    def _told(self) -> None:
        self.told += 1

    def failing(self) -> dict[str, str]:
        return {each.service: each.target for each in self.door.failing()}

    def test_before_anything_is_known(self) -> None:
        self.assertEqual(set(self.failing()), {"main", "shop"})
        self.assertIn("has not answered yet", self.failing()["main"])
        self.assertEqual(self.door.ports(), {})
        self.assertIsNone(self.door.healthy)

    def test_all_is_well(self) -> None:
        self.targets.pass_s(0.5)
        self.assertEqual((self.failing(), self.door.healthy, self.told), ({}, True, 3))
        # a target of two services is asked once
        self.assertEqual(len(self.door.lines), 3)

    def test_a_dead_target_is_its_services_trouble_alone(self) -> None:
        self.targets.pass_s(0.5)
        self.targets.up.remove(8443)
        self.targets.pass_s(3 * PROBE_EVERY_S)
        self.assertEqual(self.failing(), {"main": "port 443: 127.0.0.1:8443 does not answer"})
        self.assertIs(self.door.healthy, False)
        ports = self.door.ports()
        self.assertEqual([key for key, answers in ports.items() if not answers], [("main", 443)])
        self.targets.up.add(8443)
        self.targets.pass_s(2 * PROBE_EVERY_S)
        self.assertEqual(self.failing(), {})

    def test_one_that_two_services_share_is_both_their_trouble(self) -> None:
        self.targets.up.remove(8080)
        self.targets.pass_s(3 * PROBE_EVERY_S)
        self.assertEqual(self.failing(), dict.fromkeys(("main", "shop"), "port 80: 127.0.0.1:8080 does not answer"))


class Heads(SynchronousTestCase):
    """What the head makes of it."""

    def setUp(self) -> None:
        self.targets = Targets()
        self.health, self.metrics = HealthState(), Metrics()
        self.head = TorHead(
            self.targets.reactor,
            host=None,  # type: ignore[arg-type] - its tor is never looked for
            tor="head",
            folder=Path(self.mktemp()),
            masters=[ONION],
            services=SERVICES,
            config=BalanceConfig,
            metrics=self.metrics,
            health=self.health,
        )
        self.successResultOf(Deferred.fromCoroutine(self.head._door.open()))
        self.addCleanup(lambda: self.successResultOf(Deferred.fromCoroutine(self.head._door.close())))
        self.head._up = True
        self.head._tell()

    def test_it_serves_on_and_says_which(self) -> None:
        self.targets.up.remove(8443)
        text = HeadDescriptor(onion=ONION, text="as its tor wrote it")
        self.patch(self.head._onions, "descriptor", lambda: text)
        self.targets.pass_s(3 * PROBE_EVERY_S)
        report = self.head.report()
        self.assertEqual((report.healthy, [each.service for each in report.failing]), (False, ["main"]))
        self.assertEqual(report.mode, "serving")
        said = self.health.snapshot().reasons[HEALTH_KEY]
        self.assertEqual(said, "main: port 443: 127.0.0.1:8443 does not answer")
        shown = self.metrics.render().decode()
        self.assertIn('balance_target_up{port="443",service="main"} 0.0', shown)
        self.assertIn('balance_target_up{port="80",service="main"} 1.0', shown)

    def test_without_its_tor_nothing_is_said_of_targets(self) -> None:
        self.head._up = False
        self.assertEqual((self.head.report().mode, self.head.report().failing), ("down", ()))

    def test_one_port_of_two_services_leads_to_one_place(self) -> None:
        services = {"main": ("80:127.0.0.1:1",), "shop": ("80:127.0.0.1:2",)}
        error = self.assertRaises(
            RonError,
            Door,
            self.targets.reactor,
            folder=Path(self.mktemp()),
            services=services,
            socks_port=None,
            told=lambda: None,
            refused=lambda: None,
        )
        self.assertIs(error.code, ErrorCode.CONFLICT)
