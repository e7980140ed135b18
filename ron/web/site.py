"""Endpoints become a Twisted site: hot ones by a prefix table, the rest through Klein, strangers get the envelope.

In: the process's `Edge` (authority, metrics, clock) and endpoints. Out: a `RonSite` to listen with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
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
from ron.proto.errors import ErrorCode, RonError, not_found
from ron.web.endpoint import BoundEndpoint, Endpoint, correlation_id, error_answer, put_head, send
from ron.web.request import READ_IDLE_S, RonChannel, RonRequest

BODY_LIMIT_BYTES = 16 * 1024 * 1024
_REASONS = {401: "unauth", 403: "unauth", 413: "too_large", 429: "backpressure", 503: "store_unavailable"}


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What all sites of a process share."""

    authority: Authority
    metrics: Metrics
    reactor: IReactorTime

    def monotonic(self) -> float:
        """Seconds of the reactor's clock, for latencies."""
        return self.reactor.seconds()

    def count_refusal(self, error: RonError) -> None:
        """Count an answer that was refused before work."""
        reason = _REASONS.get(error.status)
        if reason is not None:
            self.metrics.rejected.labels(reason).inc()


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
        values = [unquote(segment, errors="strict") for segment in rest.decode("utf-8").split("/")]
    except UnicodeDecodeError:
        return []
    return values if all(value and "/" not in value for value in values) else []


class RonSite(Site):
    """A site with our channel, request, limits and hot table."""

    def __init__(self, edge: Edge, klein: Klein, hot: _HotTable, *, body_limit: int) -> None:
        super().__init__(
            klein.resource(),
            requestFactory=RonRequest,
            timeout=READ_IDLE_S,
            reactor=edge.reactor,
            # bodies are DTOs: parsing forms would cost seconds of the reactor's time for 16 MiB of "a=&", and parsing
            # the Content-Type with email.message alone is a third of a small request (DESIGN §5)
            parsePOSTFormSubmission=False,
        )
        # Site's default wraps the channel to negotiate HTTP/2; we speak HTTP/1.1 and save a layer
        self.protocol = RonChannel  # type: ignore[method-assign, assignment]
        self.body_limit = body_limit
        self.hot = hot.find
        self.count_refusal = edge.count_refusal
        self.displayTracebacks = False
        self.channels: set[RonChannel] = set()

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

    def refuse(self, request: RonRequest, error: RonError) -> None:
        """Answer `request` with `error`, before any endpoint was found."""
        self.count_refusal(error)
        send(error_answer(error), request, correlation_id(request))

    def log(self, request: object) -> None:
        """No access log on disk: metrics count, and paths may name people's topics."""


def make_site(edge: Edge, endpoints: Iterable[Endpoint], *, body_limit: int = BODY_LIMIT_BYTES) -> RonSite:
    """A site that answers `endpoints` and nothing else."""
    klein, hot = Klein(), _HotTable()
    for spec in endpoints:
        bound = BoundEndpoint(spec, edge)
        if spec.hot:
            hot.add(bound)
        klein.route(spec.path, methods=_methods(spec), strict_slashes=False)(_route(bound))
    klein.handle_errors(HTTPException)(_stranger(edge))
    return RonSite(edge, klein, hot, body_limit=body_limit)


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


def _stranger(edge: Edge) -> Callable[..., Any]:
    """Answers what no endpoint matches: 404, or 405 with `Allow`."""

    def stranger(request: IRequest, failure: Any) -> bytes:
        if isinstance(failure.value, MethodNotAllowed):
            allowed = ", ".join(sorted(failure.value.valid_methods or ()))
            error = RonError(ErrorCode.UNSUPPORTED, "method not allowed", status=405, headers={"Allow": allowed})
        else:
            error = not_found("nothing lives at this path")
        edge.count_refusal(error)
        answer, ours = error_answer(error), cast(RonRequest, request)
        put_head(answer, ours, correlation_id(ours))
        return answer.body  # Klein sends it and ends the request

    return stranger
