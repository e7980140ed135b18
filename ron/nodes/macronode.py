"""The Macronode: every part in a child process of its own, joined by the bus, under one supervisor.

In: the same config as a Micronode. Out: the same listeners and answers. The node's own process binds the sockets, holds
the bus, watches the children and answers for the whole; it serves no requests itself.
"""

from __future__ import annotations

import functools
import hmac
import operator
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ron.kernel import Config, KernelEvent
from ron.kernel.aio import within
from ron.kernel.bus import Message
from ron.kernel.config import differences, value_at
from ron.kernel.files import socket_path
from ron.kernel.health import Readiness
from ron.kernel.ipc import BusHub, Hello
from ron.kernel.processes import Child, ProcessUnit
from ron.kernel.supervisor import Unit
from ron.nodes.listeners import BoundSocket
from ron.nodes.node import Node
from ron.nodes.parts import EDGE_SOCKET, LISTENERS, PARTS, Host, PartUnit, load_part, wanted
from ron.nodes.runtime import Runtime
from ron.nodes.spares import Spares
from ron.nodes.wiring import Wiring
from ron.proto.errors import ErrorCode, RonError
from ron.services.configs import NodeConfig

if TYPE_CHECKING:
    from ron.nodes.control import ControlServer

BUS_SOCKET = "bus.sock"
_COMMAND = (str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "ron-service")
PROBE_DEADLINE_S = 2.0
C = TypeVar("C", bound=msgspec.Struct)
_log = Logger(namespace="ron.node")


class Macronode(Node):
    """Child processes, `gateway.workers` of them for the gateway."""

    def __init__(
        self,
        runtime: Runtime,
        config: Config[NodeConfig],
        sockets: dict[str, BoundSocket],
        control: ControlServer | None,
    ) -> None:
        super().__init__(runtime, config, sockets, control)
        for name in (BUS_SOCKET, EDGE_SOCKET):
            socket_path(self.run / name)  # now, rather than when a child crashes on it
        self._spares = Spares(runtime.reactor, command=_COMMAND, environment=_environment(runtime.home))
        # a word for each: no child can pass itself off as another
        self._words: dict[str, str] = {}
        self._hub = BusHub(
            runtime.reactor, runtime.bus, self.run / BUS_SOCKET, admit=self._admit, may_serve=self._may_serve
        )
        self._fresh = LoopingCall(self._look_after)
        self._fresh.clock = runtime.reactor
        self._names: list[str] = []
        self._host = Host(runtime=runtime, config=config.current, addresses=self.addresses, sockets={}, run=self.run)
        self._started = config.current

    async def open(self) -> None:
        """The bus."""
        self._hub.listen()
        self.runtime.bus.observe(self._absorb, "readiness", name="readiness")
        self.runtime.bus.observe(self._forget_crashed, name="readiness-crashes")

    async def close(self) -> None:
        """The bus."""
        if self._fresh.running:
            self._fresh.stop()
        self._spares.close()
        await self._hub.close()

    async def begin(self) -> None:
        """As every node; then a spare process waits for the first crash."""
        await super().begin()
        self._spares.fill()
        self._fresh.start(1.0, now=False)

    def _look_after(self) -> None:
        self.board.keep_fresh()
        mending = Deferred.fromCoroutine(self._hub.mend())
        mending.addErrback(lambda failure: _log.failure("the bus", failure, event="bus_mend_failed"))

    def units(self) -> Iterator[tuple[str, Unit]]:
        """A process a part, but for those that live here; the gateway's workers share its socket."""
        for part, spec in wanted(self.config.current).items():
            if spec.in_node:
                yield part, PartUnit(part, load_part(part, self._host))
                continue
            count = self.config.current.gateway.workers if part == "gateway" else 1
            for number in range(1, count + 1):
                name = part if count == 1 else f"{part}.{number}"
                self._names.append(name)
                self._words[name] = secrets.token_hex(32)
                yield part, self._unit(part, name)

    def processes(self) -> tuple[str, ...]:
        """All children."""
        return tuple(self._names)

    def _unit(self, part: str, name: str) -> ProcessUnit:
        bus, reactor, start_s = self.runtime.bus, self.runtime.reactor, PARTS[part].start_s

        async def ready() -> None:
            await within(reactor, start_s, bus.arrival(f"process.{name}"))

        return ProcessUnit(
            reactor,
            name,
            launch=lambda heard: self._launch(part, name, heard),
            ready=ready,
            probe=lambda: self._probe(name),
            stop_s=self.runtime.drain_s + 5,
        )

    def _launch(self, part: str, name: str, heard: Callable[[str], None]) -> Child:
        listeners = tuple(name for name in LISTENERS.get(part, ()) if name in self.sockets)
        wiring = Wiring(
            process=name,
            part=part,
            bus=str(self._hub.path),
            word=self._words[name],
            run=str(self.run),
            config=as_started(self._started, self.config.current),
            ram=str(self.runtime.ram or ""),
            listeners=listeners,
            addresses={listener: str(address) for listener, address in self.addresses.items()},
        )
        child = self._spares.launch(wiring, [self.sockets[listener].fileno() for listener in listeners])
        child.on_line = heard
        return child

    def _admit(self, hello: Hello) -> None:
        # an unknown name is compared too, so that it takes as long
        word = self._words.get(hello.name) or secrets.token_hex(32)
        if not hmac.compare_digest(hello.word.encode(), word.encode()):
            raise RonError(ErrorCode.NO_CAPABILITY, "the greeting's word is wrong")

    async def _probe(self, name: str) -> None:
        """Raises `RonError` when the child does not answer; readiness says so from the first time on."""
        key = f"probe.{name}"
        try:
            await self.runtime.bus.call(f"process.{name}", "version", deadline_s=PROBE_DEADLINE_S)
        except RonError as error:
            self.runtime.health.degraded(key, f"{name} does not answer: {error.message}")
            raise
        self.runtime.health.ok(key)

    def _may_serve(self, peer: str, service: str) -> bool:
        return service in {f"process.{peer}", peer.partition(".")[0]}

    def _absorb(self, message: Message) -> None:
        """A child's readiness keys stand among ours."""
        if message.origin in self._names:
            theirs: Any = message.body
            self.runtime.health.absorb(message.origin, msgspec.convert(theirs, Readiness))

    def _forget_crashed(self, message: Message) -> None:
        """What a dead child said last holds no more; `service.<name>` says that it is down."""
        if isinstance(message.body, KernelEvent.ServiceCrashed) and message.body.service in self._names:
            self.runtime.health.absorb(message.body.service, Readiness(ready=False))
            self.runtime.health.ok(f"probe.{message.body.service}")


def as_started(started: C, current: C) -> C:
    """What a process that is started again goes by: `current` where a key takes effect at once, else as all others.

    A key that needs a restart of the node must not have two values in it: one half with amnesia, one without.
    """
    changes = differences(started, current)
    tables = msgspec.to_builtins(started)
    for key in (change.key for change in changes if change.key not in changes.restart_needed):
        *sections, last = key.split(".")
        functools.reduce(operator.getitem, sections, tables)[last] = msgspec.to_builtins(value_at(current, key))
    return msgspec.convert(tables, type(started))


def _environment(home: Path) -> dict[str, str]:
    """What a child may know of ours: where the exporter of traces finds what it needs, too."""
    wanted = ("COVERAGE_", "PYTHON", "OTEL_", "SSL_CERT_", "REQUESTS_CA_BUNDLE")
    settings = {k: v for k, v in os.environ.items() if k.startswith(wanted)}
    return {**settings, "RON_HOME": str(home)}
