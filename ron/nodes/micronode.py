"""The Micronode: gateway, edge, mailbox, onion runtime and the two hello devices in one process.

In: `NodeConfig`. Out: a service for twistd (`twistd -n ron-node`), `node.json` and `admin.cap` in the home.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger

import ron
from ron.auth import Caveat
from ron.e2e import KeyPair, Suite
from ron.kernel.files import write_private
from ron.nodes.runtime import ConfigOptions, Daemon, Runtime, complain, ensure_free, load_config
from ron.proto.addresses import HostPort
from ron.proto.errors import RonError
from ron.proto.facts import HelloReport, NodeFacts, NodeStatus
from ron.sdk import Api, Mailbox, onion_http
from ron.sdk.ping import Device
from ron.services.configs import NodeConfig, check_node, loopback
from ron.services.edge.service import EdgeService
from ron.services.gateway.api import GatewayApi
from ron.services.hello.service import HelloService
from ron.services.mailbox import api as mailbox_api
from ron.services.mailbox.service import MailboxService
from ron.services.oniond.service import HOST_ROLE, OniondService
from ron.services.oniond.store import FileOnionKeys, MemoryOnionKeys
from ron.tor.binary import TorBinary, find_tor
from ron.tor.onions import PortMap
from ron.tor.privnet import PrivateNetwork
from ron.tor.watchdog import WatchedTor
from ron.web import Edge, Endpoint, make_site
from ron.web.health import health_endpoints
from ron.web.site import RonSite

NAME = "ron-node"
FACTS_FILE = "node.json"
GATEWAY_PORT, MAILBOX_PORT = 80, 9410
DEVICES = ("device-a", "device-b")
GATEWAY_BODY_LIMIT_BYTES = 64 * 1024
DRAIN_S = 5.0
_RAM_DIRECTORY = Path("/dev/shm")  # noqa: S108 - memory-backed on Linux, and the folder made in it is 0700
_log = Logger(namespace="ron.node")


class Options(ConfigOptions):
    """Options of `twistd ron-node`."""

    synopsis = "Usage: twistd [twistd options] ron-node [--config etc/micronode.toml]"
    longdesc = (
        "Runs a Micronode: map gateway, mailbox and onion runtime on a private Tor network, in one process. "
        "State lives in $RON_HOME (by default ./var)."
    )


def makeService(options: Options) -> Daemon:
    """The service for twistd; complains in one line and exits when config, tor or ports are not right."""
    from twisted.internet import reactor

    try:
        return compose(reactor, load_config(options["config"], NodeConfig, check_node))
    except RonError as error:
        complain(NAME, error)


def compose(reactor: Any, config: NodeConfig) -> Micronode:
    """A node ready to start. Raises `RonError` when tor, the home or the ports are not usable."""
    tor = find_tor(config.onion.tor_binary)
    ensure_free(loopback(config.gateway.bind, "gateway.bind"), "gateway.bind")
    ensure_free(loopback(config.mailbox.listen, "mailbox.listen"), "mailbox.listen")
    return Micronode(Runtime(reactor, name="node", log=config.log, amnesia=config.onion.amnesia), config, tor)


class Micronode(Daemon):
    """The tree of services, started from the stores outward and stopped from the listeners inward."""

    def __init__(self, runtime: Runtime, config: NodeConfig, tor: TorBinary) -> None:
        super().__init__(runtime)
        shared = {"reactor": runtime.reactor, "health": runtime.health, "metrics": runtime.metrics}
        home, amnesia = runtime.home, runtime.amnesia
        self._config = config
        self._started_s = time.monotonic()
        self._facts: NodeFacts | None = None
        self._ports: list[Any] = []
        self._ram: Path | None = Path(tempfile.mkdtemp(prefix="ron-", dir=_RAM_DIRECTORY)) if amnesia else None
        self.edge = EdgeService(config.edge, home=home, **shared)
        database = None if amnesia else home / "mailbox" / "mailbox.sqlite3"
        self.mailbox = MailboxService(config.mailbox, path=database, **shared)
        self.network = PrivateNetwork(
            directory=(self._ram or home) / "tornet",
            tor=tor,
            clients=(HOST_ROLE, *DEVICES),
            progress=runtime.show,
            **shared,
        )
        self.oniond = OniondService(
            runtime.reactor,
            network=self.network,
            keys=MemoryOnionKeys() if amnesia else FileOnionKeys(home / "onions"),
            health=runtime.health,
            progress=runtime.show,
        )
        self.hello = HelloService(runtime.reactor, make_devices=self._make_devices)
        self._gateway_site, self._mailbox_site = self._make_sites()
        self.network.on_client_up(self._tor_came_up)

    # -- start ------------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Stores, listeners, network, onion; then facts and banner."""
        runtime = self.runtime
        runtime.write_admin_capability()
        for service in (self.edge, self.mailbox):
            service.startService()
        gateway = self._listen(loopback(self._config.gateway.bind, "gateway.bind"), self._gateway_site)
        mailbox = self._listen(loopback(self._config.mailbox.listen, "mailbox.listen"), self._mailbox_site)
        runtime.health.ok("listeners")
        self.oniond.add_app(self._config.onion.app, self._exposed(gateway, mailbox))
        await self.oniond.bring_up()
        # trouble with a pack or the database stands in readiness and in the banner; the rest works without them
        await self.edge.opened
        with contextlib.suppress(RonError):
            await self.mailbox.opened()
        self.hello.startService()
        self._facts = NodeFacts(
            gateway_url=f"http://{gateway}",
            mailbox_url=f"http://{mailbox}",
            onion=self.oniond.onion(self._config.onion.app),
            socks_port=self.network.socks_port(DEVICES[0]),
            pids=self._pids(),
            device_socks_ports=tuple(self.network.socks_port(name) for name in DEVICES),
            version=ron.__version__,
        )
        self._write_facts()
        # what start-up built stays for good: keep it out of every later collection (halves the p99)
        gc.collect()
        gc.freeze()
        _log.info("the node is up: {onion}", event="node_up", onion=self._facts.onion)
        runtime.say(self._banner())

    def _make_sites(self) -> tuple[RonSite, RonSite]:
        runtime = self.runtime
        edge = Edge(authority=runtime.authority, metrics=runtime.metrics, reactor=runtime.reactor)
        gateway = GatewayApi(edge=self.edge, hello=self._hello_report, status=self.status)
        health = health_endpoints(runtime.health, runtime.metrics, name=NAME)

        def site(endpoints: Sequence[Endpoint], body_limit: int) -> RonSite:
            return make_site(edge, [*endpoints, *health], body_limit=body_limit)

        return (
            site(gateway.endpoints(), GATEWAY_BODY_LIMIT_BYTES),
            site(mailbox_api.endpoints(self.mailbox), mailbox_api.BODY_LIMIT_BYTES),
        )

    def _listen(self, address: HostPort, site: RonSite) -> HostPort:
        port = self.runtime.reactor.listenTCP(address.port, site, interface=address.host, backlog=1024)
        self._ports.append(port)
        return HostPort(address.host, port.getHost().port)

    def _exposed(self, gateway: HostPort, mailbox: HostPort) -> list[PortMap]:
        if self._config.gateway.expose:
            return [PortMap(e.onion_port, e.local) for e in self._config.gateway.expose]
        return [PortMap(GATEWAY_PORT, str(gateway)), PortMap(MAILBOX_PORT, str(mailbox))]

    # -- what others ask --------------------------------------------------------------------------------------------

    def status(self) -> NodeStatus:
        """Everything an operator wants to see at a glance."""
        ready = self.runtime.health.snapshot()
        return NodeStatus(
            facts=self._current_facts(),
            uptime_s=round(time.monotonic() - self._started_s, 1),
            ready=ready.ready,
            missing=ready.missing,
            degraded=ready.degraded,
            reasons=ready.reasons,
            tor=self.network.facts(),
            onions=self.oniond.status(),
            queues={"mailbox": self.mailbox.stats()},
            packs=self.edge.pack_info(),
        )

    def _hello_report(self) -> HelloReport:
        return HelloReport(
            onion=self.oniond.onion(self._config.onion.app),
            ready=self.runtime.health.snapshot().ready,
            network="private",
            ping=self.hello.report(),
        )

    def _make_devices(self) -> tuple[Device, Device] | None:
        """Both ends of the page's ping: own keys, own tor, capabilities for just their topics."""
        onion = self.oniond.onion(self._config.onion.app)
        if onion is None:
            return None
        suite = Suite.PQ if self._config.e2e.pq_hybrid else Suite.CLASSICAL
        keys = [KeyPair.generate(suite) for _ in DEVICES]
        topics = [f"hello/{pair.public.kid.hex()}" for pair in keys]
        boxes = [
            (self._box(onion, name, "mailbox:recv,mailbox:ack", own), self._box(onion, name, "mailbox:send", other))
            for name, own, other in zip(DEVICES, topics, reversed(topics), strict=True)
        ]
        first, second = (
            Device(pair, inbox, outbox, topic) for pair, (inbox, outbox), topic in zip(keys, boxes, topics, strict=True)
        )
        return first, second

    def _box(self, onion: str, device: str, scope: str, topic: str) -> Mailbox:
        capability = self.runtime.authority.mint([Caveat("scope", scope), Caveat("topic", topic)])
        http = onion_http(self.runtime.reactor, self.network.socks_port(device))
        return Mailbox(Api(self.runtime.reactor, http, f"http://{onion}:{MAILBOX_PORT}", capability))

    # -- facts ------------------------------------------------------------------------------------------------------

    def _current_facts(self) -> NodeFacts:
        if self._facts is None:
            hosts = [p.getHost() for p in self._ports]
            urls = [f"http://{h.host}:{h.port}" for h in hosts] or ["", ""]
            return NodeFacts(gateway_url=urls[0], mailbox_url=urls[-1], onion=None, socks_port=0, pids=self._pids())
        return msgspec.structs.replace(self._facts, pids=self._pids())

    def _pids(self) -> dict[str, int]:
        return {"node": os.getpid(), **self.network.pids()}

    def _write_facts(self) -> None:
        write_private(self.runtime.home / FACTS_FILE, msgspec.json.encode(self._current_facts()))

    async def _tor_came_up(self, _tor: WatchedTor) -> None:
        if self._facts is not None:
            self._write_facts()

    def _banner(self) -> str:
        facts = self._current_facts()
        readiness = self.runtime.health.snapshot()
        trouble = "".join(f"\n    not ready   {key}: {readiness.reasons[key]}" for key in readiness.missing)
        return (
            f"\n  RustyOnions {ron.__version__}: Hello Map is up ({time.monotonic() - self._started_s:.1f} s)\n"
            f"\n    here        {facts.gateway_url}/"
            f"\n    onion       http://{facts.onion}/"
            f"\n    SOCKS       127.0.0.1:{facts.socks_port}  (a browser that is to open the onion goes through it)"
            f"\n    capability  {self.runtime.home / 'admin.cap'}  (ronctl finds it by itself)"
            f"{trouble}"
            f"\n    stop        Ctrl-C, or: kill {os.getpid()}\n"
        )

    # -- stop -------------------------------------------------------------------------------------------------------

    async def end(self) -> None:
        """Stop accepting, answer what is under way, flush the store, take the network down."""
        self.runtime.health.missing("listeners", "the node is shutting down")
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        if self.hello.running:
            self.hello.stopService()
        if self.mailbox.running:
            await maybeDeferred(self.mailbox.stopService)
        for site in (self._gateway_site, self._mailbox_site):
            cut_off = await site.drain(DRAIN_S)
            if cut_off:
                _log.warn("{count} calls were cut off", event="drain_cut_off", count=cut_off)
        if self.edge.running:
            await maybeDeferred(self.edge.stopService)
        await self.oniond.stopService()
        self._forget()
        _log.info("the node is down", event="node_down")

    def _forget(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.runtime.home / FACTS_FILE).unlink()
        if self._ram is not None:
            shutil.rmtree(self._ram, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                (self.runtime.home / "admin.cap").unlink()
