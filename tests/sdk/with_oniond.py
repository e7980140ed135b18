"""The onion runtime behind its control API on a Unix socket; only the tor underneath is none."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from shutil import rmtree
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import Factory

from ron.auth import AUDIENCE, Authority, Caveat, RootKeys
from ron.kernel import HealthState, Metrics
from ron.kernel.unixsock import UnixListener
from ron.proto.onions import Port
from ron.sdk.client import Api
from ron.sdk.onions import DEADLINE_S, Onions
from ron.sdk.transport import connection_pool, unix_http
from ron.services.oniond.api import BODY_LIMIT_BYTES, endpoints
from ron.services.oniond.audit import MemoryAudit
from ron.services.oniond.config import OnionConfig
from ron.services.oniond.service import OniondService
from ron.services.oniond.telemetry import EVENTS, Telemetry
from ron.tor import onions as onions_module
from ron.tor.onionkeys import OnionKey, address_of
from ron.web import Edge, make_site
from tests.tor.fake_tor import Controller, FakeTor, uploaded
from tests.web.wire import until

WEB = Port(onion_port=80, local="127.0.0.1:8080")
SOCKS_PORT = 9050


class Publishing(Controller):
    """Whatever onion it is given, a directory takes its descriptor at once, while `test.directories`."""

    def __init__(self, test: WithOniond) -> None:
        super().__init__(test)
        self._test = test

    def lineReceived(self, line: bytes) -> None:
        words = line.decode().split(" ")
        if words[0] == "ADD_ONION":
            service_id = address_of(OnionKey(words[1])).removesuffix(".onion")
            self._test.answers["ADD_ONION"] = [f"250-ServiceID={service_id}", "250 OK"]
            self._test.events_after = [uploaded("A", service_id)] if self._test.directories else []
        super().lineReceived(line)


class Audited:
    """What was recorded, as the real one keeps it in memory."""

    def __init__(self) -> None:
        self.kept = MemoryAudit(time.time)

    async def record(self, event: str, /, **fields: Any) -> None:
        self.kept.append(event, fields)


class WithOniond(FakeTor):
    """`self.socket` answers as the daemon's; `onions()` is a client with a capability narrowed by caveats."""

    async def setUp(self) -> None:
        super().setUp()
        self.patch(onions_module, "STRAGGLERS_S", 0.01)
        self.directories = True
        self.answers["GETINFO circuit-status"] = ["250-circuit-status=", "250 OK"]
        self.answers["GETINFO events/names"] = [f"250-events/names=HS_DESC STREAM {' '.join(EVENTS)}", "250 OK"]
        listening = reactor.listenTCP(0, Factory.forProtocol(lambda: Publishing(self)), interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        self.addCleanup(self._hang_up)
        self.tor_port = int(listening.getHost().port)
        self.authority = Authority(RootKeys.generate(), audience=AUDIENCE, now=time.time)
        self.metrics, self.audit = Metrics(), Audited()
        self.oniond = self.runtime()
        self.oniond.startService()
        self.addCleanup(self.oniond.stopService)
        await self.listen_at()
        await self.oniond.bring_up()

    def runtime(self) -> OniondService:
        """The service, in memory."""
        return OniondService(
            reactor,
            OnionConfig(),
            directory=None,
            tors=self,
            health=HealthState(),
            audit=self.audit,
            telemetry=Telemetry(self.metrics, reactor, time.time),
        )

    async def listen_at(self) -> None:
        """Answer at `self.socket`; in a folder of its own, for the path of a socket is short."""
        self.home = Path(tempfile.mkdtemp(prefix="ron-"))
        self.addCleanup(rmtree, self.home, True)
        self.socket = self.home / "run" / "oniond.sock"
        edge = Edge(authority=self.authority, metrics=self.metrics, reactor=reactor)
        self.site = make_site(edge, endpoints(self.oniond), body_limit=BODY_LIMIT_BYTES)
        listener = UnixListener(reactor, self.socket, self.site, backlog=16)
        listener.listen()
        self.addCleanup(until, lambda: not self.site.channels)
        self.addCleanup(listener.stop)

    # The tors

    async def names(self) -> tuple[str, ...]:
        return ("onion",)

    async def control_port(self, _name: str) -> int:
        return self.tor_port

    async def restart(self, name: str) -> None:
        """There is nothing to start."""

    async def socks_port(self, _name: str) -> int:
        return SOCKS_PORT

    async def add(self, name: str) -> None:
        """They are all one."""

    async def remove(self, name: str) -> None:
        """Likewise."""

    # Clients

    def capability(self, *caveats: tuple[str, str]) -> str:
        return self.authority.mint([Caveat(*caveat) for caveat in caveats or (("scope", "*"),)])

    def api(self, *caveats: tuple[str, str], **settings: Any) -> Api:
        """An `Api` on the socket."""
        pool = connection_pool(reactor)
        self.addCleanup(pool.closeCachedConnections)
        http = unix_http(reactor, self.socket, pool)
        settings = {"deadline_s": DEADLINE_S, **settings}
        return Api(reactor, http, "http://oniond", self.capability(*caveats), **settings)

    def onions(self, *caveats: tuple[str, str]) -> Onions:
        return Onions(self.api(*caveats))
