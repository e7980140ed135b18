"""The answering end: what it refuses and how, how long it waits, what it does with requests that are fine."""

from __future__ import annotations

import msgspec
import zstandard
from twisted.internet.defer import CancelledError, Deferred

import ron
from ron.oap import hello as room
from ron.oap.frames import FIXED_BYTES, MAX_FRAME_BYTES, Flags, encode
from ron.oap.messages import Request, Response
from ron.proto.errors import ErrorCode, RonError
from tests.oap.ends import END, EVENT, PROTO, REQ, RESP, START, WHOLE, Ends, Peer, frame

KIB = 1024


class Strangers(Ends):
    """Whoever does not speak OAP/1."""

    def assert_hung_up(self, peer: Peer, status: int, reason: str = "protocol") -> None:
        (answer,) = peer.hear() or peer.frames[-1:]
        self.said(answer, status)
        self.assertEqual(answer.app_proto_id, 0)
        self.assertTrue(peer.hung_up)
        self.assertEqual(self.rejected(reason), 1)
        self.assertEqual(self.requests, [])

    def test_http(self) -> None:
        peer = self.peer(greeted=False)
        peer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assert_hung_up(peer, 413)

    def test_another_version(self) -> None:
        peer = self.peer()
        raw = bytearray(encode(frame(WHOLE)))
        raw[4] = 2
        peer.write(bytes(raw))
        self.assert_hung_up(peer, 400)

    def test_a_request_before_hello(self) -> None:
        peer = self.peer(greeted=False)
        peer.say(frame(WHOLE))
        self.assert_hung_up(peer, 400)

    def test_an_event_before_hello(self) -> None:
        peer = self.peer(greeted=False)
        peer.say(frame(EVENT, app_proto_id=0, code=room.CONTEXT))
        self.assert_hung_up(peer, 400)

    def test_a_hello_that_is_none(self) -> None:
        for payload in (b"[]", b"x", b'"hello"', b"{" * 5000):
            peer = self.peer(greeted=False)
            (answer,) = peer.say(frame(WHOLE, 1, payload, app_proto_id=0))
            self.said(answer, 400)
            self.assertTrue(peer.hung_up)

    def test_an_answer_to_nothing(self) -> None:
        for proto in (0, PROTO):
            peer = self.peer()
            (answer,) = peer.say(frame(RESP | END, app_proto_id=proto))
            self.said(answer, 400)
            self.assertTrue(peer.hung_up)

    def test_sequences(self) -> None:
        for frames in (
            [frame(REQ | END)],
            [frame(REQ)],
            [frame(REQ | START), frame(REQ | START)],
            [frame(WHOLE), frame(WHOLE)],
            [frame(WHOLE), frame(REQ | END)],
            [frame(REQ | RESP | START)],
            [frame(EVENT | START)],
        ):
            peer = self.peer()
            answer = peer.say(*frames)[-1]
            self.said(answer, 400)
            self.assertEqual((answer.corr_id, peer.hung_up), (7, True))

    def test_what_comes_behind_a_violation_counts_for_nothing(self) -> None:
        peer = self.peer()
        peer.say(frame(REQ | END), frame(WHOLE, 8))
        self.assertEqual((len(peer.frames), self.requests), (1, []))
        peer.say(frame(WHOLE, 9))
        self.assertEqual((len(peer.frames), self.requests), (1, []))


