"""Tiles are those of tlog-tiles, and what is made of them is the tree."""

from __future__ import annotations

import functools

from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.merkle import CompactRange, leaf_hash, verify_consistency, verify_inclusion
from ron.services.kms.audit.tiles import TILE_BYTES, WIDTH, Tiles, tile_path

COUNT = WIDTH * WIDTH + WIDTH + 3


class Case(SynchronousTestCase):
    def test_paths(self) -> None:
        for level, number, path in (
            (0, 0, "tile/0/000"),
            (1, 999, "tile/1/999"),
            (0, 1000, "tile/0/x001/000"),
            (2, 1234067, "tile/2/x001/x234/067"),
        ):
            self.assertEqual(str(tile_path(level, number)), path)


class LargeTree:
    """Three levels, and the roots of all its sizes."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, int], bytes] = {}
        self.reads: list[tuple[int, int]] = []
        self.tiles = Tiles(self.read, lambda level, number, hashes: self.kept.update({(level, number): hashes}))
        self.leaves = [leaf_hash(b"%d" % number) for number in range(COUNT)]
        self.roots: dict[int, bytes] = {}
        grown = CompactRange()
        for leaf in self.leaves:
            self.tiles.append(leaf)
            grown.append(leaf)
            self.roots[grown.size] = grown.root()

    def read(self, level: int, number: int) -> bytes:
        self.reads.append((level, number))
        return self.kept[level, number]


@functools.cache
def large() -> LargeTree:
    return LargeTree()


class Large(SynchronousTestCase):
    def setUp(self) -> None:
        tree = large()
        self.tiles, self.kept, self.reads = tree.tiles, tree.kept, tree.reads
        self.leaves, self.roots = tree.leaves, tree.roots

    def test_full_tiles_alone_are_kept_once(self) -> None:
        self.assertEqual(sorted(self.kept), [(0, number) for number in range(WIDTH + 1)] + [(1, 0)])
        self.assertEqual({len(hashes) for hashes in self.kept.values()}, {TILE_BYTES})
        self.assertEqual(self.kept[0, 3], b"".join(self.leaves[3 * WIDTH : 4 * WIDTH]))
        self.assertEqual(self.kept[1, 0][:32], self.roots[WIDTH])

    @given(some.integers(1, COUNT))
    @settings(deadline=None, max_examples=60)
    def test_roots(self, size: int) -> None:
        self.assertEqual(self.tiles.root(size), self.roots[size])

    @given(some.data(), some.integers(1, COUNT))
    @settings(deadline=None, max_examples=60)
    def test_proofs(self, draw: some.DataObject, size: int) -> None:
        index, old = draw.draw(some.integers(0, size - 1)), draw.draw(some.integers(1, size))
        path = self.tiles.inclusion(index, size)
        self.assertTrue(verify_inclusion(index, size, self.leaves[index], path, self.roots[size]))
        path = self.tiles.consistency(old, size)
        self.assertTrue(verify_consistency(old, size, self.roots[old], self.roots[size], path))

    def test_a_proof_reads_a_few_tiles_and_not_the_log(self) -> None:
        self.tiles._cache.drop((0, 5))
        del self.reads[:]
        self.tiles.inclusion(5 * WIDTH + 7, COUNT)
        self.assertLessEqual(len(self.reads), 4)
