"""OAP/1's frames: what is refused, in what form they travel, and that it does not matter how a stream is cut."""

from __future__ import annotations

import tracemalloc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.oap.frames import FIXED_BYTES, MAX_FRAME_BYTES, Decoder, Flags, Frame, Violation, encode
from ron.proto.errors import RonError

START_REQ = Flags.REQ | Flags.START


def frames() -> st.SearchStrategy[Frame]:
    """Any frame that may be sent."""

    def build(flags: int, cap: bytes, **fields: Any) -> Frame:
        return Frame(flags=Flags(flags), cap=cap if flags & Flags.START else b"", **fields)

    return st.builds(
        build,
        flags=st.integers(0, 255),
        cap=st.binary(max_size=40),
        code=st.integers(0, 2**16 - 1),
        app_proto_id=st.integers(0, 2**16 - 1),
        tenant_id=st.integers(0, 2**128 - 1),
        corr_id=st.integers(0, 2**64 - 1),
        payload=st.binary(max_size=200),
    )


def head(**fields: int) -> bytes:
    """The bytes of a frame without payload, with any number anywhere."""
    said = {"length": FIXED_BYTES, "ver": 1, "flags": 1, "code": 0, "proto": 0, "tenant": 0, "cap": 0, "corr": 7}
    said.update(fields)
    sizes = {"length": 4, "ver": 1, "flags": 2, "code": 2, "proto": 2, "tenant": 16, "cap": 2, "corr": 8}
    return b"".join(said[name].to_bytes(size, "little") for name, size in sizes.items())


class Refused(SynchronousTestCase):
    """What is no OAP/1 is refused by the least that shows it."""

    def refused(self, raw: bytes, status: int, *, max_frame: int = MAX_FRAME_BYTES) -> Violation:
        decoder = Decoder(max_frame)
        violation = self.assertRaises(Violation, list, decoder.feed(raw))
        self.assertEqual(violation.status, status, violation)
        self.assertEqual(decoder.waiting_bytes, 0)
        again = self.assertRaises(
            Violation, list, decoder.feed(encode(Frame(flags=START_REQ, app_proto_id=1, corr_id=1)))
        )
        self.assertIs(again, violation)
        return violation

    def test_too_long_by_its_length_alone(self) -> None:
        self.refused((MAX_FRAME_BYTES + 1).to_bytes(4, "little"), 413)
        self.refused(b"\xff" * 4, 413)
        self.refused(b"GET / HTTP/1.1\r\n", 413)
        self.refused((101).to_bytes(4, "little"), 413, max_frame=100)

    def test_shorter_than_its_fixed_fields(self) -> None:
        self.refused(bytes(4), 400)
        self.refused((FIXED_BYTES - 1).to_bytes(4, "little"), 400)

    def test_another_version_by_the_fifth_byte(self) -> None:
        for version in (0, 2, 255):
            self.refused(head(ver=version)[:5], 400)

    def test_a_capability_longer_than_its_frame(self) -> None:
        self.assertEqual(self.refused(head(flags=int(START_REQ), cap=1), 400).corr_id, 7)
        self.refused(head(flags=int(START_REQ), cap=2**16 - 1), 400)

    def test_a_capability_without_start(self) -> None:
        raw = head(flags=1, cap=3, length=FIXED_BYTES + 3) + b"cap"
        self.assertEqual(self.refused(raw, 400).corr_id, 7)

    def test_what_came_before_counts(self) -> None:
        good = Frame(flags=START_REQ, app_proto_id=1, corr_id=1, payload=b"first")
        coming = Decoder().feed(encode(good) + head(ver=9))
        self.assertEqual(next(coming), good)
        self.assertRaises(Violation, next, coming)

    def test_nothing_is_reserved_for_what_is_only_announced(self) -> None:
        decoders = [Decoder() for _ in range(64)]
        announced = MAX_FRAME_BYTES.to_bytes(4, "little") + b"\x01"
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for decoder in decoders:
            self.assertEqual(list(decoder.feed(announced)), [])
        self.assertLess(tracemalloc.get_traced_memory()[0], MAX_FRAME_BYTES // 4)

    def test_what_cannot_be_encoded(self) -> None:
        fine = {"flags": START_REQ, "app_proto_id": 1, "corr_id": 1}
        for status, fields in (
            (413, {"payload": bytes(MAX_FRAME_BYTES - FIXED_BYTES + 1)}),
            (413, {"cap": bytes(2**16)}),
            (400, {"flags": Flags.REQ, "cap": b"x"}),
            (400, {"code": 2**16}),
            (400, {"app_proto_id": -1}),
            (400, {"tenant_id": 2**128}),
            (400, {"tenant_id": -1}),
            (400, {"corr_id": 2**64}),
        ):
            error = self.assertRaises(RonError, encode, Frame(**{**fine, **fields}))
            self.assertEqual(error.status, status, fields)

    @given(st.binary(max_size=300))
    def test_whatever_is_sent(self, raw: bytes) -> None:
        try:
            found = list(Decoder(256).feed(raw))
        except Violation:
            return
        for frame in found:
            self.assertEqual(next(Decoder(256).feed(encode(frame, 256))), frame)


class Wire(SynchronousTestCase):
    """The form."""

    def test_the_bytes_of_one_frame(self) -> None:
        frame = Frame(
            flags=Flags.REQ | Flags.START | Flags.APP_E2E,
            code=0x0102,
            app_proto_id=0x0201,
            tenant_id=0x0F0E0D0C0B0A09080706050403020100,
            corr_id=0x1122334455667788,
            cap=b"CAP",
            payload=b"payload",
        )
        self.assertEqual(
            encode(frame).hex(" "),
            "2b 00 00 00 01 89 00 02 01 01 02 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f 03 00 "
            "88 77 66 55 44 33 22 11 43 41 50 70 61 79 6c 6f 61 64",
        )

    def test_the_bits(self) -> None:
        names = ["REQ", "RESP", "EVENT", "START", "END", "ACK_REQ", "COMP", "APP_E2E"]
        self.assertEqual([Flags(1 << bit).name for bit in range(8)], names)

    def test_reserved_bits_are_ignored(self) -> None:
        (frame,) = Decoder().feed(head(flags=0xFF00 | int(START_REQ)))
        self.assertEqual(frame.flags, START_REQ)

    def test_the_largest_frame(self) -> None:
        whole = Frame(flags=START_REQ, app_proto_id=1, corr_id=1, payload=bytes(MAX_FRAME_BYTES - FIXED_BYTES))
        raw = encode(whole)
        self.assertEqual(raw[:4], MAX_FRAME_BYTES.to_bytes(4, "little"))
        self.assertEqual(list(Decoder().feed(raw)), [whole])

    @given(st.lists(frames(), max_size=5), st.lists(st.integers(1, 60), min_size=1, max_size=30))
    def test_however_the_stream_is_cut(self, sent: list[Frame], cuts: list[int]) -> None:
        raw, decoder, found = b"".join(map(encode, sent)), Decoder(), []
        at = turn = 0
        while at < len(raw):
            step = cuts[turn % len(cuts)]
            found += decoder.feed(raw[at : at + step])
            at, turn = at + step, turn + 1
        self.assertEqual(found, sent)
        self.assertEqual(decoder.waiting_bytes, 0)

    def test_what_is_not_taken_comes_later(self) -> None:
        sent = [Frame(flags=START_REQ, app_proto_id=1, corr_id=number) for number in range(3)]
        decoder = Decoder()
        self.assertEqual(next(decoder.feed(b"".join(map(encode, sent)))), sent[0])
        self.assertEqual(list(decoder.feed(b"")), sent[1:])
