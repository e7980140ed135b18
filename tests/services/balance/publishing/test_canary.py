"""A visitor of our own: failures first. Loopback stands for the onion; through tor it is in tests/live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import URI
from twisted.web.iweb import IAgentEndpointFactory
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface import implementer

from ron.kernel import Metrics
from ron.services.balance.publishing.canary import VISIT_TIMEOUT_S, Canary
from ron.services.balance.publishing.outside import Figures
from ron.services.balance.publishing.schedule import Asked
from tests.live.support import free_port

ONION = f"{'a' * 56}.onion"


@implementer(IAgentEndpointFactory)
class Loopback:
    """A way that leads to a port of ours."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reached: list[Any] = []

    def endpointForURI(self, uri: URI) -> Any:
        assert uri.host == ONION.encode()
        return Remembering(TCP4ClientEndpoint(reactor, "127.0.0.1", self._port), self._reached)

    def hang_up(self) -> None:
        for protocol in self._reached:
            protocol.transport.abortConnection()


@implementer(IStreamClientEndpoint)
class Remembering:
    def __init__(self, endpoint: Any, reached: list[Any]) -> None:
        self._endpoint = endpoint
        self._reached = reached

    def connect(self, factory: Any) -> Any:
        return self._endpoint.connect(factory).addCallback(self._keep)

    def _keep(self, protocol: Any) -> Any:
        self._reached.append(protocol)
        return protocol


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class Nowhere:
    """A way whose connection comes to `outcome`."""

    def __init__(self, outcome: Callable[[], Deferred[Any]]) -> None:
        self._outcome = outcome
        self.hung_up = False

    def endpointForURI(self, uri: URI) -> Any:
        return self

    def connect(self, factory: Any) -> Deferred[Any]:
        return self._outcome()

    def hang_up(self) -> None:
        self.hung_up = True


def refused() -> Deferred[Any]:
    failed: Deferred[Any] = Deferred()
    failed.errback(ConnectionRefusedError())
    return failed


def make(clock: Any, way: Callable[[], Any], **changed: Any) -> tuple[Canary, Metrics, list[Asked]]:
    metrics, asked = Metrics(), list[Asked]()
    settings: dict[str, Any] = {
        "service": "shop",
        "onion": ONION,
        "port": 80,
        "ways": way,
        "ask": lambda service, why: asked.append(why),
        "every_s": lambda: 60.0,
        "figures": Figures(metrics),
        "random": lambda: 0.5,
    }
    return Canary(clock, **{**settings, **changed}), metrics, asked


class Pacing(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.outcome: Callable[[], Deferred[Any]] = refused
        self.ways: list[Nowhere] = []
        self.every_s = 60.0
        self.fresh = 0
        self.canary, self.metrics, self.asked = make(
            self.clock, self.way, speaks="tcp", every_s=lambda: self.every_s, fresh=self.forget
        )
        self.addCleanup(self.stopped)

    def stopped(self) -> None:
        self.canary.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertTrue(all(way.hung_up for way in self.ways))

    def way(self) -> Nowhere:
        self.ways.append(Nowhere(lambda: self.outcome()))
        return self.ways[-1]

    async def forget(self) -> None:
        self.fresh += 1

    def figure(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"service": "shop", **labels})

    def test_two_failures_in_a_row(self) -> None:
        self.canary.start()
        self.clock.advance(60)
        self.assertEqual((self.asked, self.figure("balance_canary_available")), ([], 0.0))
        self.clock.advance(60)
        self.assertEqual(self.asked, [Asked.UNREACHABLE])
        self.clock.pump([60] * 2)
        self.assertEqual(len(self.asked), 2)
        self.assertEqual(self.figure("balance_canary_visits_total", result="failed"), 4)

    def test_a_success_between(self) -> None:
        self.canary.start()
        self.clock.advance(60)
        self.outcome = lambda: succeed(Protocol())
        self.clock.advance(60)
        self.assertEqual(self.figure("balance_canary_available"), 1.0)
        self.outcome = refused
        self.clock.advance(60)
        self.assertEqual(self.asked, [])

    def test_no_answer(self) -> None:
        self.outcome = Deferred
        self.canary.start()
        self.clock.advance(60)
        self.clock.advance(VISIT_TIMEOUT_S)
        assert self.canary.last is not None
        self.assertEqual(self.canary.last.problem, "no answer in 30 s")
        self.clock.advance(60)
        self.assertEqual(len(self.ways), 2)

    def test_stopped_in_the_middle(self) -> None:
        self.outcome = Deferred
        self.canary.start()
        self.clock.advance(60)
        self.canary.stop()
        self.assertEqual((self.canary.last, self.asked), (None, []))

    def test_switched_off_and_on(self) -> None:
        self.every_s = 0.0
        self.canary.start()
        self.clock.pump([VISIT_TIMEOUT_S] * 4)
        self.assertEqual(self.ways, [])
        self.every_s = 10.0
        self.clock.pump([VISIT_TIMEOUT_S, 10])
        self.assertEqual((len(self.ways), self.fresh), (1, 1))

    def test_not_at_equal_distances(self) -> None:
        canary, _metrics, _asked = make(self.clock, self.way, random=lambda: 0.0)
        self.addCleanup(canary.stop)
        canary.start()
        self.assertEqual([round(call.getTime()) for call in self.clock.getDelayedCalls()], [48])


class Visiting(TestCase):
    timeout = 60

    def listen(self, factory: Any) -> int:
        listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        return int(listening.getHost().port)

    async def test_a_page(self) -> None:
        page = Resource()
        page.putChild(b"", Resource())
        for site, status in ((Site(page), 405), (Site(Resource()), 404)):
            port = self.listen(site)
            canary, metrics, _asked = make(reactor, lambda port=port: Loopback(port))
            visit = await canary.visit()
            self.assertEqual((visit.problem, visit.status), ("", status))
            value = metrics.registry.get_sample_value("balance_canary_seconds_count", {"service": "shop"})
            self.assertEqual(value, 1.0)

    async def test_an_endless_page(self) -> None:
        page = Resource()
        page.isLeaf = True
        gone: list[Any] = []

        def render(request: Any) -> Any:
            request.notifyFinish().addErrback(gone.append)
            request.write(b"x" * 10_000)
            return 1  # NOT_DONE_YET

        page.render_GET = render
        port = self.listen(Site(page))
        canary, _metrics, _asked = make(reactor, lambda: Loopback(port))
        self.assertEqual((await canary.visit()).status, 200)
        await self.until(lambda: gone)

    async def test_a_port_that_only_hangs_up(self) -> None:
        class HangsUp(Protocol):
            def connectionMade(self) -> None:
                self.transport.loseConnection()

        port = self.listen(Factory.forProtocol(HangsUp))
        canary, _metrics, asked = make(reactor, lambda: Loopback(port))
        self.assertEqual([bool((await canary.visit()).problem) for _ in range(2)], [True, True])
        self.assertEqual(asked, [Asked.UNREACHABLE])
        canary, _metrics, _asked = make(reactor, lambda: Loopback(port), speaks="tcp")
        self.assertEqual((await canary.visit()).problem, "")

    async def test_nobody_there(self) -> None:
        port = free_port()
        canary, _metrics, _asked = make(reactor, lambda: Loopback(port))
        self.assertEqual((await canary.visit()).problem, "ConnectionRefusedError")

    async def until(self, true: Callable[[], object]) -> None:
        from tests.web.wire import until

        await until(true)
