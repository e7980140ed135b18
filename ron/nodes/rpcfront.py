"""The listener before a gRPC service: ours, with our limits and our TLS; gRPC answers behind it on a Unix socket.

In: an address from the config, TLS if others may reach it, whatever answers. Out: connections handed to gRPC. gRPC for
Python can neither take a socket that is bound already nor reload certificates, and knows nothing of our limits.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IProtocolFactory, IReactorUNIX
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.portforward import ProxyClientFactory, ProxyServer
from twisted.python.failure import Failure

from ron.kernel import Metrics
from ron.kernel.config import ConfigError
from ron.kernel.files import private_dir, socket_path
from ron.nodes.listeners import BoundSocket
from ron.proto.addresses import HostPort
from ron.proto.errors import ErrorCode, RonError

MAX_CONNECTIONS = 64
# What the extra brings, as their modules are called.
_EXTRA = ("grpc", "grpc_health", "google")
Made = TypeVar("Made")


class FrontRuntime(Protocol):
    """What the listener needs of its process; `ron.nodes.runtime.Runtime` has it."""

    reactor: Any
    home: Path
    metrics: Metrics

    @property
    def drain_s(self) -> float:
        """What calls under way have at the end."""
        ...


class Behind(Protocol):
    """What answers; `ron.nodes.grpc.serving.Serving` does."""

    def start(self) -> None:
        """Answer."""

    async def stop(self, grace_s: float) -> int:
        """Take no more calls, finish those under way; how many were cut off at `grace_s`."""


class RpcListener:
    """Bound at once, so that a taken port is known before anything is started; answers between `start` and `stop`.

    make: what answers, on a Unix socket of that path. key: of the address, for errors. name: of the listener, for
    metrics and for the socket. behind_tls: puts TLS 1.3 with ALPN `h2` around the listener; without it `address` must
    be loopback. Raises `RonError`: `ConfigError` for an address of others without TLS, StoreUnavailable on a taken
    port.
    """

    def __init__(
        self,
        runtime: FrontRuntime,
        address: HostPort,
        make: Callable[[Path], Behind],
        *,
        key: str,
        name: str,
        behind_tls: Callable[[IProtocolFactory], IProtocolFactory] | None = None,
    ) -> None:
        if behind_tls is None and not address.is_loopback:
            raise ConfigError(f"{address} is for others, too, and without TLS", key=key, hint="use 127.0.0.1")
        self._runtime = runtime
        self._make = make
        self._name = name
        self._path = _socket_path(runtime.home, name)
        self._behind_tls = behind_tls
        self._bound = BoundSocket(address, key)
        self._server: Behind | None = None
        self._front: _Front | None = None
        self._port: Any = None
        self.address = self._bound.address

    def start(self) -> None:
        """Answer. Raises `RonError` when gRPC cannot."""
        self._server = self._make(self._path)
        self._server.start()
        self._front = _Front(self._runtime, self._path, self._name)
        factory = cast(IProtocolFactory, self._front)
        if self._behind_tls is not None:
            factory = self._behind_tls(factory)
        family = socket.AF_INET6 if ":" in self.address.host else socket.AF_INET
        self._port = self._runtime.reactor.adoptStreamPort(self._bound.fileno(), family, factory)

    def close(self) -> None:
        """Let go of the port; for one that is never started."""
        self._bound.close()

    async def stop(self) -> int:
        """Take no more calls, finish those under way, hang up. Returns how many calls were cut off.

        The reactor must still run: gRPC's threads end with its help.
        """
        cut_off = 0
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        self._bound.close()
        if self._server is not None:
            cut_off = await self._server.stop(self._runtime.drain_s)
        if self._front is not None:
            self._front.hang_up()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        return cut_off


def imported(load: Callable[[], Made], key: str) -> Made:
    """What `load` imports from gRPC, which is large and an extra. Raises `RonError` (Unsupported) without it."""
    try:
        return load()
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise RonError(
            ErrorCode.UNSUPPORTED,
            f"{key} needs gRPC, which is not installed",
            hint=f'pip install "rustyonions[grpc]", or leave {key} empty',
        ) from None


class _Front(Factory["_Connection"]):
    """What accepts: hands each connection to gRPC, at most `MAX_CONNECTIONS` at a time."""

    noisy = False

    def __init__(self, runtime: FrontRuntime, path: Path, name: str) -> None:
        self.reactor: IReactorUNIX = runtime.reactor
        self.path = path
        self.connections: set[_Connection] = set()
        self.gauge = runtime.metrics.open_connections.labels(name)
        self._rejected = runtime.metrics.rejected.labels("connections")

    def buildProtocol(self, _addr: object) -> _Connection | None:
        """A connection, or none when there are enough."""
        if len(self.connections) >= MAX_CONNECTIONS:
            self._rejected.inc()
            return None
        connection = _Connection()
        connection.factory = self
        return connection

    def hang_up(self) -> None:
        """On everybody."""
        for connection in list(self.connections):
            connection.transport.abortConnection()


class _Inward(ProxyClientFactory):
    """The half of a connection that leads to gRPC."""

    noisy = False


class _Connection(ProxyServer):
    """One client's connection and its other half to gRPC; either end takes the other with it."""

    factory: _Front  # type: ignore[assignment]
    transport: Any

    def __init__(self) -> None:
        self._early: list[bytes] = []

    def connectionMade(self) -> None:
        """Nothing is read before there is somebody to read it to."""
        front = self.factory
        front.connections.add(self)
        front.gauge.set(len(front.connections))
        self.transport.pauseProducing()
        client = _Inward()
        client.setServer(self)
        front.reactor.connectUNIX(str(front.path), cast(Any, client))

    def setPeer(self, peer: Any) -> None:
        """The other half is there."""
        super().setPeer(peer)
        early, self._early = self._early, []
        for some in early:
            peer.transport.write(some)

    def dataReceived(self, data: bytes) -> None:
        """Inward. TLS gives out what it had read before it was paused: one read at most."""
        if self.peer is None:
            self._early.append(data)
        else:
            super().dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client has gone."""
        front = self.factory
        front.connections.discard(self)
        front.gauge.set(len(front.connections))
        super().connectionLost(reason)


def _socket_path(home: Path, name: str) -> Path:
    path = socket_path(private_dir(home / "run") / f"{name}.sock")
    path.unlink(missing_ok=True)  # of a process that was killed
    return path
