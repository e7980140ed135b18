"""A part under the supervisor: it answers only while it is up, finishes what it began, and can be started again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.web.client import readBody
from twisted.web.http_headers import Headers

from ron.kernel.commands import Handlers
from ron.nodes.listeners import BoundSocket
from ron.nodes.parts import EDGE_SOCKET, LISTENERS, PARTS, Host, Part, PartUnit, load_part, preload
from ron.nodes.parts.edge import EdgePart
from ron.nodes.parts.gateway import GatewayPart
from ron.nodes.parts.mailbox import MailboxPart
from ron.proto.addresses import HostPort
from ron.proto.errors import RonError, unavailable
from ron.sdk.edge import EdgeClient
from ron.sdk.transport import unix_http
from ron.services.sections import TlsConfig
from ron.web import Call, Endpoint
from ron.web.site import RonSite
from tests.nodes.with_runtime import WithRuntime, ask


class SlowPart(Part):
    """Answers `GET /slow` when told, and one command."""

    def __init__(self, host: Host, *, tls: TlsConfig | None = None) -> None:
        super().__init__(host)
        self.service = Service()
        self.answers: list[Deferred[dict[str, str]]] = []
        self.trouble: RonError | None = None
        self._tls = tls

    async def ready(self) -> None:
        if self.trouble is not None:
            raise self.trouble

    def handlers(self) -> Handlers:
        return {"ping": lambda _command: "pong"}

    def sites(self) -> Mapping[str, RonSite]:
        slow = Endpoint(method="GET", path="/slow", handler=self.slow, scope=None)
        return {"slow": self.host.runtime.site([slow])}

    def tls(self, _listener: str) -> TlsConfig | None:
        return self._tls

    def slow(self, _call: Call) -> Deferred[dict[str, str]]:
        self.answers.append(Deferred())
        return self.answers[-1]


class PartCase(WithRuntime):
    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.runtime.health.ok("all")
        self.sockets = {name: BoundSocket(HostPort("127.0.0.1", 0), name) for name in ("slow", "slow-tls")}
        for one in self.sockets.values():
            self.addCleanup(one.close)

    def host(self, **sockets: Any) -> Host:
        return Host(
            runtime=self.runtime,
            config=self.runtime.config.current,
            addresses={"gateway": HostPort("127.0.0.1", 1), "mailbox": HostPort("127.0.0.1", 2)},
            sockets=sockets or {name: one.fileno() for name, one in self.sockets.items()},
            run=self.home / "run",
        )


class PartUnitTests(PartCase):
    def setUp(self) -> None:
        super().setUp()
        self.part = SlowPart(self.host())
        self.unit = PartUnit("slow", self.part)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.unit.stop()))
        self.crashes: list[str] = []

    def get(self, path: str) -> Deferred[Any]:
        return Deferred.fromCoroutine(ask("GET", f"http://{self.sockets['slow'].address}{path}"))

    async def test_one_that_cannot_come_up_answers_nothing(self) -> None:
        self.part.trouble = unavailable("no disk")
        with self.assertRaises(RonError):
            await self.unit.start(self.crashes.append)
        self.assertFalse(self.runtime.bus.reachable("slow"))
        asking = self.get("/healthz")
        self.unit.abort()
        self.part.trouble = None
        await self.unit.start(self.crashes.append)
        status, _answer, _headers = await asking
        self.assertEqual(status, 200, "who asked meanwhile was kept waiting")

    async def test_up_it_answers_on_both_sides(self) -> None:
        await self.unit.start(self.crashes.append)
        self.assertEqual(await self.runtime.bus.call("slow", "ping"), "pong")
        self.assertEqual((await self.get("/healthz"))[0], 200)

    async def test_stopped_it_finishes_what_it_began(self) -> None:
        await self.unit.start(self.crashes.append)
        asking = self.get("/slow")
        await self.until(lambda: self.part.answers, "the call")
        stopping = Deferred.fromCoroutine(self.unit.stop())
        self.assertEqual(await self.runtime.bus.call("slow", "ping"), "pong", "until the last call is answered")
        self.part.answers[0].callback({"done": "yes"})
        status, answer, _headers = await asking
        self.assertEqual((status, answer), (200, {"done": "yes"}))
        await stopping
        self.assertFalse(self.runtime.bus.reachable("slow"))
        self.assertEqual(self.runtime.cut_off, 0)

    async def test_what_does_not_finish_is_cut_off_and_counted(self) -> None:
        self.patch(type(self.runtime), "drain_s", 0.2)
        await self.unit.start(self.crashes.append)
        asking = self.get("/slow")
        await self.until(lambda: self.part.answers, "the call")
        await self.unit.stop()
        self.assertEqual(self.runtime.cut_off, 1)
        with self.assertRaises(Exception):  # noqa: B017 - what treq makes of a connection that broke
            await asking

    async def test_aborted_and_started_again_as_often_as_need_be(self) -> None:
        for _ in range(5):
            await self.unit.start(self.crashes.append)
            self.assertEqual((await self.get("/healthz"))[0], 200)
            self.unit.abort()
            self.assertFalse(self.runtime.bus.reachable("slow"))
        self.assertEqual(self.crashes, [])

    async def test_without_its_certificate_it_does_not_come_up_and_leaves_nothing_open(self) -> None:
        files = TlsConfig(bind="127.0.0.1:0", certificate="none.pem", key="none.pem")
        unit = PartUnit("slow", SlowPart(self.host(), tls=files))
        with self.assertRaises(RonError):
            await unit.start(self.crashes.append)
        unit.abort()
        asking = self.get("/healthz")
        await self.unit.start(self.crashes.append)
        self.assertEqual((await asking)[0], 200)


class PartsTests(PartCase):
    def test_each_stands_after_what_it_requires(self) -> None:
        known: set[str] = set()
        for name, spec in PARTS.items():
            self.assertLessEqual(set(spec.requires), known, name)
            known.add(name)
        self.assertLessEqual(set(LISTENERS), known)

    def test_every_one_can_be_loaded(self) -> None:
        preload()
        host = self.host(edge=self.home / "run" / EDGE_SOCKET)
        for name in ("edge", "mailbox", "gateway", "hello"):
            part = load_part(name, host)
            self.assertIs(host.local[name], part)
            for listener in part.sites():
                self.assertIn(listener, {"edge", *LISTENERS})

    def test_the_edge_answers_over_http_only_where_another_process_needs_it(self) -> None:
        part = EdgePart(self.host())
        self.assertEqual(set(part.sites()), set())
        part.host.sockets = {"edge": self.home / "run" / EDGE_SOCKET}
        self.assertEqual(set(part.sites()), {"edge"})

    async def test_a_gateway_is_not_limited_as_one_of_its_callers(self) -> None:
        limits = msgspec.structs.replace(self.runtime.edge.limits, requests_per_second_per_peer=3, concurrency=1)
        self.runtime.edge.apply(limits)
        path = self.home / "run" / EDGE_SOCKET
        unit = PartUnit("edge", EdgePart(self.host(edge=path)))
        await unit.start(lambda _reason: None)
        client = unix_http(reactor, path)
        try:
            for _ in range(20):
                close = Headers({"Connection": ["close"]})
                answer: Any = await client.request("GET", "http://edge/assets/none", headers=close)
                await readBody(answer)
                self.assertEqual(answer.code, 404)
        finally:
            await unit.stop()

    def test_the_gateway_asks_the_edge_beside_it_or_a_client_of_it(self) -> None:
        alone = self.host()
        self.assertIsInstance(GatewayPart(alone)._edge(), EdgeClient)
        together = self.host()
        edge = load_part("edge", together)
        self.assertIs(GatewayPart(together)._edge(), edge.service)

    async def test_the_mailbox_under_the_supervisor(self) -> None:
        one = BoundSocket(HostPort("127.0.0.1", 0), "mailbox.listen")
        self.addCleanup(one.close)
        unit = PartUnit("mailbox", MailboxPart(self.host(mailbox=one.fileno())))
        await unit.start(lambda _reason: None)
        try:
            status, _answer, _headers = await ask("POST", f"http://{one.address}/v1/recv", body={"topic": "t"})
            self.assertEqual(status, 401)
            stats = await self.runtime.bus.call("mailbox", "stats")
            self.assertIsNotNone(stats)
        finally:
            await unit.stop()
