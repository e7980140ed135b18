"""The pair between owner and worker: bad bytes first, then frames, the first word, and what ends it."""

from __future__ import annotations

import pickle
import socket
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ron.crypto.secrets import SecretBuffer
from ron.kernel.limits import Refused, too_many
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.services.kms.model import Caller
from ron.services.kms.workers import frames, link
from ron.services.kms.workers.frames import (
    Applied,
    Go,
    Standing,
    Start,
    Trouble,
    Who,
    decode_downward,
    decode_upward,
    encode_frame,
)
from ron.services.kms.workers.lent import LentKeys
from ron.services.kms.workers.link import Link, give, take

START = Start(name="kms-worker.1", workers=2, config=b"{}", forward="/run/s")


class Frames(SynchronousTestCase):
    @settings(deadline=None, max_examples=50)
    @given(st.binary(max_size=200))
    def test_any_bytes(self, raw: bytes) -> None:
        for decode in (decode_upward, decode_downward):
            try:
                found = decode(raw)
            except RonError as error:
                self.assertIs(error.code, ErrorCode.BAD_REQUEST)
            else:
                self.assertEqual(decode(encode_frame(found)), found)

    def test_what_is_the_others_to_say(self) -> None:
        with self.assertRaises(RonError):
            decode_upward(encode_frame(Go()))
        with self.assertRaises(RonError):
            decode_downward(encode_frame(Applied(1)))
        with self.assertRaises(RonError):
            decode_upward(msgspec.msgpack.encode({"type": "applied", "generation": 1, "more": 2}))

    def test_too_long(self) -> None:
        self.patch(frames, "MAX_FRAME_BYTES", 100)
        standing = Standing(1, {}, {}, {"audit_ready": "x" * 200}, fresh=True)
        with self.assertRaises(RonError):
            encode_frame(standing)

    def test_errors_arrive_as_they_were(self) -> None:
        for error in (unavailable("away", "mend it"), too_many("rate", "too many", wait_s=9.0)):
            made = msgspec.msgpack.decode(msgspec.msgpack.encode(Trouble.of(error)), type=Trouble).error()
            for name in ("code", "message", "hint", "status", "retry_after_s"):
                self.assertEqual(getattr(made, name), getattr(error, name))
            self.assertIs(type(made), type(error))
        self.assertEqual(Trouble.of(too_many("rate", "x")).reason, "rate")
        self.assertIsInstance(Trouble.of(too_many("rate", "x")).error(), Refused)

    def test_a_caller_arrives_without_its_capability(self) -> None:
        made = Who.of(Caller("cap", ("core",), "c")).caller()
        self.assertEqual((made.actor, made.tenant, made.corr_id, made.capability), ("cap", "core", "c", None))


class FirstWord(SynchronousTestCase):
    def setUp(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.addCleanup(self.ours.close)
        self.addCleanup(self.theirs.close)

    def test_word_and_master_key(self) -> None:
        master = bytes(range(32))
        give(self.ours, START, memoryview(master))
        start, secret = take(self.theirs, allow_unlocked=lambda _start: True)
        self.addCleanup(secret.close)
        self.assertEqual(start, START)
        with secret.open() as view:
            self.assertEqual(bytes(view), master)

    def test_an_owner_that_goes_in_between(self) -> None:
        for raw in (b"", b"\0\0", b"\0\0\0\x04abc", b"\xff\xff\xff\xff", b"\0\0\0\x01\x01"):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                ours.sendall(raw)
                ours.shutdown(socket.SHUT_WR)
                with self.assertRaises(RonError):
                    take(theirs, allow_unlocked=lambda _start: True)

    def test_a_master_key_that_is_cut_short(self) -> None:
        give(self.ours, START, memoryview(bytes(31)))
        self.ours.shutdown(socket.SHUT_WR)
        with self.assertRaises(RonError):
            take(self.theirs, allow_unlocked=lambda _start: True)


class OnThePair(TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.lost: Deferred[None] = Deferred()
        self.heard: list[Any] = []
        self.came: Deferred[None] = Deferred()
        self.link: Link[Any] = Link(decode_upward, self.hear, lambda: self.lost.callback(None))
        self.link.join(self.ours, reactor)

    async def tearDown(self) -> None:
        self.link.close()
        self.theirs.close()
        await self.lost

    def hear(self, frame: Any) -> None:
        self.heard.append(frame)
        if len(self.heard) == 2:
            self.came.callback(None)

    def put(self, raw: bytes) -> None:
        self.theirs.sendall(len(raw).to_bytes(4, "big") + raw)

    async def test_frames_both_ways(self) -> None:
        self.put(encode_frame(Applied(1)))
        self.put(encode_frame(Applied(2)))
        await self.came
        self.assertEqual(self.heard, [Applied(1), Applied(2)])
        self.link.tell(Go())
        raw = encode_frame(Go())
        self.theirs.settimeout(5)
        received = await _in_thread(self.theirs.recv, 100)
        self.assertEqual(received, len(raw).to_bytes(4, "big") + raw)

    async def test_what_is_no_frame_ends_it(self) -> None:
        self.put(b"\xc1")
        await self.lost
        self.assertTrue(self.link.over)
        self.link.tell(Go())
        self.flushLoggedErrors()
        self.lost = Deferred()
        self.lost.callback(None)

    async def test_a_length_beyond_all_bounds_ends_it(self) -> None:
        self.theirs.sendall(b"\xff\xff\xff\xff")
        await self.lost
        self.lost = Deferred()
        self.lost.callback(None)

    async def test_it_hears_that_the_other_has_gone(self) -> None:
        self.theirs.close()
        await self.lost
        self.lost = Deferred()
        self.lost.callback(None)

    async def test_it_hears_that_the_other_does_not_read(self) -> None:
        standing = Standing(1, {}, {}, {"audit_ready": "x" * 1_000_000}, fresh=True)
        for _ in range(4):
            self.link.tell(standing)
        self.assertFalse(self.link.congested, "not at once")
        self.patch(link, "STALLED_S", 0.0)
        self.assertTrue(self.link.congested)


class Secret(SynchronousTestCase):
    def test_a_lent_key_is_not_stored(self) -> None:
        lent = LentKeys(SecretBuffer(32, allow_unlocked=True), allow_unlocked=True)
        self.addCleanup(lent.close)
        with self.assertRaises(TypeError):
            pickle.dumps(lent)


async def _in_thread(function: Any, *args: Any) -> Any:
    return await deferToThread(function, *args)
