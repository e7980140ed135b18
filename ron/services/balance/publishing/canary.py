"""A visitor of our own: does the master address answer to a client, and how fast?

In: a client tor's SOCKS port, behind endpoints that share no circuit. Out: availability and latency as metrics, and
after two failures in a row an order to publish anew. What the service says does not matter, as long as it does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple
from typing import Protocol as Shape

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.web.client import URI, Agent

from ron.kernel.aio import cancellable, within
from ron.proto.balance import ServiceName
from ron.services.balance.publishing.outside import Figures
from ron.services.balance.publishing.schedule import Asked

VISIT_TIMEOUT_S = 30.0
FAILURES_TO_ASK = 2
JITTER = 0.2
"""A visit at equal distances could be told from others' by whoever watches an introduction point."""
_log = Logger(namespace="ron.balance")


class Way(Shape):
    """An `IAgentEndpointFactory` through tor, and its end: tor looks for an onion as long as somebody is connected."""

    def endpointForURI(self, uri: URI) -> Any:
        """An endpoint on a circuit that carries nothing else."""
        ...

    def hang_up(self) -> None:
        """End the connections."""
        ...


class Visit(NamedTuple):
    """How one visit went. seconds: until the status line, or the connection. status: HTTP's, None when not asked.
    problem: empty when it succeeded."""

    seconds: float
    status: int | None = None
    problem: str = ""


class Canary:
    """Visits `onion`:`port` every `every_s` (read each time; 0 is never).

    ways: a way to the onion for one visit, on a circuit of its own. ask: called after two failures in a row. fresh:
    awaited before each visit, to have the tor forget what it knows of onions (SIGNAL NEWNYM), when it is the canary's
    alone. speaks: `http` wants a status line; `tcp` only a connection. random: 0.0 to 1.0.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        service: ServiceName,
        onion: str,
        port: int,
        ways: Callable[[], Way],
        ask: Callable[[ServiceName, Asked], None],
        every_s: Callable[[], float],
        figures: Figures,
        random: Callable[[], float],
        fresh: Callable[[], Awaitable[None]] | None = None,
        speaks: Literal["http", "tcp"] = "http",
    ) -> None:
        self.last: Visit | None = None
        self._reactor = reactor
        self._service = service
        self._url = f"http://{onion}:{port}/".encode()
        self._ways = ways
        self._ask = ask
        self._every_s = every_s
        self._figures = figures
        self._random = random
        self._fresh = fresh
        self._speaks = speaks
        self._failures = 0
        self._timer: IDelayedCall | None = None
        self._visiting: Deferred[None] | None = None
        self._running = False

    def start(self) -> None:
        """Begin; the first visit comes after the first pause."""
        self._running = True
        self._again()

    def stop(self) -> None:
        """End, a visit under way too."""
        self._running = False
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        visiting, self._visiting = self._visiting, None
        if visiting is not None:
            visiting.cancel()

    async def visit(self) -> Visit:
        """One visit, now; counted. Never raises but when cancelled."""
        began_s = self._reactor.seconds()
        try:
            if self._fresh is not None:
                await within(self._reactor, VISIT_TIMEOUT_S, _awaited(self._fresh()))
            began_s = self._reactor.seconds()
            status = await within(self._reactor, VISIT_TIMEOUT_S, cancellable(Deferred.fromCoroutine(self._reach())))
            visit = Visit(self._reactor.seconds() - began_s, status)
        except CancelledError:
            raise
        except DeadlineError:
            visit = Visit(self._reactor.seconds() - began_s, problem=f"no answer in {VISIT_TIMEOUT_S:.0f} s")
        except Exception as error:  # noqa: BLE001 - whatever a client may meet on its way
            visit = Visit(self._reactor.seconds() - began_s, problem=type(error).__name__)
        self._count(visit)
        return visit

    async def _reach(self) -> int | None:
        way = self._ways()
        try:
            if self._speaks == "tcp":
                await way.endpointForURI(URI.fromBytes(self._url)).connect(Factory.forProtocol(Protocol))
                return None
            response = await Agent.usingEndpointFactory(self._reactor, way).request(b"GET", self._url)
            return int(response.code)
        finally:
            # a page may be of any length, and the first line was what we came for
            way.hang_up()

    def _count(self, visit: Visit) -> None:
        self.last = visit
        well = not visit.problem
        self._figures.available.labels(self._service).set(well)
        self._figures.visits.labels(self._service, "reached" if well else "failed").inc()
        if well:
            self._figures.visit_latency.labels(self._service).observe(visit.seconds)
            self._failures = 0
            return
        self._failures += 1
        _log.warn("{service}: a visit failed: {why}", service=self._service, why=visit.problem)
        if self._failures >= FAILURES_TO_ASK:
            # two more before it is asked for again: the new descriptor has to get there first
            self._failures = 0
            self._ask(self._service, Asked.UNREACHABLE)

    def _again(self) -> None:
        if not self._running:
            return
        every_s = self._every_s()
        # switched off it looks now and then whether it still is
        delay_s = every_s * (1 - JITTER + 2 * JITTER * self._random()) if every_s else VISIT_TIMEOUT_S
        self._timer = self._reactor.callLater(delay_s, self._begin, bool(every_s))

    def _begin(self, wanted: bool) -> None:
        if not wanted:
            self._again()
            return
        visiting = self._visiting = Deferred.fromCoroutine(self._visit())
        visiting.addErrback(lambda failure: failure.trap(CancelledError))
        visiting.addErrback(lambda failure: _log.failure("the canary broke", failure))
        visiting.addBoth(lambda _: self._again())

    async def _visit(self) -> None:
        await self.visit()


async def _awaited(awaitable: Awaitable[None]) -> None:
    await awaitable
