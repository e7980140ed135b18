"""What a worker of the key service does not answer itself goes to the owner as it came, and so does the answer back.

In: a request of any route but the hot ones, within the limits of the worker's listener. Out: what the owner's own site
says to it, over a Unix socket in the home: it asks for the capability and judges the body as for any caller.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import RequestTransmissionFailed, ResponseFailed, ResponseNeverReceived, readBody
from twisted.web.http_headers import Headers

from ron.kernel.aio import cancellable, within
from ron.kernel.limits import Refused
from ron.proto.errors import ErrorCode, RonError, bad_request, not_found, unavailable
from ron.sdk.transport import connection_pool, unix_http
from ron.services.kms.api import SLOW_DEADLINE_S
from ron.web import Edge, Endpoint
from ron.web.content import Answer
from ron.web.endpoint import correlation_id, send
from ron.web.head import error_answer
from ron.web.request import RonRequest
from ron.web.site import RonSite

# The owner has deadlines of its own, all of them shorter.
DEADLINE_S = SLOW_DEADLINE_S + 5.0
_IDLE_S = 3
_CORR_ID = "x-corr-id"
# Of one connection, and of nobody beyond it (RFC 9110 §7.6.1), or made anew by whoever sends.
_OURS = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade expect host content-length".split()
)
_MADE_ANEW = _OURS | frozenset(
    b"date server x-corr-id x-content-type-options referrer-policy cross-origin-resource-policy".split()
)
_log = Logger(namespace="ron.kms.workers")


class Forwarder:
    """In the place of an endpoint, for all routes that a worker has none for. path: the owner's socket."""

    # what a request asks of whatever answers it
    spec = Endpoint(method="*", path="forwarded", handler=lambda _call: None, scope=None)

    def __init__(self, reactor: Any, path: Path, edge: Edge) -> None:
        self._reactor = reactor
        self._edge = edge
        self._pool = connection_pool(reactor)
        # let go of before the owner does, so that none is found closed in the middle of a request
        self._pool.cachedConnectionTimeout = _IDLE_S
        self._http = unix_http(reactor, path, self._pool)
        self._counted = edge.metrics.inflight.labels(self.spec.path)

    def serve(self, site: RonSite) -> None:
        """Answer on `site` whatever it has no hot endpoint for."""
        own = site.hot

        def hot(method: bytes, path: bytes) -> Any:
            return own(method, path) or (self, {})

        site.hot = hot

    def answer(self, request: RonRequest, _params: dict[str, str]) -> None:
        """Have it answered. Never raises."""
        edge, corr_id = self._edge, correlation_id(request)
        try:
            edge.concurrency.enter()
        except Refused as error:
            edge.count_refusal(error)
            send(error_answer(error, corr_id), request, corr_id)
            return
        self._counted.inc()
        asked = cancellable(Deferred.fromCoroutine(self._asked(request, corr_id)))
        work = Deferred.fromCoroutine(within(self._reactor, DEADLINE_S, asked))
        request.working = work
        work.addErrback(_refused).addCallback(self._done, request, corr_id)
        work.addErrback(lambda failure: _log.failure("forwarding", failure, event="answer_failed"))

    async def close(self) -> None:
        """Let go of connections to the owner."""
        await self._pool.closeCachedConnections()

    def _done(self, answer: Answer, request: RonRequest, corr_id: str) -> None:
        request.working = None
        self._counted.dec()
        self._edge.concurrency.leave()
        send(answer, request, corr_id)

    async def _asked(self, request: RonRequest, corr_id: str) -> Answer:
        if not request.uri.startswith(b"/"):
            raise not_found("nothing lives at this path")
        # a HEAD is answered as a GET whose body stays here, so that its length is right
        method = "GET" if request.method == b"HEAD" else request.method.decode("latin-1")
        headers = Headers()
        for name, values in request.requestHeaders.getAllRawHeaders():
            if name.lower() not in _OURS:
                headers.setRawHeaders(name, values)
        headers.setRawHeaders(_CORR_ID, [corr_id])
        try:
            url = f"http://owner{request.uri.decode('ascii')}"
            answer = await self._http.request(method, url, headers=headers, data=request.body() or None)
        except ValueError:
            raise bad_request("the path or the method has characters that neither may have") from None
        body = await readBody(answer)
        told = {
            name.decode("latin-1"): b", ".join(values).decode("latin-1")
            for name, values in answer.headers.getAllRawHeaders()
            if name.lower() not in _MADE_ANEW
        }
        return Answer(answer.code, told, body)


def _refused(failure: Failure) -> Answer:
    """What the client hears when there is no answer of the owner."""
    error = failure.value
    if isinstance(error, RonError):
        return error_answer(error)
    if failure.check(DeadlineError, CancelledError):
        return error_answer(RonError(ErrorCode.TIMEOUT, "not done within the deadline"))
    if failure.check(ConnectError, ConnectionLost, ResponseFailed, ResponseNeverReceived, RequestTransmissionFailed):
        return error_answer(unavailable("the owner of the keys cannot be reached"))
    _log.failure("forwarding failed", failure, event="internal_error")
    return error_answer(RonError(ErrorCode.INTERNAL, "internal error", hint="the worker's log has it"))
