"""Tracing against a collector that speaks OTLP/HTTP: the spans of a request form one tree under its correlation id."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import random
import sys
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Metrics
from ron.kernel.logs import JsonLogObserver, kid_hash
from ron.kernel.tracing import ALLOWED, MAX_SPANS_PER_S, Span, Tracing, _allowed
from ron.proto.errors import RonError
from ron.proto.ids import uuid7

NOWHERE = "http://127.0.0.1:9"
SECRET = "hunter2hunter2hunter2"


class Collector:
    """Takes OTLP/HTTP on a loopback port and keeps what it was told; can be made to take its time."""

    def __init__(self, *, answering: bool = True) -> None:
        self.received: list[tuple[str, ExportTraceServiceRequest]] = []
        self.go_on = threading.Event()
        if answering:
            self.go_on.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.go_on.wait(20)
                request = ExportTraceServiceRequest.FromString(body)
                collector.received.append((self.path, request))
                answer = ExportTraceServiceResponse().SerializeToString()
                with contextlib.suppress(OSError):
                    self.send_response(200)
                    self.send_header("Content-Type", "application/x-protobuf")
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *_args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def spans(self) -> Iterator[tuple[dict[str, Any], Any]]:
        """Each span received with the attributes of its resource."""
        for _path, request in self.received:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        yield plain(resource.resource.attributes), span


def plain(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def begun(span: Span | None) -> Span:
    assert span is not None, "not sampled"
    return span


class WithCollector(SynchronousTestCase):
    def setUp(self) -> None:
        self.collector = Collector()
        self.addCleanup(self.collector.close)

    def tracing(self, service: str = "ron-node", **settings: Any) -> Tracing:
        tracing = Tracing(service, self.collector.url, **{"sampling": 1.0, **settings})
        self.addCleanup(tracing.shutdown)
        return tracing

    def sent(self, *tracings: Tracing) -> list[Any]:
        """The spans that have arrived once the tracings are shut down."""
        for tracing in tracings:
            self.assertTrue(tracing.shutdown(10))
        return [span for _resource, span in self.collector.spans()]


class Refused(SynchronousTestCase):
    """Settings that cannot be meant."""

    def test_endpoints(self) -> None:
        for endpoint in (
            "127.0.0.1:4318",
            "ftp://127.0.0.1",
            "file:///etc/passwd",
            "http://",
            "http:///v1/traces",
            "http://host:99999",
            "http://host:x",
            "http://[::1",
            "http://host/\r\nX: y",
            "http://ho st/",
            "http://user:password@host",
            "http://user@host",
            "http://host/?key=abc",
            "http://host/#x",
        ):
            refusal = self.assertRaises(RonError, Tracing, "s", endpoint)
            self.assertNotIn("password", refusal.one_line())

    def test_parts(self) -> None:
        for part in (-0.1, 1.1, float("nan"), float("inf")):
            self.assertRaises(RonError, Tracing, "s", "", sampling=part)
            self.assertRaises(RonError, Tracing, "s", "", incident_sampling=part)


class Off(SynchronousTestCase):
    """Without an endpoint, under amnesia, without the extra: no spans, and correlation ids all the same."""

    def assert_off(self, tracing: Tracing) -> None:
        corr_id, carrier = str(uuid7()), {}
        tracing.incident(True)
        self.assertFalse(tracing.enabled)
        self.assertIsNone(tracing.start("x", corr_id))
        self.assertIsNone(tracing.start_from("x", corr_id, f"00-{uuid.UUID(corr_id).hex}-{'1' * 16}-01"))
        tracing.inject(corr_id, None, carrier)
        self.assertEqual(carrier, {"x-corr-id": corr_id})
        self.assertEqual(tracing.extract({**carrier, "traceparent": "00-"}), (corr_id, None))
        self.assertTrue(tracing.shutdown())

    def test_no_endpoint(self) -> None:
        tracing = Tracing("s", "", sampling=1.0)
        self.assertIsNone(tracing.problem)
        self.assert_off(tracing)

    def test_amnesia(self) -> None:
        tracing = Tracing("s", NOWHERE, sampling=1.0, amnesia=True)
        self.assertIn("amnesia", tracing.problem or "")
        self.assert_off(tracing)

    def test_without_the_extra(self) -> None:
        self.patch_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        tracing = Tracing("s", NOWHERE, sampling=1.0)
        self.assertIn("rustyonions[otel]", tracing.problem or "")
        self.assert_off(tracing)

    def patch_module(self, name: str) -> None:
        """As if `name` were not installed."""
        importlib.import_module(name)
        self.addCleanup(sys.modules.__setitem__, name, sys.modules[name])
        sys.modules[name] = None  # type: ignore[assignment]

    def test_a_correlation_id_that_is_none(self) -> None:
        tracing = Tracing("s")
        for text in ("", "x", "g" * 36, str(uuid7()) + "0"):
            self.assertIsNone(tracing.extract({"x-corr-id": text}).corr_id)
        self.assertEqual(tracing.extract({}), (None, None))


class Sampled(SynchronousTestCase):
    """Which requests are traced: decided by the correlation id alone, so that all services agree."""

    def tracing(self, **settings: Any) -> Tracing:
        tracing = Tracing("s", NOWHERE, **settings)
        self.addCleanup(tracing.shutdown, 0.0)
        return tracing

    def test_none_and_all(self) -> None:
        none, every = self.tracing(sampling=0.0), self.tracing(sampling=1.0)
        for _ in range(1000):
            corr_id = str(uuid7())
            self.assertEqual((none.sampled(corr_id), every.sampled(corr_id)), (False, True))

    def test_the_part_is_about_right_and_an_incident_raises_it(self) -> None:
        rng = random.Random(1)
        ids = [str(uuid.UUID(int=rng.getrandbits(128))) for _ in range(40_000)]
        one, other = self.tracing(), self.tracing()
        quiet = {i for i in ids if one.sampled(i)}
        self.assertTrue(15 < len(quiet) < 80, len(quiet))
        self.assertEqual(quiet, {i for i in ids if other.sampled(i)})
        one.incident(True)
        incident = {i for i in ids if one.sampled(i)}
        self.assertTrue(1700 < len(incident) < 2300, len(incident))
        self.assertLess(quiet, incident)
        one.incident(False)
        self.assertEqual(quiet, {i for i in ids if one.sampled(i)})

    def test_an_incident_never_lowers_it(self) -> None:
        tracing = self.tracing(sampling=1.0, incident_sampling=0.05)
        tracing.incident(True)
        self.assertTrue(all(tracing.sampled(str(uuid7())) for _ in range(500)))

    def test_what_is_not_sampled_has_no_span(self) -> None:
        self.assertIsNone(self.tracing(sampling=0.0).start("x", str(uuid7())))

    def test_an_id_that_is_no_uuid_has_no_trace(self) -> None:
        tracing = self.tracing(sampling=1.0)
        for corr_id in ("", "x", str(uuid.UUID(int=0))):
            self.assertIsNone(tracing.start("x", corr_id))

    def test_so_many_a_second_and_no_more(self) -> None:
        clock, metrics = Clock(), Metrics()
        clock.advance(10)
        tracing = self.tracing(sampling=1.0, now=clock.seconds, metrics=metrics)
        ids = [str(uuid7()) for _ in range(MAX_SPANS_PER_S + 5)]
        self.assertEqual(sum(tracing.start("x", i) is not None for i in ids), MAX_SPANS_PER_S)
        self.assertEqual(metrics.registry.get_sample_value("spans_total", {"result": "shed"}), 5)
        clock.advance(1)
        self.assertIsNotNone(tracing.start("x", ids[0]))


class Trees(WithCollector):
    """What a collector gets to see."""

    def test_one_request_through_two_services_is_one_tree(self) -> None:
        node, kms = self.tracing("ron-node", environment="test"), self.tracing("ron-kms")
        corr_id = str(uuid7())
        http = begun(node.start("svc.node.http", corr_id, None, {"route": "/v1/sign", "method": "POST"}))
        call = begun(node.start("svc.node.call", corr_id, http))
        carrier: dict[str, str] = {}
        node.inject(corr_id, call, carrier)
        origin = kms.extract(carrier)
        self.assertEqual(origin.corr_id, corr_id)
        sign = begun(kms.start("svc.kms.sign", corr_id, origin.parent, {"kid": "core/1", "alg": "ed25519"}))
        backend = begun(kms.start("backend.file.sign", corr_id, sign))
        backend.end()
        sign.end(error="StoreUnavailable")
        call.end()
        http.end(503)
        self.sent(node, kms)
        found = {span.name: (resource, span) for resource, span in self.collector.spans()}
        self.assertEqual(
            {name: resource["service.name"] for name, (resource, _span) in found.items()},
            {
                "svc.node.http": "ron-node",
                "svc.node.call": "ron-node",
                "svc.kms.sign": "ron-kms",
                "backend.file.sign": "ron-kms",
            },
        )
        self.assertEqual(found["svc.node.http"][0]["deployment.environment"], "test")
        for resource, span in found.values():
            self.assertEqual(span.trace_id, uuid.UUID(corr_id).bytes)
            self.assertEqual(plain(span.attributes)["corr_id"], corr_id)
            self.assertGreaterEqual(span.end_time_unix_nano, span.start_time_unix_nano)
            self.assertTrue(resource["service.version"])
        ids = {name: span.span_id for name, (_resource, span) in found.items()}
        self.assertEqual(len(set(ids.values())), 4)
        parents = {name: span.parent_span_id for name, (_resource, span) in found.items()}
        self.assertEqual(parents["svc.node.http"], b"")
        self.assertEqual(parents["svc.node.call"], ids["svc.node.http"])
        self.assertEqual(parents["svc.kms.sign"], ids["svc.node.call"])
        self.assertEqual(parents["backend.file.sign"], ids["svc.kms.sign"])
        sign_said = plain(found["svc.kms.sign"][1].attributes)
        self.assertEqual((sign_said["kid_hash"], sign_said["error.kind"]), (kid_hash("core/1"), "StoreUnavailable"))
        self.assertEqual(plain(found["svc.node.http"][1].attributes)["status"], 503)
        errors = {name for name, (_resource, span) in found.items() if span.status.code == 2}
        self.assertEqual(errors, {"svc.node.http", "svc.kms.sign"})

    def test_the_path_and_the_counter(self) -> None:
        metrics = Metrics()
        tracing = self.tracing(metrics=metrics)
        begun(tracing.start("x", str(uuid7()))).end()
        self.sent(tracing)
        self.assertEqual([path for path, _request in self.collector.received], ["/v1/traces"])
        self.assertEqual(metrics.registry.get_sample_value("spans_total", {"result": "ok"}), 1)

    def test_an_endpoint_with_the_whole_path(self) -> None:
        tracing = Tracing("s", self.collector.url + "/v1/traces/", sampling=1.0)
        begun(tracing.start("x", str(uuid7()))).end()
        self.sent(tracing)
        self.assertEqual([path for path, _request in self.collector.received], ["/v1/traces"])

    def test_a_sampled_parent_is_followed_where_the_sampling_is_lower(self) -> None:
        """Under an incident in one service only, the trees are whole all the same."""
        raised, quiet = self.tracing("a"), self.tracing("b", sampling=0.0, incident_sampling=1.0)
        quiet.incident(True)
        quiet._limit = 1
        corr_id = next(i for i in iter(lambda: str(uuid7()), "") if not quiet.sampled(i))
        carrier: dict[str, str] = {}
        parent = begun(raised.start("parent", corr_id))
        raised.inject(corr_id, parent, carrier)
        child = begun(quiet.start_from("child", corr_id, carrier["traceparent"]))
        child.end()
        parent.end()
        spans = {span.name: span for span in self.sent(raised, quiet)}
        self.assertEqual(spans["child"].parent_span_id, spans["parent"].span_id)

    def test_a_stranger_cannot_pull_our_spans_into_its_trace(self) -> None:
        tracing = self.tracing()
        corr_id = str(uuid7())
        strange = f"00-{'ab' * 16}-{'cd' * 8}-01"
        begun(tracing.start_from("x", corr_id, strange)).end()
        (span,) = self.sent(tracing)
        self.assertEqual((span.trace_id, span.parent_span_id), (uuid.UUID(corr_id).bytes, b""))

    def test_a_stranger_cannot_have_itself_traced(self) -> None:
        tracing = self.tracing(sampling=2**-31)
        corr_id = next(i for i in iter(lambda: str(uuid7()), "") if not tracing.sampled(i))
        self.assertIsNone(tracing.start_from("x", corr_id, f"00-{'ab' * 16}-{'cd' * 8}-01"))

    def test_malformed_parents_are_as_none(self) -> None:
        tracing = self.tracing()
        corr_id = str(uuid7())
        hexed = uuid.UUID(corr_id).hex
        for text in (
            "",
            "x",
            f"00-{hexed}-{'0' * 16}-01",
            f"00-{'0' * 32}-{'1' * 16}-01",
            f"00-{hexed}-{'1' * 16}-00",
            f"ff-{hexed}-{'1' * 16}-01",
            f"00-{hexed}-{'1' * 16}-01-more",
            f"00-{hexed.upper()}X-{'1' * 16}-01",
            "0" * 100_000,
        ):
            self.assertIsNone(tracing.extract({"traceparent": text}).parent, text[:80])
            begun(tracing.start_from("x", corr_id, text)).end()
        self.assertEqual({span.parent_span_id for span in self.sent(tracing)}, {b""})

    def test_no_proxy_and_no_variable_of_the_environment_changes_where_spans_go(self) -> None:
        for name, value in {
            "http_proxy": NOWHERE,
            "HTTP_PROXY": NOWHERE,
            "OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE,
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=other,host.name=secret",
            "OTEL_TRACES_SAMPLER": "always_off",
        }.items():
            before = os.environ.get(name)
            os.environ[name] = value
            self.addCleanup(os.environ.__setitem__, name, before) if before is not None else self.addCleanup(
                os.environ.pop, name
            )
        tracing = self.tracing("ours")
        begun(tracing.start("x", str(uuid7()))).end()
        self.sent(tracing)
        ((resource, _span),) = self.collector.spans()
        self.assertEqual(set(resource), {"service.name", "service.version"})
        self.assertEqual(resource["service.name"], "ours")


class Redacted(WithCollector):
    """Spans say what is on the list, and nothing that looks like a credential."""

    def test_on_the_wire(self) -> None:
        tracing = self.tracing()
        span = begun(
            tracing.start(
                "x",
                str(uuid7()),
                attributes={
                    "token": SECRET,
                    "payload": SECRET,
                    "authorization": f"Bearer {SECRET}",
                    "topic": SECRET,
                    "reason": f"refused Bearer {SECRET}",
                    "route": "/" + "x" * 5000,
                    "bytes": 2**70,
                    "cache_age_ms": float("nan"),
                    "result": object(),
                },
            )
        )
        span.set({"secret": SECRET, "kid": SECRET, "tenant": f"token={SECRET}", "messages": 3, "attempt": True})
        span.end()
        span.end()
        span.set({"reason": "late"})
        (sent,) = self.sent(tracing)
        self.assertNotIn(SECRET.encode(), sent.SerializeToString())
        said = plain(sent.attributes)
        self.assertEqual(said["reason"], "refused [redacted]")
        self.assertEqual((said["kid_hash"], said["messages"], said["attempt"]), (kid_hash(SECRET), 3, True))
        self.assertEqual(said["bytes"], str(2**70))
        self.assertEqual(len(said["route"]), 256)
        self.assertLess(set(said), ALLOWED)

    @given(
        st.dictionaries(
            st.sampled_from([*sorted(ALLOWED), "kid", "token", "payload", "topic", ""]),
            st.text() | st.integers() | st.floats() | st.booleans() | st.binary() | st.none() | st.lists(st.text()),
        )
    )
    def test_whatever_is_given(self, attributes: dict[str, Any]) -> None:
        said = _allowed(attributes)
        self.assertLessEqual(set(said), ALLOWED)
        for value in said.values():
            self.assertIsInstance(value, str | bool | int | float)
            self.assertTrue(not isinstance(value, int) or -(2**63) <= value < 2**63)


class Trouble(SynchronousTestCase):
    """A collector that is down or slow disturbs nobody."""

    def test_nobody_there(self) -> None:
        observer = JsonLogObserver(None, service="s")
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        metrics, stderr = Metrics(), io.StringIO()
        self.patch(sys, "stderr", stderr)
        tracing = Tracing("s", NOWHERE, sampling=1.0, metrics=metrics)
        for _ in range(600):
            begun(tracing.start("x", str(uuid7()))).end()
        tracing.shutdown(5)
        self.assertGreater(metrics.registry.get_sample_value("spans_total", {"result": "failed"}) or 0, 0)
        self.assertEqual(stderr.getvalue(), "")
        told = [line for line in observer.ring if "tracing_export" in line]
        self.assertLessEqual(len(told), 1)

    def test_a_collector_that_takes_its_time_does_not_hold_up_the_shutdown(self) -> None:
        collector = Collector(answering=False)
        self.addCleanup(collector.close)
        tracing = Tracing("s", collector.url, sampling=1.0)
        begun(tracing.start("x", str(uuid7()))).end()
        self.assertFalse(tracing.shutdown(0.2))
        self.assertIsNone(tracing.start("x", str(uuid7())))
        self.assertTrue(tracing.shutdown(0.2), "a second time there is nothing to do")
