"""The control endpoint with a real gRPC client over loopback: refusals first, then answers, health, TLS and the end."""

from __future__ import annotations

import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ron.auth import AUDIENCE, Authority, Caveat, RootKeys
from ron.crypto import x509
from ron.kernel import Bus, Config, HealthState, Metrics
from ron.kernel.config import ConfigError, Layers
from ron.kernel.restarts import RestartPolicy
from ron.kernel.supervisor import Supervisor
from ron.kernel.tls import ServerTls
from ron.kernel.tls_listen import wrap_tls
from ron.nodes import control, rpcfront
from ron.nodes.board import Steering
from ron.nodes.control import ControlServer
from ron.nodes.grpc import control_pb2 as pb
from ron.nodes.grpc import server as server_module
from ron.nodes.grpc.control_pb2_grpc import ControlStub
from ron.nodes.grpc.desk import Asked
from ron.nodes.grpc.errors import refusal
from ron.nodes.grpc.rpcs import RPCS, SERVICE
from ron.proto.addresses import HostPort
from ron.proto.errors import ErrorCode, ErrorEnvelope, RonError, backpressure, bad_request, conflict, unavailable
from ron.proto.facts import NodeFacts, NodeStatus
from ron.proto.ids import uuid7
from ron.services.configs import SCHEMAS
from ron.web import Edge
from tests.web.wire import until

LOOPBACK = HostPort("127.0.0.1", 0)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
PATIENCE_S = 20.0
REQUESTS: dict[str, Any] = {
    "Health": pb.HealthRequest(),
    "Status": pb.StatusRequest(),
    "Services": pb.ServicesRequest(),
    "ConfigVersion": pb.ConfigVersionRequest(),
    "Release": pb.ReleaseRequest(name="edge"),
    "Drain": pb.DrainRequest(name="edge"),
    "Reload": pb.ReloadRequest(),
}
Code = grpc.StatusCode


class Process:
    """What the endpoint needs of its process, each thing real."""

    def __init__(self, home: Path) -> None:
        self.reactor = reactor
        self.home = home
        self.drain_s = 3.0
        self.metrics = Metrics()
        self.health = HealthState()
        self.bus = Bus(reactor, self.metrics)
        self.authority = Authority(RootKeys.generate(), audience=AUDIENCE, now=time.time)
        self.edge = Edge(authority=self.authority, metrics=self.metrics, reactor=reactor)
        self.file = home / "node.toml"
        self.file.write_text("[limits]\nconcurrency = 10\n")
        self.config: Any = Config(Layers(*SCHEMAS["ron-node"], self.file, {}, {}))


class Edgy:
    """A unit that starts once it is mended."""

    name = "edge"
    mended = False

    async def start(self, crashed: Callable[[str], None]) -> None:
        if not self.mended:
            raise bad_request("the pack is damaged")

    async def stop(self) -> None:
        pass

    def abort(self) -> None:
        pass


