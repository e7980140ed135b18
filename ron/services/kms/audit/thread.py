"""The one thread that touches the log's disk: what is given to it is done in order.

In: a callable, on the reactor's thread. Out: a Deferred that fires there with its result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


class CallsFromThread(Protocol):
    """What the thread needs of a reactor."""

    def callFromThread(self, callable: Callable[..., Any], *args: object, **kwargs: object) -> None: ...


class DiskThread:
    """Start it before use. It takes what it is given: its users bound how much that is."""

    def __init__(self, reactor: CallsFromThread, name: str) -> None:
        self._reactor = reactor
        self._calls: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], Deferred[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._ended: Deferred[None] = Deferred()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def run(self, function: Callable[..., T], *args: Any) -> Deferred[T]:
        """`function(*args)` after all that was given before. Once given it is done, also when nobody waits for it."""
        outcome: Deferred[T] = Deferred()
        self._calls.put((function, args, outcome))
        return outcome

    def stop(self) -> Deferred[None]:
        """Do what was given, then end. Fires when the thread is gone. Call it once."""
        self._calls.put(None)
        return self._ended

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, args, outcome = call
            try:
                result = function(*args)
            except BaseException:  # noqa: BLE001 - it goes to whoever asked, and the thread lives on
                self._reactor.callFromThread(_settle, outcome, Failure())
            else:
                self._reactor.callFromThread(_settle, outcome, result)
        self._reactor.callFromThread(self._joined)

    def _joined(self) -> None:
        self._thread.join()
        self._ended.callback(None)


def _settle(outcome: Deferred[Any], result: Any) -> None:
    # after a cancellation a Deferred passes over one result without a word
    outcome.callback(result)
