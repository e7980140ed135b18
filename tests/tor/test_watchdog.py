"""One tor kept running: little scripts in tor's place, and a control port that says what we want."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ron.kernel import processes as processes_module
from ron.kernel.backoff import Backoff
from ron.kernel.processes import KEPT_LINES, spawn, stop
from ron.kernel.restarts import RestartPolicy
from ron.tor import control as control_module
from ron.tor import process as process_module
from ron.tor import watchdog as watchdog_module
from ron.tor.process import TorProcess, reap_stale
from ron.tor.watchdog import WatchedTor
from tests.tor.fake_tor import FakeTor
from tests.web.wire import until

STAYS = ["/bin/sh", "-c", "exec sleep 60"]
DIES = ["/bin/sh", "-c", "echo 'Jan 01 00:00:00.000 [err] No more ports'; exit 1"]
STUBBORN = ["/bin/sh", "-c", "trap '' TERM; echo started; while :; do sleep 0.05; done"]

# a process of ours that starts a "tor" and then only runs
PARENT = """
from twisted.internet import reactor
from ron.kernel.processes import Child, spawn
told = Child(lambda line: print(process.pid, flush=True))
process = spawn(reactor, told, ["/bin/sh", "-c", "echo ready; exec sleep 60"])
reactor.run()
"""


def patient(backoff: Backoff) -> RestartPolicy:
    """One that never gives up."""
    return RestartPolicy(max_restarts=1000, backoff=backoff)


def runs(pid: int | None) -> bool:
    """Is there a process `pid` that is not a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Watched(FakeTor):
    """`watch` starts a command under the watchdog; whatever happens in the test, nothing is left after it."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(watchdog_module, "POLL_S", 0.01)
        self.ups: list[int | None] = []
        self.downs: list[str] = []
        self.on_up_fails = False

    def watch(self, command: Sequence[str], *, control_port: int | None = None, **settings: Any) -> WatchedTor:
        tor = WatchedTor(
            reactor,
            name="onion",
            command=lambda: command,
            control_port=control_port if control_port is not None else self.listen(),
            target_percent=100,
            on_up=self.came_up,
            on_down=lambda _tor, reason: self.downs.append(reason),
            policy=settings.get("policy") or patient(Backoff(base_s=0.01, ceiling_s=0.02)),
            up_timeout_s=settings.get("up_timeout_s", 20.0),
        )
        self.addCleanup(tor.stop)
        tor.start()
        return tor

    async def came_up(self, tor: WatchedTor) -> None:
        self.ups.append(tor.pid)
        if self.on_up_fails:
            raise KeyError("nobody can publish")


class Living(Watched):
    async def test_up_with_a_control_connection(self) -> None:
        tor = self.watch(STAYS)
        self.assertFalse(tor.up)
        await until(lambda: self.ups)
        self.assertTrue(tor.up)
        self.assertEqual(tor.progress.percent, 100)
        self.assertEqual(self.ups, [tor.pid])
        self.assertTrue(runs(tor.pid))
        assert tor.control is not None
        self.assertEqual((await tor.control.get_info("version"))["version"], "0.4.9.11")
        self.assertEqual((tor.restarts, self.downs), (0, []))

    async def test_not_up_before_the_target(self) -> None:
        self.answers["GETINFO status/bootstrap-phase"][0] = (
            '250-status/bootstrap-phase=NOTICE BOOTSTRAP PROGRESS=45 TAG=x SUMMARY="Half way"'
        )
        tor = self.watch(STAYS)
        await until(lambda: tor.progress.percent == 45)
        self.assertEqual((tor.up, tor.progress.summary, self.ups), (False, "Half way", []))

    async def test_stop_leaves_nothing(self) -> None:
        tor = self.watch(STAYS)
        await until(lambda: self.ups)
        pid = tor.pid
        await tor.stop()
        self.assertFalse(runs(pid))
        await deferLater(reactor, 0.05)
        self.assertEqual((tor.pid, tor.up, tor.restarts), (None, False, 0))
        self.assertEqual(self.downs, [])

    async def test_stop_before_it_is_up(self) -> None:
        tor = self.watch(STAYS, control_port=1)
        pid = tor.pid
        self.assertTrue(runs(pid))
        await tor.stop()
        self.assertFalse(runs(pid))
        self.assertEqual((self.ups, self.downs), ([], []))

    async def test_stop_twice(self) -> None:
        tor = self.watch(STAYS)
        await tor.stop()
        await tor.stop()

    async def test_one_that_does_not_heed_sigterm_is_killed(self) -> None:
        self.patch(processes_module, "KILL_AFTER_S", 0.1)
        tor = self.watch(STUBBORN)
        await until(lambda: self.ups)
        pid = tor.pid
        await tor.stop()
        self.assertFalse(runs(pid))


class Dying(Watched):
    async def test_started_again_each_time_it_dies(self) -> None:
        tor = self.watch(STAYS)
        for times in (1, 2):
            await until(lambda times=times: len(self.ups) == times)
            pid = tor.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda times=times: len(self.downs) == times)
        await until(lambda: len(self.ups) == 3)
        self.assertEqual(len(set(self.ups)), 3)
        self.assertEqual((tor.restarts, tor.up), (2, True))

    async def test_it_tells_tors_own_last_words(self) -> None:
        tor = self.watch(DIES, control_port=1)
        await until(lambda: self.downs)
        self.assertEqual((self.downs[0], tor.last_words), ("No more ports", "No more ports"))

    async def test_with_back_off_between_the_starts(self) -> None:
        delays = Backoff(base_s=0.05, ceiling_s=0.4)
        times: list[float] = []
        tor = self.watch(DIES, control_port=1, policy=patient(delays))
        for count in (1, 2, 3, 4):
            await until(lambda count=count: len(self.downs) >= count)
            times.append(reactor.seconds())
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        self.assertGreaterEqual(min(gaps), 0.05)
        self.assertEqual(self.ups, [])
        self.assertFalse(tor.up)

    async def test_stop_during_the_back_off_starts_nothing_more(self) -> None:
        tor = self.watch(DIES, control_port=1, policy=patient(Backoff(base_s=0.05, ceiling_s=0.06)))
        await until(lambda: self.downs)
        await tor.stop()
        await deferLater(reactor, 0.1)
        self.assertEqual(len(self.downs), 1)
        self.assertIsNone(tor.pid)

    async def test_one_that_keeps_dying_is_left_until_it_is_released(self) -> None:
        policy = RestartPolicy(max_restarts=2, backoff=Backoff(base_s=0.001, ceiling_s=0.002))
        tor = self.watch(DIES, control_port=1, policy=policy)
        await until(lambda: tor.quarantined)
        self.assertEqual(tor.restarts, 3)
        self.assertIn("ronctl service release tor.onion", self.downs[-1])
        await deferLater(reactor, 0.05)
        self.assertEqual(tor.restarts, 3, "it was started again without being released")
        tor.release()
        self.assertFalse(tor.quarantined)
        await until(lambda: tor.quarantined)
        self.assertEqual(tor.restarts, 6)

    async def test_stop_ends_a_quarantine(self) -> None:
        policy = RestartPolicy(max_restarts=0, backoff=Backoff(base_s=0.001, ceiling_s=0.002))
        tor = self.watch(DIES, control_port=1, policy=policy)
        await until(lambda: tor.quarantined)
        await tor.stop()
        tor.release()
        self.assertIsNone(tor.pid)

    async def test_a_program_that_is_not_there(self) -> None:
        tor = self.watch(["/no/such/tor"], control_port=1)
        await until(lambda: tor.restarts > 1)
        self.assertFalse(tor.up)

    async def test_one_that_does_not_come_up_in_time_is_started_again(self) -> None:
        tor = self.watch(STAYS, control_port=1, up_timeout_s=0.1)
        first = tor.pid
        await until(lambda: tor.restarts and tor.pid)
        self.assertFalse(runs(first))
        self.assertEqual(self.ups, [])

    async def test_one_that_hangs_while_it_starts_is_started_again(self) -> None:
        """The kernel takes connections for it, and nobody reads them."""
        self.patch(control_module, "ANSWER_TIMEOUT_S", 0.05)
        deaf = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(deaf.close)
        tor = self.watch(STAYS, control_port=deaf.getsockname()[1])
        await until(lambda: tor.restarts)
        self.assertIn("did not answer on its control port", self.downs[0])

    async def test_one_whose_control_connection_breaks_is_started_again(self) -> None:
        tor = self.watch(STAYS)
        await until(lambda: self.ups)
        first = tor.pid
        self.controllers[0].transport.abortConnection()
        await until(lambda: len(self.ups) == 2)
        self.assertFalse(runs(first))
        self.assertEqual(tor.restarts, 1)

    async def test_one_whose_onions_cannot_be_published_is_started_again(self) -> None:
        self.on_up_fails = True
        self.watch(STAYS)
        await until(lambda: len(self.ups) > 1)
        self.on_up_fails = False
        self.assertGreaterEqual(len(self.flushLoggedErrors(KeyError)), 1)


class Processes(TestCase):
    """What the watchdog stands on."""

    timeout = 20

    def spawned(self, script: str) -> TorProcess:
        process = spawn(reactor, TorProcess(), ["/bin/sh", "-c", script])
        self.addCleanup(stop, reactor, process)
        return process

    async def test_a_session_of_its_own(self) -> None:
        """Ctrl-C at our terminal is for us, not for it."""
        process = self.spawned("exec sleep 60")
        await until(lambda: process.pid and os.getsid(process.pid) == process.pid)

    async def test_nothing_of_our_environment_but_the_path(self) -> None:
        self.patch(os, "environ", {**os.environ, "RON_SECRET": "x"})
        process = self.spawned("env")
        await process.ended
        names = {line.split("=")[0] for line in process.lines}
        self.assertEqual(names - {"PWD", "OLDPWD", "SHLVL", "_"}, {"PATH", "LC_ALL"})

    async def test_stopping_what_has_ended(self) -> None:
        process = self.spawned("exit 3")
        await process.ended
        process.signal("TERM")
        await stop(reactor, process)

    def test_it_dies_with_us(self) -> None:
        """Killed without a chance to clean up, we leave no tor behind."""
        us = subprocess.Popen(
            [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        self.addCleanup(us.communicate)
        self.addCleanup(us.kill)
        assert us.stdout is not None
        child = int(us.stdout.readline())
        self.assertTrue(runs(child))
        us.kill()
        deadline = time.monotonic() + 5
        while runs(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertFalse(runs(child))


class Lines(SynchronousTestCase):
    """tor's log, cut into lines."""

    def test_pieces_become_lines(self) -> None:
        heard: list[str] = []
        process = TorProcess(heard.append)
        for piece in (b"one\ntw", b"o\n", b"\n", b"\xff\xfe\nunfinished"):
            process.outReceived(piece)
        self.assertEqual(heard, ["one", "two", "", "\ufffd\ufffd"])
        self.assertEqual(list(process.lines), heard)

    def test_only_the_last_ones_are_kept_and_none_is_endless(self) -> None:
        process = TorProcess()
        process.outReceived(b"x" * 100_000)
        self.assertLessEqual(len(process._partial), 1000)
        process.outReceived(b"\n" + b"line\n" * 500)
        self.assertEqual(len(process.lines), KEPT_LINES)

    def test_the_last_complaint_counts(self) -> None:
        process = TorProcess()
        process.outReceived(b"Jan 1 [warn] first\nJan 1 [err] second\nJan 1 [notice] bye\n")
        self.assertEqual(process.last_words(), "second")
        quiet = TorProcess()
        quiet.outReceived(b"Jan 1 [notice] bye\n")
        self.assertIsNone(quiet.last_words())


