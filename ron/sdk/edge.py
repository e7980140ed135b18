"""The edge of another process, as the gateway's edge: tiles and assets over HTTP on a Unix socket.

In: a tile's address or an asset's name. Out: the same `Asset` the edge itself would give; it stays in memory for a
minute, so that hot tiles cost no second process.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from twisted.internet.task import deferLater

from ron.kernel.backoff import Backoff
from ron.kernel.breaker import Circuits
from ron.kernel.lru import ByteLru
from ron.proto.assets import Asset
from ron.proto.errors import unavailable
from ron.proto.exitcodes import Unreachable
from ron.proto.tiles import TileAddress
from ron.sdk.client import Answer, Api
from ron.sdk.transport import unix_http

DEADLINE_S = 5.0
PATIENCE = 1000
# A pack may be replaced while the edge runs: what was fetched from the old one is asked for again after this long.
FRESH_S = 60.0
_MAX_AGE = re.compile(r"max-age=(\d{1,9})")


class EdgeClient:
    """`EdgePort` over the socket at `path`. cache_bytes: for tiles and assets together."""

    def __init__(self, reactor: Any, path: Path, *, cache_bytes: int) -> None:
        self._reactor = reactor
        # the node starts a dead edge again within a second: a circuit that opened for two would make it worse
        circuits = Circuits(reactor.seconds, failures_in_row=PATIENCE)
        http = unix_http(reactor, path)
        self._api = Api(reactor, http, "http://edge", deadline_s=DEADLINE_S, tries=1, circuits=circuits)
        self._cache: ByteLru[str, tuple[float, Asset]] = ByteLru(cache_bytes)

    def tile(self, address: TileAddress) -> Asset | Awaitable[Asset]:
        """The tile: at once when it is in memory. Raises `RonError` as the edge does, or when it does not answer."""
        return self._get(f"/tiles/{address.z}/{address.x}/{address.y}.{address.ext}")

    def asset(self, path: str) -> Asset | Awaitable[Asset]:
        """The bundled asset called `path`."""
        return self._get(f"/assets/{path}")

    def _get(self, path: str) -> Asset | Awaitable[Asset]:
        kept = self._cache.get(path)
        if kept is not None and self._reactor.seconds() < kept[0]:
            return kept[1]
        return self._fetch(path)

    async def _fetch(self, path: str) -> Asset:
        asset = _asset(await self._answer(path))
        fresh_s = min(FRESH_S, asset.max_age_s)
        self._cache.put(path, (self._reactor.seconds() + fresh_s, asset), len(asset.body))
        return asset

    async def _answer(self, path: str) -> Answer:
        """What the edge says, whatever that is, tried again only while nobody is there to say anything."""
        until_s = self._reactor.seconds() + DEADLINE_S
        backoff = Backoff(base_s=0.05, ceiling_s=0.5)
        while True:
            try:
                return await self._api.fetch("GET", path)
            except Unreachable as error:
                delay_s = backoff.next_delay_s()
                if self._reactor.seconds() + delay_s > until_s:
                    raise unavailable("the edge does not answer", hint=error.hint) from None
            await deferLater(self._reactor, delay_s)


def _asset(answer: Answer) -> Asset:
    headers = answer.headers
    max_age = _MAX_AGE.search(headers.get("cache-control", ""))
    return Asset(
        answer.body,
        headers.get("content-type", "application/octet-stream"),
        headers.get("etag", ""),
        headers.get("content-encoding"),
        int(max_age[1]) if max_age else 0,
    )
