"""The reactor's side of the control endpoint: who may ask, and what the node answers.

In: a call that one of gRPC's threads hands over. Out: its response message, or `RonError`; all with a deadline.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from google.protobuf.message import Message
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from ron.auth import Capability, Wanted
from ron.nodes.control import ControlRuntime
from ron.nodes.grpc.rpcs import RPCS, SERVICE, Rpc
from ron.proto.errors import ErrorCode, RonError, unavailable

NODE = "node"
# What an RPC is counted and authorised as, in the place of an HTTP method.
METHOD = "RPC"
_log = Logger(namespace="ron.control")


class Asked(NamedTuple):
    """An RPC as it came. deadline_s: what its caller, or we, still give it."""

    method: str
    request: Any
    token: str | None
    corr_id: str
    deadline_s: float


class Desk:
    """Answers on the reactor's thread."""

    def __init__(self, runtime: ControlRuntime) -> None:
        self._runtime = runtime
        self._open: set[Deferred[Message]] = set()
        self._closed = False
        self._latency = {
            method: runtime.metrics.request_latency.labels(f"/{SERVICE}/{method}", METHOD) for method in RPCS
        }

    def ask(self, asked: Asked) -> Deferred[Message]:
        """The response. Fails with `RonError` and nothing else."""
        started_s = self._runtime.reactor.seconds()
        answer = Deferred.fromCoroutine(self._answer(asked))

        def over(result: Any) -> Any:
            self._open.discard(answer)
            self._latency[asked.method].observe(self._runtime.reactor.seconds() - started_s)
            return result

        self._open.add(answer)
        return answer.addBoth(over)

    def abort(self) -> int:
        """Give up what is still being answered, and answer nothing more; returns how many were given up."""
        self._closed = True
        cut_off = len(self._open)
        for answer in list(self._open):
            answer.cancel()
        return cut_off

    async def _answer(self, asked: Asked) -> Message:
        rpc = RPCS[asked.method]
        try:
            capability = self._admit(asked, rpc)
            response = rpc.reply(await self._found(asked, rpc))
        except RonError as error:
            self._runtime.edge.count_refusal(error)
            raise
        except CancelledError:
            raise unavailable("the node is going down") from None
        except Exception:  # noqa: BLE001 - whatever it is, the caller gets a status and the log the rest
            _log.failure("{method} failed", event="internal_error", method=asked.method, corr_id=asked.corr_id)
            hint = "the node's log has it under this correlation id"
            raise RonError(ErrorCode.INTERNAL, "internal error", hint=hint) from None
        if capability is not None:
            self._runtime.authority.charge_bytes(capability, asked.request.ByteSize() + response.ByteSize())
        return response

    def _admit(self, asked: Asked, rpc: Rpc) -> Capability | None:
        if rpc.scope is None:
            return None
        return self._runtime.authority.admit(asked.token, Wanted(rpc.scope, METHOD, f"/{SERVICE}/{asked.method}"))

    async def _found(self, asked: Asked, rpc: Rpc) -> Any:
        if self._closed:
            raise unavailable("the node is going down")
        body = rpc.body(asked.request)
        if rpc.command == "ready":
            return self._runtime.health.snapshot()  # also while the service `node` is not there yet, or not any more
        return await self._runtime.bus.call(
            NODE, rpc.command, body, answer=rpc.answer, deadline_s=asked.deadline_s, corr_id=asked.corr_id
        )
