"""A call to a service: one deadline over all tries, full-jitter back-off, the error envelope as an exception.

A service that does not answer is left alone for a while (`ron.kernel.breaker`): calls to it fail at once.

In: method, path, body struct, answer type. Out: the decoded answer, or `RonError` with the service's own code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from ron.auth.pow import CHALLENGE_HEADER, SOLUTION_HEADER
from ron.kernel.aio import cancellable, within
from ron.kernel.backoff import Backoff
from ron.kernel.breaker import CircuitBreaker, CircuitOpen, Circuits
from ron.proto.errors import ErrorCode, RonError, from_envelope
from ron.proto.exitcodes import Unreachable
from ron.sdk.pow import PowProgress, paying
from ron.sdk.transport import Requests

T = TypeVar("T")
TRIES = 5
DEADLINE_S = 60.0
MAX_ANSWER_BYTES = 32 * 1024 * 1024


class Answer(NamedTuple):
    """A 2xx answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


class Api:
    """Calls to the service at `base_url` with one capability (None for public calls).

    Calls are repeated on connection failures and on answers that say they are retryable; callers make them idempotent.
    circuits: the process's breakers, so that all clients of a service learn from one another; its own when not given.
    on_pow: told of the progress when a service asks for proof of work, which is then done without further ado.
    """

    def __init__(
        self,
        reactor: Any,
        http: Requests,
        base_url: str,
        capability: str | None = None,
        *,
        deadline_s: float = DEADLINE_S,
        tries: int = TRIES,
        circuits: Circuits | None = None,
        on_pow: Callable[[PowProgress], None] = lambda _progress: None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._circuits = circuits or Circuits(reactor.seconds)
        self._on_pow = on_pow
        self._reactor = reactor
        self._http = http
        self._capability = capability
        self._deadline_s = deadline_s
        self._tries = tries

    async def call(self, method: str, path: str, answer: type[T], body: msgspec.Struct | None = None) -> T:
        """A JSON call. Raises `RonError`."""
        got = await self.fetch(method, path, msgspec.json.encode(body) if body is not None else None)
        try:
            return msgspec.json.decode(got.body, type=answer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise RonError(ErrorCode.INTERNAL, f"{path} answered with something else than {answer.__name__}") from None

    async def fetch(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """The answer as it is. Raises `RonError`: the service's, `Unreachable`, or `Timeout` at the deadline.

        While the circuit is open it raises `CircuitOpen` at once; a call under way waits for its next try instead.
        """
        until_s = self._reactor.seconds() + self._deadline_s
        try:
            return await within(self._reactor, self._deadline_s, self._tries_of(method, path, body, until_s))
        except DeadlineError:
            raise RonError(ErrorCode.TIMEOUT, f"{self.base_url}{path}: no answer in {self._deadline_s:.0f} s") from None

    async def _tries_of(self, method: str, path: str, body: bytes | None, until_s: float) -> Answer:
        backoff = Backoff(base_s=0.1, ceiling_s=5.0)
        for tried in range(self._tries):
            delay_s = backoff.next_delay_s()
            try:
                return await self._through_circuit(method, path, body, until_s)
            except CircuitOpen as error:
                if not tried or tried == self._tries - 1:
                    raise
                delay_s = max(delay_s, error.retry_in_s)
            except RonError as error:
                if tried == self._tries - 1 or not error.retryable:
                    raise
            await deferLater(self._reactor, delay_s)
        raise AssertionError("unreachable: the last try returns or raises")

    async def _through_circuit(self, method: str, path: str, body: bytes | None, until_s: float) -> Answer:
        """One try, whose outcome the circuit learns. Any answer is a sign of life: who sheds load is not dead."""
        circuit: CircuitBreaker = self._circuits.of(self.base_url)
        ticket = circuit.admit()
        try:
            answer = await paying(
                self._reactor,
                lambda solution: self._once(method, path, body, solution),
                deadline_s=max(1.0, until_s - self._reactor.seconds()),
                on_progress=self._on_pow,
            )
        except Unreachable:
            circuit.failed(ticket)
            raise
        except RonError:
            circuit.succeeded(ticket)
            raise
        except BaseException:
            # cancelled: by the deadline, because nothing was heard, or by a caller who does not wait any more
            late = self._reactor.seconds() >= until_s
            (circuit.failed if late else circuit.abandoned)(ticket)
            raise
        circuit.succeeded(ticket)
        return answer

    async def _once(self, method: str, path: str, body: bytes | None, solution: str | None) -> Answer:
        headers = Headers({"Authorization": [f"Bearer {self._capability}"]} if self._capability else {})
        if body is not None:
            headers.addRawHeader("Content-Type", "application/json")
        if solution is not None:
            headers.addRawHeader(SOLUTION_HEADER, solution)
        try:
            response = await cancellable(
                self._http.request(
                    method, self.base_url + path, headers=headers, data=body, unbuffered=True, allow_redirects=False
                )
            )
            collected = _Body()
            response.deliverBody(collected)
            received = await collected.whole
        except (CancelledError, DeadlineError, RonError):
            raise
        except Exception as error:
            # treq, SOCKS and TCP each have their own exceptions; to a caller they all mean: nobody is there
            raise Unreachable(
                f"{self.base_url} does not answer ({type(error).__name__})", hint="is the node running and ready?"
            ) from error
        fields = response.headers.getAllRawHeaders()
        flat = {name.decode("latin-1").lower(): values[-1].decode("latin-1") for name, values in fields}
        if response.code >= 400:
            refusal = from_envelope(received, response.code)
            # nothing else of the other side's headers: an error may be raised on into an answer of our own
            refusal.headers.update({name: flat[name] for name in (CHALLENGE_HEADER.lower(),) if name in flat})
            raise refusal
        return Answer(response.code, flat, received)


class _Body(Protocol):
    """Collects an answer's body in `whole`; hangs up at the first byte too many, and when nobody waits any more."""

    def __init__(self) -> None:
        self.whole: Deferred[bytes] = Deferred(lambda _whole: self._hang_up())
        self._chunks: list[bytes] = []
        self._size = 0

    def dataReceived(self, data: bytes) -> None:
        """Keep `data`."""
        self._size += len(data)
        if self._size <= MAX_ANSWER_BYTES:
            self._chunks.append(data)
        elif not self.whole.called:
            self._hang_up()
            self.whole.errback(RonError(ErrorCode.TOO_LARGE, f"the answer is over {MAX_ANSWER_BYTES} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The body has ended, or broke off."""
        if self.whole.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(b"".join(self._chunks))
        else:
            self.whole.errback(reason)

    def _hang_up(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()
