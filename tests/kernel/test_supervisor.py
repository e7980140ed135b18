"""The supervisor on a clock: orders of start and stop, crashes at every moment, quarantine, and what must never be."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.bus import Bus
from ron.kernel.events import KernelEvent
from ron.kernel.health import HealthState
from ron.kernel.metrics import Metrics
from ron.kernel.supervisor import STOP_S, Supervisor, UnitStatus
from ron.kernel.unit import machine
from ron.proto.errors import ErrorCode, RonError, unavailable

ROOT = Path(__file__).resolve().parents[2]


class Lamp:
    """A unit that comes up, fails and goes out when told; it minds that it is never on twice."""

    def __init__(self, name: str, log: list[str] | None = None, *, at_once: bool = True) -> None:
        self.name = name
        self.at_once = at_once
        self.log = log if log is not None else []
        self.phase = "off"
        self.starts = 0
        self.pending: Deferred[None] | None = None
        self.crashed: Callable[[str], None] = lambda reason: None

    async def start(self, crashed: Callable[[str], None]) -> None:
        """Come up, at once or when `pending` fires."""
        assert self.phase == "off", f"{self.name} is started while it is {self.phase}"
        self.phase = "starting"
        self.starts += 1
        self.crashed = crashed
        self.log.append(f"start {self.name}")
        try:
            await self._wait()
        except BaseException:
            self.phase = "off"
            raise
        self.phase = "on"

    async def stop(self) -> None:
        """Go out, at once or when `pending` fires."""
        self.log.append(f"stop {self.name}")
        self.phase = "stopping"
        await self._wait()
        self.phase = "off"

    def abort(self) -> None:
        """Go out."""
        self.log.append(f"abort {self.name}")
        self.phase = "off"

    async def _wait(self) -> None:
        if not self.at_once:
            self.pending = Deferred()
            await self.pending

    def let(self, error: Exception | None = None) -> None:
        """What it waits for is there, or will not come."""
        pending, self.pending = self.pending, None
        assert pending is not None
        if error is None:
            pending.callback(None)
        else:
            pending.errback(error)


class SupervisorCase(SynchronousTestCase):
    """A supervisor, its bus and its clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.health = HealthState()
        self.bus = Bus(self.clock, self.metrics)
        self.supervisor = Supervisor(self.clock, self.bus, self.health, self.metrics)
        self.log: list[str] = []

    def lamp(self, name: str, *requires: str, essential: bool = False, at_once: bool = True) -> Lamp:
        """One more unit."""
        lamp = Lamp(name, self.log, at_once=at_once)
        self.supervisor.add(lamp, requires=requires, essential=essential)
        return lamp

    def start(self) -> Deferred[None]:
        """Start all."""
        return Deferred.fromCoroutine(self.supervisor.start())

    def stop(self) -> Deferred[int]:
        """Stop all."""
        return Deferred.fromCoroutine(self.supervisor.stop())

    def state(self, name: str) -> str:
        """As `ronctl service list` shows it."""
        return self.status(name).state

    def status(self, name: str) -> UnitStatus:
        """As `ronctl service list` shows it."""
        return next(status for status in self.supervisor.status() if status.name == name)

    def events(self) -> list[Any]:
        """The kernel's events so far."""
        return [message.body for message in self.bus.since(0, "kernel")]

    def crash_until_quarantined(self, lamp: Lamp) -> None:
        """Six crashes, each as soon as it is up."""
        for _ in range(6):
            lamp.crashed("disk full")
            self.clock.advance(5)
        self.assertEqual(self.state(lamp.name), "quarantined")


class BadInput(SupervisorCase):
    def test_names_that_are_none(self) -> None:
        for name in ("", "Edge", "9edge", "a b", "edge\n", "x" * 64, "-"):
            with self.assertRaises(ValueError):
                self.lamp(name)

    def test_a_name_that_is_taken(self) -> None:
        self.lamp("edge")
        with self.assertRaises(RonError) as caught:
            self.lamp("edge")
        self.assertIs(caught.exception.code, ErrorCode.CONFLICT)

    def test_what_it_requires_comes_first(self) -> None:
        """So there are no circles."""
        with self.assertRaises(ValueError):
            self.lamp("edge", "store")
        with self.assertRaises(ValueError):
            self.lamp("edge", "edge")

    def test_releasing_what_is_unknown(self) -> None:
        with self.assertRaises(RonError) as caught:
            self.supervisor.release("edge")
        self.assertIs(caught.exception.code, ErrorCode.NOT_FOUND)

    def test_nothing_to_do(self) -> None:
        self.successResultOf(self.start())
        self.assertEqual(self.successResultOf(self.stop()), 0)


