"""Limits at the listener, on real sockets where they are about sockets: floods, drips, bombs, who does not read."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Iterable
from typing import Any

import msgspec
from OpenSSL.SSL import Connection
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions, KeyPair
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from ron.auth import Authority, RootKeys
from ron.auth.pow import PowGate, PowSettings
from ron.kernel import Metrics
from ron.kernel.limits_config import LimitsConfig
from ron.kernel.tracing import Tracing
from ron.proto.errors import ErrorCode
from ron.web import Call, Edge, Endpoint, Raw, make_site
from ron.web import channel as channel_module
from ron.web.channel import PENALTY_S, TURNED_AWAY_S
from ron.web.site import RonSite
from tests.kernel.test_tracing import Collector
from tests.web.wire import OnTheWire, Response, Wire, chunked, exchange, request, split_response, until

BIG = 1_000_000


class Note(msgspec.Struct, forbid_unknown_fields=True):
    """A body."""

    text: str


class Limited(OnTheWire):
    """A site whose limits the test chooses; nothing but `rejected_total` and the wire is looked at."""

    def limited(self, *, body_limit: int | None = None, clock: Any = None, **limits: int) -> RonSite:
        self.edge = Edge(
            authority=self.authority,
            metrics=self.metrics,
            reactor=clock or self.clock,
            limits=LimitsConfig(**limits),
        )
        self.waiting: list[Deferred[Any]] = []
        self.big_calls = 0
        more = {} if body_limit is None else {"body_limit": body_limit}
        self.site = self.serve(self.endpoints(), **more)
        return self.site

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(method="GET", path="/small", handler=lambda call: {"peer": call.peer}, scope=None, hot=True),
            Endpoint(method="GET", path="/vital", handler=lambda call: {}, scope=None, hot=True, vital=True),
            Endpoint(method="GET", path="/klein", handler=lambda call: {}, scope=None),
            Endpoint(method="GET", path="/big", handler=self.big, scope=None, hot=True),
            Endpoint(
                method="GET", path="/huge", handler=lambda call: Raw(bytes(12 * BIG), "x/y"), scope=None, hot=True
            ),
            Endpoint(method="GET", path="/slow", handler=self.slow, scope=None, hot=True),
            Endpoint(method="GET", path="/poll", handler=self.slow, scope=None, hot=True, waits=True),
            Endpoint(method="POST", path="/note", handler=lambda call, note: note, scope=None, body=Note, hot=True),
        ]

    def big(self, _call: Call) -> Raw:
        self.big_calls += 1
        return Raw(b"x" * BIG, "application/octet-stream")

    def slow(self, _call: Call) -> Deferred[Any]:
        waiting: Deferred[Any] = Deferred()
        self.waiting.append(waiting)
        return waiting

    def rejected(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("rejected_total", {"reason": reason}) or 0.0

    def is_refusal(self, response: Response, status: int, code: ErrorCode) -> None:
        self.assertEqual((response.status, response.json["error"]["code"]), (status, code.value))
        if status in {429, 503}:
            self.assertIn(response.headers["retry-after"], {"1", "2", "3", "4", "5"})
            self.assertTrue(response.json["error"]["retryable"])

    @property
    def channel(self) -> Any:
        """The only connection's."""
        (channel,) = self.site.channels
        return channel


