"""The onion runtime alone: `twistd -n ron-oniond`, the same service a node embeds.

In: `OniondConfig`. Out: an onion per configured app, `onions.json` in the home, health endpoints on the admin address.
"""

from __future__ import annotations

import msgspec

from ron.kernel.inprocess import ServiceUnit
from ron.nodes.daemon import ConfigOptions, Daemon, complain, open_config
from ron.nodes.parts import PARTS
from ron.nodes.parts.oniond import (
    auditor,
    control_site,
    control_socket,
    exposed,
    hosted_federation,
    onion_runtime,
)
from ron.nodes.parts.tornet import ONION_ROLE, check_backend, make_network
from ron.nodes.runtime import Runtime
from ron.nodes.standalone import Standalone
from ron.proto.errors import RonError
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
        return OniondDaemon(Runtime(reactor, name="oniond", config=config))
    except RonError as error:
        complain(NAME, error)


class OniondDaemon(Standalone):
    """Tors, the onion runtime, and federation where that is enabled."""

    facts_file = FACTS_FILE

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        config = runtime.config.current
        apps = {app.name: exposed(app.expose) for app in config.apps}
        self.network = make_network(runtime, config.onion, (ONION_ROLE, CLIENT_ROLE))
        audit = auditor(runtime)
        self.federation = hosted_federation(runtime, lambda app: self.oniond.onion(app), audit)
        apps |= self.federation.apps() if self.federation is not None else {}
        self.oniond = onion_runtime(runtime, config.onion, apps, audit)

    async def begin(self) -> None:
        """Health endpoints first, then network and onions, then facts and banner."""
        runtime, network = self.runtime, self.network
        site = control_site(runtime, self.oniond, federation=self.federation)
        self.open(site, control_socket(runtime, runtime.config.current.onion))
        self.add_tors(network)
        oniond = ServiceUnit("oniond", self.oniond, ready=self.oniond.bring_up)
        self.supervisor.add(oniond, requires=("tornet",), essential=True, start_s=PARTS["oniond"].start_s)
        await self.supervisor.start()
        if self.federation is not None:
            self.listen(self.federation.site(), self.federation.where)
            self.federation.start()
        facts = OniondFacts(
            admin_url=self.admin_url,
            socks_port=network.socks_port(CLIENT_ROLE),
            onions=self.oniond.status(),
            pids=network.pids(),
        )
        self.write_facts(facts)
        lines = "".join(f"\n    {o.app:<18} {o.onion}  ports {', '.join(map(str, o.ports))}" for o in facts.onions)
        runtime.say(f"\n  ron-oniond is up{lines}\n    SOCKS              127.0.0.1:{facts.socks_port}\n")
