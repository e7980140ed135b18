"""More relays for a private network on this host than `ronctl tornet up` starts.

In: the folder of a network that is up. Out: so many tors more, made after its `relay1`; ended with `end`.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from ron.tor.torrc import no_defaults
from tests.live.support import free_port


class MoreRelays:
    """`count` of them, in folders `folder/more<n>`. They are in a consensus some votes later."""

    def __init__(self, tornet: Path, folder: Path, count: int) -> None:
        self._running = [self._start(tornet / "relay1", folder / f"more{number}") for number in range(count)]

    def end(self) -> None:
        """All of them. May be called twice."""
        for relay in self._running:
            relay.kill()
        for relay in self._running:
            relay.wait()

    def _start(self, like: Path, folder: Path) -> subprocess.Popen[bytes]:
        text = like.with_suffix(".torrc").read_text().replace(str(like), str(folder))
        text = re.sub(r"(?m)^Nickname .*$", f"Nickname {folder.name}", text)
        for option in ("ORPort", "DirPort", "ControlPort"):
            there = rf"(?m)^({option} (?:127\.0\.0\.1:)?)[1-9]\d+"
            text = re.sub(there, lambda found: f"{found[1]}{free_port()}", text)
        folder.mkdir(mode=0o700)
        torrc = folder.with_suffix(".torrc")
        torrc.write_text(text)
        command = ["setpriv", "--pdeathsig", "KILL", "--", "tor", "-f", str(torrc)]
        command += ["--defaults-torrc", str(no_defaults())]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
