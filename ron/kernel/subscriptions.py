"""What travels on the bus, and the bounded queue in which it waits for one listener.

In: messages. Out: the same in their order; when the queue is full the oldest goes and is counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred


class Message(msgspec.Struct, frozen=True):
    """What subscribers get.

    seq counts this process's messages. ts: Unix seconds. origin: the process it was published in. corr_id: UUIDv7 of
    what caused it. body: a `KernelEvent` on the topic `kernel`, otherwise a struct or plain values.
    """

    seq: int
    ts: float
    topic: str
    origin: str
    corr_id: str
    body: Any


class Subscription:
    """One listener's bounded queue; made by `Bus.subscribe`."""

    def __init__(
        self, forget: Callable[[Subscription], None], name: str, patterns: tuple[str, ...], capacity: int
    ) -> None:
        self.name = name
        self.patterns = patterns
        self.dropped = 0
        self._forget = forget
        self._queue: deque[Message] = deque()
        self._capacity = capacity
        self._waiter: Deferred[Message] | None = None
        self.closed = False

    def __len__(self) -> int:
        return len(self._queue)

    def receive(self) -> Deferred[Message]:
        """The next message. One receiver at a time; fails with `CancelledError` when the subscription is closed."""
        if self._waiter is not None:
            raise RuntimeError(f"{self.name} is being received from already")
        waiter: Deferred[Message] = Deferred(self._forget_waiter)
        if self._queue:
            waiter.callback(self._queue.popleft())
        elif self.closed:
            waiter.cancel()
        else:
            self._waiter = waiter
        return waiter

    def take(self) -> Message | None:
        """The next message if there is one now."""
        return self._queue.popleft() if self._queue else None

    def close(self) -> None:
        """No more messages; what is queued is dropped."""
        if not self.closed:
            self.closed = True
            self._queue.clear()
            self._forget(self)
            if self._waiter is not None:
                self._waiter.cancel()

    def put(self, message: Message) -> bool:
        """Queue `message`; False when the oldest had to go for it."""
        whole = len(self._queue) < self._capacity
        if not whole:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(message)
        return whole

    def deliver(self) -> None:
        """Hand the next message to who waits for it."""
        if self._waiter is not None and self._queue:
            waiter, self._waiter = self._waiter, None
            waiter.callback(self._queue.popleft())

    @property
    def starved(self) -> bool:
        """True when somebody waits: a message for it must be delivered."""
        return self._waiter is not None

    def _forget_waiter(self, _waiter: Deferred[Message]) -> None:
        self._waiter = None
