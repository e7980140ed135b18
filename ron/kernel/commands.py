"""Commands: one bounded queue for each service, one reply for each command, a deadline on all of them.

In: a `Command` and the handlers of its service. Out: the handler's result, or `RonError`: `Busy` when the queue is
full, `Timeout` at the deadline, `NotFound` for a command the service does not know.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.kernel import correlation
from ron.kernel.clock import Clock
from ron.kernel.metrics import Metrics
from ron.proto.errors import ErrorCode, RonError, not_found, unavailable

_log = Logger(namespace="ron.bus")


class Command(msgspec.Struct, frozen=True):
    """An order to one service. corr_id: UUIDv7 of what caused it. deadline_s: seconds from when it was given."""

    service: str
    name: str
    body: Any
    corr_id: str
    deadline_s: float


Handlers = Mapping[str, Callable[[Command], Any]]


class Busy(RonError):
    """The service's queue is full: nothing was queued, come back after `Retry-After`."""

    def __init__(self, service: str) -> None:
        super().__init__(ErrorCode.BACKPRESSURE, f"{service} is busy: its queue is full")


class Span(Protocol):
    """A command in a trace."""

    def end(self, status: int | None = None, *, error: str | None = None) -> None: ...


class Tracer(Protocol):
    """Decides which commands are traced; `ron.kernel.tracing`."""

    def start(self, name: str, corr_id: str) -> Span | None: ...


class Call:
    """A command under way: `reply` fires once, with what `work` gives or with Timeout, and then `work` is cancelled."""

    def __init__(self, reactor: Clock, metrics: Metrics, command: Command, work: Deferred[Any] | None = None) -> None:
        self.command = command
        self.reply: Deferred[Any] = Deferred(self._cancelled)
        self._metrics = metrics
        self._work: Deferred[Any] | None = None
        # a deadline handed on may have passed already; a reactor takes no negative delays
        self._deadline = reactor.callLater(max(0.0, command.deadline_s), self._too_late)
        if work is not None:
            self.follow(work)

    @property
    def over(self) -> bool:
        """True when the reply is given."""
        return not self._deadline.active()

    def follow(self, work: Deferred[Any]) -> None:
        """The reply is what `work` gives."""
        self._work = work
        work.addBoth(self.finish)

    def finish(self, result: Any) -> None:
        """The reply, a value or a `Failure`; late ones go nowhere."""
        self._work = None
        if self._deadline.active():
            self._deadline.cancel()
            self.reply.callback(result)

    def _too_late(self) -> None:
        command = self.command
        self._metrics.io_timeouts.labels(f"{command.service}.{command.name}").inc()
        self._stop_working()
        self.reply.errback(
            RonError(ErrorCode.TIMEOUT, f"{command.service} did not answer {command.name} in {command.deadline_s:g} s")
        )

    def _cancelled(self, _reply: Deferred[Any]) -> None:
        if self._deadline.active():
            self._deadline.cancel()
        self._stop_working()

    def _stop_working(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.cancel()


class ServiceQueue:
    """The commands that wait for one service and those it works on."""

    def __init__(
        self,
        reactor: Clock,
        metrics: Metrics,
        service: str,
        handlers: Handlers,
        capacity: int,
        concurrency: int,
        span: Callable[[Command], Span | None] = lambda _command: None,
    ) -> None:
        self._reactor = reactor
        self._metrics = metrics
        self._service = service
        self._handlers = handlers
        self._capacity = capacity
        self._free = concurrency
        self._waiting: deque[Call] = deque()
        self._working: set[Call] = set()
        self._depth = metrics.queue_depth.labels(service)
        self._closed = False
        self._pumping = False
        self._span = span

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, command: Command) -> Deferred[Any]:
        """Queue `command`, or work on it at once. Fails with `Busy` when the queue is full."""
        if self._free > 0 and not self._waiting:
            call = Call(self._reactor, self._metrics, command)
            self._work_on(call)
            return call.reply
        if len(self._waiting) >= self._capacity:
            self._drop_finished()
        if len(self._waiting) >= self._capacity:
            self._metrics.busy.labels(self._service).inc()
            refused: Deferred[Any] = Deferred()
            refused.errback(Busy(self._service))
            return refused
        call = Call(self._reactor, self._metrics, command)
        self._waiting.append(call)
        self._depth.set(len(self._waiting))
        return call.reply

    def close(self) -> None:
        """Nobody serves it any more: tell everyone who waits."""
        self._closed = True
        gone = Failure(unavailable(f"{self._service} has ended"))
        waiting, self._waiting = list(self._waiting), deque()
        self._depth.set(0)
        for call in [*waiting, *self._working]:
            call.finish(gone)

    def _work_on(self, call: Call) -> None:
        self._free -= 1
        self._working.add(call)
        span = self._span(call.command)
        mark = correlation.begin(call.command.corr_id)
        work: Deferred[Any] = self._begin(call.command)
        correlation.end(mark)
        if span is not None:
            work.addBoth(_end_span, span)
        # its own reply goes out before the next command is begun
        call.follow(work)
        # the place is free when the handler has really ended, not when the caller has gone
        work.addBoth(self._ended, call)

    def _begin(self, command: Command) -> Deferred[Any]:
        handler = self._handlers.get(command.name)
        outcome: Deferred[Any] = Deferred()
        if handler is None:
            outcome.errback(not_found(f"{self._service} knows no command {command.name}"))
            return outcome
        try:
            result = handler(command)
        except Exception:  # noqa: BLE001 - becomes the reply
            return _failed(Failure(), command)
        if isinstance(result, Deferred):
            return result.addErrback(_passed_on, command)
        if inspect.iscoroutine(result):
            return Deferred.fromCoroutine(result).addErrback(_passed_on, command)
        outcome.callback(result)
        return outcome

    def _ended(self, _none: None, call: Call) -> None:
        self._free += 1
        self._working.discard(call)
        if not self._pumping:
            self._pump()

    def _pump(self) -> None:
        # a loop rather than recursion: handlers that answer at once would end a full queue in a stack overflow
        self._pumping = True
        try:
            while self._free > 0 and self._waiting and not self._closed:
                call = self._waiting.popleft()
                self._depth.set(len(self._waiting))
                if not call.over:
                    self._work_on(call)
        finally:
            self._pumping = False

    def _drop_finished(self) -> None:
        """Calls whose caller gave up keep no place."""
        self._waiting = deque(call for call in self._waiting if not call.over)


def _end_span(result: Any, span: Span) -> Any:
    span.end(error=type(result.value).__name__ if isinstance(result, Failure) else None)
    return result


def _failed(failure: Failure, command: Command) -> Deferred[Any]:
    outcome: Deferred[Any] = Deferred()
    outcome.errback(failure)
    return outcome.addErrback(_passed_on, command)


def _passed_on(failure: Failure, command: Command) -> Failure:
    """A `RonError` is for the caller; anything else is our own fault, and the log has it."""
    if failure.check(RonError):
        return failure
    if failure.check(CancelledError):
        # of a caller who cancelled, or a deadline, nobody hears this; otherwise the service gave up by itself
        return Failure(unavailable(f"{command.service} gave {command.name} up"))
    _log.failure(
        "{service} failed on {command}",
        failure,
        event="command_failed",
        service=command.service,
        command=command.name,
        corr_id=command.corr_id,
    )
    return Failure(RonError(ErrorCode.INTERNAL, f"{command.service} failed on {command.name}", hint="see its log"))