class WithControl(TestCase):
    """An endpoint and a client of it."""

    timeout = 60

    def setUp(self) -> None:
        # a socket's path is 107 bytes at most, and trial's own folders are longer
        self.home = Path(tempfile.mkdtemp(prefix="ron-"))
        self.addCleanup(shutil.rmtree, self.home)
        self.process = Process(self.home)
        self.bus, self.health = self.process.bus, self.process.health

    def start(self, **options: Any) -> ControlServer:
        server = ControlServer(self.process, LOOPBACK, **options)
        self.server = server
        self.addCleanup(server.stop)
        server.start()
        return server

    def connect(self, **options: Any) -> grpc.Channel:
        """A connection of its own."""
        arguments = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        if "credentials" in options:
            channel = grpc.secure_channel(options["target"], options["credentials"], arguments)
        else:
            channel = grpc.insecure_channel(str(self.server.address), arguments)
        self.addCleanup(deferToThread, channel.close)
        return channel

    async def call(self, method: str, request: Any = None, *, on: grpc.Channel | None = None, **options: Any) -> Any:
        """The response and the trailing metadata. Raises `grpc.RpcError`."""
        if on is None:
            on = self.channel = getattr(self, "channel", None) or self.connect()
        stub = getattr(ControlStub(on), method)
        chosen = {"timeout": PATIENCE_S, "metadata": self.bearer(("scope", "*")), **options}
        return await deferToThread(stub, REQUESTS[method] if request is None else request, **chosen)

    async def refused(self, method: str, request: Any = None, **options: Any) -> grpc.Call:
        try:
            await self.call(method, request, **options)
        except grpc.RpcError as error:
            refused: Any = error
            return refused
        raise AssertionError(f"{method} was answered")

    def token(self, *caveats: tuple[str, str]) -> str:
        return self.process.authority.mint(Caveat(*one) for one in caveats)

    def bearer(self, *caveats: tuple[str, str]) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.token(*caveats)}")]

    def steer(self) -> Edgy:
        """Serve the node's own commands, with one unit in quarantine; it comes up once it is mended."""
        process, edge = self.process, Edgy()
        supervisor = Supervisor(
            reactor, self.bus, self.health, process.metrics, make_policy=lambda: RestartPolicy(max_restarts=0)
        )
        supervisor.add(edge)
        Deferred.fromCoroutine(supervisor.start())
        self.drained: list[str] = []
        steering: Any = Steering(process, supervisor)  # type: ignore[arg-type]
        self.bus.serve(
            "node",
            {
                **steering.handlers(),
                "drain": lambda command: self.drained.append(command.body),
                "status": lambda _command: self.status(supervisor),
            },
        )
        return edge

    def status(self, supervisor: Supervisor) -> NodeStatus:
        facts = NodeFacts(gateway_url="g", mailbox_url="m", onion=None, socks_port=1, pids={})
        return NodeStatus(
            facts=facts,
            uptime_s=1.5,
            ready=False,
            missing=(),
            degraded=(),
            reasons={},
            tor=None,
            onions=(),
            queues={},
            packs=(),
            services=supervisor.status(),
            config_version=4,
        )


def trailing(refused: grpc.Call) -> dict[str, Any]:
    return dict(refused.trailing_metadata() or ())


