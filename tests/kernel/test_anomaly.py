"""Anomalies: what stands out is told once, what is usual never."""

from __future__ import annotations

import json
import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Metrics
from ron.kernel.anomaly import (
    ERROR_BURST,
    MAX_NAMES,
    QUIET_S,
    RESTART_STORM,
    SPIKE_MINIMUM,
    WARM_UP,
    Anomaly,
    AnomalyWatch,
    Burst,
    Spike,
)
from ron.kernel.logs import JsonLogObserver


class Spikes(SynchronousTestCase):
    def warm(self, spike: Spike, level: float = 20.0, seconds: int = 120) -> float:
        rng = random.Random(7)
        for second in range(seconds):
            self.assertIsNone(spike.observe(rng.gauss(level, 3), float(second)))
        return float(seconds)

    def test_no_numbers_are_passed_over(self) -> None:
        spike = Spike()
        now = self.warm(spike)
        for value in (math.nan, math.inf, -math.inf):
            self.assertIsNone(spike.observe(value, now))
        self.assertIsNotNone(spike.observe(500.0, now + 1))

    def test_far_above_its_past(self) -> None:
        spike = Spike()
        usual = spike.observe(500.0, self.warm(spike))
        assert usual is not None
        self.assertTrue(17 < usual < 23, usual)

    def test_below_the_minimum_nothing_is_a_spike(self) -> None:
        spike = Spike()
        for second in range(100):
            spike.observe(0.0, float(second))
        self.assertIsNone(spike.observe(SPIKE_MINIMUM - 1, 100.0))
        self.assertIsNotNone(spike.observe(SPIKE_MINIMUM, 101.0))

    def test_a_fall_is_none(self) -> None:
        spike = Spike()
        self.assertIsNone(spike.observe(0.0, self.warm(spike, level=1000.0)))

    def test_nothing_is_judged_without_a_past(self) -> None:
        spike = Spike()
        for second in range(WARM_UP):
            self.assertIsNone(spike.observe(1e6 if second % 2 else 0.0, float(second)))

    def test_one_spike_does_not_hide_the_next(self) -> None:
        spike = Spike()
        now = self.warm(spike)
        for second in range(0, 100, 20):
            self.assertIsNotNone(spike.observe(5000.0, now + second))
            for quiet in range(1, 20):
                self.assertIsNone(spike.observe(20.0, now + second + quiet))

    def test_a_new_normal_is_normal_after_a_while(self) -> None:
        spike = Spike()
        now = self.warm(spike)
        judged = [spike.observe(300.0, now + second) is not None for second in range(600)]
        self.assertTrue(judged[0])
        self.assertFalse(any(judged[300:]))

    def test_reading_often_does_not_forget_faster(self) -> None:
        """A thousand readings within one second are one second of the past."""
        spike = Spike()
        now = self.warm(spike)
        for step in range(1000):
            spike.observe(70.0, now + step / 1000)
        self.assertIsNotNone(spike.observe(200.0, now + 1))

    @settings(max_examples=100)
    @given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e4)), max_size=80))
    def test_the_usual_lies_within_what_was_seen(self, values: list[tuple[float, float]]) -> None:
        spike, now, seen = Spike(), 0.0, [0.0]
        for value, elapsed in values:
            now += elapsed
            usual = spike.observe(value, now)
            if usual is not None:
                self.assertGreater(value, usual)
                self.assertLessEqual(min(seen) - 1e-6, usual)
                self.assertLessEqual(usual, max(seen) * (1 + 1e-9) + 1e-6)
            seen.append(value)


