"""A node of a RustBalance cluster alone: `twistd -n ron-balance`, the same service a node embeds.

In: `BalancedConfig`. Out: a head on the cluster's Tor network, a part in its mesh, the operators' socket, health
endpoints on the admin address, `balance.json` in the home.
"""

from __future__ import annotations

import msgspec

from ron.kernel.inprocess import ServiceUnit
from ron.nodes.daemon import ConfigOptions, Daemon, complain, open_config
from ron.nodes.parts import PARTS
from ron.nodes.parts.balance import HEAD_ROLE, OUTSIDE_ROLE, HostedBalance
from ron.nodes.parts.tornet import check_backend, make_network
from ron.nodes.runtime import Runtime
from ron.nodes.standalone import Standalone
from ron.proto.errors import RonError
from ron.proto.exitcodes import Exit, exit_code

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
        return BalanceDaemon(Runtime(reactor, name="balance", config=config))
    except RonError as error:
        complain(NAME, error)


class BalanceDaemon(Standalone):
    """Two tors and the node of the cluster."""

    facts_file = FACTS_FILE

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        roles = (HEAD_ROLE, OUTSIDE_ROLE)
        # visits under way when this process is killed end well
        self.network = make_network(runtime, runtime.config.current.onion, roles, lingers=True)
        self.balance = HostedBalance(runtime, self._ended)

    async def begin(self) -> None:
        """Health endpoints first, then tors and the node, then facts and banner."""
        runtime, config = self.runtime, self.runtime.config.current.balance
        self.open(self.balance.site(), self.balance.where)
        self.add_tors(self.network)
        node = ServiceUnit("balance", self.balance.service, ready=self.balance.ready)
        self.supervisor.add(node, requires=("tornet",), essential=True, start_s=PARTS["balance"].start_s)
        await self.supervisor.start()
        facts = BalanceFacts(
            admin_url=self.admin_url,
            node=config.node,
            mesh=config.advertise or config.listen,
            socks_port=self.network.socks_port(OUTSIDE_ROLE),
            pids=self.network.pids(),
        )
        self.write_facts(facts)
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
