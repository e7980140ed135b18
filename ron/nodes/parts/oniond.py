"""oniond hosted: the onions of apps, on a tor that `tornet` runs; in a node, or alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from ron.kernel.commands import Command, Handlers
from ron.nodes.parts import Host, Part
from ron.nodes.parts.tornet import BusTorHost, show_stage
from ron.nodes.runtime import Runtime
from ron.services.oniond.service import OniondService
from ron.services.oniond.store import FileOnionStore, MemoryOnionStore
from ron.tor.onions import PortMap

GATEWAY_PORT, MAILBOX_PORT = 80, 9410


def onion_runtime(runtime: Runtime, apps: Mapping[str, Sequence[PortMap]]) -> OniondService:
    """The service with `apps`; under amnesia its keys are in memory, this process's or the node's."""
    service = OniondService(
        runtime.reactor,
        tors=BusTorHost(runtime.bus),
        store=FileOnionStore(runtime.keep / "onions") if runtime.keep else MemoryOnionStore(),
        health=runtime.health,
        progress=lambda stage: show_stage(runtime.bus, stage),
    )
    for app, ports in apps.items():
        service.add_app(app, ports)
    return service


class OniondPart(Part):
    """`OniondService` with the node's own app."""

    service: OniondService

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.service = onion_runtime(host.runtime, {host.config.onion.app: self._exposed()})

    async def ready(self) -> None:
        """The onion is published."""
        await self.service.bring_up()

    def handlers(self) -> Handlers:
        """onions: as they stand. onion: an app's address."""
        return {
            "onions": lambda _command: self.service.status(),
            "onion": lambda command: self.service.onion(_text(command)),
        }

    def _exposed(self) -> Sequence[PortMap]:
        if self.host.config.gateway.expose:
            return [PortMap(e.onion_port, e.local) for e in self.host.config.gateway.expose]
        addresses = self.host.addresses
        return [PortMap(GATEWAY_PORT, str(addresses["gateway"])), PortMap(MAILBOX_PORT, str(addresses["mailbox"]))]


def _text(command: Command) -> str:
    return msgspec.convert(command.body, str)
