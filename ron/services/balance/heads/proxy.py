"""From a socket of ours to a target that is an onion itself: a head's tor can only forward to what is local.

In: connections of our tor on a Unix socket. Out: connections to the onion through a SOCKS port, with at most so many at
a time, and both ways no faster than the slower end reads. tor itself ends a stream at the first end of either side, so
half-closing gets no further than to the next tor; here it is passed on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IPushProducer,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

MAX_CONNECTIONS = 512
CONNECT_TIMEOUT_S = 60.0
# One on which nothing has moved for so long is taken for forgotten.
IDLE_S = 3600.0
# What is left to be written when one end has gone must go out within it.
LINGER_S = 30.0
_log = Logger(namespace="ron.balance")


class Proxy(Factory):
    """Listens, where its caller says; each connection goes on to `endpoint`. refused: counts those beyond the bound."""

    noisy = False

    def __init__(
        self,
        reactor: Any,
        endpoint: Callable[[], IStreamClientEndpoint],
        *,
        max_connections: int = MAX_CONNECTIONS,
        idle_s: float = IDLE_S,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        self.reactor = reactor
        self.endpoint = endpoint
        self.idle_s = idle_s
        self.refused = refused
        self.open: set[_Inner] = set()
        self._max_connections = max_connections

    def buildProtocol(self, _address: Any) -> Protocol | None:
        """None hangs up at once."""
        if len(self.open) >= self._max_connections:
            self.refused()
            return None
        return _Inner(self)

    def close_all(self) -> None:
        """Cut every connection off."""
        for inner in list(self.open):
            inner.cut()


@implementer(IHalfCloseableProtocol)
class _Leg(Protocol):
    """One end. What it gets goes to the other; while that does not take it, nothing more is read."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.other: _Leg | None = None
        self.gone = False
        self._linger: Any = None

    def pair(self, other: _Leg) -> None:
        self.other, other.other = other, self
        for one, reader in ((self, other), (other, self)):
            cast(IConsumer, one.transport).registerProducer(cast(IPushProducer, reader.transport), True)

    def dataReceived(self, data: bytes) -> None:
        self.moved()
        if self.other is not None and not self.other.gone and self.other.transport is not None:
            self.other.transport.write(data)

    def moved(self) -> None:
        """Something did."""

    def readConnectionLost(self) -> None:
        """It writes no more; it may still read."""
        half: Any = IHalfCloseableDescriptor(self.other.transport, None) if self.other is not None else None
        if half is not None:
            half.loseWriteConnection()
        elif self.transport is not None:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """It reads no more; what it writes still goes on."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.gone = True
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        if self.other is not None:
            self.other.finish()

    def finish(self) -> None:
        """The other end has gone: write what it said, and go too."""
        if not self.gone and self.transport is not None:
            cast(IConsumer, self.transport).unregisterProducer()
            self.transport.loseConnection()
            self._linger = self.reactor.callLater(LINGER_S, self.abort)

    def abort(self) -> None:
        """Go at once."""
        if not self.gone and self.transport is not None:
            cast(Any, self.transport).abortConnection()


class _Inner(_Leg):
    """From our tor. Nothing of it is read until the other end is there."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(proxy.reactor)
        self._proxy = proxy
        self._connecting: Deferred[Any] | None = None
        self._idle: Any = None

    def connectionMade(self) -> None:
        self._proxy.open.add(self)
        cast(IPushProducer, self.transport).pauseProducing()
        self._idle = self.reactor.callLater(self._proxy.idle_s, self.cut)
        factory = Factory.forProtocol(partial(_Leg, self.reactor))
        factory.noisy = False
        self._connecting = self._proxy.endpoint().connect(factory)
        self._connecting.addTimeout(CONNECT_TIMEOUT_S, self.reactor)
        self._connecting.addCallbacks(self._connected, self._failed)

    def moved(self) -> None:
        if self._idle is not None and self._idle.active():
            self._idle.reset(self._proxy.idle_s)

    def cut(self) -> None:
        """Both ends, at once."""
        if self.other is not None:
            self.other.abort()
        self.abort()

    def _connected(self, outer: _Leg) -> None:
        self._connecting = None
        if self.gone:
            outer.abort()
            return
        outer.moved = self.moved  # type: ignore[method-assign]
        self.pair(outer)
        cast(IPushProducer, self.transport).resumeProducing()

    def _failed(self, failure: Failure) -> None:
        self._connecting = None
        if not self.gone:
            _log.debug("the target onion was not reached: {reason}", reason=failure.getErrorMessage())
            self.cut()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._proxy.open.discard(self)
        if self._idle is not None and self._idle.active():
            self._idle.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
