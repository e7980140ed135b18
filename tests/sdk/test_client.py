"""One client for all services: deadlines, retries, typed errors, against real servers on loopback."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import TestCase

from ron.kernel.backoff import Backoff
from ron.kernel.breaker import CircuitOpen, Circuits
from ron.proto.errors import ErrorCode, RonError, backpressure, bad_request, unavailable
from ron.proto.exitcodes import Unreachable
from ron.sdk import Api, client, direct_http, onion_http
from ron.sdk.client import Answer
from ron.web import Call, Endpoint, Raw, make_site
from tests.web.wire import OnTheWire, closing, until


class Note(msgspec.Struct, forbid_unknown_fields=True):
    """A body and an answer."""

    text: str


def quick(**_bounds: Any) -> Backoff:
    """Back-off without the waiting."""
    return Backoff(base_s=0.001, ceiling_s=0.002, rng=random.Random(1))


class Calls(OnTheWire):
    """An `Api` against a real site; delays between tries are a millisecond."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(client, "Backoff", quick)
        self.outcomes: list[Any] = []
        self.calls: list[Call] = []
        self.bodies: list[str] = []
        self.serve(
            [
                Endpoint(method="GET", path="/next", handler=self.next, scope=None),
                Endpoint(method="POST", path="/echo", handler=self.echo, scope="note:write", body=Note),
            ]
        )
        self.api = self.made()

    def made(self, capability: str | None = None, **settings: Any) -> Api:
        return Api(reactor, self.http(), f"http://127.0.0.1:{self.port}/", capability, **settings)

    def next(self, call: Call) -> Any:
        self.calls.append(call)
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def echo(self, call: Call, note: Note) -> Note:
        self.calls.append(call)
        return note

    async def fails(self, api: Api | None = None, path: str = "/next", **call: Any) -> RonError:
        try:
            answer = await (api or self.api).call("GET", path, Note, **call)
        except RonError as error:
            return error
        raise AssertionError(f"answered {answer}")


class Talking(Calls):
    async def test_a_call_there_and_back(self) -> None:
        token = self.bearer(("scope", "note:write"))["Authorization"].removeprefix("Bearer ")
        self.assertEqual(await self.made(token).call("POST", "/echo", Note, Note("grüße")), Note("grüße"))

    async def test_the_services_error_comes_through_with_its_code(self) -> None:
        error = await self.fails(path="/nowhere")
        self.assertEqual((error.code, error.status), (ErrorCode.NOT_FOUND, 404))
        self.outcomes = [bad_request("so not", "try so")]
        error = await self.fails()
        self.assertEqual((error.code, error.message, error.hint), (ErrorCode.BAD_REQUEST, "so not", "try so"))
        with self.assertRaises(RonError) as caught:
            await self.api.call("POST", "/echo", Note, Note("x"))
        self.assertEqual((caught.exception.code, caught.exception.status), (ErrorCode.NO_CAPABILITY, 401))

    async def test_an_answer_of_another_shape(self) -> None:
        for outcome in (
            {"test": "x"},
            [],
            Raw(b"hello", "text/plain"),
            Raw(b'{"text":"\xff"}', "application/json"),
            Raw(b'{"text":' + b"[" * 100_000, "application/json"),
            Raw(b"", "application/json"),
        ):
            self.outcomes = [outcome]
            error = await self.fails()
            self.assertIs(error.code, ErrorCode.INTERNAL)
            self.assertIn("Note", error.message)

    async def test_an_answer_as_it_is(self) -> None:
        self.outcomes = [Raw(b"\0\xff", "application/octet-stream", headers={"X-Mine": "1"})]
        answer = await self.api.fetch("GET", "/next")
        self.assertIsInstance(answer, Answer)
        self.assertEqual((answer.status, answer.headers["x-mine"], answer.body), (200, "1", b"\0\xff"))

    async def test_redirects_are_not_followed(self) -> None:
        """The capability goes to nobody but the service it is for."""
        self.outcomes = [Raw(b"", "text/plain", 302, {"Location": f"http://127.0.0.1:{self.port}/nowhere"})]
        self.assertEqual((await self.api.fetch("GET", "/next")).status, 302)

    async def test_an_oversized_answer_is_refused(self) -> None:
        self.patch(client, "MAX_ANSWER_BYTES", 1000)
        self.outcomes = [Raw(b"x" * 1000, "text/plain"), Raw(b"x" * 1001, "text/plain")]
        self.assertEqual(len((await self.api.fetch("GET", "/next")).body), 1000)
        error = await self.fails()
        self.assertIs(error.code, ErrorCode.TOO_LARGE)
        self.assertEqual(len(self.calls), 2)


