"""tor's own ways as a child process: its last words, and the one that an earlier run left behind.

In: what tor logs; its data directory; its pid. Out: the complaint it ended with; no stale tor on our files; whether it
is at work.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from ron.kernel.processes import Child


class TorProcess(Child):
    """A started tor."""

    def last_words(self) -> str | None:
        """tor's own complaint, when it made one. It ends of errors only: a warning explains no end."""
        for line in reversed(self.lines):
            if "[err]" in line:
                return line.split("] ", 1)[-1]
        return None


class Effort(NamedTuple):
    """What a process does at a moment. state: its letter in `ps`. ticks: of CPU time it has used so far."""

    state: str
    ticks: int

    def works_since(self, before: Effort) -> bool:
        """Is it running, or waiting for a CPU, or has it been meanwhile? A stopped or dead one does not."""
        return self.state not in "TtZX" and (self.state in "RD" or self.ticks > before.ticks)


def effort(pid: int | None) -> Effort:
    """Of the process `pid` now (proc(5)); one that is not there is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return Effort("X", 0)
    return Effort(fields[0], int(fields[11]) + int(fields[12]))


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
