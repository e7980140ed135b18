"""A TPM of a test's own: swtpm in a process of its own, on Unix sockets in a directory of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.services.kms.backends.softhsm import answers

# tpm2-tss writes each error to stderr, unless it is told not to before its first one
os.environ.setdefault("TSS2_LOG", "all+NONE")

NO_SWTPM = None if shutil.which("swtpm") else "swtpm is not installed"
if NO_SWTPM is None:
    try:
        import tpm2_pytss  # noqa: F401 - is it there?
    except ImportError:
        NO_SWTPM = "tpm2-pytss is not installed (extra tpm)"


class SoftTpm:
    """Runs until the stack is closed. tcti: where it is."""

    def __init__(self, stack: ExitStack) -> None:
        self.home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swtpm-")))
        self._socket = self.home / "tpm"
        self.tcti = f"swtpm:path={self._socket}"
        self._process: subprocess.Popen[bytes] | None = None
        stack.callback(self.kill)
        self.start()

    def start(self) -> None:
        """Power on: the same TPM, its platform registers at zero again."""
        control = Path(f"{self._socket}.ctrl")
        self._socket.unlink(missing_ok=True)
        state = self.home / "state"
        state.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--flags", "not-need-init,startup-clear"),
                *("--server", f"type=unixio,path={self._socket}", "--ctrl", f"type=unixio,path={control}"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while not (answers(self._socket) and answers(control)):
            if time.monotonic() > deadline:
                raise AssertionError("swtpm did not start")
            time.sleep(0.02)

    def kill(self) -> None:
        """Power off."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
