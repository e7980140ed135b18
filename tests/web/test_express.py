"""The short way: the same answers as the long one whatever is sent, in the same order and within the same limits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import Authority, Caveat, RootKeys
from ron.kernel import Metrics
from ron.proto.errors import ErrorCode, RonError
from ron.web import Call, Edge, Endpoint, Raw, make_site
from ron.web.express import MAX_HEAD_BYTES, MAX_HEADERS, ExpressRequest, Head, Lane
from ron.web.site import RonSite
from tests.web import test_limits, wire
from tests.web.wire import OnTheWire, Response, Wire, chunked, exchange, request, until

BODY = b'{"text":"a"}'


class Note(msgspec.Struct, forbid_unknown_fields=True):
    """A body."""

    text: str


class Anything(msgspec.Struct):
    """A body that says nothing."""


class NoLane(Lane):
    """Everything goes the long way."""

    def read(self, received: bytes, *, head_limit: int, body_limit: int) -> tuple[Head, bytes] | None:
        return None


class Counted(Lane):
    """Counts what goes the short way."""

    taken = 0

    def read(self, received: bytes, *, head_limit: int, body_limit: int) -> tuple[Head, bytes] | None:
        found = super().read(received, head_limit=head_limit, body_limit=body_limit)
        self.taken += found is not None
        return found


def lane(site: RonSite, kind: type[Lane]) -> Any:
    """Give `site` another lane with its own routes."""
    made = kind({(b"POST", path): endpoint for endpoint, path in site.lane._routes.values()})
    site.lane = made
    return made


async def _at_once(call: Call, note: Note) -> Note:
    return note


def _broken(call: Call, note: Note) -> Note:
    raise RonError(ErrorCode.CONFLICT, note.text)


def _strange(call: Call, note: Note) -> Raw:
    return Raw(call.corr_id.encode()[:0] + call.path.encode(), "text/plain", headers={"X-Peer": call.peer})


def endpoints() -> list[Endpoint]:
    def post(path: str, handler: Callable[..., Any], scope: str | None = None) -> Endpoint:
        return Endpoint(method="POST", path=path, handler=handler, scope=scope, body=Note, hot=True)

    return [
        post("/note", lambda call, note: note),
        post("/soon", _at_once),
        post("/broken", _broken),
        post("/raw", _strange),
        post("/guarded", lambda call, note: {"cap": call.capability.cap_id[:0]}, "note:write"),
        Endpoint(method="GET", path="/note", handler=lambda call: {}, scope=None, hot=True),
        Endpoint(method="POST", path="/klein", handler=lambda call, note: note, scope=None, body=Note),
    ]


AUTHORITY = Authority(RootKeys.generate(), audience="ron-node", now=lambda: 1_800_000_000.0)
GOOD, LESS = AUTHORITY.mint([Caveat("scope", "note:write")]), AUTHORITY.mint([Caveat("scope", "note:read")])
HEADERS = (
    b"Host: localhost",
    b"Content-Type: application/json",
    b"content-type:text/plain",
    b"Authorization: Bearer " + GOOD.encode(),
    b"authorization:  bearer\t" + GOOD.encode() + b" \t",
    b"Authorization: Bearer " + LESS.encode(),
    b"Authorization: Bearer x\xe9\xff",
    b"X-Corr-ID: 0190a1b2-0000-7000-8000-000000000001",
    b"X-Corr-ID: nobody",
    b"Connection: keep-alive",
    b"Connection: close",
    b"Connection: Upgrade, keep-alive",
    b"Upgrade: websocket",
    b"Expect: 100-continue",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity",
    b"Content-Encoding: gzip",
    b"Content-Length: 3",
    b"Content-Length: +12",
    b"Content-Length: 012",
    b"Content-Length: 12, 12",
    b"Content-Length: 99999999999999999999",
    b"Cookie: a=b; c",
    b"Cookie: \xff=;;",
    b"Accept: */*",
    b"Accept: \x01",
    b"X-Nul: a\x00b",
    b"X-Bare: a\nContent-Length: 1",
    b"X-Bare: a\rb",
    b" folded: yes",
    b"\tfolded",
    b"No colon",
    b"Blank : before the colon",
    b": no name",
    b"Caf\xe9: name",
    b"X-Empty:",
    b"X-Long: " + b"a" * 9000,
    b"X-Many: " + b"\r\nX: y" * MAX_HEADERS,
)
LINES = (
    *[b"POST /note HTTP/1.1"] * 8,
    b"POST /soon HTTP/1.1",
    b"POST /broken HTTP/1.1",
    b"POST /raw HTTP/1.1",
    b"POST /guarded HTTP/1.1",
    b"POST /klein HTTP/1.1",
    b"GET /note HTTP/1.1",
    b"post /note HTTP/1.1",
    b"POST  /note HTTP/1.1",
    b"POST /note?a=b HTTP/1.1",
    b"POST /no%74e HTTP/1.1",
    b"POST http://localhost/note HTTP/1.1",
    b"POST /note HTTP/1.0",
    b"POST /note HTTP/2.0",
    b"POST /note",
    b"\r\nPOST /note HTTP/1.1",
    b"\nPOST /note HTTP/1.1",
    b"PRI * HTTP/2.0",
)
BODIES = (
    *[BODY] * 6,
    b"",
    b"{}",
    b"[" * 2000,
    b'{"text":1}',
    b'{"text":"a","text":"b"}',
    b"\xff\x00",
    b'{"text":"%s"}' % (b"a" * 3000),
)
VARIES = re.compile(
    rb"(?<=\r\nDate: )[^\r]+|(?<=\r\nX-Corr-ID: )[^\r]+|(?<=\r\nX-Request-ID: )[^\r]+|(?<=\r\nRetry-After: )\d+"
    rb'|(?<="ts":")[^"]+|(?<="request_id":")[^"]+'
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """One request, good or nearly so."""
    body = draw(st.sampled_from(BODIES))
    headers = draw(st.lists(st.sampled_from(HEADERS), max_size=4))
    if draw(st.integers(0, 9)):
        length = len(body) + draw(st.sampled_from([0] * 12 + [1, -1]))
        headers.insert(draw(st.integers(0, len(headers))), b"Content-Length: %d" % max(0, length))
    end = draw(st.sampled_from([b"\r\n"] * 12 + [b"\n"]))
    return end.join([draw(st.sampled_from(LINES)), *headers, b"", b""]) + body


@st.composite
def pieces(draw: st.DrawFn) -> list[bytes]:
    """What comes on one connection: requests, each in one piece, several in one, or cut anywhere."""
    found: list[bytes] = []
    for message in draw(st.lists(messages(), min_size=1, max_size=4)):
        way = draw(st.integers(0, 6))
        if way == 0 and found:
            found[-1] += message
        elif way == 1:
            cut = draw(st.integers(0, len(message)))
            found += [message[:cut], message[cut:]]
        elif way == 2:
            # as most clients write one
            head, end, body = message.partition(b"\r\n\r\n")
            found += [head + end, body]
        else:
            found.append(message)
        if not draw(st.integers(0, 9)):
            found.append(draw(st.sampled_from([b"\r\n", b"\n", b"x"])))
    return [piece for piece in found if piece]


class SameAnswers(SynchronousTestCase):
    """Held against the long way."""

    def site(self, kind: type[Lane]) -> Any:
        edge = Edge(authority=AUTHORITY, metrics=Metrics(), reactor=Clock())
        site = make_site(edge, endpoints(), body_limit=2000)
        return site, lane(site, kind)

    def both(self, *sent: bytes) -> tuple[bytes, int]:
        """What is answered, and how many requests went the short way."""
        (short, counted), (long, _none) = self.site(Counted), self.site(NoLane)
        answers = [VARIES.sub(b"*", exchange(site, *sent)) for site in (short, long)]
        self.assertEqual(*answers)
        self.assertEqual(short.edge.metrics.render().count(b"route="), long.edge.metrics.render().count(b"route="))
        return answers[0], counted.taken

    @settings(deadline=None, max_examples=50)
    @given(pieces())
    def test_whatever_is_sent(self, sent: list[bytes]) -> None:
        self.both(*sent)

    def test_each_header_by_itself(self) -> None:
        for header in HEADERS:
            for path in (b"/note", b"/guarded"):
                head = b"POST %s HTTP/1.1\r\n%s\r\nContent-Length: %d\r\n\r\n" % (path, header, len(BODY))
                self.both(head + BODY, request("POST", "/note", body=BODY))

    def test_each_line_and_body(self) -> None:
        for line in LINES:
            self.both(line + b"\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY), request("GET", "/note"))
        for body in BODIES:
            self.both(request("POST", "/note", body=body), request("POST", "/note", body=BODY))

    def test_what_is_plain_goes_the_short_way(self) -> None:
        plain = request("POST", "/note", {"Authorization": f"Bearer {GOOD}", "Connection": "keep-alive"}, BODY)
        answers, taken = self.both(plain, plain, request("POST", "/guarded", {"Authorization": f"Bearer {GOOD}"}, BODY))
        self.assertEqual((answers.count(b"HTTP/1.1 200 OK"), taken), (3, 3))

    def test_head_and_body_may_come_one_after_the_other(self) -> None:
        head, end, body = request("POST", "/note", body=BODY).partition(b"\r\n\r\n")
        answers, taken = self.both(head + end, body, head + end, body)
        self.assertEqual((answers.count(b"HTTP/1.1 200 OK"), taken), (2, 2))

    def test_a_body_that_comes_otherwise_goes_the_long_way(self) -> None:
        plain = request("POST", "/note", body=BODY)
        head, end, body = plain.partition(b"\r\n\r\n")
        for rest in ((body[:5], body[5:]), (body + plain,), (body[:5], body[5:] + plain), (body + b"\r\n", plain)):
            answers, _taken = self.both(head + end, *rest)
            self.assertIn(b"HTTP/1.1 200 OK", answers)
        self.assertEqual(self.both(head + end)[0], b"")
        self.assertEqual(self.both(head + end, body[:5])[0], b"")

    def test_what_is_not_does_not(self) -> None:
        plain = request("POST", "/note", body=BODY)
        for sent in (
            (plain[:20], plain[20:]),
            (plain + plain,),
            (plain + b"\r\n",),
            (b"\r\n" + plain,),
            (request("POST", "/note", {"Transfer-Encoding": "chunked"}) + chunked(BODY),),
            (request("POST", "/note", {"Expect": "100-continue"}, BODY),),
            (request("POST", "/note", {"Connection": "close"}, BODY),),
            (request("POST", "/note", {"X-Long": "a" * MAX_HEAD_BYTES}, BODY),),
            (request("POST", "/note", body=b""),),
            (request("POST", "/note", body=b"a" * 2001),),
            (request("POST", "/klein", body=BODY),),
            (request("GET", "/note"),),
        ):
            _answers, taken = self.both(*sent)
            self.assertEqual((sent, taken), (sent, 0))

    def test_the_reader_begins_anew_after_what_it_did_not_take(self) -> None:
        plain = request("POST", "/note", body=BODY)
        for odd in (plain[:-1], plain + plain, plain.replace(b"localhost", b"a\x00"), plain[:30]):
            (site, counted) = self.site(Counted)
            exchange(site, odd)
            self.assertIn(b"200 OK", exchange(site, plain))
            self.assertEqual((odd, counted.taken), (odd, 1))

    def test_a_blank_line_counts_once_however_the_next_request_is_read(self) -> None:
        """Twisted passes over one before a request; after the request it passes over another."""
        plain = request("POST", "/note", body=BODY)
        _answers, taken = self.both(b"\r\n", plain, plain, b"\r\n", plain)
        self.assertEqual(taken, 1)
        self.both(b"\r\n", b"\r\n", plain)


class Waiting(OnTheWire):
    """A call that takes its time."""

    def setUp(self) -> None:
        super().setUp()
        self.waiting: list[Deferred[Any]] = []
        slow = Endpoint(method="POST", path="/slow", handler=self.slow, scope=None, body=Note, hot=True)
        self.site = self.serve([slow])
        self.lane: Counted = lane(self.site, Counted)

    async def slow(self, _call: Call, note: Note) -> Note:
        self.waiting.append(Deferred())
        await self.waiting[-1]
        return note

    async def asked(self, *texts: str) -> Wire:
        wire = await self.wire()
        for number, text in enumerate(texts):
            wire.send(request("POST", "/slow", body=b'{"text":"%s"}' % text.encode()))
            if not number:
                await until(lambda: self.waiting)
        return wire

    async def test_what_comes_meanwhile_waits_and_is_answered_in_its_order(self) -> None:
        wire = await self.asked("first", "second", "third")
        await until(lambda: sum(map(len, self.channel._dataBuffer)) > 140)
        self.assertEqual(len(self.waiting), 1)
        for number, text in enumerate(("first", "second", "third")):
            self.waiting[number].callback(None)
            self.assertEqual((await wire.response()).json, {"text": text})
        # the second and the third were there together when the first was answered
        self.assertEqual(self.lane.taken, 2)
        wire.send(request("POST", "/slow", body=BODY))
        await until(lambda: len(self.waiting) == 4)
        self.waiting[3].callback(None)
        self.assertEqual((await wire.response()).json, {"text": "a"})
        self.assertEqual(self.lane.taken, 3)

    async def test_a_flood_meanwhile_is_not_read_without_end(self) -> None:
        wire = await self.asked("first")
        for _ in range(200):
            wire.send(request("POST", "/slow", body=b'{"text":"%s"}' % (b"a" * 9000)))
        await until(lambda: self.channel._dataBuffer)
        await deferLater(reactor, 0.1)
        self.assertLess(sum(map(len, self.channel._dataBuffer)), 300_000)
        # who is not read from is not seen to go, either
        self.channel.forceAbortClient()

    async def test_it_is_cancelled_when_the_client_goes(self) -> None:
        wire = await self.asked("first")
        wire.abort()
        await until(lambda: self.waiting[0].called)
        self.assertEqual(self.counted("/slow", "POST", 499), 1)
        self.assertEqual(self.edge.concurrency.busy, 0)

    async def test_504_at_the_deadline(self) -> None:
        wire = await self.asked("first")
        self.clock.advance(29.9)
        self.assertEqual(wire.received, b"")
        self.clock.advance(0.1)
        response = await wire.response()
        self.assertEqual((response.status, response.json["error"]["code"]), (504, "Timeout"))

    async def test_draining_waits_for_it(self) -> None:
        wire = await self.asked("first")
        draining = Deferred.fromCoroutine(self.site.drain(30.0))
        self.clock.advance(1.0)
        self.assertFalse(draining.called)
        self.waiting[0].callback(None)
        self.assertEqual((await wire.response()).json, {"text": "first"})
        self.clock.pump([0.05] * 3)
        await wire.end()
        self.clock.pump([0.05] * 3)
        self.assertEqual(await draining, 0)

    @property
    def channel(self) -> Any:
        (channel,) = self.site.channels
        return channel


class OverUnixSockets(OnTheWire):
    """A Unix socket has no address and takes what it is sent at once."""

    async def test_it_goes_the_short_way_too(self) -> None:
        path = Path(mkdtemp(prefix="ron-")) / "s"
        site = make_site(self.edge, endpoints())
        counted = lane(site, Counted)
        listening = reactor.listenUNIX(str(path), site)
        self.addCleanup(path.parent.rmdir)
        self.addCleanup(listening.stopListening)
        self.addCleanup(until, lambda: not site.channels)
        wire: Wire = await UNIXClientEndpoint(reactor, str(path)).connect(Factory.forProtocol(Wire))
        self.addCleanup(until, lambda: wire.closed)
        self.addCleanup(wire.abort)
        for _ in range(3):
            wire.send(request("POST", "/raw", body=BODY))
            response = await wire.response()
            self.assertEqual((response.status, response.body, response.headers["x-peer"]), (200, b"/raw", ""))
        self.assertEqual(counted.taken, 3)


def _posted(
    method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None, *, version: str = "1.1"
) -> bytes:
    """A GET becomes a POST, which can go the short way."""
    if method == "GET":
        method, body = "POST", b"{}"
    return wire.request(method, path, headers, body, version=version)


def _posting(endpoint: Endpoint) -> Endpoint:
    if endpoint.method != "GET":
        return endpoint
    return replace(endpoint, method="POST", body=Anything, handler=lambda call, _body: endpoint.handler(call))


class _Short:
    """The tests of limits, their requests turned into such as go the short way."""

    def setUp(self: Any) -> None:
        super().setUp()  # type: ignore[misc]
        self.patch(test_limits, "request", _posted)
        self.short: list[bytes] = []
        process = ExpressRequest.process

        def spy(asked: ExpressRequest, endpoint: Any) -> None:
            self.short.append(asked.path)
            process(asked, endpoint)

        self.patch(ExpressRequest, "process", spy)

    def serve(self: Any, endpoints: Iterable[Endpoint], **limits: int) -> RonSite:
        site: RonSite = super().serve(map(_posting, endpoints), **limits)  # type: ignore[misc]
        return site

    def counted(self: Any, route: str, method: str, status: int) -> float:
        return float(super().counted(route, "POST" if method == "GET" else method, status))  # type: ignore[misc]


class ShortConnections(_Short, test_limits.Connections):
    """Refused at connect."""

    async def test_they_are_shown(self) -> None:
        await super().test_they_are_shown()
        self.assertEqual(self.short, [b"/small"])


class ShortSlowReaders(_Short, test_limits.SlowReaders):
    """An answer that nobody takes does not stay."""

    async def test_one_that_was_not_taken_holds_up_the_next(self) -> None:
        """Asked one by one, each in a piece of its own, while nothing is read."""
        self.limited()
        wire = await self.wire()
        wire.transport.pauseProducing()  # type: ignore[union-attr]
        for number in range(40):
            wire.send(_posted("GET", "/big"))
            sent = number + 1
            await until(lambda sent=sent: self.big_calls == sent or self.channel._sending is not None)
        self.assertLess(self.big_calls, 20)
        self.assertIn(b"/big", self.short)
        wire.transport.resumeProducing()  # type: ignore[union-attr]
        for _ in range(40):
            self.assertEqual(len((await wire.response()).body), test_limits.BIG)
        wire.send(_posted("GET", "/small"))
        self.assertEqual((await wire.response()).status, 200)
        self.assertEqual(self.short[-1], b"/small")


class ShortOverTls(_Short, test_limits.OverTls):
    """The same through TLS."""

    async def test_it_goes_the_short_way_too(self) -> None:
        self.limited()
        wire = await self.wire()
        for _ in range(3):
            wire.send(_posted("GET", "/small"))
            self.assertEqual((await wire.response()).status, 200)
        self.assertEqual(self.short, [b"/small"] * 3)


class ShortSlowLoris(_Short, test_limits.SlowLoris):
    """Heads and bodies that drip after a request that went the short way."""


class ShortRates(_Short, test_limits.Rates):
    """Requests, bytes and streams of one peer; work of all."""

    async def test_requests_a_second(self) -> None:
        await super().test_requests_a_second()
        self.assertGreaterEqual(len(self.short), 8)

    async def test_bytes_that_are_owed_come_before_a_head(self) -> None:
        self.limited(bytes_per_second_per_peer=200)
        wire = await self.wire()
        wire.send(_posted("GET", "/small"))
        self.assertEqual((await wire.response()).status, 200)
        head, end, body = _posted("GET", "/small").partition(b"\r\n\r\n")
        wire.send(head, end)
        self.is_refusal(await wire.response(), 429, ErrorCode.BACKPRESSURE)
        wire.send(body)
        await wire.end()

    async def test_one_that_is_too_many_makes_the_next_wait(self) -> None:
        self.limited(requests_per_second_per_peer=1)
        wire = await self.wire()
        answers: list[Response] = []
        for _ in range(2):
            wire.send(_posted("GET", "/small"))
            answers.append(await wire.response())
        self.assertEqual([one.status for one in answers], [200, 429])
        wire.send(_posted("GET", "/small"))
        self.clock.advance(test_limits.PENALTY_S / 2)
        await until(lambda: self.channel._dataBuffer)
        self.assertEqual(wire.received, b"")
        self.clock.advance(test_limits.PENALTY_S)
        self.assertEqual((await wire.response()).status, 429)
