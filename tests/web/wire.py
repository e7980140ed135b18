"""HTTP as it is on the wire: a site on a loopback port, and a client that sends any bytes it likes.

`exchange` does the same in memory, for properties over thousands of requests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from ron.auth import Authority, Caveat, RootKeys
from ron.kernel import Metrics
from ron.sdk import direct_http
from ron.web import Edge, Endpoint, make_site
from ron.web.site import RonSite

PATIENCE_S = 20.0


class Response(NamedTuple):
    """One answer. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def split_response(received: bytes, *, headless: bool = False) -> tuple[Response, bytes] | None:
    """The first whole response in `received` and what follows it; None while it is not whole."""
    head, found, rest = received.partition(b"\r\n\r\n")
    if not found:
        return None
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(status_line.split(" ")[1])
    bodiless = headless or status in {100, 304}
    length = 0 if bodiless else int(headers["content-length"])
    if len(rest) < length:
        return None
    return Response(status, headers, rest[:length]), rest[length:]


class Wire(Protocol):
    """A client connection that knows nothing of HTTP but where an answer ends."""

    def __init__(self) -> None:
        self.received = b""
        self.closed = False
        self._changed: list[Deferred[None]] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True
        self._wake()

    def send(self, *pieces: bytes) -> None:
        assert self.transport is not None
        self.transport.write(b"".join(pieces))

    async def response(self, *, headless: bool = False) -> Response:
        """The next answer. headless: it is to a HEAD."""
        while (whole := split_response(self.received, headless=headless)) is None:
            if self.closed:
                raise AssertionError(f"closed after {self.received!r}")
            await self._change()
        answer, self.received = whole
        return answer

    async def end(self) -> None:
        """Return when the other side has closed."""
        while not self.closed:
            await self._change()

    def abort(self) -> None:
        if self.transport is not None and not self.closed:
            self.transport.abortConnection()  # type: ignore[attr-defined]

    async def _change(self) -> None:
        changed: Deferred[None] = Deferred()
        self._changed.append(changed)
        await changed.addTimeout(PATIENCE_S, reactor)

    def _wake(self) -> None:
        changed, self._changed = self._changed, []
        for one in changed:
            one.callback(None)


def request(
    method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None, *, version: str = "1.1"
) -> bytes:
    """The bytes of a request, with Content-Length when there is a body."""
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chunked(*chunks: bytes) -> bytes:
    """A chunked body."""
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def exchange(site: RonSite, *pieces: bytes) -> bytes:
    """What the site writes when `pieces` arrive one after the other on a connection that then ends; all in memory."""
    channel, transport = site.buildProtocol(None), StringTransport()
    channel.makeConnection(transport)
    for piece in pieces:
        if not transport.disconnecting:
            channel.dataReceived(piece)
    written: bytes = transport.value()
    channel.connectionLost(Failure(connectionDone.value))
    return written


async def until(true: Callable[[], object]) -> None:
    """Return once `true()` is."""
    for _ in range(1000):
        if true():
            return
        await deferLater(reactor, 0.005)
    raise AssertionError("it never came true")


def closing(test: TestCase, http: HTTPClient) -> HTTPClient:
    """`http`, whose idle connections are closed after `test`."""

    async def close() -> None:
        await deferLater(reactor, 0)  # the last one may be on its way back to the pool
        await http._agent._pool.closeCachedConnections()

    test.addCleanup(close)
    return http


class OnTheWire(TestCase):
    """A real site on a real port; `clock` turns its deadlines and idle times."""

    timeout = 60

    def setUp(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.authority = Authority(RootKeys.generate(), audience="ron-node", now=lambda: 1_800_000_000.0)
        self.edge = Edge(authority=self.authority, metrics=self.metrics, reactor=self.clock)

    def serve(self, endpoints: Iterable[Endpoint], **limits: int) -> RonSite:
        """Listen with `endpoints`; everything is closed again after the test."""
        site = make_site(self.edge, endpoints, **limits)
        listening = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.port = listening.getHost().port
        self.addCleanup(until, lambda: not site.channels)
        self.addCleanup(listening.stopListening)
        return site

    async def wire(self) -> Wire:
        """A new connection to what `serve` listens with."""
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        wire: Wire = await endpoint.connect(Factory.forProtocol(Wire))
        self.addCleanup(until, lambda: wire.closed)
        self.addCleanup(wire.abort)
        return wire

    async def ask(self, *pieces: bytes, headless: bool = False) -> Response:
        """One request on a connection of its own."""
        wire = await self.wire()
        wire.send(*pieces)
        return await wire.response(headless=headless)

    def http(self) -> HTTPClient:
        """The SDK's own client; its idle connections are closed after the test."""
        return closing(self, direct_http(reactor))

    def bearer(self, *caveats: tuple[str, str]) -> dict[str, str]:
        """The header of a fresh capability."""
        return {"Authorization": f"Bearer {self.authority.mint(Caveat(*c) for c in caveats)}"}

    def counted(self, route: str, method: str, status: int) -> float:
        """How many answers `http_requests_total` has for these labels."""
        labels = {"route": route, "method": method, "status": str(status)}
        return self.metrics.registry.get_sample_value("http_requests_total", labels) or 0.0
