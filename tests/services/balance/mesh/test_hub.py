"""The in-memory mesh of the other rooms' tests behaves like a network."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.balance import Beat, HeadDescriptor
from ron.proto.errors import ErrorCode, RonError, conflict
from tests.services.balance.hub import SILENCE_S, Hub, HubNode


class Network(SynchronousTestCase):
    """Three nodes."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.hub = Hub(self.clock, seed=7)
        self.a, self.b, self.c = (self.hub.node(name) for name in "abc")
        self.heard: list[tuple[str, str, int]] = []
        for node in (self.a, self.b, self.c):
            self.listen(node)

    def listen(self, node: HubNode) -> None:
        node.listen("beat", Beat, lambda sender, beat: self.heard.append((node.name, sender, beat.born_ms)))

    def pass_s(self, seconds: float) -> None:
        self.clock.pump([0.05] * round(seconds / 0.05))

    def test_a_body_of_another_shape_is_refused(self) -> None:
        self.a.send("b", "beat", HeadDescriptor(onion="x", text=""))
        self.pass_s(0.1)
        self.assertEqual([("b", "beat")], [entry[:2] for entry in self.hub.unfit])

    def test_a_broadcast_reaches_all_others(self) -> None:
        self.a.broadcast("beat", Beat(born_ms=1))
        self.assertEqual([], self.heard)
        self.pass_s(0.1)
        self.assertEqual([("b", "a", 1), ("c", "a", 1)], self.heard)

    def test_a_cut_way_swallows_and_is_missed_later(self) -> None:
        self.hub.cut("a", "b", both=False)
        self.a.broadcast("beat", Beat(born_ms=1))
        self.b.broadcast("beat", Beat(born_ms=2))
        self.assertTrue(self.a.peers()["b"].connected)
        self.pass_s(SILENCE_S + 0.1)
        self.assertEqual([("c", "a", 1), ("a", "b", 2), ("c", "b", 2)], self.heard)
        self.assertFalse(self.a.peers()["b"].connected)
        self.assertFalse(self.b.peers()["a"].connected)

    def test_a_partition_and_its_end(self) -> None:
        self.hub.partition(["a"], ["b", "c"])
        self.b.book.put("promote", Beat(born_ms=5))
        self.pass_s(4)
        self.assertIsNone(self.a.book.get("promote", Beat))
        self.assertEqual(Beat(born_ms=5), self.c.book.get("promote", Beat))
        self.hub.heal()
        self.pass_s(2)
        self.assertEqual(Beat(born_ms=5), self.a.book.get("promote", Beat))

    def test_order_stays_when_latency_falls(self) -> None:
        self.hub.latency("a", "b", 1.0)
        self.a.send("b", "beat", Beat(born_ms=1))
        self.hub.latency("a", "b", 0.1)
        self.a.send("b", "beat", Beat(born_ms=2))
        self.pass_s(1.2)
        self.assertEqual([1, 2], [born for _node, _sender, born in self.heard])

    def test_loss(self) -> None:
        self.hub.loss = 0.3
        for number in range(200):
            self.a.send("b", "beat", Beat(born_ms=number))
        self.pass_s(1)
        self.assertTrue(100 < len(self.heard) < 180, len(self.heard))

    def test_calls(self) -> None:
        async def answer(sender: str, beat: Beat) -> Beat:
            if beat.born_ms == 0:
                raise conflict("not zero", hint="one")
            return Beat(born_ms=beat.born_ms + 1)

        self.b.serve("ask", Beat, answer)
        good = self.ask(1)
        bad = self.ask(0)
        self.pass_s(0.1)
        self.assertEqual(Beat(born_ms=2), self.successResultOf(good))
        error = self.failureResultOf(bad, RonError).value
        self.assertEqual((ErrorCode.CONFLICT, "not zero", "one"), (error.code, error.message, error.hint))
        self.hub.cut("b", "a", both=False)
        late = self.ask(1)
        self.pass_s(2.1)
        self.assertEqual(ErrorCode.TIMEOUT, self.failureResultOf(late, RonError).value.code)
        self.hub.kill("b")
        self.assertEqual(ErrorCode.STORE_UNAVAILABLE, self.failureResultOf(self.ask(1), RonError).value.code)

    def ask(self, born_ms: int) -> Deferred[Beat]:
        return Deferred.fromCoroutine(self.a.call("b", "ask", Beat(born_ms=born_ms), Beat, deadline_s=2.0))

    def test_a_killed_node_comes_back_with_its_book(self) -> None:
        self.b.book.put("promote", Beat(born_ms=5))
        self.hub.kill("b")
        self.assertFalse(self.a.peers()["b"].connected)
        self.a.send("b", "beat", Beat(born_ms=1))
        again = self.hub.node("b")
        self.listen(again)
        self.assertEqual(Beat(born_ms=5), again.book.get("promote", Beat))
        self.pass_s(0.2)
        self.assertEqual([], self.heard)
        self.a.send("b", "beat", Beat(born_ms=2))
        self.pass_s(0.1)
        self.assertEqual([("b", "a", 2)], self.heard)