class Order(SupervisorCase):
    def test_after_what_it_requires_and_otherwise_together(self) -> None:
        store, tor = self.lamp("store", at_once=False), self.lamp("tor", at_once=False)
        self.lamp("mailbox", "store")
        self.lamp("edge", "store", "tor")
        starting = self.start()
        self.assertEqual(self.log, ["start store", "start tor"])
        store.let()
        self.assertEqual(self.log[2:], ["start mailbox"])
        self.assertNoResult(starting)
        tor.let()
        self.assertEqual(self.log[3:], ["start edge"])
        self.successResultOf(starting)

    def test_in_reverse_at_the_end(self) -> None:
        lamps = [self.lamp("store"), self.lamp("mailbox", "store"), self.lamp("edge", "store"), self.lamp("tor")]
        self.successResultOf(self.start())
        self.log.clear()
        for lamp in lamps:
            lamp.at_once = False
        stopping = self.stop()
        self.assertEqual(sorted(self.log), ["stop edge", "stop mailbox", "stop tor"])
        lamps[1].let()
        self.assertNotIn("stop store", self.log)
        lamps[2].let()
        self.assertIn("stop store", self.log)
        lamps[0].let()
        self.assertNoResult(stopping)
        lamps[3].let()
        self.assertEqual(self.successResultOf(stopping), 0)

    def test_who_requires_what_failed_is_started_all_the_same(self) -> None:
        """It answers 503 until the other is back; it must not be missing because of it."""
        store = self.lamp("store", at_once=False)
        self.lamp("mailbox", "store")
        starting = self.start()
        store.let(unavailable("disk full"))
        self.successResultOf(starting)
        self.assertEqual((self.state("store"), self.state("mailbox")), ("waiting", "up"))

    def test_readiness_and_health_follow(self) -> None:
        lamp = self.lamp("edge", at_once=False)
        self.assertEqual(self.health.snapshot().missing, ("service.edge",))
        self.start()
        self.assertFalse(self.health.snapshot().ready)
        self.assertEqual(self.events(), [])
        lamp.let()
        self.assertTrue(self.health.snapshot().ready)
        lamp.at_once = True
        self.stop()
        self.assertEqual(self.health.snapshot().reasons, {"service.edge": "it is stopped"})
        self.assertEqual(self.events(), [KernelEvent.Health("edge", True), KernelEvent.Health("edge", False)])


