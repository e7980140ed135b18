"""Listening over TLS: the handshake has a deadline, and the application meets only peers that finished it.

In: a factory, a `ServerTls`. Out: a listening port, or the factory wrapped for a port that somebody else opens.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet.interfaces import IAddress, IDelayedCall, IHandshakeListener, IListeningPort, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from ron.kernel.metrics import Metrics
from ron.kernel.tls import ServerTls, peer_identity
from ron.proto.addresses import HostPort

HANDSHAKE_S = 2.0
BACKLOG = 1024
# Unfinished handshakes at a time: each holds memory and costs a signature, for a peer nobody knows yet.
MAX_HANDSHAKES = 1024
_log = Logger(namespace="ron.tls")


class HandshakeDeadline(Factory):
    """Between TLS and the application: builds the application's protocol when the handshake is done, never before.

    A peer that has not finished within `handshake_s` is cut off, however busily it trickles bytes, and counted as
    `rejected_total{reason="handshake"}`; one whose handshake fails (plain HTTP, no certificate, an old TLS) as "tls";
    one that is not among `allowed` identities as "identity"; one more than `max_handshakes` at a time as "handshakes".
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        factory: IProtocolFactory,
        *,
        metrics: Metrics,
        handshake_s: float = HANDSHAKE_S,
        max_handshakes: int = MAX_HANDSHAKES,
        allowed: Container[str] | None = None,
    ) -> None:
        self.reactor = reactor
        self.wrapped = factory
        self.metrics = metrics
        self.handshake_s = handshake_s
        self.max_handshakes = max_handshakes
        self.pending = 0
        self.allowed = allowed

    def buildProtocol(self, addr: IAddress | None) -> _Gate:
        """A gate for one connection."""
        return _Gate(self, addr)

    def doStart(self) -> None:
        """Start the application's factory."""
        self.wrapped.doStart()

    def doStop(self) -> None:
        """Stop it."""
        self.wrapped.doStop()


@implementer(IHandshakeListener)
class _Gate(Protocol):
    """Waits for the handshake, then gives the connection away and is gone: an idle connection costs nothing for it."""

    transport: Any
    _timer: IDelayedCall | None = None

    def __init__(self, deadline: HandshakeDeadline, address: IAddress | None) -> None:
        self._owner = deadline
        self._address = address

    def connectionMade(self) -> None:
        """The clock runs."""
        owner = self._owner
        if owner.pending >= owner.max_handshakes:
            self._refuse("handshakes")
            return
        owner.pending += 1
        self._timer = owner.reactor.callLater(owner.handshake_s, self._late)

    def handshakeCompleted(self) -> None:
        """The peer is who its certificate says."""
        self._stop_clock()
        allowed = self._owner.allowed
        if allowed is not None and ((identity := peer_identity(self.transport)) is None or identity not in allowed):
            self._refuse("identity")
            return
        protocol = self._owner.wrapped.buildProtocol(cast(IAddress, self._address))
        if protocol is None:
            self.transport.abortConnection()
            return
        self.transport.wrappedProtocol = protocol
        protocol.makeConnection(self.transport)
        if IHandshakeListener.providedBy(protocol):
            cast(IHandshakeListener, protocol).handshakeCompleted()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Gone before it was let in."""
        self._stop_clock()
        if reason.check(SSL.Error):
            self._owner.metrics.rejected.labels("tls").inc()
            _log.debug("handshake failed: {problem}", event="tls_refused", problem=str(reason.value))

    def _late(self) -> None:
        self._stop_clock()
        self._refuse("handshake")

    def _refuse(self, reason: str) -> None:
        self._owner.metrics.rejected.labels(reason).inc()
        self.transport.abortConnection()

    def _stop_clock(self) -> None:
        if self._timer is None:
            return
        if self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._owner.pending -= 1


def wrap_tls(
    reactor: Any,
    factory: IProtocolFactory,
    tls: ServerTls,
    *,
    metrics: Metrics,
    handshake_s: float = HANDSHAKE_S,
    max_handshakes: int = MAX_HANDSHAKES,
    allowed: Container[str] | None = None,
) -> IProtocolFactory:
    """`factory` behind TLS, for listening by other means (`adoptStreamPort`, a Unix socket)."""
    gate = HandshakeDeadline(
        reactor, factory, metrics=metrics, handshake_s=handshake_s, max_handshakes=max_handshakes, allowed=allowed
    )
    return cast(IProtocolFactory, TLSMemoryBIOFactory(tls, False, cast(IProtocolFactory, gate), clock=reactor))


def listen_tls(
    reactor: Any,
    address: HostPort,
    factory: IProtocolFactory,
    tls: ServerTls,
    *,
    metrics: Metrics,
    handshake_s: float = HANDSHAKE_S,
    max_handshakes: int = MAX_HANDSHAKES,
    backlog: int = BACKLOG,
    allowed: Container[str] | None = None,
) -> IListeningPort:
    """Serve `factory` at `address` over TLS.

    allowed: the identities that may connect (whole URIs), where `tls` asks for certificates; None for all.
    """
    wrapped = wrap_tls(
        reactor,
        factory,
        tls,
        metrics=metrics,
        handshake_s=handshake_s,
        max_handshakes=max_handshakes,
        allowed=allowed,
    )
    return cast(IListeningPort, reactor.listenTCP(address.port, wrapped, backlog=backlog, interface=address.host))
