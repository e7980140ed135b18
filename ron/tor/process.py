"""tor's own ways as a child process: its last words, and the one that an earlier run left behind.

In: what tor logs; its data directory. Out: the complaint it ended with; no stale tor on our files.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from ron.kernel.processes import Child


class TorProcess(Child):
    """A started tor."""

    def last_words(self) -> str | None:
        """tor's own complaint, when it made one."""
        for line in reversed(self.lines):
            if ("[err]" in line or "[warn]" in line) and "running Tor as root" not in line:
                return line.split("] ", 1)[-1]
        return None


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
