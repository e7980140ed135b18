"""What is counted in plain numbers is what the client library would have counted."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import Counter, Gauge, Histogram
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Metrics

BOUNDS = (0.001, 0.01, 0.1)


class AsTheLibrary(SynchronousTestCase):
    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 1)), max_size=20), st.integers(0, 20))
    def test_times(self, times: list[float], look_at: int) -> None:
        metrics = Metrics()
        ours, theirs = (
            Histogram(name, "…", ["route"], buckets=BOUNDS, registry=metrics.registry).labels("a")
            for name in ("ours", "theirs")
        )
        tally = metrics.tallies.timing(ours)
        for number, seconds in enumerate(times):
            tally.observe(seconds)
            theirs.observe(seconds)
            if number == look_at:
                metrics.render()
        read = metrics.registry.get_sample_value
        for le in ("0.001", "0.01", "0.1", "+Inf"):
            labels = {"route": "a", "le": le}
            self.assertEqual(read("ours_bucket", labels), read("theirs_bucket", labels))
        self.assertEqual(read("ours_count", {"route": "a"}), len(times))
        self.assertAlmostEqual(read("ours_sum", {"route": "a"}) or 0.0, sum(times))

    def test_counts_are_there_whenever_somebody_looks(self) -> None:
        metrics = Metrics()
        counter = metrics.tallies.of(Counter("c", "…", ["x"], registry=metrics.registry).labels("1"))
        gauge = metrics.tallies.of(Gauge("g", "…", registry=metrics.registry))
        read = metrics.registry.get_sample_value
        self.assertEqual(read("c_total", {"x": "1"}), 0)
        counter.inc()
        counter.inc(4)
        gauge.inc()
        self.assertEqual((read("c_total", {"x": "1"}), read("g")), (5, 1))
        gauge.dec()
        self.assertIn(b'\nc_total{x="1"} 5.0\n', metrics.render())
        (found,) = [family for family in metrics.export() if family.name == "g"]
        self.assertEqual(found.samples[0].value, 0)