class Connections(Limited):
    """Refused at connect with a word, before anything is parsed."""

    async def test_the_one_too_many_is_told_and_closed(self) -> None:
        self.limited(connections=2)
        first, second = await self.wire(), await self.wire()
        await until(lambda: len(self.site.channels) == 2)
        third = await self.wire()
        response = await third.response()
        self.is_refusal(response, 503, ErrorCode.STORE_UNAVAILABLE)
        self.assertEqual(response.headers["connection"], "close")
        await third.end()
        self.assertEqual(self.rejected("connections"), 1)
        for wire in (first, second):
            wire.send(request("GET", "/small"))
            self.assertEqual((await wire.response()).status, 200)

    async def test_the_answer_is_seen_by_who_has_sent_its_request_already(self) -> None:
        """Closing with unread bytes would reset the connection under the answer."""
        self.limited(connections=1)
        await self.wire()
        await until(lambda: self.site.channels)
        for _ in range(20):
            wire = await self.wire()
            wire.send(request("POST", "/note", body=b"x" * 50_000))
            self.is_refusal(await wire.response(), 503, ErrorCode.STORE_UNAVAILABLE)
            self.assertFalse(wire.closed and wire.received)
            wire.abort()
            await until(lambda: len(self.site.channels) == 1)
        self.assertEqual(self.site.turned_away, 0)

    async def test_one_that_hangs_on_is_cut_off(self) -> None:
        self.limited(connections=1)
        await self.wire()
        await until(lambda: self.site.channels)
        wire = await self.wire()
        await wire.response()
        wire.transport.pauseProducing()  # type: ignore[union-attr]
        await until(lambda: len(self.site.channels) == 2 or wire.closed)
        self.clock.advance(TURNED_AWAY_S)
        await until(lambda: len(self.site.channels) == 1)

    async def test_a_flood_is_not_waited_for(self) -> None:
        self.patch(channel_module, "MAX_TURNED_AWAY", 0)
        self.limited(connections=1)
        await self.wire()
        await until(lambda: self.site.channels)
        for _ in range(10):
            wire = await self.wire()
            await wire.end()
        await until(lambda: len(self.site.channels) == 1)
        self.assertEqual(self.rejected("connections"), 10)

    async def test_a_place_that_becomes_free_is_given_away_again(self) -> None:
        self.limited(connections=1)
        for _ in range(5):
            wire = await self.wire()
            wire.send(request("GET", "/small"))
            self.assertEqual((await wire.response()).status, 200)
            wire.abort()
            await until(lambda: not self.site.channels)
        self.assertEqual(self.edge.peers.connections, 0)

    async def test_one_peers_flood_leaves_room_for_others(self) -> None:
        self.limited(connections=10, connections_per_peer=2)
        for _ in range(2):
            await self.wire()
        await until(lambda: len(self.site.channels) == 2)
        self.is_refusal(await (await self.wire()).response(), 503, ErrorCode.STORE_UNAVAILABLE)
        self.assertEqual(self.rejected("connections_per_peer"), 1)
        other = await self.wire_from("127.0.0.2")
        other.send(request("GET", "/small"))
        self.assertEqual((await other.response()).json, {"peer": "127.0.0.2"})

    async def wire_from(self, address: str) -> Wire:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port, bindAddress=(address, 0))
        wire: Wire = await endpoint.connect(Factory.forProtocol(Wire))
        self.addCleanup(until, lambda: wire.closed)
        self.addCleanup(wire.abort)
        return wire

    async def test_they_are_shown(self) -> None:
        self.limited()
        wire = await self.wire()
        wire.send(request("GET", "/small"))
        await wire.response()
        read = self.metrics.registry.get_sample_value
        self.assertEqual(read("open_connections", {"listener": "http"}), 1)
        wire.abort()
        await until(lambda: not self.site.channels)
        self.assertEqual(read("open_connections", {"listener": "http"}), 0)
        self.assertEqual(read("bytes_in_total"), len(request("GET", "/small")))
        self.assertGreater(read("bytes_out_total") or 0, 200)

    async def test_what_waits_in_a_pipeline_is_counted_once(self) -> None:
        self.limited()
        wire = await self.wire()
        asked = request("GET", "/slow") + request("POST", "/note", body=b'{"text":"a"}') + request("GET", "/small")
        wire.send(asked)
        await until(lambda: self.waiting)
        self.waiting.pop().callback(1)
        for _ in range(3):
            self.assertEqual((await wire.response()).status, 200)
        self.edge.traffic.flush()
        self.assertEqual(self.metrics.registry.get_sample_value("bytes_in_total"), len(asked))


