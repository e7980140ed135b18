"""The golden metrics and their text."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a scraper reads."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode("utf-8"))
        for sample in family.samples
    }


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

    def test_the_process_itself_is_measured(self) -> None:
        self.assertGreater(samples(Metrics())["process_resident_memory_bytes", ()], 1e6)

    def test_two_processes_worth_of_metrics_are_apart(self) -> None:
        one, other = Metrics(), Metrics()
        one.rejected.labels("unauth").inc()
        self.assertNotIn(("rejected_total", (("reason", "unauth"),)), samples(other))

    def test_the_content_type_is_prometheus_text(self) -> None:
        self.assertEqual(Metrics.content_type, "text/plain; version=0.0.4; charset=utf-8")
