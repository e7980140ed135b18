"""More backends when two samples in a row ask for it, fewer when all has been calm for long; nobody is cut off."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from automat import NoTransition
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.services.oniond.autoscale import (
    Course,
    Decision,
    Drain,
    DrainAct,
    DrainState,
    LabelledRelay,
    Policy,
    PolicyConfig,
    Reason,
    Sample,
    choose_relays,
    drain_machine,
    from_section,
)
from ron.services.oniond.config import OnionConfig
from ron.services.sections import AutoscaleConfig, OniondSection

ROOT = Path(__file__).resolve().parents[3]
CONFIG = PolicyConfig(scale_min=1, scale_max=10, circuits_p95=200, queue_depth=50, connect_ms_p95=1200)
EVERY_S = 10.0
NOW_S = 1000.0
IDLE = (0.0, 0.0, 0.0)
BUSY = (201.0, 0.0, 0.0)

loads = st.tuples(*[st.none() | st.floats(0, 10 * limit) for limit in (200, 50, 1200)])
known_loads = st.tuples(*[st.floats(0, 10 * limit) for limit in (200, 50, 1200)])


def samples(*figures: tuple[float | None, ...], until_s: float = NOW_S) -> list[Sample]:
    """One sample every ten seconds, the last of them at `until_s`."""
    first_s = until_s - EVERY_S * (len(figures) - 1)
    return [Sample(*three, first_s + EVERY_S * n) for n, three in enumerate(figures)]  # type: ignore[arg-type]


def decide(current: int, *figures: tuple[float | None, ...], changed_at_s: float | None = None) -> Decision:
    return Policy(CONFIG).decide(current, samples(*figures), now_s=NOW_S, changed_at_s=changed_at_s)


def long(three: tuple[float | None, ...]) -> list[tuple[float | None, ...]]:
    """Enough of the same for any window."""
    return [three] * 60


class Configs(SynchronousTestCase):
    def test_what_makes_no_sense(self) -> None:
        for wrong in (
            {"scale_min": 2, "scale_max": 1},
            {"circuits_p95": 0},
            {"queue_depth": -1},
            {"connect_ms_p95": math.nan},
            {"connect_ms_p95": math.inf},
            {"settle_s": 400.0},
        ):
            self.assertRaises(ValueError, PolicyConfig, **wrong)

    def test_from_the_section(self) -> None:
        load = AutoscaleConfig(circuits_p95=200, connect_ms_p95=1200, queue_depth=50)
        for section in (OniondSection, OnionConfig):
            self.assertEqual(from_section(section(scale_max=10, autoscale=load)), CONFIG)
        bare = from_section(OniondSection(scale_min=2, scale_max=3))
        self.assertEqual((bare.scale_min, bare.scale_max, bare.thresholds), (2, 3, (None, None, None)))

    def test_no_backend_at_all(self) -> None:
        self.assertRaises(ValueError, decide, 0)


class Missing(SynchronousTestCase):
    """What is not known changes nothing."""

    def test_no_samples(self) -> None:
        self.assertEqual(decide(3), (3, Reason.UNKNOWN))

    def test_old_samples(self) -> None:
        for load in (IDLE, (9e9, 9e9, 9e9)):
            old = samples(*long(load), until_s=NOW_S - CONFIG.gap_s - 1)
            self.assertEqual(Policy(CONFIG).decide(3, old, now_s=NOW_S), (3, Reason.UNKNOWN))

    def test_samples_from_the_future(self) -> None:
        ahead = samples(*long(BUSY), until_s=NOW_S + 10_000)
        self.assertEqual(Policy(CONFIG).decide(3, ahead, now_s=NOW_S), (3, Reason.UNKNOWN))

    def test_a_gap_in_the_calm(self) -> None:
        whole = samples(*long(IDLE))
        self.assertEqual(Policy(CONFIG).decide(3, whole, now_s=NOW_S), (2, Reason.CALM))
        for lost in range(45, 55):
            holey = whole[:lost] + whole[lost + 4 :]
            self.assertEqual(Policy(CONFIG).decide(3, holey, now_s=NOW_S).target, 3)

    def test_calm_that_began_too_lately(self) -> None:
        self.assertEqual(decide(3, *[IDLE] * 10), (3, Reason.UNKNOWN))

    def test_a_figure_that_could_not_be_measured_is_not_calm(self) -> None:
        for hole in ((None, 0.0, 0.0), (0.0, None, 0.0), (0.0, 0.0, None), (0.0, 0.0, math.nan)):
            self.assertEqual(decide(3, *long(IDLE)[:50], hole, *[IDLE] * 3), (3, Reason.STEADY))

    def test_nor_does_it_hide_the_others(self) -> None:
        self.assertEqual(decide(3, (None, None, 1300.0), (None, None, 1300.0)), (4, Reason.CONNECT))

    def test_without_thresholds_load_changes_nothing(self) -> None:
        bare = Policy(PolicyConfig(scale_min=1, scale_max=10))
        for load in (IDLE, (9e9, 9e9, 9e9)):
            self.assertEqual(bare.decide(4, samples(*long(load)), now_s=NOW_S), (4, Reason.STEADY))


class Up(SynchronousTestCase):
    def test_one_sample_is_an_accident(self) -> None:
        self.assertEqual(decide(3, *long((150.0, 0.0, 0.0)), BUSY), (3, Reason.STEADY))
        self.assertEqual(decide(3, BUSY, (150.0, 0.0, 0.0)).target, 3)
        self.assertEqual(decide(3, BUSY).target, 3)

    def test_two_in_a_row(self) -> None:
        self.assertEqual(decide(3, BUSY, BUSY), (4, Reason.CIRCUITS))
        self.assertEqual(decide(3, (0.0, 51.0, 0.0), (0.0, 51.0, 0.0)), (4, Reason.QUEUE))
        self.assertEqual(decide(3, (0.0, 0.0, 1201.0), (0.0, 0.0, 1201.0)), (4, Reason.CONNECT))

    def test_exactly_the_threshold_is_fine(self) -> None:
        self.assertEqual(decide(3, *long((200.0, 50.0, 1200.0))), (3, Reason.STEADY))

    def test_as_many_as_are_missing_and_no_more_than_twice_as_many(self) -> None:
        self.assertEqual(decide(2, *[(300.0, 0.0, 0.0)] * 2), (3, Reason.CIRCUITS))
        self.assertEqual(decide(3, *[(2000.0, 0.0, 0.0)] * 2), (6, Reason.CIRCUITS))
        self.assertEqual(decide(3, *[(math.inf, 0.0, 0.0)] * 2), (6, Reason.CIRCUITS))
        self.assertEqual(decide(8, *[(2000.0, 0.0, 0.0)] * 2), (10, Reason.CIRCUITS))
        # ten times too slow is not a tenth of the backends that are needed
        self.assertEqual(decide(3, *[(0.0, 0.0, 12_000.0)] * 2), (4, Reason.CONNECT))

    def test_the_lesser_of_the_two_says_how_many(self) -> None:
        self.assertEqual(decide(4, (400.0, 0.0, 0.0), (220.0, 0.0, 0.0)).target, 5)

    def test_at_the_maximum(self) -> None:
        self.assertEqual(decide(10, BUSY, BUSY), (10, Reason.AT_MAXIMUM))

    def test_not_before_the_last_change_has_settled(self) -> None:
        self.assertEqual(decide(3, *long(BUSY), changed_at_s=NOW_S - 29), (3, Reason.SETTLING))
        self.assertEqual(decide(3, *long(BUSY), changed_at_s=NOW_S - 31), (4, Reason.CIRCUITS))

    def test_what_was_measured_before_the_change_does_not_count(self) -> None:
        before = samples(*[BUSY] * 5, until_s=NOW_S - 31)
        after = samples((100.0, 0.0, 0.0))
        self.assertEqual(Policy(CONFIG).decide(3, before + after, now_s=NOW_S, changed_at_s=NOW_S - 31).target, 3)


class Down(SynchronousTestCase):
    def test_one_at_a_time(self) -> None:
        self.assertEqual(decide(10, *long(IDLE)), (9, Reason.CALM))

    def test_not_while_anything_is_at_half_its_threshold(self) -> None:
        for load in ((100.0, 0.0, 0.0), (0.0, 25.0, 0.0), (0.0, 0.0, 600.0)):
            self.assertEqual(decide(3, *long(load)), (3, Reason.STEADY))
        self.assertEqual(decide(3, *long((99.0, 24.0, 599.0))), (2, Reason.CALM))

    def test_not_within_the_cool_down(self) -> None:
        self.assertEqual(decide(3, *long(IDLE), changed_at_s=NOW_S - 299), (3, Reason.COOLING))
        self.assertEqual(decide(3, *long(IDLE), changed_at_s=NOW_S - 300), (2, Reason.CALM))

    def test_one_busy_moment_begins_the_calm_anew(self) -> None:
        self.assertEqual(decide(3, *long(IDLE), (100.0, 0.0, 0.0), *[IDLE] * 17), (3, Reason.STEADY))
        self.assertEqual(decide(3, *long(IDLE), (100.0, 0.0, 0.0), *[IDLE] * 19), (2, Reason.CALM))

    def test_at_the_minimum(self) -> None:
        self.assertEqual(decide(1, *long(IDLE)), (1, Reason.AT_MINIMUM))


class NewBounds(SynchronousTestCase):
    """The operator changed them."""

    def test_too_few_whatever_the_load(self) -> None:
        policy = Policy(PolicyConfig(scale_min=4, scale_max=10))
        self.assertEqual(policy.decide(1, [], now_s=NOW_S, changed_at_s=NOW_S), (4, Reason.TOO_FEW))

    def test_too_many_one_at_a_time(self) -> None:
        policy = Policy(PolicyConfig(scale_max=2))
        self.assertEqual(policy.decide(5, samples(BUSY, BUSY), now_s=NOW_S), (4, Reason.TOO_MANY))
        self.assertEqual(policy.decide(5, [], now_s=NOW_S, changed_at_s=NOW_S - 1), (5, Reason.SETTLING))


class Properties(SynchronousTestCase):
    @given(st.integers(1, 10), st.lists(loads, max_size=40), st.none() | st.floats(0, 1000))
    def test_bounded(self, current: int, figures: list[Any], ago_s: float | None) -> None:
        """Within the bounds; at most twice as many, at most one fewer; a step always says why."""
        changed_at_s = None if ago_s is None else NOW_S - ago_s
        target, reason = decide(current, *figures, changed_at_s=changed_at_s)
        self.assertTrue(CONFIG.scale_min <= target <= CONFIG.scale_max)
        self.assertTrue(current - 1 <= target <= 2 * current)
        self.assertEqual(target > current, reason in {Reason.CIRCUITS, Reason.QUEUE, Reason.CONNECT})
        self.assertEqual(target < current, reason is Reason.CALM)
        if ago_s is not None and ago_s < CONFIG.settle_s:
            self.assertEqual(target, current)
        if ago_s is not None and ago_s < CONFIG.cool_down_s:
            self.assertGreaterEqual(target, current)

    @settings(max_examples=100)
    @given(st.integers(1, 10), st.data())
    def test_monotone(self, current: int, data: st.DataObject) -> None:
        """More load never means fewer backends."""
        figures = data.draw(st.lists(known_loads, min_size=1, max_size=3))
        rest = data.draw(st.sampled_from([IDLE, (90.0, 20.0, 500.0), (150.0, 30.0, 700.0)]))
        more = [tuple(f * data.draw(st.floats(1, 4)) for f in three) for three in figures]
        calm = [rest] * 57
        self.assertLessEqual(decide(current, *calm, *figures).target, decide(current, *calm, *more).target)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 10), st.floats(0, 4000), st.floats(0, 1000))
    def test_the_same_load_never_flaps(self, current: int, circuits: float, queue: float) -> None:
        """A day of a load that is shared out among the backends: the number goes one way, and then stays."""
        steps = self.day(current, lambda _t, n: (circuits / n, queue / n, 100.0))
        self.assertTrue(steps == sorted(steps) or steps == sorted(steps, reverse=True), steps)
        n = steps[-1]
        self.assertTrue(n == 10 or (circuits / n <= 200 and queue / n <= 50))
        self.assertTrue(n == 1 or circuits / n >= 100 or queue / n >= 25)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(loads, min_size=5, max_size=60))
    def test_whatever_comes_a_step_down_waits_for_the_cool_down(self, pattern: list[Any]) -> None:
        changes: list[tuple[float, int]] = []
        self.day(3, lambda t, _n: pattern[int(t / 100) % len(pattern)], changes)
        for (before_s, _), (at_s, by) in pairwise(changes):
            self.assertGreaterEqual(at_s - before_s, CONFIG.cool_down_s if by < 0 else CONFIG.settle_s)
            self.assertGreaterEqual(by, -1)

    def day(self, current: int, load: Any, changes: list[tuple[float, int]] | None = None) -> list[int]:
        """The numbers of backends in the course of three hours, a look every ten seconds."""
        policy, seen, changed_at_s, numbers = Policy(CONFIG), [], None, [current]
        for look in range(1080):
            now_s = look * EVERY_S
            seen = [*seen[-30:], Sample(*load(now_s, current), now_s)]
            target, _reason = policy.decide(current, seen, now_s=now_s, changed_at_s=changed_at_s)
            if target != current:
                if changes is not None:
                    changes.append((now_s, target - current))
                current, changed_at_s = target, now_s
                numbers.append(current)
        return numbers


class Draining(SynchronousTestCase):
    def setUp(self) -> None:
        self.drain = Drain(linger_s=60, deadline_s=300)

    def test_settings_that_make_no_sense(self) -> None:
        for linger_s, deadline_s in ((-1, 10), (11, 10), (math.nan, 10)):
            self.assertRaises(ValueError, Drain, linger_s=linger_s, deadline_s=deadline_s)

    def test_nothing_is_lost(self) -> None:
        drain = self.drain
        self.assertIs(drain.begin(100), DrainAct.UNLIST)
        self.assertIs(drain.look(0, 130), DrainAct.NOTHING)  # clients still read the old descriptor
        drain.unlisted(140)
        self.assertIs(drain.look(0, 199), DrainAct.NOTHING)  # and come with it
        self.assertIs(drain.look(2, 205), DrainAct.NOTHING)
        self.assertIs(drain.look(0, 230), DrainAct.END)
        self.assertEqual((drain.state, drain.cut), (DrainState.GONE, 0))

    def test_the_deadline_counts_what_it_cuts(self) -> None:
        self.drain.begin(100)
        self.drain.unlisted(140)
        self.assertIs(self.drain.look(3, 399), DrainAct.NOTHING)
        self.assertIs(self.drain.look(3, 400), DrainAct.END)
        self.assertEqual((self.drain.state, self.drain.cut), (DrainState.GONE, 3))

    def test_also_when_the_descriptor_never_changed(self) -> None:
        self.drain.begin(100)
        self.assertIs(self.drain.look(7, 400), DrainAct.END)

    def test_a_repeated_order_moves_no_deadline(self) -> None:
        self.drain.begin(100)
        self.assertIs(self.drain.begin(390), DrainAct.NOTHING)
        self.drain.unlisted(140)
        self.drain.unlisted(390)
        self.assertIs(self.drain.look(0, 210), DrainAct.END)

    def test_gone_is_gone(self) -> None:
        self.drain.begin(0)
        self.drain.look(0, 300)
        for act in (self.drain.begin(400), self.drain.unlisted(400), self.drain.look(1, 400)):
            self.assertIs(act, DrainAct.NOTHING)
        self.assertEqual((self.drain.state, self.drain.cut), (DrainState.GONE, 0))

    @given(st.lists(st.tuples(st.sampled_from(["begin", "unlisted", "look"]), st.integers(0, 5)), max_size=60))
    def test_whatever_happens(self, events: list[tuple[str, int]]) -> None:
        """It ends once at most; before the deadline never with a circuit open, nor while the old descriptor is out."""
        drain, now_s, began_s, ended = Drain(linger_s=60, deadline_s=300), 0.0, 0.0, 0
        for event, circuits in events:
            now_s += 25
            before = drain.state
            act = {
                "begin": lambda now_s=now_s: drain.begin(now_s),
                "unlisted": lambda now_s=now_s: drain.unlisted(now_s),
                "look": lambda circuits=circuits, now_s=now_s: drain.look(circuits, now_s),
            }[event]()
            if act is DrainAct.UNLIST:
                began_s = now_s
            if act is DrainAct.END:
                ended += 1
                if now_s - began_s < 300:
                    self.assertEqual((before, circuits, drain.cut), (DrainState.WAITING, 0, 0))
            self.assertEqual(act is DrainAct.END, before is not DrainState.GONE and drain.state is DrainState.GONE)
        self.assertLessEqual(ended, 1)


class Drawing(SynchronousTestCase):
    """docs/observability.rst and the machine say the same."""

    def test_every_way(self) -> None:
        text = (ROOT / "docs" / "observability.rst").read_text(encoding="utf-8")
        table = text.partition(".. drain-states begin")[2].partition(".. drain-states end")[0]
        rows = re.findall(r"^   \* - (\w+)\n     - (\w+)\n     - (\w+)$", table, re.MULTILINE)[1:]
        self.assertEqual(sorted(rows), sorted(self.ways()))

    def ways(self) -> list[tuple[str, str, str]]:
        """(state, event, next) of every transition there is, found by trying."""
        reach = {
            "active": [],
            "draining": ["begin"],
            "waiting": ["begin", "unlisted"],
            "gone": ["begin", "ran_out"],
        }
        found = []
        for state, path in reach.items():
            for event in [name for name in vars(Course) if not name.startswith("_")]:
                drain = Drain(linger_s=1, deadline_s=1)
                course = drain_machine(drain)
                for step in path:
                    getattr(course, step)()
                self.assertEqual(drain.state.value, state)
                try:
                    getattr(course, event)()
                except NoTransition:
                    continue
                found.append((state, event, drain.state.value))
        return found


def relay(number: int, *regions: str) -> LabelledRelay:
    return LabelledRelay(fingerprint=f"{number:040X}", regions=regions)


class Relays(SynchronousTestCase):
    def test_dearest_first_and_nobody_left_out(self) -> None:
        relays = [relay(1, "us"), relay(2, "eu-north"), relay(3, "eu-west"), relay(4), relay(5, "europe")]
        self.assertEqual(self.numbers(relays, "eu-west", "eu"), [3, 2, 1, 4, 5])

    def test_without_hints_by_fingerprint(self) -> None:
        self.assertEqual(self.numbers([relay(3), relay(1, "eu"), relay(2)]), [1, 2, 3])

    def test_a_hint_that_fits_nothing(self) -> None:
        self.assertEqual(self.numbers([relay(2, "eu"), relay(1, "us")], "mars", "e", "", "eu-"), [1, 2])

    def test_the_best_of_several_labels_counts(self) -> None:
        self.assertEqual(self.numbers([relay(1, "us"), relay(2, "us", "eu")], "eu", "us"), [2, 1])

    @given(st.permutations(range(6)), st.lists(st.sampled_from(["eu", "us", "eu-west", "x"]), max_size=4))
    def test_the_order_they_come_in_does_not_matter(self, order: list[int], hints: list[str]) -> None:
        kinds = [("eu",), ("us",), ("eu-west",), (), ("us-east", "eu-north"), ("eu",)]
        chosen = self.numbers([relay(n, *kinds[n]) for n in order], *hints)
        self.assertEqual(chosen, self.numbers([relay(n, *kinds[n]) for n in range(6)], *hints))
        self.assertEqual(sorted(chosen), list(range(6)))

    def numbers(self, relays: list[LabelledRelay], *hints: str) -> list[int]:
        return [int(fingerprint, 16) for fingerprint in choose_relays(relays, hints)]
