"""Where a request spent its time: spans of the key service, as a collector gets them (OBSERVABILITY §4 and §6)."""

from __future__ import annotations

from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import correlation
from ron.kernel.logs import kid_hash
from ron.kernel.openspans import OpenSpans
from ron.kernel.tracing import Tracing
from ron.proto.errors import not_found
from ron.proto.ids import uuid7
from ron.proto.kms import parse_kid
from ron.services.kms.tracing import Spans
from tests.kernel.test_tracing import Collector, plain
from tests.services.kms.world import B3, UNKNOWN, World

CORR_ID = "018f3a6e-0000-7000-8000-000000000001"
PARENT = "00f067aa0ba902b7"


class Traced(World):
    async def setUp(self) -> None:
        self.collector = Collector()
        self.addCleanup(self.collector.close)
        self.tracing = Tracing("ron-kms", self.collector.url, sampling=1.0)
        self.spans = OpenSpans(self.tracing)
        await super().setUp()

    async def sent(self, corr_id: str = CORR_ID) -> dict[str, Any]:
        """The spans of one request, by name."""
        assert self.tracing is not None
        self.assertTrue(await deferToThread(self.tracing.shutdown, 10.0))
        trace_id = bytes.fromhex(corr_id.replace("-", ""))
        return {span.name: span for _resource, span in self.collector.spans() if span.trace_id == trace_id}

    def is_below(self, child: Any, parent: Any) -> None:
        self.assertEqual(child.parent_span_id, parent.span_id, f"{child.name} below {parent.name}")

    async def traced(self, path: str, body: Any, **headers: str) -> Any:
        more = {"X-Corr-ID": CORR_ID, **headers}
        return await self.ask("POST", path, body, more=more)

    async def test_a_signature(self) -> None:
        kid = await self.create("hybrid")
        await self.traced("/sign", {"kid_or_set": {"kid": kid}, "payload_b3": B3})
        found = await self.sent()
        self.assertEqual(
            set(found),
            {"svc.kms.http", "svc.kms.sign", "backend.inmem.sign", "svc.kms.attest.refresh", "svc.kms.audit.append"},
        )
        self.is_below(found["svc.kms.sign"], found["svc.kms.http"])
        for name in ("backend.inmem.sign", "svc.kms.attest.refresh", "svc.kms.audit.append"):
            self.is_below(found[name], found["svc.kms.sign"])
        said = plain(found["svc.kms.sign"].attributes)
        self.assertEqual(said["kid_hash"], kid_hash(kid))
        self.assertEqual((said["tenant"], said["kid_version"], said["result"]), ("core", 1, "ok"))
        self.assertEqual((said["alg"], said["pq_mode"], said["corr_id"]), ("ed25519+ml-dsa", "and", CORR_ID))
        self.assertNotIn(kid, str(self.collector.received))
        self.assertNotIn(B3, str(self.collector.received))

    async def test_whose_trace_it_is(self) -> None:
        """W3C traceparent in: the caller's span is the parent."""
        kid = await self.create()
        parent = f"00-{CORR_ID.replace('-', '')}-{PARENT}-01"
        await self.traced("/sign", {"kid_or_set": {"kid": kid}, "payload_b3": B3}, traceparent=parent)
        found = await self.sent()
        self.assertEqual(found["svc.kms.http"].parent_span_id.hex(), PARENT)

    async def test_a_refusal(self) -> None:
        await self.traced("/sign", {"kid_or_set": {"kid": UNKNOWN}, "payload_b3": B3})
        found = await self.sent()
        said = plain(found["svc.kms.sign"].attributes)
        self.assertEqual((said["result"], said["error.kind"]), ("err", "NotFound"))

    async def test_the_life_of_a_key_and_wrapping(self) -> None:
        made = await self.traced("/keys", {"tenant": "core", "purpose": "kem", "alg": "hybrid"})
        kem = made.body["kid"]
        wrapped = await self.traced("/wrap", {"kid": kem, "size": 32})
        await self.traced("/unwrap", {"kid": kem, "wrapped_b64": wrapped.body["wrapped_b64"]})
        found = await self.sent()
        for name in ("svc.kms.create", "backend.inmem.generate", "svc.kms.wrap", "svc.kms.unwrap"):
            self.assertIn(name, found)
        self.is_below(found["backend.inmem.unwrap"], found["svc.kms.unwrap"])
        self.is_below(found["backend.inmem.generate"], found["svc.kms.create"])

    async def test_a_checkpoint_is_a_trace_of_its_own(self) -> None:
        await self.create()
        await self.service.log.checkpoint()
        assert self.tracing is not None
        self.assertTrue(await deferToThread(self.tracing.shutdown, 10.0))
        names = {span.name: span for _resource, span in self.collector.spans()}
        self.assertEqual(names["svc.kms.audit.checkpoint"].parent_span_id, b"")


class Off(SynchronousTestCase):
    """Where nothing is traced, and where nothing can be."""

    def test_no_spans_at_all(self) -> None:
        with Spans().during("svc.kms.sign", parse_kid(UNKNOWN), alg="x") as span:
            self.assertIsNone(span)
        with Spans().on_its_own("svc.kms.audit.checkpoint") as span:
            self.assertIsNone(span)
        self.assertIsNone(correlation.current())

    def test_not_sampled(self) -> None:
        spans = Spans(OpenSpans(Tracing("s", "http://127.0.0.1:9", sampling=0.0)))
        mark = correlation.begin(str(uuid7()))
        try:
            with spans.during("svc.kms.sign") as span:
                self.assertIsNone(span)
        finally:
            correlation.end(mark)

    def test_nobody_asked(self) -> None:
        tracing = Tracing("s", "http://127.0.0.1:9", sampling=1.0)
        self.addCleanup(tracing.shutdown, 0.1)
        with Spans(OpenSpans(tracing)).during("svc.kms.sign") as span:
            self.assertIsNone(span)

    def test_an_error_goes_on(self) -> None:
        with self.assertRaises(Exception) as caught, Spans().during("svc.kms.sign"):
            raise not_found("no key")
        self.assertIn("no key", str(caught.exception))
