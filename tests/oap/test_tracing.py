"""One trace across HTTP, OAP/1 and the bus, as a collector that speaks OTLP/HTTP gets to see it."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint

from ron.kernel.bus import Bus
from ron.kernel.commands import Command
from ron.kernel.metrics import Metrics
from ron.kernel.openspans import OpenSpans
from ron.kernel.tracing import Span, Tracing
from ron.oap import OapClient, OapServer, Request, Response
from ron.oap import hello as room
from ron.oap.tracing import Announced, read_context, write_context
from ron.proto.errors import RonError, conflict
from ron.proto.ids import uuid7
from tests.kernel.test_tracing import Collector, begun, plain
from tests.oap.ends import EVENT, PROTO, WHOLE, Ends, Pair, frame
from tests.oap.test_sockets import OnSockets


class Contexts(Ends):
    """What announces a request, from peers that mean no good among them."""

    def test_malformed_ones_are_as_none(self) -> None:
        tracing = Tracing("s", "http://127.0.0.1:9", sampling=1.0)
        self.addCleanup(tracing.shutdown, 0.0)
        corr_id = str(uuid7())
        for payload in (
            b"",
            b"[]",
            b'{"x-corr-id": 1}',
            b'{"x-corr-id": "x"}',
            b'{"x-corr-id": "' + b"a" * 5000 + b'"}',
            b"[" * 4000,
        ):
            self.assertEqual(read_context(tracing, payload), (None, None), payload[:40])
            self.assertEqual(read_context(None, payload), (None, None), payload[:40])
        said = msgspec.json.encode({"x-corr-id": corr_id, "traceparent": "00-zz", "tracestate": "x"})
        self.assertEqual(read_context(tracing, said), (corr_id, None))
        self.assertEqual(read_context(None, said), (corr_id, None))

    def test_those_whose_requests_never_come_do_not_pile_up(self) -> None:
        announced = Announced(2)
        for number in range(1000):
            announced.put(number, read_context(None, write_context(None, str(uuid7()), None)))
        self.assertIsNone(announced.take(997).corr_id)
        self.assertIsNotNone(announced.take(998).corr_id)
        self.assertIsNone(announced.take(998).corr_id)
        self.assertEqual(len(announced._origins), 1)

    def test_one_for_a_request_that_is_refused_is_forgotten(self) -> None:
        self.server = self.make_server(limits={"body_bytes": 1024})
        peer, corr_id = self.peer(), str(uuid7())
        context = frame(EVENT, 7, write_context(None, corr_id, None), app_proto_id=0, code=room.CONTEXT)
        peer.say(context, frame(WHOLE, 7, bytes(2000)), frame(WHOLE, 7))
        self.assertNotEqual(self.requests[0].corr_id, corr_id)

    def test_another_implementation_need_not_know_them(self) -> None:
        """The same bytes without the extension: a request and nothing before it."""
        peer = self.peer()
        peer.say(frame(WHOLE))
        self.assertEqual(uuid.UUID(self.requests[0].corr_id).version, 7)


class Nesting(Pair):
    """Spans that are open, by correlation id."""

    def test_within(self) -> None:
        tracing = Tracing("s", "http://127.0.0.1:9", sampling=1.0)
        self.addCleanup(tracing.shutdown, 0.0)
        spans, corr_id = OpenSpans(tracing), str(uuid7())
        outer, inner = begun(tracing.start("outer", corr_id)), begun(tracing.start("inner", corr_id))

        def parent() -> int | None:
            above = begun(spans.start("x", corr_id))._span.parent
            return above.span_id if above is not None else None

        def number(span: Span) -> int:
            return span._span.get_span_context().span_id

        with spans.within(outer):
            with spans.within(inner):
                self.assertEqual(parent(), number(inner))
            self.assertEqual(parent(), number(outer))
            with spans.within(None):
                self.assertEqual(parent(), number(outer))
        self.assertIsNone(parent())
        first, second = spans.within(outer), spans.within(inner)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        self.assertEqual(parent(), number(inner))
        second.__exit__(None, None, None)
        self.assertIsNone(parent())
        self.assertEqual(spans._open, {})


class OneTrace(OnSockets):
    """The real SDK, a real collector, a real Unix socket; client and server as two processes would have them."""

    def setUp(self) -> None:
        super().setUp()
        self.collector = Collector()
        self.addCleanup(self.collector.close)
        self.front, self.back = self.tracing("front"), self.tracing("back")
        self.metrics = Metrics()
        self.bus = Bus(reactor, self.metrics)
        spans = OpenSpans(self.back)
        self.bus.trace_with(spans)
        self.commands: list[Command] = []
        self.addCleanup(self.bus.serve("index", {"find": self.find}))
        self.server = OapServer(reactor, self.ask_bus, metrics=self.metrics, tracing=self.back, spans=spans)

    def tracing(self, service: str) -> Tracing:
        tracing = Tracing(service, self.collector.url, sampling=1.0)
        self.addCleanup(tracing.shutdown)
        return tracing

    def find(self, command: Command) -> str:
        self.commands.append(command)
        if command.body == "bad":
            raise conflict("no")
        return "found"

    async def ask_bus(self, request: Request) -> Response:
        self.requests.append(request)
        found = await self.bus.call("index", "find", request.payload.decode())
        return Response(payload=found.encode())

    async def client(self, *_endpoint: Any) -> OapClient:
        endpoint = UNIXClientEndpoint(reactor, str(self.listen_unix()))
        client = await OapClient.connect(reactor, endpoint, tracing=self.front)
        self.addCleanup(client.close)
        return client

    def sent(self) -> dict[str, tuple[str, Any]]:
        """Name → service and span, once all are out."""
        for tracing in (self.front, self.back):
            self.assertTrue(tracing.shutdown(10))
        return {span.name: (resource["service.name"], span) for resource, span in self.collector.spans()}

    async def test_http_oap_and_the_bus(self) -> None:
        client, corr_id = await self.client(), str(uuid7())
        # as `ron.web` begins one for a request that came with neither header
        http = begun(self.front.start_from("GET /v1/find", corr_id, None, {"route": "/v1/find"}))
        answer = await client.call(PROTO, 1, b"good", corr_id=corr_id, span=http)
        http.end(200)
        self.assertEqual(answer.payload, b"found")
        self.assertEqual((self.requests[0].corr_id, self.commands[0].corr_id), (corr_id, corr_id))
        spans = self.sent()
        self.assertEqual(
            {name: service for name, (service, _span) in spans.items()},
            {"GET /v1/find": "front", "oap.call": "front", "oap.request": "back", "bus.index.find": "back"},
        )
        self.assertEqual({span.trace_id for _service, span in spans.values()}, {uuid.UUID(corr_id).bytes})
        self.assertEqual({plain(span.attributes)["corr_id"] for _service, span in spans.values()}, {corr_id})
        chain = ["GET /v1/find", "oap.call", "oap.request", "bus.index.find"]
        above = b""
        for name in chain:
            _service, span = spans[name]
            self.assertEqual(span.parent_span_id, above, name)
            above = span.span_id
        said = plain(spans["oap.request"][1].attributes)
        self.assertEqual((said["route"], said["transport"], said["bytes"]), ("0x0201", "oap", 4))

    async def test_without_a_request_around_it_the_call_is_the_root(self) -> None:
        client = await self.client()
        await client.call(PROTO, 1, b"good")
        spans = self.sent()
        call, request = spans["oap.call"][1], spans["oap.request"][1]
        self.assertEqual((call.parent_span_id, request.parent_span_id), (b"", call.span_id))
        self.assertEqual(uuid.UUID(bytes=call.trace_id).version, 7)

    async def test_a_handler_that_calls_on(self) -> None:
        """A second hop hangs below the first without anybody saying so."""
        path = self.listen_unix()
        spans = OpenSpans(self.back)

        async def call_on(request: Request) -> Response:
            if request.code == 2:
                return Response(payload=b"second")
            return await onward.call(PROTO, 2)

        self.server.handler, self.server.spans = call_on, spans
        endpoint = UNIXClientEndpoint(reactor, str(path))
        onward = await OapClient.connect(reactor, endpoint, tracing=self.back, spans=spans)
        self.addCleanup(onward.close)
        first = await OapClient.connect(reactor, endpoint, tracing=self.front)
        self.addCleanup(first.close)
        self.assertEqual((await first.call(PROTO, 1)).payload, b"second")
        self.sent()
        found = [span for _resource, span in self.collector.spans()]
        self.assertEqual(len({span.trace_id for span in found}), 1)
        by_id = {span.span_id: span for span in found}
        leaf = next(s for s in found if s.span_id not in {each.parent_span_id for each in found})
        names = []
        while leaf is not None:
            names.append(leaf.name)
            leaf = by_id.get(leaf.parent_span_id)
        self.assertEqual(names, ["oap.request", "oap.call", "oap.request", "oap.call"])

    async def test_errors_show(self) -> None:
        client = await self.client()
        await self.assertFailure(Deferred.fromCoroutine(client.call(PROTO, 1, b"bad")), RonError)
        spans = self.sent()
        status = {name: plain(span.attributes).get("status") for name, (_service, span) in spans.items()}
        self.assertEqual(status, {"oap.call": 409, "oap.request": 409, "bus.index.find": None})
        self.assertEqual(plain(spans["oap.call"][1].attributes)["error.kind"], "Conflict")

    async def test_a_client_that_does_not_trace_still_says_what_it_works_for(self) -> None:
        plain_client = await OapClient.connect(reactor, UNIXClientEndpoint(reactor, str(self.listen_unix())))
        self.addCleanup(plain_client.close)
        corr_id = str(uuid7())
        await plain_client.call(PROTO, 1, b"good", corr_id=corr_id)
        spans = self.sent()
        self.assertEqual(set(spans), {"oap.request", "bus.index.find"})
        self.assertEqual(spans["oap.request"][1].trace_id, uuid.UUID(corr_id).bytes)
        self.assertEqual(spans["oap.request"][1].parent_span_id, b"")
