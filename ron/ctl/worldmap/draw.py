"""Draws the map: a block of tiles at a time, twice as large and scaled down, so that lines and coasts are smooth.

In: the decoded world and a block's address. Out: PNGs by tile address, the same bytes on every machine.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

from PIL import Image, ImageDraw

from ron.ctl.worldmap import style
from ron.ctl.worldmap.labels import Label, Site, find_site, font, place
from ron.ctl.worldmap.mercator import TILE_PX, close_over_the_pole, copies, is_pole, project, thin, unwrap
from ron.ctl.worldmap.topology import Line, Point, World, decode

BLOCK_TILES = 8
_SCALE = 2
_PALETTE_COLOURS = 128
_MARGIN_PX = 16

Box = tuple[float, float, float, float]


class Polygon(NamedTuple):
    """A filled ring and its holes on the unit square, with the box around it."""

    box: Box
    outer: Line
    holes: list[Line]
    colour: style.Colour


class Stroke(NamedTuple):
    """A line on the unit square, with the box around it."""

    box: Box
    line: Line


class Atlas(NamedTuple):
    """Everything to draw, projected once. Polygons come largest first, so that enclaves lie on top."""

    polygons: list[Polygon]
    coasts: list[Stroke]
    borders: list[Stroke]
    sites: list[Site]


@lru_cache(maxsize=1)
def atlas() -> Atlas:
    """The bundled Natural Earth countries, ready to draw."""
    document = files("ron.ctl").joinpath("naturalearth/countries-50m.json").read_bytes()
    return prepare(decode(document, "countries"))


def prepare(world: World) -> Atlas:
    """`world` projected, coloured, with a site for every country's name."""
    colours = style.tints([shape.name for shape in world.shapes], world.neighbours())
    polygons: list[tuple[float, Polygon]] = []
    sites: list[Site] = []
    for shape, colour in zip(world.shapes, colours, strict=True):
        own = [[_projected(ring) for ring in rings if not is_pole(ring)] for rings in shape.polygons]
        areas = [_area(rings[0]) for rings in own]
        for area, rings in zip(areas, own, strict=True):
            polygons += [(area, polygon) for polygon in _polygons(rings, colour)]
        largest = max(range(len(own)), key=areas.__getitem__)
        sites.append(find_site(shape.name, own[largest][0], areas[largest]))
    polygons.sort(key=lambda pair: -pair[0])
    return Atlas([p for _, p in polygons], _strokes(world.coasts()), _strokes(world.borders()), sites)


def draw_block(zoom: int, column: int, row: int) -> list[tuple[int, int, bytes]]:
    """The tiles of block (`column`, `row`) of `zoom` as (x, y, PNG)."""
    tiles = min(BLOCK_TILES, 1 << zoom)
    picture = _picture(atlas(), zoom, column * tiles * TILE_PX, row * tiles * TILE_PX, tiles * TILE_PX)
    flat = picture.quantize(palette=_palette(), dither=Image.Dither.NONE)
    return [
        (column * tiles + x, row * tiles + y, _png(flat.crop(_cell(x, y)))) for y in range(tiles) for x in range(tiles)
    ]