class Retrying(Calls):
    async def test_503_and_429_are_tried_again(self) -> None:
        self.outcomes = [unavailable("down"), backpressure("full"), {"text": "there"}]
        self.assertEqual(await self.api.call("GET", "/next", Note), Note("there"))
        self.assertEqual(len(self.calls), 3)

    async def test_not_for_ever(self) -> None:
        self.outcomes = [unavailable("down")]
        error = await self.fails(self.made(tries=4))
        self.assertEqual((error.code, error.message), (ErrorCode.STORE_UNAVAILABLE, "down"))
        self.assertEqual(len(self.calls), 4)

    async def test_what_will_not_help_is_not_repeated(self) -> None:
        for code in set(ErrorCode) - {ErrorCode.STORE_UNAVAILABLE, ErrorCode.BACKPRESSURE, ErrorCode.TIMEOUT}:
            self.calls.clear()
            self.outcomes = [RonError(code, "no")]
            self.assertIs((await self.fails()).code, code)
            self.assertEqual(len(self.calls), 1, code)

    async def test_a_5xx_that_is_no_envelope_is_not_repeated(self) -> None:
        self.outcomes = [Raw(b"<h1>Bad gateway</h1>", "text/html", 502)]
        error = await self.fails()
        self.assertEqual((error.code, error.status), (ErrorCode.INTERNAL, 502))
        self.assertEqual(len(self.calls), 1)


class Circuit(Calls):
    """Who does not answer is left alone for a while. Circuits go by a clock of our own, tries by the real one."""

    def setUp(self) -> None:
        super().setUp()
        self.time = Clock()
        self.circuits = Circuits(self.time.seconds, metrics=self.metrics, rng=random.Random(1))
        self.outcomes = [{"text": "there"}]

    def at(self, port: int, **settings: Any) -> Api:
        return Api(reactor, self.http(), f"http://127.0.0.1:{port}", circuits=self.circuits, **settings)

    async def dead_port(self) -> int:
        listening = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
        port: int = listening.getHost().port
        await listening.stopListening()
        return port

    async def tripped(self) -> tuple[int, CircuitOpen]:
        """A port where nobody is, and what the next caller is told."""
        port = await self.dead_port()
        self.assertIsInstance(await self.fails(self.at(port, tries=5)), Unreachable)
        error = await self.fails(self.at(port, tries=5))
        assert isinstance(error, CircuitOpen)
        return port, error

    async def test_an_open_circuit_fails_at_once_and_says_when_it_tries_again(self) -> None:
        port, error = await self.tripped()
        self.assertIn(f"127.0.0.1:{port}", error.message)
        self.assertIn("tried again in", error.message)
        self.assertEqual(self.gauge(port), 2)
        self.assertEqual(await self.at(self.port).call("GET", "/next", Note), Note("there"), "others are not touched")

    async def test_the_next_call_after_its_time_probes_and_closes_it(self) -> None:
        port, error = await self.tripped()
        site = make_site(self.edge, [Endpoint(method="GET", path="/next", handler=self.next, scope=None)])
        listening = reactor.listenTCP(port, site, interface="127.0.0.1")
        self.addCleanup(until, lambda: not site.channels)
        self.addCleanup(listening.stopListening)
        self.assertIsInstance(await self.fails(self.at(port)), CircuitOpen)
        self.assertEqual(self.calls, [])
        self.time.advance(error.retry_in_s)
        self.assertEqual(await self.at(port).call("GET", "/next", Note), Note("there"))
        self.assertEqual(self.gauge(port), 0)

    async def test_a_call_under_way_waits_for_the_circuit(self) -> None:
        """It has tries left: no reason to fail before its deadline."""
        port = await self.dead_port()
        waited: list[float] = []

        def later(_reactor: Any, delay_s: float) -> Deferred[None]:
            waited.append(delay_s)
            self.time.advance(delay_s)
            return deferLater(reactor, 0)

        self.patch(client, "deferLater", later)
        error = await self.fails(self.at(port, tries=7))
        self.assertNotIsInstance(error, CircuitOpen)
        self.assertTrue(all(delay_s < 0.1 for delay_s in waited[:5]), waited)
        self.assertGreaterEqual(waited[5], 0.9)

    async def test_answers_of_any_kind_are_signs_of_life(self) -> None:
        for outcome in (unavailable("shedding"), bad_request("so not"), RonError(ErrorCode.INTERNAL, "bug")):
            self.outcomes = [outcome]
            for _ in range(8):
                self.assertNotIsInstance(await self.fails(self.at(self.port, tries=1)), Unreachable)
        self.assertEqual(self.gauge(self.port), 0)

    async def test_hearing_nothing_until_the_deadline_counts_a_caller_who_leaves_does_not(self) -> None:
        self.outcomes = [Deferred() for _ in range(11)]
        for n in range(5):
            call = Deferred.fromCoroutine(self.at(self.port).call("GET", "/next", Note))
            await until(lambda n=n: len(self.calls) == n + 1)
            call.cancel()
            self.failureResultOf(call, CancelledError)
        self.assertEqual(self.gauge(self.port), 0)
        for _ in range(5):
            self.assertIs((await self.fails(self.at(self.port, deadline_s=0.05))).code, ErrorCode.TIMEOUT)
        self.assertIsInstance(await self.fails(self.at(self.port)), CircuitOpen)

    def gauge(self, port: int) -> float | None:
        return self.metrics.registry.get_sample_value("circuit_state", {"circuit": f"http://127.0.0.1:{port}"})


