"""The asking end: what it makes of a server that refuses, breaks the rules, is slow or gone; and calls that go well."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from ron.kernel import correlation
from ron.kernel.commands import Busy
from ron.kernel.limits_config import LimitsConfig
from ron.oap import hello as room
from ron.oap.client import OapClient
from ron.oap.frames import Decoder, Flags, Frame, encode
from ron.oap.hello import HelloAnswer
from ron.oap.messages import Event, Request, Response
from ron.oap.tracing import number_of
from ron.proto.errors import ErrorCode, RonError, not_found
from ron.proto.ids import uuid7
from tests.oap.ends import END, EVENT, PROTO, REQ, RESP, START, WHOLE, Ends, Pair, Peer, frame

KIB = 1024


@implementer(IStreamClientEndpoint)
class Scripted:
    """An endpoint with the test at its other end."""

    def __init__(self) -> None:
        self.problem: Exception | None = None

    def connect(self, factory: Any) -> Deferred[Any]:
        if self.problem is not None:
            raise self.problem
        self.transport, self._decoder = StringTransport(), Decoder()
        self.client: OapClient = factory.buildProtocol(None)
        self.client.makeConnection(self.transport)
        done: Deferred[Any] = Deferred()
        done.callback(self.client)
        return done

    def hear(self) -> list[Frame]:
        heard = list(self._decoder.feed(self.transport.value()))
        self.transport.clear()
        return heard

    def say(self, *frames: Frame) -> None:
        self.client.dataReceived(b"".join(map(encode, frames)))


class Connecting(SynchronousTestCase):
    """A server that is none, or not one for us."""

    def setUp(self) -> None:
        self.clock, self.there = Clock(), Scripted()

    def connect(self) -> Deferred[OapClient]:
        return Deferred.fromCoroutine(OapClient.connect(self.clock, self.there))

    def failure(self, connecting: Deferred[OapClient]) -> RonError:
        error = self.failureResultOf(connecting, RonError).value
        assert isinstance(error, RonError)
        return error

    def answered(self, **fields: Any) -> RonError:
        connecting = self.connect()
        self.there.say(frame(RESP | END, 1, **{"app_proto_id": 0, **fields}))
        self.assertTrue(self.there.transport.disconnected)
        return self.failure(connecting)

    def test_nobody_there(self) -> None:
        self.there.problem = ConnectionRefusedError()
        self.assertEqual(self.failure(self.connect()).status, 503)

    def test_no_answer(self) -> None:
        connecting = self.connect()
        self.clock.advance(2)
        self.assertEqual(self.failure(connecting).code, ErrorCode.TIMEOUT)
        self.assertTrue(self.there.transport.disconnected)

    def test_an_answer_that_is_none(self) -> None:
        good = room.encode(HelloAnswer(server_version="1"))
        for payload in (b"", b"[]", b"{}", good.replace(b"1048576", b"9"), good.replace(b"64", b"0")):
            self.assertEqual(self.answered(payload=payload).code, ErrorCode.BAD_REQUEST, payload)

    def test_another_version(self) -> None:
        payload = room.encode(HelloAnswer(server_version="9", oap_versions=(2, 3)))
        self.assertEqual(self.answered(payload=payload).code, ErrorCode.UNSUPPORTED)

    def test_a_refusal(self) -> None:
        self.assertEqual(self.answered(code=503).status, 503)
        connecting = self.connect()
        self.there.say(frame(RESP | END, 0, app_proto_id=0, code=429))
        self.assertEqual(self.failure(connecting).status, 429)

    def test_fields_of_later_versions_do_no_harm(self) -> None:
        connecting = self.connect()
        said = room.encode(HelloAnswer(server_version="9", max_inflight=1000, oap_versions=(1, 2), supported_flags=()))
        self.there.say(frame(RESP, 1, said[:-1] + b',"new":1}', app_proto_id=0))
        client = self.successResultOf(connecting)
        self.assertEqual((client.streams.max_inflight, client.offer.oap_versions), (64, (1, 2)))


class Servers(SynchronousTestCase):
    """A server that says what it likes."""

    def setUp(self) -> None:
        self.clock, self.there = Clock(), Scripted()
        connecting = Deferred.fromCoroutine(
            OapClient.connect(self.clock, self.there, limits=LimitsConfig(body_bytes=4096))
        )
        said = HelloAnswer(server_version="1", max_inflight=2, max_frame=2048, supported_flags=())
        self.there.say(frame(RESP | END, 1, room.encode(said), app_proto_id=0))
        self.client = self.successResultOf(connecting)
        self.addCleanup(self.lose, self.client)
        self.there.hear()

    def call(self, payload: bytes = b"", **options: Any) -> Deferred[Response]:
        work = Deferred.fromCoroutine(self.client.call(PROTO, 1, payload, **options))
        self.addCleanup(work.addErrback, lambda _failure: None)
        return work

    def lose(self, client: OapClient) -> None:
        if not client.lost.called:
            client.connectionLost()

    def sent(self) -> list[Frame]:
        """What went out, without the contexts."""
        return [each for each in self.there.hear() if not (each.flags & EVENT and each.code == room.CONTEXT)]

    def test_violations(self) -> None:
        for strange in (
            frame(RESP | END, 99),
            frame(RESP, 99),
            frame(WHOLE, 99),
            frame(REQ, 99, app_proto_id=0),
            frame(RESP | START, 99),
        ):
            self.setUp()
            waiting = self.call()
            self.there.say(strange)
            self.assertTrue(self.there.transport.disconnected)
            self.client.connectionLost()
            self.assertEqual(self.failureResultOf(waiting, RonError).value.status, 503)

    def test_hung_up_on_for_a_reason(self) -> None:
        waiting = self.call()
        self.there.say(frame(RESP | END, 0, app_proto_id=0, code=408))
        self.client.connectionLost()
        self.assertEqual(self.failureResultOf(waiting, RonError).value.status, 408)
        self.assertEqual(self.failureResultOf(self.call(), RonError).value.status, 408)

    def test_its_limits_are_kept(self) -> None:
        first, second = self.call(bytes(5000)), self.call(compress=True)
        frames = self.sent()
        self.assertEqual([len(each.payload) for each in frames], [2015, 2015, 970, 0])
        self.assertFalse(any(each.flags & Flags.COMP for each in frames))
        self.failureResultOf(self.call(), Busy)
        self.there.say(frame(RESP | END, frames[0].corr_id, b"one"))
        self.assertEqual(self.successResultOf(first).payload, b"one")
        third = self.call()
        self.assertNoResult(second)
        self.assertNoResult(third)

    def test_a_capability_too_long_for_its_frames(self) -> None:
        self.assertEqual(self.failureResultOf(self.call(cap=bytes(2100)), RonError).value.status, 400)
        self.call(cap=bytes(2000))
        self.assertEqual([len(each.cap) for each in self.sent()], [2000])

    def test_an_answer_larger_than_we_take(self) -> None:
        waiting = self.call()
        (begin,) = self.sent()
        self.there.say(frame(RESP, begin.corr_id, bytes(2000)), frame(RESP, begin.corr_id, bytes(2097)))
        self.assertEqual(self.failureResultOf(waiting, RonError).value.status, 413)
        (cancel,) = self.sent()
        self.assertEqual((cancel.app_proto_id, cancel.code, cancel.corr_id), (0, room.CANCEL, begin.corr_id))
        self.there.say(frame(RESP, begin.corr_id, bytes(2000)), frame(RESP | END, begin.corr_id))
        self.assertEqual(len(self.client.streams), 0)

    def test_a_bomb(self) -> None:
        waiting = self.call()
        (begin,) = self.sent()
        self.there.say(frame(RESP | END | Flags.COMP, begin.corr_id, b"no zstd"))
        self.assertEqual(self.failureResultOf(waiting, RonError).value.status, 400)
        self.assertFalse(self.there.transport.disconnected)

    def test_an_error_without_an_envelope(self) -> None:
        waiting = self.call()
        (begin,) = self.sent()
        self.there.say(frame(RESP | END, begin.corr_id, b"<html>", code=502))
        error = self.failureResultOf(waiting, RonError).value
        self.assertEqual((error.code, error.status), (ErrorCode.INTERNAL, 502))

    def test_one_that_never_answers_what_was_given_up_is_hung_up_on(self) -> None:
        waiting = self.call(deadline_s=3)
        self.clock.advance(3)
        self.assertEqual(self.failureResultOf(waiting, RonError).value.code, ErrorCode.TIMEOUT)
        self.assertEqual([each.code for each in self.sent()], [1, room.CANCEL])
        other = self.call(deadline_s=100)
        self.clock.advance(14.9)
        self.assertFalse(self.there.transport.disconnected)
        self.clock.advance(0.2)
        self.assertTrue(self.there.transport.disconnected)
        self.client.connectionLost()
        self.assertIn("does not answer", self.failureResultOf(other, RonError).value.message)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_late_answer_is_nobodys(self) -> None:
        waiting = self.call(bytes(5000), deadline_s=3)
        (begin, *_rest) = self.sent()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual([each.code for each in self.sent()], [room.CANCEL])
        self.assertIn(begin.corr_id, self.client.streams)
        self.there.say(frame(RESP, begin.corr_id, b"late"), frame(RESP | END, begin.corr_id, b"late", code=500))
        self.assertNotIn(begin.corr_id, self.client.streams)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def fill_up(self) -> None:
        """From now on each write is one more than the peer has read."""
        write = self.there.transport.write

        def full(raw: bytes) -> None:
            write(raw)
            self.client.pauseProducing()

        self.there.transport.write = full  # type: ignore[method-assign]

    def test_answered_in_the_middle_of_a_request(self) -> None:
        """The rest is left out, and its end said, so that both have the number free."""
        self.fill_up()
        waiting = self.call(bytes(5000))
        (begin,) = self.sent()
        self.there.say(frame(RESP | END, begin.corr_id, code=413))
        self.assertNoResult(waiting)
        self.client.resumeProducing()
        self.assertEqual(self.failureResultOf(waiting, RonError).value.status, 413)
        (end,) = self.sent()
        self.assertEqual((end.flags, end.corr_id, end.payload), (REQ | END, begin.corr_id, b""))
        self.assertNotIn(begin.corr_id, self.client.streams)

    def test_given_up_in_the_middle_of_a_request(self) -> None:
        """What is left of it never comes, so it must not look whole; the number is free once the server has said so."""
        self.fill_up()
        waiting = self.call(bytes(5000), deadline_s=3)
        self.clock.advance(3)
        self.failureResultOf(waiting, RonError)
        begin, cancel = self.sent()
        self.assertEqual((begin.flags, cancel.code, cancel.corr_id), (REQ | START, room.CANCEL, begin.corr_id))
        self.client.resumeProducing()
        self.assertEqual(self.sent(), [])
        self.there.say(frame(RESP | END, begin.corr_id, code=408))
        self.assertNotIn(begin.corr_id, self.client.streams)

    def test_given_up_while_the_server_does_not_read(self) -> None:
        self.client.pauseProducing()
        waiting = self.call(b"never sent", deadline_s=3)
        self.clock.advance(3)
        self.failureResultOf(waiting, RonError)
        self.assertEqual((self.sent(), len(self.client.streams)), ([], 0))

    def test_what_has_no_place_in_a_call(self) -> None:
        for options in ({"corr_id": "no uuid"}, {"tenant_id": 2**128}):
            self.assertEqual(self.failureResultOf(self.call(**options), RonError).value.status, 400)
        control = Deferred.fromCoroutine(self.client.call(0, 1))
        self.assertEqual(self.failureResultOf(control, RonError).value.status, 400)
        self.assertEqual((self.sent(), len(self.client.streams)), ([], 0))


class Calls(Pair):
    """Client and server."""

    def setUp(self) -> None:
        super().setUp()
        self.server = self.make_server(self.echo)

    def test_there_and_back(self) -> None:
        client = self.connect()
        answer = self.successResultOf(self.call(client, b"payload", cap=b"cap", tenant_id=9, e2e=True))
        self.assertEqual((answer.payload, answer.code, answer.e2e), (b"payload", 0, True))
        (request,) = self.requests
        self.assertEqual((request.app_proto_id, request.code, request.cap, request.tenant_id), (PROTO, 1, b"cap", 9))
        self.assertEqual((len(client.streams), self.server.buffered), (0, 0))

    @settings(max_examples=30, deadline=None)
    @given(st.sampled_from((0, 1, 1023, 1024, 65535, 65536, 65537, 131072, 700_001)), st.booleans(), st.booleans())
    def test_any_size(self, size: int, compress: bool, e2e: bool) -> None:
        self.setUp()
        client = self.connect()
        payload = (b"0123456789abcdef" * (size // 16 + 1))[:size]
        answer = self.successResultOf(self.call(client, payload, compress=compress, e2e=e2e))
        self.assertEqual((answer.payload, answer.e2e), (payload, e2e))
        self.assertEqual(self.requests[-1].payload, payload)
        client.abort()

    def test_a_short_question_may_have_a_compressed_answer(self) -> None:
        async def long(_request: Request) -> Response:
            return Response(payload=bytes(60_000), compress=True)

        self.server = self.make_server(long)
        client = self.connect()
        before = self.metrics.registry.get_sample_value("bytes_out_total")
        self.assertEqual(self.successResultOf(self.call(client, b"?", compress=True)).payload, bytes(60_000))
        after = self.metrics.registry.get_sample_value("bytes_out_total")
        self.assertLess((after or 0) - (before or 0), 1000)

    def test_many_at_a_time_in_any_order(self) -> None:
        self.server = self.make_server()
        client = self.connect()
        calls = [self.call(client, b"%d" % number) for number in range(64)]
        self.failureResultOf(self.call(client), Busy)
        for number in reversed(range(64)):
            self.answers[number].callback(Response(payload=self.requests[number].payload * 2))
        self.settle()
        self.assertEqual([self.successResultOf(call).payload for call in calls], [b"%d" % n * 2 for n in range(64)])

    def test_an_error_is_the_one_that_was_raised(self) -> None:
        self.server = self.make_server()
        client = self.connect()
        call = self.call(client)
        self.answers[0].errback(not_found("no such topic"))
        self.settle()
        error = self.failureResultOf(call, RonError).value
        self.assertEqual((error.code, error.status, error.message), (ErrorCode.NOT_FOUND, 404, "no such topic"))

    def test_when_to_come_back_is_told(self) -> None:
        self.server = self.make_server(limits={"concurrency": 1})
        client = self.connect()
        self.call(client)
        error = self.failureResultOf(self.call(client), RonError).value
        self.assertEqual((error.status, error.retryable), (503, True))
        self.assertIn(error.retry_after_s, range(1, 6))

    def test_refused_in_the_middle_of_a_long_request(self) -> None:
        self.server = self.make_server(limits={"body_bytes": 70_000})
        client = self.connect()
        self.assertEqual(self.failureResultOf(self.call(client, bytes(1_000_000)), RonError).value.status, 413)
        self.settle()
        self.assertEqual((len(client.streams), self.server.buffered), (0, 0))
        self.assertEqual(self.pump.server.streams._streams, {})
        self.call(client, b"next")
        self.assertEqual(self.requests[0].payload, b"next")

    def test_given_up_and_the_handler_with_it(self) -> None:
        self.server = self.make_server()
        client = self.connect()
        cancelled: list[bool] = []
        call = self.call(client, deadline_s=1)
        self.answers[0]._canceller = lambda _answer: cancelled.append(True)
        self.clock.advance(1)
        self.failureResultOf(call, RonError)
        self.settle()
        self.assertEqual((cancelled, len(client.streams), len(self.pump.server.streams)), ([True], 0, 0))
        again = self.call(client)
        self.answers[1].callback(Response(payload=b"fine"))
        self.settle()
        self.assertEqual(self.successResultOf(again).payload, b"fine")

    def test_the_connection_goes(self) -> None:
        self.server = self.make_server()
        client = self.connect()
        call = self.call(client)
        self.pump.server.abort()
        self.settle()
        self.assertEqual(self.failureResultOf(call, RonError).value.code, ErrorCode.STORE_UNAVAILABLE)
        self.failureResultOf(self.call(client), RonError)
        self.assertEqual(self.failureResultOf(Deferred.fromCoroutine(client.ping(1)), RonError).value.status, 503)

    def test_news(self) -> None:
        news: list[Event] = []
        self.server = self.make_server()
        client = self.connect(on_event=news.append)
        self.call(client)
        self.assertTrue(self.requests[0].push(PROTO, 4, b"news"))
        self.settle()
        (event,) = news
        self.assertEqual((event.app_proto_id, event.code, event.payload), (PROTO, 4, b"news"))
        self.assertRaises(RonError, self.requests[0].push, 0, 1, b"")

    def test_a_listener_that_fails(self) -> None:
        def fail(_event: Event) -> None:
            raise ValueError

        self.server = self.make_server()
        client = self.connect(on_event=fail)
        self.call(client)
        self.requests[0].push(PROTO, 4, b"news")
        self.settle()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertFalse(client.over)

    def test_hello_keeps_it(self) -> None:
        client = self.connect()
        for _ in range(4):
            self.clock.advance(10)
            again = Deferred.fromCoroutine(client.ping(1))
            self.settle()
            self.successResultOf(again)
        self.assertFalse(client.over)
        self.clock.advance(15)
        self.settle()
        self.assertTrue(client.over)

    def test_frames_can_be_told_by_the_correlation_id(self) -> None:
        self.server = self.make_server()
        client, corr_id = self.connect(), str(uuid7())
        self.call(client, corr_id=corr_id)
        self.assertIn(number_of(corr_id), client.streams)
        self.call(client, corr_id=corr_id)
        self.assertEqual(len(client.streams), 2)
        self.assertEqual([request.corr_id for request in self.requests], [corr_id] * 2)

    def test_the_correlation_id_of_the_request_that_is_worked_on(self) -> None:
        client, corr_id = self.connect(), str(uuid7())
        mark = correlation.begin(corr_id)
        self.call(client)
        correlation.end(mark)
        self.assertEqual(self.requests[0].corr_id, corr_id)

    def test_what_the_handler_causes_belongs_to_the_request(self) -> None:
        seen: list[str | None] = []

        async def look(request: Request) -> Response:
            seen.append(correlation.current())
            return Response()

        self.server = self.make_server(look)
        corr_id = str(uuid7())
        self.call(self.connect(), corr_id=corr_id)
        self.assertEqual((seen, correlation.current()), ([corr_id], None))


class Strangers(Ends):
    def test_without_a_context_a_correlation_id_is_made(self) -> None:
        peer: Peer = self.peer()
        peer.say(
            frame(WHOLE), frame(EVENT, 8, b'{"x-corr-id": "none"}', app_proto_id=0, code=room.CONTEXT), frame(WHOLE, 8)
        )
        first, second = (request.corr_id for request in self.requests)
        self.assertNotEqual(first, second)
        self.assertEqual({first[14], second[14]}, {"7"})
