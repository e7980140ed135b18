"""gateway hosted: the front door, over the edge in this process or a client of it in another."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.application.service import Service

from ron.nodes.parts import EDGE_SOCKET, Host, Part
from ron.proto.facts import HelloReport, NodeStatus
from ron.sdk.edge import EdgeClient
from ron.services.gateway.api import GatewayApi
from ron.services.gateway.ports import EdgePort
from ron.services.sections import TlsConfig
from ron.web.site import RonSite

BODY_LIMIT_BYTES = 64 * 1024
STATUS_DEADLINE_S = 5.0


class GatewayPart(Part):
    """The routes; what they show of the node comes over the bus."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.service = Service()
        self._api = GatewayApi(edge=self._edge(), hello=self._hello, status=self._status)

    def sites(self) -> Mapping[str, RonSite]:
        """Page, tiles, assets, status, health, and the node's administration."""
        runtime = self.host.runtime
        endpoints = [*self._api.endpoints(), *runtime.admin_endpoints()]
        site = runtime.site(endpoints, body_limit=BODY_LIMIT_BYTES, view=self.host.view, name="gateway")
        return {"gateway": site}

    def tls(self, _listener: str) -> TlsConfig | None:
        """As configured."""
        return self.host.config.gateway.tls

    def _edge(self) -> EdgePort:
        local = self.host.local.get("edge")
        if local is not None:
            edge: EdgePort = local.service
            return edge
        runtime = self.host.runtime
        return EdgeClient(
            runtime.reactor, self.host.run / EDGE_SOCKET, cache_bytes=self.host.config.edge.tile_cache_bytes
        )

    async def _hello(self) -> HelloReport:
        return await self.host.runtime.bus.call("node", "hello", answer=HelloReport, deadline_s=STATUS_DEADLINE_S)

    async def _status(self) -> NodeStatus:
        return await self.host.runtime.bus.call("node", "status", answer=NodeStatus, deadline_s=STATUS_DEADLINE_S)
