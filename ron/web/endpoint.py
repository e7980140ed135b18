"""One route: who may call it, what it takes, what it answers; and the pipeline every call goes through.

In: a parsed request. Out: the handler's answer encoded, or the error envelope.
Order: correlation id → room for it → capability → gate → DTO → handler (with a deadline) → encoding → metrics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

import msgspec
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.auth import Capability, Wanted
from ron.kernel import correlation
from ron.kernel.deadlines import Deadlines
from ron.kernel.inflate import inflate
from ron.kernel.limits import Refused
from ron.kernel.tally import Tally, TimeTally
from ron.kernel.tracing import Span
from ron.proto.assets import Asset
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.proto.ids import is_uuid
from ron.proto.strictjson import strict_decoder
from ron.web.content import JSON_HEADERS, Answer, Raw, answer_asset
from ron.web.head import error_answer

if TYPE_CHECKING:
    from ron.web.request import AnyRequest, RonRequest
    from ron.web.site import Edge

DEADLINE_S = 30.0
# Counted, never sent: the client hung up before its answer (the number is nginx's).
CLIENT_GONE = 499
UNAVAILABLE = 503
_log = Logger(namespace="ron.web")


@dataclass(slots=True)
class Call:
    """What a handler knows of the call besides its body.

    capability: the verified one, None on public endpoints. corr_id: the caller's `X-Corr-ID` or a new UUIDv7.
    query: what follows the path's `?`, as it came.
    """

    corr_id: str
    method: str
    path: str
    peer: str
    capability: Capability | None = None
    query: Mapping[bytes, Sequence[bytes]] = field(default_factory=dict)

    def asked(self, name: str) -> str | None:
        """The last value of a query parameter, or None. Raises BadRequest for one that is not UTF-8."""
        values = self.query.get(name.encode("ascii"))
        try:
            return values[-1].decode("utf-8") if values else None
        except UnicodeDecodeError:
            raise bad_request(f"{name} is not UTF-8", "percent-encode UTF-8 bytes") from None

    def require(self, name: str, value: str) -> None:
        """Refuse (403) a capability narrowed to another `name` than `value`; see `Capability.require`."""
        if self.capability is not None:
            self.capability.require(name, value)


class Upgrade(ABC):
    """What a handler returns for a connection that is to speak another protocol."""

    @abstractmethod
    def answer(self, request: RonRequest) -> Answer:
        """The answer to `request` that agrees. Raises `RonError` where it does not."""


class Handler(Protocol):
    """`handler(call[, body], **path_params)`; returns a struct (JSON), an `Asset`, a `Raw`, an `Upgrade`, or an
    awaitable of one."""

    def __call__(self, call: Call, *args: Any, **params: str) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A route.

    path: segments, `<name>` for a parameter (`/v1/ack/<msg_id>`); `<path:name>` takes the rest (not for hot ones).
    scope: what a capability must cover; None makes the endpoint public. enforces: resource caveats the handler checks.
    body: the DTO, a `msgspec.Struct` with `forbid_unknown_fields`; `bytes` for a protocol whose bodies are no JSON.
    bare: the body may be left out.
    hot: skip Klein's routing, for measured hot routes.
    deadline_s: the handler is cancelled after that and the caller told `Timeout`.
    writes: it changes what is stored; refused first when the promise burns, and while a store is down.
    span: the name of its spans; method and path where it has none.
    gate: it may ask for proof of work. waits: a long poll or as long as its caller wishes; it takes no place among what
    is worked on at a time, and its time says nothing about the promise. vital: answered under any load (health).
    """

    method: str
    path: str
    handler: Callable[..., Any]
    scope: str | None
    body: type[msgspec.Struct] | type[bytes] | None = None
    enforces: frozenset[str] = frozenset()
    hot: bool = False
    deadline_s: float = DEADLINE_S
    writes: bool = False
    gate: bool = False
    waits: bool = False
    vital: bool = False
    bare: bool = False
    span: str = ""


@dataclass(slots=True)
class _Turn:
    """One call on its way through the pipeline. moved_bytes: of the request's body, as it came."""

    request: AnyRequest
    corr_id: str
    started_s: float
    span: Span | None = None
    capability: Capability | None = None
    moved_bytes: int = 0


