"""edge hosted: tiles and assets; in a process of its own also over HTTP on a Unix socket, for the gateways."""

from __future__ import annotations

from collections.abc import Mapping

from ron.kernel.commands import Handlers
from ron.nodes.parts import Host, Part
from ron.services.edge.service import EdgeService
from ron.services.gateway.api import public_endpoints
from ron.web.site import RonSite


class EdgePart(Part):
    """`EdgeService` in this process."""

    service: EdgeService

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        runtime = host.runtime
        self.service = EdgeService(
            host.config.edge,
            home=runtime.home,
            reactor=runtime.reactor,
            health=runtime.health,
            metrics=runtime.metrics,
        )

    async def ready(self) -> None:
        """A broken pack stands in readiness; the rest is served without it."""
        await self.service.opened

    def handlers(self) -> Handlers:
        """packs: every pack's status."""
        return {"packs": lambda _command: self.service.pack_info()}

    def sites(self) -> Mapping[str, RonSite]:
        """Only where a gateway in another process needs it."""
        if "edge" not in self.host.sockets:
            return {}
        return {"edge": self.host.runtime.site(public_endpoints(self.service), health=False, name="edge")}