def blocks(max_zoom: int) -> list[tuple[int, int, int]]:
    """(zoom, column, row) of every block down to `max_zoom`, the largest zoom first: those take longest."""
    found = []
    for zoom in range(max_zoom, -1, -1):
        count = max(1, (1 << zoom) // BLOCK_TILES)
        found += [(zoom, column, row) for row in range(count) for column in range(count)]
    return found


def _picture(world: Atlas, zoom: int, left: int, top: int, size: int) -> Image.Image:
    """The square of `size` pixels whose corner is global pixel (`left`, `top`) of `zoom`."""
    canvas = _Canvas(zoom, left, top, size)
    canvas.graticule()
    for width, colour in ((style.SHELF_WIDTH_PX, style.SHELF), (style.SHORE_WIDTH_PX, style.SHORE)):
        canvas.strokes(world.coasts, width, colour)
    canvas.polygons(world.polygons)
    canvas.strokes(world.borders, style.BORDER_WIDTH_PX, style.BORDER)
    canvas.strokes(world.coasts, style.COAST_WIDTH_PX, style.COAST)
    picture = canvas.image.reduce(_SCALE)
    _write(picture, _labels(zoom), left, top)
    return picture


class _Canvas:
    """A supersampled picture that takes coordinates of the unit square."""

    def __init__(self, zoom: int, left: int, top: int, size: int) -> None:
        self.image = Image.new("RGB", (size * _SCALE, size * _SCALE), style.SEA)
        self._draw = ImageDraw.Draw(self.image)
        self._world = (TILE_PX << zoom) * _SCALE
        self._left, self._top = left * _SCALE, top * _SCALE
        self._zoom = zoom
        margin = _MARGIN_PX * _SCALE
        self._view: Box = (
            (self._left - margin) / self._world,
            (self._top - margin) / self._world,
            (self._left + size * _SCALE + margin) / self._world,
            (self._top + size * _SCALE + margin) / self._world,
        )

    def graticule(self) -> None:
        """Meridians and parallels."""
        step, width = style.graticule_step_deg(self._zoom), self._width(style.GRATICULE_WIDTH_PX)
        for degrees in range(-180, 181, step):
            meridian = [project((degrees, -85.06)), project((degrees, 85.06))]
            self._draw.line(self._pixels(meridian), fill=style.GRATICULE, width=width)
            if abs(degrees) < 85:
                parallel = [project((-180, degrees)), project((180, degrees))]
                self._draw.line(self._pixels(parallel), fill=style.GRATICULE, width=width)

    def polygons(self, polygons: Sequence[Polygon]) -> None:
        """Countries; a hole shows the sea until the country in it is drawn."""
        for polygon in polygons:
            if self._sees(polygon.box):
                self._draw.polygon(self._outline(polygon.outer), fill=polygon.colour)
                for hole in polygon.holes:
                    self._draw.polygon(self._outline(hole), fill=style.SEA)

    def strokes(self, strokes: Sequence[Stroke], width_px: float, colour: style.Colour) -> None:
        """Lines of one kind."""
        width = self._width(width_px)
        for stroke in strokes:
            if self._sees(stroke.box):
                self._draw.line(self._outline(stroke.line), fill=colour, width=width, joint="curve")

    def _outline(self, line: Line) -> list[Point]:
        return self._pixels(thin(line, 0.8 / self._world))

    def _pixels(self, line: Line) -> list[Point]:
        world, left, top = self._world, self._left, self._top
        return [(x * world - left, y * world - top) for x, y in line]

    def _width(self, px: float) -> int:
        # lines get a little finer where the whole world is a few hundred pixels wide
        return max(1, round(px * _SCALE * (0.6 if self._zoom < 2 else 0.8 if self._zoom < 4 else 1.0)))

    def _sees(self, box: Box) -> bool:
        view = self._view
        return box[0] <= view[2] and box[2] >= view[0] and box[1] <= view[3] and box[3] >= view[1]


def _write(picture: Image.Image, labels: Sequence[Label], left: int, top: int) -> None:
    """Names with a halo, at their global places; one that crosses the edge is finished by the neighbouring block."""
    draw = ImageDraw.Draw(picture)
    for label in labels:
        x, y = label.x - left, label.y - top
        if -label.half_width < x < picture.width + label.half_width and abs(y) < picture.height + label.half_height:
            draw.multiline_text(
                (x, y),
                label.text,
                font=font(label.size_px),
                fill=style.TEXT,
                anchor="mm",
                align="center",
                spacing=1,
                stroke_width=style.HALO_PX,
                stroke_fill=style.HALO,
            )


@lru_cache(maxsize=16)
def _labels(zoom: int) -> list[Label]:
    # at the two smallest zooms a name would be larger than its continent
    return place(atlas().sites, zoom) if zoom >= 2 else []


@lru_cache(maxsize=1)
def _palette() -> Image.Image:
    """One palette for all tiles, so that nothing changes colour at an edge: taken from the world at zoom 3."""
    world = _picture(atlas(), 3, 0, 0, TILE_PX << 3)
    exact = [style.SEA, style.SHELF, style.SHORE, style.GRATICULE, style.COAST, style.BORDER, style.TEXT, style.HALO]
    exact += [style.ICE, *style.LAND]
    blended = world.quantize(_PALETTE_COLOURS - len(exact), method=Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for colour in exact for channel in colour] + blended)
    return palette


def _png(tile: Image.Image) -> bytes:
    packed = io.BytesIO()
    tile.save(packed, "PNG", optimize=True)
    return packed.getvalue()


def _cell(x: int, y: int) -> tuple[int, int, int, int]:
    return x * TILE_PX, y * TILE_PX, (x + 1) * TILE_PX, (y + 1) * TILE_PX


def _projected(ring: Line) -> Line:
    return close_over_the_pole(unwrap([project(point) for point in ring]))


def _polygons(rings: Sequence[Line], colour: style.Colour) -> list[Polygon]:
    """A polygon, and once more one world away when it crosses the antimeridian."""
    left, _, right, _ = _box(rings[0])
    found = []
    for shift in copies(left, right):
        outer, *holes = ([(x + shift, y) for x, y in ring] for ring in rings)
        found.append(Polygon(_box(outer), outer, holes, colour))
    return found


def _strokes(lines: Iterator[Line]) -> list[Stroke]:
    found = []
    for line in (line for line in lines if not is_pole(line)):
        smooth = unwrap([project(point) for point in line])
        left, _, right, _ = _box(smooth)
        for shift in copies(left, right):
            piece = [(x + shift, y) for x, y in smooth]
            found.append(Stroke(_box(piece), piece))
    return found


def _box(line: Line) -> Box:
    xs, ys = [p[0] for p in line], [p[1] for p in line]
    return min(xs), min(ys), max(xs), max(ys)


def _area(ring: Line) -> float:
    """Of a closed ring on the unit square (shoelace)."""
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(ring))) / 2
