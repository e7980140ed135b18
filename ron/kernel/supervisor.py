"""Starts services in the order of what they need, starts crashed ones again, gives up on those that keep crashing.

In: `Unit`s, each a service in this process or a child process. Out: `KernelEvent.Health` and `.ServiceCrashed` on the
bus, readiness keys `service.<name>`, `service_restarts_total`; after `stop` nothing of them is left.
The policy is `ron.kernel.restarts`; the states of a unit are drawn in docs/kernel.rst.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Protocol

import msgspec
from automat import TypeMachineBuilder
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.kernel.aio import cancellable, within
from ron.kernel.bus import Bus
from ron.kernel.events import KernelEvent
from ron.kernel.health import HealthState
from ron.kernel.metrics import Metrics
from ron.kernel.restarts import Again, RestartPolicy
from ron.proto.errors import RonError, conflict, not_found, unavailable

# Unless its `add` says otherwise.
START_S = 120.0
# A unit that does not stop by then is cut off and counted in tasks_aborted_total.
STOP_S = 10.0
_NAME = re.compile(r"^[a-z][a-z0-9.-]{0,62}\Z")
_log = Logger(namespace="ron.supervisor")


class Unit(Protocol):
    """What the supervisor runs. A unit may be started again after it has crashed or was stopped."""

    name: str

    async def start(self, crashed: Callable[[str], None]) -> None:
        """Return when it is up, raise when it cannot come up. Call `crashed(reason)` when it ends unasked later.

        Cancelled, it ends without delay.
        """
        ...

    async def stop(self) -> None:
        """Return when it has finished what it was doing and is gone."""
        ...

    def abort(self) -> None:
        """End it at once, whatever is lost."""
        ...


class UnitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A unit as `ronctl service list` shows it. state: as drawn in docs/kernel.rst. reason: of its latest crash."""

    name: str
    state: str
    restarts: int
    reason: str = ""
    pid: int | None = None


class _Life(Protocol):
    """What happens to a unit."""

    def begin(self) -> None: ...
    def came_up(self) -> None: ...
    def try_later(self, delay_s: float) -> None: ...
    def give_up(self) -> None: ...
    def release(self) -> None: ...
    def end(self) -> None: ...
    def gone(self) -> None: ...


