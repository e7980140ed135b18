"""Spans across HTTP, OAP frames and the bus, exported as OTLP/HTTP (ron-kms OBSERVABILITY §4 and §8).

In: a correlation id (UUIDv7) that every service of one request carries. Out: for the few requests that are sampled,
spans whose trace id *is* that id, sent by a thread of the SDK; for all others nothing but the id itself.
The extra `otel` is optional: without it, without an endpoint or under amnesia no span is ever made.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from zlib import crc32

from prometheus_client import Counter
from twisted.logger import Logger

import ron
from ron.kernel.logs import kid_hash, redact
from ron.kernel.metrics import Metrics
from ron.proto.errors import bad_request
from ron.proto.ids import is_uuid

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as SdkSpan
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

CORR_ID = "x-corr-id"
TRACEPARENT = "traceparent"
# What a span may say: the fields of the log, none of which is a payload, a token, a topic or an address.
ALLOWED = frozenset(
    "alg app attempt attestation_class attestation_required backend bytes cache_age_ms "  # noqa: SIM905
    "corr_id error.kind kid_hash kid_version messages method op_id pq_mode queue reason request_id result route "
    "service status tenant transport".split()
)
QUEUE_SPANS = 2048
BATCH_SPANS = 512
EXPORT_EVERY_MS = 2000
EXPORT_TIMEOUT_S = 5.0
# A caller chooses its own correlation id, and could choose ones that are sampled: so many a second and no more.
MAX_SPANS_PER_S = 1000
_MAX_TEXT_CHARS = 256
_MAX_NAME_CHARS = 128
_HASHES = 2**32
_PATH = "/v1/traces"
_QUIET_S = 60.0
_log = Logger(namespace="ron.tracing")

Attributes = Mapping[str, Any]


class Remote(NamedTuple):
    """A sampled span of another process, the parent of what is done here."""

    context: Context


class Origin(NamedTuple):
    """Where a message comes from. corr_id: None when it carried none, or no UUID. parent: None unless it is sampled."""

    corr_id: str | None
    parent: Remote | None


class Span:
    """Something that is being done. End it once; whatever is said of it later is ignored."""

    __slots__ = ("_span", "corr_id")

    def __init__(self, span: SdkSpan, corr_id: str) -> None:
        self._span = span
        self.corr_id = corr_id

    def set(self, attributes: Attributes) -> None:
        """Add what is allowed of `attributes`; a `kid` becomes its hash, all else is left out."""
        self._span.set_attributes(_allowed(attributes))

    def end(self, status: int | None = None, *, error: str | None = None) -> None:
        """It is done. status: of the HTTP answer, an error from 500 on. error: the kind of failure, a name, no text."""
        if status is not None:
            self.set({"status": status})
        if error is not None:
            self.set({"error.kind": error})
        if error is not None or (status is not None and status >= 500):
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR)
        self._span.end()

    @property
    def context(self) -> Context:
        """For the SDK: the place of this span in its trace."""
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        return set_span_in_context(self._span, Context())


class Tracing:
    """Makes the spans of one process.

    service: the process's name. endpoint: base URL of an OTLP/HTTP collector (`http://127.0.0.1:4318`), "" for none.
    sampling, incident_sampling: the parts of all requests, 0 to 1, that are traced in quiet times and under an
    incident. rng: for span ids. now: a clock in seconds that does not go back. Raises `RonError` (BadRequest) for an
    endpoint that is no http(s) URL or carries credentials, and for parts out of range.
    `problem` says why nothing is traced although an endpoint is configured, else it is None.
    """

    def __init__(
        self,
        service: str,
        endpoint: str = "",
        *,
        sampling: float = 0.001,
        incident_sampling: float = 0.05,
        amnesia: bool = False,
        environment: str = "",
        metrics: Metrics | None = None,
        rng: random.Random | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts = (_threshold(sampling, "sampling"), _threshold(incident_sampling, "incident_sampling"))
        self._now = now
        self._second, self._begun = 0.0, 0
        self._spans = _span_counter(metrics)
        self._roots = threading.local()
        self._provider: TracerProvider | None = None
        self.problem: str | None = None
        url = _collector_url(endpoint) if endpoint else ""
        if url and amnesia:
            self.problem = "amnesia: nothing is exported"
        elif url:
            self._connect(url, service, environment, rng or random.SystemRandom())
        self._limit = self._parts[0] if self._provider is not None else 0

    @property
    def enabled(self) -> bool:
        """True when sampled requests are traced."""
        return self._provider is not None

    def incident(self, on: bool) -> None:
        """Sample as under an incident (True) or as in quiet times (False), from the next request on."""
        if self._provider is not None:
            self._limit = max(self._parts) if on else self._parts[0]

    def sampled(self, corr_id: str) -> bool:
        """Whether the request `corr_id` is traced. All services with the same settings say the same."""
        return crc32(corr_id.encode()) < self._limit

    def start(
        self, name: str, corr_id: str, parent: Span | Remote | None = None, attributes: Attributes | None = None
    ) -> Span | None:
        """Begin a span of the request `corr_id`, or None when it is not traced.

        name: fixed in code (`svc.kms.sign`). parent: what asked for it; a child of a traced span is traced. A remote
        parent counts when its trace is the one of `corr_id`. attributes: see `Span.set`.
        """
        limit = self._limit
        if not limit or (parent is None and crc32(corr_id.encode()) >= limit):
            return None
        return self._begin(name, corr_id, parent, attributes)

    def start_from(
        self, name: str, corr_id: str, traceparent: str | None, attributes: Attributes | None = None
    ) -> Span | None:
        """`start` with the parent that the text of a `traceparent` header names, if any."""
        parent = self._remote(traceparent) if traceparent and self._limit else None
        return self.start(name, corr_id, parent, attributes)

    def inject(self, corr_id: str, span: Span | None, carrier: MutableMapping[str, str]) -> None:
        """Put the correlation id, and the span's W3C `traceparent` if there is one, into headers or a message."""
        carrier[CORR_ID] = corr_id
        if span is not None:
            _propagator().inject(carrier, span.context)

    def extract(self, carrier: Mapping[str, str]) -> Origin:
        """What `inject` put in. carrier: names in lower case. Whatever is malformed is as if it were not there."""
        corr_id = carrier.get(CORR_ID)
        valid = corr_id if corr_id is not None and is_uuid(corr_id) else None
        return Origin(valid, self._remote(carrier.get(TRACEPARENT)) if self._limit else None)

    def shutdown(self, deadline_s: float = 3.0) -> bool:
        """Send what is waiting. Blocks for at most `deadline_s`; False when that was too short."""
        self._limit = 0
        if self._provider is None:
            return True
        worker = threading.Thread(target=self._provider.shutdown, name="tracing-shutdown", daemon=True)
        self._provider = None
        worker.start()
        worker.join(deadline_s)
        return not worker.is_alive()

    # -- the SDK ------------------------------------------------------------------------------------------------

    def _connect(self, url: str, service: str, environment: str, rng: random.Random) -> None:
        try:
            self._provider = _make_provider(url, service, environment, _ids(self._roots, rng), self._spans)
        except ImportError:
            self.problem = "the extra otel is not installed: pip install rustyonions[otel]"
            _log.warn("nothing is traced: {problem}", event="tracing_off", problem=self.problem)
            return
        from opentelemetry.context import Context

        self._no_context = Context()
        self._tracer = self._provider.get_tracer("ron", ron.__version__)

    def _begin(
        self, name: str, corr_id: str, parent: Span | Remote | None, attributes: Attributes | None
    ) -> Span | None:
        trace_id = _trace_id(corr_id)
        if not trace_id or self._over_the_limit():
            return None
        if isinstance(parent, Remote) and _trace_of(parent.context) != trace_id:
            # somebody else's trace: a child in it would lead away from everything the log has under this id
            if not self.sampled(corr_id):
                return None
            parent = None
        self._roots.trace_id = trace_id
        said = _allowed({**(attributes or {}), "corr_id": corr_id})
        context = parent.context if parent is not None else self._no_context
        return Span(self._tracer.start_span(name[:_MAX_NAME_CHARS], context=context, attributes=said), corr_id)

    def _over_the_limit(self) -> bool:
        now = self._now()
        if now - self._second >= 1.0:
            self._second, self._begun = now, 0
        self._begun += 1
        over = self._begun > MAX_SPANS_PER_S
        if over and self._spans is not None:
            self._spans.labels("shed").inc()
        return over

    def _remote(self, traceparent: str | None) -> Remote | None:
        if not traceparent:
            return None
        from opentelemetry.trace import get_current_span

        context = _propagator().extract({TRACEPARENT: traceparent})
        flags = get_current_span(context).get_span_context().trace_flags
        return Remote(context) if flags.sampled else None


