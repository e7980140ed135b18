"""The pack reader: the same answers as the library's own, and nothing but `PackBroken` for what is no pack."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from pmtiles.reader import MmapSource, Reader
from pmtiles.tile import Compression, TileType, tileid_to_zxy
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.tiles import TileAddress
from ron.services.edge.pack import Pack, PackBroken
from tests.services.edge.packs import grid, write_pack


class PackTestCase(SynchronousTestCase):
    """Has a place for packs."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute() / "test.pmtiles"

    def open(self, path: Path | None = None) -> Pack:
        opened = Pack(path or self.path)
        self.addCleanup(opened.close)
        return opened

    def refused(self) -> PackBroken:
        refusal = self.assertRaises(PackBroken, Pack, self.path)
        self.assertIn(self.path.name, refusal.message)
        self.assertEqual(refusal.status, 503)
        return refusal


class ReadingTests(PackTestCase):
    """What is in the pack comes out of it."""

    def test_every_tile_and_nothing_else(self) -> None:
        tiles = grid(3)
        opened = self.open(write_pack(self.path, tiles))
        for tile_id, body in tiles.items():
            self.assertEqual(opened.read(TileAddress(*tileid_to_zxy(tile_id), "png")), body)
        self.assertIsNone(opened.read(TileAddress(4, 0, 0, "png")))
        self.assertIsNone(opened.read(TileAddress(0, 0, 0, "jpg")))
        self.assertEqual(opened.header.addressed_tiles, len(tiles))

    def test_leaf_directories(self) -> None:
        # many irregular entries push the directory over its 16 KiB and into leaves
        rng = random.Random(1)
        tiles = {rng.randrange(160_000): rng.randbytes(rng.randrange(1, 60)) for _ in range(20_000)}
        opened = self.open(write_pack(self.path, tiles))
        self.assertGreater(opened.header.leaves[1], 0)
        for tile_id in [*range(0, 160_000, 97), min(tiles), max(tiles)]:
            found = opened.read(TileAddress(*tileid_to_zxy(tile_id), "png"))
            self.assertEqual(found, tiles.get(tile_id))

    @settings(max_examples=40, deadline=None)
    @given(st.dictionaries(st.integers(0, 84), st.binary(min_size=1, max_size=4), min_size=1, max_size=85))
    def test_the_same_as_the_library(self, tiles: dict[int, bytes]) -> None:
        path = write_pack(Path(self.mktemp()).absolute() / "x.pmtiles", tiles)
        with path.open("rb") as file:
            theirs, ours = Reader(MmapSource(file)), Pack(path)
            for tile_id in range(85):
                z, x, y = tileid_to_zxy(tile_id)
                self.assertEqual(ours.read(TileAddress(z, x, y, "png")), theirs.get(z, x, y))
            ours.close()

    def test_equal_tiles_in_a_row_over_two_zooms(self) -> None:
        opened = self.open(write_pack(self.path, {0: b"sea", 1: b"sea", 2: b"sea"}))
        self.assertEqual(opened.read(TileAddress(*tileid_to_zxy(2), "png")), b"sea")

    def test_types_and_encodings(self) -> None:
        opened = self.open(write_pack(self.path, grid(0), tile_type=TileType.MVT, tile_compression=Compression.GZIP))
        self.assertEqual(opened.header.content_encoding, "gzip")
        self.assertEqual(opened.header.content_type, "application/vnd.mapbox-vector-tile")
        self.assertIsNotNone(opened.read(TileAddress(0, 0, 0, "pbf")))


class BrokenTests(PackTestCase):
    """What is no pack, or no longer one."""

    def test_missing(self) -> None:
        refusal = self.refused()
        self.assertIn("missing", refusal.message)
        self.assertIn("ronctl pack build", refusal.hint or "")

    def test_cut_short_anywhere(self) -> None:
        whole = write_pack(self.path, grid(2)).read_bytes()
        for length in sorted({0, 1, 7, 126, 127, 128, 200, len(whole) // 2, len(whole) - 1}):
            self.path.write_bytes(whole[:length])
            self.refused()

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_any_flipped_bit_gives_tiles_or_a_refusal(self, data: st.DataObject) -> None:
        path = Path(self.mktemp()).absolute() / "x.pmtiles"
        raw = bytearray(write_pack(path, grid(2)).read_bytes())
        raw[data.draw(st.integers(0, 600))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(raw)
        try:
            opened = Pack(path)
        except PackBroken:
            return
        for tile_id in range(21):
            try:
                opened.read(TileAddress(*tileid_to_zxy(tile_id), "png"))
            except PackBroken:
                continue
        opened.close()

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=400))
    def test_any_bytes_after_the_magic(self, noise: bytes) -> None:
        path = Path(self.mktemp()).absolute()
        path.write_bytes(b"PMTiles\x03" + noise)
        self.assertRaises(PackBroken, Pack, path)

    def test_a_directory_that_inflates_without_end(self) -> None:
        whole = bytearray(write_pack(self.path, grid(2)).read_bytes())
        bomb = gzip.compress(bytes(64 * 1024 * 1024))
        whole[8:16], whole[16:24] = len(whole).to_bytes(8, "little"), len(bomb).to_bytes(8, "little")
        self.path.write_bytes(bytes(whole) + bomb)
        self.assertIn("directory", self.refused().message)

    def test_a_leaf_that_points_at_itself(self) -> None:
        from pmtiles.tile import Entry, serialize_directory

        whole = bytearray(write_pack(self.path, grid(2)).read_bytes())
        loop = serialize_directory([Entry(0, 0, 0, 0)])
        loop = serialize_directory([Entry(0, 0, len(loop), 0)])
        start = len(whole).to_bytes(8, "little")
        size = len(loop).to_bytes(8, "little")
        whole[8:16], whole[16:24], whole[40:48], whole[48:56] = start, size, start, size
        self.path.write_bytes(bytes(whole) + loop)
        self.assertRaises(PackBroken, self.open().read, TileAddress(0, 0, 0, "png"))

    def test_cut_short_while_it_is_open(self) -> None:
        opened = self.open(write_pack(self.path, grid(2)))
        os.truncate(self.path, 300)
        self.assertRaises(PackBroken, opened.read, TileAddress(2, 3, 3, "png"))

    def test_the_digest_beside_it_is_believed(self) -> None:
        whole = bytearray(write_pack(self.path, grid(2)).read_bytes())
        sidecar = Path(f"{self.path}.b3")
        sidecar.write_text(f"b3:{blake3(bytes(whole)).hexdigest()}\n")
        self.open()
        whole[-1] ^= 1
        self.path.write_bytes(whole)
        self.assertIn("BLAKE3", self.refused().message)
