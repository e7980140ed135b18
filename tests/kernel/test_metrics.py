"""The golden metrics, their text, and the sum over processes."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import Enum, Gauge, Histogram, Info, Summary, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import HealthState, Metrics
from ron.kernel.metrics import Family, Sample, render_merged

Read = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read_text(text: bytes) -> Read:
    """What a scraper reads. Raises when a sample stands there twice."""
    found: Read = {}
    for family in text_string_to_metric_families(text.decode("utf-8")):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


def samples(metrics: Metrics) -> Read:
    """What a scraper reads of one process."""
    return read_text(metrics.render())


class Golden(SynchronousTestCase):
    def test_what_is_counted_is_what_a_scraper_reads(self) -> None:
        metrics = Metrics()
        metrics.http_requests.labels("/v1/send", "POST", 200).inc()
        metrics.http_requests.labels("/v1/send", "POST", 200).inc()
        metrics.request_latency.labels("/v1/send", "POST").observe(0.003)
        metrics.inflight.labels("/v1/send").inc()
        metrics.rejected.labels("unauth").inc()
        metrics.restarts.labels("tor.relay1").inc()
        read = samples(metrics)
        route = (("method", "POST"), ("route", "/v1/send"))
        self.assertEqual(read["http_requests_total", (("method", "POST"), ("route", "/v1/send"), ("status", "200"))], 2)
        self.assertEqual(read["request_latency_seconds_count", route], 1)
        self.assertEqual(read["request_latency_seconds_bucket", (("le", "0.0025"), *route)], 0)
        self.assertEqual(read["request_latency_seconds_bucket", (("le", "0.005"), *route)], 1)
        self.assertEqual(read["inflight_requests", (("route", "/v1/send"),)], 1)
        self.assertEqual(read["rejected_total", (("reason", "unauth"),)], 1)
        self.assertEqual(read["service_restarts_total", (("service", "tor.relay1"),)], 1)

    def test_the_kernels_own(self) -> None:
        metrics = Metrics()
        for counter, name, label in (
            (metrics.bus_published, "bus_published_total", "topic"),
            (metrics.bus_lagged, "bus_lagged_total", "subscriber"),
            (metrics.queue_dropped, "queue_dropped_total", "queue"),
            (metrics.busy, "busy_rejections_total", "queue"),
            (metrics.io_timeouts, "io_timeouts_total", "op"),
            (metrics.aborted, "tasks_aborted_total", "kind"),
            (metrics.config_reloads, "config_reloads_total", "result"),
            (metrics.anomalies, "anomalies_total", "kind"),
        ):
            counter.labels("x").inc(3)
            self.assertEqual(samples(metrics)[name, ((label, "x"),)], 3, name)
        for plain, name in (
            (metrics.bus_dropped, "bus_overflow_dropped_total"),
            (metrics.bytes_in, "bytes_in_total"),
            (metrics.bytes_out, "bytes_out_total"),
            (metrics.quarantined, "quarantined_services"),
            (metrics.config_version, "config_version"),
        ):
            self.assertEqual(samples(metrics)[name, ()], 0, "shown before the first one")
            plain.inc(2)
            self.assertEqual(samples(metrics)[name, ()], 2, name)
        metrics.queue_depth.labels("mailbox").set(4)
        metrics.open_connections.labels("gateway").set(5)
        self.assertEqual(samples(metrics)["queue_depth", (("queue", "mailbox"),)], 4)
        self.assertEqual(samples(metrics)["open_connections", (("listener", "gateway"),)], 5)

    def test_a_name_is_registered_once(self) -> None:
        metrics = Metrics()
        self.assertRaises(
            ValueError, Histogram, "request_latency_seconds", "again", ["route"], registry=metrics.registry
        )

    def test_the_process_itself_is_measured(self) -> None:
        self.assertGreater(samples(Metrics())["process_resident_memory_bytes", ()], 1e6)

    def test_two_processes_worth_of_metrics_are_apart(self) -> None:
        one, other = Metrics(), Metrics()
        one.rejected.labels("unauth").inc()
        self.assertNotIn(("rejected_total", (("reason", "unauth"),)), samples(other))

    def test_the_content_type_is_prometheus_text(self) -> None:
        self.assertEqual(Metrics.content_type, "text/plain; version=0.0.4; charset=utf-8")


class AsTheLibraryWrites(SynchronousTestCase):
    """Our text is the client library's, byte by byte, whatever stands in it."""

    def compare(self, metrics: Metrics) -> None:
        ours, theirs = metrics.render(), generate_latest(metrics.registry)
        # what is of the process itself changes while it is looked at
        self.assertEqual(self.steady(ours), self.steady(theirs))
        merged = render_merged({"one": metrics.export()})
        self.assertEqual(sorted(self.steady(merged)), sorted(self.steady(theirs)))

    def steady(self, text: bytes) -> list[bytes]:
        return [line for line in text.split(b"\n") if not line.startswith((b"process_", b"python_"))]

    @given(st.lists(st.tuples(st.text(), st.text(), st.floats()), max_size=5))
    @example([('"', "\\n", 0.0), ("\n\r\x0b\x0c\x1c\u2028", "{},=", -0.0), ("a", "\x00", 1e21), ("b", "ä", math.inf)])
    def test_any_labels_and_numbers(self, samples: list[tuple[str, str, float]]) -> None:
        metrics = Metrics()
        gauge = Gauge("thing", 'a "help"\\ of\nlines', ["z", "a"], registry=metrics.registry)
        for first, second, value in samples:
            gauge.labels(first, second).set(value)
            metrics.request_latency.labels(first, second).observe(value)
        self.compare(metrics)

    def test_every_type(self) -> None:
        metrics = Metrics()
        Info("build", "x", registry=metrics.registry).info({"version": "1"})
        Enum("state", "x", states=["up", "down"], registry=metrics.registry).state("up")
        Summary("size", "x", registry=metrics.registry).observe(3)
        metrics.http_requests.labels("/", "GET", "200").inc()
        self.compare(metrics)

    def test_labels_in_another_order_are_the_same(self) -> None:
        one, other = ({"a": "1", "b": "2"}, {"b": "2", "a": "1"})
        families = [
            Family(name="t", type="counter", help="", samples=(Sample("t_total", x, 1.0),)) for x in (one, other)
        ]
        read = read_text(render_merged({"one": families[:1], "other": families[1:]}))
        self.assertEqual(read, {("t_total", (("a", "1"), ("b", "2"))): 2.0})


