"""The Merkle tree of a transparency log (RFC 9162 §2.1, SHA-256): roots, proofs, and what a proof is worth.

In: leaf hashes one after the other, or a function that knows the hashes of whole subtrees. Out: roots, paths, and for
somebody else's path whether it holds. Pure: no file, no clock. No proof can make it raise: a malformed one fails.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

HASH_BYTES = 32
EMPTY_ROOT = sha256().digest()
# A tree of more than 2^63 leaves is none: sizes are u64 on the wire, and a path has at most so many hashes.
MAX_SIZE = 1 << 63
_LEAF = b"\0"
_NODE = b"\1"

# nodes(level, index): the root of the leaves [index * 2^level, (index + 1) * 2^level), all of which are there
Nodes = Callable[[int, int], bytes]


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a record as it stands in the tree."""
    return sha256(_LEAF + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees, the older first."""
    return sha256(_NODE + left + right).digest()


class Peaks(NamedTuple):
    """A tree so far, small enough to keep: its size, and the roots of its whole subtrees, the largest first."""

    size: int
    hashes: tuple[bytes, ...]


NO_PEAKS = Peaks(0, ())


class CompactRange:
    """A tree that grows by leaf hashes and remembers no more than it needs for its root, at most 63 hashes."""

    def __init__(self, peaks: Peaks = NO_PEAKS) -> None:
        if len(peaks.hashes) != peaks.size.bit_count():
            raise ValueError("so many peaks belong to another size")
        self.size = peaks.size
        self._peaks = list(peaks.hashes)

    def append(self, leaf: bytes) -> None:
        """One more, by its hash (`leaf_hash`). One hash amortised, log2(size) at most."""
        peaks, number = self._peaks, self.size
        while number & 1:
            leaf = sha256(_NODE + peaks.pop() + leaf).digest()
            number >>= 1
        peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Of the tree as it is."""
        return _folded(self._peaks)

    def peaks(self) -> Peaks:
        """What `CompactRange` goes on from."""
        return Peaks(self.size, tuple(self._peaks))


# What a log can show


def tree_root(size: int, nodes: Nodes) -> bytes:
    """The root of the first `size` leaves."""
    return _folded([nodes(level, index) for level, index in _whole_subtrees(0, size)])


def inclusion_path(index: int, size: int, nodes: Nodes) -> list[bytes]:
    """RFC 9162 §2.1.3.1: that leaf `index` is in the tree of `size` leaves. Raises ValueError unless it is."""
    if not 0 <= index < size <= MAX_SIZE:
        raise ValueError("that leaf is not in the tree")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_range_root(middle, end, nodes))
            end = middle
        else:
            path.append(_range_root(start, middle, nodes))
            start = middle
    path.reverse()
    return path


def consistency_path(old: int, new: int, nodes: Nodes) -> list[bytes]:
    """RFC 9162 §2.1.4.1: that the tree of `new` leaves begins with that of `old`; of nothing, and of itself, it is
    empty. Raises ValueError unless 0 <= old <= new."""
    if not 0 <= old <= new <= MAX_SIZE:
        raise ValueError("a tree is consistent with one that is no larger")
    path: list[bytes] = []
    start, end, whole = 0, new, True
    while old not in (0, end):
        middle = start + _split(end - start)
        if old <= middle:
            path.append(_range_root(middle, end, nodes))
            end = middle
        else:
            path.append(_range_root(start, middle, nodes))
            start, whole = middle, False
    if not whole:
        path.append(_range_root(start, end, nodes))
    path.reverse()
    return path


# What others can check


def verify_inclusion(index: int, size: int, leaf: bytes, path: Sequence[bytes], root: bytes) -> bool:
    """RFC 9162 §2.1.3.2. leaf: its hash. False for a path that does not hold or is malformed."""
    if not (0 <= index < size <= MAX_SIZE and _are_hashes(leaf, root, *path)):
        return False
    number, last, reached = index, size - 1, leaf
    for sibling in path:
        if not last:
            return False
        if number & 1 or number == last:
            reached = node_hash(sibling, reached)
            while number and not number & 1:
                number, last = number >> 1, last >> 1
        else:
            reached = node_hash(reached, sibling)
        number, last = number >> 1, last >> 1
    return not last and hmac.compare_digest(reached, root)


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> bool:
    """RFC 9162 §2.1.4.2. False for a path that does not hold or is malformed.

    The empty tree begins every other: then the path is empty and `old_root` is the root of nothing.
    """
    if not (0 <= old <= new <= MAX_SIZE and _are_hashes(old_root, new_root, *path)):
        return False
    if old in (0, new):
        expected = EMPTY_ROOT if old == 0 else new_root
        return not path and old_root == expected and (new > 0 or new_root == EMPTY_ROOT)
    # a whole tree is its own first node, which the proof leaves out
    nodes = iter(path if old & (old - 1) else [old_root, *path])
    number, last = old - 1, new - 1
    while number & 1:
        number, last = number >> 1, last >> 1
    first = next(nodes, None)
    if first is None:
        return False
    old_reached = new_reached = first
    for sibling in nodes:
        if not last:
            return False
        if number & 1 or number == last:
            old_reached = node_hash(sibling, old_reached)
            new_reached = node_hash(sibling, new_reached)
            while number and not number & 1:
                number, last = number >> 1, last >> 1
        else:
            new_reached = node_hash(new_reached, sibling)
        number, last = number >> 1, last >> 1
    return not last and hmac.compare_digest(old_reached, old_root) and hmac.compare_digest(new_reached, new_root)


def _are_hashes(*values: bytes) -> bool:
    return all(isinstance(value, bytes) and len(value) == HASH_BYTES for value in values)


def _split(size: int) -> int:
    """The largest power of two below `size`, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


def _range_root(start: int, end: int, nodes: Nodes) -> bytes:
    """Of the leaves [start, end), where `start` is where a subtree of at least so many begins."""
    return _folded([nodes(level, index) for level, index in _whole_subtrees(start, end)])


def _whole_subtrees(start: int, end: int) -> Iterator[tuple[int, int]]:
    """(level, index) of the whole subtrees that make up [start, end), the largest first."""
    left = end - start
    for level in range(left.bit_length() - 1, -1, -1):
        if left >> level & 1:
            yield level, start >> level
            start += 1 << level


def _folded(peaks: Sequence[bytes]) -> bytes:
    if not peaks:
        return EMPTY_ROOT
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root
