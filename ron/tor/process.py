"""One tor process: started apart from our terminal, its last lines kept, its end reported, never left behind.

In: a command line. Out: a running process, what it said, and a Deferred that fires when it is gone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

KEPT_LINES = 50
KILL_AFTER_S = 5.0
_MAX_LINE = 1000


def _apart() -> list[str]:
    """Wrappers that exec tor in a session of its own (Ctrl-C is for us, not for it) and kill it when we die."""
    wrapper = []
    if setsid := shutil.which("setsid"):
        wrapper.append(setsid)
    if setpriv := shutil.which("setpriv"):
        wrapper += [setpriv, "--pdeathsig", "KILL", "--"]
    return wrapper


class TorProcess(ProcessProtocol):
    """A started tor. `lines` holds the end of its log; `ended` fires with a sentence once it is gone."""

    def __init__(self, on_line: Callable[[str], None] = lambda line: None) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.ended: Deferred[str] = Deferred()
        self._on_line = on_line
        self._partial = b""

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self.transport.pid if self.transport is not None else None

    def outReceived(self, data: bytes) -> None:
        """Cut tor's log into lines."""
        *whole, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-_MAX_LINE:]
        for raw in whole:
            line = raw[:_MAX_LINE].decode("utf-8", "replace")
            self.lines.append(line)
            self._on_line(line)

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        """Tell whoever waits."""
        self.ended.callback(self._last_words() or reason.getErrorMessage())

    def signal(self, name: str) -> None:
        """Send SIG`name`; nothing when it is already gone."""
        if self.transport is not None:
            with contextlib.suppress(ProcessExitedAlready):
                self.transport.signalProcess(name)

    def _last_words(self) -> str | None:
        """tor's own complaint, when it made one."""
        for line in reversed(self.lines):
            if "[err]" in line or "[warn]" in line:
                return line.split("] ", 1)[-1]
        return None


def spawn(
    reactor: IReactorProcess, command: Sequence[str], on_line: Callable[[str], None] = lambda line: None
) -> TorProcess:
    """Start `command`."""
    protocol = TorProcess(on_line)
    whole = [*_apart(), *command]
    reactor.spawnProcess(protocol, whole[0], whole, env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"})
    return protocol


async def stop(reactor: IReactorTime, process: TorProcess) -> None:
    """End `process`: SIGTERM, after 5 s SIGKILL. Returns when it is gone."""
    killer = reactor.callLater(KILL_AFTER_S, process.signal, "KILL")
    process.signal("TERM")
    try:
        if not process.ended.called:
            waiter: Deferred[None] = Deferred()
            process.ended.addBoth(_pass_on, waiter)
            await waiter
    finally:
        if killer.active():
            killer.cancel()


def _pass_on(result: str, waiter: Deferred[None]) -> str:
    waiter.callback(None)
    return result


def reap_stale(data_directory: Path, torrc: Path) -> bool:
    """Kill a tor that an earlier run of ours left on `torrc`. Blocks up to 2 s; True when there was one."""
    try:
        pid = int((data_directory / "tor.pid").read_text())
        command_line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return False
    if os.fsencode(torrc) not in command_line:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 2
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return True
