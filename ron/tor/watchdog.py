"""Keeps one tor running: starts it, waits until it is up, starts it again when it dies, by the supervisor's policy.

In: what says the command line for a start, and a control port. Out: `on_up` with a live control connection after each
start, `on_down` with the reason after each end that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.error import ConnectionClosed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from txtorcon import TorControlProtocol
from txtorcon.torcontrolprotocol import TorDisconnectError

from ron.kernel.aio import cancellable, within
from ron.kernel.processes import spawn, stop
from ron.kernel.restarts import Again, RestartPolicy
from ron.tor.control import Bootstrap, TorSilent, ask, bootstrap, connect_control
from ron.tor.process import TorProcess, effort

POLL_S = 0.1
# On our own network a tor is up in two or three seconds. One that hangs has had bad luck with its first circuits, and a
# fresh start with fresh guards gets it there sooner than its own retries.
UP_TIMEOUT_S = 20.0
# One that is frozen, or hung, is alive to the operating system, so it is asked.
PROBE_S = 2.0
PROBE_TIMEOUT_S = 5.0
# One with a hundred onions on a busy machine may be silent for longer when a new consensus moves them all. Ended for
# that, it would begin anew with all of them; so one that is at work is asked so many times.
PATIENCE = 6
# One that is starting may hang, too. So often it has taken a connection and neither spoken nor worked.
MAX_SILENCES = 2
_log = Logger(namespace="ron.tor")


class WatchedTor:
    """One tor under watch. `start` once, `stop` once; in between it is `up`, or on its way to be again."""

    def __init__(
        self,
        reactor: Any,
        *,
        name: str,
        command: Callable[[], Sequence[str]],
        control_port: int,
        target_percent: int,
        on_up: Callable[[WatchedTor], Awaitable[None]],
        on_down: Callable[[WatchedTor, str], None],
        policy: RestartPolicy | None = None,
        up_timeout_s: float = UP_TIMEOUT_S,
        outlives: bool = False,
    ) -> None:
        self.name = name
        self.control: TorControlProtocol | None = None
        self.progress = Bootstrap(0, "stopped", "not started")
        self.up = False
        self.last_words = ""
        self.restarts = 0
        self._reactor = reactor
        self._command = command
        self._outlives = outlives
        self._control_port = control_port
        self._target_percent = target_percent
        self._on_up = on_up
        self._on_down = on_down
        self._policy = policy if policy is not None else RestartPolicy()
        self._up_timeout_s = up_timeout_s
        self._released: Deferred[None] | None = None
        self._process: TorProcess | None = None
        self._loop: Deferred[None] | None = None
        self._stopping = False
        # why we ended it, where we did
        self._why = ""

    @property
    def pid(self) -> int | None:
        """The running process, or None."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Begin to run and watch."""
        self._loop = Deferred.fromCoroutine(self._run())
        self._loop.addErrback(lambda failure: failure.trap(CancelledError))
        self._loop.addErrback(lambda failure: _log.failure("the watchdog of {tor} broke", failure, tor=self.name))

    async def stop(self) -> None:
        """End tor and the watch; returns when the process is gone."""
        self._stopping = True
        process = self._process
        if process is not None:
            await stop(self._reactor, process)
        if self._loop is not None:
            self._loop.cancel()

    @property
    def quarantined(self) -> bool:
        """True while it is not started again, because it keeps dying."""
        return self._released is not None

    def release(self) -> None:
        """Let a quarantined one try again."""
        released, self._released = self._released, None
        if released is not None:
            self._policy.release()
            released.callback(None)

    async def _quarantine(self) -> None:
        _log.error("tor {tor} keeps dying: {reason}", event="tor_quarantined", tor=self.name, reason=self.last_words)
        self._released = Deferred()
        self._on_down(
            self, f"it keeps dying ({self.last_words}); mend it, then: ronctl service release tor.{self.name}"
        )
        await self._released

    def restart(self) -> None:
        """End the running tor; the watch starts it again."""
        if self._process is not None:
            self._why = "somebody asked for a fresh one"
            self._process.signal("KILL")

    def _asked_to_stop(self) -> bool:
        return self._stopping

    async def _run(self) -> None:
        while not self._asked_to_stop():
            self.progress = Bootstrap(0, "starting", "starting")
            process = self._process = spawn(
                self._reactor, TorProcess(self._heard), self._command(), outlives=self._outlives
            )
            attending = Deferred.fromCoroutine(self._attend(process))
            attending.addErrback(self._attend_failed, process)
            last_words = await process.ended
            self.last_words, self._why = self._why or last_words, ""
            attending.cancel()
            self._process, self.control, self.up = None, None, False
            if self._asked_to_stop():
                return
            self.restarts += 1
            _log.warn("tor {tor} ended: {reason}", event="tor_down", tor=self.name, reason=self.last_words)
            self._on_down(self, self.last_words)
            verdict = self._policy.crashed(self._reactor.seconds())
            if isinstance(verdict, Again):
                await deferLater(self._reactor, verdict.delay_s)
            else:
                await self._quarantine()

    async def _attend(self, process: TorProcess) -> None:
        """Follow `process` up, then wait for the end of the control connection, without which it is no use to us."""
        try:
            control = await within(self._reactor, self._up_timeout_s, self._come_up())
        except TorSilent:
            self._why = "it did not answer on its control port while it started"
            process.signal("KILL")
            return
        except DeadlineError:
            self._why = f"it was not up after {self._up_timeout_s:.0f} s"
            process.signal("KILL")
            return
        self.up = True
        _log.info("tor {tor} is up", event="tor_up", tor=self.name, tor_pid=process.pid)
        await self._on_up(self)
        try:
            while True:
                await deferLater(self._reactor, PROBE_S)
                await self._probe(control)
        except DeadlineError:
            self._why = "it did not answer on its control port"
        except (TorDisconnectError, ConnectionClosed):
            self._why = "it closed its control port"
        process.signal("KILL")

    async def _probe(self, control: TorControlProtocol) -> None:
        """Return when it has answered. Raises `DeadlineError` when it neither answers nor works, or not for long."""
        for left in reversed(range(PATIENCE)):
            before = effort(self.pid)
            try:
                await within(self._reactor, PROBE_TIMEOUT_S, ask(self._reactor, control, "version"))
                return
            except DeadlineError:
                if not left or not effort(self.pid).works_since(before):
                    raise
                _log.warn("tor {tor} is too busy to answer", event="tor_busy", tor=self.name)

    async def _come_up(self) -> TorControlProtocol:
        self.control = control = await self._connected()
        while self.progress.percent < self._target_percent:
            self.progress = await bootstrap(self._reactor, control)
            await deferLater(self._reactor, POLL_S)
        return control

    async def _connected(self) -> TorControlProtocol:
        """Raises `TorSilent` for one that takes connections, says nothing, and does not work either: it hangs."""
        silences = 0
        while True:
            await deferLater(self._reactor, POLL_S)
            before = effort(self.pid)
            try:
                connecting = Deferred.fromCoroutine(connect_control(self._reactor, self._control_port))
                return await cancellable(connecting)
            except CancelledError:
                raise
            except DeadlineError:
                silences = 0 if effort(self.pid).works_since(before) else silences + 1
                if silences == MAX_SILENCES:
                    raise TorSilent from None
            except Exception as error:  # noqa: BLE001 - not listening yet, or still reading its keys: ask again
                _log.debug("control port of {tor} not there: {error}", tor=self.name, error=str(error))

    def _attend_failed(self, failure: Any, process: TorProcess) -> None:
        if failure.check(CancelledError) or self._stopping:
            return
        _log.failure("lost the grip on tor {tor}; starting it again", failure, event="tor_lost", tor=self.name)
        process.signal("KILL")

    def _heard(self, line: str) -> None:
        # Most of tor's warnings say that this is a testing network; its errors are always ours to know.
        if "[err]" in line:
            _log.error("tor {tor}: {line}", event="tor_error", tor=self.name, line=line)
        else:
            _log.debug("tor {tor}: {line}", event="tor_says", tor=self.name, line=line)
