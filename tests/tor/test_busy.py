"""A tor that does not answer: frozen, it is started anew; busy with its onions, it is not."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase
from txtorcon import TorControlProtocol

from ron.kernel.backoff import Backoff
from ron.kernel.restarts import RestartPolicy
from ron.tor import attached as attached_module
from ron.tor import watchdog as watchdog_module
from ron.tor.attached import AttachedTor
from ron.tor.control import TorSilent
from ron.tor.process import Effort, effort
from ron.tor.watchdog import WatchedTor
from tests.tor.fake_tor import Controller, FakeTor
from tests.web.wire import until

SLEEPS = ["/bin/sh", "-c", "exec sleep 60"]
WORKS = ["/bin/sh", "-c", "while :; do :; done"]


class Efforts(SynchronousTestCase):
    """What counts as being at work."""

    def test_by_state_and_time(self) -> None:
        before = Effort("S", 10)
        for now, works in (
            (Effort("S", 10), False),
            (Effort("S", 11), True),
            (Effort("R", 10), True),
            (Effort("D", 10), True),
            (Effort("T", 11), False),
            (Effort("t", 11), False),
            (Effort("Z", 11), False),
            (Effort("X", 0), False),
        ):
            self.assertEqual(now.works_since(before), works, now)

    def test_of_real_processes(self) -> None:
        child = subprocess.Popen(SLEEPS)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        os.kill(child.pid, signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        self.assertEqual(effort(child.pid).state, "T")
        self.assertEqual(effort(os.getpid()).state, "R")
        self.assertGreater(effort(os.getpid()).ticks, 0)
        self.assertEqual((effort(2**30), effort(None)), (Effort("X", 0), Effort("X", 0)))


class Silent(FakeTor):
    """It answers nothing while `silent`."""

    silent = False

    def answer(self, controller: Controller, verb: str, rest: str) -> bool:
        return self.silent


class Watching(Silent):
    def setUp(self) -> None:
        super().setUp()
        self.patch(watchdog_module, "POLL_S", 0.01)
        self.patch(watchdog_module, "PROBE_S", 0.01)
        self.patch(watchdog_module, "PROBE_TIMEOUT_S", 0.15)
        self.patch(watchdog_module, "PATIENCE", 4)
        self.ups = 0
        self.downs: list[str] = []

    async def watched(self, command: list[str]) -> WatchedTor:
        """Up, and then silent."""
        tor = WatchedTor(
            reactor,
            name="onion",
            command=lambda: command,
            control_port=self.listen(),
            target_percent=100,
            on_up=self.came_up,
            on_down=lambda _tor, reason: self.downs.append(reason),
            policy=RestartPolicy(backoff=Backoff(base_s=0.01, ceiling_s=0.02)),
        )
        self.addCleanup(tor.stop)
        tor.start()
        await until(lambda: self.ups)
        self.silent = True
        return tor

    async def came_up(self, _tor: WatchedTor) -> None:
        self.ups += 1

    async def test_one_that_does_nothing_is_started_anew_at_once(self) -> None:
        await self.watched(SLEEPS)
        await until(lambda: self.downs)
        self.assertEqual(self.downs, ["it did not answer on its control port"])

    async def test_one_that_is_stopped_is_started_anew_however_much_it_did(self) -> None:
        tor = await self.watched(WORKS)
        assert tor.pid is not None
        os.kill(tor.pid, signal.SIGSTOP)
        await until(lambda: self.downs)

    async def test_one_that_works_is_given_time(self) -> None:
        tor = await self.watched(WORKS)
        pid = tor.pid
        await deferLater(reactor, 0.3)
        self.silent = False
        for controller in self.controllers:
            controller.say("250-version=0.4.9.11", "250 OK")
        await deferLater(reactor, 0.5)
        self.assertEqual((self.downs, tor.pid, tor.up), ([], pid, True))

    async def test_but_not_for_ever(self) -> None:
        await self.watched(WORKS)
        await until(lambda: self.downs)


class Host:
    """Runs the tor `onion` at `port`."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.restarted = 0

    async def control_port(self, _name: str) -> int:
        return self.port

    async def restart(self, _name: str) -> None:
        self.restarted += 1


class Attached(Silent):
    async def test_whoever_only_uses_it_connects_anew(self) -> None:
        """All its onions would end with it, and its watch knows better."""
        self.patch(attached_module, "CEILING_S", 0.02)
        host, troubles, ups = Host(self.listen()), [TorSilent(), DeadlineError()], list[Any]()

        async def up(control: TorControlProtocol) -> None:
            ups.append(control)
            if troubles:
                raise troubles.pop(0)

        tor = AttachedTor(reactor, name="onion", host=host, on_up=up, on_down=lambda: None)
        self.addCleanup(tor.stop)
        tor.start()
        await until(lambda: len(ups) == 3)
        self.assertEqual(host.restarted, 0)
        self.assertIs(tor.control, ups[-1])
