"""The tree is that of RFC 9162: the reference tree's roots and paths, a naive tree, and no false path that holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.merkle import (
    EMPTY_ROOT,
    CompactRange,
    Peaks,
    consistency_path,
    inclusion_path,
    leaf_hash,
    node_hash,
    tree_root,
    verify_consistency,
    verify_inclusion,
)

KNOWN = json.loads((Path(__file__).parents[1] / "vectors" / "kms" / "merkle-ct.json").read_bytes())
LEAVES = [bytes.fromhex(leaf) for leaf in KNOWN["leaves"]]
ROOTS = [bytes.fromhex(root) for root in KNOWN["roots"]]
SIZES = some.integers(0, 130)


def leaves(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def naive(items: Sequence[bytes]) -> bytes:
    """RFC 9162 §2.1.1 word for word."""
    if not items:
        return sha256().digest()
    if len(items) == 1:
        return sha256(b"\0" + items[0]).digest()
    half = 1
    while half * 2 < len(items):
        half *= 2
    return sha256(b"\1" + naive(items[:half]) + naive(items[half:])).digest()


class Tree:
    def __init__(self, items: Sequence[bytes]) -> None:
        self.items = items

    def nodes(self, level: int, index: int) -> bytes:
        part = self.items[index << level : (index + 1) << level]
        assert len(part) == 1 << level, "a subtree that is not whole was asked for"
        return naive(part)

    def inclusion(self, index: int, size: int) -> list[bytes]:
        return inclusion_path(index, size, self.nodes)

    def consistency(self, old: int, new: int) -> list[bytes]:
        return consistency_path(old, new, self.nodes)


class Roots(SynchronousTestCase):
    def test_peaks_of_another_size(self) -> None:
        self.assertRaises(ValueError, CompactRange, Peaks(3, (b"x" * 32,)))
        self.assertRaises(ValueError, CompactRange, Peaks(0, (b"x" * 32,)))

    def test_reference_tree(self) -> None:
        grown = CompactRange()
        for size, root in enumerate(ROOTS):
            self.assertEqual(grown.root(), root)
            self.assertEqual(tree_root(size, Tree(LEAVES).nodes), root)
            if size < len(LEAVES):
                grown.append(leaf_hash(LEAVES[size]))
        self.assertEqual(EMPTY_ROOT, ROOTS[0])

    @given(SIZES, SIZES)
    @settings(deadline=None, max_examples=60)
    def test_it_goes_on_from_its_peaks(self, before: int, after: int) -> None:
        items = leaves(before + after)
        first = CompactRange()
        for item in items[:before]:
            first.append(leaf_hash(item))
        self.assertEqual(first.root(), naive(items[:before]))
        second = CompactRange(first.peaks())
        for item in items[before:]:
            second.append(leaf_hash(item))
        self.assertEqual((second.root(), second.size), (naive(items), before + after))
        # and the first has not moved
        self.assertEqual(first.root(), naive(items[:before]))


class Malformed(SynchronousTestCase):
    def test_no_path_where_there_is_no_tree(self) -> None:
        tree = Tree(LEAVES)
        for index, size in ((0, 0), (8, 8), (-1, 8), (3, 2), (0, (1 << 63) + 1)):
            self.assertRaises(ValueError, tree.inclusion, index, size)
            self.assertFalse(verify_inclusion(index, size, ROOTS[1], [], ROOTS[1]), (index, size))
        for old, new in ((-1, 3), (4, 3), (1, (1 << 63) + 1)):
            self.assertRaises(ValueError, tree.consistency, old, new)
            self.assertFalse(verify_consistency(old, new, ROOTS[1], ROOTS[1], []), (old, new))

    def test_what_is_no_hash(self) -> None:
        tree = Tree(LEAVES)
        path = tree.inclusion(5, 8)
        for wrong in (b"", b"x" * 31, b"x" * 33):
            self.assertFalse(verify_inclusion(5, 8, wrong, path, ROOTS[8]))
            self.assertFalse(verify_inclusion(5, 8, leaf_hash(LEAVES[5]), path, wrong))
            self.assertFalse(verify_inclusion(5, 8, leaf_hash(LEAVES[5]), [*path[:-1], wrong], ROOTS[8]))
            self.assertFalse(verify_consistency(6, 8, wrong, ROOTS[8], tree.consistency(6, 8)))
            self.assertFalse(verify_consistency(6, 8, ROOTS[6], wrong, tree.consistency(6, 8)))
        # the tree of one leaf has that leaf's hash for its root and an empty path: a node is no leaf of it
        self.assertFalse(verify_inclusion(0, 1, ROOTS[1], [], ROOTS[2]))

    def test_of_nothing_and_of_itself_the_path_is_empty(self) -> None:
        self.assertTrue(verify_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, []))
        self.assertTrue(verify_consistency(0, 8, EMPTY_ROOT, ROOTS[8], []))
        self.assertTrue(verify_consistency(8, 8, ROOTS[8], ROOTS[8], []))
        self.assertFalse(verify_consistency(0, 0, EMPTY_ROOT, ROOTS[1], []))
        self.assertFalse(verify_consistency(0, 8, ROOTS[1], ROOTS[8], []))
        self.assertFalse(verify_consistency(0, 8, EMPTY_ROOT, ROOTS[8], [ROOTS[8]]))
        self.assertFalse(verify_consistency(8, 8, ROOTS[8], ROOTS[8], [ROOTS[8]]))
        self.assertFalse(verify_consistency(8, 8, ROOTS[7], ROOTS[8], []))
        self.assertFalse(verify_consistency(3, 8, ROOTS[3], ROOTS[8], []))

    @given(some.data(), some.integers(2, 70))
    @settings(deadline=None, max_examples=100)
    def test_no_changed_inclusion_holds(self, draw: some.DataObject, size: int) -> None:
        items = leaves(size)
        index = draw.draw(some.integers(0, size - 1))
        path, root, leaf = Tree(items).inclusion(index, size), naive(items), leaf_hash(items[index])
        for wrong in _spoilt(draw, path):
            self.assertFalse(verify_inclusion(index, size, leaf, wrong, root))
        other = draw.draw(some.integers(0, size - 1).filter(lambda number: number != index))
        self.assertFalse(verify_inclusion(other, size, leaf, path, root))
        self.assertFalse(verify_inclusion(index, size, leaf_hash(items[other]), path, root))
        self.assertFalse(verify_inclusion(index, size * 2 + 1, leaf, path, root))

    @given(some.data(), some.integers(2, 70))
    @settings(deadline=None, max_examples=100)
    def test_no_changed_consistency_holds(self, draw: some.DataObject, new: int) -> None:
        items = leaves(new)
        old = draw.draw(some.integers(1, new - 1))
        path, before, after = Tree(items).consistency(old, new), naive(items[:old]), naive(items)
        for wrong in _spoilt(draw, path):
            self.assertFalse(verify_consistency(old, new, before, after, wrong))
        self.assertFalse(verify_consistency(old, new, after, before, path))
        self.assertFalse(verify_consistency(old, new, node_hash(before, before), after, path))
        # a history that was altered below `old` has another root there
        altered = [b"altered", *items[1:]]
        self.assertFalse(verify_consistency(old, new, naive(altered[:old]), after, path))


class Paths(SynchronousTestCase):
    def test_reference_paths(self) -> None:
        tree = Tree(LEAVES)
        for case in KNOWN["inclusion"]:
            index, size, path = case["index"], case["size"], [bytes.fromhex(one) for one in case["path"]]
            self.assertEqual(tree.inclusion(index, size), path)
            self.assertTrue(verify_inclusion(index, size, leaf_hash(LEAVES[index]), path, ROOTS[size]))
        for case in KNOWN["consistency"]:
            old, new, path = case["old"], case["new"], [bytes.fromhex(one) for one in case["path"]]
            self.assertEqual(tree.consistency(old, new), path)
            self.assertTrue(verify_consistency(old, new, ROOTS[old], ROOTS[new], path))

    @given(some.data(), some.integers(1, 130))
    @settings(deadline=None, max_examples=100)
    def test_whatever_is_shown_holds(self, draw: some.DataObject, size: int) -> None:
        items = leaves(size)
        tree, root = Tree(items), naive(items)
        index, old = draw.draw(some.integers(0, size - 1)), draw.draw(some.integers(0, size))
        path = tree.inclusion(index, size)
        self.assertTrue(verify_inclusion(index, size, leaf_hash(items[index]), path, root))
        self.assertLessEqual(len(path), size.bit_length())
        self.assertTrue(verify_consistency(old, size, naive(items[:old]), root, tree.consistency(old, size)))


def _spoilt(draw: some.DataObject, path: list[bytes]) -> list[list[bytes]]:
    """Paths that are not `path`."""
    extra = draw.draw(some.binary(min_size=32, max_size=32))
    place = draw.draw(some.integers(0, len(path)))
    wrong = [[*path[:place], extra, *path[place:]]]
    if path:
        bit = draw.draw(some.integers(0, 255))
        at = draw.draw(some.integers(0, len(path) - 1))
        flipped = bytearray(path[at])
        flipped[bit // 8] ^= 1 << bit % 8
        wrong += [[*path[:at], bytes(flipped), *path[at + 1 :]], path[:-1], path[1:]]
    return wrong
