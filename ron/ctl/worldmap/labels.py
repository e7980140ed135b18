"""Where country names go: at the widest place of the largest polygon, where they fit, never over one another.

In: polygons on the unit square and a zoom. Out: placed labels in global pixels of that zoom, the same for every tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ron.ctl.worldmap.mercator import TILE_PX
from ron.ctl.worldmap.style import HALO_PX, MAX_TEXT_PX, MIN_TEXT_PX
from ron.ctl.worldmap.topology import Line

_MASK_PX = 96
_GAP_PX = 4
# A name may stick out of its country a little: the eye still reads it as that country's.
_OVERHANG = 1.12


class Site(NamedTuple):
    """The best place for a name, on the unit square: centre, free width at its height, and the inscribed radius."""

    name: str
    x: float
    y: float
    width: float
    radius: float
    area: float


class Label(NamedTuple):
    """A name placed: centre and half extents in global pixels, text with line breaks, type size in pixels."""

    text: str
    x: int
    y: int
    half_width: int
    half_height: int
    size_px: int

    def overlaps(self, other: Label) -> bool:
        """True when the two come nearer than the gap."""
        return (
            abs(self.x - other.x) < self.half_width + other.half_width + _GAP_PX
            and abs(self.y - other.y) < self.half_height + other.half_height + _GAP_PX
        )


@lru_cache(maxsize=32)
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """Pillow's own typeface, so that the map looks the same on every machine."""
    face = ImageFont.load_default(size_px)
    assert isinstance(face, ImageFont.FreeTypeFont)  # noqa: S101 - Pillow without FreeType has no type to set
    return face


def find_site(name: str, ring: Line, area: float) -> Site:
    """The place in `ring` (unit square) that is farthest from its edge: erode a picture of it until little is left."""
    left, right = min(p[0] for p in ring), max(p[0] for p in ring)
    top, bottom = min(p[1] for p in ring), max(p[1] for p in ring)
    scale = (_MASK_PX - 4) / max(right - left, bottom - top, 1e-9)
    size = (int((right - left) * scale) + 5, int((bottom - top) * scale) + 5)
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).polygon([((x - left) * scale + 2, (y - top) * scale + 2) for x, y in ring], fill=255)
    core, radius = _core(mask)
    box = core.getbbox() or (0, 0, *size)
    column, row = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
    run = _run(mask, column, row)
    centre = (run[0] + run[1]) / 2 if run[1] - run[0] < 4 * radius else column
    return Site(
        name,
        (left + (centre - 2) / scale) % 1.0,
        top + (row - 2) / scale,
        (run[1] - run[0]) / scale,
        radius / scale,
        area,
    )


def place(sites: Sequence[Site], zoom: int) -> list[Label]:
    """Labels for `zoom`: the largest countries first, each only where it fits and touches none placed before."""
    world_px = TILE_PX << zoom
    placed: list[Label] = []
    for site in sorted(sites, key=lambda s: (-s.area, s.name)):
        label = _fit(site, world_px)
        if label is not None and not any(label.overlaps(other) for other in placed):
            placed.append(label)
    return placed


def _fit(site: Site, world_px: int) -> Label | None:
    """The largest type in which the name fits its country, on one line or two; None when it does not."""
    width, height = site.width * world_px * _OVERHANG, 2 * site.radius * world_px * _OVERHANG
    largest = min(MAX_TEXT_PX, MIN_TEXT_PX + int(width / 60))
    for size in range(largest, MIN_TEXT_PX - 1, -1):
        for text in _line_breaks(site.name):
            half_width, half_height = _half_extents(text, size)
            if 2 * half_width <= width and 2 * half_height <= max(height, size + 4):
                x, y = round(site.x * world_px), round(site.y * world_px)
                if half_width < x < world_px - half_width and half_height < y < world_px - half_height:
                    return Label(text, x, y, half_width, half_height, size)
    return None


def _line_breaks(name: str) -> list[str]:
    """The name as it is, and in two lines broken where they come out most even."""
    words = name.split(" ")
    if len(words) == 1:
        return [name]
    breaks = [" ".join(words[:i]) + "\n" + " ".join(words[i:]) for i in range(1, len(words))]
    return [name, min(breaks, key=lambda text: max(map(len, text.split("\n"))))]


@lru_cache(maxsize=4096)
def _half_extents(text: str, size_px: int) -> tuple[int, int]:
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font(size_px), anchor="mm", spacing=1)
    return int((right - left) / 2) + HALO_PX + 1, int((bottom - top) / 2) + HALO_PX + 1


def _core(mask: Image.Image) -> tuple[Image.Image, int]:
    """The last picture before erosion leaves nothing, and how many steps that took."""
    steps = 0
    while True:
        eroded = mask.filter(ImageFilter.MinFilter(3))
        if eroded.getbbox() is None:
            return mask, max(steps, 1)
        mask, steps = eroded, steps + 1


def _run(mask: Image.Image, column: int, row: int) -> tuple[int, int]:
    """First and last column inside the shape, around `column`, in `row`."""
    line = mask.crop((0, row, mask.width, row + 1)).tobytes()
    left = right = column
    while left > 0 and line[left - 1]:
        left -= 1
    while right < len(line) - 1 and line[right + 1]:
        right += 1
    return left, right