class Stale(SynchronousTestCase):
    """A tor that an earlier run of ours left behind."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.torrc = self.folder / "onion.torrc"

    def left(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """A running program with `words` on its command line, and its number in `tor.pid`."""
        script = self.folder / "tor"
        script.write_text("#!/bin/sh\nread line\n")
        script.chmod(0o755)
        process = subprocess.Popen([script, *words], stdin=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.001)
        (self.folder / "tor.pid").write_text(f"{process.pid}\n")
        return process

    def test_one_of_ours_is_killed(self) -> None:
        process = self.left("-f", self.torrc)
        # it is our own child here: somebody has to take note of its end
        self.patch(process_module.time, "sleep", lambda _s: process.poll())
        self.assertTrue(reap_stale(self.folder, self.torrc))
        self.assertEqual(process.wait(), -signal.SIGKILL)

    def test_a_stranger_with_the_same_number_is_left_alone(self) -> None:
        for words in ((), ("-f", self.folder / "other.torrc"), (f"{self.torrc}.old",)):
            process = self.left(*words)
            self.assertFalse(reap_stale(self.folder, self.torrc))
            self.assertIsNone(process.poll())
            process.kill()

    def test_nothing_to_kill(self) -> None:
        self.assertFalse(reap_stale(self.folder, self.torrc))
        for content in ("", "nonsense", "999999999", "-1"):
            (self.folder / "tor.pid").write_text(content)
            self.assertFalse(reap_stale(self.folder, self.torrc))
