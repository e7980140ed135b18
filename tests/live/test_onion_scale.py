"""One tor becomes two and one again while people use the onions, and none of them notices. Needs tor."""

from __future__ import annotations

import re
import subprocess
import threading
import time
import uuid
from collections import Counter
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.onionwork import BODY, OnionWork, oniond
from tests.live.support import NO_TOR, alive, until

STEP_S = 60.0
PATIENCE_S = 60


class Visitors:
    """Threads that fetch from onions through the client tor without a pause; each answer that is none is kept.

    strangers: on a circuit of its own each time. regulars: on the same circuit as before. fetched, slowest_s: by phase.
    """

    def __init__(self, work: OnionWork, onions: list[str], *, regulars: int = 4) -> None:
        self.failed: list[str] = []
        self.fetched: Counter[str] = Counter()
        self.slowest_s: dict[str, float] = {}
        self.phase = "before"
        self._work = work
        self._over, self._regulars_over = threading.Event(), threading.Event()
        self.regulars = [threading.Thread(target=self._regular, args=(onions[n],)) for n in range(regulars)]
        self._threads = [*self.regulars, *(threading.Thread(target=self._stranger, args=(one,)) for one in onions)]

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._regulars_over.set()
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S + 10)

    def dismiss_regulars(self) -> None:
        """They go home; their circuits stay."""
        self._regulars_over.set()

    def _stranger(self, onion: str) -> None:
        while not self._over.is_set():
            self._fetch("stranger", uuid.uuid4().hex, onion)
            self._over.wait(0.1)

    def _regular(self, onion: str) -> None:
        while not self._regulars_over.is_set():
            self._fetch("regular", f"regular-{onion}", onion)
            self._regulars_over.wait(0.05)

    def _fetch(self, who: str, circuit: str, onion: str) -> None:
        phase, began_s = f"{who} {self.phase}", time.monotonic()
        proxy = f"socks5h://{circuit}:x@127.0.0.1:{self._work.socks_port()}"
        asked = ["curl", "-s", "--max-time", str(PATIENCE_S), "--proxy", proxy, f"http://{onion}/"]
        done = subprocess.run(asked, capture_output=True, check=False)
        took_s = time.monotonic() - began_s
        self.fetched[phase] += 1
        self.slowest_s[phase] = max(took_s, self.slowest_s.get(phase, 0.0))
        if done.stdout != BODY:
            self.failed.append(f"{phase}: curl {done.returncode} after {took_s:.1f} s")


class ScaleTests(SynchronousTestCase):
    """A daemon whose config is edited as an operator would."""

    skip = NO_TOR

    def setUp(self) -> None:
        self.work = oniond()
        self.daemon = self.work.daemon
        self.addCleanup(self.daemon.destroy)
        self.daemon.start()
        self.original = self.daemon.config.read_text()

    def configure(self, onion: str) -> None:
        """More in `[onion]`."""
        self.daemon.config.write_text(self.original.replace("[onion]\n", f"[onion]\n{onion}\n"))

    def figure(self, name: str) -> float:
        text = self.work.call("GET", "/metrics").body.decode()
        match = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(match[1]) if match else 0.0

    def steady(self, tors: int) -> bool:
        states = {state: self.figure(f'onion_tors{{state="{state}"}}') for state in ("serving", "starting", "draining")}
        return states == {"serving": tors, "starting": 0, "draining": 0}

    def first_hops(self, tor: str) -> set[str]:
        """Fingerprints that `tor`'s circuits begin with."""
        lines = self.work.ask_tor(tor, "circuit-status").splitlines()
        paths = [line.split()[2] for line in lines if "BUILT" in line and "PURPOSE=HS_SERVICE" in line]
        return {path.split(",")[0].lstrip("$").split("~")[0] for path in paths}

    def test_two_and_one_again_under_load(self) -> None:
        onions = [self.work.create("chat")["onion"] for _ in range(4)]
        with Visitors(self.work, onions) as visitors:
            time.sleep(3)
            visitors.phase = "up"
            self.configure("scale_min = 2\nscale_max = 2")
            until(lambda: self.figure('onion_moves_total{result="done"}'), STEP_S, "some onions moving")
            moved = self.work.detached("onion-2")
            self.assertTrue(moved)
            until(lambda: all(view["ready"] for view in self.work.listed().values()), 10, "all ready")
            # they finish on circuits that the old tor still serves
            visitors.dismiss_regulars()
            until(lambda: self.steady(2), STEP_S, "two tors")
            self.assertEqual(self.work.detached("onion") & self.work.detached("onion-2"), set())
            pid = self.work.pid("onion-2")
            visitors.phase = "down"
            self.configure("scale_min = 1\nscale_max = 1")
            until(lambda: self.steady(1), STEP_S, "one tor")
            visitors.phase = "after"
            self.assertNotIn("onion-2", self.work.tors())
            self.assertFalse(alive(pid))
            time.sleep(3)
        self.assertEqual(visitors.failed, [], visitors.slowest_s)
        self.assertEqual(self.figure("onion_visitors_cut_total"), 0)
        self.assertEqual(self.figure('onion_moves_total{result="failed"}'), 0)
        for phase in ("stranger up", "regular up", "stranger down", "stranger after"):
            self.assertTrue(visitors.fetched[phase], phase)
        self.assertTrue(self.work.nothing_leaks())

        self.the_wished_guard()

    def the_wished_guard(self) -> None:
        """The same network, which took so long to come up: a tor of its own enters by the relay of the region."""
        relay: Any = (self.work.tornet / "relay1" / "fingerprint").read_text().split()[1]
        self.configure(f'relay_labels = {{ "{relay}" = "eu-west" }}')
        time.sleep(2.5)
        view = self.work.create("chat", isolation="process", hints={"regions": ["mars", "eu"]})
        self.assertTrue(self.work.reachable(view["onion"]))
        (own,) = [name for name in self.work.tors() if name.startswith("own-")]
        self.assertEqual(self.first_hops(own), {relay})
