"""The way in for calls that do not come over HTTP (gRPC, OAP/1): what `ron.web` does for a route, for them.

In: a call's name, a token, a request that is still to be read. Out: the answer, or `RonError`; all with a deadline.
Order, as over HTTP: room for it → capability → DTO → the service (with a deadline) → the bytes it moved.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from ron.auth import Wanted
from ron.kernel import correlation
from ron.kernel.deadlines import Deadlines
from ron.kernel.limits import Refused
from ron.proto.errors import ErrorCode, RonError, bad_request, unavailable
from ron.proto.kms import (
    AttestResponse,
    CreateKeyRequest,
    CreateKeyResponse,
    DestroyRequest,
    DestroyResponse,
    KeyList,
    KeyView,
    RotateRequest,
    RotateResponse,
    SignRequest,
    SignResponse,
    UnwrapRequest,
    UnwrapResponse,
    VerifyRequest,
    VerifyResponse,
    WrapRequest,
    WrapResponse,
    parse_kid,
)
from ron.proto.kmscalls import AttestRequest, DestroyCall, GetKeyRequest, KmsCall, ListKeysRequest, RotateCall
from ron.services.kms.api import DEADLINE_S, PATH, SLOW_DEADLINE_S, KmsDesk
from ron.services.kms.model import Caller
from ron.web import Edge

D = TypeVar("D", bound=msgspec.Struct)
SERVICE = "ron.kms.v1.Kms"
_ENFORCES = frozenset({"tenant"})
_SERVER_ERROR = 500
_UNAVAILABLE = 503
_COME_BACK = frozenset({429, 503})
_RETRY_AFTER_S = (1, 5)
_log = Logger(namespace="ron.kms")


class Operation(NamedTuple):
    """One call. name: its RPC. call: its number in OAP/1. http: method and path of the route it mirrors.

    body, answer: its structs. slow: it may take as long as a token needs to make a key. writes: refused first when the
    promise burns.
    """

    name: str
    call: KmsCall
    http: tuple[str, str]
    scope: str
    body: type[msgspec.Struct]
    answer: type[msgspec.Struct]
    run: Callable[[KmsDesk, Caller, Any], Awaitable[msgspec.Struct]]
    writes: bool
    slow: bool

    @property
    def path(self) -> str:
        """What a `path` caveat is compared with."""
        return f"/{SERVICE}/{self.name}"

    @property
    def deadline_s(self) -> float:
        """What it has at most."""
        return SLOW_DEADLINE_S if self.slow else DEADLINE_S


def _rotate(desk: KmsDesk, caller: Caller, body: RotateCall) -> Awaitable[RotateResponse]:
    kid = parse_kid(body.kid)
    if kid.version:
        raise bad_request("a key is rotated, not a version of it", "leave out #vN")
    return desk.rotate(caller, kid, RotateRequest(op_id=body.op_id))


def _destroy(desk: KmsDesk, caller: Caller, body: DestroyCall) -> Awaitable[DestroyResponse]:
    return desk.destroy(caller, parse_kid(body.kid), DestroyRequest(proposal=body.proposal, op_id=body.op_id))


def _get(desk: KmsDesk, caller: Caller, body: GetKeyRequest) -> Awaitable[KeyView]:
    return desk.get(caller, parse_kid(body.kid))


def _list(desk: KmsDesk, caller: Caller, body: ListKeysRequest) -> Awaitable[KeyList]:
    return desk.list(caller, body.tenant, body.after or "")


def _attest(desk: KmsDesk, caller: Caller, body: AttestRequest) -> Awaitable[AttestResponse]:
    return desk.attest(caller, parse_kid(body.kid) if body.kid is not None else None)


def _same(act: str) -> Callable[[KmsDesk, Caller, Any], Awaitable[msgspec.Struct]]:
    """The desk's call of that name, which takes the request as it is."""

    def run(desk: KmsDesk, caller: Caller, body: Any) -> Awaitable[msgspec.Struct]:
        done: Awaitable[msgspec.Struct] = getattr(desk, act)(caller, body)
        return done

    return run


