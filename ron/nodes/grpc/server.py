"""gRPC's side of the control endpoint: its threads, its limits, and the bridge from there to the reactor.

In: calls on a Unix socket, in threads of gRPC. Out: the desk's responses; everything else becomes a status code.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, cast

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2_grpc
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread, deferToThreadPool

from ron.nodes.control import ControlRuntime
from ron.nodes.grpc import control_pb2
from ron.nodes.grpc.desk import Asked, Desk
from ron.nodes.grpc.errors import CORR_ID_KEY, refusal
from ron.nodes.grpc.health import HealthService
from ron.nodes.grpc.rpcs import RPCS, SERVICE
from ron.proto.errors import RonError, unavailable
from ron.proto.ids import is_uuid, uuid7

THREADS = 4
# What is over it is refused by gRPC itself with RESOURCE_EXHAUSTED.
MAX_CONCURRENT = 32
# A call has this long, or what its client allows if that is less.
DEADLINE_S = 5.0
_KIB = 1024
_OPTIONS = (
    ("grpc.max_receive_message_length", 64 * _KIB),
    ("grpc.max_metadata_size", 16 * _KIB),
    ("grpc.absolute_max_metadata_size", 16 * _KIB),
    ("grpc.max_concurrent_streams", MAX_CONCURRENT),
    ("grpc.server_handshake_timeout_ms", 2000),
    ("grpc.max_connection_idle_ms", 300_000),
    # peers that are gone without a word
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


class RpcServer:
    """Serves on the Unix socket `path`. Raises `RonError` when that cannot be."""

    def __init__(self, runtime: ControlRuntime, path: Path) -> None:
        self._reactor = runtime.reactor
        self._desk = Desk(runtime)
        self._health = HealthService()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="control")
        self._server = grpc.server(self._pool, options=_OPTIONS, maximum_concurrent_rpcs=MAX_CONCURRENT)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            self._server.add_insecure_port(f"unix:{path}")
        except RuntimeError:
            raise unavailable(f"gRPC cannot listen on {path}", hint="the log has why") from None
        runtime.health.observe(lambda snapshot: self._health.tell(ready=snapshot.ready))
        self._health.tell(ready=runtime.health.snapshot().ready)

    def start(self) -> None:
        """Answer."""
        self._server.start()

    async def stop(self, grace_s: float) -> int:
        """Take no more calls, finish those under way, cut off at `grace_s`. Returns how many were cut off."""
        self._health.tell(ready=False)
        stopped = self._server.stop(grace_s)
        await self._in_thread(stopped.wait)
        cut_off = self._desk.abort()
        # gRPC's threads wait for the reactor, so they must be gone before it is
        await self._in_thread(self._pool.shutdown)
        return cut_off

    def _in_thread(self, wait: Callable[[], Any]) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), wait)

    def _handlers(self) -> dict[str, Any]:
        methods = control_pb2.DESCRIPTOR.services_by_name["Control"].methods_by_name
        return {
            name: grpc.unary_unary_rpc_method_handler(
                self._handler(name),
                request_deserializer=GetMessageClass(methods[name].input_type).FromString,
                response_serializer=_serialized,
            )
            for name in RPCS
        }

    def _handler(self, method: str) -> Callable[[Message, grpc.ServicerContext], Message]:
        def handle(request: Message, context: grpc.ServicerContext) -> Message:
            asked = _asked(method, request, context)
            context.set_trailing_metadata(((CORR_ID_KEY, asked.corr_id),))
            try:
                response: Message = blockingCallFromThread(self._reactor, cast(Any, self._desk.ask), asked)
            except RonError as error:
                _refuse(error, asked.corr_id, context)
            return response

        return handle


def _serialized(response: Message) -> bytes:
    return response.SerializeToString()


def _asked(method: str, request: Message, context: grpc.ServicerContext) -> Asked:
    metadata = list(context.invocation_metadata())
    given = _only(metadata, CORR_ID_KEY)
    corr_id = given if given is not None and is_uuid(given) else str(uuid7())
    remaining_s = context.time_remaining()
    deadline_s = DEADLINE_S if remaining_s is None else min(remaining_s, DEADLINE_S)
    return Asked(method, request, _bearer(_only(metadata, "authorization")), corr_id, deadline_s)


def _only(metadata: list[Any], wanted: str) -> str | None:
    """The value of a key that is there once; of two nobody could say which is meant."""
    values = [value for key, value in metadata if key == wanted]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None


def _bearer(value: str | None) -> str | None:
    scheme, _, token = (value or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _refuse(error: RonError, corr_id: str, context: grpc.ServicerContext) -> NoReturn:
    code, details, metadata = refusal(error, corr_id)
    context.set_trailing_metadata(((CORR_ID_KEY, corr_id), *metadata))
    context.abort(code, details)
