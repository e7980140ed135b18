"""Commands: one reply each, at its deadline at the latest; a full queue says so; nothing waits for what has ended."""

from __future__ import annotations

import sys
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.bus import Bus
from ron.kernel.commands import Busy, Command
from ron.kernel.metrics import Metrics
from ron.proto.errors import ErrorCode, RonError, conflict


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes, a time and a number, as a service may answer them."""

    raw: bytes
    at: datetime
    key: uuid.UUID
    count: int = 0


class StrictClock(Clock):
    """Refuses what the reactor refuses."""

    def callLater(self, when: float, what: Callable[..., Any], *a: object, **kw: object) -> Any:
        """As `IReactorTime.callLater`."""
        assert when >= 0
        return super().callLater(when, what, *a, **kw)


class CommandCase(SynchronousTestCase):
    """A bus with one service whose handlers end when the test says so."""

    def setUp(self) -> None:
        self.clock = StrictClock()
        self.metrics = Metrics()
        self.bus = Bus(self.clock, self.metrics)
        self.under_way: list[Deferred[Any]] = []
        self.cancelled = 0

    def slow(self, _command: Command) -> Deferred[Any]:
        """A handler that answers later."""

        def cancel(_work: Deferred[Any]) -> None:
            self.cancelled += 1

        work: Deferred[Any] = Deferred(cancel)
        self.under_way.append(work)
        return work

    def serve(self, handler: Callable[[Command], Any] | None = None, **options: int) -> Callable[[], None]:
        """`kms` knows the command `sign`."""
        return self.bus.serve("kms", {"sign": handler or self.slow}, **options)

    def ask(self, body: Any = None, command: str = "sign", **options: Any) -> Deferred[Any]:
        """A call to `kms`."""
        return Deferred.fromCoroutine(self.bus.call("kms", command, body, **options))

    def refused(self, call: Deferred[Any], code: ErrorCode) -> RonError:
        """The error of a call that has failed."""
        error = self.failureResultOf(call, RonError).value
        self.assertIs(error.code, code)
        return error

    def depth(self) -> float | None:
        """The gauge of what waits."""
        return self.metrics.registry.get_sample_value("queue_depth", {"queue": "kms"})


class BadInput(CommandCase):
    def test_nobody_serves_it(self) -> None:
        self.assertIn("kms", self.refused(self.ask(), ErrorCode.STORE_UNAVAILABLE).message)

    def test_an_unknown_command(self) -> None:
        self.serve()
        self.assertIn("burn", self.refused(self.ask(command="burn"), ErrorCode.NOT_FOUND).message)
        self.serve_again()

    def serve_again(self) -> None:
        """The refusal has cost no place."""
        call = self.ask()
        self.under_way[0].callback("ok")
        self.assertEqual(self.successResultOf(call), "ok")

    def test_served_twice(self) -> None:
        self.serve()
        with self.assertRaises(RonError) as caught:
            self.serve()
        self.assertIs(caught.exception.code, ErrorCode.CONFLICT)

    def test_no_time_left(self) -> None:
        """A deadline that has passed before the call is a timeout, not an accident of the clock."""
        self.serve()
        for deadline_s in (0.0, -1.0):
            call = self.ask(deadline_s=deadline_s)
            self.clock.advance(0)
            self.refused(call, ErrorCode.TIMEOUT)
        self.assertEqual(self.cancelled, 2)

    def test_a_reply_of_another_form(self) -> None:
        self.serve(lambda command: command.body)
        for body in ({"count": 1}, "x", None, [1], object()):
            error = self.refused(self.ask(body, answer=Asked), ErrorCode.STORE_UNAVAILABLE)
            self.assertIn("not understood", error.message)


class OneReply(CommandCase):
    def test_a_value_a_deferred_a_coroutine(self) -> None:
        async def later(command: Command) -> Any:
            return await self.slow(command)

        async def at_once(command: Command) -> Any:
            return command.body

        self.bus.serve("kms", {"v": lambda c: c.body, "d": self.slow, "c": later, "a": at_once}, concurrency=9)
        calls = [self.ask("x", name) for name in "vdca"]
        for work in self.under_way:
            work.callback("late")
        self.assertEqual([self.successResultOf(call) for call in calls], ["x", "late", "late", "x"])

    def test_what_the_handler_sees(self) -> None:
        seen: list[Command] = []
        self.serve(lambda command: seen.append(command))
        self.ask([1], corr_id="c-1", deadline_s=2.0)
        self.assertEqual(seen, [Command("kms", "sign", [1], "c-1", 2.0)])

    def test_the_services_own_error_reaches_the_caller(self) -> None:
        def refuse(_command: Command) -> None:
            raise conflict("there is a key of that name", hint="choose another")

        self.serve(refuse)
        self.assertEqual(self.refused(self.ask(), ErrorCode.CONFLICT).hint, "choose another")

    def test_an_accident_is_logged_and_told_without_its_words(self) -> None:
        def broken(_command: Command) -> None:
            raise ValueError("secret 123")

        async def broken_later(command: Command) -> None:
            broken(command)

        self.bus.serve("kms", {"sign": broken, "later": broken_later})
        for command in ("sign", "later"):
            error = self.refused(self.ask(command=command), ErrorCode.INTERNAL)
            self.assertNotIn("secret", error.one_line())
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_work_that_was_cancelled_by_its_own_service(self) -> None:
        """The caller was not cancelled, so it must not look to it as if it was."""
        self.serve()
        call = self.ask()
        self.under_way[0].errback(CancelledError())
        self.refused(call, ErrorCode.STORE_UNAVAILABLE)

    def test_bytes_times_and_structs_fit_the_answer(self) -> None:
        asked = Asked(raw=b"\x00\xff", at=datetime.now(tz=UTC), key=uuid.uuid4(), count=3)
        self.serve(lambda command: command.body)
        self.assertIs(self.successResultOf(self.ask(asked, answer=Asked)), asked)
        plain = msgspec.to_builtins(asked, builtin_types=(bytes,))
        self.assertEqual(self.successResultOf(self.ask(plain, answer=Asked)), asked)
        self.assertEqual(self.successResultOf(self.ask({"raw": b"\xff"}, answer=dict[str, Any])), {"raw": b"\xff"})

    def test_replies_come_in_the_order_of_the_commands(self) -> None:
        order: list[int] = []
        works: list[Deferred[int]] = [Deferred()]
        self.serve(lambda command: works[0] if command.body == 0 else command.body)
        for number in range(5):
            self.ask(number).addCallback(order.append)
        works[0].callback(0)
        self.assertEqual(order, [0, 1, 2, 3, 4])


class Deadline(CommandCase):
    def test_it_comes_while_the_service_works(self) -> None:
        self.serve()
        call = self.ask(deadline_s=2.0)
        self.clock.advance(1.9)
        self.assertNoResult(call)
        self.clock.advance(0.2)
        self.refused(call, ErrorCode.TIMEOUT)
        self.assertEqual(self.cancelled, 1)
        self.assertEqual(self.metrics.registry.get_sample_value("io_timeouts_total", {"op": "kms.sign"}), 1)

    def test_it_comes_while_the_command_waits_and_then_it_is_not_begun(self) -> None:
        self.serve()
        first, second = self.ask(deadline_s=9.0), self.ask(deadline_s=1.0)
        self.clock.advance(1.0)
        self.refused(second, ErrorCode.TIMEOUT)
        self.under_way[0].callback("done")
        self.assertEqual(self.successResultOf(first), "done")
        self.assertEqual(len(self.under_way), 1)

    def test_a_handler_that_minds_no_cancelling_keeps_its_place(self) -> None:
        """Callers that come and go must not pile up work behind the bound."""
        stubborn: list[Deferred[None]] = []

        async def dig(_command: Command) -> str:
            while True:
                stubborn.append(Deferred())
                try:
                    await stubborn[-1]
                except CancelledError:
                    continue
                return "dug"

        self.serve(dig)
        call, waiting = self.ask(deadline_s=1.0), self.ask(deadline_s=9.0)
        self.clock.advance(1.0)
        self.refused(call, ErrorCode.TIMEOUT)
        self.assertEqual(len(stubborn), 2)
        self.assertNoResult(waiting)
        stubborn[-1].callback(None)
        stubborn[-1].callback(None)
        self.assertEqual(self.successResultOf(waiting), "dug")

    def test_no_clock_is_left_running(self) -> None:
        self.serve()
        call = self.ask()
        self.under_way[0].callback(None)
        self.successResultOf(call)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Full(CommandCase):
    def test_busy_at_the_129th(self) -> None:
        self.serve()
        calls = [self.ask(number, deadline_s=60.0) for number in range(1 + 128)]
        self.assertEqual(self.depth(), 128)
        for _ in range(3):
            error = self.refused(self.ask(), ErrorCode.BACKPRESSURE)
            self.assertIsInstance(error, Busy)
            self.assertTrue(error.retryable)
        self.assertEqual(self.metrics.registry.get_sample_value("busy_rejections_total", {"queue": "kms"}), 3)
        while self.under_way:
            self.under_way.pop(0).callback("ok")
        self.assertEqual({self.successResultOf(call) for call in calls}, {"ok"})
        self.assertEqual(self.depth(), 0)

    def test_a_full_queue_of_handlers_that_answer_at_once(self) -> None:
        """Three times as many as Python's stack is deep."""
        many = 3 * sys.getrecursionlimit()
        gate: Deferred[int] = Deferred()
        self.serve(lambda command: gate if command.body == 0 else command.body, capacity=many)
        calls = [self.ask(number) for number in range(many)]
        gate.callback(0)
        self.assertEqual([self.successResultOf(call) for call in calls], list(range(many)))

    def test_a_caller_that_asks_again_in_its_reply(self) -> None:
        self.serve(lambda command: command.body)

        async def many() -> int:
            return sum([await self.bus.call("kms", "sign", number) for number in range(5000)])

        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(many())), sum(range(5000)))

    def test_callers_that_gave_up_keep_no_place(self) -> None:
        self.serve(capacity=4)
        self.ask(deadline_s=60.0)
        gone = [self.ask() for _ in range(4)]
        self.refused(self.ask(), ErrorCode.BACKPRESSURE)
        for call in gone:
            call.cancel()
            self.failureResultOf(call, CancelledError)
        self.assertNoResult(self.ask())

    def test_a_cancelled_caller_frees_the_service(self) -> None:
        self.serve()
        first, second = self.ask(), self.ask()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual((self.cancelled, len(self.under_way)), (1, 2))
        self.under_way[1].callback("ok")
        self.assertEqual(self.successResultOf(second), "ok")

    def test_no_more_than_its_concurrency_at_a_time(self) -> None:
        self.serve(concurrency=3)
        calls = [self.ask(number) for number in range(8)]
        self.assertEqual(len(self.under_way), 3)
        self.under_way[1].callback(None)
        self.successResultOf(calls[1])
        self.assertEqual(len(self.under_way), 4)


