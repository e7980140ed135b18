"""Onionbalance (v3) on the same kind of network: a killed backend and a killed publisher, with its own settings.

Two sets of them: as it comes, and with `--is-testnet`, the fastest that it has (every 20 s a look at its backends,
every 10 s whether to publish). There is no second publisher in it: what is measured is one that is never started again,
and one that a supervisor starts again at once. Nothing here waits longer than five minutes.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from stem.control import Controller, EventType

from bench import harness
from bench.balance_tor import PlainTor, wait_points
from ron.tor.onionkeys import onion_address
from tests.live.cluster import network_down, network_up
from tests.live.relays import MoreRelays
from tests.live.support import until

CAP_S = 300.0
FIRST_S = 240.0
AT_MOST = 5
BACKENDS = 2
SILENT_S = 3.0
MORE_RELAYS, DIRECTORIES, WIDER_S = 5, 9, 150.0
# It takes two introduction points of each.
BOTH, ONE = range(3, 21), range(1, 3)


class Onionbalance:
    """One publisher with a tor of its own, before an address that is made here. backends: added before `start`."""

    def __init__(self, tornet: Path, folder: Path, *, testnet: bool) -> None:
        self.tor = PlainTor(tornet, folder / "tor")
        self._folder = folder
        self._testnet = testnet
        self._process: subprocess.Popen[bytes] | None = None
        self.uploads: list[float] = []
        key = Ed25519PrivateKey.generate()
        raw, pem = serialization.Encoding.Raw, serialization.Encoding.PEM
        self.onion = onion_address(key.public_key().public_bytes(raw, serialization.PublicFormat.Raw))
        self._key = folder / "master.key"
        self._key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        self._control = Controller.from_port(port=self.tor.control_port)
        self._control.authenticate()
        self._control.add_event_listener(self._heard, EventType.HS_DESC)

    def serve(self, backends: list[str]) -> None:
        """The config."""
        lines = "".join(f"  - address: {onion}\n    name: node{n}\n" for n, onion in enumerate(backends))
        config = f"services:\n- key: {self._key}\n  instances:\n{lines}"
        (self._folder / "config.yaml").write_text(config)

    def start(self) -> None:
        """Begin, or begin again."""
        command = [str(harness.BIN / "onionbalance"), "-p", str(self.tor.control_port)]
        command += ["-c", str(self._folder / "config.yaml"), *(["--is-testnet"] if self._testnet else [])]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command], stdout=log, stderr=log, cwd=self._folder
            )

    def published(self, after_s: float, patience_s: float) -> float | None:
        """When after the moment `after_s` a directory took something of it; None when patience is over."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            found = next((at_s for at_s in self.uploads if at_s > after_s), None)
            if found is not None:
                return found
            time.sleep(0.05)
        return None

    def wait_silent(self) -> None:
        """Until nothing has been uploaded for a while."""
        until(lambda: time.monotonic() - max(self.uploads, default=0.0) > SILENT_S, CAP_S, "its uploads being done")

    def kill(self) -> None:
        """-9; its tor goes on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def end(self) -> None:
        """All of it."""
        self.kill()
        self._control.close()
        self.tor.end()

    def _heard(self, event: Any) -> None:
        if event.action == "UPLOADED":
            self.uploads.append(time.monotonic())


def measure(_runs: int) -> dict[str, Any]:
    """All at once on one network: they wait most of the time."""
    with harness.scratch() as folder:
        scene = _Scene(folder / "net", folder)
        try:
            network_up(folder / "net")
            scene.widen()
            return scene.play()
        finally:
            scene.end()
            network_down(folder / "net")


class _Scene:
    def __init__(self, tornet: Path, folder: Path) -> None:
        self._tornet = tornet
        self._folder = folder
        self._tors: list[PlainTor] = []
        self._publishers: list[Onionbalance] = []
        self._relays: MoreRelays | None = None
        self._end_s = float("inf")

    def play(self) -> dict[str, Any]:
        sides = {
            "as it comes: backend killed": (False, self._backend_once),
            "as it comes: publisher killed": (False, self._publisher_once),
            "testnet: backend killed": (True, self._backend),
            "testnet: publisher killed, started again": (True, self._publisher),
        }
        made = {title: self._make(number, testnet) for number, (title, (testnet, _)) in enumerate(sides.items())}
        with ThreadPoolExecutor(len(sides)) as pool:
            self._end_s = time.monotonic() + CAP_S + FIRST_S
            running = {title: pool.submit(_guarded, sides[title][1], *made[title]) for title in sides}
            return {"cap_s": CAP_S, **{title: one.result() for title, one in running.items()}}

    def widen(self) -> None:
        """More relays. On fewer than eight directories Onionbalance looks for places without end, and publishes nothing
        (`hashring.get_responsible_hsdirs`)."""
        self._relays = MoreRelays(self._tornet, self._folder, MORE_RELAYS)
        client = PlainTor(self._tornet, self._folder / "counting")
        self._tors.append(client)
        until(lambda: client.directories() >= DIRECTORIES, WIDER_S, f"{DIRECTORIES} directories")

    def end(self) -> None:
        for one in [*self._publishers, *self._tors]:
            one.end()
        if self._relays is not None:
            self._relays.end()

    def _make(self, number: int, testnet: bool) -> tuple[Onionbalance, PlainTor, PlainTor]:
        """A publisher, one of its backends, and a client."""
        folder = self._folder / str(number)
        publisher = Onionbalance(self._tornet, folder, testnet=testnet)
        self._publishers.append(publisher)
        backends = [PlainTor(self._tornet, folder / f"backend{n}", [publisher.onion]) for n in range(BACKENDS)]
        client = PlainTor(self._tornet, folder / "client")
        self._tors += [*backends, client]
        publisher.serve([backend.onions()[0] for backend in backends])
        publisher.start()
        return publisher, backends[0], client

    def _backend_once(self, publisher: Onionbalance, backend: PlainTor, client: PlainTor) -> dict[str, Any]:
        _first(publisher, client)
        began_s = time.monotonic()
        backend.kill()
        return _told([_since(began_s, wait_points(client, publisher.onion, ONE, CAP_S))])

    def _publisher_once(self, publisher: Onionbalance, _backend: PlainTor, client: PlainTor) -> dict[str, Any]:
        _first(publisher, client)
        began_s = time.monotonic()
        publisher.kill()
        return _told([_since(began_s, publisher.published(began_s, CAP_S))])

    def _backend(self, publisher: Onionbalance, backend: PlainTor, client: PlainTor) -> dict[str, Any]:
        _first(publisher, client)
        took: list[float | None] = []
        while len(took) < AT_MOST and time.monotonic() < self._end_s - CAP_S / 2:
            began_s = time.monotonic()
            backend.kill()
            took.append(_since(began_s, wait_points(client, publisher.onion, ONE, CAP_S)))
            if took[-1] is None:
                break
            backend.start()
            wait_points(client, publisher.onion, BOTH, CAP_S / 2)
        return _told(took)

    def _publisher(self, publisher: Onionbalance, _backend: PlainTor, client: PlainTor) -> dict[str, Any]:
        _first(publisher, client)
        took: list[float | None] = []
        while len(took) < AT_MOST and time.monotonic() < self._end_s - CAP_S / 2:
            # what its tor has been given already goes on being uploaded, and is not the next one's
            publisher.wait_silent()
            began_s = time.monotonic()
            publisher.kill()
            publisher.start()
            took.append(_since(began_s, publisher.published(began_s, CAP_S)))
        return _told(took)


def _guarded(work: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    try:
        return work(*arguments)
    except (AssertionError, RuntimeError) as error:
        return {"failed": str(error)}


def _first(publisher: Onionbalance, client: PlainTor) -> None:
    if wait_points(client, publisher.onion, BOTH, FIRST_S) is None:
        raise RuntimeError(f"onionbalance published nothing of both backends within {FIRST_S} s")


def _since(began_s: float, at_s: float | None) -> float | None:
    return None if at_s is None else at_s - began_s


def _told(took: list[float | None]) -> dict[str, Any]:
    """`>300 s` for what did not happen."""
    there = [one for one in took if one is not None]
    late = len(took) - len(there)
    spread = harness.spread(there) if there else dict.fromkeys(("min", "p50", "p95", "max"), f"> {CAP_S:.0f}")
    return {"took_s": {**spread, "n": len(took)}, "not within the cap": late}