def _make_provider(url: str, service: str, environment: str, ids: Any, spans: Counter | None) -> TracerProvider:
    """The SDK set up by us alone: no variable of the environment and no proxy changes where spans go."""
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    class CountedExporter(OTLPSpanExporter):
        def export(self, batch: Any) -> SpanExportResult:
            result = super().export(batch)
            if spans is not None:
                spans.labels("ok" if result is SpanExportResult.SUCCESS else "failed").inc(len(batch))
            return result

    _take_the_sdks_log()
    session = requests.Session()
    session.trust_env = False
    named = {"service.name": service, "service.version": ron.__version__}
    if environment:
        named["deployment.environment"] = environment
    provider = TracerProvider(
        sampler=ALWAYS_ON,  # it is asked only for what we have sampled
        resource=Resource(named),
        shutdown_on_exit=False,
        id_generator=ids,
        span_limits=SpanLimits(max_span_attributes=len(ALLOWED), max_span_attribute_length=_MAX_TEXT_CHARS),
    )
    exporter = CountedExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S, session=session)
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter,
            max_queue_size=QUEUE_SPANS,
            max_export_batch_size=BATCH_SPANS,
            schedule_delay_millis=EXPORT_EVERY_MS,
        )
    )
    return provider


def _ids(roots: threading.local, rng: random.Random) -> Any:
    """A generator whose trace ids are the correlation ids that `_begin` leaves in `roots`."""
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class CorrelationIds(IdGenerator):
        def generate_span_id(self) -> int:
            return rng.getrandbits(64) or 1

        def generate_trace_id(self) -> int:
            return int(roots.trace_id)

        def is_trace_id_random(self) -> bool:
            return True  # 62 of the last 64 bits of a UUIDv7 are (RFC 9562 §5.7)

    return CorrelationIds()