class Arrival(CommandCase):
    def arrival(self) -> Deferred[None]:
        """Of `kms`."""
        return Deferred.fromCoroutine(self.bus.arrival("kms"))

    def test_of_a_service_here(self) -> None:
        waiting = [self.arrival(), self.arrival()]
        self.bus.serve("other", {})
        self.assertNoResult(waiting[0])
        self.serve()
        for each in (*waiting, self.arrival()):
            self.successResultOf(each)

    def test_of_one_elsewhere(self) -> None:
        class There:
            def carry(self, _command: Command) -> Deferred[Any]:
                return Deferred()

        waiting = self.arrival()
        self.bus.attach(["kms"], There())
        self.successResultOf(waiting)

    def test_given_up(self) -> None:
        waiting = self.arrival()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.serve()

    def test_given_up_at_the_moment_it_comes(self) -> None:
        first, second = self.arrival(), self.arrival()
        second.addErrback(lambda failure: failure.trap(CancelledError))
        first.addCallback(lambda _none: second.cancel())
        self.serve()
        self.successResultOf(first)


class Ending(CommandCase):
    def test_everyone_who_waits_is_told(self) -> None:
        end = self.serve()
        calls = [self.ask(number) for number in range(5)]
        end()
        for call in calls:
            self.refused(call, ErrorCode.STORE_UNAVAILABLE)
        self.under_way[0].callback("too late")
        self.assertEqual((len(self.under_way), self.depth()), (1, 0))
        self.refused(self.ask(), ErrorCode.STORE_UNAVAILABLE)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_end_of_one_is_not_the_end_of_the_next(self) -> None:
        end = self.serve()
        end()
        self.serve(lambda _command: "new")
        end()
        self.assertEqual(self.successResultOf(self.ask()), "new")

    def test_a_service_that_ends_itself_in_a_command(self) -> None:
        ends: list[Callable[[], None]] = []
        ends.append(self.serve(lambda _command: ends[0]()))
        self.refused(self.ask(), ErrorCode.STORE_UNAVAILABLE)
        self.assertEqual(self.bus.served, frozenset())

    def test_observers_hear_who_is_served(self) -> None:
        heard: list[frozenset[str]] = []
        undo = self.bus.on_services(heard.append)
        end = self.serve()
        end()
        undo()
        self.serve()
        self.assertEqual(heard, [frozenset({"kms"}), frozenset()])