class _Watch:
    """One unit under watch: the core of its state machine."""

    def __init__(
        self, supervisor: Supervisor, unit: Unit, requires: tuple[str, ...], essential: bool, start_s: float
    ) -> None:
        self.unit = unit
        self.requires = requires
        self.essential = essential
        self.start_s = start_s
        self.restarts = 0
        self.reason = ""
        # for those who look; the machine keeps its own
        self.state = "idle"
        self.policy = supervisor.make_policy()
        self.settled: Deferred[None] = Deferred()
        self.first_error: BaseException | None = None
        self.ended: Deferred[None] = Deferred()
        self._supervisor = supervisor
        self._run: int = 0
        self._starting: Deferred[None] | None = None
        self._retry: IDelayedCall | None = None
        self.life: _Life = _machine(self)

    # What the machine does

    def launch(self) -> None:
        """Start the unit; its outcome comes back as `came_up` or a crash."""
        self.state = "starting"
        self._run += 1
        run = self._run
        self._supervisor.report(self, up=False, reason=self.reason or "it is starting")
        starting = self._bounded(self.start_s, self.unit.start(lambda reason: self._crashed(run, reason)))
        if run == self._run:
            self._starting = starting
        starting.addCallbacks(self._started, self._not_started, callbackArgs=(run,), errbackArgs=(run,))
        if run != self._run:
            starting.cancel()  # it crashed before its first await: the rest of its start is not wanted

    def announce_up(self) -> None:
        """It is up."""
        self.state = "up"
        self._supervisor.report(self, up=True, reason="")
        self._settle()

    def wait(self, delay_s: float) -> None:
        """Start it again in a while."""
        self.state = "waiting"
        self.restarts += 1
        self._supervisor.count_restart(self)
        self._retry = self._supervisor.reactor.callLater(delay_s, self._retry_now)
        self._supervisor.report(self, up=False, reason=f"{self.reason}; starting again in {delay_s:.1f} s")
        self._settle()

    def lock_away(self) -> None:
        """No more tries until it is released."""
        self.state = "quarantined"
        hint = f"it keeps crashing ({self.reason}); mend it, then: ronctl service release {self.unit.name}"
        self._supervisor.report(self, up=False, reason=hint)
        self._settle()

    def forgive(self) -> None:
        """It was released: a clean sheet."""
        self.policy.release()
        self.launch()

    def forget_retry(self) -> None:
        """It is not to be started again."""
        self.state = "idle"
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        self._supervisor.report(self, up=False, reason="it is stopped")
        self._finish()

    def terminate(self) -> None:
        """Stop it in order, cut it off at the deadline."""
        self.state = "stopping"
        self._run += 1
        self._supervisor.report(self, up=False, reason="it is stopping")
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
        stopping = self._bounded(self._supervisor.stop_s, self.unit.stop())
        stopping.addErrback(self._not_stopped)
        stopping.addBoth(lambda _none: self.life.gone())

    def report_gone(self) -> None:
        """It has stopped."""
        self.state = "idle"
        self._supervisor.report(self, up=False, reason="it is stopped")
        self._finish()

    # What comes back

    def _started(self, _none: None, run: int) -> None:
        if run == self._run:
            self._starting = None
            self.life.came_up()

    def _not_started(self, failure: Failure, run: int) -> None:
        if run != self._run:
            return
        error = failure.value
        if isinstance(error, DeadlineError):
            reason = f"not up in time ({self.start_s:.0f} s)"
        elif isinstance(error, RonError):
            reason = error.one_line()
        else:
            reason = f"{type(error).__name__}: {error}"
            _log.failure("{unit} could not start", failure, event="unit_start_failed", unit=self.unit.name)
        self._crashed(run, reason, error)

    def _crashed(self, run: int, reason: str, error: BaseException | None = None) -> None:
        """Judge the crash of run number `run`; a late word about an earlier one means nothing."""
        if run != self._run:
            return
        self._run += 1
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
        if not self.settled.called:
            self.first_error = error or unavailable(f"{self.unit.name} ended while it started: {reason}")
        self.reason = reason
        self._supervisor.tell_crash(self, reason)
        # crash-only: whatever is left of it goes before it is started again
        self._abort()
        if self._supervisor.stopping:
            self.life.end()
            return
        verdict = self.policy.crashed(self._supervisor.reactor.seconds())
        if isinstance(verdict, Again):
            self.life.try_later(verdict.delay_s)
        else:
            self.life.give_up()

    def _retry_now(self) -> None:
        if not self._supervisor.stopping:
            self.life.begin()

    def _not_stopped(self, failure: Failure) -> None:
        if failure.check(DeadlineError):
            _log.warn("{unit} did not stop in time", event="unit_aborted", unit=self.unit.name)
        else:
            _log.failure("{unit} did not stop well", failure, event="unit_stop_failed", unit=self.unit.name)
        self._supervisor.count_abort(self)
        self._abort()

    def _abort(self) -> None:
        try:
            self.unit.abort()
        except Exception:  # noqa: BLE001 - its own defect must not leave it in a state that nobody ends
            _log.failure("{unit} could not be cut off", event="unit_abort_failed", unit=self.unit.name)

    def _bounded(self, seconds: float, work: Coroutine[Any, Any, None]) -> Deferred[None]:
        """`work` with a deadline that holds also when it does not mind being cancelled."""
        whole = cancellable(Deferred.fromCoroutine(work))
        return Deferred.fromCoroutine(within(self._supervisor.reactor, seconds, whole))

    def _settle(self) -> None:
        if not self.settled.called:
            self.settled.callback(None)

    def _finish(self) -> None:
        self._settle()
        if self._supervisor.stopping and not self.ended.called:
            self.ended.callback(None)


