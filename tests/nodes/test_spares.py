"""Spare processes, real ones: taken, replaced, dead before they were needed; none is left behind, nor a descriptor."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from ron.kernel.processes import Child, gone
from ron.nodes import spares
from ron.nodes.spares import Spares
from ron.nodes.wiring import Wiring
from ron.services.configs import NodeConfig

# What a child does, without what takes a child half a second: it waits to be told, and says what.
CHILD = """
import sys
from ron.nodes.wiring import is_spare, take
wiring, descriptors = take()
print("spare" if is_spare() else "new", wiring.process, sorted(descriptors), flush=True)
sys.stdin.read()
"""


def wiring(process: str, *listeners: str) -> Wiring:
    return Wiring(process=process, part="edge", bus="/b", word="w", run="/r", config=NodeConfig(), listeners=listeners)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class SparesTests(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.patch(spares, "REFILL_AFTER_S", 0.05)
        self.children: list[Child] = []
        settings = {k: v for k, v in os.environ.items() if k.startswith(("PYTHON", "COVERAGE_"))}
        self.spares = Spares(reactor, command=[sys.executable, "-c", CHILD], environment=settings)
        self.addCleanup(self.end)

    async def end(self) -> None:
        waiting = self.spares._spare
        self.spares.close()
        for child in [*self.children, *([waiting[0]] if waiting is not None else [])]:
            child.signal("KILL")
            await gone(child)

    def launch(self, process: str, *descriptors: int) -> Child:
        names = [f"l{number}" for number in range(len(descriptors))]
        child = self.spares.launch(wiring(process, *names), list(descriptors))
        self.children.append(child)
        return child

    async def said(self, child: Child) -> str:
        while not child.lines:
            self.assertFalse(child.ended.called)
            pause: Deferred[None] = deferLater(reactor, 0.02)
            await pause
        return child.lines[0]

    async def spare(self) -> Child:
        while self.spares._spare is None:
            pause: Deferred[None] = deferLater(reactor, 0.02)
            await pause
        return self.spares._spare[0]

    async def test_without_a_spare_a_process_is_started(self) -> None:
        self.assertEqual(await self.said(self.launch("edge")), "new edge []")
        self.assertIsNone(self.spares._spare)

    async def test_the_spare_becomes_what_it_is_told_and_is_replaced(self) -> None:
        self.spares.fill()
        first = await self.spare()
        child = self.launch("gateway.1", 1, 2)
        self.assertIs(child, first)
        self.assertEqual(await self.said(child), "spare gateway.1 ['l0', 'l1']")
        self.assertIsNot(await self.spare(), first)

    async def test_two_that_are_needed_at_once(self) -> None:
        self.spares.fill()
        words = {await self.said(child) for child in [self.launch("edge"), self.launch("hello")]}
        self.assertEqual(words, {"spare edge []", "new hello []"})

    async def test_a_spare_that_died_unnoticed_or_not(self) -> None:
        for noticed in (True, False):
            self.spares.fill()
            spare = await self.spare()
            spare.signal("KILL")
            self.children.append(spare)
            if noticed:
                await gone(spare)
            else:
                os.waitid(os.P_PID, spare.pid or 0, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - unheard
            child = self.launch("edge")
            self.assertIsNot(child, spare)
            self.assertEqual(await self.said(child), "new edge []")

    async def test_no_descriptor_is_left(self) -> None:
        await self.said(self.launch("edge"))
        before = open_descriptors()
        for _ in range(4):
            child = self.launch("edge")
            await self.said(child)
            child.signal("KILL")
            await gone(child)
        self.assertEqual(open_descriptors(), before)

    async def test_closed_it_keeps_none(self) -> None:
        self.spares.fill()
        spare = await self.spare()
        self.children.append(spare)
        self.spares.close()
        await gone(spare)
        self.spares.fill()
        self.assertIsNone(self.spares._spare)
