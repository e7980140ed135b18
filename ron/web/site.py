"""Endpoints become a Twisted site: hot ones by a prefix table, the rest through Klein, strangers get the envelope.

In: the process's `Edge` (authority, metrics, clock, limits) and endpoints. Out: a `RonSite` to listen with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast
from urllib.parse import unquote

from klein import Klein
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.web.iweb import IRequest
from twisted.web.server import Site
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from ron.auth import Authority
from ron.kernel import Metrics
from ron.kernel.limits import Concurrency, PeerTable, Refused
from ron.kernel.limits_config import LimitsConfig
from ron.kernel.openspans import OpenSpans
from ron.kernel.slo import Degradation
from ron.kernel.tracing import Span, Tracing
from ron.proto.errors import ErrorCode, RonError, not_found
from ron.proto.ids import uuid7_text
from ron.web.channel import RonChannel
from ron.web.endpoint import BoundEndpoint, Call, Endpoint, correlation_id, send
from ron.web.express import Lane
from ron.web.head import error_answer
from ron.web.request import AnyRequest, RonRequest

# What a site takes when it asks for no less; the default of `limits.body_bytes`.
BODY_LIMIT_BYTES = LimitsConfig().body_bytes
_REASONS = {
    401: "unauth",
    403: "unauth",
    413: "too_large",
    415: "unsupported",
    429: "backpressure",
    503: "store_unavailable",
}
# Labels are a closed set: callers choose the method.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_STRANGER = "-"
_FLUSH_BYTES = 64 * 1024


class Gate(Protocol):
    """Asks for proof of work; see `Edge.gate`."""

    def check(self, solution: str | None, resource: str) -> None: ...


class Traffic:
    """Bytes in and out, added to the counters in portions: two locks for each chunk are more than the chunk costs."""

    __slots__ = ("_in", "_in_bytes", "_out", "_out_bytes")

    def __init__(self, metrics: Metrics) -> None:
        self._in, self._out = metrics.bytes_in, metrics.bytes_out
        self._in_bytes = self._out_bytes = 0

    def received(self, count: int) -> None:
        """`count` bytes more came."""
        self._in_bytes += count
        if self._in_bytes >= _FLUSH_BYTES:
            self.flush()

    def sent(self, count: int) -> None:
        """`count` bytes more went."""
        self._out_bytes += count
        if self._out_bytes >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Make the counters exact."""
        self._in.inc(self._in_bytes)
        self._out.inc(self._out_bytes)
        self._in_bytes = self._out_bytes = 0


