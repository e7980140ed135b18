"""Ctrl-C, in real processes: the first asks, the second ends; what was to be ignored stays ignored."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from ron.kernel.processes import Child, gone, spawn
from ron.kernel.signals import IMMEDIATE_EXIT

ROOT = Path(__file__).resolve().parents[2]

# Says what it hears; drains for ever, so that only a second signal ends it.
PROGRAM = """
import sys
from twisted.internet import reactor
from ron.kernel.signals import on_hangup, wait_for_ctrl_c

def say(word):
    sys.__stdout__.write(word + "\\n")
    sys.__stdout__.flush()

def run():
    waiting = wait_for_ctrl_c(reactor)
    waiting.addCallback(lambda number: say(f"asked by {number.name}"))
    on_hangup(reactor, lambda: say("hung up"))
    if "drain" not in sys.argv:
        waiting.addCallback(lambda _none: reactor.stop())
    if "twistd" in sys.argv:
        from twisted.logger import globalLogBeginner
        globalLogBeginner.beginLoggingTo([lambda event: None])
    say("up")

reactor.callWhenRunning(run)
reactor.run()
say("drained")
"""


class CtrlC(TestCase):
    timeout = 60

    def start(self, *words: str, prefix: str = "") -> Child:
        """The program above, from a shell that first does `prefix`."""
        self.child = Child()
        command = shlex.join([sys.executable, "-c", PROGRAM, *words])
        environment = {"PYTHONPATH": str(ROOT)}
        spawn(reactor, self.child, ["/bin/sh", "-c", f"{prefix} exec {command}"], environment=environment)
        self.addCleanup(self._kill)
        return self.child

    async def _kill(self) -> None:
        self.child.signal("KILL")
        await gone(self.child)

    def make_folder(self) -> Path:
        """A new one."""
        folder = Path(self.mktemp())
        folder.mkdir()
        return folder

    async def until(self, true: Callable[[], object]) -> None:
        """Return once `true()`; the test's own timeout is the deadline."""
        while not true():
            self.assertFalse(self.child.ended.called and not true(), list(self.child.lines))
            await deferLater(reactor, 0.01)

    async def says(self, word: str) -> None:
        """Return once it has said `word`."""
        await self.until(lambda: word in self.child.lines)

    async def ends_at_once(self) -> None:
        """It is gone with the code of the second signal, and did not drain."""
        await gone(self.child)
        self.assertIn(str(IMMEDIATE_EXIT), await self.child.ended)
        self.assertNotIn("drained", self.child.lines)

    async def test_the_first_is_orderly(self) -> None:
        for name in ("INT", "TERM"):
            child = self.start()
            await self.says("up")
            child.signal(name)
            await gone(child)
            self.assertTrue(child.clean)
            self.assertEqual(list(child.lines), ["up", f"asked by SIG{name}", "drained"])

    async def test_the_second_is_immediate(self) -> None:
        for first, second in (("INT", "INT"), ("TERM", "INT"), ("INT", "TERM")):
            child = self.start("drain")
            await self.says("up")
            child.signal(first)
            await self.says(f"asked by SIG{first}")
            child.signal(second)
            await self.ends_at_once()
            self.assertIn("ended at once, as asked twice", child.lines)

    async def test_immediate_under_twistd_where_stderr_is_a_log(self) -> None:
        child = self.start("drain", "twistd")
        await self.says("up")
        child.signal("INT")
        await self.says("asked by SIGINT")
        child.signal("INT")
        await self.ends_at_once()

    async def test_immediate_when_nobody_reads_or_holds_stderr(self) -> None:
        """A full pipe must not hold it up, nor a closed one."""
        folder = self.make_folder()
        os.mkfifo(folder / "full")
        handle = os.open(folder / "full", os.O_RDWR | os.O_NONBLOCK)
        self.addCleanup(os.close, handle)
        self.assertEqual(os.write(handle, bytes(65536)), 65536)
        for prefix in (f"exec 2>{shlex.quote(str(folder / 'full'))};", "exec 2>&-;"):
            child = self.start("drain", prefix=prefix)
            await self.says("up")
            child.signal("INT")
            await self.says("asked by SIGINT")
            child.signal("INT")
            await self.ends_at_once()

    async def test_immediate_when_the_reactor_is_stuck(self) -> None:
        """Which is when people press it twice."""
        child = Child()
        self.child = child
        stuck = PROGRAM.replace('say("up")', 'say("up"); import time; reactor.callLater(0, time.sleep, 60)')
        spawn(reactor, child, [sys.executable, "-c", stuck, "drain"], environment={"PYTHONPATH": str(ROOT)})
        self.addCleanup(self._kill)
        await self.says("up")
        await deferLater(reactor, 0.1)
        for _ in range(2):
            child.signal("INT")
            await deferLater(reactor, 0.1)
        await self.ends_at_once()

    async def test_a_background_job_ignores_ctrl_c_and_minds_sigterm(self) -> None:
        child = self.start(prefix="trap '' INT;")
        await self.says("up")
        for _ in range(3):
            child.signal("INT")
        await deferLater(reactor, 0.2)
        self.assertEqual(list(child.lines), ["up"])
        child.signal("TERM")
        await gone(child)
        self.assertEqual(list(child.lines), ["up", "asked by SIGTERM", "drained"])

    async def test_each_hang_up_is_told_and_is_no_end(self) -> None:
        child = self.start()
        await self.says("up")
        for count in (1, 2):
            child.signal("HUP")
            await self.until(lambda count=count: list(child.lines).count("hung up") == count)  # type: ignore[misc]
        child.signal("INT")
        await gone(child)
        self.assertTrue(child.clean)


class Numbers(TestCase):
    def test_130_is_what_shells_use_for_ctrl_c(self) -> None:
        self.assertEqual(IMMEDIATE_EXIT, 128 + signal.SIGINT)
