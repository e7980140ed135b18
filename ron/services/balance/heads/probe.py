"""Whether a head's targets answer: each is connected to every two seconds, and hung up on.

In: endpoints. Out: healthy after the first success of all, unhealthy after two failures in a row of any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol

PROBE_EVERY_S = 2.0
CONNECT_TIMEOUT_S = 2.0
# A circuit to an onion takes its time.
ONION_EVERY_S = 20.0
ONION_TIMEOUT_S = 20.0
FAILURES = 2


class Verdict:
    """Of one target, pure. None: not known yet."""

    def __init__(self) -> None:
        self.healthy: bool | None = None
        self._failures = 0

    def heard(self, *, answered: bool) -> None:
        """It did, or did not."""
        if answered:
            self.healthy, self._failures = True, 0
            return
        self._failures += 1
        if self._failures >= FAILURES:
            self.healthy = False


class Probe:
    """Asks one target for as long as it runs. told: called after each answer that changes the verdict."""

    def __init__(
        self,
        reactor: Any,
        endpoint: Callable[[], IStreamClientEndpoint],
        told: Callable[[], None],
        *,
        every_s: float = PROBE_EVERY_S,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._told = told
        self._every_s = every_s
        self._timeout_s = timeout_s
        self._verdict = Verdict()
        self._next: Any = None
        self._asking: Deferred[Any] | None = None

    @property
    def healthy(self) -> bool | None:
        """None until it is known."""
        return self._verdict.healthy

    def start(self) -> None:
        """Ask now, and again and again."""
        self._next = None
        asking = self._asking = maybeDeferred(self._connect)
        asking.addTimeout(self._timeout_s, self._reactor)
        asking.addCallbacks(lambda _connection: self._heard(answered=True), self._failed)

    def _connect(self) -> Deferred[Any]:
        return self._endpoint().connect(Factory.forProtocol(_HangUp))

    def stop(self) -> None:
        """Ask no more."""
        asking, self._asking = self._asking, None
        if self._next is not None and self._next.active():
            self._next.cancel()
        if asking is not None:
            asking.cancel()

    def _failed(self, failure: Any) -> None:
        if self._asking is None and failure.check(CancelledError):
            return
        self._heard(answered=False)  # whatever kept it from answering

    def _heard(self, *, answered: bool) -> None:
        if self._asking is None:
            return
        self._asking = None
        before = self.healthy
        self._verdict.heard(answered=answered)
        self._next = self._reactor.callLater(self._every_s, self.start)
        if self.healthy != before:
            self._told()


def all_healthy(probes: Sequence[Probe]) -> bool | None:
    """False when one is not, None while one is not known yet."""
    verdicts = [probe.healthy for probe in probes]
    return False if False in verdicts else None if None in verdicts else True


class _HangUp(Protocol):
    """Connected is all we wanted to know; nothing is said, so that no target takes it for a request."""

    def connectionMade(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()