class Edge:
    """What all sites of a process share.

    limits: what every listener allows. peers, concurrency: made from them when not given. slo: what is left out under
    trouble. tracer, pow: None means no spans and no proof of work. spans: where those who work on a call find its span.
    """

    def __init__(
        self,
        *,
        authority: Authority,
        metrics: Metrics,
        reactor: IReactorTime,
        limits: LimitsConfig | None = None,
        peers: PeerTable | None = None,
        concurrency: Concurrency | None = None,
        slo: Degradation | None = None,
        tracer: Tracing | None = None,
        spans: OpenSpans | None = None,
        pow: Gate | None = None,
    ) -> None:
        self.authority = authority
        self.metrics = metrics
        self.reactor = reactor
        self.limits = limits or LimitsConfig()
        self.peers = peers or PeerTable(self.limits, reactor.seconds)
        self.concurrency = concurrency or Concurrency(self.limits.concurrency)
        self.slo = slo
        self.tracer = tracer
        self.spans = spans
        self.pow = pow
        self.traffic = Traffic(metrics)
        # labels() costs as much as the rest of a refusal's counting
        self._rejected: dict[str, Any] = {}
        self._strangers: dict[tuple[str, int], Any] = {}
        # seconds of the reactor's clock, for latencies
        self.monotonic = reactor.seconds

    def apply(self, limits: LimitsConfig) -> None:
        """Go by `limits` from now on. Open connections keep their header limit, sites their body limit."""
        self.limits = limits
        self.peers.apply(limits)
        self.concurrency.limit = limits.concurrency

    def gate(self, call: Call, request: AnyRequest, spec: Endpoint) -> None:
        """Raise `RonError` unless the caller may go on; asked after the capability and before the body is decoded."""
        if self.pow is not None:
            self.pow.check(request.header("pow-solution"), f"{call.method} {spec.path}")

    def trace(self, spec: Endpoint, request: AnyRequest, corr_id: str) -> Span | None:
        """The span of a call that begins, or None when it is not traced."""
        if self.tracer is None or not self.tracer.enabled:
            return None
        name = spec.span or f"{spec.method} {spec.path}"
        span = self.tracer.start_from(name, corr_id, request.header("traceparent"), {"route": spec.path})
        if span is not None and self.spans is not None:
            self.spans.opened(span)
        return span

    def traced(self, span: Span, status: int) -> None:
        """The call of `span` was answered."""
        if self.spans is not None:
            self.spans.closed(span)
        span.end(status)

    def count_refusal(self, error: RonError) -> None:
        """Count an answer that was refused before work."""
        reason = error.reason if isinstance(error, Refused) else _REASONS.get(error.status)
        if reason is not None:
            self.count_rejected(reason)

    def count_rejected(self, reason: str) -> None:
        """Count a refusal by its reason, one of a closed set."""
        counter = self._rejected.get(reason)
        if counter is None:
            counter = self._rejected[reason] = self.metrics.rejected.labels(reason)
        counter.inc()

    def count_stranger(self, method: str, status: int) -> None:
        """Count an answer that no endpoint gave."""
        known = method if method in _METHODS else _STRANGER
        counter = self._strangers.get((known, status))
        if counter is None:
            counter = self._strangers[known, status] = self.metrics.http_requests.labels(_STRANGER, known, status)
        counter.inc()


@dataclass(slots=True)
class _HotTable:
    """Exact paths in a dict; paths with parameters by their static prefix and number of segments."""

    exact: dict[tuple[bytes, bytes], BoundEndpoint] = field(default_factory=dict)
    prefixed: list[tuple[bytes, bytes, int, list[str], BoundEndpoint]] = field(default_factory=list)

    def add(self, endpoint: BoundEndpoint) -> None:
        method, path = endpoint.spec.method.encode(), endpoint.spec.path
        prefix, parameter, _ = path.partition("<")
        if not parameter:
            self.exact[method, path.encode()] = endpoint
            return
        segments = path[len(prefix) :].split("/")
        if not all(re.fullmatch(r"<[a-z_]+>", segment) for segment in segments):
            raise ValueError(f"{path}: the variable end of a hot path is whole segments like <name>")
        names = [segment.strip("<>") for segment in segments]
        self.prefixed.append((method, prefix.encode(), len(names), names, endpoint))

    def find(self, method: bytes, path: bytes) -> tuple[BoundEndpoint, dict[str, str]] | None:
        method = b"GET" if method == b"HEAD" else method
        exact = self.exact.get((method, path))
        if exact is not None:
            return exact, {}
        for hot_method, prefix, count, names, endpoint in self.prefixed:
            if method == hot_method and path.startswith(prefix):
                values = _segments(path[len(prefix) :])
                if len(values) == count:
                    return endpoint, dict(zip(names, values, strict=True))
        return None


def _segments(rest: bytes) -> list[str]:
    """The decoded segments of a path's end; none when Klein would not take one of them as a parameter."""
    try:
        text = rest.decode("utf-8")
        values = text.split("/")
        if "%" in text:
            values = [unquote(segment, errors="strict") for segment in values]
    except UnicodeDecodeError:
        return []
    return values if all(value and "/" not in value for value in values) else []


