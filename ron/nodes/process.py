"""One part of a Macronode in a process of its own: `twistd -n ron-service`, started by the node.

In: its `Wiring`, with the node's config. Out: the part, listening and joined to the bus; the process ends when the part
crashes, for starting again is the node's business.
"""

from __future__ import annotations

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.usage import Options as TwistedOptions

from ron.kernel import Config
from ron.kernel.aio import within
from ron.kernel.bus import Message
from ron.kernel.config import Layers
from ron.kernel.events import ConfigUpdated
from ron.kernel.health import Readiness
from ron.kernel.ipc import BusLink
from ron.nodes.board import SERVICE, NodeHealth
from ron.nodes.daemon import Daemon, complain
from ron.nodes.parts import EDGE_SOCKET, Host, PartUnit, load_part, preload
from ron.nodes.runtime import Runtime
from ron.nodes.wiring import Wiring, is_spare, take
from ron.proto.errors import RonError
from ron.proto.exitcodes import Exit
from ron.services.configs import SCHEMAS, NodeConfig

NAME = "ron-service"
JOIN_S = 10.0
_log = Logger(namespace="ron.node")


class Options(TwistedOptions):
    """Options of `twistd ron-service`."""

    synopsis = "Usage: twistd [twistd options] ron-service"
    longdesc = "One service of a Macronode. The node starts it; people start ron-node."


def makeService(_options: Options) -> Daemon:
    """The service for twistd; complains in one line and exits when it was not started by a node."""
    from twisted.internet import reactor

    try:
        if is_spare():
            preload()
        wiring, sockets = take()
        schema, check = SCHEMAS["ron-node"]
        config: Config[NodeConfig] = Config(Layers(schema, check))
        config.adopt(wiring.config)
        ram = Path(wiring.ram) if wiring.ram else None
        runtime = Runtime(reactor, name=wiring.process, config=config, owner=False, ram=ram)
        return ServiceProcess(runtime, config, wiring, sockets)
    except RonError as error:
        complain(NAME, error)


class ServiceProcess(Daemon):
    """The part, its link to the bus, and the service `process.<name>` (ready, metrics)."""

    def __init__(self, runtime: Runtime, config: Config[NodeConfig], wiring: Wiring, sockets: dict[str, int]) -> None:
        super().__init__(runtime)
        self._config = config
        self._link = BusLink(
            runtime.reactor, runtime.bus, wiring.bus_path, name=wiring.process, word=lambda: wiring.word
        )
        host = Host(
            runtime=runtime,
            config=config.current,
            addresses=wiring.host_ports(),
            sockets={**sockets, "edge": Path(wiring.run) / EDGE_SOCKET},
            run=Path(wiring.run),
            view=NodeHealth(runtime),
        )
        self._unit = PartUnit(wiring.part, load_part(wiring.part, host))
        self._process = f"process.{wiring.process}"

    async def begin(self) -> None:
        """Join the bus, start the part, say that we are there."""
        runtime = self.runtime
        self._link.start()
        await within(runtime.reactor, JOIN_S, self._link.first_joined)
        runtime.health.observe(self._tell_readiness)
        self._tell_readiness(runtime.health.snapshot())  # what went wrong before there was anybody to tell
        runtime.bus.observe(self._heed, name="config")
        self._catch_up()  # a change that was announced before we could hear it
        await self._unit.start(self._crashed)
        runtime.bus.serve(
            self._process,
            {
                "ready": lambda _command: runtime.health.snapshot(),
                "metrics": lambda _command: runtime.metrics.export(),
                "version": lambda _command: runtime.config.version,
            },
        )

    async def end(self) -> None:
        """Drain the part, leave the bus."""
        await self._unit.stop()
        await self._link.stop()

    def say(self, text: str) -> None:
        """For whoever started us: the node keeps our last line."""
        self.runtime.say(text)

    def _crashed(self, reason: str) -> None:
        _log.error("{reason}", event="service_crashed", reason=reason)
        self.runtime.say(reason)
        self.leave(Exit.FAILED)

    def _tell_readiness(self, snapshot: Readiness) -> None:
        self.runtime.bus.publish(snapshot, topic="readiness")

    def _heed(self, message: Message) -> None:
        """The node has another snapshot, newer or rolled back to: so have we."""
        if isinstance(message.body, ConfigUpdated) and message.origin == SERVICE:
            self._catch_up()

    def _catch_up(self) -> None:
        following = Deferred.fromCoroutine(self._follow())
        following.addErrback(lambda failure: _log.failure("the node's config", failure, event="config_not_followed"))

    async def _follow(self) -> None:
        self._config.adopt(await self.runtime.bus.call(SERVICE, "config", answer=NodeConfig))
