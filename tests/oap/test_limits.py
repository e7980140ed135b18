"""The answering end's limits: how many, how much, how long, and what becomes of peers that do not read."""

from __future__ import annotations

import zstandard

from ron.oap.frames import Flags, encode
from ron.oap.messages import Response
from tests.oap.ends import END, PROTO, REQ, RESP, START, WHOLE, Ends, frame, hello

KIB = 1024


class Limits(Ends):
    """How many, how much, how long."""

    def test_connections(self) -> None:
        self.server = self.make_server(limits={"connections": 2})
        peers = [self.peer() for _ in range(2)]
        refused = self.peer(greeted=False)
        self.assertIn(self.said(refused.hear()[0], 503)["retry_after_s"], range(1, 6))
        self.assertTrue(refused.hung_up)
        peers[0].lose()
        self.assertFalse(self.peer().hung_up)

    def test_requests_under_way(self) -> None:
        peer = self.peer()
        peer.say(*(frame(WHOLE, number) for number in range(10, 74)))
        self.assertEqual(len(self.requests), 64)
        (refused,) = peer.say(frame(WHOLE, 100))
        self.assertIn(self.said(refused, 429)["retry_after_s"], range(1, 6))
        (refused,) = peer.say(frame(REQ | START, 101), frame(REQ, 101), frame(REQ | END, 101))
        self.assertEqual((self.said(refused, 429)["error"]["code"], refused.corr_id), ("Backpressure", 101))
        self.assertFalse(peer.hung_up)
        self.answers[0].callback(Response())
        peer.say(frame(WHOLE, 102))
        self.assertEqual(len(self.requests), 65)
        self.assertEqual(self.rejected("inflight"), 2)

    def test_requests_a_second(self) -> None:
        self.server = self.make_server(self.echo, limits={"requests_per_second_per_peer": 2})
        peer, other = self.peer(), self.peer(host="127.0.0.2")
        codes = [answer.code for answer in peer.say(*(frame(WHOLE, number) for number in range(10, 13)))]
        self.assertEqual(codes, [0, 0, 429])
        self.assertEqual([answer.code for answer in other.say(frame(WHOLE))], [0])
        self.advance(1)
        self.assertEqual([answer.code for answer in peer.say(frame(WHOLE))], [0])

    def test_work_of_all_peers_together(self) -> None:
        self.server = self.make_server(limits={"concurrency": 1})
        self.peer().say(frame(WHOLE))
        peer = self.peer()
        self.said(peer.say(frame(WHOLE))[0], 503)
        self.answers[0].callback(Response())
        peer.say(frame(WHOLE))
        self.assertEqual(len(self.requests), 2)

    def test_a_request_over_the_limit(self) -> None:
        self.server = self.make_server(limits={"body_bytes": 4 * KIB})
        peer = self.peer()
        (refused,) = peer.say(frame(REQ | START, 7, bytes(3 * KIB)), frame(REQ, 7, bytes(2 * KIB)), frame(REQ, 7, b"x"))
        self.said(refused, 413)
        self.assertEqual(peer.say(frame(REQ | END)), [])
        self.said(peer.say(frame(WHOLE, 8, bytes(4 * KIB + 1)))[0], 413)
        peer.say(frame(WHOLE, 9, bytes(4 * KIB)))
        self.assertEqual((len(self.requests), peer.hung_up), (1, False))

    def test_what_one_connection_may_have_in_memory(self) -> None:
        self.server = self.make_server(limits={"body_bytes": 4 * KIB})
        peer = self.peer()
        self.assertEqual(peer.say(*(frame(REQ | START, number, bytes(4 * KIB)) for number in (10, 11))), [])
        self.said(peer.say(frame(REQ | START, 12, b"x"))[0], 429)
        self.assertEqual(self.server.buffered, 8 * KIB)
        peer.say(frame(REQ | END, 10))
        self.answers[0].callback(Response())
        self.assertEqual([answer.corr_id for answer in peer.hear()], [10])
        self.assertEqual(peer.say(frame(REQ | START, 13, b"x")), [])
        peer.lose()
        self.assertEqual(self.server.buffered, 0)

    def test_what_all_connections_may_have_in_memory(self) -> None:
        self.server = self.make_server(buffer_bytes=4 * KIB)
        self.peer().say(frame(REQ | START, 7, bytes(4 * KIB)))
        self.said(self.peer().say(frame(WHOLE, 7, b"x"))[0], 503)
        self.assertEqual(self.server.buffered, 4 * KIB)

    def test_bombs(self) -> None:
        peer = self.peer()
        bomb = zstandard.ZstdCompressor().compress(bytes(9 * KIB * KIB))
        self.said(peer.say(frame(WHOLE | Flags.COMP, 7, bomb))[0], 413)
        self.said(peer.say(frame(WHOLE | Flags.COMP, 8, b"no zstd"))[0], 400)
        self.assertEqual((self.rejected("decompress_cap"), self.requests, peer.hung_up), (1, [], False))
        self.assertEqual(self.server.buffered, 0)

    def test_no_hello_in_time(self) -> None:
        peer = self.peer(greeted=False)
        raw = encode(hello())
        for at in range(3):
            peer.write(raw[at : at + 1])
            self.advance(0.6, 0.1)
        self.assertEqual(peer.frames, [])
        self.advance(0.4, 0.1)
        self.said(peer.hear()[0], 408)
        self.assertEqual((peer.hung_up, self.rejected("handshake")), (True, 1))

    def test_idle(self) -> None:
        peer = self.peer()
        self.advance(14)
        peer.say(hello())
        self.advance(14)
        self.assertFalse(peer.hung_up)
        self.advance(2)
        self.assertTrue(peer.hung_up)
        self.assertEqual(self.rejected("slow_body"), 0)

    def test_waiting_for_an_answer_is_not_being_idle(self) -> None:
        self.server = self.make_server(deadline_s=100)
        peer = self.peer()
        peer.say(frame(WHOLE))
        self.advance(60)
        self.assertFalse(peer.hung_up)
        self.answers[0].callback(Response(payload=b"late"))
        self.assertEqual(peer.hear()[0].payload, b"late")
        self.advance(14)
        self.assertFalse(peer.hung_up)
        self.advance(2)
        self.assertTrue(peer.hung_up)

    def test_a_frame_that_drips(self) -> None:
        peer = self.peer()
        raw = encode(frame(WHOLE, 7, bytes(100_000)))
        for at in range(31):
            self.assertFalse(peer.hung_up, at)
            peer.write(raw[at * 10 : at * 10 + 10])
            self.advance(0.5)
        self.said(peer.hear()[0], 408)
        self.assertEqual((peer.hung_up, self.rejected("slow_body")), (True, 1))

    def test_a_request_that_never_ends(self) -> None:
        peer = self.peer()
        peer.say(frame(REQ | START, 7, b"first"))
        self.advance(15)
        self.said(peer.hear()[0], 408)
        self.assertEqual((peer.hung_up, self.rejected("slow_body")), (True, 1))

    def test_slow_but_steady_is_fine(self) -> None:
        peer = self.peer()
        raw = encode(frame(WHOLE, 7, bytes(200_000)))
        for at in range(0, len(raw), 2048):
            peer.write(raw[at : at + 2048])
            self.advance(1)
        self.assertEqual((len(self.requests), peer.hung_up), (1, False))


