"""How the map looks: colours, line widths and type sizes in pixels of the finished tile."""

from __future__ import annotations

from collections.abc import Sequence

Colour = tuple[int, int, int]

SEA: Colour = (190, 214, 228)
SHELF: Colour = (202, 222, 233)
SHORE: Colour = (214, 230, 238)
GRATICULE: Colour = (178, 204, 220)
COAST: Colour = (104, 134, 152)
BORDER: Colour = (172, 150, 140)
TEXT: Colour = (62, 62, 70)
HALO: Colour = (252, 250, 244)
ICE: Colour = (246, 248, 249)
LAND: tuple[Colour, ...] = (
    (243, 232, 207),
    (222, 233, 208),
    (247, 220, 200),
    (228, 220, 236),
    (250, 238, 190),
    (212, 230, 222),
    (240, 214, 222),
)
ICE_NAMES = frozenset({"Antarctica", "Greenland"})

SHELF_WIDTH_PX = 9.0
SHORE_WIDTH_PX = 4.0
COAST_WIDTH_PX = 1.1
BORDER_WIDTH_PX = 0.9
GRATICULE_WIDTH_PX = 0.7
HALO_PX = 2
MIN_TEXT_PX, MAX_TEXT_PX = 10, 19


def graticule_step_deg(zoom: int) -> int:
    """Degrees between meridians (and parallels) at `zoom`."""
    return 30 if zoom <= 2 else 15 if zoom == 3 else 10


def tints(names: Sequence[str], neighbours: Sequence[set[int]]) -> list[Colour]:
    """A colour for each country, none the same as a neighbour's: greedy, the best connected first (Welsh–Powell)."""
    chosen: dict[int, int] = {}
    for country in sorted(range(len(names)), key=lambda i: (-len(neighbours[i]), names[i])):
        taken = {chosen[n] for n in neighbours[country] if n in chosen}
        # start at a place of the country's own, so that islands do not all get the first colour
        start = sum(map(ord, names[country])) % len(LAND)
        order = [(start + i) % len(LAND) for i in range(len(LAND))]
        chosen[country] = next((c for c in order if c not in taken), start)
    return [ICE if name in ICE_NAMES else LAND[chosen[i]] for i, name in enumerate(names)]
