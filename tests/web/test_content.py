"""Conditional and partial answers: RFC 9110 §13 (preconditions) and §14 (ranges) as pure rules."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.assets import Asset, strong_etag
from ron.proto.errors import RonError
from ron.web.content import Answer, answer_asset

BODY = bytes(range(256)) * 4
ASSET = Asset(BODY, "image/png", strong_etag(BODY))
OTHER_ETAG = strong_etag(b"other")

bodies = st.binary(min_size=1, max_size=64)
numbers = st.integers(0, 80)


def asset(body: bytes) -> Asset:
    return Asset(body, "image/png", strong_etag(body))


def content_range(answer: Answer) -> tuple[int, int, int]:
    """First, last and size in `Content-Range: bytes 0-9/100`."""
    span, size = answer.headers["Content-Range"].removeprefix("bytes ").split("/")
    first, last = span.split("-")
    return int(first), int(last), int(size)


class Etags(SynchronousTestCase):
    @given(st.binary(max_size=50), st.binary(max_size=50))
    def test_strong_quoted_and_the_bodys_own(self, one: bytes, other: bytes) -> None:
        self.assertRegex(strong_etag(one), r'^"[0-9a-f]{32}"$')
        self.assertEqual(strong_etag(one) == strong_etag(other), one == other)


class Whole(SynchronousTestCase):
    def test_200_with_all_that_caches_need(self) -> None:
        self.assertEqual(
            answer_asset(ASSET),
            Answer(
                200,
                {
                    "ETag": ASSET.etag,
                    "Cache-Control": "public, max-age=3600",
                    "Accept-Ranges": "bytes",
                    "Content-Type": "image/png",
                },
                BODY,
            ),
        )

    def test_an_encoded_one_says_so(self) -> None:
        headers = answer_asset(replace(ASSET, content_encoding="gzip", max_age_s=7)).headers
        self.assertEqual((headers["Content-Encoding"], headers["Vary"]), ("gzip", "Accept-Encoding"))
        self.assertEqual(headers["Cache-Control"], "public, max-age=7")


class IfNoneMatch(SynchronousTestCase):
    """RFC 9110 §13.1.2: weak comparison; 304 repeats what a cache must update."""

    def test_304(self) -> None:
        for header in (
            ASSET.etag,
            f"W/{ASSET.etag}",
            "*",
            f"{OTHER_ETAG}, {ASSET.etag}",
            f"{OTHER_ETAG},W/{ASSET.etag} , {OTHER_ETAG}",
        ):
            answer = answer_asset(ASSET, if_none_match=header)
            self.assertEqual((answer.status, answer.body), (304, b""), header)
            self.assertEqual(answer.headers["ETag"], ASSET.etag)
            self.assertIn("Cache-Control", answer.headers)
            self.assertNotIn("Content-Type", answer.headers)

    def test_304_carries_what_the_200_would_for_caches(self) -> None:
        """RFC 9110 §15.4.5: Cache-Control, ETag and Vary."""
        encoded = replace(ASSET, content_encoding="br")
        whole, same = answer_asset(encoded), answer_asset(encoded, if_none_match=ASSET.etag)
        for name in ("Cache-Control", "ETag", "Vary"):
            self.assertEqual(same.headers[name], whole.headers[name])

    def test_200_when_nothing_in_the_list_is_ours(self) -> None:
        for header in (OTHER_ETAG, f"W/{OTHER_ETAG}", "", ASSET.etag.strip('"'), ASSET.etag[:-2] + '"', '"*"', "W/*x"):
            self.assertEqual(answer_asset(ASSET, if_none_match=header).status, 200, header)

    def test_it_goes_before_the_range(self) -> None:
        """RFC 9110 §13.2.2: preconditions are evaluated first."""
        self.assertEqual(answer_asset(ASSET, if_none_match=ASSET.etag, byte_range="bytes=0-1").status, 304)
        self.assertEqual(answer_asset(ASSET, if_none_match=OTHER_ETAG, byte_range="bytes=0-1").status, 206)
        self.assertEqual(answer_asset(ASSET, if_none_match=ASSET.etag, byte_range="bytes=9999-").status, 304)


class Range(SynchronousTestCase):
    """RFC 9110 §14.1.2, §14.2, §15.5.17."""

    @given(bodies, numbers, st.none() | numbers)
    def test_first_to_last(self, body: bytes, first: int, last: int | None) -> None:
        byte_range = f"bytes={first}-{'' if last is None else last}"
        if last is not None and last < first:
            self.assertEqual(answer_asset(asset(body), byte_range=byte_range).status, 200)
        elif first >= len(body):
            self.refused(body, byte_range)
        else:
            end = len(body) - 1 if last is None else min(last, len(body) - 1)
            self.served(body, byte_range, first, end)

    @given(bodies, numbers)
    @example(b"x", 0)
    def test_the_last_so_many(self, body: bytes, count: int) -> None:
        if count == 0:
            self.refused(body, "bytes=-0")
        else:
            self.served(body, f"bytes=-{count}", max(0, len(body) - count), len(body) - 1)

    @given(bodies, st.integers(1, 20))
    def test_pieces_put_together_are_the_whole(self, body: bytes, piece: int) -> None:
        parts = [
            answer_asset(asset(body), byte_range=f"bytes={at}-{at + piece - 1}").body
            for at in range(0, len(body), piece)
        ]
        self.assertEqual(b"".join(parts), body)

    def test_what_is_not_one_range_of_bytes_is_ignored(self) -> None:
        for header in (
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=5",
            "bytes=--5",
            "bytes=5-3",
            "bytes=0-1,3-4",
            "bytes=0 - 1",
            "bytes=+0-1",
            "bytes=0-1-2",
            "items=0-1",
            "bytes=" + "9" * 19 + "-",
            "bytes=0-" + "9" * 5000,
        ):
            answer = answer_asset(ASSET, byte_range=header)
            self.assertEqual((answer.status, answer.body), (200, BODY), header)
            self.assertNotIn("Content-Range", answer.headers)

    @given(st.text(st.characters(), max_size=30) | st.from_regex(r"bytes=[0-9, -]{0,12}", fullmatch=True))
    def test_any_header_gives_bytes_of_the_body_or_416(self, header: str) -> None:
        try:
            answer = answer_asset(ASSET, byte_range=header)
        except RonError as error:
            self.assertEqual(error.status, 416)
        else:
            self.assertIn(answer.status, (200, 206))
            self.assertIn(answer.body, BODY)
            self.assertGreater(len(answer.body), 0)

    def test_the_range_is_of_the_encoded_form(self) -> None:
        answer = answer_asset(replace(ASSET, content_encoding="gzip"), byte_range="bytes=1-2")
        self.assertEqual((answer.status, answer.body, answer.headers["Content-Encoding"]), (206, BODY[1:3], "gzip"))

    def served(self, body: bytes, byte_range: str, first: int, last: int) -> None:
        answer = answer_asset(asset(body), byte_range=byte_range)
        self.assertEqual((answer.status, answer.body), (206, body[first : last + 1]))
        self.assertEqual(content_range(answer), (first, last, len(body)))
        self.assertEqual(answer.headers["ETag"], strong_etag(body))

    def refused(self, body: bytes, byte_range: str) -> None:
        error = self.assertRaises(RonError, answer_asset, asset(body), byte_range=byte_range)
        self.assertEqual(error.status, 416)
        self.assertEqual(error.headers, {"Content-Range": f"bytes */{len(body)}"})


class IfRange(SynchronousTestCase):
    """RFC 9110 §13.1.5: strong comparison, else the whole."""

    def test_the_part_only_if_it_is_still_the_same(self) -> None:
        for validator, status in (
            (ASSET.etag, 206),
            (OTHER_ETAG, 200),
            (f"W/{ASSET.etag}", 200),
            ("Wed, 21 Oct 2015 07:28:00 GMT", 200),
            ("", 200),
            ("*", 200),
        ):
            answer = answer_asset(ASSET, byte_range="bytes=0-9", if_range=validator)
            self.assertEqual(answer.status, status, validator)
            self.assertEqual(answer.body, BODY[:10] if status == 206 else BODY)

    def test_a_changed_body_makes_even_an_impossible_range_the_whole(self) -> None:
        answer = answer_asset(ASSET, byte_range="bytes=9999-", if_range=OTHER_ETAG)
        self.assertEqual(answer.status, 200)
        self.assertRaises(RonError, answer_asset, ASSET, byte_range="bytes=9999-", if_range=ASSET.etag)

    def test_without_a_range_it_means_nothing(self) -> None:
        self.assertEqual(answer_asset(ASSET, if_range=ASSET.etag).status, 200)
