"""Child processes: started apart from our terminal, their last lines kept, their end reported, never left behind.

In: a command line, an environment, descriptors to hand on. Out: a running process, what it said, and a Deferred that
fires when it is gone. `ProcessUnit` puts one under the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.kernel.aio import cancellable, occurred
from ron.proto.errors import RonError, unavailable

KEPT_LINES = 50
KILL_AFTER_S = 5.0
# A child that hangs is alive to the operating system, so it is asked.
PROBE_S = 2.0
MAX_MISSES = 4
_MAX_LINE = 1000
# A process that is gone has its pipes read for so long when another still holds them.
LINGER_S = 0.2
_log = Logger(namespace="ron.processes")


class Child(ProcessProtocol):
    """A started process. `lines` holds the end of what it said; `ended` fires with a sentence once it is gone."""

    def __init__(self, on_line: Callable[[str], None] = lambda line: None) -> None:
        # whoever takes the process over may set another
        self.on_line = on_line
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.ended: Deferred[str] = Deferred()
        self.clean = False
        self._partial = {1: b"", 2: b""}
        self._hang_up: IDelayedCall | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self.transport.pid if self.transport is not None else None

    def outReceived(self, data: bytes) -> None:
        """Cut what it says into lines."""
        self._cut(1, data)

    def errReceived(self, data: bytes) -> None:
        """Its complaints are cut apart from the rest, so that neither breaks the other's lines."""
        self._cut(2, data)

    def _cut(self, stream: int, data: bytes) -> None:
        *whole, partial = (self._partial[stream] + data).split(b"\n")
        self._partial[stream] = partial[:_MAX_LINE]
        for raw in whole:
            self._heard(raw)

    def _heard(self, raw: bytes) -> None:
        line = raw[:_MAX_LINE].decode("utf-8", "replace")
        self.lines.append(line)
        self.on_line(line)

    def linger(self, reactor: IReactorTime) -> None:
        """For `spawn`: on which clock to wait for the last words."""
        self._reactor = reactor

    def processExited(self, reason: Failure) -> None:
        """It is gone; a child of its own that still holds its pipes must not hide that."""
        self._hang_up = self._reactor.callLater(LINGER_S, cast(Any, self.transport).loseConnection)

    def processEnded(self, reason: Failure) -> None:
        """Tell whoever waits."""
        if self._hang_up is not None and self._hang_up.active():
            self._hang_up.cancel()
        for raw in filter(None, self._partial.values()):
            self._heard(raw)  # last words without a newline
        self.clean = bool(reason.check(ProcessDone))
        self.ended.callback(self.last_words() or _how(reason))

    def signal(self, name: str) -> None:
        """Send SIG`name`; nothing when it is already gone."""
        if self.transport is not None:
            with contextlib.suppress(ProcessExitedAlready):
                self.transport.signalProcess(name)

    def last_words(self) -> str | None:
        """Its own word on why it ended, where it has one."""
        return None


C = TypeVar("C", bound=Child)


def spawn(
    reactor: Any,
    child: C,
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
    outlives: bool = False,
) -> C:
    """Start `command` as `child`; it sees `descriptors` as 3, 4, …, and nothing of our environment but PATH.

    outlives: it is not killed when we die; it has to see to its own end, by watching a `Lifeline`.
    """
    whole = [*_apart(outlives=outlives), *command]
    given = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", **(environment or {})}
    files: dict[int, Any] = {0: "w", 1: "r", 2: "r", **{3 + n: fd for n, fd in enumerate(descriptors)}}
    child.linger(reactor)
    reactor.spawnProcess(child, whole[0], whole, env=given, childFDs=files)
    return child


class Lifeline:
    """A process that waits for our end, whatever ends us, and then runs `command`; others watch its `pid`, not ours.

    It holds the end of a pipe that nobody else has, so that it sees us go at once, without asking.
    """

    def __init__(self, reactor: Any, command: Sequence[str]) -> None:
        self._reactor = reactor
        self._command = ["sh", "-c", 'read -r _; exec "$@"', "lifeline", *command]
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        """The process to watch; it is started by the first to ask, and anew when it was killed. Raises `RonError`."""
        child = self._child
        if child is None or child.pid is None:
            child = self._child = spawn(self._reactor, Child(), self._command, outlives=True)
        if child.pid is None:
            raise unavailable("no process could be started that outlives this one")
        return child.pid

    async def stop(self) -> None:
        """End it, when nobody is left who watches it."""
        child, self._child = self._child, None
        if child is not None:
            await stop(self._reactor, child)


