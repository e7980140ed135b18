"""A record is written in one way only, and the numbers of a key only rise."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.services.kms.audit.leaves import MAX_LEAF_BYTES, BadLeafError, KeySeqs, decode, encode, key_of, numbered
from tests.services.kms.audit.support import KID, entry


class Encoding(SynchronousTestCase):
    def test_what_cannot_be_written(self) -> None:
        for wrong, code in (
            (entry(extra={"x": "y" * MAX_LEAF_BYTES}), ErrorCode.TOO_LARGE),
            (entry(corr_id="\ud800"), ErrorCode.BAD_REQUEST),
            (entry(extra={"x": object()}), ErrorCode.BAD_REQUEST),
            (entry(extra={"x": 1.5}), ErrorCode.BAD_REQUEST),
            (entry(op_id=None), ErrorCode.BAD_REQUEST),
        ):
            self.assertIs(self.assertRaises(RonError, encode, wrong).code, code)

    def test_what_is_no_record(self) -> None:
        leaf = encode(entry(kid_seq=1))
        for wrong in (
            b"",
            b"{}",
            b"[]",
            b"\xff",
            b"[" * 5000,
            leaf[:-1],
            leaf + b" ",
            leaf.replace(b'"op"', b' "op"'),
            leaf.replace(b'"kid_seq":1', b'"kid_seq":1.0'),
            leaf.replace(b'"kid_seq":1', b'"kid_seq":1,"kid_seq":1'),
            leaf.replace(b'"result":"ok"', b'"result":"ok","unknown":1'),
            leaf.replace(b'"result":"ok"', b'"result":"\\u006fk"'),
            leaf.replace(b'"tenant":"core"', b'"tenant":""'),
        ):
            with self.assertRaises(BadLeafError, msg=str(wrong)):
                decode(wrong)

    @given(
        some.dictionaries(
            some.text(max_size=5), some.text() | some.booleans() | some.integers(-(1 << 63), (1 << 63) - 1), max_size=4
        ),
        some.text(),
    )
    @settings(deadline=None, max_examples=100)
    def test_it_comes_back(self, extra: dict[str, str | int | bool], corr_id: str) -> None:
        try:
            leaf = encode(entry(extra=extra, corr_id=corr_id))
        except RonError:
            return
        self.assertNotIn(b"\n", leaf)
        self.assertEqual(encode(decode(leaf)), leaf)

    def test_a_key_is_all_its_versions(self) -> None:
        self.assertEqual(key_of(entry(kid=KID)), key_of(entry(kid=KID.replace("#v3", "#v4"))))
        self.assertEqual(key_of(entry(kid="")), "")
        self.assertEqual(numbered(entry(), 7).kid_seq, 7)


class Numbers(SynchronousTestCase):
    def test_what_was_not_written_was_not_given_out(self) -> None:
        seqs = KeySeqs()
        self.assertEqual([seqs.next("a"), seqs.next("a"), seqs.next("b"), seqs.next("")], [1, 2, 1, 0])
        seqs.rollback()
        self.assertEqual([seqs.next("a"), seqs.next("a")], [1, 2])
        seqs.take_back("a")
        seqs.commit()
        self.assertEqual([seqs.next("a"), seqs.next("b")], [2, 1])
        seqs.take_back("a")
        seqs.take_back("")
        self.assertEqual(seqs.next("a"), 2)

    def test_a_gap_or_a_number_again_is_not_accepted(self) -> None:
        seqs = KeySeqs()
        self.assertTrue(seqs.accept("a", 1))
        for wrong in (0, 1, 3, -1):
            self.assertFalse(seqs.accept("a", wrong), wrong)
        self.assertFalse(seqs.accept("b", 2))
        self.assertFalse(seqs.accept("", 1))
        self.assertTrue(seqs.accept("", 0))
        self.assertTrue(seqs.accept("a", 2))

    @given(some.lists(some.lists(some.integers(0, 12), max_size=6), max_size=60), some.integers(1, 8))
    @settings(deadline=None, max_examples=100)
    def test_with_more_keys_than_there_is_room_for(self, batches: list[list[int]], limit: int) -> None:
        """Numbers rise for every key, whoever reads the log later accepts them, and goes on above them."""
        writer, reader = KeySeqs(limit), KeySeqs(limit)
        seen: dict[str, int] = {}
        for batch in batches:
            for key in map(str, batch):
                number = writer.next(key)
                self.assertGreater(number, seen.get(key, 0))
                seen[key] = number
                self.assertTrue(reader.accept(key, number))
            writer.commit()
        reader.commit()
        for key, last in seen.items():
            self.assertGreater(reader.next(key), last)
            self.assertGreater(writer.next(key), last)
