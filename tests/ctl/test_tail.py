"""`ronctl tail`: every event once, whatever happens to the node meanwhile."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from ron.ctl.node import connect
from ron.ctl.tail import Event, Tail, _since_s, line
from ron.kernel import KernelEvent
from ron.proto.errors import RonError
from ron.proto.exitcodes import Unreachable
from ron.sdk import Api, direct_http
from tests.ctl.with_node import WithNode
from tests.web.wire import closing, until


class Lines(SynchronousTestCase):
    """An event for people."""

    def shown(self, body: Any, **other: Any) -> str:
        known = {"ts": 1_800_000_000.1234, "topic": "kernel", "origin": "edge", "corr_id": ""}
        return line(Event(**{**known, "body": body, **other}))

    def test_time_origin_topic_and_words(self) -> None:
        crash = {"event": "ServiceCrashed", "service": "edge", "reason": "it ended: signal 9"}
        self.assertEqual(
            self.shown(crash),
            '2027-01-15T08:00:00.123Z  edge       kernel     ServiceCrashed service=edge reason="it ended: signal 9"',
        )

    def test_bodies_of_any_form(self) -> None:
        for body, words in (
            ("plain", "plain"),
            ("", '""'),
            ("a b", '"a b"'),
            (7, "7"),
            (None, "null"),
            ([1, "b"], '[1,"b"]'),
            ({"ready": True, "missing": []}, "ready=true missing=[]"),
            ({"a": "b=c"}, 'a="b=c"'),
        ):
            self.assertTrue(self.shown(body).endswith(f"kernel     {words}"), self.shown(body))

    def test_nothing_moves_the_cursor(self) -> None:
        nasty = "\x1b[2J\n\x9b0m\u2028"
        for shown in (self.shown(nasty), self.shown({nasty: [nasty]}), self.shown("x", origin=nasty, topic=nasty)):
            self.assertTrue(shown.isprintable(), shown)

    def test_since(self) -> None:
        self.assertEqual(_since_s("10m", True), 600)
        self.assertEqual(_since_s(None, True), 0)
        self.assertGreater(_since_s(None, False), 86_400)
        for wrong in ("", "ten", "-5s", "8d", "5"):
            self.assertRaises(RonError, _since_s, wrong, True)


class Following(WithNode):
    """The loop, against a real site."""

    def tail(self, **other: Any) -> Tail:
        self.shown: list[Any] = []
        self.complaints: list[str] = []

        def fresh() -> Api:
            api = connect(reactor, self.url, self.capability("bus:read"))
            api._http = closing(self, direct_http(reactor))
            return api

        options: dict[str, Any] = {"topic": "a", "since_s": 0.0, **other}
        return Tail(
            reactor, fresh, show=lambda event: self.shown.append(event.body), complain=self.complaints.append, **options
        )

    def following(self, tail: Tail, limit: int | None = None) -> Deferred[None]:
        following = Deferred.fromCoroutine(tail.follow(limit))

        def end() -> None:
            following.addErrback(lambda failure: failure.trap(CancelledError))
            following.cancel()

        self.addCleanup(end)
        return following

    async def test_every_event_once_in_order(self) -> None:
        self.bus.publish("old", topic="a")
        following = self.following(self.tail(), 300)
        await until(lambda: self.api._waiting)
        for n in range(300):
            self.bus.publish(n, topic="a")
            self.bus.publish(-n, topic="b")
            if n % 50 == 0:
                await until(lambda n=n: n in self.shown)
        await following
        self.assertEqual(self.shown, list(range(300)))

    async def test_a_node_that_restarts_is_waited_for(self) -> None:
        following = self.following(self.tail(since_s=60.0), 4)
        self.bus.publish("before", topic="a")
        await until(lambda: self.shown and self.api._waiting)
        await self.stop_node()
        await until(lambda: self.complaints)
        self.start_node()
        self.bus.publish("after", topic="a")
        await until(lambda: len(self.shown) == 2)
        self.bus.publish("later", topic="a")
        self.bus.publish("later", topic="a")
        await following
        self.assertEqual(self.shown, ["before", "after", "later", "later"])
        self.assertEqual(len(self.complaints), 1)

    async def test_another_process_of_the_same_node_repeats_nothing(self) -> None:
        """Behind one address there may be several, each with the same events under other numbers."""
        following = self.following(self.tail(since_s=60.0), 3)
        messages = [self.bus.publish(n, topic="a") for n in range(2)]
        await until(lambda: len(self.shown) == 2 and self.api._waiting)
        await self.stop_node()
        self.start_node()
        for _ in range(5):
            self.bus.publish("noise", topic="b")
        for message in messages:
            self.bus.inject(message)
        await until(lambda: self.api._waiting)
        self.bus.publish("new", topic="a")
        await following
        self.assertEqual(self.shown, [0, 1, "new"])

    async def test_nobody_there_at_first(self) -> None:
        await self.stop_node()
        await self.assertFailure(Deferred.fromCoroutine(self.tail().follow(None)), Unreachable)

    async def test_a_node_that_goes_down_is_not_asked_in_a_hot_loop(self) -> None:
        tail = self.tail()
        self.following(tail)
        await until(lambda: self.api._waiting)
        asked = []
        ask = tail._ask
        tail._ask = lambda wait_s: asked.append(wait_s) or ask(wait_s)  # type: ignore[method-assign, func-returns-value]
        self.bus.publish(KernelEvent.Shutdown())
        await until(lambda: asked)
        for _ in range(20):
            await deferLater(reactor, 0.01)
        self.assertEqual(len(asked), 1)

    async def test_kept_events_only(self) -> None:
        for n in range(2500):
            self.bus.publish(n, topic="a")
        tail = self.tail(since_s=60.0)
        await tail.kept(None)
        self.assertEqual(self.shown, list(range(2500)))
        tail = self.tail(since_s=60.0)
        await tail.kept(2)
        self.assertEqual(self.shown, [0, 1])


class TailCommand(WithNode):
    """As an operator calls it."""

    async def test_ctrl_c_ends_it_well(self) -> None:
        ronctl = self.ronctl("tail", "--topic", "kernel", "--since", "10m")
        self.bus.publish("other", topic="a")
        self.bus.publish(KernelEvent.Health("edge", True))
        await ronctl.shows(lambda: ronctl.lines)
        await until(lambda: self.api._waiting)
        ronctl.signal("INT")
        self.assertEqual((await ronctl.end(), ronctl.err), (0, b""))
        (shown,) = ronctl.lines
        self.assertTrue(shown.endswith("node       kernel     Health service=edge ok=true"), shown)

    async def test_json_and_count(self) -> None:
        for n in range(3):
            self.bus.publish({"n": n}, topic="a")
        ronctl = await self.done("tail", "--json", "-n", "2", "--since", "1m")
        self.assertEqual((ronctl.code, ronctl.err), (0, b""))
        events = [json.loads(text) for text in ronctl.lines]
        self.assertEqual([event["body"] for event in events], [{"n": 0}, {"n": 1}])
        self.assertEqual(set(events[0]), {"ts", "topic", "origin", "corr_id", "body"})

    async def test_what_is_kept_without_waiting(self) -> None:
        self.bus.publish(1, topic="a")
        ronctl = await self.done("tail", "--no-follow")
        self.assertEqual((ronctl.code, len(ronctl.lines)), (0, 1))

    async def test_refusals(self) -> None:
        for arguments, environment, code in (
            ((), {"RON_CAP": self.capability("node:*")}, 5),
            (("--since", "yesterday"), {}, 3),
            (("-n", "0"), {}, 2),
            (("--topic", "a*"), {}, 3),
            (("--node", "http://127.0.0.1:9"), {}, 4),
        ):
            ronctl = await self.done("tail", *arguments, **environment)
            self.assertEqual((ronctl.code, ronctl.out), (code, b""), arguments)
