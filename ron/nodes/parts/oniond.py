"""oniond hosted: the private Tor network and the onions on it; in a node, or alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

import msgspec

from ron.kernel.commands import Command, Handlers
from ron.nodes.parts import Host, Part
from ron.nodes.runtime import Runtime
from ron.proto.errors import not_found
from ron.services.oniond.config import OnionConfig
from ron.services.oniond.service import HOST_ROLE, OniondService
from ron.services.oniond.store import FileOnionKeys, MemoryOnionKeys
from ron.tor.binary import find_tor
from ron.tor.onions import PortMap
from ron.tor.privnet import PrivateNetwork, Stage
from ron.tor.watchdog import WatchedTor

GATEWAY_PORT, MAILBOX_PORT = 80, 9410
DEVICES = ("device-a", "device-b")


def onion_runtime(
    runtime: Runtime, config: OnionConfig, *, clients: Sequence[str], apps: Mapping[str, Sequence[PortMap]]
) -> OniondService:
    """The service on a network of its own with a tor for each of `clients`; in amnesia all of it in memory."""
    directory = (runtime.ram or runtime.home) / "tornet"
    if runtime.ram is not None:
        # a process of ours that was killed left its network there
        shutil.rmtree(directory, ignore_errors=True)

    def show(stage: Stage) -> None:
        runtime.bus.publish(
            {"name": stage.name, "done": stage.done, "total": stage.total, "detail": stage.detail}, topic="progress"
        )

    network = PrivateNetwork(
        runtime.reactor,
        directory=directory,
        tor=find_tor(config.tor_binary),
        clients=(HOST_ROLE, *clients),
        progress=show,
        health=runtime.health,
        metrics=runtime.metrics,
    )

    async def came_up(tor: WatchedTor) -> None:
        runtime.bus.publish({"name": tor.name, "pid": tor.pid}, topic="tor")

    service = OniondService(
        runtime.reactor,
        network=network,
        keys=MemoryOnionKeys() if runtime.amnesia else FileOnionKeys(runtime.home / "onions"),
        health=runtime.health,
        progress=show,
    )
    for app, ports in apps.items():
        service.add_app(app, ports)
    network.on_client_up(came_up)
    return service


class OniondPart(Part):
    """`OniondService` with the node's own app, and a tor for each of the two hello devices."""

    service: OniondService

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        config = host.config
        self.service = onion_runtime(
            host.runtime, config.onion, clients=DEVICES, apps={config.onion.app: self._exposed()}
        )

    async def ready(self) -> None:
        """The network is whole and the onion published."""
        await self.service.bring_up()

    def handlers(self) -> Handlers:
        """onions, tor, pids: as they stand. onion: an app's address. socks: a client role's port. release: a tor."""
        network = self.service.network
        return {
            "onions": lambda _command: self.service.status(),
            "tor": lambda _command: network.facts(),
            "pids": lambda _command: network.pids(),
            "onion": lambda command: self.service.onion(_text(command)),
            "socks": self._socks,
            "release": lambda command: network.release(_text(command)),
        }

    def _socks(self, command: Command) -> int:
        try:
            return self.service.network.socks_port(_text(command))
        except KeyError:
            raise not_found("there is no such client role") from None

    def _exposed(self) -> Sequence[PortMap]:
        if self.host.config.gateway.expose:
            return [PortMap(e.onion_port, e.local) for e in self.host.config.gateway.expose]
        addresses = self.host.addresses
        return [PortMap(GATEWAY_PORT, str(addresses["gateway"])), PortMap(MAILBOX_PORT, str(addresses["mailbox"]))]


def _text(command: Command) -> str:
    return msgspec.convert(command.body, str)
