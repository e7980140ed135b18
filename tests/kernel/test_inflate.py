"""Compressed bodies: bombs, truncation, garbage, and what is good comes out as it went in."""

from __future__ import annotations

import gzip
import os
import tracemalloc
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.inflate import MAX_MEMBERS, RATIO_FLOOR_BYTES, inflate
from ron.kernel.limits import Refused
from ron.proto.errors import ErrorCode, RonError

MIB = 1024 * 1024
RAW_DEFLATE = -zlib.MAX_WBITS


def inflated(body: bytes, encoding: str = "gzip", *, limit: int = MIB, ratio: int = 10) -> bytes:
    return inflate(body, encoding, limit=limit, ratio=ratio)


class Bombs(SynchronousTestCase):
    def refused(self, reason: str, body: bytes, encoding: str = "gzip", **bounds: int) -> Refused:
        error: Refused = self.assertRaises(Refused, inflated, body, encoding, **bounds)
        self.assertEqual((error.reason, error.status, error.code), (reason, 413, ErrorCode.TOO_LARGE))
        return error

    def test_more_times_its_size_than_allowed(self) -> None:
        for encoding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress)):
            self.refused("ratio_cap", compress(bytes(900_000)), encoding)
            self.assertEqual(len(inflated(compress(bytes(900_000)), encoding, ratio=10_000)), 900_000)

    def test_over_the_limit_though_the_ratio_is_modest(self) -> None:
        body = gzip.compress(os.urandom(600_000).hex().encode())
        self.refused("decompress_cap", body)
        self.assertEqual(len(inflated(body, limit=2 * MIB)), 1_200_000)

    def test_the_last_byte_that_fits_and_the_first_that_does_not(self) -> None:
        text = os.urandom(5000).hex().encode()
        self.assertEqual(inflated(gzip.compress(text), limit=len(text)), text)
        self.refused("decompress_cap", gzip.compress(text), limit=len(text) - 1)
        body = gzip.compress(bytes(RATIO_FLOOR_BYTES))
        self.assertEqual(len(inflated(body)), RATIO_FLOOR_BYTES)
        self.refused("ratio_cap", gzip.compress(bytes(RATIO_FLOOR_BYTES + 1)))

    def test_a_bomb_of_many_members(self) -> None:
        self.refused("ratio_cap", gzip.compress(bytes(60_000)) * 20)

    def test_a_bomb_takes_no_memory(self) -> None:
        """100 MiB in 100 KiB: refused before more than the bound was inflated."""
        bomb = gzip.compress(bytes(100 * MIB))
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.refused("decompress_cap", bomb, limit=MIB, ratio=1000)
        self.assertLess(tracemalloc.get_traced_memory()[1], 4 * MIB)

    def test_thousands_of_empty_members(self) -> None:
        error = self.assertRaises(RonError, inflated, gzip.compress(b"") * (MAX_MEMBERS + 1))
        self.assertEqual(error.status, 400)
        self.assertEqual(inflated(gzip.compress(b"") * MAX_MEMBERS), b"")


class Damaged(SynchronousTestCase):
    def is_400(self, body: bytes, encoding: str = "gzip") -> None:
        error: RonError = self.assertRaises(RonError, inflated, body, encoding)
        self.assertEqual((error.status, error.code), (400, ErrorCode.BAD_REQUEST))

    def test_every_truncation(self) -> None:
        for encoding, whole in (("gzip", gzip.compress(b"hello" * 50)), ("deflate", zlib.compress(b"hello" * 50))):
            for length in range(len(whole)):
                self.is_400(whole[:length], encoding)

    def test_something_after_it(self) -> None:
        for encoding, whole in (("gzip", gzip.compress(b"hello")), ("deflate", zlib.compress(b"hello"))):
            for garbage in (b"\0", b"x", b"\x1f\x8b", whole[:-1]):
                self.is_400(whole + garbage, encoding)
        self.is_400(zlib.compress(b"a") + zlib.compress(b"b"), "deflate")

    def test_a_checksum_that_is_wrong(self) -> None:
        whole = bytearray(gzip.compress(b"hello"))
        whole[-5] ^= 1
        self.is_400(bytes(whole))

    def test_something_else(self) -> None:
        packer = zlib.compressobj(wbits=RAW_DEFLATE)
        raw = packer.compress(b"hello") + packer.flush()
        for body in (b"", b'{"text":"a"}', raw, zlib.compress(b"hello")):
            self.is_400(body)
        for body in (b"", raw, gzip.compress(b"hello")):
            self.is_400(body, "deflate")

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]), st.booleans())
    def test_no_bytes_whatsoever_raise_anything_else(self, tail: bytes, encoding: str, headed: bool) -> None:
        body = (gzip.compress(b"x" * 30)[:12] if headed else b"") + tail
        try:
            inflated(body, encoding)
        except RonError as error:
            self.assertIn(error.status, (400, 413))


class Encodings(SynchronousTestCase):
    def test_415_for_what_is_not_spoken_here(self) -> None:
        for encoding in ("br", "zstd", "compress", "gzip, gzip", "gzip,deflate", "gzip;q=1", "\xff", "none"):
            error: RonError = self.assertRaises(RonError, inflated, gzip.compress(b"x"), encoding)
            self.assertEqual((error.status, error.code), (415, ErrorCode.UNSUPPORTED))
            self.assertIn("gzip", error.headers["Accept-Encoding"])

    def test_identity(self) -> None:
        for encoding in ("", " ", "identity", "Identity"):
            self.assertEqual(inflated(b"as it is", encoding, limit=1), b"as it is")

    @given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
    def test_what_is_good_comes_out_as_it_went_in(self, members: list[bytes]) -> None:
        whole = b"".join(members)
        self.assertEqual(inflated(b"".join(gzip.compress(member) for member in members), " X-GZip "), whole)
        self.assertEqual(inflated(zlib.compress(whole), "deflate"), whole)
