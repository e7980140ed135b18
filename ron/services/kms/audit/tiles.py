"""The hashes of the tree in tiles of 256 (C2SP tlog-tiles), so that no proof reads the log.

In: leaf hashes in order. Out: each tile once it is full, to be kept; the root and the paths of any size so far. What
is not full is in memory: 255 hashes a level at most.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

from ron.crypto.merkle import HASH_BYTES, consistency_path, inclusion_path, node_hash, tree_root
from ron.kernel.lru import ByteLru

HEIGHT = 8
WIDTH = 1 << HEIGHT
TILE_BYTES = WIDTH * HASH_BYTES
# Full tiles that were read lately: a walk over neighbours reads each once.
_CACHED_BYTES = 2 * 1024 * 1024


def tile_path(level: int, number: int) -> PurePosixPath:
    """Where tlog-tiles has it: `tile/<level>/x001/x234/067`."""
    groups = [f"{number % 1000:03d}"]
    while number := number // 1000:
        groups.append(f"x{number % 1000:03d}")
    return PurePosixPath("tile", str(level), *reversed(groups))


class Tiles:
    """read: a full tile that was put before, (level, number). put: a tile that became full just now."""

    def __init__(self, read: Callable[[int, int], bytes], put: Callable[[int, int, bytes], None]) -> None:
        self.size = 0
        self._read = read
        self._put = put
        # of each level, the hashes of its last tile, which is never full
        self._open: list[bytearray] = [bytearray()]
        self._cache: ByteLru[tuple[int, int], bytes] = ByteLru(_CACHED_BYTES)

    def append(self, leaf: bytes) -> None:
        """One more leaf, by its hash."""
        self.size += 1
        self._open[0] += leaf
        if len(self._open[0]) == TILE_BYTES:
            self._filled(0)

    def node(self, level: int, index: int) -> bytes:
        """The root of the leaves [index * 2^level, (index + 1) * 2^level), all of which are there."""
        tile_level, within = divmod(level, HEIGHT)
        number, place = divmod(index << within, WIDTH)
        hashes = self._tile(tile_level, number)
        return _folded(hashes[place * HASH_BYTES : (place + (1 << within)) * HASH_BYTES])

    def root(self, size: int) -> bytes:
        """Of the first `size` leaves."""
        return tree_root(size, self.node)

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """See `ron.crypto.merkle.inclusion_path`."""
        return inclusion_path(index, size, self.node)

    def consistency(self, old: int, new: int) -> list[bytes]:
        """See `ron.crypto.merkle.consistency_path`."""
        return consistency_path(old, new, self.node)

    def _filled(self, level: int) -> None:
        hashes = bytes(self._open[level])
        self._open[level].clear()
        number = (self.size >> HEIGHT * (level + 1)) - 1
        self._cache.put((level, number), hashes, TILE_BYTES)
        self._put(level, number, hashes)
        if level + 1 == len(self._open):
            self._open.append(bytearray())
        self._open[level + 1] += _folded(hashes)
        if len(self._open[level + 1]) == TILE_BYTES:
            self._filled(level + 1)

    def _tile(self, level: int, number: int) -> bytes:
        if number == self.size >> HEIGHT * (level + 1):
            return bytes(self._open[level])
        hashes = self._cache.get((level, number))
        if hashes is None:
            hashes = self._read(level, number)
            self._cache.put((level, number), hashes, TILE_BYTES)
        return hashes


def _folded(hashes: bytes) -> bytes:
    """The root over a power of two of hashes."""
    row = [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]
    while len(row) > 1:
        row = [node_hash(row[at], row[at + 1]) for at in range(0, len(row), 2)]
    return row[0]
