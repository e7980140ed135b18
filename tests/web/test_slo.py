"""Degradation at the edge: writes are refused first, reads go on, and it ends by itself."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from ron.kernel import HealthState
from ron.kernel.slo import MIN_REQUESTS, Degradation
from ron.kernel.slo_config import SloConfig
from ron.proto.errors import ErrorCode, RonError, backpressure, conflict, unavailable
from ron.web import Call, Edge, Endpoint
from ron.web.health import OwnHealth, health_endpoints
from tests.web.wire import OnTheWire, Response, request, until

CONFIG = SloConfig(availability=0.99, latency_ms=500, short_window_s=5, long_window_s=60, burn_rate=10.0, hold_s=10)


class Degraded(OnTheWire):
    """A site with reads and writes, whose reads can be made to fail."""

    def setUp(self) -> None:
        super().setUp()
        self.health = HealthState()
        self.health.ok("store")
        self.slo = Degradation(CONFIG, self.clock, health=self.health, metrics=self.metrics)
        self.slo.start()
        self.addCleanup(self.slo.stop)
        self.edge = Edge(authority=self.authority, metrics=self.metrics, reactor=self.clock, slo=self.slo)
        self.outcome: Any = {"fine": True}
        self.written = 0
        self.waiting: list[Deferred[Any]] = []
        own = [
            Endpoint(method="GET", path="/read", handler=self.read, scope=None, hot=True),
            Endpoint(method="GET", path="/poll", handler=self.poll, scope=None, hot=True, waits=True),
            Endpoint(method="GET", path="/late", handler=self.poll, scope=None, hot=True),
            Endpoint(method="POST", path="/write", handler=self.write, scope=None, hot=True, writes=True),
            Endpoint(method="POST", path="/klein-write", handler=self.write, scope="a:b", writes=True),
        ]
        self.serve([*own, *health_endpoints(OwnHealth(self.health, self.metrics), name="ron-node")])

    def read(self, _call: Call) -> Any:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def poll(self, _call: Call) -> Deferred[Any]:
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def write(self, _call: Call) -> dict[str, bool]:
        self.written += 1
        return {"written": True}

    async def get(self, path: str = "/read", times: int = 1) -> Response:
        for _ in range(times):
            response = await self.ask(request("GET", path))
        return response

    async def post(self, path: str = "/write") -> Response:
        return await self.ask(request("POST", path))

    async def burn(self) -> None:
        self.outcome = RonError(ErrorCode.INTERNAL, "it is broken")
        await self.get(times=MIN_REQUESTS)
        self.clock.advance(1)
        self.assertTrue(self.slo.burning)

    async def test_an_outage_that_says_so_is_no_reason_to_shed(self) -> None:
        """Anybody can ask for what is missing; that must not make the node refuse other people's writes."""
        self.outcome = unavailable("the pack is broken")
        await self.get(times=10 * MIN_REQUESTS)
        self.clock.advance(1)
        self.assertFalse(self.slo.burning)
        self.assertEqual((await self.post()).status, 200)

    async def waited(self, path: str, seconds: float) -> None:
        """`MIN_REQUESTS` calls of `path` that are answered after `seconds`."""
        wires = []
        for n in range(MIN_REQUESTS):
            wires.append(await self.wire())
            wires[-1].send(request("GET", path))
            await until(lambda n=n: len(self.waiting) == n + 1)
        self.clock.advance(seconds)
        while self.waiting:
            self.waiting.pop().callback({})
        for wire in wires:
            await wire.response()
        self.clock.advance(1)


class Burning(Degraded):
    async def test_writes_are_refused_and_reads_go_on(self) -> None:
        await self.burn()
        for path in ("/write", "/klein-write"):
            response = await self.post(path)
            self.assertEqual((response.status, response.json["error"]["retryable"]), (503, True))
            self.assertIn(response.headers["retry-after"], {"1", "2", "3", "4", "5"})
        self.assertEqual(self.written, 0)
        self.assertEqual(self.metrics.registry.get_sample_value("rejected_total", {"reason": "slo_burn"}), 2)
        self.outcome = {"fine": True}
        self.assertEqual((await self.get()).status, 200)
        ready = await self.get("/readyz")
        self.assertEqual((ready.status, ready.json["degraded"]), (200, ["slo"]))

    async def test_it_ends_by_itself(self) -> None:
        await self.burn()
        self.outcome = {"fine": True}
        for _ in range(CONFIG.short_window_s + CONFIG.hold_s + 1):
            await self.get()
            self.clock.advance(1)
        self.assertFalse(self.slo.burning)
        self.assertEqual((await self.post()).json, {"written": True})

    async def test_refused_writes_do_not_keep_it_burning(self) -> None:
        await self.burn()
        for _ in range(CONFIG.short_window_s + CONFIG.hold_s + 1):
            await self.post()
            self.clock.advance(1)
        self.assertFalse(self.slo.burning)

    async def test_slow_answers_burn(self) -> None:
        await self.waited("/late", 0.6)
        self.assertTrue(self.slo.burning)

    async def test_internal_errors_burn(self) -> None:
        self.outcome = KeyError("bug")
        await self.get(times=MIN_REQUESTS)
        self.flushLoggedErrors(KeyError)
        self.clock.advance(1)
        self.assertTrue(self.slo.burning)


class NotBurning(Degraded):
    """What says nothing about the promise."""

    async def test_long_polls_are_as_long_as_their_callers_wish(self) -> None:
        await self.waited("/poll", 20.0)
        self.assertFalse(self.slo.burning)

    async def test_errors_of_the_callers(self) -> None:
        for self.outcome in (conflict("taken"), backpressure("full")):
            await self.get(times=MIN_REQUESTS)
        await self.get("/nowhere", times=MIN_REQUESTS)
        self.clock.advance(1)
        self.assertFalse(self.slo.burning)

    async def test_readyz_that_says_no(self) -> None:
        self.health.missing("tor", "starting")
        self.assertEqual((await self.get("/readyz", times=MIN_REQUESTS)).status, 503)
        self.clock.advance(1)
        self.assertFalse(self.slo.burning)

    async def test_what_a_limit_refused(self) -> None:
        self.edge.concurrency.limit = 0
        self.assertEqual((await self.get(times=MIN_REQUESTS)).status, 503)
        self.clock.advance(1)
        self.assertFalse(self.slo.burning)

    async def test_clients_that_hang_up(self) -> None:
        for n in range(MIN_REQUESTS):
            wire = await self.wire()
            wire.send(request("GET", "/late"))
            await until(lambda n=n: len(self.waiting) == n + 1)
            wire.abort()
        await until(lambda: self.counted("/late", "GET", 499) == MIN_REQUESTS)
        self.clock.advance(1)
        self.assertFalse(self.slo.burning)


class Closed(Degraded):
    async def test_reads_open_writes_closed(self) -> None:
        with self.slo.fail_closed("the ledger is read only"):
            response = await self.post()
            self.assertEqual((response.status, response.json["error"]["code"]), (503, "StoreUnavailable"))
            self.assertIn("the ledger is read only", response.json["error"]["message"])
            self.assertEqual((await self.get()).status, 200)
            self.assertEqual((await self.get("/readyz")).json["degraded"], ["writes"])
        self.assertEqual((await self.post()).status, 200)
