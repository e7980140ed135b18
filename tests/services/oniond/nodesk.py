"""Federation before its onion has an address: there is a desk, and nobody at it."""

from __future__ import annotations

from ron.proto.errors import unavailable
from ron.services.oniond.federation.routes import FederationView, SessionView


class NoDesk:
    """`routes.Desk`."""

    federation = None

    def view(self) -> FederationView:
        raise unavailable("federation is not ready yet")

    async def connect(self, peer: str) -> SessionView:
        raise unavailable("federation is not ready yet")
