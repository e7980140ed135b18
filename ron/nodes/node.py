"""A node of either profile: listeners bound, parts under a supervisor, facts written, progress shown.

In: `NodeConfig`. Out: a service for twistd (`twistd -n ron-node`); `node.json` and `admin.cap` in the home. Micronode
and Macronode differ only in the units they put under the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

import ron
from ron.kernel import Config, KernelEvent
from ron.kernel.bus import Message
from ron.kernel.commands import Command
from ron.kernel.files import write_private
from ron.kernel.supervisor import Supervisor, Unit
from ron.nodes.admincap import ADMIN_CAP
from ron.nodes.board import SERVICE, Board
from ron.nodes.daemon import ConfigOptions, Daemon, complain, open_config
from ron.nodes.listeners import BoundSocket
from ron.nodes.parts import PARTS, TLS_SUFFIX
from ron.nodes.parts.tornet import DEVICES, check_backend
from ron.nodes.runtime import Runtime
from ron.nodes.standby import Standby
from ron.proto.addresses import HostPort, parse_host_port
from ron.proto.errors import RonError
from ron.proto.facts import NodeFacts
from ron.services.configs import NodeConfig, loopback
from ron.web.admin import MAX_WAITING, TAIL, AdminApi, TailAnswer, TailRequest

if TYPE_CHECKING:
    from ron.nodes.control import ControlServer

NAME = "ron-node"
FACTS_FILE = "node.json"
RUN_DIRECTORY = "run"
_log = Logger(namespace="ron.node")


class Options(ConfigOptions):
    """Options of `twistd ron-node`."""

    synopsis = "Usage: twistd [twistd options] ron-node [--config etc/micronode.toml] [--set section.key=value]"
    longdesc = (
        "Runs a node: map gateway, mailbox and onion runtime on a private Tor network; in one process, or with "
        'node.profile = "macronode" each service in a process of its own. State lives in $RON_HOME (by default ./var).'
    )


def makeService(options: Options) -> Daemon:
    """The service for twistd; complains in one line and exits when config, tor or ports are not right."""
    from twisted.internet import reactor

    try:
        return compose(reactor, open_config(NAME, options))
    except RonError as error:
        complain(NAME, error)


def compose(reactor: Any, config: Config[NodeConfig]) -> Node:
    """A node ready to start. Raises `RonError` when tor, the home or the ports are not usable."""
    check_backend(config.current.onion)
    macronode = config.current.node.profile == "macronode"
    runtime = Runtime(reactor, name="node", config=config, shared=macronode)
    sockets = {
        "gateway": BoundSocket(loopback(config.current.gateway.bind, "gateway.bind"), "gateway.bind"),
        "mailbox": BoundSocket(loopback(config.current.mailbox.listen, "mailbox.listen"), "mailbox.listen"),
    }
    control: ControlServer | None = None
    if config.current.api.grpc_addr:
        from ron.nodes.control import ControlServer  # the extra is asked for only where it is wanted

        control = ControlServer(runtime, loopback(config.current.api.grpc_addr, "api.grpc_addr"))
    tls = config.current.gateway.tls
    if tls is not None:
        sockets["gateway" + TLS_SUFFIX] = BoundSocket(parse_host_port(tls.bind), "gateway.tls.bind")
    if macronode:
        from ron.nodes.macronode import Macronode

        return Macronode(runtime, config, sockets, control)
    from ron.nodes.micronode import Micronode

    return Micronode(runtime, config, sockets, control)


class Node(Daemon):
    """The units of `units`, started from the stores outward and stopped from the listeners inward."""

    def __init__(
        self,
        runtime: Runtime,
        config: Config[NodeConfig],
        sockets: dict[str, BoundSocket],
        control: ControlServer | None,
    ) -> None:
        super().__init__(runtime)
        self._control = control
        self.config = config
        self.sockets = sockets
        self.run: Path = runtime.home / RUN_DIRECTORY
        self.supervisor = Supervisor(
            runtime.reactor, runtime.bus, runtime.health, runtime.metrics, stop_s=runtime.drain_s + 10
        )
        self.board = Board(
            runtime,
            self.supervisor,
            facts=self._current_facts,
            processes=self.processes,
            app=config.current.onion.app,
        )
        self._standby = Standby(runtime, self.supervisor.status, sockets, lambda _listener: config.current.gateway.tls)
        self._admin = AdminApi(runtime.bus, runtime.reactor, time.time)
        self._facts: NodeFacts | None = None

    def units(self) -> Iterator[tuple[str, Unit]]:
        """Every unit with the name of its part."""
        raise NotImplementedError

    def processes(self) -> tuple[str, ...]:
        """Names of the child processes whose metrics are ours too."""
        return ()

    @property
    def addresses(self) -> dict[str, HostPort]:
        """Where the node's listeners are."""
        return {name: socket.address for name, socket in self.sockets.items()}

    # Start

    async def begin(self) -> None:
        """Bus, units in their order, then facts and banner."""
        runtime = self.runtime
        runtime.write_admin_capability()
        runtime.bus.serve(SERVICE, self.board.handlers(), concurrency=32)
        if self._control is not None:
            self._control.start()
        runtime.bus.serve(TAIL, {"read": self._read_tail}, concurrency=MAX_WAITING)
        runtime.show_progress()
        runtime.bus.observe(self._changed, "kernel", "tor", name="facts")
        await self.open()
        added: dict[str, list[str]] = {}
        for part, unit in self.units():
            spec = PARTS[part]
            requires = [name for required in spec.requires for name in added.get(required, [])]
            self.supervisor.add(unit, requires=requires, essential=spec.essential, start_s=spec.start_s)
            added.setdefault(part, []).append(unit.name)
        await self.supervisor.start()
        runtime.health.ok("listeners")
        await self._write_facts(first=True)
        self._standby.start()
        _log.info("the node is up: {onion}", event="node_up", onion=self._current_facts().onion)
        runtime.say(self._banner())

    async def open(self) -> None:
        """What must be there before the units."""

    async def close(self) -> None:
        """What goes after them."""

    # Facts

    def _current_facts(self) -> NodeFacts:
        pids = {unit.name: unit.pid for unit in self.supervisor.status() if unit.pid is not None}
        ours = {"node": os.getpid(), **pids}
        if self._facts is not None:
            return msgspec.structs.replace(self._facts, pids={**self._facts.pids, **ours})
        tls = self.addresses.get("gateway" + TLS_SUFFIX)
        return NodeFacts(
            gateway_url=f"http://{self.addresses['gateway']}",
            mailbox_url=f"http://{self.addresses['mailbox']}",
            onion=None,
            socks_port=0,
            pids=ours,
            gateway_tls_url=f"https://{tls}" if tls is not None else None,
            version=ron.__version__,
        )

    async def _write_facts(self, *, first: bool = False) -> None:
        bus = self.runtime.bus
        if not first and self._facts is None:
            return
        onion = await bus.call("oniond", "onion", self.config.current.onion.app)
        ports = [await bus.call("tornet", "socks", name, answer=int) for name in DEVICES]
        tors = await bus.call("tornet", "pids", answer=dict[str, int])
        self._facts = msgspec.structs.replace(
            self._current_facts(), onion=onion, socks_port=ports[0], device_socks_ports=tuple(ports), pids=tors
        )
        write_private(self.runtime.home / FACTS_FILE, msgspec.json.encode(self._current_facts()))

    def _changed(self, message: Message) -> None:
        """A service or a tor came up again: its process has another number now."""
        up = isinstance(message.body, KernelEvent.Health) and message.body.ok
        if self._facts is not None and (up or message.topic == "tor"):
            writing = Deferred.fromCoroutine(self._write_facts())
            writing.addErrback(lambda failure: failure.trap(RonError))

    def _read_tail(self, command: Command) -> Awaitable[TailAnswer]:
        return self._admin.read(msgspec.convert(command.body, TailRequest))

    def _banner(self) -> str:
        facts = self._current_facts()
        readiness = self.runtime.health.snapshot()
        trouble = "".join(f"\n    not ready   {key}: {readiness.reasons[key]}" for key in readiness.missing)
        return (
            f"\n  RustyOnions {ron.__version__}: Hello Map is up ({self.board.uptime_s:.1f} s)\n"
            f"\n    here        {facts.gateway_url}/"
            f"\n    onion       http://{facts.onion}/"
            f"\n    SOCKS       127.0.0.1:{facts.socks_port}  (a browser that is to open the onion goes through it)"
            f"\n    capability  {self.runtime.home / ADMIN_CAP}  (ronctl finds it by itself)"
            f"{trouble}"
            f"\n    stop        Ctrl-C, or: kill {os.getpid()}\n"
        )

    # Stop

    async def end(self) -> None:
        """Listeners inward: what requires others goes first; then what is left of our files."""
        self.runtime.health.missing("listeners", "the node is shutting down")
        await self._standby.stop()
        aborted = await self.supervisor.stop()
        self.runtime.count_cut_off(aborted)
        if self._control is not None:
            self.runtime.count_cut_off(await self._control.stop())
        await self.close()
        for socket in self.sockets.values():
            socket.close()
        leftovers = [FACTS_FILE, *([ADMIN_CAP] if self.runtime.amnesia else [])]
        for name in leftovers:
            with contextlib.suppress(FileNotFoundError):
                (self.runtime.home / name).unlink()
        _log.info("the node is down", event="node_down")
