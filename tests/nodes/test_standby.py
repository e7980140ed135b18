"""Where a service will not come back by itself, its callers hear so at once, and an operator can still release it."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from ron.kernel.restarts import RestartPolicy
from ron.kernel.supervisor import Supervisor
from ron.nodes.board import SERVICE, Steering
from ron.nodes.listeners import BoundSocket
from ron.nodes.standby import Standby
from ron.proto.addresses import HostPort
from tests.nodes.with_runtime import WithRuntime, ask


class Unit:
    """Comes up at once, and crashes when it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.crash: Callable[[str], None] = lambda _reason: None

    async def start(self, crashed: Callable[[str], None]) -> None:
        self.crash = crashed

    async def stop(self) -> None:
        pass

    def abort(self) -> None:
        pass


class StandbyTests(WithRuntime):
    async def begin(self) -> None:
        """Two gateway workers and a mailbox, none of which accepts anything."""
        self.start()
        runtime = self.runtime
        # the first crash is the last
        policy = lambda: RestartPolicy(max_restarts=0)  # noqa: E731
        self.supervisor = Supervisor(reactor, runtime.bus, runtime.health, runtime.metrics, make_policy=policy)
        self.units = {name: Unit(name) for name in ("gateway.1", "gateway.2", "mailbox")}
        for unit in self.units.values():
            self.supervisor.add(unit)
        runtime.bus.serve(SERVICE, Steering(runtime, self.supervisor).handlers())
        self.sockets = {name: BoundSocket(HostPort("127.0.0.1", 0), name) for name in ("gateway", "mailbox")}
        self.standby = Standby(runtime, self.supervisor.status, self.sockets, lambda _listener: None)
        self.addCleanup(lambda: [one.close() for one in self.sockets.values()])
        self.addCleanup(lambda: Deferred.fromCoroutine(self.supervisor.stop()))
        self.addCleanup(lambda: Deferred.fromCoroutine(self.standby.stop()))
        await self.supervisor.start()
        self.cap = runtime.write_admin_capability().read_text().strip()
        self.standby.start()
        runtime.health.ok("listeners")

    def url(self, listener: str, path: str) -> str:
        return f"http://{self.sockets[listener].address}{path}"

    async def test_nobody_stands_in_while_one_worker_is_left(self) -> None:
        await self.begin()
        self.units["gateway.1"].crash("it hurts")
        self.standby.look()
        self.assertEqual(self.standby.parts, ())

    async def test_callers_of_a_quarantined_gateway_hear_so_and_it_can_be_released(self) -> None:
        await self.begin()
        for name in ("gateway.1", "gateway.2"):
            self.units[name].crash("it hurts")
        await self.until(lambda: self.standby.parts, "standing in")
        self.assertEqual(self.standby.parts, ("gateway",))
        for method, path, body in (("GET", "/", None), ("GET", "/tiles/0/0/0.png", None), ("POST", "/v1/x", {"a": 1})):
            status, answer, headers = await ask(method, self.url("gateway", path), body=body)
            self.assertEqual((status, answer["error"]["code"]), (503, "StoreUnavailable"), path)
            self.assertEqual(answer["error"]["hint"], "ronctl service release gateway.1 gateway.2")
            self.assertIn("retry-after", headers)
        status, ready, _headers = await ask("GET", self.url("gateway", "/readyz"))
        self.assertEqual((status, ready["missing"]), (503, ["service.gateway.1", "service.gateway.2"]))
        status, _answer, _headers = await ask("GET", self.url("gateway", "/v1/services"))
        self.assertEqual(status, 401, "as closed as ever")
        release = self.url("gateway", "/v1/services/release")
        status, _answer, _headers = await ask("POST", release, cap=self.cap, body={"service": "gateway.2"})
        self.assertEqual(status, 200)
        await self.until(lambda: not self.standby.parts, "stepping down")
        self.assertEqual([unit.state for unit in self.supervisor.status()], ["quarantined", "up", "up"])

    async def test_a_drained_mailbox_is_stood_in_for_without_an_administration(self) -> None:
        await self.begin()
        self.supervisor.drain("mailbox")
        await self.until(lambda: self.standby.parts, "standing in")
        status, answer, _headers = await ask("POST", self.url("mailbox", "/v1/send"), body={"topic": "t"})
        self.assertEqual((status, answer["error"]["hint"]), (503, "ronctl service release mailbox"))
        status, _answer, _headers = await ask("GET", self.url("mailbox", "/v1/services"), cap=self.cap)
        self.assertEqual(status, 503, "there is none on this listener")
        self.supervisor.release("mailbox")
        await self.until(lambda: not self.standby.parts, "stepping down")

    async def test_it_stands_in_again_and_ends(self) -> None:
        await self.begin()
        for _ in range(2):
            self.supervisor.drain("mailbox")
            await self.until(lambda: self.standby.parts, "standing in")
            status, _answer, _headers = await ask("GET", self.url("mailbox", "/"))
            self.assertEqual(status, 503)
            self.supervisor.release("mailbox")
            await self.until(lambda: not self.standby.parts, "stepping down")
        self.supervisor.drain("mailbox")
        await self.until(lambda: self.standby.parts, "standing in")
        await self.standby.stop()
        self.assertEqual(self.standby.parts, ())