class SlowReaders(Ends):
    """Whoever does not take its answers."""

    def setUp(self) -> None:
        super().setUp()
        self.server = self.make_server(self.echo)
        self.reader = self.peer()
        self.connection = self.reader.connection
        self.connection.pauseProducing()  # as a transport says that its buffer is full

    def test_nothing_more_is_read_and_no_chunk_is_made(self) -> None:
        self.assertEqual(self.reader.transport.producerState, "paused")
        self.assertEqual(self.reader.say(frame(WHOLE, 7, bytes(200 * KIB))), [])
        self.connection.resumeProducing()
        self.assertEqual(self.reader.transport.producerState, "producing")
        self.assertEqual(sum(len(chunk.payload) for chunk in self.reader.hear()), 200 * KIB)

    def test_cut_off(self) -> None:
        self.advance(9.5)
        self.assertFalse(self.reader.hung_up)
        self.advance(0.5)
        self.assertTrue(self.reader.transport.disconnected)
        self.assertEqual(self.rejected("slow_reader"), 1)

    def test_cut_off_with_an_answer_under_way(self) -> None:
        self.reader.say(frame(WHOLE, 7, bytes(200 * KIB)))
        self.advance(10)
        self.assertTrue(self.reader.gone)
        self.assertEqual((self.server.buffered, self.server.concurrency.busy), (0, 0))

    def test_events_for_it_are_dropped(self) -> None:
        self.reader.say(frame(WHOLE))
        push = self.requests[0].push
        self.assertFalse(push(PROTO, 1, b"news"))
        self.connection.resumeProducing()
        self.assertTrue(push(PROTO, 1, b"news"))
        self.assertEqual(self.reader.hear()[-1].payload, b"news")

    def test_who_does_not_read_the_farewell(self) -> None:
        self.connection.resumeProducing()
        self.reader.say(frame(RESP))
        self.assertTrue(self.reader.transport.disconnecting)
        self.advance(10)
        self.assertTrue(self.reader.transport.disconnected)
