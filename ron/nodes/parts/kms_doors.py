"""The doors of the key service beside HTTP: gRPC at `grpc_addr`, OAP/1 at `oap_addr`; neither unless it is configured.

In: the service, addresses, the TLS that its HTTP listener has. Out: listeners that are bound at once, answer between
`start` and `stop`, and share the limits of all listeners of the process.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IProtocolFactory

from ron.kernel import HealthState, Metrics
from ron.kernel.config import ConfigError
from ron.kernel.tls import ReloadableTls, ServerTls
from ron.kernel.tls_listen import wrap_tls
from ron.nodes.listeners import BoundSocket, GivenSocket, accept_one_by_one
from ron.nodes.rpcfront import RpcListener, imported
from ron.oap import ALPN, OapServer
from ron.proto.addresses import HostPort
from ron.services.kms.api import SLOW_DEADLINE_S, KmsDesk
from ron.services.kms.door import Door
from ron.services.kms.oap import TRANSPORT, OapCalls
from ron.services.kms.rules import socket_of
from ron.web import Edge

if TYPE_CHECKING:
    from ron.nodes.grpc.kms_server import KmsRpcServer

GRPC_LISTENER = "kms-grpc"
OAP_LISTENER = "kms-oap"
_H2 = (b"h2",)
Wrap = Callable[[IProtocolFactory], IProtocolFactory]


class DoorsRuntime(Protocol):
    """What the doors need of their process; `ron.nodes.runtime.Runtime` has it."""

    reactor: Any
    home: Path
    health: HealthState
    metrics: Metrics
    edge: Edge
    tracing: Any
    spans: Any

    @property
    def drain_s(self) -> float:
        """What calls under way have at the end."""
        ...

    def watch_certificates(self, contexts: dict[str, ReloadableTls]) -> None:
        """Take new files of these into use by themselves."""


class KmsDoors:
    """Bound at once. grpc_addr, oap_addr: `ip:port`, "" for no such door. tls: certificate and key as PEM files.

    message_bytes: of a gRPC request. prefix: of the config's keys. oap_socket: where another process has bound
    `oap_addr`. Raises `RonError`: `ConfigError` for an address that is none or for others without TLS, Unsupported
    without the extra `grpc`, StoreUnavailable on a taken port.
    """

    def __init__(
        self,
        runtime: DoorsRuntime,
        desk: KmsDesk,
        *,
        grpc_addr: str = "",
        oap_addr: str = "",
        tls: tuple[Path, Path] | None = None,
        message_bytes: int,
        prefix: str = "",
        oap_socket: GivenSocket | None = None,
    ) -> None:
        self._runtime = runtime
        self._desk = desk
        self._tls = tls
        self._started = False
        self._grpc = self._make_grpc(grpc_addr, f"{prefix}grpc_addr", message_bytes) if grpc_addr else None
        try:
            self._oap = self._make_oap(oap_addr, f"{prefix}oap_addr", oap_socket) if oap_addr else None
        except BaseException:
            if self._grpc is not None:
                self._grpc.close()
            raise

    @property
    def oap_socket(self) -> BoundSocket | GivenSocket | None:
        """What OAP/1 accepts from, for others who are to."""
        return self._oap.bound if self._oap is not None else None

    @property
    def grpc_address(self) -> HostPort | None:
        """Where gRPC really is."""
        return self._grpc.address if self._grpc is not None else None

    @property
    def oap_address(self) -> HostPort | None:
        """Where OAP/1 really is."""
        return self._oap.address if self._oap is not None else None

    def start(self) -> None:
        """Answer, or again after `leave_oap`. Raises `RonError` where gRPC or the TLS files cannot be used."""
        if self._grpc is not None and not self._started:
            self._grpc.start()
        self._started = True
        if self._oap is not None:
            self._oap.start()

    async def leave_oap(self) -> None:
        """Others accept from OAP/1's socket: connections that are here stay."""
        if self._oap is not None:
            await self._oap.leave()

    async def stop(self) -> int:
        """Take no more calls, finish those under way, hang up; more than once is fine. How many were cut off."""
        cut_off = 0
        for door in (self._oap, self._grpc):
            if door is not None:
                cut_off += await door.stop()
        return cut_off

    def _make_grpc(self, text: str, key: str, message_bytes: int) -> RpcListener:
        runtime, make = self._runtime, imported(_load, key)

        def serve(path: Path) -> KmsRpcServer:
            return make(runtime.edge, runtime.health, self._desk, path, message_bytes=message_bytes)

        wrap = self._behind(GRPC_LISTENER, _H2)
        return RpcListener(runtime, socket_of(text, key), serve, key=key, name=GRPC_LISTENER, behind_tls=wrap)

    def _make_oap(self, text: str, key: str, given: GivenSocket | None) -> _OapListener:
        wrap, address = self._behind(OAP_LISTENER, ALPN), socket_of(text, key)
        if wrap is None and not address.is_loopback:
            raise ConfigError(f"{address} is for others, too, and without TLS", key=key, hint="use 127.0.0.1")
        return _OapListener(self._runtime, self._desk, given or BoundSocket(address, key), wrap)

    def _behind(self, name: str, alpn: tuple[bytes, ...]) -> Wrap | None:
        if self._tls is None:
            return None
        return partial(_wrapped, self._runtime, name, self._tls, alpn)


class _OapListener:
    """OAP/1 on a TCP port."""

    def __init__(
        self, runtime: DoorsRuntime, desk: KmsDesk, bound: BoundSocket | GivenSocket, wrap: Wrap | None
    ) -> None:
        edge = runtime.edge
        self._runtime = runtime
        self._door = Door(desk, edge, TRANSPORT)
        self._server = OapServer(
            runtime.reactor,
            OapCalls(self._door),
            metrics=runtime.metrics,
            limits=edge.limits,
            peers=edge.peers,
            tracing=runtime.tracing if runtime.tracing is not None and runtime.tracing.enabled else None,
            spans=runtime.spans,
            name=OAP_LISTENER,
            # each call has its own deadline, which is shorter
            deadline_s=SLOW_DEADLINE_S + 1.0,
        )
        self._wrap = wrap
        self.bound = bound
        self.port: Any = None
        self.address = bound.address

    def start(self) -> None:
        if self.port is not None:
            return
        factory = cast(IProtocolFactory, self._server)
        if self._wrap is not None:
            factory = self._wrap(factory)
        family = socket.AF_INET6 if ":" in self.address.host else socket.AF_INET
        self.port = self._runtime.reactor.adoptStreamPort(self.bound.fileno(), family, factory)
        if isinstance(self.bound, GivenSocket):
            accept_one_by_one(self.port)

    async def leave(self) -> None:
        port, self.port = self.port, None
        if port is not None:
            await maybeDeferred(port.stopListening)

    async def stop(self) -> int:
        await self.leave()
        self.bound.close()
        cut_off = await self._server.drain(self._runtime.drain_s)
        self._door.abort()
        return cut_off


def _wrapped(
    runtime: DoorsRuntime, name: str, files: tuple[Path, Path], alpn: tuple[bytes, ...], factory: IProtocolFactory
) -> IProtocolFactory:
    context = ServerTls(*files, alpn=alpn)
    runtime.watch_certificates({name: context})
    handshake_s = runtime.edge.limits.handshake_timeout_ms / 1000
    return wrap_tls(runtime.reactor, factory, context, metrics=runtime.metrics, handshake_s=handshake_s)


def _load() -> type[KmsRpcServer]:
    from ron.nodes.grpc.kms_server import KmsRpcServer

    return KmsRpcServer
