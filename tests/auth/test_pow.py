"""Proof of work: a challenge is taken once, in time, for its resource, with its work done; all else is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

from blake3 import blake3
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.auth.pow import KEY_BYTES, PowGate, PowResult, PowSettings, TuneState, wire
from ron.auth.pow.gate import WINDOW_S
from ron.auth.pow.spent import Claim, Spent
from ron.auth.pow.tuning import (
    CALM_S,
    SAFE_HOLD_S,
    SAFE_SAMPLE,
    Bounds,
    Standing,
    Window,
    at_rest,
    bounds,
    judge,
)
from ron.kernel import Metrics
from ron.proto.errors import ErrorCode, RonError

NOW_S = 1_800_000_000
SEND = "POST /v1/send"
EASY = PowSettings(auto_tune=False, difficulty=4, ttl_s=60)
KEY = os.urandom(KEY_BYTES)


def solved(challenge: str) -> str:
    """What an honest client sends."""
    parts = wire.parse_challenge(challenge)
    assert parts is not None
    counter = wire.search(challenge.encode(), parts.difficulty, 0, 1 << 30)
    return f"{challenge}.{counter}"


def unsolved(challenge: str) -> str:
    """The first counter that does not do."""
    parts = wire.parse_challenge(challenge)
    assert parts is not None
    return next(s for n in range(1000) if not wire.is_solved(s := f"{challenge}.{n}", parts.difficulty))


class Gated(SynchronousTestCase):
    """A gate with a clock we can turn."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW_S + 0.25
        self.gate = self.made()

    def made(self, settings: PowSettings = EASY, key: bytes = KEY, hash_rate_per_s: float = 1e6) -> PowGate:
        self.metrics = Metrics()
        return PowGate(key, settings, self.clock.seconds, self.metrics, hash_rate_per_s=hash_rate_per_s)

    def refused(self, solution: str, result: str, status: int = 429, resource: str = SEND) -> RonError:
        before = self.count(result)
        error: RonError = self.assertRaises(RonError, self.gate.redeem, solution, resource)
        self.assertEqual(error.status, status, error.message)
        self.assertEqual(self.count(result), before + 1, result)
        self.assertTrue(error.hint or result == "full")
        return error

    def count(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("pow_solutions_total", {"result": result}) or 0


class Refusals(Gated):
    @given(st.text(max_size=200) | st.text("v1.0AZaz_-", max_size=140))
    @example("")
    @example("v1")
    @example("v1.4.1." + ".".join(["A" * 22] * 3) + ".١")
    def test_any_text_is_malformed(self, text: str) -> None:
        self.refused(text, "malformed", 400)

    def test_a_challenge_alone_is_malformed(self) -> None:
        self.refused(self.gate.challenge(SEND), "malformed", 400)

    def test_one_spelling(self) -> None:
        """There is no second way to write a solution: signs, zeros, spaces, padding, line ends, another version."""
        challenge = self.gate.challenge(SEND)
        good = solved(challenge)
        counter = good.rpartition(".")[2]
        for bad in (
            f"{challenge}.0{counter}",
            f"{challenge}.+{counter}",
            f"{challenge}.-{counter}",
            f"{challenge}.{counter} ",
            f" {good}",
            f"{good}\n",
            f"{good}.",
            f"{good}.1",
            f"{challenge}=.{counter}",
            f"{challenge}.1_0",
            f"{challenge}.1e3",
            f"{challenge}.",
            good.replace("v1.", "v2."),
            good.replace("v1.4.", "v1.04."),
            good.replace("v1.4.", "v1.4.0"),
            good.replace("v1.", "V1."),
        ):
            self.refused(bad, "malformed", 400)
        self.gate.redeem(good, SEND)

    def test_over_long(self) -> None:
        self.refused(self.gate.challenge(SEND) + "." + "1" * 21, "malformed", 400)
        self.refused("v1." + "1" * 100_000, "malformed", 400)

    def test_any_change_of_a_challenge_is_forged_or_malformed(self) -> None:
        challenge = self.gate.challenge(SEND)
        for place in range(len(challenge)):
            for other in "0A9z-":
                if challenge[place] != other:
                    changed = challenge[:place] + other + challenge[place + 1 :]
                    error: RonError = self.assertRaises(RonError, self.gate.redeem, f"{changed}.1", SEND)
                    self.assertIn(error.status, (400, 429))
        self.assertEqual(self.count("ok") + self.count("weak") + self.count("expired"), 0)
        self.assertGreater(self.count("forged"), 100)

    def test_a_lower_difficulty_is_forged(self) -> None:
        gate_wants_8 = self.made(PowSettings(auto_tune=False, difficulty=8))
        self.gate = gate_wants_8
        easier = gate_wants_8.challenge(SEND).replace("v1.8.", "v1.1.")
        self.refused(solved(easier), "forged")

    def test_another_key(self) -> None:
        foreign = solved(self.made(key=os.urandom(KEY_BYTES)).challenge(SEND))
        self.gate = self.made()
        self.refused(foreign, "forged")

    def test_too_little_work(self) -> None:
        challenge = self.gate.challenge(SEND)
        self.refused(unsolved(challenge), "weak")
        self.gate.redeem(solved(challenge), SEND)

    def test_another_resource(self) -> None:
        solution = solved(self.gate.challenge(SEND))
        self.refused(solution, "other_resource", resource="POST /v1/recv")
        self.gate.redeem(solution, SEND)

    def test_twice(self) -> None:
        solution = solved(self.gate.challenge(SEND))
        self.gate.redeem(solution, SEND)
        self.refused(solution, "spent")

    def test_twice_with_another_counter(self) -> None:
        """One challenge has many solutions; it is taken once all the same."""
        challenge = self.gate.challenge(SEND)
        first = solved(challenge)
        after = int(first.rpartition(".")[2]) + 1
        second = wire.search(challenge.encode(), EASY.difficulty, after, 1 << 20)
        self.gate.redeem(first, SEND)
        self.refused(f"{challenge}.{second}", "spent")

    def test_every_refusal_but_two_brings_a_fresh_challenge(self) -> None:
        error = self.refused(unsolved(self.gate.challenge(SEND)), "weak")
        self.gate.redeem(solved(error.headers["PoW-Challenge"]), SEND)
        self.assertEqual(self.refused("nonsense", "malformed", 400).headers, {})

    def test_full(self) -> None:
        self.gate = self.made(PowSettings(auto_tune=False, difficulty=1, spent_limit=3, ttl_s=10))
        held_back = solved(self.gate.challenge(SEND))
        for _ in range(3):
            self.gate.redeem(solved(self.gate.challenge(SEND)), SEND)
        self.assertEqual(self.refused(held_back, "full").headers, {})
        self.clock.advance(21)
        self.gate.redeem(solved(self.gate.challenge(SEND)), SEND)

    def test_keys_and_settings_that_make_no_sense(self) -> None:
        self.assertRaises(ValueError, self.made, EASY, b"short")
        for wrong in (
            {"difficulty": 0},
            {"difficulty": 29},
            {"upper_bound": 33},
            {"ttl_s": 0},
            {"budget_rps": 0},
            {"target_ms": -1},
        ):
            self.assertRaises(ValueError, PowSettings, **wrong)


class InTime(Gated):
    def test_until_its_second_and_not_after(self) -> None:
        self.clock.rightNow = float(NOW_S)
        early, late = (solved(self.gate.challenge(SEND)) for _ in range(2))
        self.clock.advance(59.9)
        self.gate.redeem(early, SEND)
        self.clock.advance(0.1)
        self.refused(late, "late")

    def test_late_work_counts_once_and_only_when_it_is_work(self) -> None:
        late, weak = solved(self.gate.challenge(SEND)), unsolved(self.gate.challenge(SEND))
        self.clock.advance(61)
        self.refused(late, "late")
        self.refused(late, "expired")
        self.refused(weak, "expired")

    def test_what_was_redeemed_in_time_is_not_late_work_when_it_is_sent_again(self) -> None:
        solution = solved(self.gate.challenge(SEND))
        self.gate.redeem(solution, SEND)
        for _ in range(20):
            self.clock.advance(7)
            self.assertRaises(RonError, self.gate.redeem, solution, SEND)
        self.assertEqual(self.count("late"), 0)
        self.assertGreater(self.count("expired"), 0)

    def test_very_late_is_only_expired(self) -> None:
        late = solved(self.gate.challenge(SEND))
        self.clock.advance(121)
        self.refused(late, "expired")

    @given(st.lists(st.tuples(st.integers(0, 2), st.floats(-200, 200)), min_size=1, max_size=30))
    @settings(max_examples=60)
    def test_nothing_is_taken_twice_however_the_clock_jumps(self, steps: list[tuple[int, float]]) -> None:
        self.clock.rightNow = float(NOW_S)
        self.gate = self.made(PowSettings(auto_tune=False, difficulty=1))
        solutions = [solved(self.gate.challenge(SEND)) for _ in range(3)]
        taken = [0, 0, 0]
        for which, jump_s in steps:
            self.clock.rightNow += jump_s
            try:
                self.gate.redeem(solutions[which], SEND)
                taken[which] += 1
            except RonError:
                pass
        self.assertLessEqual(max(taken), 1)

    def test_what_was_forgotten_is_not_taken_again_when_the_clock_is_set_back(self) -> None:
        solution = solved(self.gate.challenge(SEND))
        self.gate.redeem(solution, SEND)
        self.clock.rightNow += 200
        self.gate.challenge(SEND)
        self.clock.rightNow -= 199
        self.refused(solution, "expired")

    def test_from_a_future_that_was_set_back(self) -> None:
        solution = solved(self.gate.challenge(SEND))
        self.clock.rightNow -= 10
        self.refused(solution, "expired")
        self.clock.rightNow += 10
        self.gate.redeem(solution, SEND)


class Shape(Gated):
    def test_a_demand_is_a_429_with_a_challenge(self) -> None:
        error = self.gate.demand(SEND)
        self.assertIs(error.code, ErrorCode.BACKPRESSURE)
        self.assertEqual(error.status, 429)
        self.assertEqual(error.retry_after_s, 1)
        self.assertTrue(error.retryable)
        self.gate.redeem(solved(error.headers["PoW-Challenge"]), SEND)

    def test_check_asks_or_takes(self) -> None:
        error: RonError = self.assertRaises(RonError, self.gate.check, None, SEND)
        solution = solved(error.headers["PoW-Challenge"])
        self.gate.check(solution, SEND)
        self.assertRaises(RonError, self.gate.check, solution, SEND)

    def test_form(self) -> None:
        challenge = self.gate.challenge(SEND)
        self.assertRegex(challenge, r"\Av1\.4\.1800000060(\.[A-Za-z0-9_-]{22}){3}\Z")
        self.assertEqual(str(wire.parse_challenge(challenge)), challenge)
        self.assertNotEqual(self.gate.challenge(SEND), challenge)
        self.assertLessEqual(len(challenge) + 21, wire.MAX_SOLUTION_CHARS)

    def test_the_name_of_a_resource_does_not_appear(self) -> None:
        self.assertNotIn("send", self.gate.challenge(SEND))

    def test_any_resource_name(self) -> None:
        for resource in ("", "\udcff", "ä" * 10_000):
            self.gate.redeem(solved(self.gate.challenge(resource)), resource)

    def test_workers_with_one_key_take_each_others_challenges(self) -> None:
        challenge = self.gate.challenge(SEND)
        self.made().redeem(solved(challenge), SEND)

    def test_metrics(self) -> None:
        self.gate.redeem(solved(self.gate.challenge(SEND)), SEND)
        sample = self.metrics.registry.get_sample_value
        self.assertEqual(sample("pow_challenges_total"), 1)
        self.assertEqual(self.count("ok"), 1)
        self.assertEqual(sample("pow_difficulty"), 4)
        self.assertEqual(sample("pow_verify_seconds_count"), 1)
        self.assertEqual(sample("pow_spent"), 1)
        self.clock.advance(121)
        self.gate.challenge(SEND)
        self.assertEqual(sample("pow_spent"), 0)

    @given(st.integers(1, 10), st.integers(0, 1 << 64))
    @settings(max_examples=50)
    def test_work_is_leading_zero_bits_of_blake3(self, difficulty: int, counter: int) -> None:
        text = f"{self.gate.challenge(SEND)}.{counter}"
        bits = bin(int.from_bytes(blake3(text.encode()).digest(), "big"))[2:].zfill(256)
        self.assertEqual(wire.is_solved(text, difficulty), bits.startswith("0" * difficulty))


class Remembering(SynchronousTestCase):
    def test_first_again_full_and_forgotten(self) -> None:
        spent = Spent(2)
        self.assertIs(spent.claim("a", 10), Claim.FIRST)
        self.assertIs(spent.claim("a", 10), Claim.AGAIN)
        self.assertIs(spent.claim("b", 11), Claim.FIRST)
        self.assertIs(spent.claim("c", 11), Claim.FULL)
        self.assertIs(spent.claim("b", 11), Claim.AGAIN)
        spent.forget(10)
        self.assertEqual((len(spent), spent.forgotten_until_unix), (1, 10))
        self.assertIs(spent.claim("c", 11), Claim.FIRST)

    @given(st.lists(st.tuples(st.text("ab", max_size=2), st.integers(1, 5)) | st.integers(0, 6)))
    def test_it_counts_right(self, steps: list[tuple[str, int] | int]) -> None:
        spent, model = Spent(5), set()
        for step in steps:
            if isinstance(step, int):
                spent.forget(step)
                model = {(nonce, end) for nonce, end in model if end > step}
            else:
                wanted = Claim.AGAIN if step in model else Claim.FIRST if len(model) < 5 else Claim.FULL
                self.assertIs(spent.claim(*step), wanted)
                if wanted is Claim.FIRST:
                    model.add(step)
            self.assertEqual(len(spent), len(model))


BOUNDS = Bounds(base=11, ceiling=20, budget_rps=100.0)
BUSY = Window(5.0, 1000, 0, 0)
QUIET = Window(5.0, 10, 0, 0)
OVERDUE = Window(5.0, SAFE_SAMPLE, SAFE_SAMPLE // 2, 0)


class Tuning(SynchronousTestCase):
    def after(self, *windows: Window, start: Standing | None = None) -> Standing:
        standing = start or at_rest(BOUNDS)
        for window in windows:
            standing = judge(standing, window, BOUNDS)
        return standing

    def test_load_raises_to_the_ceiling_and_no_further(self) -> None:
        self.assertEqual(self.after(BUSY), Standing(TuneState.RAISED, 12))
        self.assertEqual(self.after(*[BUSY] * 50).difficulty, 20)

    def test_calm_lowers_to_the_base_and_no_further(self) -> None:
        raised = self.after(BUSY, BUSY, BUSY)
        self.assertEqual(self.after(QUIET, QUIET, start=raised).difficulty, 14)
        self.assertEqual(self.after(QUIET, QUIET, QUIET, start=raised).difficulty, 13)
        rested = self.after(*[QUIET] * 50, start=raised)
        self.assertEqual((rested.state, rested.difficulty), (TuneState.RESTING, 11))

    def test_a_long_silence_is_many_calm_whiles(self) -> None:
        self.assertEqual(self.after(Window(3 * CALM_S, 0, 0, 0), start=self.after(*[BUSY] * 5)).difficulty, 13)

    def test_between_half_and_whole_budget_nothing_moves(self) -> None:
        raised = self.after(BUSY, BUSY)
        held = self.after(*[Window(5.0, 400, 0, 0)] * 50, start=raised)
        self.assertEqual(held.difficulty, raised.difficulty)
        almost = self.after(QUIET, QUIET, Window(5.0, 400, 0, 0), QUIET, QUIET, start=raised)
        self.assertEqual(almost.difficulty, raised.difficulty, "calm begins anew after a busier while")

    def test_slow_clients_bring_it_to_the_base_and_hold_it_there(self) -> None:
        safe = self.after(*[BUSY] * 4, OVERDUE)
        self.assertEqual(safe, Standing(TuneState.SAFE, 11, hold_s=SAFE_HOLD_S))
        held = self.after(*[BUSY] * int(SAFE_HOLD_S // 5 - 1), start=safe)
        self.assertEqual((held.state, held.difficulty), (TuneState.SAFE, 11))
        self.assertIs(self.after(OVERDUE, start=held).hold_s, SAFE_HOLD_S)
        self.assertEqual(self.after(BUSY, start=held), at_rest(BOUNDS))

    def test_late_solutions_count_like_slow_ones(self) -> None:
        self.assertIs(self.after(Window(5.0, 15, 0, 5)).state, TuneState.RESTING)
        self.assertIs(self.after(Window(5.0, 14, 0, 6)).state, TuneState.SAFE)

    def test_a_few_slow_ones_prove_nothing(self) -> None:
        few = Window(5.0, SAFE_SAMPLE - 1, SAFE_SAMPLE - 1, 0)
        self.assertIs(self.after(BUSY, few).state, TuneState.RAISED)

    def test_the_drawing_has_these_states(self) -> None:
        page = (Path(__file__).parents[2] / "docs" / "pow.rst").read_text(encoding="utf-8")
        self.assertEqual(re.findall(r"^- ``(\w+)``:", page, re.MULTILINE), [state.value for state in TuneState])
        self.assertEqual(re.findall(r"│ +(resting|raised|safe) +[│├]", page), [state.value for state in TuneState])
        for result in PowResult:
            self.assertIn(f"\n``{result.value}``", page)

    @given(
        st.lists(
            st.builds(Window, st.floats(5, 1e5), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**4)),
            max_size=60,
        ),
        st.integers(1, 32),
        st.integers(0, 31),
    )
    def test_it_never_leaves_its_bounds(self, windows: list[Window], base: int, more: int) -> None:
        these = Bounds(base, base + more, 100.0)
        standing = at_rest(these)
        for window in windows:
            standing = judge(standing, window, these)
            self.assertLessEqual(base, standing.difficulty)
            self.assertLessEqual(standing.difficulty, base + more)
            self.assertEqual(standing.state is TuneState.RAISED, standing.difficulty > base)

    @given(st.floats(1e3, 1e9))
    def test_an_attacker_with_a_given_cpu_is_held_below_the_budget_without_oscillation(self, hashes: float) -> None:
        """What passes is hashes/2^difficulty. Once it fits the budget the difficulty stays where it is."""
        these = Bounds(base=8, ceiling=60, budget_rps=100.0)
        standing, seen = at_rest(these), []
        for _ in range(200):
            redeemed = int(5 * hashes / 2**standing.difficulty)
            standing = judge(standing, Window(5.0, redeemed, 0, 0), these)
            seen.append(standing.difficulty)
        self.assertEqual(len(set(seen[100:])), 1)
        self.assertLessEqual(hashes / 2 ** seen[-1], 101.0)

    def test_the_base_keeps_within_the_target(self) -> None:
        def base(rate: float, ms: float, upper: int = 28) -> int:
            return bounds(hash_rate_per_s=rate, target_ms=ms, upper_bound=upper, ttl_s=60, budget_rps=1).base

        self.assertEqual(base(1e6, 3), 11)
        self.assertEqual(base(1.4e6, 3), 12)
        self.assertEqual(base(1e6, 6), 12)
        self.assertEqual(base(1e6, 3, 5), 5)
        self.assertEqual(base(1, 3), 1)

    def test_the_ceiling_is_what_the_reference_client_does_in_an_eighth_of_a_life(self) -> None:
        def ceiling(rate: float, upper: int) -> int:
            return bounds(hash_rate_per_s=rate, target_ms=3, upper_bound=upper, ttl_s=60, budget_rps=1).ceiling

        self.assertEqual(ceiling(1e6, 28), 22)
        self.assertEqual(ceiling(1e6, 16), 16)
        self.assertEqual(ceiling(1e9, 28), 28)


class Tuned(Gated):
    """The gate feeds its tuner. Base: 9 bits for 200 000 tries a second; one redeemed call a second is fine."""

    TUNED = PowSettings(target_ms=3, budget_rps=1.0)

    def setUp(self) -> None:
        super().setUp()
        self.gate = self.made(self.TUNED, hash_rate_per_s=200_000)

    def redeem(self, count: int, delay_s: float = 0.0) -> None:
        challenges = [self.gate.challenge(SEND) for _ in range(count)]
        self.clock.advance(delay_s)
        for challenge in challenges:
            self.gate.redeem(solved(challenge), SEND)

    def test_it_measures_this_machine_when_nobody_says(self) -> None:
        gate = PowGate(KEY, self.TUNED, self.clock.seconds, Metrics())
        self.assertIn(gate.target.difficulty, range(1, 29))
        self.assertGreater(wire.measured_hash_rate(), 0)

    def test_more_work_than_budgeted_raises_and_calm_lowers(self) -> None:
        self.assertEqual((self.gate.target.state, self.gate.target.difficulty), (TuneState.RESTING, 9))
        self.redeem(20)
        self.clock.advance(WINDOW_S)
        self.assertEqual((self.gate.target.state, self.gate.target.difficulty), (TuneState.RAISED, 10))
        self.assertIn("v1.10.", self.gate.challenge(SEND))
        self.clock.advance(CALM_S)
        self.assertEqual(self.gate.target.difficulty, 9)
        self.assertEqual(self.metrics.registry.get_sample_value("pow_difficulty"), 9)

    def test_asking_for_challenges_raises_nothing_and_lowers_nothing(self) -> None:
        self.redeem(20)
        self.clock.advance(WINDOW_S)
        raised = self.gate.target
        for _ in range(1000):
            self.gate.challenge(SEND)
        self.clock.advance(WINDOW_S)
        self.assertEqual(self.gate.target, raised)

    def test_slow_clients_bring_safe_mode(self) -> None:
        self.redeem(20)
        self.clock.advance(WINDOW_S)
        self.assertIs(self.gate.target.state, TuneState.RAISED)
        self.redeem(SAFE_SAMPLE, delay_s=20)
        self.clock.advance(WINDOW_S)
        self.assertEqual((self.gate.target.state, self.gate.target.difficulty), (TuneState.SAFE, 9))
        self.assertEqual(self.metrics.registry.get_sample_value("pow_safe_mode"), 1)

    def test_late_clients_bring_safe_mode(self) -> None:
        late = [solved(self.gate.challenge(SEND)) for _ in range(SAFE_SAMPLE)]
        self.clock.advance(61)
        for solution in late:
            self.refused(solution, "late")
        self.clock.advance(WINDOW_S)
        self.assertIs(self.gate.target.state, TuneState.SAFE)

    def test_one_late_solution_sent_again_and_again_does_not(self) -> None:
        late = solved(self.gate.challenge(SEND))
        self.clock.advance(61)
        for _ in range(10 * SAFE_SAMPLE):
            self.assertRaises(RonError, self.gate.redeem, late, SEND)
        self.clock.advance(WINDOW_S)
        self.assertIs(self.gate.target.state, TuneState.RESTING)

    def test_a_memory_that_could_fill_lowers_the_budget(self) -> None:
        small = PowSettings(budget_rps=1e9, spent_limit=240, ttl_s=60)
        self.gate = self.made(small, hash_rate_per_s=1000)
        self.redeem(20)
        self.clock.advance(WINDOW_S)
        self.assertIs(self.gate.target.state, TuneState.RAISED)

    def test_switched_off_and_on(self) -> None:
        self.redeem(20)
        self.gate.autotune(False)
        self.clock.advance(WINDOW_S)
        target = self.gate.target
        self.assertEqual((target.auto_tune, target.state, target.difficulty), (False, None, 12))
        self.assertEqual(target.expected_tries, 4096)
        self.redeem(20)
        self.clock.advance(WINDOW_S)
        self.assertEqual(self.gate.target.difficulty, 12)
        self.gate.autotune(True)
        self.assertEqual((self.gate.target.state, self.gate.target.difficulty), (TuneState.RESTING, 9))

    def test_the_clock_set_back_does_not_stop_the_tuning(self) -> None:
        self.clock.rightNow -= 10_000
        self.gate.challenge(SEND)
        self.redeem(20)
        self.clock.advance(WINDOW_S)
        self.assertIs(self.gate.target.state, TuneState.RAISED)
