"""What every gRPC service of ours has: threads, limits, health, and the bridge from gRPC's threads to the reactor.

In: calls on a Unix socket, in threads of gRPC. Out: what the service answers on the reactor's thread; everything else
becomes a status code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

import grpc
from grpc_health.v1 import health_pb2_grpc
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread, deferToThreadPool

from ron.kernel import HealthState
from ron.nodes.grpc.errors import CORR_ID_KEY, refusal
from ron.nodes.grpc.health import HealthService
from ron.proto.errors import RonError, unavailable
from ron.proto.ids import is_uuid, uuid7

A = TypeVar("A")
_KIB = 1024


class Size(NamedTuple):
    """threads: calls worked on at a time; each waits in its thread. max_concurrent: calls at a time, those too that
    wait for a thread; gRPC itself refuses what is over it with RESOURCE_EXHAUSTED, and messages over message_bytes.
    streams: calls at a time on one connection; its client keeps back what is over it.
    """

    threads: int
    max_concurrent: int
    streams: int
    message_bytes: int


class Met(NamedTuple):
    """What a call brings along besides its message. remaining_s: what its caller gives it, None for no deadline."""

    token: str | None
    corr_id: str
    remaining_s: float | None


class Serving:
    """Serves `methods` of `service` on the Unix socket `path`. Raises `RonError` when that cannot be.

    methods: by name, each run in a thread of gRPC. abort: gives up, on the reactor's thread, what is still being
    answered, and says how many calls that were. name: of the threads.
    """

    def __init__(
        self,
        reactor: Any,
        health: HealthState,
        path: Path,
        *,
        service: str,
        methods: Mapping[str, grpc.RpcMethodHandler[Any, Any]],
        abort: Callable[[], int],
        size: Size,
        name: str,
    ) -> None:
        self._reactor = reactor
        self._abort = abort
        self._health = HealthService(service)
        self._pool = ThreadPoolExecutor(size.threads, thread_name_prefix=name)
        self._server = grpc.server(self._pool, options=_options(size), maximum_concurrent_rpcs=size.max_concurrent)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, dict(methods)),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            self._server.add_insecure_port(f"unix:{path}")
        except RuntimeError:
            raise unavailable(f"gRPC cannot listen on {path}", hint="the log has why") from None
        health.observe(lambda snapshot: self._health.tell(ready=snapshot.ready))
        self._health.tell(ready=health.snapshot().ready)

    def start(self) -> None:
        """Answer."""
        self._server.start()

    async def stop(self, grace_s: float) -> int:
        """Take no more calls, finish those under way, cut off at `grace_s`. Returns how many were cut off."""
        self._health.tell(ready=False)
        stopped = self._server.stop(grace_s)
        await self._in_thread(stopped.wait)
        cut_off = self._abort()
        # gRPC's threads wait for the reactor, so they must be gone before it is
        await self._in_thread(self._pool.shutdown)
        return cut_off

    def _in_thread(self, wait: Callable[[], Any]) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), wait)


def on_reactor(reactor: Any, context: grpc.ServicerContext, ask: Callable[[Met], Deferred[A]]) -> A:
    """Run `ask` on the reactor's thread and wait for it in this one. A `RonError` becomes a status."""
    met = _met(context)
    context.set_trailing_metadata(((CORR_ID_KEY, met.corr_id),))
    try:
        found: A = blockingCallFromThread(reactor, cast(Any, ask), met)
    except RonError as error:
        _refuse(error, met.corr_id, context)
    return found


def _options(size: Size) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.max_receive_message_length", size.message_bytes),
        ("grpc.max_metadata_size", 16 * _KIB),
        ("grpc.absolute_max_metadata_size", 16 * _KIB),
        ("grpc.max_concurrent_streams", size.streams),
        ("grpc.server_handshake_timeout_ms", 2000),
        ("grpc.max_connection_idle_ms", 300_000),
        # peers that are gone without a word
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    )


def _met(context: grpc.ServicerContext) -> Met:
    metadata = list(context.invocation_metadata())
    given = _only(metadata, CORR_ID_KEY)
    corr_id = given if given is not None and is_uuid(given) else str(uuid7())
    return Met(_bearer(_only(metadata, "authorization")), corr_id, context.time_remaining())


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
