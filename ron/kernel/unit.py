"""One unit under watch: its states, and what happens on the way from one to the next.

In: what the supervisor orders, what the unit does. Out: starts, stops, restarts by the policy; what is to be told goes
back to the supervisor. The states are drawn in docs/kernel.rst, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from automat import TypeMachineBuilder
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.kernel.aio import cancellable, within
from ron.kernel.logs import redact
from ron.kernel.restarts import Again
from ron.proto.errors import RonError, unavailable

if TYPE_CHECKING:
    from ron.kernel.supervisor import Supervisor

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


class Life(Protocol):
    """What happens to a unit."""

    def begin(self) -> None: ...
    def came_up(self) -> None: ...
    def try_later(self, delay_s: float) -> None: ...
    def give_up(self) -> None: ...
    def release(self) -> None: ...
    def end(self) -> None: ...
    def gone(self) -> None: ...


class Watch:
    """One unit under watch: the core of its state machine."""

    def __init__(
        self, supervisor: Supervisor, unit: Unit, requires: tuple[str, ...], essential: bool, start_s: float
    ) -> None:
        self.unit = unit
        self.requires = requires
        self.essential = essential
        self.start_s = start_s
        self.restarts = 0
        # an operator stopped it; a release starts it again
        self.drained = False
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
        self.life: Life = machine(self)

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
        # it may be whatever a dying process said last, and anybody may read it in /readyz
        reason = redact(reason)
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


def _build() -> Callable[[Watch], Life]:
    """The states of a unit; docs/kernel.rst has the drawing, and a test compares the two."""
    builder = TypeMachineBuilder(Life, Watch)
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

    on(idle, Life.begin, starting, lambda _life, watch: watch.launch())
    on(idle, Life.end, idle, lambda _life, watch: watch.forget_retry())
    on(starting, Life.came_up, up, lambda _life, watch: watch.announce_up())
    for running in (starting, up):
        on(running, Life.try_later, waiting, lambda _life, watch, delay_s: watch.wait(delay_s))
        on(running, Life.give_up, quarantined, lambda _life, watch: watch.lock_away())
        on(running, Life.end, stopping, lambda _life, watch: watch.terminate())
        on(running, Life.release, running, None)
    on(waiting, Life.begin, starting, lambda _life, watch: watch.launch())
    on(waiting, Life.end, idle, lambda _life, watch: watch.forget_retry())
    on(waiting, Life.release, waiting, None)
    on(quarantined, Life.release, starting, lambda _life, watch: watch.forgive())
    on(quarantined, Life.end, idle, lambda _life, watch: watch.forget_retry())
    on(stopping, Life.gone, idle, lambda _life, watch: watch.report_gone())
    on(stopping, Life.end, stopping, None)
    on(idle, Life.release, idle, None)
    on(stopping, Life.release, stopping, None)
    return builder.build()


machine = _build()
