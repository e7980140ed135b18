"""What the node tells about itself as a whole, gathered from its parts wherever they run.

In: the bus, the supervisor. Out: the bus service `node`: status, hello, ready, metrics, services, release, reload.
A part that does not answer is left out rather than waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.kernel.aio import occurred
from ron.kernel.commands import Command, Handlers
from ron.kernel.config import Changes
from ron.kernel.health import Readiness
from ron.kernel.metrics import Family, render_merged
from ron.kernel.supervisor import Supervisor, UnitStatus
from ron.nodes.runtime import Runtime
from ron.proto.errors import RonError, unavailable
from ron.proto.facts import HelloReport, NodeFacts, NodeStatus, PingReport

ASK_S = 1.0
# Whoever ordered the drain gets an answer first.
DRAIN_AFTER_S = 0.2
# How old the metrics of the whole node may be, and for how long they are kept fresh after somebody asked.
FRESH_S = 2.0
INTEREST_S = 120.0
SERVICE = "node"
T = TypeVar("T")
_log = Logger(namespace="ron.node")


class Steering:
    """What every daemon of ours lets its operator do: look at units, release one, change the config."""

    def __init__(self, runtime: Runtime, supervisor: Supervisor) -> None:
        self.runtime = runtime
        self.supervisor = supervisor

    def handlers(self) -> Handlers:
        """The commands of the service `node` that need no node."""
        return {
            "ready": lambda _command: self.runtime.health.snapshot(),
            "services": lambda _command: self.supervisor.status(),
            "release": self._release,
            "reload": lambda _command: self._changes(self.runtime.config.reload()),
            "rollback": lambda _command: self._changes(self.runtime.config.rollback()),
            "version": lambda _command: self.runtime.config.version,
            "config": lambda _command: self.runtime.config.current,
            "drain": self._drain,
        }

    async def _release(self, command: Command) -> UnitStatus:
        name = msgspec.convert(command.body, str)
        kind, _, tor = name.partition(".")
        if kind == "tor":
            await self.runtime.bus.call("tornet", "release", tor, corr_id=command.corr_id)
            return UnitStatus(name=name, state="starting", restarts=0)
        return self.supervisor.release(name)

    def _drain(self, command: Command) -> None:
        """One unit, or with an empty name the whole process: stop accepting, finish, end."""
        name = msgspec.convert(command.body or "", str)
        if name:
            self.supervisor.drain(name)
        else:
            self.runtime.health.missing("drain", "the node is being drained")
            self.runtime.reactor.callLater(DRAIN_AFTER_S, self.runtime.reactor.stop)

    def _changes(self, changes: Changes) -> dict[str, Any]:
        return {
            "version": self.runtime.config.version,
            "changes": [{"key": c.key, "old": c.old, "new": c.new} for c in changes],
            "restart_needed": list(changes.restart_needed),
        }


class Board(Steering):
    """Answers for a node. facts: what `node.json` says. processes: the names of the child processes."""

    def __init__(
        self,
        runtime: Runtime,
        supervisor: Supervisor,
        *,
        facts: Callable[[], NodeFacts],
        processes: Callable[[], tuple[str, ...]],
        app: str,
    ) -> None:
        super().__init__(runtime, supervisor)
        self._facts = facts
        self._processes = processes
        self._app = app
        self._started_s = time.monotonic()
        self._asked_s = float("-inf")
        self._gathered: bytes | None = None
        self._gathered_s = float("-inf")
        self._gathering: Deferred[None] = succeed(None)

    def handlers(self) -> Handlers:
        """The commands of the service `node`."""
        return {
            **super().handlers(),
            "status": lambda _command: self.status(),
            "hello": lambda _command: self.hello(),
            "metrics": lambda _command: self.metrics(),
        }

    @property
    def uptime_s(self) -> float:
        """Seconds since the node began to start."""
        return time.monotonic() - self._started_s

    async def status(self) -> NodeStatus:
        """Everything an operator wants to see at a glance."""
        ready = self.runtime.health.snapshot()
        tor, onions, mailbox, packs, pids = await self._ask_all(
            ("tornet", "tor", None), ("oniond", "onions", ()), ("mailbox", "stats", None), ("edge", "packs", ()),
            ("tornet", "pids", {}),
        )  # fmt: skip
        facts = self._facts()
        return NodeStatus(
            facts=msgspec.structs.replace(facts, pids={**facts.pids, **pids}),
            uptime_s=round(self.uptime_s, 1),
            ready=ready.ready,
            missing=ready.missing,
            degraded=ready.degraded,
            reasons=ready.reasons,
            tor=tor,
            onions=onions,
            queues={"mailbox": mailbox},
            packs=packs,
            services=self.supervisor.status(),
            config_version=self.runtime.config.version,
        )

    async def hello(self) -> HelloReport:
        """What the page's panel shows."""
        onion, ping = await self._ask_all(
            ("oniond", "onion", None, self._app), ("hello", "report", PingReport(), None, PingReport)
        )
        return HelloReport(
            onion=onion,
            ready=self.runtime.health.snapshot().ready,
            network=self.runtime.config.current.onion.network,
            ping=ping,
        )

    async def metrics(self) -> bytes:
        """The exposition of all processes as one; at most `FRESH_S` old.

        Gathering takes every process a moment, and under load they are slow to come to it. So whoever asks now and then
        gets what was gathered in the background meanwhile; only the first has to wait.
        """
        now_s = self.runtime.reactor.seconds()
        self._asked_s = now_s
        if self._gathered is None or now_s - self._gathered_s > FRESH_S:
            await occurred(self._gather())
        if self._gathered is None:
            raise unavailable("the metrics could not be gathered", hint="the log says why")
        return self._gathered

    def keep_fresh(self) -> None:
        """To be called every second."""
        if self.runtime.reactor.seconds() - self._asked_s < INTEREST_S:
            self._gather()

    def _gather(self) -> Deferred[None]:
        """What is being gathered, for all who wait for it."""
        if self._gathering.called:
            self._gathering = Deferred.fromCoroutine(self._gather_once())
            self._gathering.addErrback(self._not_gathered)
        return self._gathering

    def _not_gathered(self, failure: Failure) -> None:
        self._gathered = None
        _log.failure("metrics", failure, event="metrics_failed")

    async def _gather_once(self) -> None:
        self._gathered = await self._render_all()
        self._gathered_s = self.runtime.reactor.seconds()

    async def _render_all(self) -> bytes:
        self.runtime.edge.traffic.flush()
        exports: dict[str, list[Family]] = {self.runtime.name: self.runtime.metrics.export()}
        names = self._processes()
        asks: list[tuple[Any, ...]] = [(f"process.{name}", "metrics", [], None, list[Family]) for name in names]
        exports.update(zip(names, await self._ask_all(*asks), strict=True))
        return render_merged(exports)

    async def _ask_all(self, *asks: tuple[Any, ...]) -> list[Any]:
        """The replies to (service, command, otherwise[, body[, answer]]), all asked at once."""
        results = await DeferredList([Deferred.fromCoroutine(self._ask(*ask)) for ask in asks])
        return [value for _ok, value in results]

    async def _ask(self, service: str, command: str, otherwise: Any, body: Any = None, answer: Any = None) -> Any:
        if not self.runtime.bus.reachable(service):
            return otherwise
        try:
            return await self.runtime.bus.call(service, command, body, answer=answer, deadline_s=ASK_S)
        except RonError:
            return otherwise


class NodeHealth:
    """`/readyz` and `/metrics` of the whole node, from whichever process is asked."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def readiness(self) -> Readiness:
        """The node's readiness; ours, and not ready, when the node does not answer."""
        try:
            return await self._runtime.bus.call(SERVICE, "ready", answer=Readiness, deadline_s=ASK_S)
        except RonError as error:
            ours = self._runtime.health.snapshot()
            return msgspec.structs.replace(
                ours, ready=False, missing=(*ours.missing, "bus"), reasons={**ours.reasons, "bus": error.message}
            )

    async def exposition(self) -> bytes:
        """The node's metrics; ours alone when the node does not answer."""
        try:
            return await self._runtime.bus.call(SERVICE, "metrics", answer=bytes, deadline_s=3 * ASK_S)
        except RonError:
            return self._runtime.exposition()
