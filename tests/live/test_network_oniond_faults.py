"""What may befall the network behind the onions: relays and authorities, one or all of them, once or for good.

Needs tor. The runtime and its own tor are in `test_oniond_faults`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from tests.live.onionwork import BACK_S
from tests.live.support import until
from tests.live.test_oniond_faults import Faults

AUTHORITIES = ("auth1", "auth2", "auth3")
RELAYS = ("relay1", "relay2")


class NetworkFaults(Faults):
    """What happens to the network behind the onions."""

    def setUp(self) -> None:
        super().setUp()
        # a tor that remembers what the test before did to the relays avoids them for minutes
        self.work.signal(signal.SIGKILL, "onion")
        self.tells("tor.onion", "being restarted")
        self.work.comes_back(*self.onions)

    def release(self, tor: str) -> None:
        admin = self.work.daemon.facts()["admin_url"]
        released = self.work.daemon.ronctl("service", "release", tor, "--node", admin)
        self.assertEqual(released.returncode, 0, released.stderr)

    def test_all_relays_are_lost_again_and_again(self) -> None:
        for _ in range(3):
            self.work.signal(signal.SIGKILL, *RELAYS)
            for relay in RELAYS:
                self.tells(f"tor.{relay}", "being restarted", within_s=5)
            until(lambda: not self.work.reason("tor.relay1") + self.work.reason("tor.relay2"), 30, "relays being back")
            time.sleep(5)
        self.work.comes_back(*self.onions)

    def test_every_relay_and_authority_is_lost_at_once(self) -> None:
        self.work.signal(signal.SIGKILL, *AUTHORITIES, *RELAYS)
        self.tells("tor.auth2", "being restarted", within_s=5)
        self.work.comes_back(*self.onions)

    def end_for_good(self, tor: str) -> None:
        """`tor` is killed whenever it comes up, until it is left alone; after the test it is let go again."""

        def kill() -> bool:
            pid = self.work.tors()[tor]["pid"]
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return "keeps dying" in self.work.reason(f"tor.{tor}")

        self.addCleanup(self.release, f"tor.{tor}")
        until(kill, 60, "its being left alone")

    def all_found(self, within_s: float) -> None:
        """Every onion is ready, and each of ours is reachable."""
        until(lambda: all(view["ready"] for view in self.work.listed().values()), within_s, "their being published")
        for onion in self.onions:
            until(lambda onion=onion: self.work.reachable(onion), within_s, f"{onion} being reachable")

    def test_an_authority_stays_dead(self) -> None:
        self.end_for_good("auth3")
        self.all_found(120)
        until(lambda: self.work.readiness()["ready"], 60, "readiness without it")
        self.release("tor.auth3")
        self.work.comes_back(*self.onions)

    def test_all_relays_are_lost_while_an_authority_is_dead(self) -> None:
        """Two authorities are a majority still; the relays come back, and so do the onions, without the third."""
        self.end_for_good("auth3")
        for _ in range(2):
            self.work.signal(signal.SIGKILL, *RELAYS)
            for relay in RELAYS:
                self.tells(f"tor.{relay}", "being restarted", within_s=5)
            until(lambda: not self.work.reason("tor.relay1") + self.work.reason("tor.relay2"), 30, "relays being back")
            time.sleep(15)  # what tor lost it may lose late
            self.all_found(BACK_S)
        self.release("tor.auth3")
        self.work.comes_back(*self.onions)
