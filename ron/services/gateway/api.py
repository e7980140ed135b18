"""Routes of the gateway: decode, call, encode."""

from __future__ import annotations

from collections.abc import Awaitable
from importlib.resources import files

from ron.proto.assets import Asset
from ron.proto.facts import HelloReport, NodeStatus
from ron.proto.tiles import parse_tile
from ron.services.gateway.ports import EdgePort, HelloPort, StatusPort
from ron.web import Call, Endpoint, Raw

# Leaflet moves its panes through the CSSOM, which style-src 'self' allows; nothing inline is needed.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Permissions-Policy": "geolocation=(), camera=(), microphone=()",
}


class GatewayApi:
    """`endpoints()` is everything the gateway answers besides the health endpoints."""

    def __init__(self, *, edge: EdgePort, hello: HelloPort, status: StatusPort) -> None:
        self._edge = edge
        self._hello = hello
        self._status = status
        self._page = files("ron.services.gateway").joinpath("page/index.html").read_bytes()

    def endpoints(self) -> list[Endpoint]:
        """Public: the page, its report, tiles and assets. With a capability: the node's status."""
        return [
            Endpoint(method="GET", path="/", handler=self.page, scope=None),
            Endpoint(method="GET", path="/hello.json", handler=self.hello, scope=None),
            *public_endpoints(self._edge),
            Endpoint(method="GET", path="/v1/status", handler=self.status, scope="node:read"),
        ]

    def page(self, _call: Call) -> Raw:
        """The Hello Map page."""
        return Raw(self._page, "text/html; charset=utf-8", headers=_PAGE_HEADERS)

    def hello(self, _call: Call) -> HelloReport | Awaitable[HelloReport]:
        """What the page's panel shows."""
        return self._hello()

    def status(self, _call: Call) -> NodeStatus | Awaitable[NodeStatus]:
        """Node, tor, onions and queues."""
        return self._status()


def public_endpoints(edge: EdgePort) -> list[Endpoint]:
    """Tiles and assets, for everybody; an edge in a process of its own answers its gateways with the same."""

    def tile(_call: Call, z: str, x: str, y_ext: str) -> Asset | Awaitable[Asset]:
        return edge.tile(parse_tile(z, x, y_ext))

    def asset(_call: Call, path: str) -> Asset | Awaitable[Asset]:
        return edge.asset(path)

    return [
        Endpoint(method="GET", path="/tiles/<z>/<x>/<y_ext>", handler=tile, scope=None, hot=True),
        Endpoint(method="GET", path="/assets/<path:path>", handler=asset, scope=None),
    ]
