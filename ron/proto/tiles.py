"""Tile addresses as they stand in URLs. Pure: strict about every character."""

from __future__ import annotations

from typing import NamedTuple

from ron.proto.errors import bad_request

MAX_ZOOM = 26  # PMTiles v3: tile ids of z 27 and more do not fit 64 bits safely
EXTENSIONS = frozenset({"png", "jpg", "webp", "avif", "mvt", "pbf"})


class TileAddress(NamedTuple):
    """Tile (x, y) of the 2^z × 2^z grid of zoom z, in the XYZ scheme (y grows southward)."""

    z: int
    x: int
    y: int
    ext: str


def parse_tile(z: str, x: str, y_ext: str) -> TileAddress:
    """The address in `/tiles/{z}/{x}/{y}.{ext}`. Raises `RonError` BadRequest when it is malformed."""
    y, dot, ext = y_ext.partition(".")
    if not dot or ext not in EXTENSIONS:
        raise bad_request("a tile is /tiles/{z}/{x}/{y}.{ext}", f"ext is one of {', '.join(sorted(EXTENSIONS))}")
    zoom, column, row = _whole(z), _whole(x), _whole(y)
    if zoom is None or column is None or row is None or zoom > MAX_ZOOM:
        raise bad_request("z, x and y are plain decimal numbers", f"z is 0 to {MAX_ZOOM}")
    if column >= 1 << zoom or row >= 1 << zoom:
        raise bad_request(f"zoom {zoom} has no such tile", f"x and y are 0 to {(1 << zoom) - 1}")
    return TileAddress(zoom, column, row, ext)


def _whole(text: str) -> int | None:
    """A decimal without sign, leading zeros or more than nine digits; None otherwise."""
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or (len(text) > 1 and text[0] == "0"):
        return None
    return int(text)