class SlowLoris(Limited):
    """A connection that drips is cut, however it drips. Deadlines by the clock, bytes by real sockets."""

    async def drip(self, wire: Wire, piece: bytes, every_s: float, taken: Any) -> float:
        """Send `piece` again and again until the server hangs up; the seconds that took."""
        for n in range(100):
            before = taken()
            wire.send(piece)
            await until(lambda before=before: not self.site.channels or taken() != before)
            self.clock.advance(every_s)
            if self.channel_closing():
                return (n + 1) * every_s
        raise AssertionError("it drips on")

    def channel_closing(self) -> bool:
        return not self.site.channels or self.channel.transport.disconnecting

    def bytes_in(self) -> float:
        self.edge.traffic.flush()
        return self.metrics.registry.get_sample_value("bytes_in_total") or 0.0

    async def test_a_head_that_drips(self) -> None:
        self.limited()
        for start in (b"G", b"GET /small HTTP/1.1\r\n", b"GET /small HTTP/1.1\r\nX: "):
            wire = await self.wire()
            wire.send(start)
            await until(lambda: self.site.channels and (self.channel._buffer or self.channel.requests))
            self.assertEqual(await self.drip(wire, b"a", 4.0, self.bytes_in), 16.0)
            await wire.end()
            self.assertEqual(wire.received, b"")
            await until(lambda: not self.site.channels)
        self.assertEqual(self.rejected("slow_head"), 3)

    async def test_the_second_head_of_a_connection_too(self) -> None:
        self.limited()
        wire = await self.wire()
        wire.send(request("GET", "/small"))
        await wire.response()
        self.clock.advance(14.0)
        wire.send(request("GET", "/small"), b"G")
        await wire.response()
        self.assertEqual(await self.drip(wire, b"E", 5.0, self.bytes_in), 15.0)
        await wire.end()

    async def test_a_body_that_drips_is_told_408(self) -> None:
        for headers, piece in (({"Content-Length": "1000"}, b"x"), ({"Transfer-Encoding": "chunked"}, b"1\r\nx\r\n")):
            self.limited()
            wire = await self.wire()
            wire.send(request("POST", "/note", headers))
            await until(lambda: self.site.channels and self.channel.receiving)
            self.assertEqual(await self.drip(wire, piece, 4.0, self.bytes_in), 16.0)
            self.assertEqual((await wire.response()).status, 408)
            await wire.end()
        self.assertEqual(self.rejected("slow_body"), 2)

    async def test_chunk_headers_without_chunks_are_no_progress(self) -> None:
        self.limited()
        wire = await self.wire()
        wire.send(request("POST", "/note", {"Transfer-Encoding": "chunked"}), b"400;")
        await until(lambda: self.site.channels and self.channel.receiving)
        self.assertEqual(await self.drip(wire, b"a", 4.0, self.bytes_in), 16.0)
        await wire.end()

    async def test_a_refused_body_that_drips(self) -> None:
        """The 413 was sent; what follows is read for a while, and no longer."""
        self.limited(body_limit=10)
        wire = await self.wire()
        wire.send(request("POST", "/note", {"Content-Length": "100000"}))
        self.is_refusal(await wire.response(), 413, ErrorCode.TOO_LARGE)
        await self.drip(wire, b"x", 4.0, self.bytes_in)
        await wire.end()
        self.assertEqual(wire.received, b"")

    async def test_a_body_that_comes_steadily_is_waited_for(self) -> None:
        self.limited()
        wire = await self.wire()
        body = b'{"text":"%s"}' % (b"x" * 100_000)
        wire.send(request("POST", "/note", {"Content-Length": str(len(body))}))
        await until(lambda: self.site.channels and self.channel.receiving)
        for start in range(0, len(body), 10_000):
            before = self.bytes_in()
            wire.send(body[start : start + 10_000])
            await until(lambda before=before: self.bytes_in() != before)
            self.clock.advance(8.0 if start + 10_000 < len(body) else 0)
        self.assertEqual((await wire.response()).status, 200)
        self.assertEqual(self.rejected("slow_body"), 0)

    async def test_a_body_that_stops_after_a_good_start(self) -> None:
        self.limited()
        wire = await self.wire()
        wire.send(request("POST", "/note", {"Content-Length": "1000000"}), b"x" * 500_000)
        await until(lambda: self.bytes_in() > 500_000)
        self.clock.advance(15.0)
        self.assertEqual((await wire.response()).status, 408)

    async def test_an_idle_connection_may_idle_so_long_after_each_answer(self) -> None:
        self.limited()
        wire = await self.wire()
        for _ in range(3):
            self.clock.advance(14.0)
            wire.send(request("GET", "/small"))
            self.assertEqual((await wire.response()).status, 200)
        wire.send(request("GET", "/slow"))
        await until(lambda: self.waiting)
        self.clock.advance(20.0)
        self.waiting.pop().callback(1)
        self.assertEqual((await wire.response()).status, 200)
        self.clock.advance(14.0)
        self.assertFalse(self.channel_closing())
        self.clock.advance(1.0)
        await wire.end()
        self.assertEqual((self.rejected("slow_head"), self.rejected("slow_body")), (0, 0))

    async def test_it_may_be_given_longer_to_idle_and_no_longer_to_ask(self) -> None:
        self.limited(idle_ms=60_000)
        silent, wire = await self.wire(), await self.wire()
        wire.send(request("GET", "/small"))
        self.assertEqual((await wire.response()).status, 200)
        self.clock.advance(15.0)
        # one that never asked is given the time of a head, and no more
        await silent.end()
        self.clock.advance(40.0)
        wire.send(request("GET", "/small"))
        self.assertEqual((await wire.response()).status, 200)
        self.clock.advance(59.0)
        self.assertFalse(self.channel_closing())
        self.clock.advance(1.0)
        await wire.end()
        self.assertEqual(self.rejected("slow_head"), 0)

    async def test_a_head_that_drips_after_a_long_idle_time(self) -> None:
        self.limited(idle_ms=60_000)
        wire = await self.wire()
        wire.send(request("GET", "/small"))
        self.assertEqual((await wire.response()).status, 200)
        self.clock.advance(30.0)
        wire.send(b"GET /sm")
        await until(lambda: self.channel._buffer)
        self.clock.advance(14.0)
        self.assertFalse(self.channel_closing())
        self.clock.advance(1.0)
        await wire.end()
        self.assertEqual(self.rejected("slow_head"), 1)

    async def test_in_real_time(self) -> None:
        """The same without a clock of ours: short limits, a byte every 20 ms."""
        self.limited(clock=reactor, read_idle_ms=200)
        wire = await self.wire()
        wire.send(b"GET /small HTTP/1.1\r\nX: ")
        for _ in range(250):
            await deferLater(reactor, 0.02)
            if wire.closed:
                break
            wire.send(b"a")
        self.assertTrue(wire.closed)


