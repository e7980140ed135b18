"""The onion runtime alone: `twistd -n ron-oniond`, the same services the Micronode embeds.

In: `OniondConfig`. Out: an onion per configured app, `onions.json` in the home, health endpoints on the admin address.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import maybeDeferred

from ron.kernel.files import write_private
from ron.nodes.runtime import ConfigOptions, Daemon, Runtime, complain, ensure_free, load_config
from ron.proto.errors import RonError
from ron.services.configs import OniondConfig, check_oniond, loopback
from ron.services.oniond.service import HOST_ROLE, OniondService, OnionStatus
from ron.services.oniond.store import FileOnionKeys, MemoryOnionKeys
from ron.tor.binary import TorBinary, find_tor
from ron.tor.onions import PortMap
from ron.tor.privnet import PrivateNetwork
from ron.web import Call, Edge, Endpoint, make_site
from ron.web.health import health_endpoints

NAME = "ron-oniond"
FACTS_FILE = "onions.json"
CLIENT_ROLE = "client"
_RAM_DIRECTORY = Path("/dev/shm")  # noqa: S108 - memory-backed on Linux, and the folder made in it is 0700


class OniondFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`$RON_HOME/onions.json`. socks_port: a client tor on the same network, to reach the onions through."""

    admin_url: str
    socks_port: int
    onions: tuple[OnionStatus, ...]
    pids: dict[str, int]


class Options(ConfigOptions):
    """Options of `twistd ron-oniond`."""

    synopsis = "Usage: twistd [twistd options] ron-oniond --config etc/oniond.toml"
    longdesc = "Gives every app in its config an onion of its own on a private Tor network. State lives in $RON_HOME."


def makeService(options: Options) -> Daemon:
    """The service for twistd; complains in one line and exits when config, tor or ports are not right."""
    from twisted.internet import reactor

    try:
        config = load_config(options["config"], OniondConfig, check_oniond)
        ensure_free(loopback(config.admin.bind, "admin.bind"), "admin.bind")
        tor = find_tor(config.onion.tor_binary)
        return OniondDaemon(Runtime(reactor, name="oniond", log=config.log, amnesia=config.onion.amnesia), config, tor)
    except RonError as error:
        complain(NAME, error)


class OniondDaemon(Daemon):
    """Onion runtime and health endpoints."""

    def __init__(self, runtime: Runtime, config: OniondConfig, tor: TorBinary) -> None:
        super().__init__(runtime)
        self._config = config
        self._port: Any = None
        self._ram = Path(tempfile.mkdtemp(prefix="ron-", dir=_RAM_DIRECTORY)) if runtime.amnesia else None
        self.network = PrivateNetwork(
            runtime.reactor,
            directory=(self._ram or runtime.home) / "tornet",
            tor=tor,
            clients=(HOST_ROLE, CLIENT_ROLE),
            health=runtime.health,
            metrics=runtime.metrics,
            progress=runtime.show,
        )
        self.oniond = OniondService(
            runtime.reactor,
            network=self.network,
            keys=MemoryOnionKeys() if runtime.amnesia else FileOnionKeys(runtime.home / "onions"),
            health=runtime.health,
            progress=runtime.show,
        )
        edge = Edge(authority=runtime.authority, metrics=runtime.metrics, reactor=runtime.reactor)
        listing = Endpoint(method="GET", path="/v1/onions", handler=self._onions, scope="onion:read")
        self._site = make_site(edge, [listing, *health_endpoints(runtime.health, runtime.metrics, name=NAME)])

    def _onions(self, _call: Call) -> tuple[OnionStatus, ...]:
        return self.oniond.status()

    async def begin(self) -> None:
        """Health endpoints first, then network and onions, then facts and banner."""
        runtime, admin = self.runtime, loopback(self._config.admin.bind, "admin.bind")
        runtime.write_admin_capability()
        self._port = runtime.reactor.listenTCP(admin.port, self._site, interface=admin.host)
        runtime.health.ok("listeners")
        for app in self._config.apps:
            self.oniond.add_app(app.name, [PortMap(e.onion_port, e.local) for e in app.expose])
        await self.oniond.bring_up()
        host = self._port.getHost()
        facts = OniondFacts(
            admin_url=f"http://{host.host}:{host.port}",
            socks_port=self.network.socks_port(CLIENT_ROLE),
            onions=self.oniond.status(),
            pids=self.network.pids(),
        )
        write_private(runtime.home / FACTS_FILE, msgspec.json.encode(facts))
        lines = "".join(f"\n    {o.app:<18} {o.onion}  ports {', '.join(map(str, o.ports))}" for o in facts.onions)
        runtime.say(f"\n  ron-oniond is up{lines}\n    SOCKS              127.0.0.1:{facts.socks_port}\n")

    async def end(self) -> None:
        """Listener, onions, network; in amnesia also what was in memory-backed files."""
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        await self.oniond.stopService()
        await self._site.drain(0)
        leftovers = [FACTS_FILE, *(["admin.cap"] if self.runtime.amnesia else [])]
        for name in leftovers:
            with contextlib.suppress(FileNotFoundError):
                (self.runtime.home / name).unlink()
        if self._ram is not None:
            shutil.rmtree(self._ram, ignore_errors=True)