async def stop(reactor: IReactorTime, process: Child, *, kill_after_s: float | None = None) -> None:
    """End `process`: SIGTERM, then SIGKILL. Returns when it is gone."""
    killer = reactor.callLater(KILL_AFTER_S if kill_after_s is None else kill_after_s, process.signal, "KILL")
    process.signal("TERM")
    try:
        await gone(process)
    finally:
        if killer.active():
            killer.cancel()


async def gone(process: Child) -> None:
    """Return when `process` has ended; any number may wait."""
    await occurred(process.ended)


class ProcessUnit:
    """A child process as the supervisor's `Unit`.

    launch: starts the process anew for each start; it is given what hears its lines. ready: called after the start,
    returns when the process is up. stop_s: from SIGTERM to SIGKILL. probe: asked every `PROBE_S` once it is up; raises
    `RonError` when the process does not answer. One that has not answered `MAX_MISSES` times in a row has crashed.
    """

    def __init__(
        self,
        reactor: Any,
        name: str,
        *,
        launch: Callable[[Callable[[str], None]], Child],
        ready: Callable[[], Awaitable[None]],
        stop_s: float = KILL_AFTER_S,
        probe: Callable[[], Awaitable[Any]] | None = None,
    ) -> None:
        self.name = name
        self._reactor = reactor
        self._launch = launch
        self._ready = ready
        self._stop_s = stop_s
        self._probe = probe
        self._probing: Deferred[None] | None = None
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._child.pid if self._child is not None else None

    async def start(self, crashed: Callable[[str], None]) -> None:
        """Start the process and wait until it is ready. Raises `RonError` when it ends before."""
        if self._child is not None:
            await gone(self._child)  # the one before was killed a moment ago: its ports and files must be free
        child = self._child = self._launch(self._heard)
        ready = cancellable(Deferred.fromCoroutine(_awaited(self._ready())))
        early: list[str] = []

        def ended(reason: str) -> str:
            said = next((line for line in reversed(child.lines) if line.strip()), "")
            why = f"{reason.strip()} {f'({said})' if said else ''}".strip()
            if ready.called:
                crashed(why)
            else:
                early.append(why)
                ready.cancel()
            return reason

        child.ended.addCallback(ended)
        try:
            await ready
        except BaseException:
            if early:
                raise unavailable(f"the process ended: {early[0]}") from None
            raise
        self._begin_probing(child, crashed)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that does not help."""
        self._end_probing()
        if self._child is not None:
            await stop(self._reactor, self._child, kill_after_s=self._stop_s)

    def abort(self) -> None:
        """SIGKILL."""
        self._end_probing()
        if self._child is not None:
            self._child.signal("KILL")

    def _begin_probing(self, child: Child, crashed: Callable[[str], None]) -> None:
        if self._probe is not None and not child.ended.called:
            self._probing = Deferred.fromCoroutine(self._keep_probing(self._probe, crashed))
            self._probing.addErrback(lambda failure: failure.trap(CancelledError))

    def _end_probing(self) -> None:
        probing, self._probing = self._probing, None
        if probing is not None:
            probing.cancel()

    async def _keep_probing(self, probe: Callable[[], Awaitable[Any]], crashed: Callable[[str], None]) -> None:
        misses, took_s = 0, 0.0
        while misses < MAX_MISSES:
            await deferLater(self._reactor, max(0.0, PROBE_S - took_s))
            asked_s = self._reactor.seconds()
            try:
                await probe()
                misses = 0
            except RonError as error:
                misses += 1
                _log.warn("{unit} does not answer: {why}", event="unit_silent", unit=self.name, why=error.message)
            took_s = self._reactor.seconds() - asked_s
        self._probing = None  # crashing ends the unit, and with it whatever is probing then
        crashed(f"it has not answered for {MAX_MISSES * PROBE_S:.0f} s")

    def _heard(self, line: str) -> None:
        _log.debug("{unit}: {line}", event="child_says", unit=self.name, line=line)


async def _awaited(awaitable: Awaitable[None]) -> None:
    await awaitable


def _how(reason: Failure) -> str:
    """How it ended, in few words."""
    value: Any = reason.value
    if reason.check(ProcessDone):
        return "it ended"
    signal = getattr(value, "signal", None)
    return f"ended by signal {signal}" if signal is not None else f"exit code {getattr(value, 'exitCode', '?')}"


def _apart(*, outlives: bool) -> list[str]:
    """Wrappers that exec it in a session of its own (Ctrl-C is for us, not for it) and kill it when we die."""
    wrapper = []
    if setsid := shutil.which("setsid"):
        wrapper.append(setsid)
    if not outlives and (setpriv := shutil.which("setpriv")):
        wrapper += [setpriv, "--pdeathsig", "KILL", "--"]
    return wrapper
