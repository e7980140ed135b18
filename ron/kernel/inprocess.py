"""A Twisted service of this process as the supervisor's `Unit`.

In: a service that may be started again after it was stopped, and what to await until it is up. Out: a `Unit`.
A service that notices that it cannot go on calls its `on_crash(reason)`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

_log = Logger(namespace="ron.supervisor")


async def _at_once() -> None:
    return


class ServiceUnit:
    """`service` under the supervisor. ready: returns when it is up, raises when it cannot come up."""

    def __init__(self, name: str, service: Any, *, ready: Callable[[], Awaitable[None]] = _at_once) -> None:
        self.name = name
        self.service: Any = service
        self._ready = ready
        self._ending: Deferred[None] | None = None

    async def start(self, crashed: Callable[[str], None]) -> None:
        """Start the service and wait until it is up."""
        await self._ended()
        self.service.on_crash = crashed
        self.service.startService()
        await self._ready()

    async def stop(self) -> None:
        """Stop the service."""
        failures: list[Failure] = []
        if self.service.running:
            self._end(failures.append)
        await self._ended()
        for failure in failures:
            failure.raiseException()

    def abort(self) -> None:
        """Stop it without waiting; a later start waits for its end."""
        if self.service.running:
            self._end(lambda failure: _log.failure("{unit} did not stop well", failure, unit=self.name))

    def _end(self, failed: Callable[[Failure], None]) -> None:
        self._ending = maybeDeferred(self.service.stopService)
        self._ending.addErrback(failed)

    async def _ended(self) -> None:
        """Return when no earlier run is still ending. Whoever gives up waiting does not stop the end."""
        if self._ending is not None:
            waiter: Deferred[None] = Deferred()
            self._ending.addBoth(lambda _none: waiter.callback(None))
            await waiter
