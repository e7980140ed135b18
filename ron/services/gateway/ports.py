"""What the gateway needs from others; the node fills these with services or with clients of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from ron.proto.assets import Asset
from ron.proto.facts import HelloReport, NodeStatus
from ron.proto.tiles import TileAddress


class EdgePort(Protocol):
    """Tiles and assets. Raises `RonError` NotFound for what there is not, StoreUnavailable for a broken pack."""

    def tile(self, address: TileAddress) -> Asset | Awaitable[Asset]:
        """The tile at `address`: at once when it is in memory, otherwise soon."""
        ...

    def asset(self, path: str) -> Asset | Awaitable[Asset]:
        """The bundled asset called `path`."""
        ...


HelloPort = Callable[[], HelloReport | Awaitable[HelloReport]]
StatusPort = Callable[[], NodeStatus | Awaitable[NodeStatus]]
