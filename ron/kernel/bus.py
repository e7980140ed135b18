"""The bus: events to whoever listens, lossy and never blocking; commands to one service, bounded and with a deadline.

In: `publish` and `call` on the reactor thread. Out: messages in each subscription's bounded queue (the oldest goes when
it is full), and one reply for each command: a result, `Busy`, `Timeout` or the service's own `RonError`.
Across processes the same bus is carried by `ron.kernel.ipc`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias, TypeVar, overload

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.kernel import correlation
from ron.kernel.clock import Clock
from ron.kernel.commands import Call, Command, Handlers, ServiceQueue, Span, Tracer
from ron.kernel.events import AnyKernelEvent, KernelEvent
from ron.kernel.metrics import Metrics
from ron.kernel.subscriptions import Message, Subscription
from ron.proto.errors import conflict, unavailable
from ron.proto.ids import uuid7

__all__ = ["Bus", "Message", "Remote", "Subscription"]

KERNEL_TOPIC = "kernel"
CAPACITY = 4096
HISTORY = 4096
COMMAND_QUEUE = 128
DEADLINE_S = 5.0
OVERFLOW_SERVICE = "bus-overflow"
OVERFLOW_EVERY_S = 1.0
# An observer gets this many messages before the reactor may do something else.
_OBSERVER_BATCH = 256
_ROUTES = 1024
# What `bus_published_total` calls all topics beyond that number.
OTHER_TOPICS = "other"
T = TypeVar("T")
# under this name it stands in the frozen signature
BusReactor: TypeAlias = Clock
_log = Logger(namespace="ron.bus")


class Remote(Protocol):
    """Another process's services, reached through `ron.kernel.ipc`."""

    def carry(self, command: Command) -> Deferred[Any]:
        """Send `command` there; fires with its reply."""
        ...


