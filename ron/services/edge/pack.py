"""A PMTiles v3 archive opened for serving: directories parsed once and kept, a tile is one bisection and one pread.

In: a file. Out: tiles by address; `PackBroken` when the file is not what it says. The PyPI library gives the codecs;
its own reader parses directories anew for every tile, two orders too slow for serving.
"""

from __future__ import annotations

import gzip
import itertools
import os
import zlib
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3
from pmtiles.tile import Compression, Entry, TileType, deserialize_directory, deserialize_header, zxy_to_tileid

from ron.proto.errors import ErrorCode, RonError
from ron.proto.tiles import MAX_ZOOM, TileAddress

HEADER_BYTES = 127
MAX_DIRECTORY_BYTES = 16 * 1024 * 1024  # inflated; a directory over it is a bomb, not a map
MAX_TILE_BYTES = 16 * 1024 * 1024
MAX_LEAF_DEPTH = 3
KEPT_LEAVES = 256

_TYPES = {
    TileType.PNG: ("image/png", frozenset({"png"})),
    TileType.JPEG: ("image/jpeg", frozenset({"jpg"})),
    TileType.WEBP: ("image/webp", frozenset({"webp"})),
    TileType.AVIF: ("image/avif", frozenset({"avif"})),
    TileType.MVT: ("application/vnd.mapbox-vector-tile", frozenset({"mvt", "pbf"})),
}
_ENCODINGS = {
    Compression.NONE: None,
    Compression.GZIP: "gzip",
    Compression.BROTLI: "br",
    Compression.ZSTD: "zstd",
}


class PackBroken(RonError):
    """The pack cannot be served. The message names the file and what is wrong with it."""

    def __init__(self, path: Path, why: str, *, hint: str = "restore it, or build it again: ronctl pack build") -> None:
        super().__init__(ErrorCode.STORE_UNAVAILABLE, f"pack {path.name}: {why}", hint=hint)


class Header(NamedTuple):
    """What serving needs of the 127-byte header (PMTiles v3 §3). Sections are (offset, length) in bytes."""

    root: tuple[int, int]
    leaves: tuple[int, int]
    tiles: tuple[int, int]
    internal: Compression
    content_type: str
    content_encoding: str | None
    extensions: frozenset[str]
    min_zoom: int
    max_zoom: int
    addressed_tiles: int


class Directory(NamedTuple):
    """A parsed directory: entries in order, and their first tile ids beside them for the bisection."""

    first_ids: list[int]
    entries: list[Entry]

    def find(self, tile_id: int) -> Entry | None:
        """The tile's entry, or the leaf's (run_length 0) that may know it."""
        index = bisect_right(self.first_ids, tile_id) - 1
        if index < 0:
            return None
        entry = self.entries[index]
        within = entry.run_length == 0 or tile_id - entry.tile_id < entry.run_length
        return entry if within else None


