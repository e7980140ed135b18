"""How requests travel: straight over loopback, over a Unix socket, or through a tor's SOCKS port to an onion.

In: a reactor. Out: a `treq` client with a bounded, persistent connection pool.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.web.client import URI, Agent, FileBodyProducer, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IResponse
from txtorcon.web import tor_agent
from zope.interface import implementer

CONNECT_TIMEOUT_S = 10.0
_PER_HOST = 8


class Requests(Protocol):
    """What the SDK needs of an HTTP client; treq's has it too."""

    def request(
        self, method: str, url: str, *, headers: Headers, data: bytes | None, unbuffered: bool, allow_redirects: bool
    ) -> Deferred[Any]:
        """Send a request; the answer's body has not been read."""
        ...


def direct_http(reactor: Any, pool: HTTPConnectionPool | None = None) -> PlainClient:
    """Requests over loopback."""
    return PlainClient(Agent(reactor, connectTimeout=CONNECT_TIMEOUT_S, pool=pool or connection_pool(reactor)))


def unix_http(reactor: Any, path: Path, pool: HTTPConnectionPool | None = None) -> PlainClient:
    """Requests over the Unix socket at `path`, whatever host their URL names."""
    endpoints = _UnixEndpoints(reactor, path)
    return PlainClient(Agent.usingEndpointFactory(reactor, endpoints, pool or connection_pool(reactor)))


class PlainClient:
    """An agent as the SDK asks it: no cookies, no redirects, and bodies stay encoded as they came."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def request(
        self, method: str, url: str, *, headers: Headers, data: bytes | None = None, **_options: bool
    ) -> Deferred[IResponse]:
        """Send a request; the answer's body has not been read."""
        body = FileBodyProducer(BytesIO(data)) if data is not None else None
        return self._agent.request(method.encode(), url.encode(), headers, body)


@implementer(IAgentEndpointFactory)
class _UnixEndpoints:
    """One socket for every URL."""

    def __init__(self, reactor: Any, path: Path) -> None:
        self._reactor = reactor
        self._path = path

    def endpointForURI(self, _uri: URI) -> UNIXClientEndpoint:
        """The socket."""
        return UNIXClientEndpoint(self._reactor, str(self._path), timeout=CONNECT_TIMEOUT_S)


def onion_http(reactor: Any, socks_port: int, pool: HTTPConnectionPool | None = None) -> PlainClient:
    """Requests through the tor that has its SOCKS port at 127.0.0.1:`socks_port`; names are resolved by tor alone."""
    socks = TCP4ClientEndpoint(reactor, "127.0.0.1", socks_port, timeout=CONNECT_TIMEOUT_S)
    return PlainClient(tor_agent(reactor, socks, pool=pool or connection_pool(reactor)))


def connection_pool(reactor: Any) -> HTTPConnectionPool:
    """Persistent connections, at most eight a host. Whoever makes one may end it with `closeCachedConnections()`."""
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool.maxPersistentPerHost = _PER_HOST
    # we retry ourselves, with back-off and only what is safe to repeat
    pool.retryAutomatically = False
    return pool
