"""The control endpoint: health, status, drain and config over gRPC, for those who steer many nodes (docs/control.rst).

In: an address, the node's bus, capabilities and health. Out: `ron.control.v1` and `grpc.health.v1` on that address.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger

from ron.auth import Authority
from ron.kernel import Bus, HealthState, Metrics
from ron.nodes.rpcfront import RpcListener, imported
from ron.proto.addresses import HostPort

if TYPE_CHECKING:
    from ron.nodes.grpc.server import RpcServer
    from ron.web import Edge

KEY = "api.grpc_addr"
LISTENER = "grpc"
SOCKET = f"{LISTENER}.sock"
_log = Logger(namespace="ron.control")


class ControlRuntime(Protocol):
    """What the endpoint needs of its process; `ron.nodes.runtime.Runtime` has it."""

    reactor: Any
    home: Path
    bus: Bus
    health: HealthState
    metrics: Metrics
    authority: Authority
    edge: Edge

    @property
    def drain_s(self) -> float:
        """What calls under way have at the end."""
        ...


class ControlServer(RpcListener):
    """As `RpcListener`. Raises `RonError` as that does, and Unsupported without the extra `grpc`."""

    def __init__(
        self,
        runtime: ControlRuntime,
        address: HostPort,
        *,
        behind_tls: Callable[[IProtocolFactory], IProtocolFactory] | None = None,
    ) -> None:
        make = imported(_load, KEY)
        super().__init__(
            runtime, address, lambda path: make(runtime, path), key=KEY, name=LISTENER, behind_tls=behind_tls
        )

    def start(self) -> None:
        """Answer. Raises `RonError` when gRPC cannot."""
        super().start()
        _log.info("the control endpoint is at {address}", event="control_up", address=str(self.address))


def _load() -> type[RpcServer]:
    from ron.nodes.grpc.server import RpcServer

    return RpcServer
