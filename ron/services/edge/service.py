"""Life of edge: opens the packs off the reactor, keeps hot tiles in memory, tells readiness what is wrong with a pack.

In: `EdgeConfig`. Out: tiles and assets through `tile` and `asset`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from prometheus_client import Counter
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ron.kernel import HealthState, Metrics
from ron.kernel.lru import ByteLru
from ron.kernel.threads import BoundedPool
from ron.proto.assets import Asset, strong_etag
from ron.proto.errors import RonError, not_found, unavailable
from ron.proto.tiles import TileAddress
from ron.services.edge.config import EdgeConfig
from ron.services.edge.pack import Pack, PackBroken

TILE_MAX_AGE_S = 3600
ASSET_MAX_AGE_S = 3600
RETRY_BROKEN_S = 2.0
_THREADS = 2
_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    "": "text/plain; charset=utf-8",
}
_log = Logger(namespace="ron.edge")


class PackStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A pack as status shows it."""

    name: str
    ok: bool
    problem: str = ""
    tiles: int = 0
    min_zoom: int = 0
    max_zoom: int = 0
    content_type: str = ""


class EdgeService(Service):
    """Tiles from packs, assets from the bundle."""

    def __init__(self, config: EdgeConfig, *, home: Path, reactor: Any, health: HealthState, metrics: Metrics) -> None:
        self._paths = [home / name for name in config.packs]
        self._health = health
        self._pool = BoundedPool(reactor, name="edge", threads=_THREADS)
        self._packs: dict[Path, Pack] = {}
        self._broken: dict[Path, PackBroken] = {}
        self._seen: dict[Path, tuple[int, int] | None] = {}
        self._retry = LoopingCall(self._retry_broken)
        self._retry.clock = reactor
        self._cache: ByteLru[TileAddress, Asset] = ByteLru(config.tile_cache_bytes)
        self._assets = _load_assets(files("ron.services.edge").joinpath("assets"))
        lookups = Counter(
            "edge_tile_lookups_total", "Tiles asked for, by where they were found", ["found"], registry=metrics.registry
        )
        self._hits, self._misses = lookups.labels("memory"), lookups.labels("pack")
        self.opened: Deferred[None] = Deferred()

    def startService(self) -> None:
        """Open the packs; `opened` fires when each is open or known to be broken."""
        super().startService()
        self._pool.start()
        for path in self._paths:
            self._health.missing(_key(path), "the pack is being opened")
        Deferred.fromCoroutine(self._open_all(self._paths)).chainDeferred(self.opened)
        self._retry.start(RETRY_BROKEN_S, now=False)

    def stopService(self) -> None:
        """Close the packs."""
        super().stopService()
        if self._retry.running:
            self._retry.stop()
        self._pool.stop()
        for pack in self._packs.values():
            pack.close()
        self._packs.clear()

    def tile(self, address: TileAddress) -> Asset | Awaitable[Asset]:
        """The tile: at once when it is in memory. Raises `RonError` NotFound, or StoreUnavailable for a broken pack."""
        cached = self._cache.get(address)
        if cached is not None:
            self._hits.inc()
            return cached
        return self._read(address)

    def asset(self, path: str) -> Asset:
        """The bundled asset called `path`. Raises `RonError` NotFound."""
        asset = self._assets.get(path)
        if asset is None:
            raise not_found("there is no such asset")
        return asset

    def pack_info(self) -> tuple[PackStatus, ...]:
        """Every configured pack."""
        return tuple(self._pack_status(path) for path in self._paths)

    async def _open_all(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self._seen[path] = _fingerprint(path)
            try:
                self._packs[path] = await self._pool.run(Pack, path)
            except PackBroken as error:
                self._gone_bad(path, error)
            else:
                self._broken.pop(path, None)
                self._health.ok(_key(path))
                _log.info("pack {name} is open", event="pack_open", name=path.name)

    def _retry_broken(self) -> Deferred[None]:
        """A pack that was rebuilt or restored is served again without a restart."""
        changed = [path for path in self._broken if _fingerprint(path) != self._seen.get(path)]
        return Deferred.fromCoroutine(self._open_all(changed))

    async def _read(self, address: TileAddress) -> Asset:
        self._misses.inc()
        for path, pack in list(self._packs.items()):
            try:
                asset = await self._pool.run(_read_asset, pack, address)
            except PackBroken as error:
                self._gone_bad(path, error)
                continue
            if asset is not None:
                self._cache.put(address, asset, len(asset.body))
                return asset
        raise self._nothing_at()

    def _nothing_at(self) -> RonError:
        """A pack that is broken, or not open yet, may have had the tile: then this is no 404."""
        if self._broken:
            return next(iter(self._broken.values()))
        if len(self._packs) < len(self._paths):
            return unavailable("the packs are being opened")
        return not_found("there is no such tile")

    def _gone_bad(self, path: Path, error: PackBroken) -> None:
        _log.error("{reason}", event="pack_broken", reason=error.message)
        self._broken[path] = error
        self._health.missing(_key(path), f"{error.message}; {error.hint}")
        pack = self._packs.pop(path, None)
        if pack is not None:
            pack.close()

    def _pack_status(self, path: Path) -> PackStatus:
        pack = self._packs.get(path)
        if pack is None:
            broken = self._broken.get(path)
            return PackStatus(name=path.name, ok=False, problem=broken.message if broken else "being opened")
        header = pack.header
        return PackStatus(
            name=path.name,
            ok=True,
            tiles=header.addressed_tiles,
            min_zoom=header.min_zoom,
            max_zoom=header.max_zoom,
            content_type=header.content_type,
        )


def _fingerprint(path: Path) -> tuple[int, int] | None:
    """Tells a replaced file from the one tried before; None while there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _key(path: Path) -> str:
    return f"edge.pack:{path.name}"


def _read_asset(pack: Pack, address: TileAddress) -> Asset | None:
    """A tile with its ETag; runs in the pool."""
    body = pack.read(address)
    if body is None:
        return None
    header = pack.header
    return Asset(body, header.content_type, strong_etag(body), header.content_encoding, TILE_MAX_AGE_S)


def _load_assets(folder: Traversable, prefix: Sequence[str] = ()) -> dict[str, Asset]:
    """The whole bundle in memory, by relative path: nothing outside it can be named."""
    assets: dict[str, Asset] = {}
    for entry in folder.iterdir():
        parts = (*prefix, entry.name)
        if entry.is_dir():
            assets.update(_load_assets(entry, parts))
            continue
        body = entry.read_bytes()
        content_type = _CONTENT_TYPES.get(PurePosixPath(entry.name).suffix, "application/octet-stream")
        assets["/".join(parts)] = Asset(body, content_type, strong_etag(body), None, ASSET_MAX_AGE_S)
    return assets
