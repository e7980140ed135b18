"""Child processes, real ones: how they end and what is told about it, in place restarts, descriptors handed on."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from ron.kernel.bus import Bus
from ron.kernel.health import HealthState
from ron.kernel.metrics import Metrics
from ron.kernel.processes import Child, Lifeline, ProcessUnit, gone, spawn, stop
from ron.kernel.supervisor import Supervisor
from ron.proto.errors import ErrorCode, RonError

ROOT = Path(__file__).resolve().parents[2]


class ProcessCase(TestCase):
    """Children that are gone after each test, whatever it was about."""

    timeout = 60

    def setUp(self) -> None:
        self.children: list[Child] = []
        self.said: list[str] = []
        self.addCleanup(self._kill_all)

    async def _kill_all(self) -> None:
        for child in self.children:
            child.signal("KILL")
            await gone(child)

    def spawn(self, script: str, **options: Any) -> Child:
        """A shell that runs `script`."""
        child = spawn(reactor, Child(self.said.append), ["/bin/sh", "-c", script], **options)
        self.children.append(child)
        return child

    def python(self, script: str, **options: Any) -> Child:
        """A Python that runs `script`."""
        child = spawn(reactor, Child(self.said.append), [sys.executable, "-c", script], **options)
        self.children.append(child)
        return child

    def make_folder(self) -> Path:
        """A new one."""
        folder = Path(self.mktemp())
        folder.mkdir()
        return folder

    async def until(self, true: Callable[[], object]) -> None:
        """Return once `true()`; the test's own timeout is the deadline."""
        while not true():
            await deferLater(reactor, 0.01)

    async def up(self, word: str = "up") -> None:
        """Return once a child has said `word`."""
        await self.until(lambda: word in self.said)


class Ends(ProcessCase):
    async def test_by_itself(self) -> None:
        child = self.spawn("echo one; echo two >&2; exit 3")
        await gone(child)
        await gone(child)
        self.assertEqual(sorted(child.lines), ["one", "two"])
        self.assertFalse(child.clean)
        self.assertIn("3", await child.ended)
        self.assertIsNone(child.pid)

    async def test_in_good_order(self) -> None:
        child = self.spawn("exit 0")
        await gone(child)
        self.assertTrue(child.clean)

    async def test_what_cannot_be_started_ends_with_a_word(self) -> None:
        child = spawn(reactor, Child(), ["/nonexistent/ron", "--now"])
        self.children.append(child)
        await gone(child)
        self.assertFalse(child.clean)
        self.assertIn("/nonexistent/ron", " ".join(child.lines))

    async def test_killed(self) -> None:
        child = self.spawn("echo up; exec sleep 60")
        await self.up()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        await gone(child)
        self.assertIn("9", await child.ended)

    async def test_signalling_what_is_gone_does_nothing(self) -> None:
        child = self.spawn("exit 0")
        await gone(child)
        child.signal("TERM")
        await stop(reactor, child)

    async def test_a_grandchild_that_holds_the_pipes_does_not_hide_the_end(self) -> None:
        child = self.spawn("sleep 60 & echo $! up; exec sleep 60")
        await self.until(lambda: any(line.endswith(" up") for line in self.said))
        grandchild = int(self.said[0].split()[0])
        self.addCleanup(_kill_if_there, grandchild)
        child.signal("KILL")
        await gone(child)
        os.kill(grandchild, 0)  # it is still there


class Words(ProcessCase):
    async def test_the_last_ones_need_no_newline(self) -> None:
        child = self.spawn("printf 'out of'; printf 'disk full' >&2; exit 1")
        await gone(child)
        self.assertEqual(sorted(child.lines), ["disk full", "out of"])

    async def test_two_streams_are_not_mixed(self) -> None:
        child = self.spawn("printf 'out '; sleep 0.1; printf 'err ' >&2; sleep 0.1; echo put; sleep 0.1; echo or >&2")
        await gone(child)
        self.assertEqual(sorted(child.lines), ["err or", "out put"])

    async def test_only_the_end_is_kept_and_no_line_is_endless(self) -> None:
        child = self.python("for n in range(1000): print(n)\nprint('x' * 3_000_000)\nprint(b'\\xff', flush=True)")
        await gone(child)
        self.assertEqual(len(child.lines), 50)
        self.assertLessEqual(max(map(len, child.lines)), 1000)
        self.assertEqual(child.lines[0], "952")

    async def test_what_is_no_text(self) -> None:
        child = self.python("import os; os.write(1, b'\\xff\\xfe ok\\n')")
        await gone(child)
        self.assertTrue(child.lines[0].endswith(" ok"))