@dataclass(slots=True)
class BoundEndpoint:
    """An endpoint behind an edge, with what it needs per call made once."""

    spec: Endpoint
    edge: Edge
    _decode: Callable[[bytes], Any] = field(init=False)
    _latency: TimeTally = field(init=False)
    _inflight: Tally = field(init=False)
    _takes_place: bool = field(init=False)
    _deadlines: Deadlines = field(init=False)
    _path: bytes = field(init=False)
    _wanted: Wanted | None = field(init=False)
    _statuses: dict[int, Tally] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        spec, metrics = self.spec, self.edge.metrics
        self._decode = _decoder_of(spec.body)
        self._latency = metrics.tallies.timing(metrics.request_latency.labels(spec.path, spec.method))
        self._inflight = metrics.tallies.of(metrics.inflight.labels(spec.path))
        self._takes_place = not (spec.waits or spec.vital)
        self._deadlines = Deadlines(self.edge.reactor, spec.deadline_s)
        self._path = spec.path.encode("ascii", "replace")
        self._wanted = self._wanted_at(spec.path)

    def answer(self, request: AnyRequest, params: dict[str, str]) -> None:
        """Run the pipeline and finish `request`. Never raises."""
        edge = self.edge
        turn = _Turn(request, correlation_id(request), edge.monotonic())
        try:
            self._make_room()
        except Refused as error:
            self._turn_away(error, turn)
            return
        self._inflight.inc()
        mark = correlation.begin(turn.corr_id)
        try:
            turn.span = edge.trace(self.spec, request, turn.corr_id)
            outcome = self._start(turn, params)
            # in this order: most are coroutines, and asking an abstract class is dear
            waits = type(outcome) is CoroutineType or isinstance(outcome, Awaitable)
            answer = None if waits else _encode(outcome, request)
        except RonError as error:
            self._refuse(error, turn)
        except Exception:  # noqa: BLE001 - whatever went wrong becomes an envelope and a log line
            self._fail(Failure(), turn)
        else:
            if answer is None:
                self._wait(outcome, turn)
            else:
                self._finish(answer, turn)
        finally:
            correlation.end(mark)

    def _make_room(self) -> None:
        """Raise `Refused` when there is no room for this kind of call; nothing is taken then."""
        slo = self.edge.slo
        if self.spec.writes and slo is not None:
            slo.admit_write()
        if self._takes_place:
            self.edge.concurrency.enter()

    def _turn_away(self, error: Refused, turn: _Turn) -> None:
        """Refused before any work: no latency, no share in the promise."""
        self.edge.count_refusal(error)
        self._count(error.status)
        send(error_answer(error, turn.corr_id), turn.request, turn.corr_id)

    def _start(self, turn: _Turn, params: dict[str, str]) -> Any:
        spec, edge, request = self.spec, self.edge, turn.request
        plain = request.path == self._path
        path = spec.path if plain else request.path.decode("ascii", "replace")
        peer = getattr(request.client, "host", None) or ""
        call = Call(turn.corr_id, spec.method, path, peer, query=request.args or {})
        wanted = self._wanted if plain else self._wanted_at(path)
        if wanted is not None:
            call.capability = turn.capability = edge.authority.admit(bearer(request), wanted)
        if spec.gate:
            edge.gate(call, request, spec)
        body = request.body()
        turn.moved_bytes = len(body)
        if not body and (spec.body is None or spec.bare):
            return spec.handler(call, **params)
        return spec.handler(call, self._dto(body, request), **params)

    def _wanted_at(self, path: str) -> Wanted | None:
        spec = self.spec
        return Wanted(spec.scope, spec.method, path, spec.enforces) if spec.scope is not None else None

    def _dto(self, body: bytes, request: AnyRequest) -> Any:
        encoding = request.content_encoding()
        if encoding and self.spec.body is not None:
            ratio = self.edge.limits.decompress_ratio
            body = inflate(body, encoding, limit=request.site.body_limit, ratio=ratio)
        try:
            return self._decode(body)
        except msgspec.ValidationError as error:
            raise bad_request(_plain(error), "see docs/api.rst for this call's fields") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise bad_request("the body is not JSON", "send one JSON object") from None

    def _wait(self, outcome: Awaitable[Any], turn: _Turn) -> None:
        deferred: Deferred[Any] = outcome if isinstance(outcome, Deferred) else ensureDeferred(outcome)  # type: ignore[arg-type]
        if not deferred.called or deferred.paused:
            # `addTimeout` and `notifyFinish` do the same with four more callbacks for each call
            self._deadlines.begin(deferred)
            turn.request.working = deferred
        deferred.addBoth(self._outcome, turn)
        deferred.addErrback(_answering_failed)

    def _outcome(self, outcome: Any, turn: _Turn) -> None:
        """Answer with what came of it."""
        working, turn.request.working = turn.request.working, None
        if working is not None:
            self._deadlines.end(working)
        if isinstance(outcome, Failure):
            self._fail(outcome, turn)
            return
        try:
            answer = _encode(outcome, turn.request)
        except Exception:  # noqa: BLE001 - as in `answer`
            self._fail(Failure(), turn)
        else:
            self._finish(answer, turn)

    def _fail(self, failure: Failure, turn: _Turn) -> None:
        self._refuse(_as_ron_error(failure, turn.corr_id, self.spec.path), turn)

    def _refuse(self, error: RonError, turn: _Turn) -> None:
        self.edge.count_refusal(error)
        self._finish(error_answer(error), turn, shed=isinstance(error, Refused))

    def _finish(self, answer: Answer, turn: _Turn, *, shed: bool = False) -> None:
        edge, request = self.edge, turn.request
        self._inflight.dec()
        if self._takes_place:
            edge.concurrency.leave()
        elapsed_s = edge.monotonic() - turn.started_s
        self._latency.observe(elapsed_s)
        status = CLIENT_GONE if request._disconnected else answer.status
        self._count(status)
        if edge.slo is not None and not (shed or self.spec.vital or status == CLIENT_GONE):
            # 503 is an outage that says so in readiness: leaving out writes would mend nothing, and whoever asks for
            # what is missing must not be able to have them left out
            failed = status >= 500 and status != UNAVAILABLE
            edge.slo.count(failed=failed, elapsed_s=0.0 if self.spec.waits else elapsed_s)
        if turn.span is not None:
            edge.traced(turn.span, status)
        if turn.capability is not None:
            edge.authority.charge_bytes(turn.capability, turn.moved_bytes + len(answer.body))
        send(answer, request, turn.corr_id)

    def _count(self, status: int) -> None:
        counter = self._statuses.get(status)
        if counter is None:
            metrics = self.edge.metrics
            counter = metrics.tallies.of(metrics.http_requests.labels(self.spec.path, self.spec.method, status))
            self._statuses[status] = counter
        counter.inc()