class SlowReaders(Limited):
    """An answer that nobody takes does not stay."""

    async def stuck(self, *requests: bytes) -> Wire:
        """A connection that asked and does not read."""
        wire = await self.wire()
        wire.send(request("GET", "/small"))
        await wire.response()
        wire.transport.pauseProducing()  # type: ignore[union-attr]
        wire.send(*requests)
        await until(lambda: self.site.channels and self.channel._sending is not None)
        return wire

    async def test_who_does_not_read_is_cut_off(self) -> None:
        self.limited(write_timeout_ms=10_000)
        for asked in (request("GET", "/big") * 12, request("GET", "/huge", {"Connection": "close"})):
            wire = await self.stuck(asked)
            self.clock.pump([0.5] * 19)
            self.assertEqual(len(self.site.channels), 1, "9.5 s are not 10 s")
            # what the kernel took is seen at a look, a quarter of the time later at most
            self.clock.pump([0.5] * 7)
            await until(lambda: not self.site.channels)
            wire.transport.resumeProducing()  # type: ignore[union-attr]
            await wire.end()
        self.assertEqual(self.rejected("slow_reader"), 2)

    async def test_who_reads_slowly_but_steadily_gets_it_all(self) -> None:
        self.limited(write_timeout_ms=10_000)
        wire = await self.stuck(*[request("GET", "/big")] * 12)
        rounds = 0
        while self.channel._sending is not None:
            received = len(wire.received)
            wire.transport.resumeProducing()  # type: ignore[union-attr]
            await until(lambda received=received: len(wire.received) > received + 200_000 or not self.channel._sending)
            wire.transport.pauseProducing()  # type: ignore[union-attr]
            self.clock.advance(8.0)
            rounds += 1
        wire.transport.resumeProducing()  # type: ignore[union-attr]
        for _ in range(12):
            self.assertEqual(len((await wire.response()).body), BIG)
        self.assertGreater(rounds, 2)
        self.assertEqual(self.rejected("slow_reader"), 0)

    async def test_a_pipeline_of_big_answers_does_not_fill_our_memory(self) -> None:
        """One answer waits in our buffers, not forty; the kernel's hold a few more."""
        self.limited()
        wire = await self.stuck(*[request("GET", "/big")] * 40)
        await deferLater(reactor, 0.05)
        self.assertLess(self.big_calls, 20)
        wire.transport.resumeProducing()  # type: ignore[union-attr]
        for _ in range(40):
            self.assertEqual(len((await wire.response()).body), BIG)
        self.assertEqual(self.big_calls, 40)

    async def test_nothing_more_is_read_from_who_does_not_read(self) -> None:
        self.limited()
        wire = await self.stuck(*[request("GET", "/big")] * 12)
        flood = request("GET", "/small") * 1000
        for _ in range(400):
            wire.send(flood)
        await deferLater(reactor, 0.1)
        held = sum(map(len, self.channel._dataBuffer)) + len(self.channel._buffer)
        self.assertLess(held, 500_000)
        wire.abort()

    async def test_an_answer_to_a_request_in_time_is_no_slow_reader(self) -> None:
        self.limited()
        wire = await self.wire()
        wire.send(request("GET", "/big"))
        self.assertEqual(len((await wire.response()).body), BIG)
        self.clock.advance(12.0)
        wire.send(request("GET", "/small"))
        self.assertEqual((await wire.response()).status, 200)


