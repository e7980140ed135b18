"""The proxy before an onion, here before a TCP port: what goes through it is its own affair."""

from __future__ import annotations

import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint, connectProtocol
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from ron.services.balance.heads.proxy import Proxy

BIG = 4 * 1024 * 1024


@implementer(IHalfCloseableProtocol)
class Talker(Protocol):
    """Collects until the other end has ended."""

    def __init__(self) -> None:
        self.heard = b""
        self.ended: Deferred[bytes] = Deferred()
        self.gone: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def readConnectionLost(self) -> None:
        self.ended.callback(self.heard)
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        return

    def connectionLost(self, _reason: Failure | None = None) -> None:
        if not self.ended.called:
            self.ended.callback(self.heard)
        self.gone.callback(None)


class Reverser(Talker):
    """Answers everything, backwards, when the asker has ended; then ends."""

    def readConnectionLost(self) -> None:
        self.transport.write(self.heard[::-1])
        super().readConnectionLost()


class ProxyTests(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.behind: list[Talker] = []
        self.refused = 0
        port = reactor.listenTCP(0, Factory.forProtocol(self.talker), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.number = port.getHost().port
        # trial's own folders are too deep for a socket's path
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "proxy-80"

    def talker(self) -> Talker:
        self.behind.append(Reverser())
        return self.behind[-1]

    def proxy(self, number: int | None = None, **settings: float) -> Proxy:
        def refused() -> None:
            self.refused += 1

        proxy = Proxy(
            reactor,
            lambda: TCP4ClientEndpoint(reactor, "127.0.0.1", number or self.number),
            refused=refused,
            **settings,
        )
        listening = reactor.listenUNIX(str(self.path), proxy, mode=0o600)
        self.addCleanup(listening.stopListening)
        self.addCleanup(self.all_gone)
        self.addCleanup(proxy.close_all)
        return proxy

    def all_gone(self) -> Deferred[list[None]]:
        return gatherResults([talker.gone for talker in self.behind])

    async def visitor(self) -> Talker:
        return await connectProtocol(UNIXClientEndpoint(reactor, str(self.path)), Talker())

    async def test_nobody_behind(self) -> None:
        port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        number = port.getHost().port
        await port.stopListening()
        self.proxy(number)
        visitor = await self.visitor()
        await visitor.gone
        self.assertEqual(visitor.heard, b"")

    async def test_beyond_the_bound(self) -> None:
        proxy = self.proxy(max_connections=1)
        first = await self.visitor()
        second = await self.visitor()
        await second.gone
        self.assertEqual((self.refused, len(proxy.open)), (1, 1))
        proxy.close_all()
        await first.gone

    async def test_a_question_an_end_and_the_answer(self) -> None:
        self.proxy()
        visitor = await self.visitor()
        question = bytes(range(256)) * (BIG // 256)
        visitor.transport.write(question)
        visitor.transport.loseWriteConnection()
        self.assertEqual(await visitor.ended, question[::-1])
        await visitor.gone

    async def test_a_visitor_that_leaves_is_told_to_the_other_end(self) -> None:
        proxy = self.proxy()
        visitor = await self.visitor()
        visitor.transport.write(b"bye")
        visitor.transport.loseConnection()
        await visitor.gone
        while not self.behind:
            await self.soon()
        self.assertEqual(await self.behind[0].ended, b"bye")
        await self.behind[0].gone
        while proxy.open:
            await self.soon()

    async def test_a_forgotten_connection_ends(self) -> None:
        self.proxy(idle_s=0.2)
        visitor = await self.visitor()
        await visitor.gone

    def soon(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        reactor.callLater(0.01, waiting.callback, None)
        return waiting
