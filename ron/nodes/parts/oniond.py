"""oniond hosted: the onions of apps, on tors that `tornet` runs, and its control API on a Unix socket; in a node, or
alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ron.kernel.commands import Command, Handlers
from ron.kernel.threads import BoundedPool
from ron.nodes.parts import Host, Part
from ron.nodes.parts.tornet import BusTorHost, show_stage
from ron.nodes.runtime import Runtime
from ron.proto.onions import Port, Pow
from ron.services.gateway.config import Expose
from ron.services.oniond import api
from ron.services.oniond.audit import Auditor, FileAudit, MemoryAudit
from ron.services.oniond.config import FEDERATION_APP, OnionConfig
from ron.services.oniond.events import events_endpoint
from ron.services.oniond.service import OniondService
from ron.services.oniond.telemetry import Telemetry
from ron.tor.backends import detect_tor
from ron.web.site import RonSite

if TYPE_CHECKING:
    from ron.nodes.parts.federation import HostedFederation

GATEWAY_PORT, MAILBOX_PORT = 80, 9410
CONTROL_SOCKET = "run/oniond.sock"
# Strangers come to that onion before they have proved anything. Beyond what its listener takes, tor serves those first
# who have worked for it, so that a flood does not keep peers out.
FEDERATION_POW = Pow(queue_rate=50, queue_burst=512)


def auditor(runtime: Runtime) -> Auditor:
    """The runtime's audit log; under amnesia it is in memory."""
    pool = BoundedPool(runtime.reactor, name="audit", threads=1)
    pool.start()
    runtime.at_exit(pool.stop)
    sink = FileAudit(runtime.keep / "audit" / "oniond.jsonl", time.time) if runtime.keep else MemoryAudit(time.time)
    return Auditor(sink, pool, clock=runtime.reactor, metrics=runtime.metrics, health=runtime.health)


def onion_runtime(
    runtime: Runtime, config: OnionConfig, apps: Mapping[str, Sequence[Port]], audit: Auditor
) -> OniondService:
    """The service with `apps`; under amnesia its keys are in memory, this process's or the node's."""
    service = OniondService(
        runtime.reactor,
        config,
        directory=runtime.keep / "onions" if runtime.keep else None,
        tors=BusTorHost(runtime.bus),
        health=runtime.health,
        audit=audit,
        progress=lambda stage: show_stage(runtime.bus, stage),
        backend=detect_tor(config.tor_binary),
        telemetry=Telemetry(runtime.metrics, runtime.reactor, time.time),
        wishes=lambda: runtime.config.current.onion,
    )
    runtime.metrics.registry.register(service.scale_figures)
    for app, ports in apps.items():
        service.add_app(app, ports, FEDERATION_POW if app == FEDERATION_APP else None)
    return service


def hosted_federation(runtime: Runtime, onion: Callable[[str], str | None], audit: Auditor) -> HostedFederation | None:
    """Federation, where the config has it enabled. onion: the address of an app, once it has one."""
    if not runtime.config.current.federation.enabled:
        return None
    from ron.nodes.parts.federation import HostedFederation  # a node that does not federate loads none of it

    return HostedFederation(runtime, onion, audit)


def exposed(ports: Sequence[Expose]) -> tuple[Port, ...]:
    """The config's words in the API's."""
    return tuple(Port(onion_port=port.onion_port, local=port.local) for port in ports)


def control_socket(runtime: Runtime, config: OnionConfig) -> Path:
    """Where the control API listens."""
    return Path(config.control) if config.control.startswith("/") else runtime.home / (config.control or CONTROL_SOCKET)


class OniondPart(Part):
    """`OniondService` with the node's own app."""

    service: OniondService

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        config, audit = host.config.onion, auditor(host.runtime)
        self.federation = hosted_federation(host.runtime, lambda app: self.service.onion(app), audit)
        apps = {config.app: self._exposed(), **(self.federation.apps() if self.federation else {})}
        self.service = onion_runtime(host.runtime, config, apps, audit)

    async def ready(self) -> None:
        """The onion is published."""
        await self.service.bring_up()
        if self.federation is not None:
            self.federation.start()

    def handlers(self) -> Handlers:
        """onions: as they stand. onion: an app's address. scale: the tors that share them, so many from now on."""
        return {
            "scale": lambda command: self.service.scale(msgspec.convert(command.body, int | None)),
            "onions": lambda _command: self.service.status(),
            "onion": lambda command: self.service.onion(_text(command)),
        }

    def sites(self) -> Mapping[str, RonSite]:
        """The control API, and what federated peers call."""
        federation = self.federation
        control = control_site(self.host.runtime, self.service, self.host, federation)
        return {"oniond": control, **({"federation": federation.site()} if federation is not None else {})}

    def where(self, listener: str) -> Path:
        """A Unix socket of its own."""
        if listener == "federation" and self.federation is not None:
            return self.federation.where
        return control_socket(self.host.runtime, self.host.config.onion)

    def _exposed(self) -> tuple[Port, ...]:
        if self.host.config.gateway.expose:
            return exposed(self.host.config.gateway.expose)
        addresses = self.host.addresses
        own = ((GATEWAY_PORT, "gateway"), (MAILBOX_PORT, "mailbox"))
        return tuple(Port(onion_port=port, local=str(addresses[name])) for port, name in own)


def control_site(
    runtime: Runtime,
    service: OniondService,
    host: Host | None = None,
    federation: HostedFederation | None = None,
) -> RonSite:
    """What the control socket answers: onions, federation, and what every private listener of ours does."""
    endpoints = [*api.endpoints(service), events_endpoint(service, time.time), *runtime.admin_endpoints()]
    if federation is not None:
        endpoints += federation.endpoints()
    view = host.view if host is not None else None
    return runtime.site(endpoints, body_limit=api.BODY_LIMIT_BYTES, view=view, name="oniond")


def _text(command: Command) -> str:
    return msgspec.convert(command.body, str)
