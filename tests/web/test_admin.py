"""The operator's endpoints: services and config over the bus, and a tail that loses nothing between two polls."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from ron.kernel import Bus, HealthState, KernelEvent
from ron.kernel.commands import Command
from ron.kernel.restarts import RestartPolicy
from ron.kernel.supervisor import Supervisor
from ron.proto.errors import bad_request
from ron.web.admin import MAX_TAIL, MAX_WAITING, AdminApi
from tests.web.wire import OnTheWire, Response, Wire, request, until

NOW_S = 1_800_000_000.0


class Crashes:
    """A unit that cannot start until it is mended."""

    name = "fragile"
    mended = False

    async def start(self, crashed: Callable[[str], None]) -> None:
        if not self.mended:
            raise bad_request("it is broken")

    async def stop(self) -> None:
        pass

    def abort(self) -> None:
        pass


class Opaque:
    """A body with no plain form."""


class Admin(OnTheWire):
    """A site with the endpoints of `AdminApi`, on a bus whose time is the test's."""

    def setUp(self) -> None:
        super().setUp()
        self.bus = Bus(self.clock, self.metrics, now=lambda: NOW_S + self.clock.seconds())
        self.api = AdminApi(self.bus, self.clock, lambda: NOW_S + self.clock.seconds())
        self.serve(self.api.endpoints())

    async def post(self, path: str, body: Any = None, **caveats: str) -> Response:
        return await self.ask(self.posted(path, body, **caveats))

    def posted(self, path: str, body: Any = None, **caveats: str) -> bytes:
        wire = None if body is None else json.dumps(body).encode()
        return request("POST", path, self.bearer(*({"scope": "*"} | caveats).items()), wire)

    async def tail(self, **body: Any) -> dict[str, Any]:
        answer: dict[str, Any] = (await self.post("/v1/bus/tail", body)).json
        return answer

    async def poll(self, **body: Any) -> Wire:
        """A tail that waits."""
        before = len(self.api._waiting)
        wire = await self.wire()
        wire.send(self.posted("/v1/bus/tail", {"wait_s": 20, **body}))
        await until(lambda: len(self.api._waiting) == before + 1)
        return wire

    def bodies(self, answer: dict[str, Any]) -> list[Any]:
        return [message["body"] for message in answer["messages"]]


class Refusals(Admin):
    """What is not for everybody, and what is no request."""

    async def test_every_endpoint_needs_its_scope(self) -> None:
        asked = []
        self.bus.serve("node", dict.fromkeys(("services", "release", "reload", "rollback"), asked.append))
        tail, release = {"topic": "*"}, {"service": "edge"}
        for method, path, body, scope in (
            ("GET", "/v1/services", None, "node:read"),
            ("POST", "/v1/services/release", release, "node:admin"),
            ("POST", "/v1/config/reload", None, "node:admin"),
            ("POST", "/v1/config/rollback", None, "node:admin"),
            ("POST", "/v1/bus/tail", tail, "bus:read"),
        ):
            wire = None if body is None else json.dumps(body).encode()
            others = ",".join({"node:read", "node:admin", "bus:read", "mailbox:*"} - {scope})
            self.assertEqual((await self.ask(request(method, path, None, wire))).status, 401, path)
            self.assertEqual((await self.ask(request(method, path, self.bearer(("scope", others)), wire))).status, 403)
            self.assertEqual(asked, [], path)
            self.assertEqual((await self.ask(request(method, path, self.bearer(("scope", scope)), wire))).status, 200)
            asked.clear()

    async def test_requests_that_are_none(self) -> None:
        for path, body in (
            ("/v1/services/release", {}),
            ("/v1/services/release", {"service": "Edge"}),
            ("/v1/services/release", {"service": "a" * 64}),
            ("/v1/services/release", {"service": "a", "force": True}),
            ("/v1/config/reload", {"file": "/etc/passwd"}),
            ("/v1/bus/tail", {"topic": ""}),
            ("/v1/bus/tail", {"topic": "a" * 70}),
            ("/v1/bus/tail", {"topic": "a*"}),
            ("/v1/bus/tail", {"topic": ".*"}),
            ("/v1/bus/tail", {"topic": "a\n"}),
            ("/v1/bus/tail", {"wait_s": 26}),
            ("/v1/bus/tail", {"wait_s": -1}),
            ("/v1/bus/tail", {"since_s": 10**9}),
            ("/v1/bus/tail", {"after": -1}),
            ("/v1/bus/tail", {"stream": "x"}),
        ):
            self.assertEqual((await self.post(path, body)).status, 400, body)

    async def test_a_capability_for_one_topic_tails_that_one_only(self) -> None:
        for asked, status in (("kernel", 200), ("*", 403), ("kernel.*", 403), ("progress", 403)):
            answer = await self.post("/v1/bus/tail", {"topic": asked}, topic="kernel")
            self.assertEqual(answer.status, status, asked)

    async def test_without_a_node_on_the_bus(self) -> None:
        answer = await self.ask(request("GET", "/v1/services", self.bearer(("scope", "*"))))
        self.assertEqual((answer.status, answer.json["error"]["code"]), (503, "StoreUnavailable"))