class Refusals(WithControl):
    """What is not answered."""

    async def test_every_call_needs_its_scope_but_health(self) -> None:
        self.start()
        self.steer()
        for method, rpc in RPCS.items():
            if rpc.scope is None:
                self.assertEqual((method, (await self.call(method, metadata=[])).ready), ("Health", False))
                continue
            without = await self.refused(method, metadata=[])
            self.assertEqual(without.code(), Code.UNAUTHENTICATED, method)
            others = ",".join({"node:read", "node:admin", "bus:*"} - {rpc.scope})
            wrong = await self.refused(method, metadata=self.bearer(("scope", others)))
            self.assertEqual(wrong.code(), Code.PERMISSION_DENIED, method)
            self.assertEqual(trailing(wrong)["ron-error-code"], "NoCapability")
        self.assertEqual((self.drained, self.process.config.version), ([], 1))

    async def test_the_scopes_are_those_of_the_http_api(self) -> None:
        scopes = {method: rpc.scope for method, rpc in RPCS.items()}
        for method in ("Status", "Services", "ConfigVersion"):
            self.assertEqual(scopes[method], "node:read")
        for method in ("Release", "Drain", "Reload"):
            self.assertEqual(scopes[method], "node:admin")

    async def test_tokens_that_are_none(self) -> None:
        self.start()
        self.steer()
        token = self.bearer(("scope", "*"))[0][1]
        for metadata in (
            [("authorization", "")],
            [("authorization", "Bearer")],
            [("authorization", token.removeprefix("Bearer "))],
            [("authorization", "Basic " + token.removeprefix("Bearer "))],
            [("authorization", token[:-3])],
            [("authorization", token), ("authorization", token)],
            [("authorization-bin", token.encode())],
            [("authorization", "Bearer " + "a" * 10_000)],
        ):
            self.assertEqual((await self.refused("Status", metadata=metadata)).code(), Code.UNAUTHENTICATED)

    async def test_a_capability_for_another_call_or_used_up(self) -> None:
        self.start()
        self.steer()
        here = f"/{SERVICE}/Services"
        for caveats, code in (
            ([("method", "GET")], Code.PERMISSION_DENIED),
            ([("path", "/v1/services")], Code.PERMISSION_DENIED),
            ([("path", f"/{SERVICE}/Status")], Code.PERMISSION_DENIED),
            ([("tenant", "a")], Code.PERMISSION_DENIED),
            ([("exp", "2020-01-01T00:00:00Z")], Code.UNAUTHENTICATED),
        ):
            self.assertEqual((await self.refused("Services", metadata=self.bearer(*caveats))).code(), code, caveats)
        narrow = self.bearer(("scope", "node:read"), ("method", "RPC"), ("path", here), ("bytes_per_day", "1"))
        await self.call("Services", metadata=narrow)
        spent = await self.refused("Services", metadata=narrow)
        self.assertEqual((spent.code(), trailing(spent)["ron-error-code"]), (Code.RESOURCE_EXHAUSTED, "Backpressure"))
        self.assertGreater(int(trailing(spent)["grpc-retry-pushback-ms"]), 0)

    async def test_names_that_are_none(self) -> None:
        self.start()
        self.steer()
        for name in ("Edge", "a b", "a\n", "-", "a" * 64, "é"):
            for method, request in (("Release", pb.ReleaseRequest(name=name)), ("Drain", pb.DrainRequest(name=name))):
                self.assertEqual((await self.refused(method, request)).code(), Code.INVALID_ARGUMENT, name)
        nameless = await self.refused("Release", pb.ReleaseRequest())
        self.assertEqual(nameless.code(), Code.INVALID_ARGUMENT)
        unknown = await self.refused("Release", pb.ReleaseRequest(name="nonsense"))
        self.assertEqual((unknown.code(), trailing(unknown)["ron-error-code"]), (Code.NOT_FOUND, "NotFound"))
        self.assertEqual(self.drained, [])

    async def test_bytes_that_are_no_message(self) -> None:
        self.start()
        self.steer()
        path = f"/{SERVICE}/Release"
        raw = self.connect().unary_unary(path, lambda raw: raw, lambda raw: raw)
        for body in (b"\xff" * 50, b"\x0a\xff", pb.ReleaseRequest(name="a" * 100_000).SerializeToString()):
            with self.assertRaises(grpc.RpcError):
                await deferToThread(raw, body, timeout=PATIENCE_S, metadata=self.bearer(("scope", "*")))
        none = self.connect().unary_unary(f"/{SERVICE}/Nonsense", lambda raw: raw, lambda raw: raw)
        with self.assertRaises(grpc.RpcError) as caught:
            await deferToThread(none, b"", timeout=PATIENCE_S)
        self.assertEqual(caught.exception.code(), Code.UNIMPLEMENTED)
        self.assertFalse((await self.call("Health")).ready)

    async def test_bytes_that_are_no_http_2(self) -> None:
        server = self.start()

        def send(raw: bytes) -> bytes:
            with socket.create_connection(server.address, timeout=PATIENCE_S) as wire:
                wire.sendall(raw)
                heard = b""
                while chunk := wire.recv(4096):
                    heard += chunk
                return heard

        for raw in (
            b"GET /readyz HTTP/1.1\r\n\r\n",
            b"\x00" * 1000,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 99,
        ):
            self.assertNotIn(b"ready", await deferToThread(send, raw))
        self.assertFalse((await self.call("Health")).ready)

    async def test_without_a_node_on_the_bus(self) -> None:
        self.start()
        refused = await self.refused("Services")
        self.assertEqual((refused.code(), trailing(refused)["ron-error-code"]), (Code.UNAVAILABLE, "StoreUnavailable"))
        await self.call("Health")

    async def test_the_whole_envelope_stands_in_the_trailers(self) -> None:
        def fails(_command: Any) -> None:
            raise conflict("not now", "later")

        self.start()
        self.bus.serve("node", {"drain": fails})
        refused = await self.refused("Drain")
        self.assertEqual((refused.code(), refused.details()), (Code.FAILED_PRECONDITION, "not now; fix: later"))
        error = msgspec.json.decode(trailing(refused)["ron-error-bin"], type=ErrorEnvelope).error
        self.assertEqual((error.code, error.message, error.hint), ("Conflict", "not now", "later"))
        self.assertEqual(error.request_id, trailing(refused)["x-corr-id"])

    async def test_a_defect_shows_nothing_of_itself(self) -> None:
        self.start()
        self.bus.serve("node", {"version": lambda _command: {}["the secret detail"], "services": lambda _command: 7})
        refused = await self.refused("ConfigVersion")
        self.assertEqual(refused.code(), Code.INTERNAL)
        self.assertNotIn("secret", f"{refused.details()}{trailing(refused)}")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual((await self.refused("Services")).code(), Code.UNAVAILABLE)