class Bus:
    """Events and commands of one process.

    reactor: its clock; delivery happens in a later turn, so a publisher never runs a subscriber's code. origin: this
    process's name. capacity: messages a subscription holds. history: messages kept for `tail`.
    """

    def __init__(
        self,
        reactor: BusReactor,
        metrics: Metrics,
        *,
        origin: str = "node",
        capacity: int = CAPACITY,
        history: int = HISTORY,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.origin = origin
        self.uplink: Remote | None = None
        self._reactor = reactor
        self._metrics = metrics
        self._capacity = capacity
        self._now = now
        self._seq = 0
        self._history: deque[Message] = deque(maxlen=history)
        self._subscriptions: list[Subscription] = []
        self._routes: dict[str, tuple[Subscription, ...]] = {}
        self._taps: list[Callable[[Message], None]] = []
        self._flush: IDelayedCall | None = None
        self._overflow_at = float("-inf")
        self._overflowed: dict[str, int] = {}
        self._services: dict[str, ServiceQueue] = {}
        self._remotes: dict[str, Remote] = {}
        self._arrivals: dict[str, list[Deferred[None]]] = {}
        self._service_observers: list[Callable[[frozenset[str]], None]] = []
        self._published: dict[str, Any] = {}
        self._tracer: Tracer | None = None

    # Events

    def publish(self, body: Any, *, topic: str = KERNEL_TOPIC, corr_id: str | None = None) -> Message:
        """Tell everybody. Never blocks and never fails because of a subscriber.

        A `KernelEvent` belongs on the topic `kernel`, and nothing else does (ValueError).
        """
        if isinstance(body, AnyKernelEvent) != (topic == KERNEL_TOPIC) or type(body) is KernelEvent:
            raise ValueError("kernel events, and nothing else, go on the topic 'kernel'")
        message = Message(
            self._seq + 1, self._now(), topic, self.origin, corr_id or correlation.current() or str(uuid7()), body
        )
        self._spread(message)
        for tap in self._taps:
            tap(message)
        return message

    def inject(self, message: Message) -> None:
        """Take in what another process published. Its `seq` becomes ours."""
        self._spread(msgspec.structs.replace(message, seq=self._seq + 1))

    def subscribe(self, *patterns: str, name: str, capacity: int | None = None) -> Subscription:
        """Messages of the given topics from now on: exact names, `family.*`, or `*`. name: for metrics."""
        subscription = Subscription(self.forget, name, patterns or (KERNEL_TOPIC,), capacity or self._capacity)
        self._subscriptions.append(subscription)
        self._routes.clear()
        return subscription

    def observe(self, callback: Callable[[Message], None], *patterns: str, name: str) -> Subscription:
        """Call `callback` for each message; its exceptions are logged and do not end the subscription."""
        subscription = self.subscribe(*patterns, name=name)
        Deferred.fromCoroutine(self._feed(subscription, callback)).addErrback(lambda f: f.trap(CancelledError))
        return subscription

    def since(self, ts: float, *patterns: str, after_seq: int = 0) -> list[Message]:
        """Kept messages of these topics not older than `ts` (Unix seconds) and after `after_seq`, oldest first."""
        return [m for m in self._history if m.ts >= ts and m.seq > after_seq and _matches(patterns or ("*",), m.topic)]

    @property
    def seq(self) -> int:
        """The number of the latest message."""
        return self._seq

    def tap(self, listener: Callable[[Message], None]) -> Callable[[], None]:
        """For carriers: call `listener` at once with everything published here. Returns what undoes it."""
        self._taps.append(listener)
        return lambda: self._taps.remove(listener)

    def forget(self, subscription: Subscription) -> None:
        """`subscription` is closed."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._routes.clear()

    # Commands

    def serve(
        self, service: str, handlers: Handlers, *, capacity: int = COMMAND_QUEUE, concurrency: int = 1
    ) -> Callable[[], None]:
        """Answer commands to `service`: `handlers` by command name, each called with a `Command`, at most `concurrency`
        at a time and `capacity` waiting. Returns what ends it. Raises Conflict when the service is served already.
        """
        if service in self._services:
            raise conflict(f"the service {service} is served already")
        queue = ServiceQueue(self._reactor, self._metrics, service, handlers, capacity, concurrency, self._span)
        self._services[service] = queue
        self._arrived(service)
        self._tell_services()

        def end() -> None:
            if self._services.get(service) is queue:
                del self._services[service]
                queue.close()
                self._tell_services()

        return end

    @overload
    async def call(
        self,
        service: str,
        command: str,
        body: Any = ...,
        *,
        answer: type[T],
        deadline_s: float = ...,
        corr_id: str | None = ...,
    ) -> T: ...

    @overload
    async def call(
        self, service: str, command: str, body: Any = ..., *, deadline_s: float = ..., corr_id: str | None = ...
    ) -> Any: ...

    async def call(
        self,
        service: str,
        command: str,
        body: Any = None,
        *,
        answer: Any = None,
        deadline_s: float = DEADLINE_S,
        corr_id: str | None = None,
    ) -> Any:
        """The reply of `service` to `command`. `answer`: the type the reply must fit, also from another process.

        Raises `RonError`: `Busy` when the service's queue is full, Timeout after `deadline_s`, StoreUnavailable when
        nobody serves it, or what the service raised.
        """
        ask = Command(service, command, body, corr_id or correlation.current() or str(uuid7()), deadline_s)
        reply = await self.submit(ask)
        return reply if answer is None else _fit(reply, answer, ask)

    def submit(self, command: Command) -> Deferred[Any]:
        """`call` for carriers: the reply as a Deferred."""
        queue = self._services.get(command.service)
        if queue is not None:
            return queue.put(command)
        remote = self._remotes.get(command.service) or self.uplink
        if remote is None:
            reply: Deferred[Any] = Deferred()
            reply.errback(Failure(unavailable(f"nobody serves {command.service} at present")))
            return reply
        return Call(self._reactor, self._metrics, command, remote.carry(command)).reply

    def attach(self, services: Iterable[str], remote: Remote) -> None:
        """Commands to `services` go to `remote` from now on."""
        for service in services:
            self._remotes[service] = remote
            self._arrived(service)

    def detach(self, remote: Remote) -> None:
        """`remote` is gone."""
        self._remotes = {name: there for name, there in self._remotes.items() if there is not remote}

    @property
    def depths(self) -> dict[str, int]:
        """Commands that wait, by service."""
        return {name: len(queue) for name, queue in self._services.items()}

    def trace_with(self, tracer: Tracer) -> None:
        """Commands worked on here are spans of `tracer`, when their correlation id is sampled."""
        self._tracer = tracer

    @property
    def served(self) -> frozenset[str]:
        """Services answered in this process."""
        return frozenset(self._services)

    def reachable(self, service: str) -> bool:
        """True when `service` is served here or by an attached process."""
        return service in self._services or service in self._remotes

    async def arrival(self, service: str) -> None:
        """Return when `service` is served, here or by an attached process. Wait with a deadline."""
        if not self.reachable(service):
            waiter: Deferred[None] = Deferred(lambda waiter: self._no_arrival(service, waiter))
            self._arrivals.setdefault(service, []).append(waiter)
            await waiter

    def on_services(self, observer: Callable[[frozenset[str]], None]) -> Callable[[], None]:
        """For carriers: call `observer` with `served` whenever it changes. Returns what undoes it."""
        self._service_observers.append(observer)
        return lambda: self._service_observers.remove(observer)

    # Inside

    def _spread(self, message: Message) -> None:
        self._seq = message.seq
        self._history.append(message)
        self._count(message.topic)
        routes = self._routes.get(message.topic)
        if routes is None:
            routes = self._route(message.topic)
        wake = False
        for subscription in routes:
            if not subscription.put(message):
                self._overflow(subscription)
            if subscription._waiter is not None:
                wake = True
        if wake and self._flush is None:
            self._flush = self._reactor.callLater(0, self._deliver)

    def _count(self, topic: str) -> None:
        counter = self._published.get(topic)
        if counter is None:
            # topics are named in code, so there are few; but another process may invent any number
            label = topic if len(self._published) < _ROUTES else OTHER_TOPICS
            counter = self._published[label] = self._metrics.bus_published.labels(label)
        counter.inc()

    def _route(self, topic: str) -> tuple[Subscription, ...]:
        if len(self._routes) >= _ROUTES:
            self._routes.clear()
        routes = tuple(s for s in self._subscriptions if _matches(s.patterns, topic))
        self._routes[topic] = routes
        return routes

    def _deliver(self) -> None:
        self._flush = None
        for subscription in list(self._subscriptions):
            if subscription.starved:
                subscription.deliver()

    def _overflow(self, subscription: Subscription) -> None:
        """Count the loss; say so at most once a second, for the saying is lossy too."""
        self._metrics.bus_dropped.inc()
        self._metrics.bus_lagged.labels(subscription.name).inc()
        self._overflowed[subscription.name] = self._overflowed.get(subscription.name, 0) + 1
        now = self._reactor.seconds()
        if now - self._overflow_at >= OVERFLOW_EVERY_S:
            self._overflow_at = now
            self._reactor.callLater(0, self._tell_overflow)

    def _tell_overflow(self) -> None:
        lost, self._overflowed = self._overflowed, {}
        reason = ", ".join(f"{name} lost {count}" for name, count in sorted(lost.items())[:8])
        self.publish(KernelEvent.ServiceCrashed(OVERFLOW_SERVICE, reason))

    async def _feed(self, subscription: Subscription, callback: Callable[[Message], None]) -> None:
        given = 0
        while True:
            # a Deferred only when there is nothing: they would cost more than all the rest
            message = subscription.take() or await subscription.receive()
            try:
                callback(message)
            except Exception:  # noqa: BLE001 - one bad message must not end the listener
                _log.failure("{name} failed on a message", event="bus_observer_failed", name=subscription.name)
            given += 1
            if given % _OBSERVER_BATCH == 0:
                turn: Deferred[None] = Deferred()
                self._reactor.callLater(0, turn.callback, None)
                await turn

    def _span(self, command: Command) -> Span | None:
        if self._tracer is None:
            return None
        return self._tracer.start(f"bus.{command.service}.{command.name}", command.corr_id)

    def _arrived(self, service: str) -> None:
        for waiter in self._arrivals.pop(service, []):
            if not waiter.called:  # one who waited may have given up another
                waiter.callback(None)

    def _no_arrival(self, service: str, waiter: Deferred[None]) -> None:
        waiting = [other for other in self._arrivals.pop(service, []) if other is not waiter]
        if waiting:
            self._arrivals[service] = waiting

    def _tell_services(self) -> None:
        for observer in list(self._service_observers):
            observer(self.served)


def _matches(patterns: Iterable[str], topic: str) -> bool:
    return any(p in {"*", topic} or (p.endswith(".*") and topic.startswith(p[:-1])) for p in patterns)


def _fit(reply: Any, answer: Any, command: Command) -> Any:
    if isinstance(answer, type) and isinstance(reply, answer):
        return reply
    try:
        # bytes stay bytes, also where `answer` does not say what they are
        return msgspec.convert(msgspec.to_builtins(reply, builtin_types=(bytes,)), answer)
    except (msgspec.ValidationError, TypeError) as error:
        raise unavailable(f"{command.service} answered {command.name} in a form not understood: {error}") from None
