"""Child processes that are ready before they are needed: everything imported, waiting to be told what to be.

In: a command line. Out: `take`, a process that takes its wiring within milliseconds, so that a killed service is back
before its callers have noticed; the next spare is started in its place.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from ron.kernel.processes import Child, spawn
from ron.nodes.wiring import Wiring, environment, give

# A spare takes half a second of a core to start: not at the very moment in which somebody else is being restarted.
REFILL_AFTER_S = 2.0
_log = Logger(namespace="ron.node")


class Spares:
    """Keeps one spare once `fill` was called."""

    def __init__(self, reactor: Any, *, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._reactor = reactor
        self._command = command
        self._environment = environment
        self._spare: tuple[Child, socket.socket] | None = None
        self._refill: IDelayedCall | None = None
        self._closed = False
        self._keep = False

    def fill(self) -> None:
        """From now on, have one ready."""
        self._keep = True
        if self._spare is None and not self._closed:
            self._spare = self._start(spare=True)

    def launch(self, wiring: Wiring, descriptors: list[int]) -> Child:
        """A process that is what `wiring` says: the spare, or a new one."""
        spare = self._take()
        if spare is not None:
            child, end = spare
            try:
                with end:
                    give(end, wiring, descriptors)
                return child
            except OSError:
                _log.warn("a spare process died while it waited", event="spare_died")
                child.signal("KILL")
        child, end = self._start(spare=False)
        with end:
            give(end, wiring, descriptors)
        return child

    def close(self) -> None:
        """No more; the spare ends by itself when its pair closes."""
        self._closed = True
        if self._refill is not None and self._refill.active():
            self._refill.cancel()
        if self._spare is not None:
            child, end = self._spare
            self._spare = None
            end.close()
            child.signal("KILL")

    def _take(self) -> tuple[Child, socket.socket] | None:
        spare, self._spare = self._spare, None
        if self._keep and (self._refill is None or not self._refill.active()):
            self._refill = self._reactor.callLater(REFILL_AFTER_S, self.fill)
        if spare is not None and spare[0].ended.called:
            spare[1].close()
            return None
        return spare

    def _start(self, *, spare: bool) -> tuple[Child, socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            child = spawn(
                self._reactor,
                Child(),
                self._command,
                environment={**self._environment, **environment(spare=spare)},
                descriptors=[theirs.fileno()],
            )
        return child, ours
