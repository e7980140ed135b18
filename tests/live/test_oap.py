"""OAP/1 over an onion on the private network: `twistd -n ron-oniond` in front of a server. Needs tor."""

from __future__ import annotations

import os

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.trial.unittest import TestCase
from txtorcon import TorClientEndpoint

from ron.kernel import Metrics
from ron.oap import OapClient, OapServer, Request, Response
from ron.proto.errors import RonError, not_found
from tests.live.support import NO_TOR, Daemon

PROTO = 0x0201
ONION_PORT = 1777


class OverAnOnion(TestCase):
    """No TLS inside: the onion's key is who answers."""

    skip = NO_TOR
    timeout = 240

    def setUp(self) -> None:
        self.server = OapServer(reactor, self.answer, metrics=Metrics())
        port = reactor.listenTCP(0, self.server, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.daemon = Daemon(
            "ron-oniond",
            '[admin]\nbind = "127.0.0.1:0"\n'
            f'[[apps]]\nname = "oap"\n'
            f'expose = [{{ local = "127.0.0.1:{port.getHost().port}", onion_port = {ONION_PORT} }}]\n',
            "onions.json",
        )
        self.addCleanup(self.daemon.destroy)
        self.daemon.start()

    async def answer(self, request: Request) -> Response:
        if request.code == 404:
            raise not_found("nothing there")
        return Response(payload=request.payload)

    async def test_calls(self) -> None:
        facts = self.daemon.facts()
        socks = TCP4ClientEndpoint(reactor, "127.0.0.1", facts["socks_port"])
        (app,) = facts["onions"]
        client = await OapClient.connect(reactor, TorClientEndpoint(app["onion"], ONION_PORT, socks))
        self.addCleanup(client.close)
        payloads = [os.urandom(size) for size in (10, 300_000, 100)]
        calls = [Deferred.fromCoroutine(client.call(PROTO, 1, payload, deadline_s=60)) for payload in payloads]
        self.assertEqual([answer.payload for answer in await gatherResults(calls)], payloads)
        refused = Deferred.fromCoroutine(client.call(PROTO, 404, deadline_s=60))
        self.assertEqual((await self.assertFailure(refused, RonError)).status, 404)