class Deadlines(WithControl):
    """Nothing waits for ever, and not everybody at once."""

    def hang(self) -> list[Deferred[Any]]:
        waiting: list[Deferred[Any]] = []

        def never(_command: Any) -> Deferred[Any]:
            waiting.append(Deferred())
            return waiting[-1]

        self.bus.serve("node", {"version": never}, concurrency=100)
        return waiting

    async def test_ours(self) -> None:
        self.patch(server_module, "DEADLINE_S", 0.2)
        self.start()
        self.hang()
        refused = await self.refused("ConfigVersion", timeout=None)
        self.assertEqual((refused.code(), trailing(refused)["ron-error-code"]), (Code.DEADLINE_EXCEEDED, "Timeout"))

    async def test_the_callers(self) -> None:
        self.patch(server_module, "DEADLINE_S", 1000.0)
        self.start()
        self.hang()
        self.assertEqual((await self.refused("ConfigVersion", timeout=0.3)).code(), Code.DEADLINE_EXCEEDED)
        # the server gave it up as well
        await until(lambda: not self.server._server._desk._open)  # type: ignore[union-attr]

    async def test_too_many_at_once(self) -> None:
        self.start()
        waiting = self.hang()
        calls = [Deferred.fromCoroutine(self.call("ConfigVersion", on=self.connect())) for _ in range(5)]
        self.patch(server_module, "MAX_CONCURRENT", 3)
        await until(lambda: len(waiting) == server_module.THREADS)
        for one in waiting:
            one.callback(1)
        await until(lambda: len(waiting) == 5)
        waiting[-1].callback(1)
        self.assertEqual([done for done, _answer in await DeferredList(calls)], [True] * 5)

    async def test_more_than_there_are_places_for(self) -> None:
        self.patch(server_module, "MAX_CONCURRENT", 2)
        self.start()
        waiting = self.hang()
        channel = self.connect()
        calls = [Deferred.fromCoroutine(self.call("ConfigVersion", on=channel)) for _ in range(2)]
        await until(lambda: len(waiting) == 2)
        refused = await self.refused("ConfigVersion", on=channel)
        self.assertEqual(refused.code(), Code.RESOURCE_EXHAUSTED)
        for one in waiting:
            one.callback(1)
        await DeferredList(calls)
        self.assertEqual(len(waiting), 2)


