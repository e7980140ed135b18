"""The page's live ping: looking starts it, seldom and never twice at a time; real devices, a real mailbox."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from ron.proto.errors import bad_request
from ron.proto.facts import PingReport
from ron.sdk import Mailbox
from ron.sdk.ping import Device
from ron.services.hello.service import EVERY_S, HelloService
from tests.sdk.with_mailbox import WithMailbox
from tests.web.wire import until


class Gate(Mailbox):
    """A device's way out that holds every message back until it is opened: a slow network."""

    def __init__(self, way_out: Mailbox) -> None:
        self._way_out = way_out
        self.held: list[Deferred[None]] = []
        self.sent = 0

    async def send(self, topic: str, payload: bytes, **more: Any) -> str:
        self.held.append(Deferred())
        await self.held[-1]
        self.sent += 1
        return await self._way_out.send(topic, payload, **more)

    def open(self) -> None:
        held, self.held = self.held, []
        for one in held:
            one.callback(None)


class Wall(Mailbox):
    """A way out that fails: at once, or when `gate` opens."""

    def __init__(self, error: Exception, gate: Gate | None = None) -> None:
        self._error = error
        self._gate = gate

    async def send(self, topic: str, payload: bytes, **more: Any) -> str:
        if self._gate is not None:
            await self._gate.send(topic, payload, **more)
        raise self._error


class Hello(WithMailbox):
    """The service under a clock of its own; its devices talk in real time."""

    async def setUp(self) -> None:
        await super().setUp()
        self.time = Clock()
        self.asked_for_devices = 0
        self.alice, self.bob = self.device("hello/alice"), self.device("hello/bob")
        self.gate = Gate(self.alice.outbox)
        self.devices: tuple[Device, Device] | None = (self.through(self.gate), self.bob)
        self.hello = HelloService(self.time, make_devices=self.make_devices)
        self.hello.startService()
        self.addCleanup(lambda: self.hello.running and self.hello.stopService())

    def through(self, way_out: Mailbox) -> Device:
        return Device(self.alice.keys, self.alice.inbox, way_out, self.alice.topic)

    async def make_devices(self) -> tuple[Device, Device] | None:
        self.asked_for_devices += 1
        return self.devices

    async def finished(self, seq: int) -> PingReport:
        """The report of ping number `seq`, without looking, which would start the next."""
        await until(lambda: self.hello._report.seq == seq)
        return self.hello._report

    async def test_nobody_looks_nothing_happens(self) -> None:
        self.time.advance(100)
        self.assertEqual((self.asked_for_devices, self.mailbox.stats().total), (0, 0))

    async def test_the_first_look_starts_a_ping(self) -> None:
        self.assertEqual(self.hello.report().state, "running")
        self.gate.open()
        report = await self.finished(1)
        self.assertEqual((report.state, report.error), ("ok", None))
        self.assertEqual(report.suite, "ML-KEM-768+X25519")
        self.assertEqual(len(report.steps), 5)
        self.assertGreater(report.sealed_bytes, 1000)
        self.assertRegex(str(report.finished_at), r"Z$")
        self.assertEqual(self.hello.report(), report)

    async def test_never_two_at_a_time(self) -> None:
        for _ in range(20):
            self.assertEqual(self.hello.report().state, "running")
            self.time.advance(EVERY_S)
        self.assertEqual(len(self.gate.held), 1)
        self.gate.open()
        await self.finished(1)
        self.assertEqual(self.gate.sent, 1)

    async def test_at_most_one_in_five_seconds(self) -> None:
        self.hello.report()
        self.gate.open()
        await self.finished(1)
        self.time.advance(EVERY_S - 0.1)
        self.assertEqual((self.hello.report().state, self.gate.held), ("ok", []))
        self.time.advance(0.1)
        self.assertEqual((self.hello.report().state, self.hello.report().seq), ("running", 1))
        self.assertEqual(len(self.gate.held), 1)
        self.gate.open()
        self.assertEqual((await self.finished(2)).state, "ok")

    async def test_the_steps_can_be_watched(self) -> None:
        self.hello.report()
        self.assertEqual([step.name for step in self.hello.report().steps], ["seal"])
        self.gate.open()
        await until(lambda: len(self.hello._steps) > 1)
        self.assertEqual(self.hello.report().steps[1].name, "send over the onion")
        await self.finished(1)

    async def test_without_an_onion_it_stays_idle_and_asks_again(self) -> None:
        devices, self.devices = self.devices, None
        for asked in (1, 2, 3):
            self.assertEqual(self.hello.report(), PingReport())
            self.assertEqual(self.asked_for_devices, asked)
        self.devices = devices
        self.assertEqual(self.hello.report().state, "running")
        self.gate.open()
        await self.finished(1)

    async def test_devices_are_made_once(self) -> None:
        for seq in (1, 2):
            self.hello.report()
            self.gate.open()
            await self.finished(seq)
            self.time.advance(EVERY_S)
        self.assertEqual(self.asked_for_devices, 1)

    async def test_a_failed_ping_says_why_and_is_tried_again(self) -> None:
        deaf = Device(self.bob.keys, self.client(("scope", "node:read")), self.bob.outbox, self.bob.topic)
        self.devices = (self.through(self.gate), deaf)
        self.hello.report()
        self.gate.open()
        report = await self.finished(1)
        self.assertEqual(report.state, "failed")
        self.assertIn("scope mailbox:recv", str(report.error))
        self.assertEqual([step.name for step in report.steps], ["seal", "send over the onion"])
        self.assertRegex(str(report.finished_at), r"Z$")
        self.time.advance(EVERY_S)
        self.assertEqual(self.hello.report().state, "running")
        self.gate.open()
        self.assertEqual((await self.finished(2)).state, "failed")

    async def test_a_bug_is_told_to_the_log_and_not_to_the_page(self) -> None:
        self.devices = (self.through(Wall(KeyError("the secret detail"), self.gate)), self.bob)
        self.hello.report()
        self.gate.open()
        report = await self.finished(1)
        self.assertEqual((report.state, report.error), ("failed", "internal error; see the node's log"))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    async def test_a_ping_that_fails_at_once_does_not_run_for_ever(self) -> None:
        self.devices = (self.through(Wall(bad_request("no way"))), self.bob)
        self.hello.report()
        self.assertEqual((self.hello.report().state, self.hello.report().error), ("failed", "no way"))

    async def test_stopping_calls_the_ping_off(self) -> None:
        self.hello.report()
        await until(lambda: self.mailbox.stats().waiting)
        self.hello.stopService()
        await until(lambda: not self.mailbox.stats().waiting)
        self.assertEqual(self.hello.report(), PingReport())
        self.gate.open()
        self.assertEqual(self.gate.sent, 0)

    async def test_stopped_it_starts_nothing(self) -> None:
        self.hello.stopService()
        self.assertEqual(self.hello.report(), PingReport())
        self.assertEqual(self.asked_for_devices, 0)