def _build() -> Callable[[_Watch], _Life]:
    """The states of a unit; docs/kernel.rst has the drawing, and a test compares the two."""
    builder = TypeMachineBuilder(_Life, _Watch)
    idle = builder.state("idle")
    starting = builder.state("starting")
    up = builder.state("up")
    waiting = builder.state("waiting")
    quarantined = builder.state("quarantined")
    stopping = builder.state("stopping")

    def on(state: Any, event: Any, target: Any, act: Callable[..., None] | None) -> None:
        transition = state.upon(event).to(target)
        if act is None:
            transition.returns(None)
        else:
            transition(act)

    on(idle, _Life.begin, starting, lambda _life, watch: watch.launch())
    on(idle, _Life.end, idle, lambda _life, watch: watch.forget_retry())
    on(starting, _Life.came_up, up, lambda _life, watch: watch.announce_up())
    for running in (starting, up):
        on(running, _Life.try_later, waiting, lambda _life, watch, delay_s: watch.wait(delay_s))
        on(running, _Life.give_up, quarantined, lambda _life, watch: watch.lock_away())
        on(running, _Life.end, stopping, lambda _life, watch: watch.terminate())
        on(running, _Life.release, running, None)
    on(waiting, _Life.begin, starting, lambda _life, watch: watch.launch())
    on(waiting, _Life.end, idle, lambda _life, watch: watch.forget_retry())
    on(waiting, _Life.release, waiting, None)
    on(quarantined, _Life.release, starting, lambda _life, watch: watch.forgive())
    on(quarantined, _Life.end, idle, lambda _life, watch: watch.forget_retry())
    on(stopping, _Life.gone, idle, lambda _life, watch: watch.report_gone())
    on(stopping, _Life.end, stopping, None)
    on(idle, _Life.release, idle, None)
    on(stopping, _Life.release, stopping, None)
    return builder.build()


_machine = _build()


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
        self._watches: dict[str, _Watch] = {}
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
        self._watches[unit.name] = _Watch(self, unit, needed, essential, start_s)
        self._health.missing(f"service.{unit.name}", "it is not started yet")

    async def start(self) -> None:
        """Start all, each as soon as what it requires is up or has failed. Raises an essential unit's first error."""
        await DeferredList([Deferred.fromCoroutine(self._start(watch)) for watch in self._watches.values()])
        for watch in self._watches.values():
            if watch.essential and watch.first_error is not None and watch.state != "up":
                raise watch.first_error

    async def stop(self) -> int:
        """Stop all, each after those that require it. Returns how many had to be cut off."""
        self.stopping = True
        await DeferredList([Deferred.fromCoroutine(self._stop(watch)) for watch in self._watches.values()])
        return self.aborted

    def release(self, name: str) -> UnitStatus:
        """Let a quarantined unit try again. Raises NotFound for an unknown one; does nothing to one that runs, nor once
        `stop` was called.
        """
        watch = self._watches.get(name)
        if watch is None:
            raise not_found(f"there is no service {name}")
        if not self.stopping:
            watch.life.release()
        self._metrics.quarantined.set(self._count_quarantined())
        return self._status(watch)

    def status(self) -> tuple[UnitStatus, ...]:
        """Every unit, in the order in which they were added."""
        return tuple(self._status(watch) for watch in self._watches.values())

    # For the watches

    def report(self, watch: _Watch, *, up: bool, reason: str) -> None:
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

    def tell_crash(self, watch: _Watch, reason: str) -> None:
        """Tell the bus and the log."""
        _log.error("{unit} crashed: {reason}", event="service_crashed", unit=watch.unit.name, reason=reason)
        self._bus.publish(KernelEvent.ServiceCrashed(watch.unit.name, reason))

    def count_restart(self, watch: _Watch) -> None:
        """It will be started again."""
        self._metrics.restarts.labels(watch.unit.name).inc()

    def count_abort(self, watch: _Watch) -> None:
        """It had to be cut off."""
        self.aborted += 1
        self._metrics.aborted.labels(watch.unit.name).inc()

    # Inside

    async def _start(self, watch: _Watch) -> None:
        for name in watch.requires:
            await _shared(self._watches[name].settled)
        if not self.stopping:
            watch.life.begin()
            await _shared(watch.settled)

    async def _stop(self, watch: _Watch) -> None:
        dependents = [w for w in self._watches.values() if watch.unit.name in w.requires]
        for dependent in dependents:
            await _shared(dependent.ended)
        watch.life.end()
        await _shared(watch.ended)

    def _count_quarantined(self) -> int:
        return sum(watch.state == "quarantined" for watch in self._watches.values())

    def _status(self, watch: _Watch) -> UnitStatus:
        pid = getattr(watch.unit, "pid", None)
        return UnitStatus(
            name=watch.unit.name, state=watch.state, restarts=watch.restarts, reason=watch.reason, pid=pid
        )


def _shared(event: Deferred[None]) -> Awaitable[None]:
    """`event` for one more waiter: a Deferred that is awaited twice would hand its result on only once."""
    mine: Deferred[None] = Deferred()
    event.addCallback(lambda _none: mine.callback(None))
    return mine
