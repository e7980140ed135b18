"""A SOCKS login before txtorcon's own SOCKS, which knows none: tor shares no circuit between two logins.

In: a tor's SOCKS port. Out: an endpoint for txtorcon that has said a name and a password of its own (RFC 1928 §3, RFC
1929) and then passes for one that asked for none. What follows, the request and its answer, is txtorcon's.
"""

from __future__ import annotations

import secrets
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import URI
from twisted.web.iweb import IAgentEndpointFactory
from txtorcon.socks import SocksError, TorSocksEndpoint
from zope.interface import implementer

CONNECT_TIMEOUT_S = 10.0
_METHODS_LOGIN_ONLY = b"\x05\x01\x02"
_LOGIN_WANTED = b"\x05\x02"
_LOGGED_IN = b"\x01\x00"
_METHODS_NONE_ONLY = b"\x05\x01\x00"
_NONE_WANTED = b"\x05\x00"
_NAME_BYTES = 16


class _Login(ProtocolWrapper):
    """Logs in; then the wrapped protocol is connected, and its own greeting answered here."""

    wire: Any

    def __init__(self, factory: Any, wrapped: Any) -> None:
        super().__init__(factory, wrapped)
        self.done: Deferred[Any] = Deferred()
        self._received = b""
        self._expected = [_LOGIN_WANTED, _LOGGED_IN]
        self._greeted = self._logged_in = False

    def makeConnection(self, transport: Any) -> None:
        """Connected to tor; the wrapped protocol is not yet."""
        self.wire = transport
        Protocol.makeConnection(self, transport)
        cast(WrappingFactory, self.factory).registerProtocol(self)
        self.wire.write(_METHODS_LOGIN_ONLY)

    def dataReceived(self, data: bytes) -> None:
        """tor's answers to the login, afterwards everything."""
        if not self._expected:
            self.wrappedProtocol.dataReceived(data)
            return
        self._received += data
        while self._expected and len(self._received) >= len(self._expected[0]):
            self._answered()

    def write(self, data: bytes) -> None:
        """All but the greeting, which tor has had."""
        if not self._greeted and data == _METHODS_NONE_ONLY:
            self._greeted = True
            self.wrappedProtocol.dataReceived(_NONE_WANTED)
        else:
            self.wire.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Whoever waits for the login learns of it, and whoever is connected."""
        if self._logged_in:
            super().connectionLost(reason)
            return
        cast(WrappingFactory, self.factory).unregisterProtocol(self)
        if not self.done.called:
            self.done.errback(SocksError("the SOCKS port hung up"))

    def _answered(self) -> None:
        expected = self._expected.pop(0)
        answer, self._received = self._received[: len(expected)], self._received[len(expected) :]
        if answer != expected:
            self.wire.abortConnection()
        elif self._expected:
            name, password = (secrets.token_hex(_NAME_BYTES).encode() for _ in range(2))
            self.wire.write(b"\x01" + bytes([len(name)]) + name + bytes([len(password)]) + password)
        else:
            self._logged_in = True
            self.wrappedProtocol.makeConnection(cast(Any, self))
            self.done.callback(self.wrappedProtocol)


class _LoginFactory(WrappingFactory):
    noisy = False
    protocol = _Login


@implementer(IStreamClientEndpoint)
class IsolatedSocks:
    """The SOCKS port at 127.0.0.1:`port`, with a login that nobody else uses."""

    def __init__(self, reactor: Any, port: int) -> None:
        self._tor = TCP4ClientEndpoint(reactor, "127.0.0.1", port, timeout=CONNECT_TIMEOUT_S)
        self._login: _Login | None = None

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        """txtorcon's protocol, logged in. Fails with `SocksError`, or as TCP does."""
        return Deferred.fromCoroutine(self._connect(factory))

    async def _connect(self, factory: IProtocolFactory) -> Any:
        login = self._login = cast(_Login, await self._tor.connect(_LoginFactory(factory)))
        return await login.done

    def hang_up(self) -> None:
        """End the connection, however far it got: tor goes on looking for an onion while there is one."""
        if self._login is not None:
            self._login.wire.abortConnection()


@implementer(IAgentEndpointFactory)
class IsolatedEndpoints:
    """For an agent: each connection on a circuit that carries nothing else; names are resolved by tor alone."""

    def __init__(self, reactor: Any, port: int) -> None:
        self._reactor = reactor
        self._port = port
        self._made: list[IsolatedSocks] = []

    def endpointForURI(self, uri: URI) -> TorSocksEndpoint:
        """To the onion of `uri`."""
        socks = IsolatedSocks(self._reactor, self._port)
        self._made.append(socks)
        return TorSocksEndpoint(socks, uri.host, uri.port)

    def hang_up(self) -> None:
        """End the connections."""
        for socks in self._made:
            socks.hang_up()
