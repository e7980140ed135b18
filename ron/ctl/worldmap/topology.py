"""TopoJSON decoded: arcs to longitudes and latitudes, polygons stitched from arcs, and who uses which arc.

In: the bytes of a quantized topology (TopoJSON 1.0: §2.1.2 transforms, §2.1.3 arcs). Out: countries and arcs in
degrees. An arc that two countries use is a border between them; one that a single ring uses is a coast.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

Point = tuple[float, float]
Line = list[Point]
Rings = list[Line]  # the outer ring, then its holes; each closed: the last point is the first


class Transform(msgspec.Struct):
    """Degrees = grid × scale + translate, longitude first."""

    scale: tuple[float, float]
    translate: tuple[float, float]


class Geometry(msgspec.Struct):
    """A Polygon (rings of arc indexes) or a MultiPolygon (a list of those); a negative index ~i is arc i backwards."""

    type: str
    arcs: list[Any]
    properties: dict[str, str] = {}


class Collection(msgspec.Struct):
    """A GeometryCollection."""

    geometries: list[Geometry]


class Topology(msgspec.Struct):
    """A quantized TopoJSON document: `arcs` are lists of (dx, dy) steps on the grid."""

    transform: Transform
    objects: dict[str, Collection]
    arcs: list[list[tuple[int, int]]]


class Shape(NamedTuple):
    """A country: its name, its polygons, and for every polygon ring the arcs it was stitched from (all ≥ 0)."""

    name: str
    polygons: list[Rings]
    arcs: list[int]


class World(NamedTuple):
    """Decoded: countries in the document's order, all arcs, and for each arc the countries that use it (0, 1 or 2)."""

    shapes: list[Shape]
    arcs: list[Line]
    users: list[frozenset[int]]

    def coasts(self) -> Iterator[Line]:
        """Arcs with land on one side only."""
        return (arc for arc, users in zip(self.arcs, self.users, strict=True) if len(users) == 1)

    def borders(self) -> Iterator[Line]:
        """Arcs between two countries."""
        return (arc for arc, users in zip(self.arcs, self.users, strict=True) if len(users) > 1)

    def neighbours(self) -> list[set[int]]:
        """For each country, those it shares a border with."""
        near: list[set[int]] = [set() for _ in self.shapes]
        for users in self.users:
            for one in users:
                near[one] |= users - {one}
        return near


def decode(document: bytes, object_name: str) -> World:
    """The world in `document`. Raises `msgspec.ValidationError` or ValueError when it is no such topology."""
    topology = msgspec.json.decode(document, type=Topology)
    if object_name not in topology.objects:
        raise ValueError(f"the topology has no object {object_name}")
    arcs = [_degrees(arc, topology.transform) for arc in topology.arcs]
    shapes = [_shape(geometry, arcs) for geometry in topology.objects[object_name].geometries]
    return World(shapes, arcs, _users(shapes, len(arcs)))


def stitch(indexes: Iterable[int], arcs: list[Line]) -> Line:
    """One ring: arcs end to end, the point where two meet kept once. Raises ValueError when they do not meet."""
    ring: Line = []
    for index in indexes:
        arc = arcs[index] if index >= 0 else arcs[~index][::-1]
        if ring and ring[-1] != arc[0]:
            raise ValueError(f"arc {index} does not begin where the one before it ends")
        ring.extend(arc[1:] if ring else arc)
    if len(ring) < 4 or ring[0] != ring[-1]:
        raise ValueError("a ring does not close")
    return ring


def _degrees(steps: list[tuple[int, int]], transform: Transform) -> Line:
    (kx, ky), (tx, ty) = transform.scale, transform.translate
    x = y = 0
    line: Line = []
    for dx, dy in steps:
        x, y = x + dx, y + dy
        line.append((x * kx + tx, y * ky + ty))
    return line


def _shape(geometry: Geometry, arcs: list[Line]) -> Shape:
    if geometry.type not in {"Polygon", "MultiPolygon"}:
        raise ValueError(f"a country is a {geometry.type}")
    polygons = _polygons(geometry)
    return Shape(
        name=geometry.properties.get("name", ""),
        polygons=[[stitch(ring, arcs) for ring in polygon] for polygon in polygons],
        arcs=[index if index >= 0 else ~index for polygon in polygons for ring in polygon for index in ring],
    )


def _polygons(geometry: Geometry) -> list[list[list[int]]]:
    found = [geometry.arcs] if geometry.type == "Polygon" else geometry.arcs
    return msgspec.convert(found, list[list[list[int]]])


def _users(shapes: list[Shape], count: int) -> list[frozenset[int]]:
    users: list[set[int]] = [set() for _ in range(count)]
    for number, shape in enumerate(shapes):
        for arc in shape.arcs:
            users[arc].add(number)
    return [frozenset(found) for found in users]
