"""One route: who may call it, what it takes, what it answers; and the pipeline every call goes through.

In: a parsed request. Out: the handler's answer encoded, or the error envelope.
Order: correlation id → capability → DTO → handler (with a deadline) → encoding → metrics.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString

from ron.auth import Capability, Wanted
from ron.proto.assets import Asset
from ron.proto.clock import now_rfc3339
from ron.proto.errors import ErrorCode, RonError, bad_request, envelope
from ron.proto.ids import is_uuid, uuid7
from ron.web.content import Answer, Raw, answer_asset

if TYPE_CHECKING:
    from ron.web.request import RonRequest
    from ron.web.site import Edge

DEADLINE_S = 30.0
# Counted, never sent: the client hung up before its answer (the number is nginx's).
CLIENT_GONE = 499
_SECURITY_HEADERS = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
)
_log = Logger(namespace="ron.web")
_rng = random.SystemRandom()


@dataclass(slots=True)
class Call:
    """What a handler knows of the call besides its body.

    capability: the verified one, None on public endpoints. corr_id: the caller's `X-Corr-ID` or a new UUIDv7.
    """

    corr_id: str
    method: str
    path: str
    peer: str
    capability: Capability | None = None

    def require(self, name: str, value: str) -> None:
        """Refuse (403) a capability narrowed to another `name` than `value`; see `Capability.require`."""
        if self.capability is not None:
            self.capability.require(name, value)


class Handler(Protocol):
    """`handler(call[, body], **path_params)`; returns a struct (JSON), an `Asset`, a `Raw`, or an awaitable of one."""

    def __call__(self, call: Call, *args: Any, **params: str) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A route.

    path: segments, `<name>` for a parameter (`/v1/ack/<msg_id>`); `<path:name>` takes the rest (not for hot ones).
    scope: what a capability must cover; None makes the endpoint public. enforces: resource caveats the handler checks.
    body: the DTO, a `msgspec.Struct` with `forbid_unknown_fields`. hot: skip Klein's routing, for measured hot routes.
    deadline_s: the handler is cancelled after that and the caller told `Timeout`.
    """

    method: str
    path: str
    handler: Callable[..., Any]
    scope: str | None
    body: type[msgspec.Struct] | None = None
    enforces: frozenset[str] = frozenset()
    hot: bool = False
    deadline_s: float = DEADLINE_S