class Commands(Admin):
    """What is passed on to the node."""

    async def test_a_quarantined_service_is_listed_and_released(self) -> None:
        unit = Crashes()
        supervisor = Supervisor(
            self.clock, self.bus, HealthState(), self.metrics, make_policy=lambda: RestartPolicy(max_restarts=0)
        )
        supervisor.add(unit)
        starting = Deferred.fromCoroutine(supervisor.start())
        self.bus.serve(
            "node",
            {
                "services": lambda _command: supervisor.status(),
                "release": lambda command: supervisor.release(command.body),
            },
        )
        self.successResultOf(starting)
        fragile = {"name": "fragile", "state": "quarantined", "restarts": 0, "reason": "it is broken", "pid": None}
        listed = await self.ask(request("GET", "/v1/services", self.bearer(("scope", "node:read"))))
        self.assertEqual(listed.json, [fragile])
        unit.mended = True
        self.assertEqual((await self.post("/v1/services/release", {"service": "fragile"})).json["state"], "up")
        self.assertEqual((await self.post("/v1/services/release", {"service": "other"})).status, 404)

    async def test_reload_and_rollback_with_the_callers_correlation_id(self) -> None:
        seen: list[Command] = []

        def answer(command: Command) -> dict[str, int]:
            seen.append(command)
            return {"version": 7}

        self.bus.serve("node", {"reload": answer, "rollback": answer})
        for name in ("reload", "rollback"):
            response = await self.post(f"/v1/config/{name}")
            self.assertEqual(response.json, {"version": 7})
            self.assertEqual((seen[-1].name, seen[-1].corr_id), (name, response.headers["x-corr-id"]))


