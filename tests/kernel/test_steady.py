"""Timers of a reactor that was made steady: the wall clock may be set as it likes."""

from __future__ import annotations

import time

from twisted.internet import base
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import LoopingCall
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.steady import steady

HOUR_S = 3600.0


class Jumps(SynchronousTestCase):
    """A reactor of our own, turned by hand, with a wall clock that we set."""

    def setUp(self) -> None:
        self.wall_s = self.even_s = 1_800_000_000.0
        self.patch(base.ReactorBase, "seconds", lambda _reactor: self.wall_s)
        self.patch(time, "monotonic", lambda: self.even_s - 1_799_999_000.0)
        self.reactor = SelectReactor()
        self.addCleanup(self.reactor.removeAll)
        self.called: list[str] = []

    def go_on(self, seconds: float, *, jump_s: float = 0.0) -> None:
        self.wall_s += seconds + jump_s
        self.even_s += seconds
        self.reactor.runUntilCurrent()

    def test_unsteady_it_waits_an_hour_longer(self) -> None:
        """Why this is needed."""
        self.reactor.callLater(1, self.called.append, "now")
        self.go_on(2, jump_s=-HOUR_S)
        self.assertEqual(self.called, [])

    def test_set_back(self) -> None:
        self.reactor.callLater(1, self.called.append, "set before")
        steady(self.reactor)
        self.reactor.callLater(1.5, self.called.append, "set after")
        self.go_on(2, jump_s=-HOUR_S)
        self.assertEqual(self.called, ["set before", "set after"])

    def test_set_forward(self) -> None:
        steady(self.reactor)
        deadline = self.reactor.callLater(5, self.called.append, "too late")
        self.go_on(1, jump_s=HOUR_S)
        self.assertEqual(self.called, [])
        deadline.reset(2)
        self.go_on(3)
        self.assertEqual(self.called, ["too late"])

    def test_what_is_done_every_second_goes_on(self) -> None:
        steady(self.reactor)
        ticking = LoopingCall(self.called.append, "tick")
        ticking.clock = self.reactor
        ticking.start(1, now=False)
        self.addCleanup(ticking.stop)
        for jump_s in (0.0, -HOUR_S, HOUR_S, 0.0):
            self.go_on(1, jump_s=jump_s)
        self.assertEqual(len(self.called), 4)

    def test_seconds_are_those_of_the_wall_to_begin_with(self) -> None:
        """Whoever compares them with a Unix time right at the start is not surprised."""
        steady(self.reactor)
        self.assertEqual(self.reactor.seconds(), self.wall_s)
        self.go_on(10, jump_s=-HOUR_S)
        self.assertEqual(self.reactor.seconds(), self.even_s)
        steady(self.reactor)
        self.go_on(1)
        self.assertEqual(self.reactor.seconds(), self.even_s, "twice is once")
