"""Ours and stem's: two ways to an onion service, each with a tor of its own on one network, watched alike.

In: a running daemon, and the torrc of its onion tor. Out: so many onions made and removed, and when the first directory
had each. Every CREATE of ours is another app's.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stem.control import Controller, EventType

from bench import harness
from bench.unixload import closed_loop, figures, request
from ron.services.oniond.publisher import AT_ONCE
from ron.tor.onions import UPLOAD_TIMEOUT_S
from ron.tor.torrc import no_defaults
from tests.live.onionwork import OnionWork, op_id
from tests.live.support import until

PATIENCE_S = 120.0


class Watch:
    """When each onion was first uploaded, or not found, as one tor tells. A control connection of our own."""

    def __init__(self, port: int) -> None:
        self.control = Controller.from_port(port=port)
        self.control.authenticate()
        self.first: dict[str, float] = {}
        self.not_found: Counter[str] = Counter()
        self.control.add_event_listener(self._heard, EventType.HS_DESC)

    def _heard(self, event: Any) -> None:
        if event.action == "UPLOADED":
            self.first.setdefault(event.address, time.monotonic())
        elif event.action == "FAILED" and event.reason == "NOT_FOUND":
            self.not_found[event.address] += 1

    def uploaded(self, onions: Sequence[str], patience_s: float = PATIENCE_S) -> list[float | None]:
        """When, by the monotonic clock; once all are, or None for those that still are not when patience is over."""
        deadline = time.monotonic() + patience_s
        while not all(onion in self.first for onion in onions) and time.monotonic() < deadline:
            time.sleep(0.005)
        return [self.first.get(onion) for onion in onions]


class Ours:
    """Onions through the control API; every CREATE is an app's own."""

    name = "rustyonions"

    def __init__(self, work: OnionWork) -> None:
        self.work = work
        self.watch = Watch(work.tors()["onion"]["control_port"])
        self.pid = work.pid("onion")
        self.ids: list[str] = []
        self.accepted: dict[str, float] = {}

    def creates(self, count: int, wait_s: float = 0) -> list[bytes]:
        """Requests."""
        cap, more = self.work.daemon.admin_cap(), {"wait_s": wait_s}
        return [request("POST", "/v1/onions", cap, self.work.creation(f"app-{n}", **more)) for n in range(count)]

    def create(self, count: int, wait_s: float = 0) -> tuple[list[str], list[float]]:
        """So many, one call after the other on one connection: their ids in tor, and when each call began."""
        answers = closed_loop(self.work.socket, self.creates(count, wait_s), keep=True)
        views = [json.loads(one.body) for one in answers]
        self.ids = [view["id"] for view in views]
        self.accepted = figures(answers)
        return [view["onion"].removesuffix(".onion") for view in views], [one.sent_s for one in answers]

    def remove(self) -> None:
        """Those of the last call."""
        cap = self.work.daemon.admin_cap()
        gone = [request("DELETE", f"/v1/onions/{one}", cap, {"op_id": op_id()}) for one in self.ids]
        closed_loop(self.work.socket, gone)
        until(lambda: not self.work.detached(), 30, "onions gone")


class Plain:
    """Onions as a program makes them that has stem and a tor."""

    name = "stem"

    def __init__(self, theirs: Path, folder: Path, local: str) -> None:
        """theirs: the folder of a tor of the same network, whose torrc stands beside it."""
        ports = {"ControlPort": harness.free_port(), "SocksPort": harness.free_port()}
        text = theirs.with_name(f"{theirs.name}.torrc").read_text().replace(str(theirs), str(folder))
        for option, port in ports.items():
            text = re.sub(rf"(?m)^{option} 127.0.0.1:\d+", f"{option} 127.0.0.1:{port}", text)
        folder.mkdir(mode=0o700)
        (folder / "torrc").write_text(text)
        command = ["setpriv", "--pdeathsig", "KILL", "--", "tor", "-f", str(folder / "torrc")]
        self._tor = subprocess.Popen([*command, "--defaults-torrc", str(no_defaults())], stdout=subprocess.DEVNULL)
        harness.wait_for_port(ports["ControlPort"], self._tor)
        self.watch = Watch(ports["ControlPort"])
        self.pid = self._tor.pid
        self._local = local
        self._ids: list[str] = []
        control = self.watch.control
        until(lambda: "PROGRESS=100" in control.get_info("status/bootstrap-phase"), 60, "stem's tor being up")

    def create(self, count: int, at_once: int = AT_ONCE) -> tuple[list[str], list[float]]:
        """As `Ours.create`, and as careful: so many at once are on their way to a first directory, and no more."""
        self._ids, began = [], []
        waiting: dict[str, float] = {}
        while len(began) < count:
            # ours gives one up and tries it again after as long as this; here it just does not count any more
            since_s = time.monotonic() - UPLOAD_TIMEOUT_S
            waiting = {one: at for one, at in waiting.items() if one not in self.watch.first and at > since_s}
            if len(waiting) >= at_once:
                time.sleep(0.005)
                continue
            began.append(time.monotonic())
            made = self.watch.control.create_ephemeral_hidden_service(
                {80: self._local}, key_type="NEW", key_content="ED25519-V3", detached=True
            )
            self._ids.append(made.service_id)
            waiting[made.service_id] = began[-1]
        return self._ids, began

    def remove(self) -> None:
        """Those of the last call."""
        for one in self._ids:
            self.watch.control.remove_ephemeral_hidden_service(one)

    def end(self) -> None:
        """The tor too."""
        self.watch.control.close()
        self._tor.terminate()
        self._tor.wait(30)
