"""How the services of one tor stand, and who waits for them to be ready.

In: a service that stands otherwise than before. Out: its `Standing`; the watch told of every change; waiters woken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred
from txtorcon import TorControlProtocol

from ron.services.oniond.model import Onion, addresses
from ron.tor.onions import OnionSpec

GONE = "the tor that hosts it is gone and will be started again"
LOST = "it lost its introduction points and is published anew"
BEHIND = "the clock of this host is behind its network's; directories would take no later descriptor"
SKIPPED = "time jumped on its network, and it is published anew"
MOVED = "another tor has it now"
PUBLISHING = "its descriptor is not published yet"


class Watch(Protocol):
    """Who wants to know."""

    async def connected(self, role: str, control: TorControlProtocol) -> None:
        """The tor `role` is there; nothing is published before this returns."""

    def disconnected(self, role: str) -> None:
        """It is gone."""

    def standing_changed(self, address: str) -> None:
        """`address` stands otherwise than before."""


class Wanted(NamedTuple):
    """A service to be had. kept: what was published may be written down, for whoever comes after us.

    listed: new visitors are to come; one that is not serves those who are there, if it has been published at all.
    """

    spec: OnionSpec
    digest: str
    kept: bool
    listed: bool = True


def services_of(onion: Onion) -> dict[str, Wanted]:
    """What is to be had of it, by address."""
    kept = onion.persistence == "durable"
    # in the same order; a spec would make its address anew each time
    specs = zip(addresses(onion), onion.specs(), strict=False)
    return {address: Wanted(spec, spec.digest(), kept) for address, spec in specs}


class Standing(NamedTuple):
    """How a service stands. reason: why it is not ready."""

    ready: bool
    reason: str | None = PUBLISHING
    uploads: int = 0
    bringup_ms: float | None = None


_UNKNOWN = Standing(False)


class Standings:
    """By address. changed: told of every change."""

    def __init__(self, changed: Callable[[str], None]) -> None:
        self._changed = changed
        self._by_address: dict[str, Standing] = {}
        self._waiting: dict[str, list[Deferred[None]]] = {}

    def __contains__(self, address: str) -> bool:
        return address in self._by_address

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._by_address))

    def __getitem__(self, address: str) -> Standing:
        """How it stands; one that nobody knows is not ready."""
        return self._by_address.get(address, _UNKNOWN)

    def ready(self) -> list[str]:
        """Those that are."""
        return [address for address, standing in self._by_address.items() if standing.ready]

    def put(self, address: str, standing: Standing) -> None:
        """It stands so now."""
        if self._by_address.get(address) != standing:
            self._by_address[address] = standing
            self._tell(address)

    def forget(self, address: str) -> None:
        """It is wanted no more."""
        self._by_address.pop(address, None)
        self._tell(address)

    async def until_ready(self, address: str) -> None:
        """Return when it is. For as long as it takes: whoever waits gives up by itself."""
        while not self[address].ready:
            waiter: Deferred[None] = Deferred()
            self._waiting.setdefault(address, []).append(waiter)
            try:
                await waiter
            finally:
                waiting = self._waiting.get(address, [])
                if waiter in waiting:
                    waiting.remove(waiter)

    def _tell(self, address: str) -> None:
        self._changed(address)
        if self[address].ready:
            for waiter in self._waiting.pop(address, []):
                waiter.callback(None)
