"""What a node tells of itself: whole while parts are slow, gone or of another opinion; fresh, and not for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Bus, HealthState, Metrics
from ron.kernel.metrics import Family, Sample
from ron.kernel.supervisor import Supervisor
from ron.nodes.board import ASK_S, FRESH_S, INTEREST_S, SERVICE, Board, NodeHealth
from ron.proto.errors import ErrorCode, RonError
from ron.proto.facts import NodeFacts


class Traffic:
    """Counts how often it was made exact."""

    flushed = 0

    def flush(self) -> None:
        self.flushed += 1


class Process:
    """What a board needs of its process, on a clock."""

    name = "node"

    def __init__(self) -> None:
        self.reactor = Clock()
        self.metrics = Metrics()
        self.health = HealthState()
        self.bus = Bus(self.reactor, self.metrics)
        self.edge: Any = type("Edge", (), {"traffic": Traffic()})()
        self.config: Any = type("Config", (), {"version": 7})()

    def exposition(self) -> bytes:
        return b"ours alone"


class BoardCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.process: Any = Process()
        self.bus, self.clock = self.process.bus, self.process.reactor
        supervisor = Supervisor(self.clock, self.bus, self.process.health, self.process.metrics)
        self.names: tuple[str, ...] = ("edge", "mailbox")
        self.board = Board(self.process, supervisor, facts=self.facts, processes=lambda: self.names, app="hello")
        self.process.health.ok("listeners")
        self.asked: list[str] = []

    def facts(self) -> NodeFacts:
        return NodeFacts(
            gateway_url="http://127.0.0.1:1",
            mailbox_url="http://127.0.0.1:2",
            onion=None,
            socks_port=0,
            pids={"node": 1},
            version="0",
        )

    def serve(self, name: str, **handlers: Callable[[Any], Any]) -> None:
        def noted(command: str, handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def answer(given: Any) -> Any:
                self.asked.append(f"{name}.{command}")
                return handler(given)

            return answer

        self.addCleanup(self.bus.serve(name, {c: noted(c, h) for c, h in handlers.items()}, concurrency=8))

    def family(self, value: float) -> list[Any]:
        """As it comes from another process: plain values."""
        family = Family(name="tests", type="counter", help="t", samples=(Sample("tests_total", {}, value),))
        return [msgspec.to_builtins(family)]

    def lines(self, text: bytes) -> Iterator[str]:
        return (line for line in text.decode().splitlines() if line.startswith("tests_total"))


class StatusTests(BoardCase):
    def status(self) -> Any:
        return Deferred.fromCoroutine(self.board.status())

    def test_nobody_is_there_yet(self) -> None:
        status = self.successResultOf(self.status())
        self.assertEqual((status.ready, status.config_version, status.queues), (True, 7, {"mailbox": None}))
        self.assertEqual((status.onions, status.packs, status.tor), ((), (), None))

    def test_a_part_that_does_not_answer_is_left_out_after_a_second(self) -> None:
        self.serve("mailbox", stats=lambda _command: Deferred())
        self.serve("oniond", onions=lambda _c: ())
        self.serve("tornet", pids=lambda _command: {"tor": 9}, tor=lambda _c: None)
        asking = self.status()
        self.assertNoResult(asking)
        self.clock.advance(ASK_S)
        status = self.successResultOf(asking)
        self.assertEqual(status.queues, {"mailbox": None})
        self.assertEqual(status.facts.pids, {"node": 1, "tor": 9})

    def test_a_part_that_fails_is_left_out(self) -> None:
        def broken(_command: Any) -> None:
            raise ZeroDivisionError

        self.serve("edge", packs=broken)
        self.assertEqual(self.successResultOf(self.status()).packs, ())
        self.flushLoggedErrors(ZeroDivisionError)


class MetricsTests(BoardCase):
    def metrics(self) -> Any:
        return Deferred.fromCoroutine(self.board.metrics())

    def both(self) -> None:
        for name, value in (("edge", 2.0), ("mailbox", 3.0)):
            self.serve(f"process.{name}", metrics=lambda _command, value=value: self.family(value))

    def test_all_processes_as_one_and_without_those_that_are_gone(self) -> None:
        self.serve("process.edge", metrics=lambda _command: self.family(2.0))
        self.assertEqual(list(self.lines(self.successResultOf(self.metrics()))), ["tests_total 2.0"])
        self.serve("process.mailbox", metrics=lambda _command: self.family(3.0))
        self.clock.advance(FRESH_S + 0.1)
        self.assertEqual(list(self.lines(self.successResultOf(self.metrics()))), ["tests_total 5.0"])
        self.assertEqual(self.process.edge.traffic.flushed, 2)

    def test_what_is_fresh_is_not_gathered_again(self) -> None:
        self.both()
        for _ in range(5):
            self.successResultOf(self.metrics())
        self.assertEqual(self.asked, ["process.edge.metrics", "process.mailbox.metrics"])

    def test_kept_fresh_while_somebody_asks_and_no_longer(self) -> None:
        self.both()
        self.board.keep_fresh()
        self.assertEqual(self.asked, [], "nobody has asked")
        self.successResultOf(self.metrics())
        for _ in range(int(INTEREST_S) + 10):
            self.clock.advance(1.0)
            self.board.keep_fresh()
        rounds = len(self.asked) // 2
        self.assertGreater(rounds, INTEREST_S - 5)
        self.assertLessEqual(rounds, INTEREST_S + 1)

    def test_one_round_at_a_time_in_the_background(self) -> None:
        never: list[Deferred[Any]] = []
        self.serve("process.edge", metrics=lambda _command: never.append(Deferred()) or never[-1])
        self.metrics()
        for _ in range(10):
            self.board.keep_fresh()
        self.assertEqual(len(never), 1)
        self.clock.advance(ASK_S)


class NodeHealthTests(BoardCase):
    """A listener's view of the node, from the node or from a process of it."""

    def setUp(self) -> None:
        super().setUp()
        self.view = NodeHealth(self.process)

    def test_no_node_is_not_ready_whatever_the_process_thinks(self) -> None:
        found = self.successResultOf(Deferred.fromCoroutine(self.view.readiness()))
        self.assertFalse(found.ready)
        self.assertIn("bus", found.missing)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(self.view.exposition())), b"ours alone")

    def test_a_node_that_hangs_is_not_ready_in_time(self) -> None:
        self.serve(SERVICE, ready=lambda _command: Deferred())
        asking = Deferred.fromCoroutine(self.view.readiness())
        self.clock.advance(ASK_S)
        self.assertFalse(self.successResultOf(asking).ready)

    def test_the_nodes_own_answer(self) -> None:
        self.addCleanup(self.bus.serve(SERVICE, self.board.handlers(), concurrency=8))
        found = self.successResultOf(Deferred.fromCoroutine(self.view.readiness()))
        self.assertEqual(found, self.process.health.snapshot())
        text = self.successResultOf(Deferred.fromCoroutine(self.view.exposition()))
        self.assertIn(b"bus_published_total", text)


class SteeringTests(BoardCase):
    def test_release_of_a_stranger(self) -> None:
        self.addCleanup(self.bus.serve(SERVICE, self.board.handlers(), concurrency=8))
        asking = Deferred.fromCoroutine(self.bus.call(SERVICE, "release", "nobody"))
        error = self.failureResultOf(asking, RonError).value
        self.assertIs(error.code, ErrorCode.NOT_FOUND)