@dataclass(slots=True)
class BoundEndpoint:
    """An endpoint behind an edge, with what it needs per call made once."""

    spec: Endpoint
    edge: Edge
    _decode: Callable[[bytes], Any] = field(init=False)
    _latency: Any = field(init=False)
    _inflight: Any = field(init=False)
    _statuses: dict[int, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        spec, metrics = self.spec, self.edge.metrics
        self._decode = msgspec.json.Decoder(spec.body, strict=True).decode if spec.body else _no_body
        self._latency = metrics.request_latency.labels(spec.path, spec.method)
        self._inflight = metrics.inflight.labels(spec.path)

    def answer(self, request: RonRequest, params: dict[str, str]) -> None:
        """Run the pipeline and finish `request`. Never raises."""
        started = self.edge.monotonic()
        self._inflight.inc()
        corr_id = correlation_id(request)
        try:
            outcome = self._start(request, params, corr_id)
            answer = None if isinstance(outcome, Awaitable) else _encode(outcome, request)
        except Exception:  # noqa: BLE001 - whatever went wrong becomes an envelope and a log line
            self._fail(Failure(), request, corr_id, started)
            return
        if answer is None:
            self._wait(outcome, request, corr_id, started)
        else:
            self._finish(answer, request, corr_id, started)

    def _start(self, request: RonRequest, params: dict[str, str], corr_id: str) -> Any:
        spec = self.spec
        path = request.path.decode("ascii", "replace")
        call = Call(corr_id, spec.method, path, request.getClientAddress().host or "")
        if spec.scope is not None:
            wanted = Wanted(spec.scope, spec.method, path, spec.enforces)
            call.capability = self.edge.authority.admit(_bearer(request), wanted)
        body = request.body()
        if spec.body is None and not body:
            return spec.handler(call, **params)
        return spec.handler(call, self._dto(body), **params)

    def _dto(self, body: bytes) -> Any:
        try:
            return self._decode(body)
        except msgspec.ValidationError as error:
            raise bad_request(_plain(error), "see docs/api.rst for this call's fields") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise bad_request("the body is not JSON", "send one JSON object") from None

    def _wait(self, outcome: Awaitable[Any], request: RonRequest, corr_id: str, started: float) -> None:
        deferred: Deferred[Any] = outcome if isinstance(outcome, Deferred) else ensureDeferred(outcome)  # type: ignore[arg-type]
        deferred.addTimeout(self.spec.deadline_s, self.edge.reactor)
        request.notifyFinish().addErrback(lambda _gone: deferred.cancel())
        deferred.addCallback(_encode, request)
        deferred.addCallbacks(
            self._finish, self._fail, callbackArgs=(request, corr_id, started), errbackArgs=(request, corr_id, started)
        )
        deferred.addErrback(lambda failure: _log.failure("answering failed", failure, event="answer_failed"))

    def _fail(self, failure: Failure, request: RonRequest, corr_id: str, started: float) -> None:
        error = _as_ron_error(failure, corr_id, self.spec.path)
        self.edge.count_refusal(error)
        self._finish(error_answer(error), request, corr_id, started)

    def _finish(self, answer: Answer, request: RonRequest, corr_id: str, started: float) -> None:
        self._inflight.dec()
        self._latency.observe(self.edge.monotonic() - started)
        status = CLIENT_GONE if request._disconnected else answer.status
        counter = self._statuses.get(status)
        if counter is None:
            counter = self.edge.metrics.http_requests.labels(self.spec.path, self.spec.method, status)
            self._statuses[status] = counter
        counter.inc()
        send(answer, request, corr_id)


def _encode(outcome: Any, request: RonRequest) -> Answer:
    """What a handler returned, ready for the wire. Raises `RonError` 416, or whatever its encoding raises."""
    if isinstance(outcome, Asset):
        return answer_asset(
            outcome,
            if_none_match=request.header("if-none-match"),
            # RFC 9110 §14.2: a range means something with GET only
            byte_range=request.header("range") if request.method == b"GET" else None,
            if_range=request.header("if-range"),
        )
    if isinstance(outcome, Raw):
        headers = {"Content-Type": outcome.content_type, "Cache-Control": "no-store", **(outcome.headers or {})}
        return Answer(outcome.status, headers, outcome.body)
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return Answer(200, headers, msgspec.json.encode(outcome))


def correlation_id(request: RonRequest) -> str:
    """The caller's `X-Corr-ID` when it is a UUID, else a new UUIDv7."""
    given = request.header("x-corr-id")
    return given if given is not None and is_uuid(given) else str(uuid7())


def send(answer: Answer, request: RonRequest, corr_id: str) -> None:
    """Put `answer` on the wire, unless the client has gone."""
    if request._disconnected or request.finished:
        return
    put_head(answer, request, corr_id)
    if answer.status != 304:
        request.write(answer.body)
    request.finish()


def put_head(answer: Answer, request: RonRequest, corr_id: str) -> None:
    """Set status and headers of the response."""
    request.setResponseCode(answer.status)
    headers = request.responseHeaders
    # Twisted's resource traversal names itself and its version; nobody needs to know
    headers.removeHeader(b"Server")
    headers.setRawHeaders(b"Date", [datetimeToString()])
    headers.setRawHeaders(b"X-Corr-ID", [corr_id.encode("ascii")])
    for name, value in _SECURITY_HEADERS:
        headers.setRawHeaders(name, [value])
    for text_name, text in answer.headers.items():
        headers.setRawHeaders(text_name, [text])
    if answer.status != 304:
        headers.setRawHeaders(b"Content-Length", [b"%d" % len(answer.body)])


def error_answer(error: RonError) -> Answer:
    """The envelope of `error` with its headers; 429 and 503 carry a random `Retry-After` of 1–5 s."""
    request_id = str(uuid7())
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store", "X-Request-ID": request_id}
    headers.update(error.headers)
    if error.status in {429, 503}:
        headers["Retry-After"] = str(error.retry_after_s or _rng.randint(1, 5))
    body = msgspec.json.encode(envelope(error, ts=now_rfc3339(), request_id=request_id))
    return Answer(error.status, headers, body)


def _as_ron_error(failure: Failure, corr_id: str, route: str) -> RonError:
    error = failure.value
    if isinstance(error, RonError):
        return error
    if isinstance(error, DeadlineError | CancelledError):
        return RonError(ErrorCode.TIMEOUT, "not done within the deadline")
    _log.failure("{route} failed", failure, event="internal_error", route=route, corr_id=corr_id)
    return RonError(ErrorCode.INTERNAL, "internal error", hint="the node's log has it under this correlation id")


def _bearer(request: RonRequest) -> str | None:
    value = request.header("authorization")
    if value is None:
        return None
    scheme, _, token = value.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _plain(error: msgspec.ValidationError) -> str:
    return str(error).replace("`", "").replace("$.", "").replace("Object ", "the body ")


def _no_body(_body: bytes) -> NoReturn:
    raise bad_request("this call takes no body")
