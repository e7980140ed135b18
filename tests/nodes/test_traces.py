"""One request, one trace: HTTP in front, OAP/1 behind it, the bus behind that, as a process of ours wires them."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint

from ron.kernel import Config
from ron.kernel.config import Layers
from ron.kernel.unixsock import UnixListener
from ron.nodes.listeners import BoundSocket
from ron.nodes.runtime import Runtime
from ron.oap import OapClient, OapServer, Request, Response
from ron.proto.addresses import HostPort
from ron.services.configs import SCHEMAS, NodeConfig
from ron.services.sections import ObservabilityConfig
from ron.web import Call, Endpoint
from tests.kernel.test_tracing import Collector
from tests.nodes.with_runtime import WithRuntime, ask


class Traces(WithRuntime):
    def make_runtime(self) -> Runtime:
        self.collector = Collector()
        self.addCleanup(self.collector.close)
        config: Config[NodeConfig] = Config(Layers(*SCHEMAS["ron-node"]))
        config.adopt(NodeConfig(observability=ObservabilityConfig(otel_endpoint=self.collector.url, sampling=1.0)))
        return Runtime(reactor, name="node", config=config)

    def setUp(self) -> None:
        super().setUp()
        self.start()
        runtime = self.runtime
        self.addCleanup(runtime.bus.serve("index", {"find": lambda command: command.body}))
        self.server = OapServer(
            reactor, self.find, metrics=runtime.metrics, tracing=runtime.tracing, spans=runtime.spans
        )
        self.socket = self.home / "run" / "oap.sock"
        listener = UnixListener(reactor, self.socket, self.server, backlog=5)
        listener.listen()
        self.addCleanup(lambda: Deferred.fromCoroutine(listener.stop()))

    async def find(self, request: Request) -> Response:
        found = await self.runtime.bus.call("index", "find", request.payload.decode())
        return Response(payload=found.encode())

    async def over_oap(self, _call: Call) -> dict[str, str]:
        runtime = self.runtime
        endpoint = UNIXClientEndpoint(reactor, str(self.socket))
        client = await OapClient.connect(reactor, endpoint, tracing=runtime.tracing, spans=runtime.spans)
        try:
            answer = await client.call(0x0401, 1, b"x")
        finally:
            await client.close()
        return {"found": answer.payload.decode()}

    async def at_once(self, _call: Call) -> dict[str, str]:
        return {"found": await self.runtime.bus.call("index", "find", "y", answer=str)}

    async def spans_of(self, path: str, handler: Any) -> dict[str, Any]:
        """Every span of one call of `path`, by name."""
        bound = BoundSocket(HostPort("127.0.0.1", 0), "test")
        self.addCleanup(bound.close)
        site = self.runtime.site([Endpoint(method="GET", path=path, handler=handler, scope=None)])
        listening = self.runtime.listen(bound.fileno(), site)
        status, _answer, _headers = await ask("GET", f"http://{bound.address}{path}")
        self.assertEqual(status, 200)
        await listening.stop_accepting()
        await site.drain(1)
        self.assertTrue(self.runtime.tracing.shutdown(10))
        return {span.name: span for _resource, span in self.collector.spans()}

    def assertChain(self, spans: dict[str, Any], *names: str) -> None:
        above = b""
        for name in names:
            self.assertEqual(spans[name].parent_span_id, above, name)
            above = spans[name].span_id
        self.assertEqual(len({span.trace_id for span in spans.values()}), 1)

    async def test_http_and_the_bus(self) -> None:
        spans = await self.spans_of("/v1/y", self.at_once)
        self.assertChain(spans, "GET /v1/y", "bus.index.find")

    async def test_http_oap_and_the_bus(self) -> None:
        spans = await self.spans_of("/v1/x", self.over_oap)
        self.assertChain(spans, "GET /v1/x", "oap.call", "oap.request", "bus.index.find")
        self.assertEqual(self.runtime.spans._open, {}, "nothing is left open")
