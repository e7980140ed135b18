"""The onion runtime alone: `twistd -n ron-oniond`, the same service a node embeds.

In: `OniondConfig`. Out: an onion per configured app, `onions.json` in the home, health endpoints on the admin address.
"""

from __future__ import annotations

import contextlib

import msgspec

from ron.kernel import Config
from ron.kernel.files import write_private
from ron.kernel.inprocess import ServiceUnit
from ron.kernel.supervisor import Supervisor
from ron.nodes.admincap import ADMIN_CAP
from ron.nodes.board import SERVICE, Steering
from ron.nodes.daemon import ConfigOptions, Daemon, complain, open_config
from ron.nodes.listeners import BoundSocket, Listening
from ron.nodes.parts import PARTS
from ron.nodes.parts.oniond import (
    auditor,
    control_site,
    control_socket,
    exposed,
    hosted_federation,
    onion_runtime,
)
from ron.nodes.parts.tornet import ONION_ROLE, NetworkService, check_backend, make_network, network_handlers
from ron.nodes.runtime import Runtime
from ron.proto.addresses import parse_host_port
from ron.proto.errors import RonError
from ron.services.configs import OniondConfig, loopback
from ron.services.oniond.views import OnionStatus

NAME = "ron-oniond"
FACTS_FILE = "onions.json"
CLIENT_ROLE = "client"


class OniondFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`$RON_HOME/onions.json`. socks_port: a client tor on the same network, to reach the onions through."""

    admin_url: str
    socks_port: int
    onions: tuple[OnionStatus, ...]
    pids: dict[str, int]


class Options(ConfigOptions):
    """Options of `twistd ron-oniond`."""

    synopsis = "Usage: twistd [twistd options] ron-oniond --config etc/oniond.toml [--set section.key=value]"
    longdesc = "Gives every app in its config an onion of its own on a private Tor network. State lives in $RON_HOME."


def makeService(options: Options) -> Daemon:
    """The service for twistd; complains in one line and exits when config, tor or ports are not right."""
    from twisted.internet import reactor

    try:
        config = open_config(NAME, options)
        check_backend(config.current.onion)
        socket = BoundSocket(loopback(config.current.admin.bind, "admin.bind"), "admin.bind")
        return OniondDaemon(Runtime(reactor, name="oniond", config=config), config, socket)
    except RonError as error:
        complain(NAME, error)


class OniondDaemon(Daemon):
    """Onion runtime and health endpoints."""

    def __init__(self, runtime: Runtime, config: Config[OniondConfig], socket: BoundSocket) -> None:
        super().__init__(runtime)
        self._socket = socket
        tls = config.current.admin.tls
        self._tls_socket = BoundSocket(parse_host_port(tls.bind), "admin.tls.bind") if tls is not None else None
        self._listening: list[Listening] = []
        self._supervisor = Supervisor(runtime.reactor, runtime.bus, runtime.health, runtime.metrics)
        apps = {app.name: exposed(app.expose) for app in config.current.apps}
        self.network = make_network(runtime, config.current.onion, (ONION_ROLE, CLIENT_ROLE))
        audit = auditor(runtime)
        self.federation = hosted_federation(runtime, lambda app: self.oniond.onion(app), audit)
        apps |= self.federation.apps() if self.federation is not None else {}
        self.oniond = onion_runtime(runtime, config.current.onion, apps, audit)
        self._sites = [control_site(runtime, self.oniond, federation=self.federation)]

    async def begin(self) -> None:
        """Health endpoints first, then network and onions, then facts and banner."""
        runtime, config = self.runtime, self.runtime.config.current
        runtime.write_admin_capability()
        runtime.bus.serve(SERVICE, Steering(runtime, self._supervisor).handlers())
        runtime.show_progress()
        where = control_socket(runtime, config.onion)
        site = self._sites[0]
        self._listening = [runtime.listen(self._socket.fileno(), site), runtime.listen(where, site)]
        if config.admin.tls is not None and self._tls_socket is not None:
            tls = self._tls_socket.fileno()
            self._listening.append(runtime.listen_tls(tls, site, "admin", config.admin.tls))
        runtime.health.ok("listeners")
        network = self.network
        runtime.bus.serve("tornet", network_handlers(network))
        tornet = ServiceUnit("tornet", NetworkService(network), ready=network.bring_up)
        self._supervisor.add(tornet, essential=True, start_s=PARTS["tornet"].start_s)
        oniond = ServiceUnit("oniond", self.oniond, ready=self.oniond.bring_up)
        self._supervisor.add(oniond, requires=("tornet",), essential=True, start_s=PARTS["oniond"].start_s)
        await self._supervisor.start()
        self._federate()
        facts = OniondFacts(
            admin_url=f"http://{self._socket.address}",
            socks_port=network.socks_port(CLIENT_ROLE),
            onions=self.oniond.status(),
            pids=network.pids(),
        )
        write_private(runtime.home / FACTS_FILE, msgspec.json.encode(facts))
        lines = "".join(f"\n    {o.app:<18} {o.onion}  ports {', '.join(map(str, o.ports))}" for o in facts.onions)
        runtime.say(f"\n  ron-oniond is up{lines}\n    SOCKS              127.0.0.1:{facts.socks_port}\n")

    def _federate(self) -> None:
        """Answer federated peers, where that is enabled."""
        if self.federation is not None:
            site = self.federation.site()
            self._sites.append(site)
            self._listening.append(self.runtime.listen(self.federation.where, site))
            self.federation.start()

    async def end(self) -> None:
        """Listener, onions, network; in amnesia also what was in memory-backed files."""
        for listening in self._listening:
            await listening.stop_accepting()
        await self._supervisor.stop()
        if self._listening:
            for site in self._sites:
                self.runtime.count_cut_off(await site.drain(self.runtime.drain_s))
        for socket in filter(None, (self._socket, self._tls_socket)):
            socket.close()
        leftovers = [FACTS_FILE, *([ADMIN_CAP] if self.runtime.amnesia else [])]
        for name in leftovers:
            with contextlib.suppress(FileNotFoundError):
                (self.runtime.home / name).unlink()