class OverTls(SlowReaders):
    """The same through TLS, whose own buffers lie between us and the socket."""

    def setUp(self) -> None:
        super().setUp()
        pair = KeyPair.generate(size=2048)
        self.certificate = pair.selfSignedCert(1, commonName="localhost")

    def serve(self, endpoints: Iterable[Endpoint], **limits: int) -> RonSite:
        site = make_site(self.edge, endpoints, **limits)
        listening = reactor.listenSSL(0, site, self.certificate.options(), interface="127.0.0.1")
        self.port = listening.getHost().port
        self.addCleanup(until, lambda: not site.channels)
        self.addCleanup(listening.stopListening)
        return site

    async def wire(self) -> Wire:
        anybody = CertificateOptions()
        endpoint = wrapClientTLS(_Unverified(anybody.getContext()), TCP4ClientEndpoint(reactor, "127.0.0.1", self.port))
        wire: Wire = await endpoint.connect(Factory.forProtocol(Wire))
        self.addCleanup(until, lambda: wire.closed)
        self.addCleanup(wire.abort)
        return wire

    async def test_the_one_too_many_is_not_worth_a_handshake(self) -> None:
        self.limited(connections=1)
        first = await self.wire()
        first.send(request("GET", "/small"))
        await first.response()
        second = await self.wire()
        await second.end()
        self.assertEqual((second.received, self.rejected("connections")), (b"", 1))
        await until(lambda: len(self.site.channels) == 1)


