"""gRPC's side of the control endpoint: its messages and limits around the desk.

In: calls on a Unix socket, in threads of gRPC. Out: the desk's responses; everything else becomes a status code.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from ron.nodes.control import ControlRuntime
from ron.nodes.grpc import control_pb2
from ron.nodes.grpc.desk import Asked, Desk
from ron.nodes.grpc.rpcs import RPCS, SERVICE
from ron.nodes.grpc.serving import Met, Serving, Size, on_reactor

THREADS = 4
# What is over it is refused by gRPC itself with RESOURCE_EXHAUSTED.
MAX_CONCURRENT = 32
# A call has this long, or what its client allows if that is less.
DEADLINE_S = 5.0
_STREAMS = MAX_CONCURRENT
_MESSAGE_BYTES = 64 * 1024


class RpcServer(Serving):
    """Serves on the Unix socket `path`. Raises `RonError` when that cannot be."""

    def __init__(self, runtime: ControlRuntime, path: Path) -> None:
        self._desk = Desk(runtime)
        super().__init__(
            runtime.reactor,
            runtime.health,
            path,
            service=SERVICE,
            methods=self._methods(runtime.reactor),
            abort=self._desk.abort,
            size=Size(THREADS, MAX_CONCURRENT, _STREAMS, _MESSAGE_BYTES),
            name="control",
        )

    def _methods(self, reactor: Any) -> dict[str, Any]:
        methods = control_pb2.DESCRIPTOR.services_by_name["Control"].methods_by_name
        return {
            name: grpc.unary_unary_rpc_method_handler(
                self._handler(reactor, name),
                request_deserializer=GetMessageClass(methods[name].input_type).FromString,
                response_serializer=_serialized,
            )
            for name in RPCS
        }

    def _handler(self, reactor: Any, method: str) -> Callable[[Message, grpc.ServicerContext], Message]:
        def handle(request: Message, context: grpc.ServicerContext) -> Message:
            response: Message = on_reactor(reactor, context, lambda met: self._desk.ask(_asked(method, request, met)))
            return response

        return handle


def _serialized(response: Message) -> bytes:
    return response.SerializeToString()


def _asked(method: str, request: Message, met: Met) -> Asked:
    deadline_s = DEADLINE_S if met.remaining_s is None else min(met.remaining_s, DEADLINE_S)
    return Asked(method, request, met.token, met.corr_id, deadline_s)