class Waiting(Calls):
    """Back-off and deadline under a clock of our own."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(client, "Backoff", Backoff)
        self.time = Clock()

    def clocked(self, **settings: Any) -> Api:
        return Api(self.time, self.http(), f"http://127.0.0.1:{self.port}", **settings)

    async def test_tries_are_spread_with_full_jitter_between_100_ms_and_5_s(self) -> None:
        self.outcomes = [unavailable("down")]
        failing = Deferred.fromCoroutine(self.fails(self.clocked(tries=8, deadline_s=1000)))
        delays_s = []
        for tries in range(1, 8):
            await until(lambda tries=tries: len(self.calls) == tries and len(self.time.getDelayedCalls()) == 2)
            due = min(call.getTime() for call in self.time.getDelayedCalls())
            delays_s.append(due - self.time.seconds())
            self.time.advance(delays_s[-1])
        await failing
        for n, delay_s in enumerate(delays_s, 1):
            self.assertTrue(0.1 <= delay_s <= min(5.0, 0.1 * 2**n), delays_s)
        self.assertEqual(len(set(delays_s)), len(delays_s))

    async def test_the_deadline_covers_all_tries(self) -> None:
        self.outcomes = [unavailable("down")]
        failing = Deferred.fromCoroutine(self.fails(self.clocked(tries=1000, deadline_s=3)))
        for _ in range(8):
            await until(lambda: failing.called or len(self.time.getDelayedCalls()) == 2)
            self.time.advance(0.5)
        error = await failing
        self.assertIs(error.code, ErrorCode.TIMEOUT)
        self.assertIn("3 s", error.message)
        self.assertEqual(self.time.getDelayedCalls(), [])

    async def test_a_service_that_does_not_answer(self) -> None:
        gone: list[object] = []
        self.outcomes = [Deferred(gone.append)]
        failing = Deferred.fromCoroutine(self.fails(self.clocked(deadline_s=60)))
        await until(lambda: self.calls)
        self.time.advance(59.9)
        self.assertNoResult(failing)
        self.time.advance(0.1)
        self.assertIs(self.successResultOf(failing).code, ErrorCode.TIMEOUT)
        await until(lambda: gone)
        self.assertEqual((len(self.calls), self.time.getDelayedCalls()), (1, []))

    async def test_cancelling_the_call_closes_its_connection(self) -> None:
        gone: list[object] = []
        self.outcomes = [Deferred(gone.append)]
        call = Deferred.fromCoroutine(self.api.call("GET", "/next", Note))
        await until(lambda: self.calls)
        call.cancel()
        self.failureResultOf(call, CancelledError)
        await until(lambda: gone)
        self.assertEqual(len(self.calls), 1)


class Scripted(Protocol):
    """A server that says what it was told to say to whatever it gets, and hangs up."""

    def __init__(self, says: Callable[[], bytes | None]) -> None:
        self._says = says

    def dataReceived(self, _data: bytes) -> None:
        assert self.transport is not None
        said = self._says()
        if said is not None:
            self.transport.write(said)
            self.transport.loseConnection()


class HostileServers(TestCase):
    """Whatever the other side does, the caller gets a `RonError`."""

    timeout = 20

    def setUp(self) -> None:
        self.patch(client, "Backoff", quick)
        self.said: list[bytes | None] = []
        self.asked = 0
        factory = Factory.forProtocol(lambda: Scripted(self.say))
        listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        self.port = listening.getHost().port

    def say(self) -> bytes | None:
        self.asked += 1
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]

    async def outcome(self, *said: bytes | None, **settings: Any) -> Note | RonError:
        self.said, self.asked = list(said), 0
        api = Api(reactor, closing(self, direct_http(reactor)), f"http://127.0.0.1:{self.port}", **settings)
        try:
            return await api.call("GET", "/x", Note)
        except RonError as error:
            return error

    async def test_nobody_there(self) -> None:
        listening = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
        self.port = listening.getHost().port
        await listening.stopListening()
        error = await self.outcome(b"", tries=3)
        assert isinstance(error, Unreachable)
        self.assertIn(str(self.port), error.message)
        self.assertTrue(error.hint)

    async def test_hanging_up_is_tried_again(self) -> None:
        good = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"text":"x"}'
        self.assertEqual(await self.outcome(b"", good[:20], good[:-3], good), Note("x"))
        self.assertEqual(self.asked, 4)

    async def test_hanging_up_every_time_is_unreachable(self) -> None:
        self.assertIsInstance(await self.outcome(b"", tries=3), Unreachable)
        self.assertEqual(self.asked, 3)

    async def test_what_is_not_http(self) -> None:
        for said in (b"SSH-2.0-x\r\n", b"\xff" * 100, b"HTTP/1.1 abc\r\n\r\n"):
            self.assertIsInstance(await self.outcome(said, tries=2), Unreachable, said)

    async def test_headers_that_are_not_text(self) -> None:
        said = b'HTTP/1.1 200 OK\r\nX-\xff: a\r\nX: \xff\xfe\r\nContent-Length: 12\r\n\r\n{"text":"x"}'
        outcome = await self.outcome(said, tries=2)
        self.assertIsInstance(outcome, Note | RonError)
        said = b'HTTP/1.1 200 OK\r\nX: \xff\xfe\r\nContent-Length: 12\r\n\r\n{"text":"x"}'
        self.assertEqual(await self.outcome(said), Note("x"))

    async def test_an_answer_without_an_end_is_cut_off_at_the_limit(self) -> None:
        """Not at the deadline: the server would choose how much we read."""
        self.patch(client, "MAX_ANSWER_BYTES", 10_000)
        endless = EndlessServer()
        listening = reactor.listenTCP(0, Factory.forProtocol(lambda: endless), interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        self.port = listening.getHost().port
        error = await self.outcome(b"")
        assert isinstance(error, RonError)
        self.assertIs(error.code, ErrorCode.TOO_LARGE)
        await until(lambda: endless.hung_up)

    async def test_envelopes_of_nonsense(self) -> None:
        for body in (b"", b"{}", b"[" * 50_000, b'{"error":{"code":"\xff"}}'):
            said = b"HTTP/1.1 503 x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            error = await self.outcome(said)
            assert isinstance(error, RonError)
            self.assertEqual((error.code, error.status), (ErrorCode.INTERNAL, 503))


class EndlessServer(Protocol):
    """Answers with a body that never ends, until its client hangs up."""

    hung_up = False

    def dataReceived(self, _data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
        Deferred.fromCoroutine(self._babble())

    async def _babble(self) -> None:
        while not self.hung_up:
            assert self.transport is not None
            self.transport.write(b"x" * 4096)
            await deferLater(reactor, 0.001)

    def connectionLost(self, _reason: object = None) -> None:
        self.hung_up = True


class Socks(Protocol):
    """A tor's SOCKS port: notes whom it is asked for, and answers HTTP in their place."""

    def __init__(self, asked: list[bytes]) -> None:
        self._asked = asked
        self._received = b""
        self._step = 0

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self._received += data
        if self._step == 0 and len(self._received) >= 2 + self._received[1]:
            self._received, self._step = b"", 1
            self.transport.write(b"\x05\x00")
        elif self._step == 1 and len(self._received) > 6:
            self._asked.append(self._received)
            self._received, self._step = b"", 2
            self.transport.write(b"\x05\x00\x00\x01" + bytes(6))
        elif self._step == 2 and b"\r\n\r\n" in self._received:
            self._asked.append(self._received)
            self.transport.write(b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"text":"x"}')
            self.transport.loseConnection()


class OverTor(TestCase):
    """Through a SOCKS port, names are resolved by tor alone."""

    timeout = 20
    ONION = "fjyvvrs2nrmizifdvgu2dtrinwntkvhqsqx7u7gk5xprkckp7ibvlvid.onion"

    async def test_the_name_goes_to_tor_as_it_is(self) -> None:
        asked: list[bytes] = []
        listening = reactor.listenTCP(0, Factory.forProtocol(lambda: Socks(asked)), interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        http = closing(self, onion_http(reactor, listening.getHost().port))
        self.assertEqual(await Api(reactor, http, f"http://{self.ONION}:9410").call("GET", "/x", Note), Note("x"))
        connect, head = asked
        name = self.ONION.encode()
        self.assertEqual(connect, b"\x05\x01\x00\x03" + bytes([len(name)]) + name + (9410).to_bytes(2, "big"))
        self.assertTrue(head.startswith(b"GET /x HTTP/1.1\r\n"), head)

    async def test_no_tor_no_call(self) -> None:
        self.patch(client, "Backoff", quick)
        http = closing(self, onion_http(reactor, 1))
        with self.assertRaises(Unreachable):
            await Api(reactor, http, f"http://{self.ONION}", tries=2).call("GET", "/x", Note)