class Crash(SupervisorCase):
    def test_when_up(self) -> None:
        lamp = self.lamp("edge")
        self.start()
        lamp.crashed("disk full")
        self.assertEqual((self.state("edge"), self.log[-1]), ("waiting", "abort edge"))
        self.assertIn("disk full", self.health.snapshot().reasons["service.edge"])
        self.clock.advance(0.2)
        self.assertEqual(self.status("edge"), UnitStatus(name="edge", state="up", restarts=1, reason="disk full"))
        self.assertEqual(self.metrics.registry.get_sample_value("service_restarts_total", {"service": "edge"}), 1)
        up, down = KernelEvent.Health("edge", True), KernelEvent.Health("edge", False)
        self.assertEqual(self.events(), [up, KernelEvent.ServiceCrashed("edge", "disk full"), down, up])

    def test_while_it_starts(self) -> None:
        lamp = self.lamp("edge", at_once=False)
        starting = self.start()
        lamp.crashed("no port")
        self.successResultOf(starting)
        self.assertEqual((self.state("edge"), lamp.phase), ("waiting", "off"))
        self.clock.advance(0.2)
        lamp.let()
        self.assertEqual((self.state("edge"), lamp.starts), ("up", 2))

    def test_before_the_first_await_of_its_start(self) -> None:
        """What is left of that start must not go on beside the next."""

        class Hasty(Lamp):
            async def start(self, crashed: Callable[[str], None]) -> None:
                if self.starts == 0:
                    self.starts += 1
                    crashed("no port")
                    self.phase = "starting"
                    try:
                        await Deferred()
                    finally:
                        self.phase = "off"
                await super().start(crashed)

        lamp = Hasty("edge")
        self.supervisor.add(lamp)
        self.successResultOf(self.start())
        self.clock.advance(0.2)
        self.assertEqual((self.state("edge"), lamp.phase, lamp.starts), ("up", "on", 2))

    def test_a_start_that_fails_by_accident(self) -> None:
        lamp = self.lamp("edge", at_once=False)
        starting = self.start()
        lamp.let(ValueError("boom"))
        self.successResultOf(starting)
        self.assertEqual((self.state("edge"), self.status("edge").reason), ("waiting", "ValueError: boom"))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_a_start_that_fails_with_our_own_error_tells_the_way_out(self) -> None:
        lamp = self.lamp("edge", at_once=False)
        self.start()
        lamp.let(unavailable("no port", hint="free it"))
        self.assertEqual(self.status("edge").reason, "no port; fix: free it")

    def test_what_it_says_while_it_dies_tells_no_secret(self) -> None:
        lamp = self.lamp("lamp")
        heard = self.bus.subscribe("kernel", name="test")
        self.start()
        lamp.crashed("exit code 1 (KeyError: Authorization: Bearer AgELbG9jYWxob3N0AgRhYmNkAAAGIHh5eg)" + "x" * 10_000)
        reasons = [self.status("lamp").reason, self.health.snapshot().reasons["service.lamp"]]
        reasons += [message.body.reason for message in iter(heard.take, None) if hasattr(message.body, "reason")]
        self.assertEqual(len(reasons), 3)
        for reason in reasons:
            self.assertIn("exit code 1", reason)
            self.assertNotIn("AgEL", reason)
            self.assertLess(len(reason), 3000)

    def test_a_start_that_was_cancelled_from_within(self) -> None:
        lamp = self.lamp("edge", at_once=False)
        starting = self.start()
        lamp.let(CancelledError())
        self.successResultOf(starting)
        self.assertEqual(self.state("edge"), "waiting")
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)

    def test_a_start_that_never_ends(self) -> None:
        lamp = self.lamp("edge", at_once=False)
        starting = self.start()
        self.clock.advance(120)
        self.successResultOf(starting)
        self.assertEqual((self.state("edge"), lamp.phase), ("waiting", "off"))
        self.assertIn("in time", self.status("edge").reason)

    def test_while_it_waits_nothing_more_happens(self) -> None:
        lamp = self.lamp("edge")
        self.start()
        lamp.crashed("first")
        lamp.crashed("again")
        self.assertEqual((self.status("edge").reason, self.status("edge").restarts), ("first", 1))

    def test_a_late_word_about_an_earlier_run(self) -> None:
        lamp = self.lamp("edge")
        self.start()
        earlier = lamp.crashed
        lamp.crashed("first")
        self.clock.advance(0.2)
        earlier("late")
        self.assertEqual((self.state("edge"), self.status("edge").reason), ("up", "first"))

    def test_a_unit_that_cannot_even_be_cut_off(self) -> None:
        lamp = self.lamp("edge")
        self.start()
        lamp.abort = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        lamp.crashed("disk full")
        self.assertEqual(self.state("edge"), "waiting")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class Quarantine(SupervisorCase):
    def test_the_sixth_crash_of_a_minute(self) -> None:
        lamp = self.lamp("edge")
        self.start()
        self.crash_until_quarantined(lamp)
        self.assertEqual((lamp.starts, self.status("edge").restarts), (6, 5))
        self.assertIn("ronctl service release edge", self.health.snapshot().reasons["service.edge"])
        self.assertEqual(self.metrics.registry.get_sample_value("quarantined_services"), 1)
        self.clock.advance(3600)
        self.assertEqual((self.state("edge"), lamp.starts), ("quarantined", 6))

    def test_released_it_tries_again_with_a_clean_sheet(self) -> None:
        lamp = self.lamp("edge")
        self.start()
        for _ in range(2):
            self.crash_until_quarantined(lamp)
            self.assertEqual(self.supervisor.release("edge").state, "up")
            self.assertTrue(self.health.snapshot().ready)
            self.assertEqual(self.metrics.registry.get_sample_value("quarantined_services"), 0)

    def test_releasing_what_runs_changes_nothing(self) -> None:
        lamp = self.lamp("edge")
        self.assertEqual(self.supervisor.release("edge").state, "idle")
        self.start()
        self.assertEqual(self.supervisor.release("edge").state, "up")
        lamp.crashed("once")
        self.assertEqual(self.supervisor.release("edge").state, "waiting")
        self.clock.advance(0.2)
        lamp.at_once = False
        self.stop()
        self.assertEqual(self.supervisor.release("edge").state, "stopping")
        lamp.let()
        self.assertEqual((self.supervisor.release("edge").state, lamp.starts), ("idle", 2))

    def test_stopped_in_quarantine(self) -> None:
        lamp = self.lamp("edge")
        self.start()
        self.crash_until_quarantined(lamp)
        self.assertEqual(self.successResultOf(self.stop()), 0)
        self.assertEqual(self.metrics.registry.get_sample_value("quarantined_services"), 0)


