"""Web Mercator (EPSG:3857) on the unit square: x grows eastward, y southward, (0, 0) is the north-west corner.

In: degrees. Out: numbers in [0, 1]; times 256·2^z they are pixels of zoom z.
"""

from __future__ import annotations

import math

from ron.ctl.worldmap.topology import Line, Point

TILE_PX = 256
MAX_LATITUDE = 85.0511287798066


def project(point: Point) -> Point:
    """(longitude, latitude) in degrees on the unit square; latitudes beyond the map's edge lie on it."""
    longitude, latitude = point
    bounded = max(-MAX_LATITUDE, min(MAX_LATITUDE, latitude))
    y = 0.5 - math.asinh(math.tan(math.radians(bounded))) / (2 * math.pi)
    return (longitude + 180) / 360, min(max(y, 0.0), 1.0)


def is_pole(line: Line) -> bool:
    """True for the line (degrees) of points at the south pole that the source closes Antarctica with."""
    return all(latitude < -89 for _, latitude in line)


def unwrap(line: Line) -> Line:
    """Projected `line` made continuous: the source stitches shapes across the antimeridian, where x jumps by one."""
    turns, before = 0, line[0][0]
    smooth: Line = []
    for x, y in line:
        turns += (before - x > 0.5) - (x - before > 0.5)
        before = x
        smooth.append((x + turns, y))
    return smooth


def close_over_the_pole(ring: Line) -> Line:
    """An unwrapped ring that ends one world away from its start goes round the south pole: close it below the map."""
    (first, _), (last, _) = ring[0], ring[-1]
    if abs(last - first) < 0.5:
        return ring
    return [*ring, (last, 1.01), (first, 1.01), ring[0]]


def copies(left: float, right: float) -> list[int]:
    """Whole worlds to shift a shape that reaches from `left` to `right` by, so that all of it shows between 0 and 1."""
    return [shift for shift in (-1, 0, 1) if left + shift < 1 and right + shift > 0]


def thin(line: Line, tolerance: float) -> Line:
    """`line` (unit square) without the points nearer than `tolerance` to the one kept before; ends are kept."""
    kept = [line[0]]
    for point in line[1:-1]:
        if abs(point[0] - kept[-1][0]) + abs(point[1] - kept[-1][1]) >= tolerance:
            kept.append(point)
    kept.append(line[-1])
    return kept
