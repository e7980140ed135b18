"""`grpc.health.v1`, so that anybody's probe can ask whether the process is ready.

In: its readiness. Out: Check for the process (the empty name) and for the service it stands beside. Watch answers
UNIMPLEMENTED, as the protocol allows.
"""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_PROCESS = ""


class HealthService(health_pb2_grpc.HealthServicer):
    """Told on the reactor's thread, asked on gRPC's.

    Not the library's own servicer: its `set` waits, under a lock, until every watching client has taken the news. A
    client that goes away meanwhile needs the same lock, and then the reactor stands still for good.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._ready = False

    def tell(self, *, ready: bool) -> None:
        """The process is ready, or is not."""
        self._ready = ready

    def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """How `request.service` is at present."""
        states = health_pb2.HealthCheckResponse
        if request.service == _PROCESS:
            return states(status=states.SERVING if self._ready else states.NOT_SERVING)
        if request.service != self._service:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return states(status=states.SERVING)
