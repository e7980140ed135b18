"""The workers of the key service hosted: started, wired to the owner, watched, started again, stopped.

In: the owner's service, its bound sockets, how many. Out: processes that accept from those sockets; word of how many
do. While none does, the owner answers by itself, as without workers.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ron.kernel.aio import occurred
from ron.kernel.config import ConfigError
from ron.kernel.files import socket_path
from ron.kernel.health import HealthState
from ron.kernel.metrics import Family, render_merged
from ron.kernel.processes import Child, ProcessUnit, spawn
from ron.kernel.restarts import RestartPolicy
from ron.kernel.supervisor import Supervisor
from ron.nodes.inneredge import inner_edge
from ron.nodes.listeners import BoundSocket, GivenSocket, Listening
from ron.nodes.macronode import as_started
from ron.nodes.runtime import Runtime
from ron.proto.errors import unavailable
from ron.proto.kms import Kid
from ron.services.kms.api import KmsDesk
from ron.services.kms.governance.quorum import FREEZE, Governance
from ron.services.kms.ports import Backend
from ron.services.kms.readiness import Key
from ron.services.kms.service import KmsService
from ron.services.kms.workers.calls import Calls
from ron.services.kms.workers.crew import Crew, Seat, Ways
from ron.services.kms.workers.custodian import Lender, OwnersCustody
from ron.services.kms.workers.frames import Standing, Start, decode_upward
from ron.services.kms.workers.link import Link, give
from ron.web import Endpoint
from ron.web.health import NodeView, health_endpoints
from ron.web.site import RonSite, make_site

SOCKET = "run/kms-workers.sock"
COMMAND = (str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "ron-kms-worker")
START_S = 60.0
# One that says nothing for so long has missed several words to which it answers at once.
SILENT_S = 4.0
_KEY = "workers"
_PASSED_ON = ("COVERAGE_", "PYTHON", "OTEL_", "SSL_CERT_", "REQUESTS_CA_BUNDLE")
_log = Logger(namespace="ron.kms.workers")


class Workers:
    """`count` of them. sockets: what they accept from, HTTP first. manned: told how many do.

    front: `desk`, which answers once `settled` has returned. governance: None where nobody decides.
    """

    def __init__(
        self,
        runtime: Runtime,
        desk: KmsService,
        front: KmsDesk,
        lender: Lender,
        sockets: Sequence[BoundSocket | GivenSocket],
        *,
        count: int,
        governance: Governance | None,
        manned: Callable[[int], None],
        prefix: str = "",
    ) -> None:
        self._runtime = runtime
        self._desk = desk
        self._lender = lender
        self._sockets = sockets
        self._count = count
        self._governance = governance
        self._manned = manned
        self._key = prefix + _KEY
        self._started = runtime.config.current
        self._config_said: tuple[int, bytes] = (0, b"")
        self._path = socket_path(runtime.home / SOCKET)
        self._listening: Listening | None = None
        self._site: RonSite | None = None
        self._stopping = False
        custodian = OwnersCustody(desk, lender)
        self._crew = Crew(
            runtime.reactor,
            custodian,
            standing=self._standing,
            calls=Calls(front),
            manned=self._tell_manned,
            feels=runtime.health.absorb,
        )
        self._seats: dict[str, Seat] = {}
        # its units are no services of the node: that one of several is being started again is no outage
        self._supervisor = Supervisor(
            runtime.reactor,
            runtime.bus,
            HealthState(),
            runtime.metrics,
            # a worker is always tried again: without it the owner works alone, and nobody need wait for an operator
            make_policy=lambda: RestartPolicy(max_restarts=10_000),
            stop_s=runtime.drain_s + 10,
        )

    # Life

    async def start(self, endpoints: Sequence[Endpoint], view: NodeView, body_limit: int) -> None:
        """Start them; returns when each listens or has failed once. endpoints: what the owner answers for them."""
        runtime = self._runtime
        health = health_endpoints(view, name=runtime.name)
        site = make_site(inner_edge(runtime.edge), [*endpoints, *health], body_limit=body_limit, name="kms-workers")
        self._site, self._listening = site, runtime.listen(self._path, site)
        self._desk.on_key = self._crew.key
        told = self._desk.guard.on_change

        def changed(key: Key, trouble: str) -> None:
            told(key, trouble)
            self.look()

        self._desk.guard.on_change = changed
        self._tell_manned(0)
        self._crew.start()
        for number in range(1, self._count + 1):
            self._supervisor.add(self._unit(f"kms-worker.{number}"), start_s=START_S)
        await self._supervisor.start()

    async def stop(self) -> None:
        """They accept no more, finish and end."""
        self._stopping = True
        await self._supervisor.stop()
        # until here they finish what they have begun, and go by every change
        self._desk.on_key = _nothing
        self._crew.stop()
        if self._listening is not None:
            await self._listening.stop_accepting()
        if self._site is not None:
            self._runtime.count_cut_off(await self._site.drain(self._runtime.drain_s))

    def look(self) -> None:
        """Something may have changed: tell them."""
        self._crew.look()

    async def settled(self) -> None:
        """Return when they all go by what was changed."""
        await self._crew.settled()

    async def families(self) -> dict[str, list[Family]]:
        """What they have counted."""
        return await self._crew.families()

    async def exposition(self) -> bytes:
        """The owner's metrics and theirs as one."""
        runtime = self._runtime
        runtime.edge.traffic.flush()
        return render_merged({runtime.name: runtime.metrics.export(), **await self.families()})

    @property
    def pids(self) -> dict[str, int]:
        """Of those that run, by name."""
        return {unit.name: unit.pid for unit in self._supervisor.status() if unit.pid is not None}

    # Processes

    def _unit(self, name: str) -> ProcessUnit:
        async def ready() -> None:
            await occurred(self._seats[name].up)

        async def probe() -> None:
            if self._crew.silent_s(name) > SILENT_S:
                raise unavailable(f"{name} says nothing")

        return ProcessUnit(
            self._runtime.reactor,
            name,
            launch=lambda heard: self._launch(name, heard),
            ready=ready,
            probe=probe,
            stop_s=self._runtime.drain_s + 5,
        )

    def _launch(self, name: str, heard: Callable[[str], None]) -> Child:
        start = Start(
            name=name,
            workers=self._count,
            config=self._config(),
            forward=str(self._path),
            oap=len(self._sockets) > 1,
        )
        # before there is a process: where the backend is not open, there is nothing to lend
        with self._lender.lend() as master:
            ours, theirs = socket.socketpair()
            with theirs:
                child = spawn(
                    self._runtime.reactor,
                    Child(heard),
                    COMMAND,
                    environment=_environment(self._runtime.home),
                    descriptors=[theirs.fileno(), *(one.fileno() for one in self._sockets)],
                )
            try:
                give(ours, start, master)
            except OSError as error:
                child.signal("KILL")
                ours.close()
                raise unavailable(f"{name} died before it began: {error.strerror}") from None
        self._seats[name] = self._join(name, ours, child)
        return child

    def _join(self, name: str, end: socket.socket, child: Child) -> Seat:
        seats: list[Seat] = []
        link = Link(decode_upward, lambda frame: self._crew.heard(seats[0], frame), lambda: self._crew.lost(seats[0]))
        link.join(end, self._runtime.reactor)
        ended: Deferred[Any] = occurred(child.ended)
        seats.append(self._crew.join(name, Ways(link.tell, lambda: child.signal("KILL"), ended)))
        return seats[0]

    # How things stand

    def _standing(self) -> Standing:
        guard, governance = self._desk.guard, self._governance
        freezes: dict[str, str] = {}
        modes: dict[str, str] = {}
        if governance is not None:
            ledger, hours = governance.ledger, governance.hours
            freezes = {
                scope: one.proposal for scope, one in ledger.freezes.items() if not hours.is_over(FREEZE, one.proposal)
            }
            modes = dict(ledger.pq_modes)
        troubles = {key: why for key in get_args(Key) if (why := guard.why_not(key))}
        return Standing(
            generation=0,
            freezes=freezes,
            modes=modes,
            troubles=troubles,
            fresh=guard.degraded_age_ms() is None,
            config=self._config(),
        )

    def _config(self) -> bytes:
        """The one in force, as JSON: what takes effect with a restart is as it was when the owner started."""
        config = self._runtime.config
        if self._config_said[0] != config.version:
            self._config_said = config.version, msgspec.json.encode(as_started(self._started, config.current))
        return self._config_said[1]

    def _tell_manned(self, live: int) -> None:
        health = self._runtime.health
        if live == self._count:
            health.ok(self._key)
        elif not self._stopping:
            # the owner answers for those that are missing: this is no outage
            health.degraded(self._key, f"{live} of {self._count} workers are up")
        self._manned(live if not self._stopping else self._count)


def lender_of(backend: Backend) -> Lender:
    """The backend that lends its keys. Raises `ConfigError` for one that cannot: a token's keys leave it for nobody."""
    inner = getattr(backend, "inner", backend)
    if not isinstance(inner, Lender):
        raise ConfigError(f"{backend.name} lends no keys to workers", key="workers", hint="set it to 0")
    return inner


def _environment(home: Path) -> dict[str, str]:
    """What a worker may know of ours: no passphrase is among it."""
    settings = {name: text for name, text in os.environ.items() if name.startswith(_PASSED_ON)}
    return {**settings, "RON_HOME": str(home)}


def _nothing(_kid: Kid) -> None:
    pass