CAPACITY, CONCURRENCY = 3, 2


class CommandsModel(RuleBasedStateMachine):
    """Whatever happens, each command gets exactly one reply, and the bounds hold."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.bus = Bus(self.clock, Metrics())
        self.number = 0
        self.running: dict[int, Deferred[Any]] = {}
        self.most = 0
        self.replies: Counter[int] = Counter()
        self.open: dict[int, Deferred[Any]] = {}
        self.due: dict[int, float] = {}
        self.busy_when: list[int] = []
        self.end: Callable[[], None] | None = None
        self.start_serving()

    @precondition(lambda self: self.end is None)
    @rule()
    def start_serving(self) -> None:
        """The service comes, or comes back."""
        self.running = {}
        self.end = self.bus.serve("s", {"c": self._handle}, capacity=CAPACITY, concurrency=CONCURRENCY)

    @precondition(lambda self: self.end is not None)
    @rule()
    def stop_serving(self) -> None:
        """The service goes: nobody is left waiting."""
        end, self.end = self.end, None
        if end is not None:
            end()
        self.running = {}
        assert not self.open

    def _handle(self, command: Command) -> Any:
        number, at_once = command.body
        if at_once:
            return number
        work: Deferred[Any] = Deferred()
        running = self.running
        running[number] = work
        assert len(running) <= CONCURRENCY
        return work.addBoth(lambda result: (running.pop(number), result)[1])

    @rule(at_once=st.booleans(), deadline_s=st.sampled_from([0.0, 1.0, 3.0]))
    def submit(self, at_once: bool, deadline_s: float) -> None:
        """One more command."""
        self.number += 1
        number = self.number
        full = len(self.running) == CONCURRENCY and len(self.open) == CONCURRENCY + CAPACITY
        reply = self.bus.submit(Command("s", "c", (number, at_once), "id", deadline_s))
        self.open[number] = reply
        self.due[number] = self.clock.seconds() + deadline_s
        reply.addBoth(self._replied, number)
        assert full == (number in self.busy_when), "Busy exactly when it is full"

    def _replied(self, result: Any, number: int) -> None:
        self.replies[number] += 1
        self.open.pop(number)
        if isinstance(result, Failure):
            result.trap(RonError, CancelledError)
            if result.check(Busy):
                self.busy_when.append(number)
        else:
            assert result == number

    @precondition(lambda self: self.running)
    @rule(data=st.data(), well=st.booleans())
    def finish(self, data: st.DataObject, well: bool) -> None:
        """A handler ends."""
        number = data.draw(st.sampled_from(sorted(self.running)))
        if well:
            self.running[number].callback(number)
        else:
            self.running[number].errback(conflict("no"))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """A caller goes."""
        self.open[data.draw(st.sampled_from(sorted(self.open)))].cancel()

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0]))
    def time_passes(self, seconds: float) -> None:
        """Deadlines come."""
        self.clock.advance(seconds)
        assert all(self.due[number] > self.clock.seconds() for number in self.open)

    @invariant()
    def exactly_one_reply(self) -> None:
        """Each command has its reply or is open; no timer is left of those that have."""
        assert all(count == 1 for count in self.replies.values())
        assert set(self.replies) | set(self.open) == set(range(1, self.number + 1))
        assert len(self.clock.getDelayedCalls()) == len(self.open) <= CONCURRENCY + CAPACITY

    @invariant()
    def nobody_idles(self) -> None:
        """Nobody waits while there is a free hand."""
        assert len(self.running) == min(CONCURRENCY, len(self.open)) or self.end is None


class Model(SynchronousTestCase):
    def test_commands(self) -> None:
        bounds = settings(max_examples=60, stateful_step_count=30, deadline=None)
        run_state_machine_as_test(CommandsModel, settings=bounds)