_KEY = "/keys/<path:kid>"
_ROWS: tuple[tuple[str, KmsCall, str, str, str, Any, Any, Any], ...] = (
    ("Sign", KmsCall.SIGN, "POST", "/sign", "sign", SignRequest, SignResponse, _same("sign")),
    ("Verify", KmsCall.VERIFY, "POST", "/verify", "verify", VerifyRequest, VerifyResponse, _same("verify")),
    ("Wrap", KmsCall.WRAP, "POST", "/wrap", "wrap", WrapRequest, WrapResponse, _same("wrap")),
    ("Unwrap", KmsCall.UNWRAP, "POST", "/unwrap", "unwrap", UnwrapRequest, UnwrapResponse, _same("unwrap")),
    ("CreateKey", KmsCall.CREATE_KEY, "POST", "/keys", "rotate", CreateKeyRequest, CreateKeyResponse, _same("create")),
    ("Rotate", KmsCall.ROTATE, "POST", f"{_KEY}/rotate", "rotate", RotateCall, RotateResponse, _rotate),
    ("GetKey", KmsCall.GET_KEY, "GET", _KEY, "read", GetKeyRequest, KeyView, _get),
    ("ListKeys", KmsCall.LIST_KEYS, "GET", "/keys", "read", ListKeysRequest, KeyList, _list),
    ("Attest", KmsCall.ATTEST, "GET", "/attest", "read", AttestRequest, AttestResponse, _attest),
    ("DestroyKey", KmsCall.DESTROY_KEY, "DELETE", _KEY, "destroy", DestroyCall, DestroyResponse, _destroy),
)
# Every route of `api` that is about keys; a test holds them against it. What an auditor reads and governance go over
# HTTP alone.
OPERATIONS: tuple[Operation, ...] = tuple(
    Operation(
        name=name,
        call=call,
        http=(method, PATH + path),
        scope=f"kms:{scope}",
        body=body,
        answer=answer,
        run=run,
        writes=scope not in {"verify", "read"},
        slow=scope in {"rotate", "destroy"},
    )
    for name, call, method, path, scope, body, answer, run in _ROWS
)


class Asked(NamedTuple):
    """A call as it came. size: bytes of the request. deadline_s: what its caller still gives it, None for our own.

    read: the request as its struct; raises `RonError` (BadRequest, TooLarge). write: an answer as bytes.
    """

    operation: Operation
    token: str | None
    corr_id: str
    size: int
    read: Callable[[], msgspec.Struct]
    write: Callable[[msgspec.Struct], bytes]
    deadline_s: float | None = None


class _Turn:
    """A call on its way. late: its time was over before it was done."""

    __slots__ = ("answer", "asked", "late", "timer")
    answer: Deferred[bytes]

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.late = False
        self.timer: IDelayedCall | None = None

    def cancel(self) -> None:
        """Its time is over."""
        self.late = True
        self.answer.cancel()