@implementer(IOpenSSLClientConnectionCreator)
class _Unverified:
    """TLS to a server whose certificate nobody looks at."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def clientConnectionForTLS(self, protocol: Any) -> Connection:
        return Connection(self._context, None)


class Rates(Limited):
    """Requests, bytes and streams of one peer; work of all."""

    async def test_requests_a_second(self) -> None:
        self.limited(requests_per_second_per_peer=5)
        statuses = []
        for _ in range(8):
            response = await self.ask(request("GET", "/small"))
            statuses.append(response.status)
        self.assertEqual(statuses, [200] * 5 + [429] * 3)
        self.is_refusal(response, 429, ErrorCode.BACKPRESSURE)
        self.assertEqual((self.rejected("rate"), self.counted("-", "GET", 429)), (3, 3))
        self.clock.advance(1.0)
        self.assertEqual((await self.ask(request("GET", "/klein"))).status, 200)

    async def test_unknown_paths_count_too(self) -> None:
        self.limited(requests_per_second_per_peer=2)
        statuses = [(await self.ask(request("GET", "/nowhere"))).status for _ in range(3)]
        self.assertEqual(statuses, [404, 404, 429])

    async def test_health_is_answered_under_any_load(self) -> None:
        self.limited(requests_per_second_per_peer=1, concurrency=1)
        slow = await self.wire()
        slow.send(request("GET", "/slow"))
        await until(lambda: self.waiting)
        self.assertEqual((await self.ask(request("GET", "/small"))).status, 429)
        for _ in range(5):
            self.assertEqual((await self.ask(request("GET", "/vital"))).status, 200)

    async def test_a_flood_on_one_connection_is_refused_slowly(self) -> None:
        """Nothing is lost, nothing is worked on: a refusal every 50 ms."""
        self.limited(requests_per_second_per_peer=1)
        wire = await self.wire()
        wire.send(request("GET", "/small") * 4)
        self.assertEqual((await wire.response()).status, 200)
        for _ in range(3):
            self.is_refusal(await wire.response(), 429, ErrorCode.BACKPRESSURE)
            await deferLater(reactor, 0.02)
            self.assertEqual(wire.received, b"")
            self.clock.advance(PENALTY_S)
        self.clock.advance(1.0)
        wire.send(request("GET", "/small"))
        self.assertEqual((await wire.response()).status, 200)

    async def test_bytes_are_paid_for_by_the_next_request(self) -> None:
        self.limited(bytes_per_second_per_peer=BIG)
        self.assertEqual((await self.ask(request("GET", "/big"))).status, 200)
        self.is_refusal(await self.ask(request("GET", "/small")), 429, ErrorCode.BACKPRESSURE)
        self.assertEqual(self.rejected("bytes"), 1)
        self.clock.advance(1.0)
        self.assertEqual((await self.ask(request("GET", "/small"))).status, 200)

    async def test_a_debt_that_takes_long_says_how_long(self) -> None:
        self.limited(bytes_per_second_per_peer=BIG // 20)
        await self.ask(request("GET", "/big"))
        response = await self.ask(request("GET", "/small"))
        self.assertEqual((response.status, response.headers["retry-after"]), (429, "20"))

    async def test_who_owes_may_not_send_a_body_either(self) -> None:
        """Refused at its head, before the megabytes."""
        self.limited(bytes_per_second_per_peer=BIG)
        await self.ask(request("GET", "/big"))
        wire = await self.wire()
        wire.send(request("POST", "/note", {"Content-Length": "1000000", "Expect": "100-continue"}))
        response = await wire.response()
        self.is_refusal(response, 429, ErrorCode.BACKPRESSURE)
        self.assertEqual(response.headers["connection"], "close")
        await wire.end()

    async def test_streams_of_one_peer(self) -> None:
        self.limited(streams_per_peer=2)
        wires = [await self.wire() for _ in range(3)]
        for n, wire in enumerate(wires[:2], 1):
            wire.send(request("GET", "/poll"))
            await until(lambda n=n: len(self.waiting) == n)
        wires[2].send(request("GET", "/small"))
        self.is_refusal(await wires[2].response(), 429, ErrorCode.BACKPRESSURE)
        self.assertEqual(self.rejected("streams"), 1)
        wires[0].abort()
        await until(lambda: len(self.site.channels) == 2)
        self.clock.advance(PENALTY_S)
        wires[2].send(request("GET", "/small"))
        self.assertEqual((await wires[2].response()).status, 200)

    async def test_concurrency_of_all(self) -> None:
        self.limited(concurrency=1)
        first, second = await self.wire(), await self.wire()
        first.send(request("GET", "/slow"))
        await until(lambda: self.waiting)
        for path in ("/small", "/klein"):
            second.send(request("GET", path))
            self.is_refusal(await second.response(), 503, ErrorCode.STORE_UNAVAILABLE)
            self.assertEqual(self.counted(path, "GET", 503), 1)
        self.assertEqual(self.rejected("concurrency"), 2)
        self.waiting.pop().callback(1)
        await first.response()
        second.send(request("GET", "/small"))
        self.assertEqual((await second.response()).status, 200)

    async def test_long_polls_take_no_place(self) -> None:
        self.limited(concurrency=1)
        for n in range(1, 4):
            (await self.wire()).send(request("GET", "/poll"))
            await until(lambda n=n: len(self.waiting) == n)
        self.assertEqual((await self.ask(request("GET", "/small"))).status, 200)

    async def test_every_place_is_given_back(self) -> None:
        """By answers, failures, bad bodies, and clients that go away."""
        self.limited(concurrency=3, streams_per_peer=3)
        for _ in range(5):
            await self.ask(request("POST", "/note", body=b"{"))
            await self.ask(request("GET", "/klein"))
            await self.ask(request("GET", "/nowhere"))
            wire = await self.wire()
            wire.send(request("GET", "/slow"))
            await until(lambda: self.waiting)
            wire.abort()
            self.waiting.clear()
            await until(lambda: not any(channel.busy for channel in self.site.channels))
        self.assertEqual(self.edge.concurrency.busy, 0)
        self.assertEqual(self.edge.peers.connect("127.0.0.1").streams, 0)

    async def test_new_limits_hold_at_once(self) -> None:
        self.limited()
        wire = await self.wire()
        wire.send(request("GET", "/small"))
        self.assertEqual((await wire.response()).status, 200)
        self.edge.apply(LimitsConfig(requests_per_second_per_peer=1, connections=1, read_idle_ms=1000))
        wire.send(request("GET", "/small") * 2)
        self.assertEqual([(await wire.response()).status for _ in range(2)], [200, 429])
        self.assertEqual((await (await self.wire()).response()).status, 503)


class Sizes(Limited):
    """Headers and bodies by the config."""

    async def test_headers(self) -> None:
        self.limited(headers_bytes=2048)
        lines = b"".join(b"X-%d: %s\r\n" % (n, b"a" * 500) for n in range(5))
        wire = await self.wire()
        wire.send(b"GET /small HTTP/1.1\r\nHost: h\r\n", lines, b"\r\n")
        response = await wire.response()
        self.is_refusal(response, 400, ErrorCode.BAD_REQUEST)
        self.assertIn("2 KiB", response.json["error"]["hint"])
        await wire.end()
        lines = b"".join(b"X-%d: %s\r\n" % (n, b"a" * 500) for n in range(3))
        self.assertEqual((await self.ask(b"GET /small HTTP/1.1\r\nHost: h\r\n", lines, b"\r\n")).status, 200)

    async def test_the_smaller_body_limit_holds(self) -> None:
        for own, process, size in ((None, 2000, 2000), (1000, 2000, 1000), (3000, 2000, 2000)):
            self.limited(body_limit=own, body_bytes=process)
            fits = b'{"text":"%s"}' % (b"x" * (size - 11))
            self.assertEqual((await self.ask(request("POST", "/note", body=fits))).status, 200)
            self.is_refusal(await self.ask(request("POST", "/note", body=fits + b" ")), 413, ErrorCode.TOO_LARGE)


class Compressed(Limited):
    """Bodies with a Content-Encoding."""

    async def post(self, body: bytes, encoding: str, **headers: str) -> Response:
        return await self.ask(request("POST", "/note", {"Content-Encoding": encoding, **headers}, body))

    async def test_gzip_is_a_body_like_any_other(self) -> None:
        self.limited()
        body = gzip.compress(b'{"text":"a"}')
        self.assertEqual((await self.post(body, "gzip")).json, {"text": "a"})
        self.assertEqual((await self.post(b'{"text":"a"}', "identity")).json, {"text": "a"})
        wire = await self.wire()
        wire.send(request("POST", "/note", {"Transfer-Encoding": "chunked", "Content-Encoding": "gzip"}), chunked(body))
        self.assertEqual((await wire.response()).json, {"text": "a"})

    async def test_bombs(self) -> None:
        self.limited(body_limit=200_000, decompress_ratio=10)
        bomb = gzip.compress(b'{"text":"%s"}' % (b"x" * 150_000))
        self.is_refusal(await self.post(bomb, "gzip"), 413, ErrorCode.TOO_LARGE)
        random = gzip.compress(b'{"text":"%s"}' % os.urandom(120_000).hex().encode())
        self.assertLess(len(random), 200_000)
        self.is_refusal(await self.post(random, "gzip"), 413, ErrorCode.TOO_LARGE)
        self.assertEqual((self.rejected("ratio_cap"), self.rejected("decompress_cap")), (1, 1))

    async def test_damaged(self) -> None:
        self.limited()
        good = gzip.compress(b'{"text":"a"}')
        for body in (good[:-1], good + b"x", b'{"text":"a"}', b""):
            self.is_refusal(await self.post(body, "gzip"), 400, ErrorCode.BAD_REQUEST)

    async def test_415(self) -> None:
        self.limited()
        wire = await self.wire()
        for encodings in ("br", "gzip, gzip", "gzip\r\nContent-Encoding: gzip", "\xff"):
            wire.send(request("POST", "/note", {"Content-Encoding": encodings}, gzip.compress(b'{"text":"a"}')))
            response = await wire.response()
            self.is_refusal(response, 415, ErrorCode.UNSUPPORTED)
            self.assertIn("gzip", response.headers["accept-encoding"])


class InMemory(SynchronousTestCase):
    """What needs no socket."""

    def setUp(self) -> None:
        self.clock, self.metrics = Clock(), Metrics()
        self.authority = Authority(RootKeys.generate(), audience="ron-node", now=lambda: 1_800_000_000.0)

    def edge(self, **fields: Any) -> Edge:
        return Edge(authority=self.authority, metrics=self.metrics, reactor=self.clock, **fields)

    def answers(self, edge: Edge, endpoint: Endpoint, *pieces: bytes) -> list[Response]:
        written = exchange(make_site(edge, [endpoint]), *pieces)
        answers = []
        while written:
            whole = split_response(written)
            assert whole is not None
            answers.append(whole[0])
            written = whole[1]
        return answers

    def test_no_timer_is_left_when_the_connection_is_gone(self) -> None:
        edge = self.edge(limits=LimitsConfig(requests_per_second_per_peer=1))
        endpoint = Endpoint(method="GET", path="/x", handler=lambda call: {}, scope=None, hot=True)
        answers = self.answers(edge, endpoint, request("GET", "/x") * 3)
        self.assertEqual([answer.status for answer in answers], [200, 429])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_gate_stands_between_capability_and_body(self) -> None:
        gate = PowGate(
            os.urandom(32), PowSettings(auto_tune=False, difficulty=1), time.time, self.metrics, hash_rate_per_s=1e6
        )
        edge, called = self.edge(pow=gate), []
        for gated, scope, status in ((True, "a:b", 401), (True, None, 429), (False, None, 400)):
            endpoint = Endpoint(
                method="POST", path="/x", handler=called.append, scope=scope, body=Note, gate=gated, hot=True
            )
            (answer,) = self.answers(edge, endpoint, request("POST", "/x", body=b"not json"))
            self.assertEqual(answer.status, status)
            self.assertEqual("pow-challenge" in answer.headers, status == 429)
        self.assertEqual(called, [])

    def test_a_call_is_a_span_with_its_status_and_correlation_id(self) -> None:
        collector = Collector()
        self.addCleanup(collector.close)
        tracing = Tracing("ron-node", collector.url, sampling=1.0)

        def handler(_call: Call) -> Any:
            raise KeyError("bug")

        corr_id = "0190d4a0-0000-7000-8000-000000000001"
        endpoint = Endpoint(method="GET", path="/by/<x>", handler=lambda call, x: handler(call), scope=None, hot=True)
        self.answers(self.edge(tracer=tracing), endpoint, request("GET", "/by/me", {"X-Corr-ID": corr_id}))
        self.flushLoggedErrors(KeyError)
        self.assertTrue(tracing.shutdown(10))
        ((_resource, span),) = collector.spans()
        self.assertEqual((span.name, span.trace_id.hex()), ("GET /by/<x>", corr_id.replace("-", "")))
        said = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
        self.assertEqual((said["status"], said["route"]), (500, "/by/<x>"))

    def test_the_bytes_of_a_capability_are_charged(self) -> None:
        token = self.authority.mint(self.caveats(scope="a:b", bytes_per_day="100"))
        endpoint = Endpoint(
            method="GET", path="/x", handler=lambda call: Raw(b"x" * 99, "text/plain"), scope="a:b", hot=True
        )
        asked = request("GET", "/x", {"Authorization": f"Bearer {token}"})
        answers = self.answers(self.edge(), endpoint, asked * 3)
        self.assertEqual([answer.status for answer in answers], [200, 200, 429])

    def caveats(self, **values: str) -> Any:
        from ron.auth import Caveat

        return [Caveat(name, value) for name, value in values.items()]
