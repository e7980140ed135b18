"""A node of a RustBalance cluster alone: `twistd -n ron-balance`, the same service a node embeds.

In: `BalancedConfig`. Out: a head on the cluster's Tor network, a part in its mesh, the operators' socket, health
endpoints on the admin address, `balance.json` in the home.
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
from ron.nodes.parts.balance import HEAD_ROLE, OUTSIDE_ROLE, HostedBalance
from ron.nodes.parts.tornet import NetworkService, check_backend, make_network, network_handlers
from ron.nodes.runtime import Runtime
from ron.proto.addresses import parse_host_port
from ron.proto.errors import RonError
from ron.proto.exitcodes import Exit, exit_code
from ron.services.configs import BalancedConfig, loopback

NAME = "ron-balance"
FACTS_FILE = "balance.json"


class BalanceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`$RON_HOME/balance.json`. socks_port: of the tor that publishes and visits. pids: running tors by role."""

    admin_url: str
    node: str
    mesh: str
    socks_port: int
    pids: dict[str, int]


class Options(ConfigOptions):
    """Options of `twistd ron-balance`."""

    synopsis = "Usage: twistd [twistd options] ron-balance --config etc/balance.toml [--set section.key=value]"
    longdesc = (
        "One node of a cluster that keeps one onion address before many nodes, with no leader whose end would be the "
        "address's end. Its files come from `ronctl balance init` or `join`. State lives in $RON_HOME."
    )


def makeService(options: Options) -> Daemon:
    """The service for twistd; complains in one line and exits when config, tor, files or ports are not right."""
    from twisted.internet import reactor

    try:
        config = open_config(NAME, options)
        check_backend(config.current.onion)
        socket = BoundSocket(loopback(config.current.admin.bind, "admin.bind"), "admin.bind")
        return BalanceDaemon(Runtime(reactor, name="balance", config=config), config, socket)
    except RonError as error:
        complain(NAME, error)


class BalanceDaemon(Daemon):
    """Two tors, the node of the cluster, health endpoints."""

    def __init__(self, runtime: Runtime, config: Config[BalancedConfig], socket: BoundSocket) -> None:
        super().__init__(runtime)
        self._socket = socket
        tls = config.current.admin.tls
        self._tls_socket = BoundSocket(parse_host_port(tls.bind), "admin.tls.bind") if tls is not None else None
        self._listening: list[Listening] = []
        self._supervisor = Supervisor(runtime.reactor, runtime.bus, runtime.health, runtime.metrics)
        self.network = make_network(runtime, config.current.onion, (HEAD_ROLE, OUTSIDE_ROLE))
        self.balance = HostedBalance(runtime, self._ended)
        self._site = self.balance.site()

    async def begin(self) -> None:
        """Health endpoints first, then tors and the node, then facts and banner."""
        runtime, config = self.runtime, self.runtime.config.current
        runtime.write_admin_capability()
        runtime.bus.serve(SERVICE, Steering(runtime, self._supervisor).handlers())
        runtime.show_progress()
        self._listening = [
            runtime.listen(self._socket.fileno(), self._site),
            runtime.listen(self.balance.where, self._site),
        ]
        if config.admin.tls is not None and self._tls_socket is not None:
            tls = self._tls_socket.fileno()
            self._listening.append(runtime.listen_tls(tls, self._site, "admin", config.admin.tls))
        runtime.health.ok("listeners")
        network = self.network
        runtime.bus.serve("tornet", network_handlers(network))
        tornet = ServiceUnit("tornet", NetworkService(network), ready=network.bring_up)
        self._supervisor.add(tornet, essential=True, start_s=PARTS["tornet"].start_s)
        node = ServiceUnit("balance", self.balance.service, ready=self.balance.ready)
        self._supervisor.add(node, requires=("tornet",), essential=True, start_s=PARTS["balance"].start_s)
        await self._supervisor.start()
        facts = BalanceFacts(
            admin_url=f"http://{self._socket.address}",
            node=config.balance.node,
            mesh=config.balance.advertise or config.balance.listen,
            socks_port=network.socks_port(OUTSIDE_ROLE),
            pids=network.pids(),
        )
        write_private(runtime.home / FACTS_FILE, msgspec.json.encode(facts))
        runtime.say(
            f"\n  ron-balance is up: {facts.node}, reached at {facts.mesh}"
            f"\n    SOCKS              127.0.0.1:{facts.socks_port}"
            "\n    look               ronctl balance status\n"
        )

    def _ended(self, error: RonError | None) -> None:
        """There is nothing else that this process is for."""
        if error is not None:
            self.runtime.say(f"{NAME}: {error.one_line()}")
        self.leave(exit_code(error) if error is not None else Exit.OK)

    async def end(self) -> None:
        """Listeners, node, tors; in amnesia also what was in memory-backed files."""
        for listening in self._listening:
            await listening.stop_accepting()
        await self._supervisor.stop()
        if self._listening:
            self.runtime.count_cut_off(await self._site.drain(self.runtime.drain_s))
        for socket in filter(None, (self._socket, self._tls_socket)):
            socket.close()
        leftovers = [FACTS_FILE, *([ADMIN_CAP] if self.runtime.amnesia else [])]
        for name in leftovers:
            with contextlib.suppress(FileNotFoundError):
                (self.runtime.home / name).unlink()
