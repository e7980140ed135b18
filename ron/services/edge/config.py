"""The `[edge]` section."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

MIB = 1024 * 1024
PackPath = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class EdgeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """mode: `offline` serves packs only. packs: PMTiles files, relative to the home; the first that has a tile wins.

    tile_cache_bytes: memory for tiles already read and hashed.
    """

    mode: Literal["offline"] = "offline"
    packs: Annotated[tuple[PackPath, ...], msgspec.Meta(max_length=64)] = ("packs/world.pmtiles",)
    tile_cache_bytes: Annotated[int, msgspec.Meta(ge=0, le=16 * 1024 * MIB)] = 64 * MIB
