"""What an operator asks a running node, over HTTP with a capability: its services, its events, its config.

In: the bus, where the service `node` answers. Out: endpoints; `ronctl service`, `tail` and `config` are their clients.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta
from twisted.internet.defer import CancelledError
from twisted.internet.defer import TimeoutError as DeadlineError

from ron.kernel import Bus, KernelEvent
from ron.kernel.aio import within
from ron.kernel.bus import KERNEL_TOPIC, Message, Subscription
from ron.proto.errors import backpressure
from ron.web.endpoint import Call, Endpoint

NODE = "node"
# The bus service that reads the node's own messages for processes that are not the node.
TAIL = "tail"
TAIL_GRACE_S = 5.0
MAX_TAIL = 1000
MAX_WAIT_S = 25.0
# Each that waits is one more subscriber to every message.
MAX_WAITING = 64
Topic = Annotated[str, Meta(pattern=r"^(\*|[a-z0-9_-][a-z0-9_.-]{0,63}(\.\*)?)\Z")]
ServiceName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9.-]{0,62}\Z")]
StreamName = Annotated[str, Meta(pattern=r"^([0-9a-f]{16})?\Z")]


class ReleaseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v1/services/release`."""

    service: ServiceName


class TailRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v1/bus/tail`.

    after, stream: `last` and `stream` of the answer before. since_s: how far back to look when `stream` is not, or no
    longer, the one that answers. wait_s: for the next message, when there is none yet.
    """

    topic: Topic = "*"
    since_s: Annotated[float, Meta(ge=0, le=86_400 * 7)] = 0.0
    after: Annotated[int, Meta(ge=0)] = 0
    stream: StreamName = ""
    wait_s: Annotated[float, Meta(ge=0, le=MAX_WAIT_S)] = 0.0


class TailAnswer(msgspec.Struct, frozen=True):
    """Answer of `/v1/bus/tail`: at most `MAX_TAIL` messages, oldest first; the number to ask after next; who counts.

    Every process counts its messages itself, so `last` means something only to the one that calls itself `stream`.
    """

    messages: list[Any]
    last: int
    stream: str


class _Cursor(NamedTuple):
    """Messages not older than `oldest_s` (Unix seconds) and after number `after`."""

    oldest_s: float
    after: int


class AdminApi:
    """now: Unix seconds."""

    def __init__(self, bus: Bus, reactor: Any, now: Callable[[], float]) -> None:
        self._bus = bus
        self._reactor = reactor
        self._now = now
        self._stream = secrets.token_hex(8)
        self._waiting: set[Subscription] = set()
        self._ending = False
        bus.observe(self._heed, KERNEL_TOPIC, name="admin")

    def endpoints(self) -> list[Endpoint]:
        """Scopes: node:read to look, node:admin to change, bus:read for events. Under load an operator comes first."""
        return [
            Endpoint(method="GET", path="/v1/services", handler=self.services, scope="node:read", vital=True),
            Endpoint(
                method="POST",
                path="/v1/services/release",
                handler=self.release,
                scope="node:admin",
                body=ReleaseRequest,
                vital=True,
            ),
            Endpoint(method="POST", path="/v1/config/reload", handler=self.reload, scope="node:admin", vital=True),
            Endpoint(method="POST", path="/v1/config/rollback", handler=self.rollback, scope="node:admin", vital=True),
            Endpoint(
                method="POST",
                path="/v1/bus/tail",
                handler=self.tail,
                scope="bus:read",
                body=TailRequest,
                enforces=frozenset({"topic"}),
                waits=True,
            ),
        ]

    def services(self, call: Call) -> Awaitable[Any]:
        """Every unit and its state."""
        return self._bus.call(NODE, "services", corr_id=call.corr_id)

    def release(self, call: Call, body: ReleaseRequest) -> Awaitable[Any]:
        """Let a quarantined unit try again."""
        return self._bus.call(NODE, "release", body.service, corr_id=call.corr_id)

    def reload(self, call: Call) -> Awaitable[Any]:
        """Take the config as it is now."""
        return self._bus.call(NODE, "reload", corr_id=call.corr_id)

    def rollback(self, call: Call) -> Awaitable[Any]:
        """Back to the config before."""
        return self._bus.call(NODE, "rollback", corr_id=call.corr_id)

    async def tail(self, call: Call, body: TailRequest) -> TailAnswer:
        """Kept messages of a topic; when there are none, the first that come within `wait_s`.

        Raises `RonError` Backpressure when too many wait already.
        """
        call.require("topic", body.topic)
        if self._bus.uplink is not None:
            # one of several processes: what all of them say is kept by the node's own, which also lives longer
            return await self._bus.call(
                TAIL, "read", body, answer=TailAnswer, deadline_s=body.wait_s + TAIL_GRACE_S, corr_id=call.corr_id
            )
        return await self.read(body)

    async def read(self, body: TailRequest) -> TailAnswer:
        """`tail` of this process's own bus."""
        cursor = self._cursor(body)
        found = self._kept(body.topic, cursor)
        if not found:
            cursor = _Cursor(0.0, self._bus.seq)
            if body.wait_s and not self._ending:
                await self._next(body)
                found = self._kept(body.topic, cursor)
        last = found[-1].seq if found else self._bus.seq
        return TailAnswer([_plain(message) for message in found], last, self._stream)

    def _cursor(self, body: TailRequest) -> _Cursor:
        if body.stream == self._stream:
            return _Cursor(0.0, body.after)
        if body.since_s:
            return _Cursor(self._now() - body.since_s, 0)
        return _Cursor(0.0, self._bus.seq)

    def _kept(self, topic: str, cursor: _Cursor) -> list[Message]:
        return self._bus.since(cursor.oldest_s, topic, after_seq=cursor.after)[:MAX_TAIL]

    async def _next(self, body: TailRequest) -> None:
        """Return when there is a message, `wait_s` are over, or the process is going down."""
        if len(self._waiting) >= MAX_WAITING:
            raise backpressure(f"{MAX_WAITING} calls wait for messages already")
        waiting = self._bus.subscribe(body.topic, name="tail")
        self._waiting.add(waiting)
        try:
            await within(self._reactor, body.wait_s, waiting.receive())
        except DeadlineError:
            pass
        except CancelledError:
            if not self._ending:
                raise  # the caller has gone
        finally:
            self._waiting.discard(waiting)
            waiting.close()

    def _heed(self, message: Message) -> None:
        """Nobody may hold up a shutdown by waiting for what comes next."""
        if isinstance(message.body, KernelEvent.Shutdown):
            self._ending = True
            for waiting in list(self._waiting):
                waiting.close()


def _plain(message: Message) -> Any:
    # a body that has no plain form is named: one odd message must not end everybody's tail
    return msgspec.to_builtins(message, enc_hook=lambda value: f"<{type(value).__name__}>")
