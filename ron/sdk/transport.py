"""How requests travel: straight over loopback, or through a tor's SOCKS port to an onion.

In: a reactor. Out: a `treq` client with a bounded, persistent connection pool.
"""

from __future__ import annotations

from typing import Any

from treq.client import HTTPClient
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.web.client import Agent, HTTPConnectionPool
from txtorcon.web import tor_agent

CONNECT_TIMEOUT_S = 10.0
_PER_HOST = 8


def direct_http(reactor: Any, pool: HTTPConnectionPool | None = None) -> HTTPClient:
    """Requests over loopback."""
    return HTTPClient(Agent(reactor, connectTimeout=CONNECT_TIMEOUT_S, pool=pool or connection_pool(reactor)))


def onion_http(reactor: Any, socks_port: int, pool: HTTPConnectionPool | None = None) -> HTTPClient:
    """Requests through the tor that has its SOCKS port at 127.0.0.1:`socks_port`; names are resolved by tor alone."""
    socks = TCP4ClientEndpoint(reactor, "127.0.0.1", socks_port, timeout=CONNECT_TIMEOUT_S)
    return HTTPClient(tor_agent(reactor, socks, pool=pool or connection_pool(reactor)))


def connection_pool(reactor: Any) -> HTTPConnectionPool:
    """Persistent connections, at most eight a host. Whoever makes one may end it with `closeCachedConnections()`."""
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool.maxPersistentPerHost = _PER_HOST
    # we retry ourselves, with back-off and only what is safe to repeat
    pool.retryAutomatically = False
    return pool
