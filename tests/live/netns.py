"""Hosts for a test: network namespaces on a switch of their own, with real addresses between them, and what runs there.

In: how many. Out: `Hosts`, gone with all that runs on them after `destroy`. Needs root, or `in_user_namespace`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.live.support import ROOT

_INSIDE = "RON_TEST_IN_USER_NAMESPACE"
_UNSHARE = ["unshare", "--user", "--map-root-user", "--net", "--mount"]


def why_not() -> str | None:
    """Why no hosts can be made here; None when they can, at least in a user namespace."""
    if os.getuid() == 0:
        tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    else:
        tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"no network namespaces here: {tried.stderr.strip()}"


def in_user_namespace(test: str) -> subprocess.CompletedProcess[str]:
    """Run the trial test `test` where an ordinary user is root over a network of its own."""
    script = 'mount -t tmpfs none /run && exec "$@"'
    place = tempfile.mkdtemp(prefix="ron-userns-")
    atexit.register(shutil.rmtree, place, True)
    work = str(Path(place) / "trial")
    return subprocess.run(
        [*_UNSHARE, "sh", "-c", script, "sh", sys.executable, "-m", "twisted.trial", "--temp-directory", work, test],
        cwd=ROOT,
        env={**os.environ, _INSIDE: "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def mapped_root() -> bool:
    """True when our root is an ordinary user outside: there are no other users to hand files to."""
    return _INSIDE in os.environ


class Hosts:
    """`count` hosts 10.77.0.1, 10.77.0.2, … Processes started on them end with us, whatever ends us."""

    def __init__(self, count: int) -> None:
        self._tag = f"rh{os.getpid() % 100000}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._spaces: list[str] = []
        switch = self._space("s")
        _ip(switch, "link", "add", "br0", "type", "bridge")
        _ip(switch, "link", "set", "br0", "up")
        for number in range(1, count + 1):
            space = self._space(str(number))
            _ip(switch, "link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip(switch, "link", "set", f"p{number}", "master", "br0", "up")
            _ip(space, "address", "add", f"{address(number)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip(space, "link", "set", device, "up")

    def on(self, number: int) -> list[str]:
        """What a command begins with to run on host `number`."""
        return ["ip", "netns", "exec", f"{self._tag}-{number}"]

    def run(self, number: int, *command: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run `command` on host `number` to its end."""
        return subprocess.run(
            [*self.on(number), *command], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def start(self, number: int, name: str, command: list[str], log: Path) -> None:
        """Start `command` on host `number` as `name`; its output goes to `log`."""
        with log.open("ab") as sink:
            self._processes[name] = subprocess.Popen(
                [*self.on(number), "setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """What was started as `name`."""
        return self._processes[name]

    def destroy(self) -> None:
        """End every process, remove the hosts."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self._processes.clear()
        for space in reversed(self._spaces):
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)
        self._spaces.clear()

    def _space(self, suffix: str) -> str:
        name = f"{self._tag}-{suffix}"
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        self._spaces.append(name)
        return name


def address(number: int) -> str:
    """The address of host `number`."""
    return f"10.77.0.{number}"


def _ip(space: str, *arguments: str) -> None:
    subprocess.run(["ip", "-n", space, *arguments], check=True, capture_output=True)
