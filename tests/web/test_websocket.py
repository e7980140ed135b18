"""WebSockets at the edge: who gets one, what it may send, how it ends. The other end is wsproto's own client."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import ensureDeferred
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)

from ron.auth import Authority, Caveat, RootKeys
from ron.auth.revocations import Revocation, Revocations
from ron.kernel import Metrics
from ron.kernel.limits_config import LimitsConfig
from ron.proto.errors import bad_request
from ron.web import Call, Edge, make_site
from ron.web.websocket import (
    CLOSE_S,
    HOPELESS,
    IDLE_S,
    LOOK_S,
    MAX_MESSAGE_BYTES,
    PING_S,
    QUEUE,
    Query,
    Sockets,
    WebSocket,
    websocket_endpoint,
)
from tests.web.wire import OnTheWire, Response, request, split_response, until
from tests.web.wsclient import HANDSHAKE, KEY, Client, Wire

SCOPE = ("scope", "echo:read")


class Echo:
    """Says again what it hears, and notes what becomes of it."""

    def __init__(self, owner: str, query: Query) -> None:
        self.owner = owner
        self.query = query
        self.socket: WebSocket | None = None
        self.heard: list[str] = []
        self.ended = 0

    def opened(self, socket: WebSocket) -> None:
        self.socket = socket
        socket.send("welcome")

    def received(self, message: str) -> None:
        self.heard.append(message)
        if message == "break":
            raise ValueError("a mistake of the session's")
        assert self.socket is not None
        self.socket.send(message)

    def closed(self) -> None:
        self.ended += 1


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.now = 1_800_000_000.0
        self.metrics = Metrics()
        self.keys = RootKeys.generate()
        self.revocations = Revocations(self.keys)
        self.authority = Authority(self.keys, audience="ron-node", now=lambda: self.now, revocations=self.revocations)
        self.edge = Edge(authority=self.authority, metrics=self.metrics, reactor=self.clock)
        self.sessions: list[Echo] = []
        self.sockets = Sockets("echo", limit=3, limit_each=2, origins=frozenset({"https://known.example"}))
        endpoint = websocket_endpoint(
            "/echo", scope="echo:read", accept=self.accept, enforces=frozenset({"app"}), sockets=self.sockets
        )
        self.site = make_site(self.edge, [endpoint])

    def accept(self, call: Call, query: Query) -> Echo:
        if "refuse" in query:
            raise bad_request("refused")
        assert call.capability is not None
        session = Echo(next((c.value for c in call.capability.caveats if c.name == "app"), ""), query)
        self.sessions.append(session)
        return session

    def token(self, *caveats: tuple[str, str]) -> str:
        return self.authority.mint(Caveat(*c) for c in (SCOPE, *caveats))

    def client(self, *caveats: tuple[str, str]) -> Client:
        """One that is connected and welcomed."""
        client = Client(self.site)
        accepted, welcome = client.connect(self.token(*caveats))
        self.assertIsInstance(accepted, AcceptConnection)
        self.assertEqual(welcome.data, "welcome")
        self.addCleanup(lambda: client.channel in self.site.channels and client.gone())
        return client

    def plain(self, headers: dict[str, str], *, token: str | None = "", method: str = "GET", **more: Any) -> Response:
        """The answer to a request that is not what it should be."""
        sent = {"Authorization": f"Bearer {token or self.token()}", **headers} if token is not None else headers
        channel, transport = self.site.buildProtocol(None), Wire()
        channel.makeConnection(transport)
        channel.dataReceived(request(method, "/echo", sent, **more))
        whole = split_response(transport.value(), headless=method == "HEAD")
        assert whole is not None
        channel.connectionLost(Failure(connectionDone.value))
        return whole[0]

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


class WhoGetsOne(Case):
    """The same pipeline as every other call."""

    def refused(self, events: list[Event]) -> int:
        self.assertIsInstance(events[0], RejectConnection)
        self.assertEqual(self.sessions, [])
        return int(events[0].status_code)

    def test_without_a_capability(self) -> None:
        self.assertEqual(self.refused(Client(self.site).connect(None)), 401)

    def test_with_another_scope(self) -> None:
        token = self.authority.mint([Caveat("scope", "echo:write")])
        self.assertEqual(self.refused(Client(self.site).connect(token)), 403)

    def test_with_a_caveat_that_is_not_enforced(self) -> None:
        self.assertEqual(self.refused(Client(self.site).connect(self.token(("tenant", "t1")))), 403)

    def test_from_another_sites_page(self) -> None:
        for origin in ("https://evil.example", "null", "http://localhost", ""):
            self.assertEqual(self.refused(Client(self.site).connect(self.token(), headers={"Origin": origin})), 403)

    def test_from_a_page_that_is_named(self) -> None:
        events = Client(self.site).connect(self.token(), headers={"Origin": "https://known.example"})
        self.assertIsInstance(events[0], AcceptConnection)

    def test_refused_by_the_endpoint(self) -> None:
        self.assertEqual(self.refused(Client(self.site).connect(self.token(), "/echo?refuse=1")), 400)

    def test_a_query_parameter_twice(self) -> None:
        self.assertEqual(self.refused(Client(self.site).connect(self.token(), "/echo?a=1&a=2")), 400)

    def test_no_websocket_at_all(self) -> None:
        for headers in ({}, {"Upgrade": "h2c", "Connection": "Upgrade"}, {**HANDSHAKE, "Sec-WebSocket-Version": "8"}):
            answer = self.plain(headers)
            self.assertEqual((answer.status, answer.json["error"]["code"]), (426, "Unsupported"))
            self.assertEqual(answer.headers["sec-websocket-version"], "13")

    def test_not_by_get_or_http_1_0(self) -> None:
        self.assertEqual(self.plain(HANDSHAKE, method="HEAD").status, 426)
        self.assertEqual(self.plain(HANDSHAKE, version="1.0").status, 426)
        self.assertEqual(self.plain(HANDSHAKE, method="POST").status, 405)

    def test_a_body(self) -> None:
        self.assertEqual(self.plain(HANDSHAKE, body=b"{}").status, 400)

    def test_a_broken_handshake(self) -> None:
        for broken in (
            {"Sec-WebSocket-Key": "short"},
            {"Sec-WebSocket-Key": "\xe9" * 24},
            {"Sec-WebSocket-Key": ""},
            {"Sec-WebSocket-Key": KEY[:-1]},
            {"Connection": "keep-alive"},
            {"Connection": "\xff"},
        ):
            answer = self.plain({**HANDSHAKE, **broken})
            self.assertEqual((answer.status, answer.json["error"]["code"]), (400, "BadRequest"), broken)

    def test_too_many(self) -> None:
        for app in ("a", "a", "b"):
            self.client(("app", app))
        for app, why in (("a", "at most 2"), ("c", "too many")):
            answer = self.plain(HANDSHAKE, token=self.token(("app", app)))
            self.assertEqual(answer.status, 429)
            self.assertIn("retry-after", answer.headers)
            self.assertIn(why, answer.json["error"]["message"])
        self.assertEqual(len(self.sockets.open), 3)

    def test_one_that_has_gone_makes_room(self) -> None:
        clients = [self.client(("app", "a")) for _ in range(2)]
        clients[0].gone()
        self.assertEqual([session.ended for session in self.sessions], [1, 0])
        self.client(("app", "a"))

    def test_accepted_with_a_correlation_id_and_counted(self) -> None:
        corr_id = "01890000-0000-7000-8000-000000000000"
        client = Client(self.site)
        accepted, _welcome = client.connect(self.token(), headers={"X-Corr-ID": corr_id})
        self.assertIn((b"x-corr-id", corr_id.encode()), accepted.extra_headers)
        self.assertEqual(self.counted("http_requests_total", route="/echo", method="GET", status="101"), 1)
        self.assertEqual(self.counted("inflight_requests", route="/echo"), 1)
        client.gone()
        self.assertEqual(self.counted("inflight_requests", route="/echo"), 0)

    def test_no_extension_is_agreed_to(self) -> None:
        """Compression would let a few bytes become many."""
        client = Client(self.site)
        offer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
        accepted = client.connect(self.token(), headers=offer)[0]
        self.assertEqual((type(accepted), accepted.extensions), (AcceptConnection, []))


class Talking(Case):
    """Messages in and out."""

    def test_both_ways(self) -> None:
        client = self.client()
        self.assertEqual([e.data for e in client.exchange(TextMessage("grüß"), TextMessage("gott"))], ["grüß", "gott"])

    def test_in_parts(self) -> None:
        client = self.client()
        parts = [TextMessage("a", message_finished=False), Ping(b"1"), TextMessage("b")]
        pong, message = client.exchange(*parts)
        self.assertEqual((type(pong), message.data), (Pong, "ab"))

    def test_frames_with_the_handshake(self) -> None:
        """A client that does not wait for the answer loses nothing."""
        client = Client(self.site)
        head = client.ws.send(
            Request("localhost", "/echo", extra_headers=[(b"Authorization", f"Bearer {self.token()}".encode())])
        )
        masked = bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi"
        client.channel.dataReceived(head + masked)
        self.assertEqual([getattr(e, "data", None) for e in client.events()], [None, "welcome", "hi"])

    def test_byte_by_byte(self) -> None:
        client = self.client()
        for byte in client.ws.send(TextMessage("slowly")):
            client.channel.dataReceived(bytes([byte]))
        self.assertEqual([e.data for e in client.events()], ["slowly"])

    def test_what_the_query_says(self) -> None:
        Client(self.site).connect(self.token(), "/echo?after=7&x=")
        self.assertEqual(self.sessions[0].query, {"after": "7", "x": ""})

    def test_bytes_are_charged_to_the_capability(self) -> None:
        client = Client(self.site)
        client.connect(self.token(("bytes_per_day", "2000")))
        self.assertEqual(len(client.exchange(TextMessage("x" * 3000))), 1)
        self.clock.advance(LOOK_S)
        self.assertEqual([e.code for e in client.events()], [1008])


class Ending(Case):
    """Who ends it, and what the other side is told."""

    def ends(self, client: Client, events: list[Event], code: int) -> str:
        (close,) = events
        self.assertIsInstance(close, CloseConnection)
        self.assertEqual(close.code, code)
        return close.reason or ""

    def test_the_client_says_goodbye(self) -> None:
        client = self.client()
        self.ends(client, client.exchange(CloseConnection(1000, "bye")), 1000)
        self.assertTrue(client.transport.disconnecting)
        client.gone()
        self.assertEqual((self.sessions[0].ended, self.sockets.open), (1, set()))

    def test_after_goodbye_nothing_is_sent(self) -> None:
        client = self.client()
        client.exchange(CloseConnection(1000))
        assert self.sessions[0].socket is not None
        self.sessions[0].socket.send("too late")
        self.assertEqual(client.events(), [])

    def test_too_long_a_message(self) -> None:
        client = self.client()
        (echo,) = client.exchange(TextMessage("x" * MAX_MESSAGE_BYTES))
        self.assertEqual(len(echo.data), MAX_MESSAGE_BYTES)
        self.ends(client, client.exchange(TextMessage("x" * (MAX_MESSAGE_BYTES + 1))), 1009)
        self.assertEqual(len(self.sessions[0].heard), 1)

    def test_too_long_a_message_in_parts(self) -> None:
        """Characters of several bytes count as what they are."""
        client = self.client()
        part = TextMessage("ü" * (MAX_MESSAGE_BYTES // 4), message_finished=False)
        self.ends(client, client.exchange(part, part, part), 1009)

    def test_no_text(self) -> None:
        client = self.client()
        self.ends(client, client.exchange(BytesMessage(b"\x00")), 1003)

    def test_what_is_no_frame(self) -> None:
        for broken, code in (
            (b"\xff\xff\xff\xff\xff\xff", 1002),
            (b"\x81\x02hi", 1002),  # not masked
            (bytes([0x81, 0x82, 0, 0, 0, 0]) + b"\xff\xff", 1007),
            (b"\x89\xfe\x10\x00" + bytes(10), 1002),  # a ping of 4096 bytes
        ):
            client = self.client()
            client.channel.dataReceived(broken)
            self.ends(client, client.events(), code)
            self.assertTrue(client.transport.disconnecting)
            client.gone()

    def test_a_mistake_of_the_sessions(self) -> None:
        client = self.client()
        self.ends(client, client.exchange(TextMessage("break")), 1011)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_pinged_while_it_is_quiet(self) -> None:
        client = self.client()
        for _ in range(int(2 * IDLE_S / LOOK_S)):
            self.clock.advance(LOOK_S)
            for event in client.events():
                self.assertIsInstance(event, Ping)
                client.exchange(event.response())
        self.assertFalse(client.transport.disconnecting)

    def test_pings_come_in_time(self) -> None:
        client = self.client()
        self.clock.pump([LOOK_S] * int(PING_S / LOOK_S))
        self.assertEqual([type(e) for e in client.events()], [Ping])

    def test_nobody_there(self) -> None:
        client = self.client()
        self.clock.pump([LOOK_S] * int(IDLE_S / LOOK_S))
        *pings, close = client.events()
        self.assertEqual({type(e) for e in pings}, {Ping})
        self.ends(client, [close], 1011)
        self.clock.advance(CLOSE_S)
        self.assertTrue(client.transport.disconnecting)

    def test_an_idle_http_connections_time_is_not_its(self) -> None:
        client = self.client()
        for _ in range(int(3 * LimitsConfig().read_idle_ms / 1000)):
            self.clock.advance(1.0)
            client.exchange(Ping())
        self.assertFalse(client.transport.disconnecting)

    def test_the_capability_expires(self) -> None:
        client = self.client(("exp", "2027-01-15T08:00:01Z"))
        self.now += 2
        self.clock.advance(LOOK_S)
        self.assertIn("expired", self.ends(client, client.events(), 1008))

    def test_the_capability_is_revoked(self) -> None:
        client = Client(self.site)
        token = self.token()
        client.connect(token)
        revoked = Revocation(cap_id=self.authority.recognise(token).cap_id, kid=1)
        self.revocations.revoke([revoked], self.now)
        self.clock.advance(LOOK_S)
        self.assertIn("revoked", self.ends(client, client.events(), 1008))

    def test_its_rate_is_left_alone(self) -> None:
        token = self.token(("rps", "0.01"))
        client = Client(self.site)
        client.connect(token)
        for _ in range(10):
            self.clock.advance(LOOK_S)
        self.assertFalse(client.transport.disconnecting)

    def test_drained(self) -> None:
        client = self.client()
        left = ensureDeferred(self.site.drain(deadline_s=10.0))
        self.ends(client, client.events(), 1001)
        self.clock.advance(0.05)
        self.assertEqual(client.events(), [], "said once")
        client.channel.dataReceived(b"\x88\x80\x00\x00\x00\x00")  # its goodbye
        self.assertTrue(client.transport.disconnecting)
        client.gone()
        self.clock.advance(0.05)
        self.assertEqual(self.successResultOf(left), 0)

    def test_drained_while_it_says_nothing(self) -> None:
        client = self.client()
        ensureDeferred(self.site.drain(deadline_s=60.0))
        self.clock.pump([0.05] * int(CLOSE_S / 0.05 + 1))
        self.assertTrue(client.transport.disconnecting)


class SlowReader(Case):
    """Who does not read: what is kept is bounded, what is missing is said."""

    def stuck(self) -> tuple[Client, WebSocket]:
        client = self.client()
        client.channel.pauseProducing()
        socket = self.sessions[-1].socket
        assert socket is not None
        return client, socket

    def test_what_is_kept_comes_later(self) -> None:
        client, socket = self.stuck()
        for number in range(QUEUE):
            socket.send(str(number))
        self.assertEqual(client.events(), [])
        client.channel.resumeProducing()
        self.assertEqual([e.data for e in client.events()], [str(number) for number in range(QUEUE)])

    def test_the_oldest_go_and_it_is_told(self) -> None:
        client, socket = self.stuck()
        for number in range(QUEUE + 7):
            socket.send(str(number))
        client.channel.resumeProducing()
        first, *rest = (e.data for e in client.events())
        self.assertEqual(first, '{"lagged":7}')
        self.assertEqual(rest, [str(number) for number in range(7, QUEUE + 7)])
        self.assertEqual(self.counted("queue_dropped_total", queue="echo"), 7)
        socket.send("on")
        self.assertEqual([e.data for e in client.events()], ["on"])

    def test_hopeless(self) -> None:
        client, socket = self.stuck()
        for _ in range(QUEUE + HOPELESS):
            socket.send("x")
        self.assertEqual([e.code for e in client.events()], [1013])

    def test_no_pings_while_nothing_is_read(self) -> None:
        client, _socket = self.stuck()
        self.clock.pump([LOOK_S] * int((PING_S + LOOK_S) / LOOK_S))
        self.assertEqual(client.events(), [])

    def test_who_reads_nothing_at_all_is_cut_off(self) -> None:
        client, _socket = self.stuck()
        self.clock.pump([1.0] * int(2 * LimitsConfig().write_timeout_ms / 1000))
        self.assertTrue(client.transport.aborted)
        self.assertEqual(self.counted("rejected_total", reason="slow_reader"), 1)

    def test_revoked_all_the_same(self) -> None:
        client = self.client(("exp", "2027-01-15T08:00:01Z"))
        client.channel.pauseProducing()
        self.now += 2
        self.clock.advance(LOOK_S)
        self.assertEqual([e.code for e in client.events()], [1008])


class AnyBytes(Case):
    """Whatever comes after the handshake, nothing breaks and what is kept is let go."""

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.binary(max_size=200) | st.sampled_from([b"\x81\x80\0\0\0\0", b"\x01\x80\0\0\0\0"]), max_size=8))
    def test_no_bytes_break_it(self, pieces: list[bytes]) -> None:
        client = self.client()
        for piece in pieces:
            client.channel.dataReceived(piece)
        client.gone()
        self.assertEqual(self.sockets.open, set())
        self.assertEqual(self.clock.getDelayedCalls(), [])


class OverASocket(OnTheWire):
    """On a real port, where Twisted pauses us by itself."""

    async def test_a_reader_that_stops_is_told_what_it_missed(self) -> None:
        sessions: list[Echo] = []

        def accept(_call: Call, query: Query) -> Echo:
            sessions.append(Echo("", query))
            return sessions[0]

        endpoint = websocket_endpoint(
            "/echo", scope="echo:read", accept=accept, enforces=frozenset(), sockets=Sockets("echo")
        )
        self.serve([endpoint])
        wire = await self.wire()
        wire.send(request("GET", "/echo", {**HANDSHAKE, **self.bearer(SCOPE)}))
        await until(lambda: b"welcome" in wire.received)
        assert wire.transport is not None
        wire.transport.pauseProducing()  # type: ignore[attr-defined]
        socket = sessions[0].socket
        assert socket is not None
        for _ in range(2000):
            socket.send("x" * 10_000)
        await until(lambda: socket._lagged)
        wire.transport.resumeProducing()  # type: ignore[attr-defined]
        await until(lambda: b'{"lagged":' in wire.received)
