"""The clock of the onions' tor, of a visitor's, of the node, of relays, or of the whole host jumps by an hour.

Needs tor and Debian's faketime. Each tor has a clock of its own that a file sets while it runs; its monotonic clock
goes on evenly, as when an operator or NTP sets a host's clock. The node, in Python, gets its own by a `sitecustomize`:
under libfaketime 0.9.10 `time.sleep` fails.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.onionwork import APP, OnionWork, end_shared, frozen, once, oniond, op_id
from tests.live.support import NO_TOR, alive, until

HOUR_S = 3600
AUTHORITIES, RELAYS = ("auth1", "auth2", "auth3"), ("relay1", "relay2")
TORS = (*AUTHORITIES, *RELAYS, "onion", "client")
NODE = "node"
# tor looks at its clock once a second; what comes of a jump shows within a few of its rounds.
SETTLE_S = 12.0
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
NO_FAKETIME = None if LIBRARY else "faketime is not installed; make test installs it"
# FORCE_MONOTONIC_FIX: without it a tor whose monotonic clock is left alone cannot start its threads.
_TOR = """#!/bin/sh
name=none
[ "$1" != -f ] || {{ name=${{2##*/}}; name=${{name%.torrc}}; }}
export LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={clocks}/$name FAKETIME_CACHE_DURATION=1
export DONT_FAKE_MONOTONIC=1 FAKETIME_FORCE_MONOTONIC_FIX=0 NO_FAKE_STAT=1
exec {tor} "$@"
"""
_PYTHON = """import time
_true = time.time
def _false():
    with open({file!r}) as ahead:
        return _true() + float(ahead.read() or 0)
time.time = _false
time.time_ns = lambda: int(_false() * 1e9)
"""


class Clocks:
    """One for each tor, and the node's. All are right to begin with."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ron-clocks-"))
        self.set(0, *TORS, NODE)
        self.tor = self.folder / "tor"
        self.tor.write_text(_TOR.format(library=LIBRARY, clocks=self.folder, tor=shutil.which("tor")))
        self.tor.chmod(0o755)
        (self.folder / "sitecustomize.py").write_text(_PYTHON.format(file=str(self.folder / NODE)))

    def set(self, ahead_s: int, *whose: str) -> None:
        """So far ahead of the true time from now on."""
        for name in whose:
            new = self.folder / f".{name}"
            new.write_text(f"{ahead_s:+d}\n")
            new.replace(self.folder / name)


class ClockedWork(OnionWork):
    """A `ron-oniond` whose clocks can be set; it has an onion of the config, and one of a program."""

    clocks: Clocks


def start() -> ClockedWork:
    """It runs, and both onions are there."""
    clocks = Clocks()
    made = oniond(onion=f'tor_binary = "{clocks.tor}"')
    work = ClockedWork(made.daemon, made.local)
    work.clocks = clocks
    work.at_end("rm", "-rf", str(clocks.folder))
    environment = work.daemon.environment
    path = os.pathsep.join(filter(None, [str(clocks.folder), os.environ.get("PYTHONPATH")]))
    work.daemon.environment = lambda: {**environment(), "PYTHONPATH": path}  # type: ignore[method-assign]
    work.daemon.start()
    work.create("chat")
    return work


class Jumps(SynchronousTestCase):
    """By an hour, and back: one daemon for all, each test leaves it well and its clocks right."""

    skip = NO_TOR or NO_FAKETIME

    def setUp(self) -> None:
        work = once("clocks", start)
        assert isinstance(work, ClockedWork)
        self.work = work
        self.onions = [view["onion"] for view in work.listed().values() if view["app"] in (APP, "chat")]
        self.assertEqual(len(self.onions), 2)
        self.addCleanup(work.clocks.set, 0, *TORS, NODE)
        until(work.is_well, 60, "all being well before")

    def jump(self, ahead_s: int, *whose: str) -> None:
        """Its clock is set; after a while all is well, and both onions are where they were."""
        self.work.clocks.set(ahead_s, *whose)
        time.sleep(SETTLE_S)
        self.well()

    def well(self) -> None:
        self.work.comes_back(*self.onions)
        self.assertLessEqual(set(self.onions), {view["onion"] for view in self.work.listed().values()})

    def lost(self, *tors: str) -> None:
        """These are killed, and come up with their clock as wrong as it is."""
        before = {tor: self.work.pid(tor) for tor in tors}
        self.work.signal(signal.SIGKILL, *tors)
        for tor in tors:
            until(lambda tor=tor: self.work.pid(tor) != before[tor], 30, f"{tor} being started again")
        self.well()

    def test_the_clocks_are_those_of_the_tors(self) -> None:
        """What the others stand on: a tor whose clock is set notices, and no other does."""
        with self.events("onion") as onions, self.events("client") as clients:
            self.work.clocks.set(HOUR_S, "onion")
            onions.settimeout(20)
            heard = b""
            while b"CLOCK_JUMPED" not in heard:
                heard += onions.recv(4096)
            jumped_s = int(heard.partition(b"CLOCK_JUMPED TIME=")[2].split()[0])
            self.assertLess(abs(jumped_s - HOUR_S), 5)
            clients.settimeout(2)
            with self.assertRaises(TimeoutError):
                clients.recv(4096)
        self.jump(0, "onion")

    @contextlib.contextmanager
    def events(self, tor: str) -> Iterator[socket.socket]:
        """What `tor` says of its own state from now on."""
        cookie = (self.work.tornet / tor / "control_auth_cookie").read_bytes()
        with socket.create_connection(("127.0.0.1", self.work.tors()[tor]["control_port"]), timeout=20) as control:
            control.sendall(f"AUTHENTICATE {cookie.hex()}\r\nSETEVENTS STATUS_GENERAL\r\n".encode())
            said = b""
            while said.count(b"250 OK\r\n") < 2:
                said += control.recv(4096)
            yield control

    def test_the_onions_tor_ahead(self) -> None:
        for ahead_s in (HOUR_S, 0):
            self.jump(ahead_s, "onion", NODE)
            self.lost("onion")

    def test_the_onions_tor_behind(self) -> None:
        """It could publish once, and then no more until the time period ends: it is not let, and readiness tells."""
        self.work.clocks.set(-HOUR_S, "onion", NODE)
        self.behind()
        self.jump(0, "onion", NODE)
        self.lost("onion")

    def test_the_visitors_tor_alone(self) -> None:
        for ahead_s in (HOUR_S, 0, -HOUR_S):
            self.jump(ahead_s, "client")
        self.lost("client")
        self.jump(0, "client")

    def test_a_relay_and_an_authority(self) -> None:
        for ahead_s in (HOUR_S, 0, -HOUR_S, 0):
            self.jump(ahead_s, "relay1", "auth1")

    def test_the_nodes_own_timers(self) -> None:
        """Set back, the node must not wait an hour for them: a tor that hangs is noticed all the same."""
        for ahead_s in (HOUR_S, 0, -HOUR_S):
            self.work.clocks.set(ahead_s, NODE)
            time.sleep(SETTLE_S)
            if ahead_s < 0:
                self.behind()  # its tor is not, but it cannot know: on one host there is one clock
            else:
                self.well()
            before = self.work.pid()
            with frozen(self.work, "onion"):
                until(lambda: "did not answer" in self.work.reason("tor.onion"), 20, "readiness telling of it")
            self.assertFalse(alive(before))
        self.jump(0, NODE)

    def behind(self) -> None:
        """The network is there, nothing is published, and readiness says why."""
        until(lambda: "clock of this host is behind" in self.work.reason(f"onion.{APP}"), 60, "readiness telling of it")
        self.assertLessEqual(set(self.onions), {view["onion"] for view in self.work.listed().values()})

    def test_an_act_is_remembered_over_it(self) -> None:
        """The same op_id is the same act, on either side of a jump; and a capability of the operator's goes on."""
        body = self.work.creation("before")
        made = self.work.call("POST", "/v1/onions", body).json()
        for ahead_s in (-HOUR_S, HOUR_S, 0):
            self.work.clocks.set(ahead_s, NODE)
            time.sleep(SETTLE_S)
            self.assertEqual(self.work.call("POST", "/v1/onions", body).json()["id"], made["id"])
        gone = self.work.call("DELETE", f"/v1/onions/{made['id']}", {"op_id": op_id()})
        self.assertEqual(gone.status, 200)
        self.well()

    def test_the_whole_host(self) -> None:
        """What an operator does who sets the clock right, and what NTP does once at the start."""
        for ahead_s in (HOUR_S, 0, -HOUR_S):
            self.jump(ahead_s, *TORS, NODE)
            self.lost("onion", "client")
            new = self.work.create(f"new{ahead_s % 7}")
            until(lambda new=new: self.work.reachable(new["onion"]), 60, "a new one being reachable")
        self.jump(0, *TORS, NODE)

    def tearDown(self) -> None:
        if self._testMethodName == "test_the_whole_host":
            end_shared()
