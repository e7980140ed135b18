"""Small packs for the tests, written by the library we read them without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pmtiles.tile import Compression, TileType, zxy_to_tileid
from pmtiles.writer import Writer


def write_pack(path: Path, tiles: dict[int, bytes], **header: Any) -> Path:
    """`tiles` by tile id as a PMTiles archive at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = Writer(file)
        for tile_id in sorted(tiles):
            writer.write_tile(tile_id, tiles[tile_id])
        writer.finalize({"tile_type": TileType.PNG, "tile_compression": Compression.NONE, **header}, {"name": "test"})
    return path


def grid(zoom: int) -> dict[int, bytes]:
    """A different body for every tile down to `zoom`."""
    return {
        zxy_to_tileid(z, x, y): f"tile {z}/{x}/{y}".encode() * 3
        for z in range(zoom + 1)
        for x in range(1 << z)
        for y in range(1 << z)
    }
