"""One service in a process of its own: health endpoints on the admin address, its own on a Unix socket, tors, units.

In: a `Runtime`, a subclass that says what runs. Out: a `Daemon` whose beginning and end are alike for all of them.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from ron.kernel.files import write_private
from ron.kernel.inprocess import ServiceUnit
from ron.kernel.supervisor import Supervisor
from ron.nodes.admincap import ADMIN_CAP
from ron.nodes.board import SERVICE, Steering
from ron.nodes.daemon import Daemon
from ron.nodes.listeners import BoundSocket, Listening
from ron.nodes.parts import PARTS
from ron.nodes.parts.tornet import NetworkService, network_handlers
from ron.nodes.runtime import Runtime
from ron.proto.addresses import parse_host_port
from ron.services.configs import loopback
from ron.tor.fleet import Fleet
from ron.web.site import RonSite


class Standalone(Daemon):
    """facts_file: what it leaves in the home while it runs. Raises `RonError` when the admin address is taken."""

    facts_file: str

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        admin = runtime.config.current.admin
        self._socket = BoundSocket(loopback(admin.bind, "admin.bind"), "admin.bind")
        self._tls_socket = BoundSocket(parse_host_port(admin.tls.bind), "admin.tls.bind") if admin.tls else None
        self._listening: list[Listening] = []
        self._sites: list[RonSite] = []
        self.supervisor = Supervisor(runtime.reactor, runtime.bus, runtime.health, runtime.metrics)

    @property
    def admin_url(self) -> str:
        """Where the admin listener is."""
        return f"http://{self._socket.address}"

    def open(self, site: RonSite, where: Path) -> None:
        """Answer from now on: `site` on the admin address, with TLS too where that is configured, and at `where`."""
        runtime, tls = self.runtime, self.runtime.config.current.admin.tls
        runtime.write_admin_capability()
        runtime.bus.serve(SERVICE, Steering(runtime, self.supervisor).handlers())
        runtime.show_progress()
        self.listen(site, self._socket.fileno())
        self.listen(site, where)
        if tls is not None and self._tls_socket is not None:
            self._listening.append(runtime.listen_tls(self._tls_socket.fileno(), site, "admin", tls))
        runtime.health.ok("listeners")

    def listen(self, site: RonSite, where: int | Path) -> None:
        """Answer there too, until the end."""
        if site not in self._sites:
            self._sites.append(site)
        self._listening.append(self.runtime.listen(where, site))

    def add_tors(self, network: Fleet) -> None:
        """Have the supervisor run them, and others ask for them on the bus."""
        self.runtime.bus.serve("tornet", network_handlers(network))
        tornet = ServiceUnit("tornet", NetworkService(network), ready=network.bring_up)
        self.supervisor.add(tornet, essential=True, start_s=PARTS["tornet"].start_s)

    def write_facts(self, facts: msgspec.Struct) -> None:
        """For whoever looks into the home."""
        write_private(self.runtime.home / self.facts_file, msgspec.json.encode(facts))

    async def end(self) -> None:
        """Listeners, units; in amnesia also what was in memory-backed files."""
        for listening in self._listening:
            await listening.stop_accepting()
        await self.supervisor.stop()
        for site in self._sites:
            self.runtime.count_cut_off(await site.drain(self.runtime.drain_s))
        for socket in filter(None, (self._socket, self._tls_socket)):
            socket.close()
        for name in [self.facts_file, *([ADMIN_CAP] if self.runtime.amnesia else [])]:
            with contextlib.suppress(FileNotFoundError):
                (self.runtime.home / name).unlink()
