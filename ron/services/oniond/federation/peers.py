"""Calls to peers' onions: one connection each, on a circuit of its own, through a tor of the peer's network.

In: the SOCKS port to use for an onion, a message. Out: the peer's answer, decoded strictly, or `RonError`. A peer's own
words go nowhere: not into an error, not into a log. Nothing is repeated, and no work is done at its request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, FileBodyProducer, ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from ron.kernel.aio import cancellable
from ron.proto.errors import ErrorCode, RonError, backpressure, conflict, unavailable
from ron.services.oniond.federation.messages import (
    MAX_BODY_BYTES,
    Challenge,
    FactsMessage,
    HandshakeAnswer,
    RosterListing,
    ZkHandshake,
)
from ron.tor.isolated import IsolatedEndpoints

T = TypeVar("T")
_REFUSED = 403
_BUSY = frozenset({429, 503})


class OnionPeers:
    """`service.Peers`. socks: the port on loopback for an onion; raises `RonError` while there is none."""

    def __init__(self, reactor: Any, socks: Callable[[str], Awaitable[int]]) -> None:
        self._reactor = reactor
        self._socks = socks

    async def challenge(self, onion: str) -> Challenge:
        """`GET /federate/challenge`."""
        return await self._call(onion, "GET", "challenge", Challenge)

    async def roster(self, onion: str) -> RosterListing:
        """`GET /federate/roster`."""
        return await self._call(onion, "GET", "roster", RosterListing)

    async def handshake(self, onion: str, message: ZkHandshake) -> HandshakeAnswer:
        """`POST /federate/zk_handshake`."""
        return await self._call(onion, "POST", "zk_handshake", HandshakeAnswer, message)

    async def facts(self, onion: str, message: FactsMessage) -> FactsMessage:
        """`POST /federate/facts`."""
        return await self._call(onion, "POST", "facts", FactsMessage, message)

    async def _call(self, onion: str, method: str, name: str, answer: type[T], body: Any = None) -> T:
        endpoints = IsolatedEndpoints(self._reactor, await self._socks(onion))
        try:
            received = await self._exchange(endpoints, method, f"http://{onion}/federate/{name}", body)
        finally:
            endpoints.hang_up()
        try:
            return msgspec.json.decode(received, type=answer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise conflict("the peer's answer is none of the protocol's") from None

    async def _exchange(self, endpoints: IsolatedEndpoints, method: str, url: str, body: Any) -> bytes:
        producer = FileBodyProducer(BytesIO(msgspec.json.encode(body))) if body is not None else None
        headers = Headers({"Content-Type": ["application/json"]} if body is not None else {})
        agent = Agent.usingEndpointFactory(self._reactor, endpoints)
        try:
            response: IResponse = await cancellable(agent.request(method.encode(), url.encode(), headers, producer))
            if response.code != 200:
                raise _refusal(response.code)
            collected = _Answer()
            response.deliverBody(collected)
            return await collected.whole
        except (RonError, CancelledError):
            raise
        except Exception as error:
            # SOCKS, TCP and HTTP each have exceptions of their own; here they all mean: nobody is there
            raise unavailable(
                f"the peer's onion cannot be reached ({type(error).__name__})",
                hint="does it run, and does the tor that federation.peer names belong to its network?",
            ) from error


def _refusal(status: int) -> RonError:
    if status == _REFUSED:
        return RonError(ErrorCode.NO_CAPABILITY, "the peer refused")
    if status in _BUSY:
        return backpressure("the peer is busy")
    return conflict(f"the peer answered with status {status}", "does it have federation.enabled, and this version?")


class _Answer(Protocol):
    """Collects an answer's body in `whole`, and hangs up at the first byte too many."""

    def __init__(self) -> None:
        self.whole: Deferred[bytes] = Deferred()
        self._received = bytearray()

    def dataReceived(self, data: bytes) -> None:
        """Keep `data`."""
        self._received += data
        if len(self._received) > MAX_BODY_BYTES and not self.whole.called:
            self.whole.errback(conflict(f"the peer's answer is over {MAX_BODY_BYTES} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The body has ended, or broke off: without its length it could be cut short unnoticed."""
        if self.whole.called:
            return
        if reason.check(ResponseDone):
            self.whole.callback(bytes(self._received))
        else:
            self.whole.errback(reason)
