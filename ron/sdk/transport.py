"""How requests travel: straight over loopback, over TLS, over a Unix socket, or through a tor's SOCKS port to an onion.

In: a reactor. Out: a `treq` client with a bounded, persistent connection pool.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, FileBodyProducer, HTTPConnectionPool, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IResponse
from zope.interface import implementer

from ron.kernel.tls import ClientTls
from ron.proto.errors import bad_request
from ron.proto.exitcodes import Unreachable

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


def tls_http(reactor: Any, tls: ClientTls, pool: HTTPConnectionPool | None = None) -> TlsClient:
    """Requests over TLS 1.3 to the server that `tls` expects, wherever their URL leads; no other hears a byte of them.

    A URL that is not https is refused (BadRequest): what it says would go out readable. One pool serves one `tls`.
    """
    agent = Agent(reactor, tls, connectTimeout=CONNECT_TIMEOUT_S, pool=pool or connection_pool(reactor))
    return TlsClient(agent, tls.expected_identity)


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


class TlsClient(PlainClient):
    """As `PlainClient`, over TLS only. expected: whom the server must prove to be, for the error when it does not."""

    def __init__(self, agent: Agent, expected: str) -> None:
        super().__init__(agent)
        self._expected = expected

    def request(
        self, method: str, url: str, *, headers: Headers, data: bytes | None = None, **_options: bool
    ) -> Deferred[IResponse]:
        """Send a request. Fails with `Unreachable` saying why when there is no TLS with this server."""
        if not url.lower().startswith("https://"):
            raise bad_request(f"{url} is not an https URL", "TLS was asked for: write https://host:port")
        return super().request(method, url, headers=headers, data=data).addErrback(self._explained)

    def _explained(self, failure: Failure) -> Failure:
        problem = _tls_problem(failure)
        if problem is None:
            return failure
        if "verify failed" in problem:
            hint = f"it must be {self._expected}, with a certificate that the CA signed and that is valid now"
        else:
            hint = "does it ask for a client certificate, of a CA it trusts?"
        return Failure(Unreachable(f"no TLS with the server: {problem}", hint=hint))


def _tls_problem(failure: Failure) -> str | None:
    """What OpenSSL says was wrong, or None when it was something else."""
    problem: Any = failure.value
    reasons = [reason.value for reason in problem.reasons] if failure.check(ResponseNeverReceived) else [problem]
    for reason in reasons:
        if isinstance(reason, SSL.Error):
            # library, function and reason of each error, the last the plainest; an end without a word has none
            told = reason.args[0] if reason.args else ()
            return str(told[-1][-1]) if told else "the connection ended within TLS"
    return None


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
    # it takes a tenth of a second, and makes the reactor; most of what ronctl does needs neither
    from txtorcon.web import tor_agent

    socks = TCP4ClientEndpoint(reactor, "127.0.0.1", socks_port, timeout=CONNECT_TIMEOUT_S)
    return PlainClient(tor_agent(reactor, socks, pool=pool or connection_pool(reactor)))


def connection_pool(reactor: Any) -> HTTPConnectionPool:
    """Persistent connections, at most eight a host. Whoever makes one may end it with `closeCachedConnections()`."""
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool.maxPersistentPerHost = _PER_HOST
    # we retry ourselves, with back-off and only what is safe to repeat
    pool.retryAutomatically = False
    return pool