class RonSite(Site):
    """A site with our channel, request, limits and hot table."""

    def __init__(self, edge: Edge, klein: Klein, hot: _HotTable, *, body_limit: int, name: str) -> None:
        super().__init__(
            klein.resource(),
            requestFactory=RonRequest,
            # the channel has a timer of its own: Twisted's starts anew with each byte
            timeout=None,
            reactor=edge.reactor,
            # bodies are DTOs: parsing forms would cost seconds of the reactor's time for 16 MiB of "a=&", and parsing
            # the Content-Type with email.message alone is a third of a small request (DESIGN §5)
            parsePOSTFormSubmission=False,
        )
        # Site's default wraps the channel to negotiate HTTP/2; we speak HTTP/1.1 and save a layer
        self.protocol = RonChannel  # type: ignore[method-assign, assignment]
        self.edge = edge
        self.body_limit = body_limit
        self.hot = hot.find
        self.lane = Lane(hot.exact)
        self.count_refusal = edge.count_refusal
        self.displayTracebacks = False
        # of requests that bring none; time-ordered unless somebody wants them to say nothing of when
        self.new_corr_id: Callable[[], str] = uuid7_text
        self.channels: set[RonChannel] = set()
        # of those, the ones that were refused and still read why
        self.turned_away = 0
        self.open_connections = edge.metrics.open_connections.labels(name)

    async def drain(self, deadline_s: float) -> int:
        """Let calls under way finish and their answers leave, close the rest.

        Returns how many connections had to be cut off at the deadline.
        """
        end = self.reactor.seconds() + deadline_s
        while self.channels:
            for channel in [c for c in self.channels if not c.busy]:
                channel.loseConnection()
            if self.reactor.seconds() >= end:
                break
            await deferLater(self.reactor, 0.05)
        left = list(self.channels)
        for channel in left:
            channel.forceAbortClient()
        return len(left)

    def refuse(self, request: AnyRequest, error: RonError) -> None:
        """Answer `request` with `error`, before any endpoint was found."""
        self.count_refusal(error)
        self.edge.count_stranger(request.method.decode("latin-1"), error.status)
        corr_id = correlation_id(request)
        send(error_answer(error, corr_id), request, corr_id)

    def log(self, request: object) -> None:
        """No access log on disk: metrics count, and paths may name people's topics."""


def make_site(
    edge: Edge, endpoints: Iterable[Endpoint], *, body_limit: int | None = None, name: str = "http"
) -> RonSite:
    """A site that answers `endpoints` and nothing else.

    body_limit: bytes, where less than the process's limit will do. name: the listener's, for `open_connections`.
    """
    klein, hot = Klein(), _HotTable()
    for spec in endpoints:
        bound = BoundEndpoint(spec, edge)
        if spec.hot:
            hot.add(bound)
        klein.route(spec.path, methods=_methods(spec), strict_slashes=False)(_route(bound))
    limit = edge.limits.body_bytes
    site = RonSite(edge, klein, hot, body_limit=limit if body_limit is None else min(limit, body_limit), name=name)
    klein.handle_errors(HTTPException)(_stranger(site))
    return site


def _methods(spec: Endpoint) -> Sequence[str]:
    return ["GET", "HEAD"] if spec.method == "GET" else [spec.method]


def _route(bound: BoundEndpoint) -> Callable[..., Any]:
    def route(request: IRequest, **params: str) -> Deferred[None]:
        # Klein ends a request as soon as what its route returned is there: that must be after our answer
        ours, answered = cast(RonRequest, request), Deferred[None]()
        ours.notifyFinish().addBoth(lambda _end: answered.callback(None))
        bound.answer(ours, params)
        return answered

    route.__name__ = f"{bound.spec.method} {bound.spec.path}"
    return route


def _stranger(site: RonSite) -> Callable[..., Any]:
    """Answers what no endpoint matches: 404, or 405 with `Allow`."""

    def stranger(request: IRequest, failure: Any) -> None:
        if isinstance(failure.value, MethodNotAllowed):
            allowed = ", ".join(sorted(failure.value.valid_methods or ()))
            error = RonError(ErrorCode.UNSUPPORTED, "method not allowed", status=405, headers={"Allow": allowed})
        else:
            error = not_found("nothing lives at this path")
        site.refuse(cast(RonRequest, request), error)

    return stranger
