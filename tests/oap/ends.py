"""Both ends of OAP/1 in memory: a server under `task.Clock`, a peer that sends what it likes, a client pumped to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Metrics
from ron.kernel.limits_config import LimitsConfig
from ron.oap.accepted import Accepted
from ron.oap.client import OapClient
from ron.oap.frames import Decoder, Flags, Frame, encode
from ron.oap.messages import Request, Response
from ron.oap.server import OapServer

PROTO = 0x0201
REQ, RESP, EVENT, START, END = Flags.REQ, Flags.RESP, Flags.EVENT, Flags.START, Flags.END
WHOLE = REQ | START | END


def frame(flags: Flags, number: int = 7, payload: bytes = b"", **fields: Any) -> Frame:
    return Frame(**{"flags": flags, "app_proto_id": PROTO, "corr_id": number, "payload": payload, **fields})


def hello() -> Frame:
    return frame(WHOLE, 1, app_proto_id=0)


class Peer:
    """A raw connection to a server; what it was sent is in `frames`."""

    def __init__(self, server: OapServer, host: str = "127.0.0.1") -> None:
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", host, 1))
        self.frames: list[Frame] = []
        self.connection: Accepted = server.buildProtocol(None)
        self._decoder = Decoder()
        self.connection.makeConnection(self.transport)
        self.transport.abortConnection = self._aborted  # type: ignore[method-assign]
        self.gone = False

    def _aborted(self) -> None:
        self.transport.disconnected = True
        self.lose()

    def lose(self) -> None:
        """The connection is over."""
        if not self.gone:
            self.gone = True
            self.connection.connectionLost(Failure(ConnectionDone()))

    def say(self, *frames: Frame) -> list[Frame]:
        """Send these, hear what comes at once."""
        return self.write(b"".join(map(encode, frames)))

    def write(self, raw: bytes) -> list[Frame]:
        self.connection.dataReceived(raw)
        return self.hear()

    def hear(self) -> list[Frame]:
        """What has come since."""
        heard = list(self._decoder.feed(self.transport.value()))
        self.transport.clear()
        self.frames += heard
        return heard

    @property
    def hung_up(self) -> bool:
        return bool(self.transport.disconnecting or self.transport.disconnected)


class Ends(SynchronousTestCase):
    """A server whose handler the test answers by hand, or one that echoes."""

    def setUp(self) -> None:
        self.clock, self.metrics = Clock(), Metrics()
        self.requests: list[Request] = []
        self.answers: list[Deferred[Response]] = []
        self.server = self.make_server()

    def make_server(self, handler: Callable[[Request], Awaitable[Response]] | None = None, **options: Any) -> OapServer:
        limits = LimitsConfig(**options.pop("limits", {}))
        return OapServer(self.clock, handler or self.by_hand, metrics=self.metrics, limits=limits, **options)

    def by_hand(self, request: Request) -> Deferred[Response]:
        self.requests.append(request)
        self.answers.append(Deferred())
        return self.answers[-1]

    async def echo(self, request: Request) -> Response:
        self.requests.append(request)
        return Response(payload=request.payload, e2e=request.e2e, compress=True)

    def peer(self, *, greeted: bool = True, host: str = "127.0.0.1") -> Peer:
        peer = Peer(self.server, host)
        self.addCleanup(peer.lose)
        if greeted:
            peer.say(hello())
            peer.frames.clear()
        return peer

    def rejected(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("rejected_total", {"reason": reason}) or 0.0

    def said(self, answer: Frame, status: int) -> dict[str, Any]:
        """The envelope in `answer`, which has `status`."""
        self.assertEqual((answer.code, answer.flags), (status, RESP | END))
        whole: dict[str, Any] = msgspec.json.decode(answer.payload)
        return whole

    def advance(self, seconds: float, step: float = 0.5) -> None:
        self.clock.pump([step] * round(seconds / step))


class Pair(Ends):
    """A client that is connected to the server."""

    def connect(self, **options: Any) -> OapClient:
        client = OapClient(self.clock, **options)
        self.client_io, self.server_io = FakeTransport(client, False), FakeTransport(None, True)
        connection = self.server.buildProtocol(None)
        self.server_io.protocol = connection
        connection.makeConnection(self.server_io)
        client.makeConnection(self.client_io)
        self.pump = IOPump(client, connection, self.client_io, self.server_io, False, self.clock)
        greeting = Deferred.fromCoroutine(client.ping(2.0))
        self.settle()
        self.successResultOf(greeting)
        self.addCleanup(self.settle)
        self.addCleanup(client.abort)
        return client

    def settle(self) -> None:
        for _ in range(200):
            if not self.pump.pump():
                return

    def call(self, client: OapClient, payload: bytes = b"", **options: Any) -> Deferred[Response]:
        work = Deferred.fromCoroutine(client.call(PROTO, 1, payload, **options))
        self.addCleanup(work.addErrback, lambda _failure: None)
        self.settle()
        return work