class Answers(Ends):
    def test_hello(self) -> None:
        peer = self.peer(greeted=False)
        (answer,) = peer.say(frame(REQ, 3, b'{"ua": "other", "new": 1}', app_proto_id=0))
        self.assertEqual((answer.flags, answer.code, answer.corr_id), (RESP | END, 0, 3))
        self.assertEqual(
            msgspec.json.decode(answer.payload),
            {
                "server_version": ron.__version__,
                "max_frame": 1048576,
                "max_inflight": 64,
                "supported_flags": ["EVENT", "ACK_REQ", "COMP", "APP_E2E"],
                "oap_versions": [1],
                "transports": ["tcp+tls"],
                "pq": False,
            },
        )

    def test_a_request_in_one_frame(self) -> None:
        peer = self.peer()
        sent = frame(WHOLE | Flags.APP_E2E, 7, b"payload", code=3, tenant_id=5, cap=b"capability")
        peer.say(sent)
        (request,) = self.requests
        self.assertEqual((request.app_proto_id, request.code, request.tenant_id), (PROTO, 3, 5))
        self.assertEqual((request.cap, request.payload, request.e2e), (b"capability", b"payload", True))
        self.assertEqual((request.peer, request.identity), ("127.0.0.1", None))
        self.answers[0].callback(Response(payload=b"answer", code=202))
        (answer,) = peer.hear()
        self.assertEqual(answer, frame(RESP | END, 7, b"answer", code=202, tenant_id=5))

    def test_two_requests_in_chunks_at_a_time(self) -> None:
        peer = self.peer()
        for flags in (REQ | START, REQ, REQ | END):
            peer.say(frame(flags, 7, b"a"), frame(flags, 8, b"b"))
        self.assertEqual([request.payload for request in self.requests], [b"aaa", b"bbb"])
        self.answers[1].callback(Response(payload=b"B"))
        self.answers[0].callback(Response(payload=b"A"))
        self.assertEqual([(each.corr_id, each.payload) for each in peer.hear()], [(8, b"B"), (7, b"A")])

    def test_long_answers_come_in_chunks(self) -> None:
        for size, chunks in ((0, [0]), (65536, [65536]), (65537, [65536, 1]), (200_000, [65536] * 3 + [3392])):
            self.server = self.make_server(self.echo)
            peer = self.peer()
            answers = peer.say(frame(WHOLE, 7, bytes(size)))
            self.assertEqual([len(answer.payload) for answer in answers], chunks)
            self.assertEqual({answer.flags for answer in answers[:-1]}, {RESP} if len(chunks) > 1 else set())
            self.assertEqual(answers[-1].flags, RESP | END)

    def test_the_largest_frame(self) -> None:
        self.server = self.make_server(self.echo)
        payload = bytes(MAX_FRAME_BYTES - FIXED_BYTES)
        answers = self.peer().say(frame(WHOLE, 7, payload))
        self.assertEqual(sum(len(answer.payload) for answer in answers), len(payload))

    def test_acknowledgements(self) -> None:
        peer = self.peer()
        (ack,) = peer.say(frame(REQ | START, 7, b"12345"), frame(REQ | Flags.ACK_REQ, 7, b"678"))
        self.assertEqual((ack.flags, ack.app_proto_id, ack.code, ack.corr_id), (EVENT, 0, room.ACK, 7))
        self.assertEqual(msgspec.json.decode(ack.payload), {"received": 8})

    def test_what_nobody_knows_is_ignored(self) -> None:
        peer = self.peer()
        strange = [frame(EVENT, 7, b"\xff", app_proto_id=0, code=code) for code in (room.CONTEXT, room.ACK, 9, 65535)]
        self.assertEqual(peer.say(*strange, frame(EVENT, 7, b"x"), frame(EVENT, app_proto_id=0, code=room.CANCEL)), [])
        self.assertFalse(peer.hung_up)

    def test_compressed_both_ways_when_the_peer_began_it(self) -> None:
        self.server = self.make_server(self.echo)
        peer, plain = self.peer(), b"abc" * 1000
        (answer,) = peer.say(frame(WHOLE | Flags.COMP, 7, zstandard.ZstdCompressor().compress(plain)))
        self.assertEqual(zstandard.ZstdDecompressor().decompress(answer.payload), plain)
        self.assertEqual(self.requests[0].payload, plain)
        (answer,) = peer.say(frame(WHOLE, 7, plain))
        self.assertEqual((answer.flags, answer.payload), (RESP | END, plain))