class Drained(SupervisorCase):
    def test_it_stays_down_until_it_is_released(self) -> None:
        lamp = self.lamp("a", at_once=True)
        self.successResultOf(self.start())
        self.supervisor.drain("a")
        self.assertEqual((self.state("a"), lamp.phase), ("idle", "off"))
        self.assertIn("service.a", self.health.snapshot().missing)
        self.clock.advance(1000)
        self.assertEqual(lamp.starts, 1)
        self.supervisor.release("a")
        self.assertEqual((self.state("a"), lamp.starts), ("up", 2))
        self.successResultOf(self.stop())

    def test_it_is_not_released_while_it_stops(self) -> None:
        lamp = self.lamp("a")
        self.successResultOf(self.start())
        lamp.at_once = False
        self.supervisor.drain("a")
        with self.assertRaises(RonError) as refused:
            self.supervisor.release("a")
        self.assertEqual(refused.exception.code, ErrorCode.CONFLICT)
        lamp.let()
        lamp.at_once = True
        self.supervisor.release("a")
        self.assertEqual(self.state("a"), "up")

    def test_what_is_unknown(self) -> None:
        with self.assertRaises(RonError) as refused:
            self.supervisor.drain("b")
        self.assertEqual(refused.exception.code, ErrorCode.NOT_FOUND)


class Essential(SupervisorCase):
    def test_its_first_error_is_the_supervisors(self) -> None:
        lamp = self.lamp("store", essential=True, at_once=False)
        error = unavailable("disk full")
        starting = self.start()
        lamp.let(error)
        self.assertIs(self.failureResultOf(starting, RonError).value, error)

    def test_it_ends_while_it_starts(self) -> None:
        lamp = self.lamp("store", essential=True, at_once=False)
        starting = self.start()
        lamp.crashed("killed")
        self.assertIn("killed", self.failureResultOf(starting, RonError).value.message)

    def test_what_is_not_essential_may_fail(self) -> None:
        lamp = self.lamp("edge", at_once=False)
        starting = self.start()
        lamp.let(unavailable("no port"))
        self.successResultOf(starting)

    def test_a_later_crash_is_an_ordinary_one(self) -> None:
        lamp = self.lamp("store", essential=True)
        self.successResultOf(self.start())
        lamp.crashed("disk full")
        self.assertEqual(self.state("store"), "waiting")