class _SdkLog(logging.Handler):
    """What the SDK has to say goes into our log, at most once a minute: a collector that is down is no news."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told_s = -math.inf

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on `record` unless there was one just now."""
        now_s = time.monotonic()
        if now_s - self._told_s >= _QUIET_S:
            self._told_s = now_s
            _log.warn("spans are not getting out: {what}", event="tracing_export", what=record.getMessage())


def _take_the_sdks_log() -> None:
    """Once per process: without a handler the standard library would print the SDK's warnings to stderr."""
    theirs = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _SdkLog) for handler in theirs.handlers):
        theirs.addHandler(_SdkLog())
        theirs.propagate = False


def _span_counter(metrics: Metrics | None) -> Counter | None:
    if metrics is None:
        return None
    return Counter("spans_total", "Spans by what became of them", ["result"], registry=metrics.registry)


def _propagator() -> TraceContextTextMapPropagator:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()


def _trace_of(context: Context) -> int:
    from opentelemetry.trace import get_current_span

    return get_current_span(context).get_span_context().trace_id


def _trace_id(corr_id: str) -> int:
    """The 128 bits of the UUID; 0, which no trace may have, when it is none."""
    return uuid.UUID(corr_id).int if is_uuid(corr_id) else 0


def _threshold(part: float, name: str) -> int:
    """`part` of all 32-bit hashes."""
    if not 0.0 <= part <= 1.0:
        raise bad_request(f"{name} is {part}", "a part of all requests, from 0 to 1")
    return round(part * _HASHES)


def _collector_url(endpoint: str) -> str:
    """The URL spans are posted to. Raises `RonError`."""
    try:
        url = urlsplit(endpoint)
        usable = url.scheme in {"http", "https"} and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or not endpoint.isprintable() or " " in endpoint:
        raise bad_request("otel_endpoint is no http(s) URL", "write it like http://127.0.0.1:4318")
    if url.username is not None or url.password is not None or url.query or url.fragment:
        raise bad_request(
            "otel_endpoint carries credentials, a query or a fragment", "scheme, host, port and path only"
        )
    base = endpoint.rstrip("/")
    return base if base.endswith(_PATH) else base + _PATH


def _allowed(attributes: Attributes) -> dict[str, str | bool | int | float]:
    """What of `attributes` a span may say."""
    said: dict[str, str | bool | int | float] = {}
    for name, value in attributes.items():
        if name == "kid" and isinstance(value, str | bytes):
            said["kid_hash"] = kid_hash(value)
        elif name in ALLOWED and (plain := _plain(value)) is not None:
            said[name] = plain
    return said


def _plain(value: Any) -> str | bool | int | float | None:
    if isinstance(value, str):
        return redact(value)[:_MAX_TEXT_CHARS]
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        # OTLP's integers have 64 bits, and one that does not fit would take its whole batch with it
        return value if -(2**63) <= value < 2**63 else str(value)[:_MAX_TEXT_CHARS]
    return value if isinstance(value, float) and math.isfinite(value) else None