class Bursts(SynchronousTestCase):
    def test_so_many_within_the_window(self) -> None:
        burst = Burst(3, 10.0)
        self.assertEqual([burst.observe(1, t) for t in (0.0, 1.0)], [None, None])
        self.assertEqual(burst.observe(1, 9.9), 2.0)

    def test_spread_out_they_are_none(self) -> None:
        burst = Burst(3, 10.0)
        self.assertEqual([burst.observe(1, t) for t in (0.0, 5.0, 10.0, 15.0)], [None] * 4)

    def test_many_at_once_and_none_at_all(self) -> None:
        burst = Burst(3, 10.0)
        self.assertIsNone(burst.observe(0, 0.0))
        self.assertIsNotNone(burst.observe(10**9, 0.0))

    @given(st.lists(st.floats(0, 5), min_size=1, max_size=60), st.integers(1, 6))
    def test_as_counting_would_say(self, gaps: list[float], count: int) -> None:
        burst, now, times = Burst(count, 10.0), 0.0, []
        for gap in gaps:
            now += gap
            times.append(now)
            within = sum(1 for t in times if now - t < 10.0) >= count
            self.assertEqual(burst.observe(1, now) is not None, within)


class Watch(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.watch = AnomalyWatch(self.metrics, self.clock.seconds)
        self.told: list[Anomaly] = []
        self.watch.on_anomaly(self.told.append)

    def counted(self, kind: str) -> float:
        return self.metrics.registry.get_sample_value("anomalies_total", {"kind": kind}) or 0.0

    def storm(self) -> None:
        for number in range(RESTART_STORM[0]):
            self.watch.observe("restart", f"service{number}")

    def test_an_unknown_kind(self) -> None:
        self.assertRaises(KeyError, self.watch.observe, "weather", "x", 1)

    def test_restarts_of_all_services_together_are_a_storm(self) -> None:
        self.storm()
        self.assertEqual([(a.kind, a.name) for a in self.told], [("restart", f"service{RESTART_STORM[0] - 1}")])
        self.assertEqual(self.counted("restart"), 1)

    def test_it_is_told_once_a_minute(self) -> None:
        self.storm()
        self.storm()
        self.assertEqual(len(self.told), 1)
        self.clock.advance(QUIET_S)
        self.storm()
        self.assertEqual((len(self.told), self.counted("restart")), (2, 2))

    def test_errors_are_counted_by_name(self) -> None:
        half = ERROR_BURST[0] // 2 + 1
        self.watch.observe("error", "store", half)
        self.watch.observe("error", "tor", half)
        self.assertEqual(self.told, [])
        self.watch.observe("error", "store", half)
        self.assertEqual([a.name for a in self.told], ["store"])

    def test_a_queue(self) -> None:
        for _second in range(30):
            self.clock.advance(1)
            self.watch.observe("queue", "mailbox", 3)
        found = self.watch.observe("queue", "mailbox", 900)
        self.assertEqual(self.told, [found])
        self.assertEqual(found, Anomaly(kind="queue", name="mailbox", value=900, expected=3.0))

    def test_the_log_line(self) -> None:
        observer = JsonLogObserver(None, service="s")
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.storm()
        line = json.loads(observer.ring[-1])
        self.assertEqual((line["event"], line["kind"], line["level"]), ("anomaly", "restart", "WARN"))

    def test_an_observer_that_fails_keeps_nobody_from_hearing(self) -> None:
        def broken(_anomaly: Anomaly) -> None:
            raise ValueError("no")

        watch = AnomalyWatch(self.metrics, self.clock.seconds)
        watch.on_anomaly(broken)
        watch.on_anomaly(self.told.append)
        for _ in range(RESTART_STORM[0]):
            watch.observe("restart", "x")
        self.assertEqual(len(self.told), 1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_names_are_bounded(self) -> None:
        for number in range(MAX_NAMES + 50):
            self.watch.observe("queue", str(number), 1)
        self.assertEqual(len(self.watch._triggers), MAX_NAMES)

    def test_a_kind_of_ones_own(self) -> None:
        self.watch.watch("tide", lambda: Burst(2, 1.0))
        self.watch.observe("tide", "x")
        self.assertIsNotNone(self.watch.observe("tide", "x"))
