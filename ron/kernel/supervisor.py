"""Starts services in the order of what they need, starts crashed ones again, gives up on those that keep crashing.

In: `Unit`s, each a service in this process or a child process. Out: `KernelEvent.Health` and `.ServiceCrashed` on the
bus, readiness keys `service.<name>`, `service_restarts_total`; after `stop` nothing of them is left.
The policy is `ron.kernel.restarts`; the states of a unit are drawn in docs/kernel.rst.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from ron.kernel.aio import occurred
from ron.kernel.bus import Bus
from ron.kernel.events import KernelEvent
from ron.kernel.health import HealthState
from ron.kernel.metrics import Metrics
from ron.kernel.restarts import RestartPolicy
from ron.kernel.unit import Unit, UnitStatus, Watch
from ron.proto.errors import conflict, not_found

__all__ = ["START_S", "STOP_S", "Supervisor", "Unit", "UnitStatus"]

# Unless its `add` says otherwise.
START_S = 120.0
# A unit that does not stop by then is cut off and counted in tasks_aborted_total.
STOP_S = 10.0
_NAME = re.compile(r"^[a-z][a-z0-9.-]{0,62}\Z")
_log = Logger(namespace="ron.supervisor")


class Supervisor:
    """The units of one process.

    make_policy: a fresh `RestartPolicy` for each unit. stop_s: what each unit has for stopping.
    """

    def __init__(
        self,
        reactor: Any,
        bus: Bus,
        health: HealthState,
        metrics: Metrics,
        *,
        make_policy: Callable[[], RestartPolicy] = RestartPolicy,
        stop_s: float = STOP_S,
    ) -> None:
        self.reactor = reactor
        self.make_policy = make_policy
        self.stop_s = stop_s
        self.aborted = 0
        self._bus = bus
        self._health = health
        self._metrics = metrics
        self._watches: dict[str, Watch] = {}
        self._up: set[str] = set()
        self.stopping = False

    def add(
        self, unit: Unit, *, requires: Iterable[str] = (), essential: bool = False, start_s: float = START_S
    ) -> None:
        """Have `unit` started by `start`, after the units it `requires`.

        essential: when its first start fails, `start` raises its error. start_s: a unit that is not up by then has
        crashed. Raises ValueError on a name that is no name or
        unknown in `requires`, Conflict on one that is taken.
        """
        needed = tuple(requires)
        if not _NAME.match(unit.name):
            raise ValueError(f"{unit.name!r} is no service name")
        if unit.name in self._watches:
            raise conflict(f"there is a service {unit.name} already")
        unknown = [name for name in needed if name not in self._watches]
        if unknown:
            raise ValueError(f"{unit.name} requires {unknown[0]}, which was not added before it")
        self._watches[unit.name] = Watch(self, unit, needed, essential, start_s)
        self._health.missing(f"service.{unit.name}", "it is not started yet")

    async def start(self) -> None:
        """Start all, each as soon as what it requires is up or has failed. Raises an essential unit's first error.

        Whoever cancels it waits no more; what was begun goes on until `stop`.
        """
        starting = [Deferred.fromCoroutine(self._start(watch)) for watch in self._watches.values()]
        outcomes: list[tuple[bool, Any]] = await DeferredList(starting, consumeErrors=True)
        for ok, outcome in outcomes:
            if not ok:
                outcome.raiseException()  # a list does not fail when it is cancelled, only all that is in it does
        for watch in self._watches.values():
            if watch.essential and watch.first_error is not None and watch.state != "up":
                raise watch.first_error

    async def stop(self) -> int:
        """Stop all, each after those that require it. Returns how many had to be cut off."""
        self.stopping = True
        await DeferredList([Deferred.fromCoroutine(self._stop(watch)) for watch in self._watches.values()])
        return self.aborted

    def release(self, name: str) -> UnitStatus:
        """Let a quarantined unit try again, or a drained one start. Raises NotFound for an unknown one, Conflict while
        it stops; does nothing to one that runs, nor once `stop` was called.
        """
        watch = self._watches.get(name)
        if watch is None:
            raise not_found(f"there is no service {name}")
        if not self.stopping:
            if watch.drained:
                if watch.state != "idle":
                    raise conflict(f"{name} is still stopping", hint="try again in a moment")
                watch.drained = False
                watch.life.begin()
            else:
                watch.life.release()
        self._metrics.quarantined.set(self._count_quarantined())
        return self._status(watch)

    def drain(self, name: str) -> UnitStatus:
        """Stop one unit in order and leave it so, until it is released. Raises NotFound for an unknown one."""
        watch = self._watches.get(name)
        if watch is None:
            raise not_found(f"there is no service {name}")
        watch.drained = True
        watch.life.end()
        return self._status(watch)

    def status(self) -> tuple[UnitStatus, ...]:
        """Every unit, in the order in which they were added."""
        return tuple(self._status(watch) for watch in self._watches.values())

    # For the watches

    def report(self, watch: Watch, *, up: bool, reason: str) -> None:
        """Tell readiness, and the bus when it has changed."""
        name = watch.unit.name
        if up:
            self._health.ok(f"service.{name}")
        else:
            self._health.missing(f"service.{name}", reason)
        self._metrics.quarantined.set(self._count_quarantined())
        if up != (name in self._up):
            (self._up.add if up else self._up.discard)(name)
            self._bus.publish(KernelEvent.Health(name, up))

    def tell_crash(self, watch: Watch, reason: str) -> None:
        """Tell the bus and the log."""
        _log.error("{unit} crashed: {reason}", event="service_crashed", unit=watch.unit.name, reason=reason)
        self._bus.publish(KernelEvent.ServiceCrashed(watch.unit.name, reason))

    def count_restart(self, watch: Watch) -> None:
        """It will be started again."""
        self._metrics.restarts.labels(watch.unit.name).inc()

    def count_abort(self, watch: Watch) -> None:
        """It had to be cut off."""
        self.aborted += 1
        self._metrics.aborted.labels(watch.unit.name).inc()

    # Inside

    async def _start(self, watch: Watch) -> None:
        for name in watch.requires:
            await occurred(self._watches[name].settled)
        if not self.stopping:
            watch.life.begin()
            await occurred(watch.settled)

    async def _stop(self, watch: Watch) -> None:
        dependents = [w for w in self._watches.values() if watch.unit.name in w.requires]
        for dependent in dependents:
            await occurred(dependent.ended)
        watch.life.end()
        await occurred(watch.ended)

    def _count_quarantined(self) -> int:
        return sum(watch.state == "quarantined" for watch in self._watches.values())

    def _status(self, watch: Watch) -> UnitStatus:
        pid = getattr(watch.unit, "pid", None)
        return UnitStatus(
            name=watch.unit.name, state=watch.state, restarts=watch.restarts, reason=watch.reason, pid=pid
        )
