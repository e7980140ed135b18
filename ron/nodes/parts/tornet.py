"""tornet hosted: the private Tor network, in the node's own process, so that no service's end takes it down."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred

from ron.kernel.bus import Bus
from ron.kernel.commands import Command, Handlers
from ron.nodes.parts import Host, Part
from ron.nodes.runtime import Runtime
from ron.proto.errors import not_found
from ron.services.oniond.config import OnionConfig
from ron.tor.backends import Capability, detect_arti, require
from ron.tor.binary import find_tor
from ron.tor.clients import JoinedClients, PublicClients
from ron.tor.fleet import Fleet, Stage
from ron.tor.privnet import PrivateNetwork
from ron.tor.watchdog import WatchedTor

# Whose tor hosts the onions, and those of the two devices of the page's ping.
ONION_ROLE = "onion"
# A node of a RustBalance cluster has one tor for its head, and one for everything else: a flood of the one is not to
# keep the other from publishing.
BALANCE_ROLES = ("head", "outside")
# Two networks are never mixed, not even in their files.
FOLDERS = {"private": "tornet", "joined": "tornet-joined", "public": "tornet-public"}
# A tor of its own for one onion is up in a few seconds; a slow machine is not to be told that it failed.
ADD_S = 60.0
DEVICES = ("device-a", "device-b")


def show_stage(bus: Bus, stage: Stage) -> None:
    """Progress for whichever process has a terminal."""
    bus.publish(
        {"name": stage.name, "done": stage.done, "total": stage.total, "detail": stage.detail}, topic="progress"
    )


def make_network(runtime: Runtime, config: OnionConfig, clients: Sequence[str], *, lingers: bool = False) -> Fleet:
    """The configured network with a tor for each of `clients`; in amnesia all of it in memory.

    lingers: its tors outlive a killed daemon for a while (`Fleet`). In amnesia they never do, nor do those of a network
    that lives in this process alone.
    """
    directory = (runtime.ram or runtime.home) / FOLDERS[config.network]
    if runtime.ram is not None:
        # a process of ours that was killed left its network there
        shutil.rmtree(directory, ignore_errors=True)

    def came_up(tor: WatchedTor) -> None:
        runtime.bus.publish({"name": tor.name, "pid": tor.pid}, topic="tor")

    settings: dict[str, Any] = {
        "directory": directory,
        "tor": find_tor(config.tor_binary),
        "clients": clients,
        "progress": lambda stage: show_stage(runtime.bus, stage),
        "health": runtime.health,
        "metrics": runtime.metrics,
        "on_client_up": came_up,
        "lingers": lingers and runtime.ram is None and config.network != "private",
    }
    if config.network == "public":
        return PublicClients(runtime.reactor, **settings)
    if config.network == "joined":
        return JoinedClients(runtime.reactor, snippet=Path(config.client_torrc), **settings)
    return PrivateNetwork(runtime.reactor, **settings)


def check_backend(config: OnionConfig) -> None:
    """Raises `RonError` when the configured backend is not there, or cannot do what is asked of it. Blocks."""
    if config.backend == "arti":
        require(detect_arti("arti"), Capability.ONION_V3, Capability.ADD_ONION_DETACHED, Capability.CONTROL_EVENTS)
    find_tor(config.tor_binary)


class NetworkService(Service):
    """The life of a network, for the supervisor."""

    def __init__(self, network: Fleet) -> None:
        self.network = network

    def stopService(self) -> Deferred[None]:
        """Take the network down; fires when no tor is left."""
        super().stopService()
        return Deferred.fromCoroutine(self.network.take_down())


class TornetPart(Part):
    """`PrivateNetwork` with a tor for the onions, and one for each of the two hello devices."""

    service: NetworkService
    clients: Sequence[str] = (ONION_ROLE, *DEVICES)

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        more = BALANCE_ROLES if host.config.balance.enabled else ()
        network = make_network(host.runtime, host.config.onion, (*self.clients, *more))
        self.service = NetworkService(network)

    async def ready(self) -> None:
        """The network is whole."""
        await self.service.network.bring_up()

    def handlers(self) -> Handlers:
        """Its commands on the bus."""
        return network_handlers(self.service.network)


def network_handlers(network: Fleet) -> Handlers:
    """tor, pids, clients: as they stand. socks, control: ports of one. add, remove: a client. release, restart: any."""

    def socks(command: Command) -> int:
        try:
            return network.socks_port(_text(command))
        except KeyError:
            raise not_found("there is no such client role") from None

    async def add(command: Command) -> None:
        await network.add_client(_text(command))

    async def remove(command: Command) -> None:
        await network.remove_client(_text(command))

    return {
        "tor": lambda _command: network.facts(),
        "pids": lambda _command: network.pids(),
        "clients": lambda _command: tuple(network.clients),
        "socks": socks,
        "control": lambda command: network.control_port(_text(command)),
        "release": lambda command: network.release(_text(command)),
        "restart": lambda command: network.restart(_text(command)),
        "add": add,
        "remove": remove,
    }


class BusTorHost:
    """The tors of `tornet`, wherever it runs: `ron.tor.attached.TorHost` over the bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def control_port(self, name: str) -> int:
        """Raises `RonError` while that tor is not up."""
        return await self._bus.call("tornet", "control", name, answer=int)

    async def restart(self, name: str) -> None:
        """Start it anew."""
        await self._bus.call("tornet", "restart", name)

    async def socks_port(self, name: str) -> int:
        """Where `name` takes SOCKS. Raises NotFound."""
        return await self._bus.call("tornet", "socks", name, answer=int)

    async def names(self) -> tuple[str, ...]:
        """The clients there are."""
        return await self._bus.call("tornet", "clients", None, answer=tuple[str, ...])

    async def add(self, name: str) -> None:
        """Have a tor `name`; returns when it is up."""
        await self._bus.call("tornet", "add", name, deadline_s=ADD_S)

    async def remove(self, name: str) -> None:
        """End it."""
        await self._bus.call("tornet", "remove", name, deadline_s=ADD_S)


def _text(command: Command) -> str:
    return msgspec.convert(command.body, str)
