"""Shares the blocks out to worker processes and writes the archive, whole or not at all.

In: where to, how deep, how many workers. Out: a PMTiles file with its BLAKE3 digest beside it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from pathlib import Path

import msgspec
from blake3 import blake3
from pmtiles.tile import Compression, TileType, zxy_to_tileid
from pmtiles.writer import Writer

from ron.ctl.worldmap.draw import blocks, draw_block
from ron.ctl.worldmap.mercator import MAX_LATITUDE
from ron.kernel.files import sync_dir
from ron.proto.errors import unavailable

MAX_ZOOM = 6
_METADATA = {
    "name": "World",
    "description": "Countries, coasts and names, for Hello Map",
    "attribution": "Made with Natural Earth",
    "type": "baselayer",
    "format": "png",
    "version": "1",
}


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """A finished pack. b3: `b3:<64 hex>` of the file, as it stands in `<out>.b3`."""

    out: str
    tiles: int
    unique_tiles: int
    bytes: int
    seconds: float
    b3: str


def build(out: Path, max_zoom: int, jobs: int, progress: Callable[[int, int], None]) -> Built:
    """Draw the world down to `max_zoom` and put it at `out`. Raises `RonError` when it cannot be written.

    `progress(done, total)` counts tiles.
    """
    started = time.monotonic()
    total = sum(4**zoom for zoom in range(max_zoom + 1))
    tiles: dict[int, bytes] = {}
    progress(0, total)
    for drawn in _drawn(blocks(max_zoom), jobs):
        tiles.update(drawn)
        progress(len(tiles), total)
    try:
        b3 = _write(out, tiles)
    except OSError as error:
        raise unavailable(f"cannot write {out}: {error.strerror}", hint="name a writable place with --out") from None
    return Built(
        out=str(out),
        tiles=len(tiles),
        unique_tiles=len(set(tiles.values())),
        bytes=out.stat().st_size,
        seconds=round(time.monotonic() - started, 2),
        b3=b3,
    )


def _drawn(work: list[tuple[int, int, int]], jobs: int) -> Iterator[dict[int, bytes]]:
    """Each block's tiles by tile id, as they come."""
    if jobs == 1:
        yield from (_draw(*block) for block in work)
        return
    # spawn, not fork: the workers then hold nothing of ours, whatever we have imported or opened
    executor: Executor = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    with executor:
        for done in as_completed([executor.submit(_draw, *block) for block in work]):
            yield done.result()


def _draw(zoom: int, column: int, row: int) -> dict[int, bytes]:
    return {zxy_to_tileid(zoom, x, y): png for x, y, png in draw_block(zoom, column, row)}


def _write(out: Path, tiles: dict[int, bytes]) -> str:
    """The archive at `out` and its digest beside it; returns the digest.

    A crash in between leaves a pack without a digest, never one with a wrong digest.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    sidecar = Path(f"{out}.b3")
    try:
        with temporary.open("w+b") as file:
            writer = Writer(file)
            for tile_id in sorted(tiles):
                writer.write_tile(tile_id, tiles[tile_id])
            writer.finalize(_header(), _METADATA)
            file.flush()
            os.fsync(file.fileno())
        b3 = f"b3:{blake3(temporary.read_bytes()).hexdigest()}"
        sidecar.unlink(missing_ok=True)
        temporary.replace(out)
        sidecar.write_text(f"{b3}\n", encoding="ascii")
        sync_dir(out.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return b3


def _header() -> dict[str, object]:
    edge_e7, latitude_e7 = 180 * 10**7, int(MAX_LATITUDE * 10**7)
    return {
        "tile_compression": Compression.NONE,
        "tile_type": TileType.PNG,
        "min_lon_e7": -edge_e7,
        "max_lon_e7": edge_e7,
        "min_lat_e7": -latitude_e7,
        "max_lat_e7": latitude_e7,
        "center_zoom": 2,
        "center_lon_e7": 10 * 10**7,
        "center_lat_e7": 25 * 10**7,
    }