# A daemon that has a lifeline, a child that outlives it and one that does not, and tells their numbers.
_DAEMON = """
import sys
from twisted.internet import reactor
from ron.kernel.processes import Child, Lifeline, spawn
lifeline = Lifeline(reactor, ["sleep", "1.5"])
sleepers = [spawn(reactor, Child(), ["sleep", "60"], outlives=outlives) for outlives in (True, False)]
print(lifeline.pid, *(sleeper.pid for sleeper in sleepers), "pids", flush=True)
reactor.run()
"""


class Outliving(ProcessCase):
    """A lifeline is there for a while after its daemon was killed, and so is what watches it."""

    async def test_it_outlives_a_killed_daemon_for_its_time_and_no_longer(self) -> None:
        daemon = self.python(_DAEMON, environment={"PYTHONPATH": str(ROOT)})
        await self.until(lambda: any(line.endswith("pids") for line in self.said))
        lifeline, outliving, dying = map(int, self.said[0].split()[:3])
        self.addCleanup(_kill_if_there, outliving)
        daemon.signal("KILL")
        await gone(daemon)
        await self.until(lambda: not _runs(dying))
        self.assertTrue(_runs(lifeline))
        await self.until(lambda: not _runs(lifeline))
        self.assertTrue(_runs(outliving))

    async def test_stopped_it_is_gone_at_once(self) -> None:
        lifeline = Lifeline(reactor, ["sleep", "60"])
        pid = lifeline.pid
        self.assertEqual(lifeline.pid, pid)
        await lifeline.stop()
        self.assertFalse(_runs(pid))
        await lifeline.stop()

    async def test_killed_it_is_made_anew(self) -> None:
        lifeline = Lifeline(reactor, ["sleep", "60"])
        self.addCleanup(lifeline.stop)
        pid = lifeline.pid
        os.kill(pid, signal.SIGKILL)
        await self.until(lambda: lifeline.pid != pid)
        self.assertTrue(_runs(lifeline.pid))


class Surroundings(ProcessCase):
    async def test_descriptors_are_handed_on_as_3_and_4(self) -> None:
        folder = self.make_folder()
        (folder / "a").write_text("first")
        (folder / "b").write_text("second")
        handles = [os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC) for name in "ab"]
        self.addCleanup(lambda: [os.close(handle) for handle in handles])
        child = self.python("import os; print(os.read(3, 9), os.read(4, 9))", descriptors=handles)
        await gone(child)
        self.assertEqual(child.lines[-1], "b'first' b'second'")

    async def test_nothing_else_is_handed_on(self) -> None:
        """A listening socket that leaks into a child would stay open after us."""
        leak = os.open("/dev/null", os.O_RDONLY)
        os.set_inheritable(leak, True)
        self.addCleanup(os.close, leak)
        child = self.python("import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])")
        await gone(child)
        self.assertEqual(child.lines[-1], "[0, 1, 2]")

    async def test_its_environment_is_what_it_was_given(self) -> None:
        os.environ["RON_TEST_SECRET"] = "s"
        self.addCleanup(os.environ.pop, "RON_TEST_SECRET")
        child = self.spawn("env", environment={"RON_HOME": "/x"})
        await gone(child)
        names = {line.partition("=")[0] for line in child.lines}
        self.assertIn("RON_HOME", names)
        self.assertNotIn("RON_TEST_SECRET", names)

    async def test_a_session_of_its_own(self) -> None:
        """Ctrl-C in our terminal is for us."""
        child = self.python("import os; print(os.getsid(0) == os.getpid())")
        await gone(child)
        self.assertEqual(child.lines[-1], "True")


class Stopping(ProcessCase):
    async def test_sigterm_is_enough_for_who_listens(self) -> None:
        child = self.spawn("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.02; done")
        await self.up()
        await stop(reactor, child, kill_after_s=15)
        self.assertEqual((child.clean, child.lines[-1]), (True, "bye"))

    async def test_sigkill_for_who_does_not(self) -> None:
        child = self.spawn("trap '' TERM; echo up; while :; do sleep 0.02; done")
        await self.up()
        await stop(reactor, child, kill_after_s=0.2)
        self.assertIn("9", await child.ended)

    async def test_a_stop_that_is_given_up_kills_nobody_later(self) -> None:
        child = self.spawn("trap '' TERM; echo up; while :; do sleep 0.02; done")
        await self.up()
        stopping = Deferred.fromCoroutine(stop(reactor, child, kill_after_s=0.1))
        stopping.cancel()
        await self.assertFailure(stopping, CancelledError)
        await deferLater(reactor, 0.2)
        self.assertIsNotNone(child.pid)