def _encode(outcome: Any, request: AnyRequest) -> Answer:
    """What a handler returned, ready for the wire. Raises `RonError` 416, or whatever its encoding raises."""
    if isinstance(outcome, msgspec.Struct):
        return Answer(200, JSON_HEADERS, msgspec.json.encode(outcome))
    if isinstance(outcome, Asset):
        return answer_asset(
            outcome,
            if_none_match=request.header("if-none-match"),
            # RFC 9110 §14.2: a range means something with GET only
            byte_range=request.header("range") if request.method == b"GET" else None,
            if_range=request.header("if-range"),
        )
    if isinstance(outcome, Upgrade):
        # it begins with a GET, which never goes the short way
        return outcome.answer(cast("RonRequest", request))
    if isinstance(outcome, Raw):
        headers = {"Content-Type": outcome.content_type, "Cache-Control": "no-store", **(outcome.headers or {})}
        return Answer(outcome.status, headers, outcome.body)
    return Answer(200, JSON_HEADERS, msgspec.json.encode(outcome))


def _answering_failed(failure: Failure) -> None:
    _log.failure("answering failed", failure, event="answer_failed")


def correlation_id(request: AnyRequest) -> str:
    """The caller's `X-Corr-ID` when it is a UUID, else a new one of the site's."""
    given = request.header("x-corr-id")
    return given if given is not None and is_uuid(given) else request.site.new_corr_id()


def send(answer: Answer, request: AnyRequest, corr_id: str) -> None:
    """Put `answer` on the wire, unless the client has gone."""
    if not (request._disconnected or request.finished):
        request.respond(answer, corr_id)


def _as_ron_error(failure: Failure, corr_id: str, route: str) -> RonError:
    error = failure.value
    if isinstance(error, RonError):
        return error
    if isinstance(error, DeadlineError | CancelledError):
        return RonError(ErrorCode.TIMEOUT, "not done within the deadline")
    _log.failure("{route} failed", failure, event="internal_error", route=route, corr_id=corr_id)
    return RonError(ErrorCode.INTERNAL, "internal error", hint="the node's log has it under this correlation id")


def bearer(request: AnyRequest) -> str | None:
    """The token that the request carries."""
    value = request.header("authorization")
    if value is None:
        return None
    scheme, _, token = value.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _plain(error: msgspec.ValidationError) -> str:
    return str(error).replace("`", "").replace("$.", "").replace("Object ", "the body ")


def _decoder_of(body: type[Any] | None) -> Callable[[bytes], Any]:
    if body is bytes:
        return _as_it_came
    return strict_decoder(body) if body is not None else _no_body


def _as_it_came(body: bytes) -> bytes:
    return body


def _no_body(_body: bytes) -> NoReturn:
    raise bad_request("this call takes no body")