class Tailing(Admin):
    """`/v1/bus/tail`."""

    async def test_nothing_of_the_past_unless_asked_for(self) -> None:
        self.bus.publish({"n": 1}, topic="a")
        self.assertEqual((await self.tail())["messages"], [])
        self.clock.advance(100)
        self.bus.publish({"n": 2}, topic="a")
        self.assertEqual(self.bodies(await self.tail(since_s=50)), [{"n": 2}])
        self.assertEqual(self.bodies(await self.tail(since_s=150)), [{"n": 1}, {"n": 2}])
        self.assertEqual((await self.tail(since_s=150, topic="b"))["messages"], [])

    async def test_a_message_has_its_time_topic_origin_and_body(self) -> None:
        self.bus.publish(KernelEvent.ServiceCrashed("edge", "why"))
        (message,) = (await self.tail(since_s=1))["messages"]
        self.assertEqual((message["ts"], message["topic"], message["origin"]), (NOW_S, "kernel", "node"))
        self.assertEqual(message["body"], {"event": "ServiceCrashed", "service": "edge", "reason": "why"})

    async def test_a_body_without_a_plain_form_is_named(self) -> None:
        self.bus.publish(Opaque(), topic="a")
        self.assertEqual(self.bodies(await self.tail(since_s=1)), ["<Opaque>"])

    async def test_between_two_polls_nothing_is_lost_and_nothing_comes_twice(self) -> None:
        first = await self.tail(topic="a")
        seen: list[Any] = []
        for n in range(4):
            self.bus.publish({"n": n}, topic="a")
            self.bus.publish({"n": -1}, topic="b")
            answer = await self.tail(topic="a", after=first["last"], stream=first["stream"])
            seen += self.bodies(answer)
            first = answer
        self.assertEqual(seen, [{"n": n} for n in range(4)])

    async def test_a_long_past_comes_in_portions(self) -> None:
        for n in range(MAX_TAIL + 5):
            self.bus.publish(n, topic="a")
        first = await self.tail(since_s=10)
        second = await self.tail(since_s=10, after=first["last"], stream=first["stream"])
        self.assertEqual(self.bodies(first) + self.bodies(second), list(range(MAX_TAIL + 5)))

    async def test_another_process_counts_anew(self) -> None:
        """Its numbers mean nothing to us, whether they are higher or lower than ours."""
        for n in range(10):
            self.bus.publish(n, topic="a")
            self.clock.advance(1)
        for after in (3, 10_000):
            answer = await self.tail(since_s=4.5, after=after, stream="0123456789abcdef")
            self.assertEqual(self.bodies(answer), [6, 7, 8, 9])

    async def test_waits_for_the_next_message(self) -> None:
        wire = await self.poll(topic="a")
        self.bus.publish("other", topic="b")
        self.clock.advance(1)
        self.assertEqual(wire.received, b"")
        self.bus.publish("mine", topic="a")
        self.bus.publish("mine too", topic="a")
        self.clock.advance(0)
        self.assertEqual(self.bodies((await wire.response()).json), ["mine", "mine too"])
        self.assertFalse(self.api._waiting)

    async def test_waits_no_longer_than_asked(self) -> None:
        wire = await self.poll(topic="a", wait_s=20)
        self.bus.publish("other", topic="b")
        self.clock.advance(20)
        answer = (await wire.response()).json
        self.assertEqual((answer["messages"], answer["last"]), ([], 1))

    async def test_what_comes_in_the_last_moment_is_not_lost(self) -> None:
        """Published, not delivered yet, and the time is over."""
        wire = await self.poll(topic="a", wait_s=20)
        self.bus.publish("late", topic="a")
        for call in self.clock.getDelayedCalls():
            if call.getTime() == 0:
                call.delay(30)
        self.clock.advance(20)
        self.assertEqual(self.bodies((await wire.response()).json), ["late"])

    async def test_who_goes_away_waits_no_more(self) -> None:
        wire = await self.poll()
        wire.abort()
        await until(lambda: not self.api._waiting)
        self.assertEqual(len(self.bus._subscriptions), 1)  # what the endpoints themselves listen for

    async def test_a_shutdown_sends_everybody_home(self) -> None:
        wires = [await self.poll(topic=topic) for topic in ("*", "a")]
        self.bus.publish(KernelEvent.Shutdown())
        self.clock.advance(0)
        self.clock.advance(0)
        answers = [(await wire.response()).json for wire in wires]
        self.assertEqual(self.bodies(answers[0]), [{"event": "Shutdown"}])
        self.assertEqual(self.bodies(answers[1]), [])
        self.assertEqual((await self.tail(topic="a", wait_s=20))["messages"], [])

    async def test_waiting_is_bounded(self) -> None:
        for _ in range(MAX_WAITING):
            await self.poll()
        answer = await self.post("/v1/bus/tail", {"wait_s": 1})
        self.assertEqual((answer.status, answer.json["error"]["code"]), (429, "Backpressure"))
        self.assertEqual((await self.post("/v1/bus/tail", {})).status, 200)
