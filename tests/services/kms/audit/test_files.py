"""Leaves are on disk when `append` says so, all of them or none; what a dead writer left of a line is cut away."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from ron.services.kms.audit.files import PROBE_BYTES, LeafFiles
from ron.services.kms.audit.leaves import MAX_LEAF_BYTES, BadLeafError

ENOUGH = 1 << 30


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute() / "leaves"

    def opened(self, **limits: int) -> tuple[LeafFiles, list[bytes]]:
        files = LeafFiles(self.home, **limits)
        self.addCleanup(files.close)
        return files, list(files.scan())

    def written(self, *leaves: bytes, **limits: int) -> LeafFiles:
        files, _there = self.opened(**limits)
        files.append(leaves)
        return files

    def only(self) -> Path:
        (path,) = self.home.iterdir()
        return path


class Broken(Case):
    def test_a_file_that_is_missing_or_twice(self) -> None:
        self.written(*[b"x" * 50] * 3, segment_bytes=10)
        files = self.written(b"y" * 50, segment_bytes=10)
        self.assertEqual((files.size, len(list(self.home.iterdir()))), (4, 2))
        first, last = sorted(self.home.iterdir())
        moved = last.with_name(f"{5:020d}.jsonl")
        last.rename(moved)
        self.assertRaises(BadLeafError, self.opened)
        moved.rename(last)
        first.unlink()
        self.assertRaises(BadLeafError, self.opened)

    def test_a_line_that_is_torn_before_the_end(self) -> None:
        self.written(b"one", segment_bytes=2)
        self.written(b"two", segment_bytes=2)
        first, _last = sorted(self.home.iterdir())
        os.truncate(first, 2)
        self.assertRaises(BadLeafError, self.opened)

    def test_a_line_that_is_too_long(self) -> None:
        self.written(b"one")
        for long in (b"x" * (MAX_LEAF_BYTES + 1), b"x" * (PROBE_BYTES * 9)):
            with self.only().open("ab") as file:
                file.write(long + b"\n")
            self.assertRaises(BadLeafError, self.opened)
            os.truncate(self.only(), 4)

    def test_other_files_are_none_of_ours(self) -> None:
        self.written(b"one")
        (self.home / "notes.txt").write_text("hello\n")
        (self.home / "1.jsonl").write_text("hello\n")
        self.assertEqual(self.opened()[1], [b"one"])


class Torn(Case):
    @given(
        some.lists(some.binary(min_size=1, max_size=30).filter(lambda leaf: b"\n" not in leaf), min_size=1), some.data()
    )
    @settings(deadline=None, max_examples=50)
    def test_cut_anywhere(self, leaves: list[bytes], draw: some.DataObject) -> None:
        self.home = Path(self.mktemp()).absolute() / "leaves"
        self.written(*leaves).close()
        whole = self.only().read_bytes()
        cut = draw.draw(some.integers(0, len(whole)))
        os.truncate(self.only(), cut)
        files, there = self.opened()
        self.assertEqual(there, whole[:cut].split(b"\n")[:-1])
        self.assertEqual(files.cut_bytes, cut - whole[:cut].rfind(b"\n") - 1)
        files.append([b"after"])
        self.assertEqual(self.opened()[1], [*there, b"after"])

    def test_what_a_probe_left(self) -> None:
        self.written(b"one").close()
        with self.only().open("ab") as file:
            file.write(b"\0" * PROBE_BYTES)
        self.assertEqual(self.opened()[1], [b"one"])
        self.assertEqual(self.only().read_bytes(), b"one\n")


class Kept(Case):
    def test_nobody_else_may_read_it(self) -> None:
        self.written(b"one")
        self.assertEqual(stat.S_IMODE(self.home.stat().st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(self.only().stat().st_mode), 0o600)

    def test_a_probe_leaves_nothing(self) -> None:
        files = self.written(b"one")
        files.probe()
        self.assertEqual(self.only().read_bytes(), b"one\n")
        files.append([b"two"])
        self.assertEqual(self.opened()[1], [b"one", b"two"])

    def test_an_empty_file_goes_on(self) -> None:
        self.written(b"one", segment_bytes=1).close()
        (self.home / f"{1:020d}.jsonl").touch()
        files, there = self.opened(segment_bytes=1)
        files.append([b"two"])
        self.assertEqual((there, len(list(self.home.iterdir()))), ([b"one"], 2))

    @given(
        some.lists(some.lists(some.integers(1, 60), min_size=1, max_size=400), min_size=1, max_size=5),
        some.integers(1, 5000),
        some.data(),
    )
    @settings(deadline=None, max_examples=40)
    def test_any_of_it_can_be_read(self, batches: list[list[int]], segment_bytes: int, draw: some.DataObject) -> None:
        self.home = Path(self.mktemp()).absolute() / "leaves"
        files, _there = self.opened(segment_bytes=segment_bytes)
        leaves: list[bytes] = []
        for batch in batches:
            files.append([b"%d" % n * length for n, length in enumerate(batch)])
            leaves += [b"%d" % n * length for n, length in enumerate(batch)]
        again, there = self.opened(segment_bytes=segment_bytes)
        self.assertEqual(there, leaves)
        for one in (files, again):
            start, count = draw.draw(some.integers(0, len(leaves))), draw.draw(some.integers(0, len(leaves)))
            self.assertEqual(one.read(start, count, ENOUGH), leaves[start : start + count])
            limit = draw.draw(some.integers(1, 500))
            some_of_them = one.read(start, count, limit)
            self.assertEqual(some_of_them, leaves[start : start + len(some_of_them)])
            self.assertEqual(bool(some_of_them), bool(leaves[start : start + count]))
            self.assertLessEqual(sum(map(len, some_of_them[:-1])), limit)