class UnitCase(ProcessCase):
    """A child under the supervisor."""

    def unit(self, script: str, ready: Callable[[], Awaitable[None]] | None = None, **options: Any) -> ProcessUnit:
        """A shell as a unit; up once it has said so."""

        def launch(on_line: Callable[[str], None]) -> Child:
            child = self.spawn(script)
            child.on_line = lambda line: (self.said.append(line), on_line(line))[0]
            return child

        return ProcessUnit(reactor, "edge", launch=launch, ready=ready or self._said_up, **options)

    async def _said_up(self) -> None:
        await self.up()
        self.said.remove("up")


class Units(UnitCase):
    async def test_one_that_ends_before_it_is_up(self) -> None:
        with self.assertRaises(RonError) as caught:
            await self.unit("echo starting; echo 'port 80 is taken' >&2; exit 4").start(self.fail)
        self.assertIs(caught.exception.code, ErrorCode.STORE_UNAVAILABLE)
        self.assertIn("4", caught.exception.message)
        self.assertIn("port 80 is taken", caught.exception.message)

    async def test_an_end_that_its_readiness_does_not_mind(self) -> None:
        """A wait that swallows its cancelling must not make a dead process one that is up."""

        async def whatever() -> None:
            with contextlib.suppress(CancelledError):
                await Deferred()

        with self.assertRaises(RonError):
            await self.unit("exit 4", whatever).start(self.fail)

    async def test_readiness_that_fails_is_the_error(self) -> None:
        async def broken() -> None:
            raise ZeroDivisionError

        unit = self.unit("exec sleep 60", broken)
        with self.assertRaises(ZeroDivisionError):
            await unit.start(lambda _reason: None)
        unit.abort()
        await gone(self.children[0])

    async def test_killed_when_up(self) -> None:
        crashes: list[str] = []
        unit = self.unit("echo up; echo 'about to fail'; exec sleep 60")
        await unit.start(crashes.append)
        await self.up("about to fail")
        assert unit.pid is not None
        os.kill(unit.pid, signal.SIGKILL)
        await self.until(lambda: crashes)
        self.assertIn("9", crashes[0])
        self.assertIn("about to fail", crashes[0])
        self.assertIsNone(unit.pid)

    async def test_an_end_in_good_order_is_a_crash_as_well(self) -> None:
        crashes: list[str] = []
        await self.unit("echo up; sleep 0.3; exit 0").start(crashes.append)
        await self.until(lambda: crashes)

    async def test_stopped_in_order_and_started_again(self) -> None:
        unit = self.unit("trap 'exit 0' TERM; echo up; while :; do sleep 0.02; done")
        for _ in range(2):
            await unit.start(lambda _reason: None)
            await unit.stop()
            self.assertIsNone(unit.pid)
        await unit.stop()
        self.assertTrue(all(child.clean for child in self.children))

    async def test_started_again_only_when_the_one_before_is_gone(self) -> None:
        """Its port and its lock are free then."""
        folder = self.make_folder()
        unit = self.unit(f"mkdir {folder}/lock || exit 9; echo up; exec sleep 60")
        await unit.start(lambda _reason: None)
        self.children[0].ended.addCallback(lambda reason: ((folder / "lock").rmdir(), reason)[1])
        unit.abort()
        await unit.start(lambda _reason: None)
        self.assertIsNotNone(unit.pid)

    async def test_a_start_that_is_given_up_is_stopped_like_any_other(self) -> None:
        unit = self.unit("exec sleep 60")
        starting = Deferred.fromCoroutine(unit.start(lambda _reason: None))
        await self.until(lambda: unit.pid)
        starting.cancel()
        await self.assertFailure(starting, CancelledError)
        await unit.stop()
        self.assertIsNone(unit.pid)


class Supervised(UnitCase):
    """The whole of it: `kill -9`, and it is back."""

    async def test_killed_it_is_back_at_once(self) -> None:
        health, metrics = HealthState(), Metrics()
        supervisor = Supervisor(reactor, Bus(reactor, metrics), health, metrics)
        supervisor.add(self.unit("echo up; exec sleep 60"))
        await supervisor.start()
        self.addCleanup(supervisor.stop)
        first = supervisor.status()[0]
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        await self.until(lambda: supervisor.status()[0].state != "up")
        self.assertFalse(health.snapshot().ready)
        await self.until(lambda: supervisor.status()[0].state == "up")
        second = supervisor.status()[0]
        self.assertNotEqual(second.pid, first.pid)
        self.assertEqual(second.restarts, 1)
        self.assertIn("9", second.reason)
        self.assertEqual(await supervisor.stop(), 0)
        self.assertIsNone(supervisor.status()[0].pid)


def _kill_if_there(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    """Is there a process of that number that is not merely waiting to be reaped?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
