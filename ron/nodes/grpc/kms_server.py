"""gRPC's side of the key service: `ron.kms.v1.Kms`, each call handed to the service's door on the reactor's thread.

In: calls on a Unix socket, in threads of gRPC. Out: the door's answers; everything else becomes a status code. A
message is read only after its capability was, so it comes here as bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from ron.kernel import HealthState
from ron.nodes.grpc.kms_messages import reader, writer
from ron.nodes.grpc.serving import Met, Serving, Size, on_reactor
from ron.services.kms.api import KmsDesk
from ron.services.kms.door import OPERATIONS, SERVICE, Asked, Door, Operation
from ron.web import Edge

# In the place of an HTTP method, for capabilities and metrics.
TRANSPORT = "RPC"
# Each waits for one answer: a signature is made when its record is on disk, and many share one write.
THREADS = 32
MAX_CONCURRENT = 128


class KmsRpcServer(Serving):
    """Serves on the Unix socket `path`. message_bytes: of a request. Raises `RonError` when that cannot be."""

    def __init__(self, edge: Edge, health: HealthState, desk: KmsDesk, path: Path, *, message_bytes: int) -> None:
        self._door = Door(desk, edge, TRANSPORT)
        super().__init__(
            edge.reactor,
            health,
            path,
            service=SERVICE,
            # neither side has a codec here: what comes in and goes out are bytes
            methods={
                one.name: grpc.unary_unary_rpc_method_handler(self._handler(edge.reactor, one)) for one in OPERATIONS
            },
            abort=self._door.abort,
            size=Size(THREADS, MAX_CONCURRENT, MAX_CONCURRENT, message_bytes),
            name="kms-grpc",
        )

    def _handler(self, reactor: Any, operation: Operation) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        read, write, door = reader(operation), writer(operation), self._door

        def handle(raw: bytes, context: grpc.ServicerContext) -> bytes:
            def asked(met: Met) -> Asked:
                return Asked(
                    operation, met.token, met.corr_id, len(raw), lambda: read(raw), write, deadline_s=met.remaining_s
                )

            return on_reactor(reactor, context, lambda met: door.ask(asked(met)))

        return handle