class Answers(WithControl):
    """Every call, against the node's own commands."""

    async def test_health(self) -> None:
        self.start()
        self.health.missing("tor", "it is starting")
        self.health.degraded("edge.pack", "old")
        found = await self.call("Health", metadata=[])
        self.assertEqual((found.ready, list(found.missing), list(found.degraded)), (False, ["tor"], ["edge.pack"]))
        self.assertEqual(dict(found.reasons), {"tor": "it is starting", "edge.pack": "old"})
        self.health.ok("tor")
        self.assertTrue((await self.call("Health", metadata=[])).ready)

    async def test_status_is_that_of_the_http_api(self) -> None:
        self.start()
        self.steer()
        status = msgspec.json.decode((await self.call("Status")).json, type=NodeStatus)
        self.assertEqual((status.uptime_s, status.config_version, status.facts.gateway_url), (1.5, 4, "g"))

    async def test_a_quarantined_service_is_listed_and_released(self) -> None:
        self.start()
        edge = self.steer()
        (found,) = (await self.call("Services")).services
        self.assertEqual(
            (found.name, found.state, found.restarts, found.reason, found.pid),
            ("edge", "quarantined", 0, "the pack is damaged", 0),
        )
        edge.mended = True
        self.assertEqual((await self.call("Release")).service.state, "up")

    async def test_drain_one_or_all(self) -> None:
        self.start()
        self.steer()
        await self.call("Drain", pb.DrainRequest(name="gateway.2"))
        await self.call("Drain", pb.DrainRequest())
        self.assertEqual(self.drained, ["gateway.2", ""])

    async def test_reload_and_version(self) -> None:
        self.start()
        self.steer()
        self.assertEqual((await self.call("ConfigVersion")).version, 1)
        self.process.file.write_text("[limits]\nconcurrency = 20\n[gateway]\nbind = '127.0.0.1:9081'\n")
        reloaded = await self.call("Reload")
        self.assertEqual((reloaded.version, list(reloaded.restart_needed)), (2, ["gateway.bind"]))
        self.process.file.write_text("[limits]\nconcurency = 20\n")
        refused = await self.refused("Reload")
        self.assertEqual(refused.code(), Code.INVALID_ARGUMENT)
        self.assertIn("limits.concurency", refused.details())
        self.assertEqual((await self.call("ConfigVersion")).version, 2)

    async def test_correlation(self) -> None:
        seen: list[str] = []
        self.start()
        self.bus.serve("node", {"version": lambda command: seen.append(command.corr_id) or 1})
        stub, mine = ControlStub(self.connect()), str(uuid7())
        for given in (mine, "nonsense"):
            metadata = [*self.bearer(("scope", "*")), ("x-corr-id", given)]
            _answer, call = await deferToThread(
                stub.ConfigVersion.with_call, pb.ConfigVersionRequest(), metadata=metadata, timeout=PATIENCE_S
            )
            self.assertEqual(dict(call.trailing_metadata())["x-corr-id"], seen[-1])
        self.assertEqual((seen[0], uuid.UUID(seen[1]).version), (mine, 7))

    async def test_counted(self) -> None:
        self.start()
        self.steer()
        await self.call("Services")
        await self.refused("Services", metadata=[])
        read = self.process.metrics.registry.get_sample_value
        route = {"route": f"/{SERVICE}/Services", "method": "RPC"}
        self.assertEqual(read("request_latency_seconds_count", route), 2)
        self.assertEqual(read("rejected_total", {"reason": "unauth"}), 1)


