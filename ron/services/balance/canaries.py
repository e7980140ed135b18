"""A visitor of our own for each master address that this node's head serves.

In: the addresses, by service; how a canary is made. Out: canaries that run, and how their last visits went.
"""

from __future__ import annotations

from collections.abc import Callable

from ron.proto.balance import ServiceName
from ron.services.balance.publishing.canary import Canary


class Canaries:
    """A visitor for each service whose ports this node knows."""

    def __init__(self, make: Callable[[ServiceName, str], Canary]) -> None:
        self._make = make
        self._all: dict[ServiceName, tuple[str, Canary]] = {}

    def follow(self, services: dict[ServiceName, str]) -> None:
        """Visit these, by name, and no others."""
        for name, (onion, canary) in list(self._all.items()):
            if services.get(name) != onion:
                canary.stop()
                del self._all[name]
        for name, onion in services.items():
            if name not in self._all:
                canary = self._make(name, onion)
                self._all[name] = onion, canary
                canary.start()

    def reachable(self, name: ServiceName) -> bool | None:
        """Did the last visit get there? None while there was none."""
        visit = self._all[name][1].last if name in self._all else None
        return None if visit is None else not visit.problem