class Door:
    """Lets calls in to `desk`. transport: in the place of an HTTP method, for capabilities and metrics."""

    def __init__(self, desk: KmsDesk, edge: Edge, transport: str, *, rng: random.Random | None = None) -> None:
        self._desk = desk
        self._edge = edge
        self._rng = rng or random.SystemRandom()
        self._open: set[_Turn] = set()
        self._closed = False
        both = {False: DEADLINE_S, True: SLOW_DEADLINE_S}
        self._deadlines = {slow: Deadlines(edge.reactor, seconds) for slow, seconds in both.items()}
        self._wanted = {one.name: Wanted(one.scope, transport, one.path, _ENFORCES) for one in OPERATIONS}
        self._latency: Mapping[str, Any] = {
            one.name: edge.metrics.tallies.timing(edge.metrics.request_latency.labels(one.path, transport))
            for one in OPERATIONS
        }

    def ask(self, asked: Asked) -> Deferred[bytes]:
        """The answer. Fails with `RonError` and nothing else."""
        turn, route, peer = _Turn(asked), asked.operation.path, correlation.about().get("peer_addr")
        mark = correlation.begin(asked.corr_id, request_id=asked.corr_id, route=route, peer_addr=peer)
        try:
            answer = turn.answer = Deferred.fromCoroutine(self._answer(turn))
        finally:
            correlation.end(mark)
        if not answer.called:
            self._open.add(turn)
            self._begin(turn)
            answer.addBoth(self._over, turn)
        return answer

    def abort(self) -> int:
        """Give up what is still being answered, and answer nothing more; how many were given up."""
        self._closed = True
        cut_off = len(self._open)
        for turn in list(self._open):
            turn.answer.cancel()
        return cut_off

    def _begin(self, turn: _Turn) -> None:
        asked = turn.asked
        if asked.deadline_s is None or asked.deadline_s >= asked.operation.deadline_s:
            self._deadlines[asked.operation.slow].begin(turn)
        else:
            turn.timer = self._edge.reactor.callLater(asked.deadline_s, turn.cancel)

    def _over(self, result: Any, turn: _Turn) -> Any:
        self._open.discard(turn)
        self._deadlines[turn.asked.operation.slow].end(turn)
        if turn.timer is not None and turn.timer.active():
            turn.timer.cancel()
        return result

    async def _answer(self, turn: _Turn) -> bytes:
        edge, status, asked = self._edge, 200, turn.asked
        try:
            self._make_room(asked.operation)
        except RonError as error:
            self._refused(error)
            raise
        began_s, shed = edge.monotonic(), False
        try:
            return await self._admitted(turn)
        except RonError as error:
            self._refused(error)
            status, shed = error.status, isinstance(error, Refused)
            raise
        finally:
            edge.concurrency.leave()
            elapsed_s = edge.monotonic() - began_s
            self._latency[asked.operation.name].observe(elapsed_s)
            if edge.slo is not None and not shed:
                # as `ron.web` has it: 503 is an outage that readiness tells of
                failed = status >= _SERVER_ERROR and status != _UNAVAILABLE
                edge.slo.count(failed=failed, elapsed_s=elapsed_s)

    def _make_room(self, operation: Operation) -> None:
        """Raises `RonError` when there is no room for this kind of call; nothing is taken then."""
        if self._closed:
            raise unavailable("the service is going down")
        if operation.writes and self._edge.slo is not None:
            self._edge.slo.admit_write()
        self._edge.concurrency.enter()

    def _refused(self, error: RonError) -> None:
        """Count it; where coming back makes sense with a random time for it, as over HTTP."""
        self._edge.count_refusal(error)
        if error.status in _COME_BACK and error.retry_after_s is None:
            error.retry_after_s = self._rng.randint(*_RETRY_AFTER_S)

    async def _admitted(self, turn: _Turn) -> bytes:
        asked = turn.asked
        operation, authority = asked.operation, self._edge.authority
        capability = authority.admit(asked.token, self._wanted[operation.name])
        try:
            answer = await operation.run(self._desk, Caller.of(capability, asked.corr_id), asked.read())
            raw = asked.write(answer)
        except RonError:
            raise
        except CancelledError:
            if turn.late:
                raise RonError(ErrorCode.TIMEOUT, "not done within the deadline") from None
            raise unavailable("the call was given up") from None
        except Exception:  # noqa: BLE001 - whatever it is, the caller gets an envelope and the log the rest
            _log.failure("{call} failed", event="internal_error", call=operation.path, corr_id=asked.corr_id)
            hint = "the node's log has it under this correlation id"
            raise RonError(ErrorCode.INTERNAL, "internal error", hint=hint) from None
        authority.charge_bytes(capability, asked.size + len(raw))
        return raw


def strictly(build: Callable[[], D]) -> D:
    """What `build` makes by msgspec. Raises `RonError` (BadRequest) in the words that HTTP has for it."""
    try:
        return build()
    except msgspec.ValidationError as error:
        raise bad_request(_plain(error), "see docs/kms/api.rst for this call's fields") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise bad_request("the request is not JSON", "send one JSON object") from None


def _plain(error: msgspec.ValidationError) -> str:
    return str(error).replace("`", "").replace("$.", "").replace("Object ", "the request ")