class Probes(WithControl):
    """`grpc.health.v1`."""

    def probe(self) -> health_pb2_grpc.HealthStub:
        return health_pb2_grpc.HealthStub(self.connect())

    async def test_check(self) -> None:
        self.start()
        stub = self.probe()

        async def check(name: str) -> Any:
            request = health_pb2.HealthCheckRequest(service=name)
            return (await deferToThread(stub.Check, request, timeout=PATIENCE_S)).status

        self.assertEqual((await check(""), await check(SERVICE)), (NOT_SERVING, SERVING))
        self.health.ok("tor")
        self.assertEqual(await check(""), SERVING)
        self.health.missing("tor", "gone")
        self.assertEqual(await check(""), NOT_SERVING)
        with self.assertRaises(grpc.RpcError) as caught:
            await check("nonsense")
        self.assertEqual(caught.exception.code(), Code.NOT_FOUND)

    async def test_nobody_watches(self) -> None:
        """The protocol allows that; a watch would hold one of our places for as long as its client likes."""
        self.start()
        news = self.probe().Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        with self.assertRaises(grpc.RpcError) as caught:
            await deferToThread(next, news)
        self.assertEqual(caught.exception.code(), Code.UNIMPLEMENTED)


class Life(WithControl):
    """Start, stop, and why it may not start."""

    def test_an_address_for_others_needs_tls(self) -> None:
        error = self.assertRaises(ConfigError, ControlServer, self.process, HostPort("0.0.0.0", 0))  # noqa: S104
        self.assertEqual(error.key, "api.grpc_addr")

    async def test_a_taken_port(self) -> None:
        first = self.start()
        error = self.assertRaises(RonError, ControlServer, self.process, first.address)
        self.assertEqual(error.code, ErrorCode.STORE_UNAVAILABLE)
        self.assertIn("api.grpc_addr", error.message)

    def test_without_the_extra(self) -> None:
        for missing in ("grpc", "grpc_health.v1", "google.protobuf.message"):
            gone = {name: None for name in sys.modules if name == missing or name.startswith(missing + ".")}
            ours = [name for name in sys.modules if name.startswith("ron.nodes.grpc")]
            known = {name: sys.modules[name] for name in [*gone, *ours]}
            for name in ours:
                del sys.modules[name]
            sys.modules.update({missing: None, **gone})  # type: ignore[arg-type]
            try:
                error = self.assertRaises(RonError, ControlServer, self.process, LOOPBACK)
            finally:
                sys.modules.update(known)
            self.assertEqual(error.code, ErrorCode.UNSUPPORTED)
            self.assertIn("rustyonions[grpc]", error.hint)

    def test_a_home_too_deep_for_a_socket(self) -> None:
        self.process.home = self.home / ("a" * 100)
        error = self.assertRaises(RonError, ControlServer, self.process, LOOPBACK)
        self.assertIn("RON_HOME", error.hint)

    async def test_what_a_killed_process_left_is_no_hindrance(self) -> None:
        (self.home / "run").mkdir()
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(self.home / "run" / control.SOCKET))
        self.start()
        await self.call("Health")

    async def test_others_cannot_go_around_the_front(self) -> None:
        self.start()
        self.assertEqual((self.home / "run").stat().st_mode & 0o777, 0o700)

    async def test_calls_under_way_are_answered(self) -> None:
        server = self.start()
        waiting: list[Deferred[int]] = []
        self.bus.serve("node", {"version": lambda _command: waiting.append(Deferred()) or waiting[0]})
        call = Deferred.fromCoroutine(self.call("ConfigVersion"))
        await until(lambda: waiting)
        ending = Deferred.fromCoroutine(server.stop())
        self.assertNoResult(ending)
        waiting[0].callback(5)
        self.assertEqual((await call).version, 5)
        self.assertEqual(await ending, 0)
        self.assertEqual((await self.refused("Health")).code(), Code.UNAVAILABLE)
        self.assertFalse((self.home / "run" / control.SOCKET).exists())
        self.assertEqual(await server.stop(), 0)

    async def test_calls_that_take_too_long_are_cut_off(self) -> None:
        self.process.drain_s = 0.2
        server = self.start()
        waiting: list[Deferred[int]] = []
        self.bus.serve("node", {"version": lambda _command: waiting.append(Deferred()) or waiting[0]})
        call = Deferred.fromCoroutine(self.refused("ConfigVersion"))
        await until(lambda: waiting)
        self.assertEqual(await server.stop(), 1)
        self.assertIn((await call).code(), (Code.CANCELLED, Code.UNAVAILABLE))
        # one of gRPC's threads that comes to us only now must not wait for an answer
        late = Asked("ConfigVersion", REQUESTS["ConfigVersion"], self.token(), "", 5.0)
        await self.assertFailure(server._server._desk.ask(late), RonError)  # type: ignore[union-attr]

    async def test_never_started(self) -> None:
        server = ControlServer(self.process, LOOPBACK)
        self.assertEqual(await server.stop(), 0)
        ControlServer(self.process, server.address)._bound.close()

    async def test_connections_are_bounded(self) -> None:
        self.patch(rpcfront, "MAX_CONNECTIONS", 2)
        server = self.start()
        wires = [socket.create_connection(server.address) for _ in range(3)]
        for wire in wires:
            self.addCleanup(wire.close)
        read = self.process.metrics.registry.get_sample_value
        await until(lambda: read("rejected_total", {"reason": "connections"}) == 1)
        self.assertEqual(read("open_connections", {"listener": "grpc"}), 2)
        wires[0].close()
        await until(lambda: read("open_connections", {"listener": "grpc"}) == 1)
        await self.call("Health")