class Stopping(SupervisorCase):
    def test_during_the_start(self) -> None:
        store = self.lamp("store", at_once=False)
        self.lamp("mailbox", "store")
        starting, stopping = self.start(), self.stop()
        self.assertEqual(self.log, ["start store", "stop store"])
        store.let()
        self.assertEqual(self.successResultOf(stopping), 0)
        self.successResultOf(starting)
        self.assertEqual((self.state("store"), self.state("mailbox")), ("idle", "idle"))

    def test_whoever_gave_up_waiting_for_the_start_does_not_hear_that_it_went_well(self) -> None:
        lamp = self.lamp("lamp", at_once=False)
        self.lamp("other", "lamp")
        starting = self.start()
        starting.cancel()
        self.failureResultOf(starting, CancelledError)
        self.assertEqual(lamp.phase, "starting", "ending it is for `stop`")
        lamp.at_once = True
        self.successResultOf(self.stop())
        self.assertEqual((self.state("lamp"), self.state("other")), ("idle", "idle"))

    def test_before_the_start(self) -> None:
        lamp = self.lamp("edge")
        self.assertEqual(self.successResultOf(self.stop()), 0)
        self.successResultOf(self.start())
        self.assertEqual(lamp.starts, 0)

    def test_while_it_waits(self) -> None:
        lamp = self.lamp("edge")
        self.start()
        lamp.crashed("once")
        self.assertEqual(self.successResultOf(self.stop()), 0)
        self.clock.advance(60)
        self.assertEqual((lamp.starts, self.clock.getDelayedCalls()), (1, []))

    def test_twice(self) -> None:
        lamp = self.lamp("edge")
        self.start()
        lamp.at_once = False
        both = [self.stop(), self.stop()]
        lamp.let()
        self.assertEqual([self.successResultOf(each) for each in both], [0, 0])
        self.assertEqual(self.log.count("stop edge"), 1)

    def test_past_its_deadline_it_is_cut_off_and_counted(self) -> None:
        lamp, other = self.lamp("edge"), self.lamp("store")
        self.start()
        lamp.at_once = False
        stopping = self.stop()
        self.clock.advance(STOP_S - 0.1)
        self.assertNoResult(stopping)
        self.clock.advance(0.2)
        self.assertEqual(self.successResultOf(stopping), 1)
        self.assertEqual((lamp.phase, other.phase, self.supervisor.aborted), ("off", "off", 1))
        self.assertEqual(self.metrics.registry.get_sample_value("tasks_aborted_total", {"kind": "edge"}), 1)

    def test_the_deadline_holds_for_who_minds_no_cancelling(self) -> None:
        class Stubborn(Lamp):
            async def stop(self) -> None:
                while self.phase == "on":
                    try:
                        await Deferred()
                    except CancelledError:
                        continue

        lamp = Stubborn("edge", self.log)
        self.supervisor.add(lamp)
        self.start()
        stopping = self.stop()
        self.clock.advance(STOP_S)
        self.assertEqual(self.successResultOf(stopping), 1)
        self.assertEqual((self.state("edge"), self.log[-1]), ("idle", "abort edge"))

    def test_a_stop_that_fails_is_cut_off(self) -> None:
        lamp = self.lamp("edge")
        self.start()
        lamp.at_once = False
        stopping = self.stop()
        lamp.let(ValueError("boom"))
        self.assertEqual(self.successResultOf(stopping), 1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_what_crashes_while_others_are_stopping_stays_down(self) -> None:
        store, mailbox = self.lamp("store"), self.lamp("mailbox", "store")
        self.start()
        mailbox.at_once = False
        stopping = self.stop()
        store.crashed("disk full")
        self.clock.advance(5)
        self.assertEqual((store.starts, store.phase), (1, "off"))
        mailbox.let()
        self.assertEqual(self.successResultOf(stopping), 0)

    def test_what_waits_while_others_are_stopping_stays_down(self) -> None:
        store, mailbox = self.lamp("store"), self.lamp("mailbox", "store")
        self.start()
        store.crashed("disk full")
        mailbox.at_once = False
        stopping = self.stop()
        self.clock.advance(5)
        self.assertEqual(store.starts, 1)
        mailbox.let()
        self.assertEqual(self.successResultOf(stopping), 0)

    def test_nothing_is_released_while_others_are_stopping(self) -> None:
        store, mailbox = self.lamp("store"), self.lamp("mailbox", "store")
        self.start()
        self.crash_until_quarantined(store)
        mailbox.at_once = False
        self.stop()
        self.assertEqual(self.supervisor.release("store").state, "quarantined")


REQUIRES: dict[str, tuple[str, ...]] = {"store": (), "mailbox": ("store",), "edge": ("store",)}


class SupervisorModel(RuleBasedStateMachine):
    """Three units that do whatever they like; what must hold at every moment."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.metrics = Metrics()
        self.health = HealthState()
        self.supervisor = Supervisor(self.clock, Bus(self.clock, self.metrics), self.health, self.metrics)
        self.lamps = {name: Lamp(name, at_once=False) for name in REQUIRES}
        for name, requires in REQUIRES.items():
            self.supervisor.add(self.lamps[name], requires=requires)
        self.stopped: Deferred[int] | None = None
        self.starts_at_stop: dict[str, int] = {}
        self.started = Deferred.fromCoroutine(self.supervisor.start())
        self.words: list[tuple[str, int, Callable[[str], None]]] = []

    def _pick(self, data: st.DataObject, *phases: str) -> Lamp | None:
        names = sorted(name for name, lamp in self.lamps.items() if lamp.phase in phases)
        return self.lamps[data.draw(st.sampled_from(names))] if names else None

    @rule(data=st.data(), error=st.sampled_from([None, None, unavailable("no")]))
    def it_starts_or_not(self, data: st.DataObject, error: RonError | None) -> None:
        """The outcome of a start."""
        lamp = self._pick(data, "starting")
        if lamp is not None:
            lamp.let(error)

    @rule(data=st.data())
    def it_crashes(self, data: st.DataObject) -> None:
        """Unasked."""
        lamp = self._pick(data, "starting", "on")
        if lamp is not None:
            self.words.append((lamp.name, lamp.starts, lamp.crashed))
            lamp.crashed("crash")
            assert lamp.phase != "on"

    @precondition(lambda self: self.words)
    @rule(data=st.data())
    def it_tells_late(self, data: st.DataObject) -> None:
        """A word about a run that has ended changes nothing."""
        name, _run, word = data.draw(st.sampled_from(self.words))
        before = self._status(name)
        word("late")
        assert self._status(name) == before

    @rule(seconds=st.sampled_from([0.05, 1.0, 31.0, 121.0]))
    def time_passes(self, seconds: float) -> None:
        """Delays and deadlines end."""
        self.clock.advance(seconds)

    @rule(name=st.sampled_from(sorted(REQUIRES)))
    def release(self, name: str) -> None:
        """The operator."""
        was = self._status(name).state
        now = self.supervisor.release(name).state
        assert now == ("starting" if was == "quarantined" and self.stopped is None else was)

    @precondition(lambda self: self.stopped is None)
    @rule()
    def stop(self) -> None:
        """The end."""
        self.starts_at_stop = {name: lamp.starts for name, lamp in self.lamps.items()}
        self.stopped = Deferred.fromCoroutine(self.supervisor.stop())

    @rule(data=st.data())
    def it_stops(self, data: st.DataObject) -> None:
        """The outcome of a stop."""
        lamp = self._pick(data, "stopping")
        if lamp is not None and lamp.pending is not None:
            lamp.let()

    def _status(self, name: str) -> UnitStatus:
        return next(status for status in self.supervisor.status() if status.name == name)

    @invariant()
    def readiness_agrees_with_the_state(self) -> None:
        """And the unit itself is what the state says."""
        for status in self.supervisor.status():
            assert self.health.is_ok(f"service.{status.name}") == (status.state == "up"), status
            phase = self.lamps[status.name].phase
            assert (phase == "on") == (status.state == "up"), (phase, status)
            assert (phase == "starting") == (status.state == "starting"), (phase, status)

    @invariant()
    def never_started_after_stop(self) -> None:
        """Not by a retry, not by a release."""
        if self.stopped is not None:
            assert {name: lamp.starts for name, lamp in self.lamps.items()} == self.starts_at_stop

    @invariant()
    def never_up_without_those_that_were_tried_before(self) -> None:
        """Nothing is tried before what it requires."""
        assert self.lamps["store"].starts or not (self.lamps["mailbox"].starts or self.lamps["edge"].starts)

    def teardown(self) -> None:
        """Whatever has happened: it can be stopped within its deadlines, and nothing is left."""
        if self.stopped is None:
            self.stop()
        for _ in range(len(self.lamps)):
            self.clock.advance(STOP_S + 0.1)
        assert self.stopped is not None and self.stopped.called
        assert self.started.called
        assert {status.state for status in self.supervisor.status()} == {"idle"}
        assert {lamp.phase for lamp in self.lamps.values()} == {"off"}
        assert not self.clock.getDelayedCalls()


class Model(SynchronousTestCase):
    def test_supervisor(self) -> None:
        bounds = settings(max_examples=100, stateful_step_count=40, deadline=None)
        run_state_machine_as_test(SupervisorModel, settings=bounds)


class Drawing(SynchronousTestCase):
    def test_the_table_in_the_docs_is_the_machine(self) -> None:
        text = (ROOT / "docs" / "kernel-unit-states.rst").read_text()
        table = text.partition(".. unit-states begin")[2].partition(".. unit-states end")[0]
        drawn = set(re.findall(r"^   \* - (\w+)\n     - (\w+)\n     - (\w+)$", table, re.MULTILINE)) - {
            ("state", "event", "next"),
        }
        automaton = machine.__automat_automaton__
        real = {(before.name, event, after.name) for before, event, after, _out in automaton.allTransitions()}
        self.assertEqual(sorted(drawn), sorted(real))