class Trouble(Ends):
    """Handlers that refuse, fail, take too long, or work for nobody."""

    def test_a_refusal_is_passed_on(self) -> None:
        peer = self.peer()
        peer.say(frame(WHOLE))
        self.answers[0].errback(RonError(ErrorCode.CONFLICT, "was there", hint="choose another"))
        said = self.said(peer.hear()[0], 409)["error"]
        self.assertEqual((said["code"], said["message"], said["hint"]), ("Conflict", "was there", "choose another"))
        self.assertEqual(said["request_id"], self.requests[0].corr_id)

    def test_a_defect_says_nothing_of_itself(self) -> None:
        async def broken(request: Request) -> Response:
            raise ValueError("secret")

        self.server = self.make_server(broken)
        peer = self.peer()
        (answer,) = peer.say(frame(WHOLE))
        self.said(answer, 500)
        self.assertNotIn(b"secret", answer.payload)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertFalse(peer.hung_up)

    def test_a_code_that_is_no_success(self) -> None:
        peer = self.peer()
        peer.say(frame(WHOLE))
        self.answers[0].callback(Response(code=404))
        self.said(peer.hear()[0], 500)

    def test_a_deadline(self) -> None:
        peer = self.peer()
        peer.say(frame(WHOLE))
        cancelled: list[bool] = []
        self.answers[0]._canceller = lambda _answer: cancelled.append(True)
        self.advance(29.5)
        self.assertEqual(peer.hear(), [])
        self.advance(0.5)
        self.said(peer.hear()[0], 504)
        self.assertEqual(cancelled, [True])

    def test_a_handler_that_gives_up_by_itself(self) -> None:
        peer = self.peer()
        peer.say(frame(WHOLE))
        self.answers[0].errback(CancelledError())
        self.said(peer.hear()[0], 503)

    def cancelled_by(self, lose: bool) -> Peer:
        peer, cancelled = self.peer(), []
        peer.say(frame(WHOLE))

        def refuse(_deferred: Deferred[Response]) -> None:
            cancelled.append(True)
            _deferred.errback(RonError(ErrorCode.INTERNAL, "not any more"))

        self.answers[0]._canceller = refuse
        if lose:
            peer.lose()
        else:
            peer.say(frame(EVENT, app_proto_id=0, code=room.CANCEL))
        self.assertEqual(cancelled, [True])
        self.assertEqual((self.server.buffered, self.server.concurrency.busy), (0, 0))
        return peer

    def test_work_for_a_connection_that_is_gone_ends(self) -> None:
        self.assertEqual(self.cancelled_by(lose=True).frames, [])

    def test_work_that_is_cancelled_ends_with_one_answer(self) -> None:
        peer = self.cancelled_by(lose=False)
        (answer,) = peer.frames
        self.said(answer, 408)
        self.assertEqual((answer.corr_id, answer.app_proto_id), (7, PROTO))
        peer.say(frame(WHOLE))
        self.assertEqual(len(self.requests), 2)

    def test_a_handler_that_goes_on_all_the_same_answers_nobody_else(self) -> None:
        late: Deferred[Response] = Deferred()

        async def stubborn(request: Request) -> Response:
            try:
                return await self.by_hand(request)
            except CancelledError:
                return await late

        self.server = self.make_server(stubborn)
        peer = self.peer()
        peer.say(frame(WHOLE, 7, b"old"), frame(EVENT, app_proto_id=0, code=room.CANCEL), frame(WHOLE, 7, b"new"))
        peer.hear()
        late.callback(Response(payload=b"of the old one"))
        self.assertEqual((peer.hear(), list(peer.connection._jobs)), ([], [7]))
        self.answers[1].callback(Response(payload=b"of the new one"))
        self.assertEqual([answer.payload for answer in peer.hear()], [b"of the new one"])

    def test_a_cancelled_request_that_was_not_whole(self) -> None:
        peer = self.peer()
        (answer,) = peer.say(frame(REQ | START, 7, b"x"), frame(EVENT, app_proto_id=0, code=room.CANCEL))
        self.said(answer, 408)
        self.assertEqual(self.server.buffered, 0)
        self.advance(14)
        self.assertFalse(peer.hung_up)

    def test_cancelled_after_its_early_answer(self) -> None:
        self.server = self.make_server(limits={"body_bytes": KIB})
        peer = self.peer()
        (answer,) = peer.say(frame(REQ | START, 7, bytes(KIB + 1)))
        self.said(answer, 413)
        self.assertEqual(peer.say(frame(EVENT, app_proto_id=0, code=room.CANCEL)), [])
        self.assertEqual(peer.say(frame(WHOLE, 7, b"anew")), [])


class Draining(Ends):
    def test_the_idle_go_the_busy_finish_the_new_are_refused(self) -> None:
        idle, busy = self.peer(), self.peer()
        busy.say(frame(WHOLE))
        drained = Deferred.fromCoroutine(self.server.drain(5))
        self.assertTrue(idle.hung_up)
        idle.lose()
        self.said(busy.say(frame(WHOLE, 8))[0], 503)
        self.answers[0].callback(Response(payload=b"done"))
        self.assertEqual(busy.hear()[0].payload, b"done")
        self.assertTrue(busy.hung_up)
        busy.lose()
        self.assertEqual(self.successResultOf(drained), 0)

    def test_who_does_not_finish_is_cut_off(self) -> None:
        busy = self.peer()
        busy.say(frame(WHOLE))
        drained = Deferred.fromCoroutine(self.server.drain(5))
        self.advance(5)
        self.assertEqual(self.successResultOf(drained), 1)
        self.assertTrue(busy.transport.disconnected)

    def test_nobody_there(self) -> None:
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(self.server.drain(5))), 0)