class Tls(WithControl):
    """For others, behind our own TLS."""

    async def test_tls_1_3_with_the_nodes_ca(self) -> None:
        authority = x509.init_ca("test CA")
        # BoringSSL, which gRPC brings along, knows no constraints on addresses: a certificate must not name any
        issued = x509.issue(authority, "alpha", dns=["localhost"])
        certificate, key = self.home / "alpha.pem", self.home / "alpha.key"
        certificate.write_bytes(x509.certificate_pem(issued.certificate))
        key.touch(mode=0o600)
        key.write_bytes(x509.key_pem(issued.key))
        context = ServerTls(certificate, key, alpn=(b"h2",))
        server = self.start(
            behind_tls=lambda factory: wrap_tls(reactor, factory, context, metrics=self.process.metrics)
        )
        trusted = grpc.ssl_channel_credentials(x509.certificate_pem(authority.certificate))
        target = f"localhost:{server.address.port}"
        self.health.ok("tor")
        self.assertTrue((await self.call("Health", on=self.connect(target=target, credentials=trusted))).ready)
        stranger = grpc.ssl_channel_credentials(x509.certificate_pem(x509.init_ca("other").certificate))
        for channel in (self.connect(target=target, credentials=stranger), self.connect()):
            self.assertEqual((await self.refused("Health", on=channel)).code(), Code.UNAVAILABLE)


class Pure(SynchronousTestCase):
    """Tables."""

    def test_every_rpc_of_the_proto_is_served(self) -> None:
        methods = pb.DESCRIPTOR.services_by_name["Control"].methods_by_name
        self.assertEqual(set(RPCS), set(methods))
        self.assertEqual(set(RPCS), set(REQUESTS))

    def test_every_error_has_a_status(self) -> None:
        for code in ErrorCode:
            found = refusal(RonError(code, "ä\n", hint="ö"), "id")
            self.assertIsNot(found.code, Code.OK)
            self.assertIn(("ron-error-code", code.value), found.metadata)
        for error, status in (
            (RonError(ErrorCode.NO_CAPABILITY, "", status=401), Code.UNAUTHENTICATED),
            (RonError(ErrorCode.NO_CAPABILITY, ""), Code.PERMISSION_DENIED),
            (backpressure(""), Code.RESOURCE_EXHAUSTED),
            (unavailable(""), Code.UNAVAILABLE),
            (RonError(ErrorCode.TIMEOUT, ""), Code.DEADLINE_EXCEEDED),
            (bad_request(""), Code.INVALID_ARGUMENT),
        ):
            self.assertIs(refusal(error, "").code, status)
