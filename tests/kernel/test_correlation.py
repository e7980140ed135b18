"""One id follows a request: into the commands and events it causes, through awaits, into the log; and no further."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Bus, Metrics, correlation
from ron.kernel.commands import Command
from ron.kernel.logs import JsonLogObserver
from ron.proto.ids import is_uuid

CORR = "018f3a6e-0000-7000-8000-000000000001"
OTHER = "018f3a6e-0000-7000-8000-000000000002"


class Following(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.bus = Bus(self.clock, Metrics())
        self.seen: list[str] = []
        self.gates: list[Deferred[None]] = []

    def remember(self, command: Command) -> None:
        self.seen.append(command.corr_id)

    async def relay(self, command: Command) -> None:
        """Waits for something, then calls on."""
        gate: Deferred[None] = Deferred()
        self.gates.append(gate)
        await gate
        await self.bus.call("last", "note")
        self.bus.publish({"done": True}, topic="t")

    def ask(self, corr_id: str | None = None) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.bus.call("first", "relay", corr_id=corr_id))

    def serve(self) -> None:
        self.bus.serve("first", {"relay": self.relay}, concurrency=8)
        self.bus.serve("last", {"note": self.remember})

    def test_through_commands_and_awaits_in_any_order(self) -> None:
        self.serve()
        first, second = self.ask(CORR), self.ask(OTHER)
        for gate in reversed(self.gates):
            gate.callback(None)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.seen, [OTHER, CORR])
        self.assertEqual([m.corr_id for m in self.bus.since(0)], [OTHER, CORR])

    def test_into_the_log(self) -> None:
        observer = JsonLogObserver(None, service="ron-node")
        log = Logger(observer=observer)
        mark = correlation.begin(CORR, peer_addr="127.0.0.1")
        log.info("within", event="within")
        correlation.end(mark)
        log.info("after", event="after")
        within, after = (json.loads(line) for line in observer.ring)
        self.assertEqual((within["corr_id"], within["peer_addr"]), (CORR, "127.0.0.1"))
        self.assertNotIn("corr_id", after)

    def test_each_begins_with_one_of_its_own(self) -> None:
        self.serve()
        for _ in range(2):
            asked = self.ask()
            self.gates.pop().callback(None)
            self.successResultOf(asked)
        self.assertEqual(len(set(self.seen)), 2)
        self.assertTrue(all(is_uuid(corr_id) for corr_id in self.seen))
        self.assertIsNone(correlation.current())
