"""Replays and clocks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.services.balance.mesh.clocks import SAMPLES, Drift, Sample, middle, sample
from ron.services.balance.mesh.replay import WINDOW, Lives, Window
from ron.services.balance.mesh.wire import Refused

OLD, NEW = b"oldboot1", b"newboot1"


class Windows(SynchronousTestCase):
    """Sequence numbers of one run."""

    @given(st.integers(0, 2**40), st.lists(st.integers(-2 * WINDOW, 2 * WINDOW), max_size=60))
    def test_as_a_set_of_all_that_were_seen(self, start: int, steps: list[int]) -> None:
        window, seen, highest = Window(start), set(), start
        for step in steps:
            seq = highest + step
            new = seq > start and seq > highest - WINDOW and seq not in seen
            self.assertEqual(new, window.take(seq))
            if new:
                seen.add(seq)
                highest = max(highest, seq)

    def test_memory_is_bounded(self) -> None:
        window = Window()
        self.assertTrue(window.take(2**63 - 1))
        self.assertFalse(window.take(2**63 - 1))
        self.assertTrue(window.take(2**63 - WINDOW))
        self.assertFalse(window.take(2**63 - 1 - WINDOW))


class Runs(SynchronousTestCase):
    """Lives of one sender."""

    def setUp(self) -> None:
        self.lives = Lives()

    def refused(self, act: object, *arguments: object) -> None:
        self.assertEqual("replayed", self.assertRaises(Refused, act, *arguments).reason)

    def test_nothing_before_a_hello(self) -> None:
        self.refused(self.lives.take, "a", 5, OLD, 1)

    def test_an_older_run_or_its_messages(self) -> None:
        self.lives.begin("a", 5, OLD, 0)
        self.lives.take("a", 5, OLD, 1)
        self.lives.begin("a", 6, NEW, 0)
        self.refused(self.lives.take, "a", 5, OLD, 2)
        self.refused(self.lives.begin, "a", 5, OLD, 0)
        self.refused(self.lives.begin, "a", 6, OLD, 0)
        self.lives.take("a", 6, NEW, 1)
        self.refused(self.lives.take, "a", 6, NEW, 1)

    def test_a_second_hello_of_a_run_keeps_its_window(self) -> None:
        self.lives.begin("a", 5, OLD, 10)
        self.lives.take("a", 5, OLD, 12)
        self.lives.begin("a", 5, OLD, 0)
        self.refused(self.lives.take, "a", 5, OLD, 12)
        self.refused(self.lives.take, "a", 5, OLD, 10)
        self.lives.take("a", 5, OLD, 11)

    def test_what_was_recorded_before_we_started(self) -> None:
        self.lives.begin("a", 5, OLD, 1000)
        self.refused(self.lives.take, "a", 5, OLD, 999)


class Clocks(SynchronousTestCase):
    """Drift."""

    def test_impossible_times(self) -> None:
        self.assertIsNone(sample(100, 50, 40, 120))
        self.assertIsNone(sample(100, 50, 60, 90))
        self.assertIsNone(sample(100, 0, 1000, 200))

    @given(st.integers(-(10**12), 10**12), st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**6))
    def test_the_error_is_at_most_half_the_round_trip(self, drift_us: int, there: int, back: int, held: int) -> None:
        sent = 10**15
        arrived = sent + there + drift_us
        found = sample(sent, arrived, arrived + held, sent + there + held + back)
        assert found is not None
        self.assertAlmostEqual((there + back) / 1e6, found.rtt_s, places=6)
        self.assertLessEqual(abs(found.drift_s - drift_us / 1e6), found.rtt_s / 2 + 1e-6)

    def test_the_fastest_of_the_last_counts(self) -> None:
        drift = Drift()
        self.assertIsNone(drift.drift_s)
        self.assertFalse(drift.is_stale(0, 1e9))
        for rtt_s, drift_s in ((0.5, 1.0), (0.1, 2.0), (0.9, 3.0)):
            drift.add(Sample(rtt_s, drift_s))
        self.assertEqual(2.0, drift.drift_s)
        for _ in range(SAMPLES):
            drift.add(Sample(0.7, 4.0))
        self.assertEqual(4.0, drift.drift_s)

    def test_stale_is_by_the_senders_clock(self) -> None:
        drift = Drift()
        drift.add(Sample(0.1, -3600.0))
        self.assertFalse(drift.is_stale(10_000_000, 10_000 + 3600))
        self.assertTrue(drift.is_stale(10_000_000, 10_000 + 3600 + 601))

    def test_the_median(self) -> None:
        self.assertIsNone(middle([None, None]))
        self.assertEqual(1.0, middle([None, 1.0, -600.0, 2.0]))
