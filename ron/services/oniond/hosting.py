"""Where the onions are: a publisher for each tor that hosts some, tors of their own for those that want one.

In: the registry, whenever it has changed. Out: how each onion stands, who visits it, where its app's own circuits go.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.logger import Logger
from txtorcon import TorControlProtocol

from ron.kernel.aio import within
from ron.proto.errors import RonError
from ron.proto.onions import Socks
from ron.services.oniond.model import Onion, addresses
from ron.services.oniond.publisher import Publisher, Standing, Wanted
from ron.services.oniond.registry import Registry
from ron.services.oniond.roles import HOST_ROLE, role_of
from ron.services.oniond.store import OnionStore
from ron.services.oniond.telemetry import EVENTS, Telemetry
from ron.tor.attached import TorHost
from ron.tor.control import ANSWER_TIMEOUT_S, ask

_log = Logger(namespace="ron.oniond")


class Tors(TorHost, Protocol):
    """Whoever runs the tors: one for all, and one for each app that wants its own."""

    async def socks_port(self, name: str) -> int:
        """The SOCKS port of `name`. Raises NotFound."""
        ...

    async def add(self, name: str) -> None:
        """Have a tor `name`; nothing when there is one."""
        ...

    async def remove(self, name: str) -> None:
        """End it; nothing when there is none."""
        ...


class Heed(Protocol):
    """Who is told that some onion stands otherwise than before."""

    def standings_changed(self) -> None: ...


class Hosting:
    """The publishers of one registry, by role; between `start` and `stop`."""

    def __init__(
        self,
        reactor: Any,
        registry: Registry,
        store: OnionStore,
        *,
        tors: Tors,
        telemetry: Telemetry,
        heed: Heed,
    ) -> None:
        self._reactor = reactor
        self._registry = registry
        self._store = store
        self._tors = tors
        self._telemetry = telemetry
        self._heed = heed
        self._publishers: dict[str, Publisher] = {}
        self._sockets: dict[str, int] = {}
        self._applied: dict[tuple[str, str], str] = {}
        self._watched: set[str] = set()
        self._started = False

    async def start(self, applied: dict[tuple[str, str], str]) -> None:
        """Look for the tors. applied: what they were last seen to publish. Raises `RonError` without the common one."""
        self._applied = applied
        await self.have(HOST_ROLE)
        self._started = True
        Deferred.fromCoroutine(self.look_again())

    async def look_again(self) -> None:
        """Have the tors of their own that could not be had before."""
        for role in set(map(role_of, self._registry)) - self._sockets.keys():
            await quietly(self.have(role))

    async def stop(self) -> None:
        """Take all onions down, and let go of the tors."""
        await DeferredList([Deferred.fromCoroutine(one.stop()) for one in self._publishers.values()])
        self._forget(self._watched)

    async def have(self, role: str) -> None:
        """The tor `role` is there, and has what it is to have. Raises `RonError` when it is not to be had."""
        publisher = self._publisher(role)
        if role not in self._sockets:
            await self._tors.add(role)
            if role not in self._sockets:  # nobody was quicker
                self._sockets[role] = await self._tors.socks_port(role)
                publisher.start()
        self.want(role)

    def want(self, role: str) -> None:
        """What `role` is to have, from now on, is what the registry says."""
        wanted = {
            spec.address: Wanted(spec, spec.digest(), onion.persistence == "durable")
            for onion in self._registry
            if role_of(onion) == role
            for spec in onion.specs()
        }
        self._watch_over(wanted)
        self._publisher(role).want(wanted)

    async def drop(self, role: str) -> None:
        """A tor of one onion's own ends with it."""
        if role == HOST_ROLE or role in map(role_of, self._registry):
            return
        publisher = self._publishers.pop(role, None)
        self._sockets.pop(role, None)
        if publisher is not None:
            await publisher.stop()
        await quietly(self._tors.remove(role))

    def standing(self, onion: Onion, address: str | None = None) -> Standing:
        """How it stands, at its present address or at `address`."""
        return self._publisher(role_of(onion)).standing(address or onion.address)

    async def ready(self, onion: Onion) -> None:
        """Return when clients can find it, however long that takes."""
        await self._publisher(role_of(onion)).ready(onion.address)

    def visitors(self, onion: Onion, *, quiet_s: float = math.inf) -> int:
        """How many circuits of visitors it has, at any of its addresses, that moved something within `quiet_s`."""
        return self.visitors_of([onion], quiet_s=quiet_s)[onion.id]

    def visitors_of(self, onions: Iterable[Onion], *, quiet_s: float = math.inf) -> Counter[str]:
        """The same of many, by id; each tor is looked at once."""
        found: Counter[str] = Counter()
        there: dict[str, Counter[str]] = {}
        for onion in onions:
            role = role_of(onion)
            if role not in there:
                there[role] = self._telemetry.visitors(role, quiet_s=quiet_s)
            found[onion.id] = sum(there[role][address] for address in addresses(onion))
        return found

    async def hang_up(self, onion: Onion) -> None:
        """Close the circuits of whoever is still there, as far as there is a tor to tell."""
        for address in addresses(onion):
            await quietly(self._publisher(role_of(onion)).hang_up(address))

    def socks(self, onion: Onion) -> Socks | None:
        """The app's own way out."""
        port = self._sockets.get(role_of(onion))
        if port is None:
            return None
        return Socks(host="127.0.0.1", port=port, username=onion.id, password=onion.socks_secret)

    # For the publishers

    async def connected(self, role: str, control: TorControlProtocol) -> None:
        """Listen to what becomes of circuits and descriptors there."""
        self._telemetry.tor_up(role, await ask(self._reactor, control, "circuit-status"))
        for event in EVENTS:
            heard = partial(self._telemetry.heard, role, event)
            await within(self._reactor, ANSWER_TIMEOUT_S, control.add_event_listener(event, heard))

    def disconnected(self, role: str) -> None:
        """Its circuits have gone with it."""
        self._telemetry.tor_down(role)

    def standing_changed(self, _address: str) -> None:
        """Some onion stands otherwise."""
        self._heed.standings_changed()

    # Inside

    def _publisher(self, role: str) -> Publisher:
        publisher = self._publishers.get(role)
        if publisher is None:
            publisher = self._publishers[role] = Publisher(
                self._reactor,
                role,
                host=self._tors,
                remembered={address: digest for (tor, address), digest in self._applied.items() if tor == role},
                remember=partial(self._store.applied, role),
                watch=self,
            )
        return publisher

    def _watch_over(self, wanted: Iterable[str]) -> None:
        """Count for every address that is served, and no more for those that are no longer known."""
        there = {address: onion.app for onion in self._registry for address in addresses(onion)}
        # what is there at the start was asked for long ago
        began_s = self._reactor.seconds() if self._started else None
        for address in (set(wanted) & there.keys()) - self._watched:
            self._telemetry.watch(address, there[address], began_s=began_s)
            self._watched.add(address)
        self._forget(self._watched - there.keys())

    def _forget(self, gone: Iterable[str]) -> None:
        for address in list(gone):
            self._telemetry.forget(address)
            self._watched.discard(address)


async def quietly(work: Any) -> None:
    """Await `work`; what is being ended need not end well."""
    try:
        await work
    except (RonError, DeadlineError) as error:
        _log.warn("{error}", event="oniond_trouble", error=str(error))
    except Exception:  # noqa: BLE001 - whatever it was, the rest goes on
        _log.failure("ending an onion", event="oniond_trouble")