class Pack:
    """An open archive. Blocking; the service calls it from its pool. Safe to use from several threads.

    Reads are `pread`s on a kept descriptor and never a memory map: a file cut short while it is mapped would kill the
    process by SIGBUS, where a short read is an error like any other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise PackBroken(path, "the file is missing", hint=f"build it: ronctl pack build --out {path}") from None
        except OSError as error:
            raise PackBroken(path, f"cannot be opened: {error.strerror}") from None
        try:
            self._size = os.fstat(self._file).st_size
            self.header = self._read_header()
            self._root = self._parse(*self.header.root)
            self._check_digest()
        except BaseException:
            self.close()
            raise
        self._leaves: OrderedDict[int, Directory] = OrderedDict()

    def close(self) -> None:
        """Give the file back."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def read(self, address: TileAddress) -> bytes | None:
        """The tile's bytes as stored, or None when the pack has none at `address`. Raises `PackBroken`."""
        header = self.header
        # not by the header's zooms: of a run of equal tiles that ends in the next zoom its writers count the first only
        if address.ext not in header.extensions:
            return None
        entry = self._find(zxy_to_tileid(address.z, address.x, address.y))
        if entry is None:
            return None
        offset, length = header.tiles
        if entry.length > MAX_TILE_BYTES or entry.offset + entry.length > length:
            raise PackBroken(self.path, "a tile lies outside the tile data")
        return self._pread(offset + entry.offset, entry.length)

    def _find(self, tile_id: int) -> Entry | None:
        directory = self._root
        for _ in range(MAX_LEAF_DEPTH + 1):
            entry = directory.find(tile_id)
            if entry is None or entry.run_length:
                return entry
            directory = self._leaf(entry)
        raise PackBroken(self.path, "its directories are nested too deep")

    def _leaf(self, entry: Entry) -> Directory:
        known = self._leaves.get(entry.offset)
        if known is not None:
            return known
        offset, length = self.header.leaves
        if entry.offset + entry.length > length:
            raise PackBroken(self.path, "a leaf directory lies outside its section")
        leaf = self._parse(offset + entry.offset, entry.length)
        self._leaves[entry.offset] = leaf
        while len(self._leaves) > KEPT_LEAVES:
            self._leaves.popitem(last=False)
        return leaf

    def _read_header(self) -> Header:
        try:
            raw = deserialize_header(self._pread(0, HEADER_BYTES))
        except PackBroken:
            raise
        except Exception:  # noqa: BLE001 - the library has its own and built-in exceptions for what is no header
            raise PackBroken(self.path, "not a PMTiles v3 archive") from None
        if raw["tile_type"] not in _TYPES or raw["tile_compression"] not in _ENCODINGS:
            raise PackBroken(self.path, "its tile type or compression is not one we serve")
        if raw["internal_compression"] not in {Compression.NONE, Compression.GZIP}:
            raise PackBroken(self.path, "its directories are neither gzip nor plain")
        sections = [
            (raw[f"{name}_offset"], raw[f"{name}_length"])  # type: ignore[literal-required]
            for name in ("root", "metadata", "leaf_directory", "tile_data")
        ]
        if any(offset + length > self._size for offset, length in sections):
            raise PackBroken(self.path, "it is truncated: its sections reach beyond the end of the file")
        if not 0 <= raw["min_zoom"] <= raw["max_zoom"] <= MAX_ZOOM:
            raise PackBroken(self.path, "its zoom range makes no sense")
        content_type, extensions = _TYPES[raw["tile_type"]]
        return Header(
            root=sections[0],
            leaves=sections[2],
            tiles=sections[3],
            internal=raw["internal_compression"],
            content_type=content_type,
            content_encoding=_ENCODINGS[raw["tile_compression"]],
            extensions=extensions,
            min_zoom=raw["min_zoom"],
            max_zoom=raw["max_zoom"],
            addressed_tiles=raw["addressed_tiles_count"],
        )

    def _parse(self, offset: int, length: int) -> Directory:
        if length > MAX_DIRECTORY_BYTES:
            raise PackBroken(self.path, "a directory is too large")
        packed = self._pread(offset, length)
        try:
            if self.header.internal is Compression.GZIP:
                _refuse_bomb(packed)
            else:
                packed = gzip.compress(packed, 1)
            entries = deserialize_directory(packed)
        except (EOFError, OSError, ValueError, zlib.error):
            raise PackBroken(self.path, "a directory is damaged") from None
        first_ids = [entry.tile_id for entry in entries]
        if not entries or any(a >= b for a, b in itertools.pairwise(first_ids)):
            raise PackBroken(self.path, "a directory is empty or out of order")
        return Directory(first_ids, entries)

    def _check_digest(self) -> None:
        """Hold the file against `<file>.b3` when that is there: `b3:<64 hex>` of the whole archive."""
        try:
            wanted = Path(f"{self.path}.b3").read_text(encoding="ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            return
        hasher, position = blake3(), 0
        while chunk := os.pread(self._file, 1 << 20, position):
            hasher.update(chunk)
            position += len(chunk)
        if f"b3:{hasher.hexdigest()}" != wanted:
            raise PackBroken(self.path, f"its BLAKE3 digest is not the one in {self.path.name}.b3")

    def _pread(self, offset: int, length: int) -> bytes:
        try:
            content = os.pread(self._file, length, offset)
        except OSError as error:
            raise PackBroken(self.path, f"cannot be read: {error.strerror}") from None
        if len(content) != length:
            raise PackBroken(self.path, "it is truncated: it ends before its own table says")
        return content


def _refuse_bomb(packed: bytes) -> None:
    """Raise ValueError when `packed` inflates to more than a directory may be."""
    inflate = zlib.decompressobj(wbits=31)
    if len(inflate.decompress(packed, MAX_DIRECTORY_BYTES)) >= MAX_DIRECTORY_BYTES or inflate.unconsumed_tail:
        raise ValueError("inflates beyond the limit")
