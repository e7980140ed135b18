"""COMP: bombs of every build are refused before they go off, and what was compressed comes back."""

from __future__ import annotations

import os
import resource

import zstandard
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.oap.compression import MAX_TIMES, WORTH_BYTES, deflate, inflate
from ron.oap.frames import MAX_FRAME_BYTES
from ron.proto.errors import RonError

MIB = 1024 * 1024
BOUND = MAX_TIMES * MAX_FRAME_BYTES


def compressed(plain: bytes, *, says_size: bool) -> bytes:
    engine = zstandard.ZstdCompressor(level=3)
    if says_size:
        return engine.compress(plain)
    stream = engine.compressobj()
    return stream.compress(plain) + stream.flush()


def run_of_blocks(count: int, window: int) -> bytes:
    """By hand: a frame without a size whose every block is 128 KiB of one byte, in four bytes."""
    block = (128 * 1024 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (128 * 1024 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([window]) + block * (count - 1) + last


class Refused(SynchronousTestCase):
    def status(self, payload: bytes, *, max_frame: int = MAX_FRAME_BYTES) -> int:
        return self.assertRaises(RonError, inflate, payload, max_frame=max_frame).status

    def test_bombs(self) -> None:
        for says_size in (True, False):
            # made piece by piece, or the making would be the peak of memory that the test goes by
            engine = zstandard.ZstdCompressor().compressobj(**({"size": 256 * MIB} if says_size else {}))
            bomb = b"".join(engine.compress(bytes(MIB)) for _ in range(256)) + engine.flush()
            self.assertLess(len(bomb), 20_000)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            self.assertEqual(self.status(bomb), 413)
            grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            self.assertLess(grown_mib, 64)

    def test_the_densest_bomb(self) -> None:
        self.assertEqual(self.status(run_of_blocks(5000, 0x50)), 413)
        self.assertEqual(len(inflate(run_of_blocks(64, 0x50))), BOUND)
        self.assertEqual(self.status(run_of_blocks(65, 0x50)), 413)

    def test_one_byte_over(self) -> None:
        for says_size in (True, False):
            self.assertEqual(len(inflate(compressed(bytes(BOUND), says_size=says_size))), BOUND)
            self.assertEqual(self.status(compressed(bytes(BOUND + 1), says_size=says_size)), 413)
            self.assertEqual(self.status(compressed(bytes(8001), says_size=says_size), max_frame=1000), 413)

    def test_a_window_that_would_take_gigabytes(self) -> None:
        self.assertEqual(self.status(run_of_blocks(2, 0xA8)), 400)

    def test_a_frame_that_lies_about_its_size(self) -> None:
        raw = bytearray(compressed(bytes(300_000), says_size=True))
        at = raw.index((300_000).to_bytes(4, "little"))
        for lie in (1, 299_999, 300_001, BOUND):
            raw[at : at + 4] = lie.to_bytes(4, "little")
            self.assertEqual(self.status(bytes(raw)), 400, lie)
        raw[at : at + 4] = (2**32 - 1).to_bytes(4, "little")
        self.assertEqual(self.status(bytes(raw)), 413)

    def test_no_zstd_frame_or_more_than_one(self) -> None:
        skippable = bytes.fromhex("502a4d18") + (4).to_bytes(4, "little") + b"abcd"
        for says_size in (True, False):
            good = compressed(bytes(5000), says_size=says_size)
            bad = (
                b"",
                b"junk",
                good[:-1],
                good[: len(good) // 2],
                good + b"x",
                good + good,
                skippable,
                b"\x1f\x8b" + good,
            )
            for payload in bad:
                self.assertEqual(self.status(payload), 400, payload)

    @given(st.binary(max_size=200))
    def test_whatever_is_sent(self, payload: bytes) -> None:
        for raw in (payload, b"\x28\xb5\x2f\xfd" + payload):
            try:
                self.assertLessEqual(len(inflate(raw, max_frame=1000)), 8000)
            except RonError as error:
                self.assertIn(error.status, {400, 413})


class There(SynchronousTestCase):
    def test_and_back(self) -> None:
        for plain in (bytes(WORTH_BYTES), b"abc" * 10_000, bytes(range(256)) * 256):
            smaller = deflate(plain)
            assert smaller is not None
            self.assertLess(len(smaller), len(plain))
            self.assertEqual(inflate(smaller), plain)

    def test_what_does_not_get_smaller_is_left(self) -> None:
        self.assertIsNone(deflate(bytes(WORTH_BYTES - 1)))
        self.assertIsNone(deflate(os.urandom(10_000)))

    @given(st.binary(max_size=3000), st.booleans())
    def test_any_payload(self, plain: bytes, says_size: bool) -> None:
        self.assertEqual(inflate(compressed(plain, says_size=says_size)), plain)
