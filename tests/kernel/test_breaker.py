"""Circuit breakers under a clock of our own: when they open, how long, and who may probe."""

from __future__ import annotations

import copy
import random
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Metrics, breaker
from ron.kernel.breaker import (
    OPEN_BASE_S,
    OPEN_CEILING_S,
    PROBE_S,
    RATIO_CALLS,
    RATIO_WINDOW_S,
    CircuitBreaker,
    CircuitOpen,
    Circuits,
    CircuitState,
)
from ron.proto.exitcodes import Unreachable

CLOSED, HALF_OPEN, OPEN = CircuitState.CLOSED, CircuitState.HALF_OPEN, CircuitState.OPEN


class Breaking(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.seen: list[CircuitState] = []
        self.circuit = CircuitBreaker(
            "http://there", self.clock.seconds, rng=random.Random(1), on_change=self.seen.append
        )

    def fail(self, times: int = 5) -> None:  # type: ignore[override]
        for _ in range(times):
            self.circuit.failed(self.circuit.admit())

    def until_open_ends(self) -> float:
        """Go to the moment at which the circuit lets somebody through; the seconds until then."""
        waited_s = self.assertRaises(CircuitOpen, self.circuit.admit).retry_in_s
        self.clock.advance(waited_s)
        return float(waited_s)

    def test_an_open_circuit_fails_at_once_and_says_when_it_tries_again(self) -> None:
        self.fail()
        self.assertIs(self.circuit.state, OPEN)
        error = self.assertRaises(CircuitOpen, self.circuit.admit)
        self.assertIsInstance(error, Unreachable)
        self.assertIn("http://there", error.message)
        self.assertIn(f"{error.retry_in_s:.1f} s", error.message)
        self.assertGreaterEqual(error.retry_after_s, error.retry_in_s)
        self.clock.advance(error.retry_in_s / 2)
        later = self.assertRaises(CircuitOpen, self.circuit.admit)
        self.assertAlmostEqual(later.retry_in_s, error.retry_in_s / 2)

    def test_one_success_starts_the_row_again(self) -> None:
        for _ in range(4):
            self.fail(4)
            self.circuit.succeeded(self.circuit.admit())
            self.clock.advance(RATIO_WINDOW_S)
        self.assertIs(self.circuit.state, CLOSED)

    def test_half_of_the_calls_within_the_window(self) -> None:
        for n in range(RATIO_CALLS - 1):
            ticket = self.circuit.admit()
            (self.circuit.failed if n % 2 else self.circuit.succeeded)(ticket)
        self.assertIs(self.circuit.state, CLOSED)
        self.fail(1)
        self.assertIs(self.circuit.state, OPEN)

    def test_old_failures_do_not_count(self) -> None:
        for n in range(RATIO_CALLS * 2):
            ticket = self.circuit.admit()
            (self.circuit.failed if n % 2 else self.circuit.succeeded)(ticket)
            self.clock.advance(RATIO_WINDOW_S / RATIO_CALLS * 1.1)
        self.assertIs(self.circuit.state, CLOSED)

    def test_one_at_a_time_probes_and_a_success_closes_it(self) -> None:
        self.fail()
        self.until_open_ends()
        probe = self.circuit.admit()
        self.assertIs(self.circuit.state, HALF_OPEN)
        self.assertRaises(CircuitOpen, self.circuit.admit)
        self.circuit.succeeded(probe)
        self.assertEqual(self.seen, [OPEN, HALF_OPEN, CLOSED])
        self.fail(4)
        self.assertIs(self.circuit.state, CLOSED)

    def test_a_failed_probe_opens_it_for_longer_and_longer_with_jitter(self) -> None:
        self.fail()
        waits = []
        for _ in range(60):
            waits.append(self.until_open_ends())
            self.fail(1)
            self.assertIs(self.circuit.state, OPEN)
        self.assertTrue(all(OPEN_BASE_S <= wait_s <= OPEN_CEILING_S + 1e-9 for wait_s in waits), waits)
        self.assertLessEqual(waits[0], 2 * OPEN_BASE_S)
        self.assertGreater(max(waits), OPEN_CEILING_S * 0.8)
        self.assertEqual(len(set(waits)), len(waits))

    def test_a_probe_that_was_given_up_makes_room_for_the_next(self) -> None:
        self.fail()
        self.until_open_ends()
        self.circuit.abandoned(self.circuit.admit())
        self.circuit.succeeded(self.circuit.admit())
        self.assertIs(self.circuit.state, CLOSED)

    def test_a_probe_that_never_tells_does_not_block_for_ever(self) -> None:
        self.fail()
        self.until_open_ends()
        self.circuit.admit()
        self.clock.advance(PROBE_S)
        self.circuit.admit()

    def test_late_outcomes_of_earlier_calls_decide_nothing(self) -> None:
        early = [self.circuit.admit() for _ in range(3)]
        self.fail()
        self.until_open_ends()
        probe = self.circuit.admit()
        self.circuit.failed(early[0])
        self.circuit.succeeded(early[1])
        self.circuit.abandoned(early[2])
        self.assertIs(self.circuit.state, HALF_OPEN)
        self.assertRaises(CircuitOpen, self.circuit.admit)
        self.circuit.succeeded(probe)
        self.assertIs(self.circuit.state, CLOSED)


class ManyCircuits(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.metrics = Clock(), Metrics()
        self.circuits = Circuits(self.clock.seconds, metrics=self.metrics)

    def shown(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value("circuit_state", {"circuit": name})

    def trip(self, name: str) -> None:
        circuit = self.circuits.of(name)
        for _ in range(5):
            circuit.failed(circuit.admit())

    def test_each_name_has_one_and_the_gauge_shows_it(self) -> None:
        self.trip("http://a")
        self.assertRaises(CircuitOpen, self.circuits.of("http://a").admit)
        self.circuits.of("http://b").admit()
        self.assertEqual((self.shown("http://a"), self.shown("http://b")), (2, 0))
        self.clock.advance(OPEN_CEILING_S)
        probe = self.circuits.of("http://a").admit()
        self.assertEqual(self.shown("http://a"), 1)
        self.circuits.of("http://a").succeeded(probe)
        self.assertEqual(self.shown("http://a"), 0)

    def test_no_more_than_so_many(self) -> None:
        self.patch(breaker, "MAX_CIRCUITS", 3)
        for name in ("a", "b", "c", "a", "d"):
            self.circuits.of(name)
        self.assertEqual([self.shown(name) for name in "abcd"], [0, None, 0, 0])

    def test_without_metrics(self) -> None:
        self.circuits = Circuits(self.clock.seconds)
        self.trip("x")
        self.assertIs(self.circuits.of("x").state, OPEN)


class Life(RuleBasedStateMachine):
    """Whatever happens in whatever order: it opens only for failures, lets one probe through, and always comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.circuit = CircuitBreaker("x", self.clock.seconds, rng=random.Random(3))
        self.out: list[int] = []
        self.row = 0

    @rule()
    def call(self) -> None:
        before = self.circuit.state
        try:
            self.out.append(self.circuit.admit())
        except CircuitOpen as error:
            assert before is not CLOSED
            assert 0 < error.retry_in_s <= OPEN_CEILING_S

    @precondition(lambda self: self.out)
    @rule(ended=st.sampled_from(["succeeded", "failed", "abandoned"]), first=st.booleans())
    def end(self, ended: str, first: bool) -> None:
        before = self.circuit.state
        getattr(self.circuit, ended)(self.out.pop(0 if first else -1))
        after = self.circuit.state
        if ended != "failed":
            assert after is not OPEN or before is OPEN
        if ended == "abandoned":
            assert after is before
        if after is CLOSED and before is not CLOSED:
            assert ended == "succeeded"

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def it_always_comes_back(self) -> None:
        """A copy of it, left alone long enough, lets somebody through who closes it."""
        clock, circuit = copy.deepcopy((self.clock, self.circuit))
        clock.advance(PROBE_S + OPEN_CEILING_S)
        circuit.succeeded(circuit.admit())
        assert circuit.state is CLOSED


class Lives(SynchronousTestCase):
    def test_in_any_order(self) -> None:
        run_state_machine_as_test(Life)


class Drawn(SynchronousTestCase):
    def test_every_state_is_in_the_docs(self) -> None:
        drawing = (Path(__file__).parents[2] / "docs" / "limits.rst").read_text("utf-8")
        for state in CircuitState:
            self.assertIn(f" {state.name.lower().replace('_', ' ')} ", drawing)
