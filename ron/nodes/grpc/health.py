"""`grpc.health.v1`, so that anybody's probe can ask whether the node is ready.

In: the node's readiness. Out: Check and Watch for the node (the empty name) and for the control service itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from ron.nodes.grpc.rpcs import SERVICE

# Each keeps one of the server's calls for as long as it likes.
MAX_WATCHES = 16
_STATES = health_pb2.HealthCheckResponse


class HealthService(health.HealthServicer):
    """The library's servicer with two bounds: only names we know are watched, and by a limited number of clients.

    Without them, whoever can connect could fill the memory and all places with names and watches.
    """

    NAMES = frozenset({health.OVERALL_HEALTH, SERVICE})

    def __init__(self) -> None:
        super().__init__()
        self._watching = threading.Lock()
        self._watches: set[grpc.ServicerContext] = set()
        self._ended = False
        self.set(health.OVERALL_HEALTH, _STATES.NOT_SERVING)
        self.set(SERVICE, _STATES.SERVING)

    def tell(self, *, ready: bool) -> None:
        """The node is ready, or is not."""
        self.set(health.OVERALL_HEALTH, _STATES.SERVING if ready else _STATES.NOT_SERVING)

    def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.ServicerContext,
        send_response_callback: Callable[[Any], None] | None = None,
    ) -> Any:
        """Every change of one name, until the client has heard enough."""
        if request.service not in self.NAMES:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        with self._watching:
            free = len(self._watches) < MAX_WATCHES and not self._ended
            if free:
                self._watches.add(context)
        if not free:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_WATCHES} clients watch already")
        if not context.add_callback(lambda: self._forget(context)):
            self._forget(context)  # it is over already
            return None
        return super().Watch(request, context, send_response_callback)

    def end(self) -> None:
        """Not serving, and no more news: every watch ends."""
        self.enter_graceful_shutdown()
        with self._watching:
            self._ended = True
            watches = list(self._watches)
        for context in watches:
            context.cancel()

    def _forget(self, context: grpc.ServicerContext) -> None:
        with self._watching:
            self._watches.discard(context)