class Followed(SynchronousTestCase):
    """Gauges that are read when someone asks."""

    def test_readiness(self) -> None:
        metrics, health = Metrics(), HealthState()
        self.assertNotIn(("node_ready", ()), samples(metrics))
        metrics.follow_health(health)
        self.assertEqual(samples(metrics)["node_ready", ()], 0)
        health.ok("listeners")
        self.assertEqual(samples(metrics)["node_ready", ()], 1)
        health.missing("listeners", "gone")
        self.assertEqual(samples(metrics)["node_ready", ()], 0)

    def test_the_disk(self) -> None:
        metrics = Metrics()
        metrics.follow_disk(Path.cwd())
        self.assertGreater(samples(metrics)["disk_free_bytes", ()], 0)

    def test_a_disk_that_is_not_there(self) -> None:
        metrics = Metrics()
        metrics.follow_disk(Path("/nonexistent/home"))
        self.assertTrue(math.isnan(samples(metrics)["disk_free_bytes", ()]))


def process(**counts: int) -> Metrics:
    """A process that refused so many requests by reason."""
    metrics = Metrics()
    for reason, count in counts.items():
        metrics.rejected.labels(reason).inc(count)
    return metrics


class MergedTests(SynchronousTestCase):
    """Several processes, one text."""

    def merge(self, **processes: Metrics) -> Read:
        """As it happens between processes: encoded, sent, decoded, merged."""
        sent = msgspec.msgpack.encode({name: metrics.export() for name, metrics in processes.items()})
        return read_text(render_merged(msgspec.msgpack.decode(sent, type=dict[str, list[Family]])))

    def test_nothing_at_all(self) -> None:
        self.assertEqual(render_merged({}), b"")

    def test_one_process_alone_keeps_its_numbers(self) -> None:
        one = process(unauth=3)
        alone = {k: v for k, v in samples(one).items() if not k[0].startswith(("process_", "python_"))}
        merged = self.merge(one=one)
        for key, value in alone.items():
            if not key[0].endswith("_created"):
                self.assertEqual(merged[key], value, key)

    def test_counters_with_the_same_labels_are_added(self) -> None:
        read = self.merge(one=process(unauth=3, rate=1), other=process(unauth=4))
        self.assertEqual(read["rejected_total", (("reason", "unauth"),)], 7)
        self.assertEqual(read["rejected_total", (("reason", "rate"),)], 1)

    def test_histograms_are_added_bucket_by_bucket(self) -> None:
        one, other = Metrics(), Metrics()
        one.request_latency.labels("/", "GET").observe(0.003)
        other.request_latency.labels("/", "GET").observe(0.3)
        read = self.merge(one=one, other=other)
        labels = (("method", "GET"), ("route", "/"))
        self.assertEqual(read["request_latency_seconds_bucket", (("le", "0.005"), *labels)], 1)
        self.assertEqual(read["request_latency_seconds_bucket", (("le", "+Inf"), *labels)], 2)
        self.assertEqual(read["request_latency_seconds_count", labels], 2)
        self.assertAlmostEqual(read["request_latency_seconds_sum", labels], 0.303)

    def test_amounts_are_added_and_states_are_not(self) -> None:
        one, other = Metrics(), Metrics()
        for metrics, version, connections in ((one, 3, 10), (other, 2, 5)):
            metrics.config_version.set(version)
            metrics.open_connections.labels("gateway").set(connections)
        read = self.merge(one=one, other=other)
        self.assertEqual(read["config_version", ()], 3)
        self.assertEqual(read["open_connections", (("listener", "gateway"),)], 15)

    def test_a_service_says_how_its_own_gauge_is_merged(self) -> None:
        one, other = Metrics(), Metrics()
        for metrics, value in ((one, 1), (other, 4)):
            metrics.merge_rules["tide"] = "max"
            metrics._gauge("tide", "x").set(value)
        self.assertEqual(self.merge(one=one, other=other)["tide", ()], 4)

    def test_what_is_of_a_process_says_of_which(self) -> None:
        read = self.merge(one=Metrics(), other=Metrics())
        for name in ("one", "other"):
            self.assertGreater(read["process_resident_memory_bytes", (("process", name),)], 1e6)
        self.assertNotIn(("process_resident_memory_bytes", ()), read)

    def test_creation_times_are_left_out(self) -> None:
        self.assertNotIn(b"_created", render_merged({"one": process(unauth=1).export()}))
        self.assertNotIn(b"_created", process(unauth=1).render())

    def test_one_name_of_two_types_keeps_the_first(self) -> None:
        first = Family(name="thing", type="gauge", help="a", samples=(Sample("thing", {}, 1.0),))
        second = Family(name="thing", type="counter", help="b", samples=(Sample("thing_total", {}, 5.0),))
        self.assertEqual(read_text(render_merged({"a": [first], "b": [second]})), {("thing", ()): 1.0})

    @given(st.lists(st.dictionaries(st.text(max_size=5), st.integers(0, 2**40), max_size=4), min_size=1, max_size=5))
    def test_the_sum_is_the_sum_whatever_the_labels_hold(self, counts: list[dict[str, int]]) -> None:
        exports = {}
        for index, one in enumerate(counts):
            found = tuple(Sample("thing_total", {"label": text}, value) for text, value in one.items())
            exports[str(index)] = [Family(name="thing", type="counter", help="x\n\\", samples=found)]
        read = read_text(render_merged(exports))
        texts = {text for one in counts for text in one}
        expected = {("thing_total", (("label", text),)): float(sum(c.get(text, 0) for c in counts)) for text in texts}
        self.assertEqual(read, expected)

    def test_prometheus_itself_has_nothing_to_say_against_it(self) -> None:
        promtool = shutil.which("promtool")
        assert promtool is not None, "scripts/setup test installs it"
        one = process(unauth=1)
        one.request_latency.labels("/", "GET").observe(1)
        for text in (one.render(), render_merged({"one": one.export(), "other": Metrics().export()})):
            done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
            # 3: style remarks, which the families of the client library itself cause; 1: it cannot be parsed
            self.assertIn(done.returncode, {0, 3}, done.stderr)
            ours = [
                line
                for line in (done.stdout + done.stderr).decode().splitlines()
                if not line.startswith(("process_", "python_")) and "_created" not in line
            ]
            self.assertEqual(ours, [])
