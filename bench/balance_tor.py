"""Plain tors of a private network, as somebody writes a torrc: backends of a master address, or a client.

In: the network's folder, master addresses. Out: a tor process, the addresses of its onions, what a directory holds.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from stem import ControllerError, DescriptorUnavailable
from stem.control import Controller
from stem.descriptor.hidden_service import HiddenServiceDescriptorV3

from bench import harness
from ron.tor.torrc import no_defaults
from tests.live.sites import HTTP_PORT
from tests.live.support import until

BOOTSTRAP_S = 90.0


class PlainTor:
    """masters: for each an onion that is a backend of that address. local: the port that they lead to."""

    def __init__(self, tornet: Path, folder: Path, masters: Sequence[str] = (), local: int = 1) -> None:
        folder.mkdir(mode=0o700, parents=True)
        self.control_port = harness.free_port()
        self._onions = [folder / f"onion{number}" for number in range(len(masters))]
        lines = [
            (tornet / "snippet.torrc").read_text(),
            f"DataDirectory {folder / 'data'}\nSocksPort 0\nControlPort 127.0.0.1:{self.control_port}",
            "CookieAuthentication 1\nLog notice file /dev/null",
        ]
        for onion, master in zip(self._onions, masters, strict=True):
            onion.mkdir(mode=0o700)
            (onion / "ob_config").write_text(f"MasterOnionAddress {master}\n")
            lines.append(
                f"HiddenServiceDir {onion}\nHiddenServicePort {HTTP_PORT} 127.0.0.1:{local}\n"
                "HiddenServiceOnionBalanceInstance 1"
            )
        self._torrc = folder / "torrc"
        self._torrc.write_text("\n".join(lines) + "\n")
        self.start()

    def start(self) -> None:
        """Begin, or begin again with the same onions; returns when it is bootstrapped."""
        command = ["setpriv", "--pdeathsig", "KILL", "--", "tor", "-f", str(self._torrc)]
        self._process = subprocess.Popen(
            [*command, "--defaults-torrc", str(no_defaults())], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        harness.wait_for_port(self.control_port, self._process)
        self.control = Controller.from_port(port=self.control_port)
        self.control.authenticate()
        asked = "status/bootstrap-phase"
        until(lambda: "PROGRESS=100" in self.control.get_info(asked), BOOTSTRAP_S, "a plain tor being up")

    def onions(self) -> list[str]:
        """Their addresses."""
        return [(onion / "hostname").read_text().strip() for onion in self._onions]

    def own_descriptors(self) -> dict[str, str]:
        """What this tor has to publish, by address; without those that are not made yet."""
        found = {}
        for onion in self.onions():
            with contextlib.suppress(ControllerError):
                text = self.control.get_info(f"hs/service/desc/id/{onion.removesuffix('.onion')}")
                found[onion] = text.strip("\n") + "\n"
        return found

    def directories(self) -> int:
        """Onions' directories in its consensus."""
        lines = self.control.get_info("ns/all").splitlines()
        return sum(line.startswith("s ") and "HSDir" in line.split() for line in lines)

    def points(self, onion: str) -> int:
        """Introduction points in the descriptor that a directory has of `onion` now; 0 when it has none."""
        name = onion.removesuffix(".onion")
        try:
            found = self.control.get_hidden_service_descriptor(name, timeout=20)
        except (DescriptorUnavailable, ControllerError):
            return 0
        text = str(found)
        return len(HiddenServiceDescriptorV3.from_str(text).decrypt(name).introduction_points)

    def kill(self) -> None:
        """-9."""
        self.control.close()
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Whatever state it is in."""
        if self._process.poll() is None:
            self.kill()


def wait_points(client: PlainTor, onion: str, wanted: range, patience_s: float, every_s: float = 1.0) -> float | None:
    """When, by the monotonic clock, a directory had a descriptor with so many points; None when patience is over."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if client.points(onion) in wanted:
            return time.monotonic()
        time.sleep(every_s)
    return None
