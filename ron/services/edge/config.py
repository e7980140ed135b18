"""The `[edge]` section."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ron.kernel.units import DAY_S, GIB, MIB

PackPath = Annotated[str, Meta(min_length=1, max_length=4096)]
# a host name, or `*.` and one: everything below it
Domain = Annotated[str, Meta(max_length=255, pattern=r"^(\*\.)?[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*\Z")]
Prefix = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"^[^\x00-\x20]+\Z")]
Rate = Annotated[int, Meta(ge=1, le=1_000_000)]


class EdgeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """packs: PMTiles files, relative to the home; the first that has a tile wins.

    mode: `offline` serves packs only; `live` and `hybrid` (packs first) also fetch from the domains in `allow`.
    tile_cache_bytes: memory for tiles already read and hashed.
    cache_dir: where fetched assets are kept. cache_ttl_default: for how long, seconds, when their source does not say.
    integrity_sri, integrity_checks: compare assets with their known hashes. adaptive_cache: keep by use.
    prefetch: prefixes fetched ahead. rate_limit_rps, rate_limit_burst: fetches a second from one domain.
    """

    mode: Literal["offline", "live", "hybrid"] = "offline"
    packs: Annotated[tuple[PackPath, ...], Meta(max_length=64)] = ("packs/world.pmtiles",)
    tile_cache_bytes: Annotated[int, Meta(ge=0, le=16 * GIB, extra={"unit": "bytes"})] = 64 * MIB
    allow: Annotated[tuple[Domain, ...], Meta(max_length=1024)] = ()
    cache_dir: Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00-\x1f]*\Z")] = ""
    cache_ttl_default: Annotated[int, Meta(ge=1, le=365 * DAY_S, extra={"unit": "s"})] | None = None
    integrity_sri: bool = False
    integrity_checks: bool = False
    adaptive_cache: bool = False
    prefetch: Annotated[tuple[Prefix, ...], Meta(max_length=1024)] = ()
    rate_limit_rps: Rate | None = None
    rate_limit_burst: Rate | None = None
