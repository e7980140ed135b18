"""Listening for OAP/1: whoever connects is greeted, its requests go to one handler, its limits are kept.

In: connections of any stream endpoint, a handler. Out: answers; refusals before work is done. `OapServer` is a plain
factory: wrap it with `ron.kernel.tls_listen.wrap_tls` for TLS (ALPN `ron/1`), hand it to a Unix socket or an onion.
"""

from __future__ import annotations

import contextlib
import random
from typing import Any

from twisted.internet.defer import DeferredList
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory

import ron
from ron.kernel.aio import occurred, within
from ron.kernel.deadlines import Deadlines
from ron.kernel.limits import Concurrency, PeerTable
from ron.kernel.limits_config import LimitsConfig
from ron.kernel.metrics import Metrics
from ron.kernel.openspans import OpenSpans
from ron.kernel.tally import Tally
from ron.kernel.tracing import Tracing
from ron.oap.accepted import Accepted
from ron.oap.hello import MAX_INFLIGHT, HelloAnswer
from ron.oap.messages import Handler
from ron.proto.errors import RETRYABLE, RonError

# For TLS: `ServerTls(…, alpn=ALPN)`, `ClientTls(…, alpn=ALPN)`.
ALPN = (b"ron/1",)
# A handler has this long.
DEADLINE_S = 30.0
# Payloads of requests that are coming in or being worked on, of all connections together.
BUFFER_BYTES = 256 * 1024 * 1024
_RETRY_AFTER_S = (1, 5)


class OapServer(Factory):
    """Answers OAP/1.

    name: of the listener, for metrics. deadline_s: what `handler` has for one request. buffer_bytes: payloads held at a
    time. offer: what HELLO says. spans: where spans of requests are noted for the bus; tracing: None for no spans.
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        handler: Handler,
        *,
        metrics: Metrics,
        limits: LimitsConfig | None = None,
        peers: PeerTable | None = None,
        tracing: Tracing | None = None,
        spans: OpenSpans | None = None,
        name: str = "oap",
        deadline_s: float = DEADLINE_S,
        buffer_bytes: int = BUFFER_BYTES,
        offer: HelloAnswer | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.reactor = reactor
        self.handler = handler
        self.metrics = metrics
        self.limits = limits or LimitsConfig()
        self.peers = peers or PeerTable(self.limits, reactor.seconds)
        self.concurrency = Concurrency(self.limits.concurrency)
        self.tracing = tracing
        self.spans = spans
        self.name = name
        self.deadline_s = deadline_s
        self.deadlines = Deadlines(reactor, deadline_s)
        self.buffer_bytes = buffer_bytes
        self.offer = offer or HelloAnswer(server_version=ron.__version__, max_inflight=MAX_INFLIGHT)
        self.buffered = 0
        self.draining = False
        self.connections: set[Accepted] = set()
        self.latency = metrics.tallies.timing(metrics.request_latency.labels(name, "OAP"))
        self.bytes_in, self.bytes_out = metrics.tallies.of(metrics.bytes_in), metrics.tallies.of(metrics.bytes_out)
        self.inflight = metrics.tallies.of(metrics.inflight.labels(name))
        self.open_connections = metrics.open_connections.labels(name)
        self._rng = rng or random.SystemRandom()
        # labels() costs as much as the rest of it
        self._statuses: dict[int, Tally] = {}

    def buildProtocol(self, addr: IAddress | None) -> Accepted:
        """One connection."""
        return Accepted(self)

    def apply(self, limits: LimitsConfig) -> None:
        """Go by `limits` from now on; a body that is coming in keeps its own."""
        self.limits = limits
        self.peers.apply(limits)
        self.concurrency.limit = limits.concurrency

    async def drain(self, seconds: float) -> int:
        """Take no more requests (503), let those under way finish; how many connections had to be cut off after all.

        Stop listening first.
        """
        self.draining = True
        for connection in list(self.connections):
            connection.leave_when_idle()
        lost = [occurred(connection.lost) for connection in self.connections]
        with contextlib.suppress(DeadlineError):
            await within(self.reactor, seconds, DeferredList(lost, consumeErrors=True))
        return self.abort()

    def abort(self) -> int:
        """Hang up on everybody; how many there were."""
        left = list(self.connections)
        for connection in left:
            connection.abort()
        return len(left)

    def with_retry_after(self, error: RonError) -> RonError:
        """`error`; where coming back makes sense with a random time for it, so that peers do not all come at once."""
        if error.code in RETRYABLE and error.status in {429, 503} and error.retry_after_s is None:
            error.retry_after_s = self._rng.randint(*_RETRY_AFTER_S)
        return error

    def count(self, code: int) -> None:
        """One answer."""
        counter = self._statuses.get(code)
        if counter is None:
            counter = self._statuses[code] = self.metrics.tallies.of(
                self.metrics.http_requests.labels(self.name, "OAP", code or 200)
            )
        counter.inc()
