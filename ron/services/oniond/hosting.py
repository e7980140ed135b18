"""Where the onions are: a publisher for each tor that hosts some, tors of their own for those that want one.

In: the registry, whenever it has changed; where each is to be (`placement`). Out: how each onion stands, who visits it,
where its app's own circuits go. How many tors share the onions, `ron.services.oniond.scaling` decides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
from ron.services.oniond.publisher import Publisher
from ron.services.oniond.registry import Registry
from ron.services.oniond.roles import HOST_ROLE, OWN_PREFIX, Placement, find_again, pool_number, role_of
from ron.services.oniond.standings import Standing, Wanted, services_of
from ron.services.oniond.store import OnionStore
from ron.services.oniond.telemetry import EVENTS, Telemetry
from ron.tor.attached import TorHost
from ron.tor.control import ANSWER_TIMEOUT_S, ask
from ron.tor.effort import suggested_effort
from ron.tor.unlisted import prefer_guards

_log = Logger(namespace="ron.oniond")


class Tors(TorHost, Protocol):
    """Whoever runs the tors: a pool for all, and one for each app that wants its own."""

    async def names(self) -> tuple[str, ...]:
        """Those that there are."""
        ...

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

    def looks_different(self, onion: Onion | None) -> None:
        """Something of what a view of `onion` shows has changed; None: of any onion."""

    def stands(self, onion: Onion, ready: bool) -> None:
        """`onion` can be found at its present address, or not; said again and again."""
        ...


class Hosting:
    """The publishers of one registry, by role; between `start` and `stop`.

    guards: relays that the tor of an onion with one of its own is to enter the network by.
    """

    def __init__(
        self,
        reactor: Any,
        registry: Registry,
        store: OnionStore,
        *,
        tors: Tors,
        telemetry: Telemetry,
        heed: Heed,
        now: Callable[[], float],
        guards: Callable[[Onion], Sequence[str]] = lambda onion: (),
    ) -> None:
        self._reactor = reactor
        self._registry = registry
        self._store = store
        self._tors = tors
        self._telemetry = telemetry
        self._heed = heed
        self._now = now
        self.placement = Placement()
        self._guards = guards
        self._publishers: dict[str, Publisher] = {}
        self._sockets: dict[str, int] = {}
        self._applied: dict[tuple[str, str], str] = {}
        self._watched: set[str] = set()
        self._served: dict[str, Onion] = {}
        # by id: the onion as its tors were last told of it, and what of it each of them has
        self._told: dict[str, tuple[Onion, dict[str, tuple[str, ...]]]] = {}
        self._started = False
        telemetry.visited = self._visited

    async def start(self, applied: dict[tuple[str, str], str]) -> None:
        """Look for the tors. applied: what they were last seen to publish. Raises `RonError` without the common one."""
        await self._recall(applied)
        await self.have(HOST_ROLE)
        self._started = True
        Deferred.fromCoroutine(self.look_again())

    async def look_again(self) -> None:
        """Have the tors that could not be had before."""
        for role in {self.role(onion) for onion in self._registry} | set(self.placement.pool):
            if role not in self._sockets:
                await quietly(self.have(role))

    async def stop(self) -> None:
        """Take all onions down, and let go of the tors."""
        await DeferredList([Deferred.fromCoroutine(one.stop()) for one in self._publishers.values()])
        self._forget(self._watched)

    def role(self, onion: Onion) -> str:
        """The tor it is on, or is to be."""
        return self.placement.place(onion, self._load)

    def weights(self) -> dict[str, dict[str, int]]:
        """What each onion of each tor of the pool is to carry: itself, and a circuit for each visitor."""
        onions = {onion.id: onion for onion in self._registry}
        visitors = self.visitors_of(onions.values())
        return {
            role: {one: 1 + visitors[one] for one in self.placement.on(role) if one in onions}
            for role in self.placement.pool
        }

    async def host(self, onion: Onion) -> None:
        """`onion` is new or has changed: its tor is there, and has what it is to have. Raises as `have` does."""
        self._heed.stands(onion, self.standing(onion).ready)
        await self.have(self.role(onion))
        self.settle(onion.id)

    async def unhost(self, gone: Onion) -> None:
        """`gone` is no more: its services end, visitors are hung up on, a tor of its own ends too."""
        roles = self.placement.roles(gone)
        self.settle(gone.id)
        await self.hang_up(gone)
        self.placement.forget(gone.id)
        for role in roles:
            if pool_number(role) is None:
                await self.end(role)

    async def have(self, role: str) -> None:
        """The tor `role` is there; a new one has what it is to have. Raises `RonError` when it is not to be had."""
        publisher = self.publisher(role)
        if role in self._sockets:
            return
        await self._tors.add(role)
        if role not in self._sockets:  # nobody was quicker
            self._sockets[role] = await self._tors.socks_port(role)
            self._heed.looks_different(None)
            publisher.start()
        self.want(role)

    def want(self, role: str) -> None:
        """What `role` is to have, from now on, is what the registry says."""
        there = {onion.id for onion in self._registry if self.role(onion) == role or role in self._left_behind(onion)}
        told = {onion_id for onion_id, (_onion, roles) in self._told.items() if role in roles}
        for onion_id in there | told:
            self.settle(onion_id)

    def settle(self, onion_id: str) -> None:
        """What the tors are to have of this onion is what the registry says; nothing of any other is looked at."""
        onion, before = self._registry.get(onion_id), self._told.pop(onion_id, None)
        wanted = self._wishes(onion) if onion is not None else {}
        self._know(before[0] if before is not None else None, onion)
        if onion is not None:
            self._told[onion_id] = onion, {role: tuple(services) for role, services in wanted.items()}
        had = before[1] if before is not None else {}
        for role in {*had, *wanted}:
            services = wanted.get(role, {})
            self.publisher(role).want(services, set(had.get(role, ())).difference(services))
        if onion is not None:
            self._heed.stands(onion, self.standing(onion).ready)
        elif before is not None:
            self._heed.stands(before[0], False)

    def _wishes(self, onion: Onion) -> dict[str, dict[str, Wanted]]:
        """By role: what that tor is to have of it."""
        services = services_of(onion)
        wanted = {self.role(onion): services}
        leaving = self.placement.leaving(onion.id)
        if leaving is not None:
            # what has changed since is not served here as it was
            same = {a: one for a, one in services.items() if leaving.services.get(a) == one.digest}
            wanted[leaving.role] = {address: one._replace(listed=leaving.listed) for address, one in same.items()}
        return wanted

    async def move(self, onion: Onion, role: str) -> None:
        """`onion` is to be on `role`, which is there, and leaves the tor it is on: until `left` both have it."""
        services = {address: one.digest for address, one in services_of(onion).items()}
        self.placement.move(onion.id, role, services)
        if onion.persistence == "durable":
            for address in services:
                await self.publisher(role).expect(address)
        self.want(role)

    def left(self, onion_id: str, role: str) -> None:
        """`onion_id` is on `role` and nowhere else."""
        self.placement.put(onion_id, role)
        self._heed.looks_different(self._registry.get(onion_id))

    async def end(self, role: str) -> None:
        """The tor `role` ends, and what it still has."""
        publisher = self._publishers.pop(role, None)
        self._sockets.pop(role, None)
        if publisher is not None:
            await publisher.stop()
        for _onion, roles in self._told.values():
            roles.pop(role, None)
        self._telemetry.tor_down(role)
        self._heed.looks_different(None)
        await quietly(self._tors.remove(role))

    def publisher(self, role: str) -> Publisher:
        """Whoever looks after what the tor `role` has."""
        publisher = self._publishers.get(role)
        if publisher is None:
            publisher = self._publishers[role] = Publisher(
                self._reactor,
                role,
                host=self._tors,
                remembered={address: digest for (tor, address), digest in self._applied.items() if tor == role},
                remember=partial(self._store.applied, role),
                watch=self,
                now=self._now,
            )
        return publisher

    def look_after(self) -> None:
        """Find those that nobody can be introduced to any more, and have them published anew. For every second."""
        for role, publisher in self._publishers.items():
            publisher.introducible(self._telemetry.introduction_points(role))

    async def look_at_time(self) -> None:
        """Find those that time has left behind, and have them published anew. For every few seconds."""
        await DeferredList([Deferred.fromCoroutine(one.look_at_time()) for one in self._publishers.values()])

    def standing(self, onion: Onion, address: str | None = None) -> Standing:
        """How it stands, at its present address or at `address`."""
        address = address or onion.address
        stands = [self.publisher(role).standing(address) for role in (self.role(onion), *self._left_behind(onion))]
        return next((one for one in stands if one.ready), stands[0])

    async def ready(self, onion: Onion) -> None:
        """Return when clients can find it, however long that takes."""
        if not self.standing(onion).ready:
            await self.publisher(self.role(onion)).ready(onion.address)

    def visitors(self, onion: Onion, *, quiet_s: float = math.inf) -> int:
        """How many circuits of visitors it has, at any of its addresses, that moved something within `quiet_s`."""
        return self.visitors_of([onion], quiet_s=quiet_s)[onion.id]

    def visitors_of(self, onions: Iterable[Onion], *, quiet_s: float = math.inf) -> Counter[str]:
        """The same of many, by id; each tor is looked at once."""
        found: Counter[str] = Counter()
        there: dict[str, Counter[str]] = {}
        for onion in onions:
            for role in self.placement.roles(onion):
                if role not in there:
                    there[role] = self._telemetry.visitors(role, quiet_s=quiet_s)
                found[onion.id] += sum(there[role][address] for address in addresses(onion))
        return found

    async def hang_up(self, onion: Onion, roles: Sequence[str] | None = None) -> None:
        """Close the circuits of whoever is still there, as far as there is a tor to tell. roles: all that have it."""
        for role in self.placement.roles(onion) if roles is None else roles:
            for address in addresses(onion):
                await quietly(self.publisher(role).hang_up(address, partial(self._telemetry.visits, role, address)))

    async def effort(self, onion: Onion) -> int | None:
        """What it asks of its visitors at present; None when that is not to be known."""
        control = self.publisher(self.role(onion)).tor.control
        if control is None:
            return None
        try:
            return await suggested_effort(self._reactor, control, onion.address)
        except Exception as error:  # noqa: BLE001 - its tor is going; the next time will tell
            _log.debug("the effort of {id} is not known: {error}", id=onion.id, error=str(error))
            return None

    def socks(self, onion: Onion) -> Socks | None:
        """The app's own way out."""
        # of the pool only the first tor never ends
        port = self._sockets.get(role_of(onion))
        if port is None:
            return None
        return Socks(host="127.0.0.1", port=port, username=onion.id, password=onion.socks_secret)

    # For the publishers

    async def connected(self, role: str, control: TorControlProtocol) -> None:
        """Listen to what becomes of circuits and descriptors there."""
        self._telemetry.tor_up(role, await ask(self._reactor, control, "circuit-status"))
        for event in EVENTS:
            heard = partial(self._heard, role, event)
            await within(self._reactor, ANSWER_TIMEOUT_S, control.add_event_listener(event, heard))
        own = next((onion for onion in self._registry if pool_number(role) is None and role_of(onion) == role), None)
        guards = self._guards(own) if own is not None else ()
        if guards:
            chosen = await prefer_guards(self._reactor, control, guards)
            _log.info("tor {tor} enters by {guards}", event="onion_guards", tor=role, guards=", ".join(chosen) or "any")

    def disconnected(self, role: str) -> None:
        """Its circuits have gone with it."""
        self._telemetry.tor_down(role)

    def standing_changed(self, address: str) -> None:
        """Some onion stands otherwise."""
        onion = self._served.get(address)
        if onion is not None:
            self._heed.looks_different(onion)
            if onion.address == address:
                self._heed.stands(onion, self.standing(onion).ready)

    # Inside

    def _heard(self, role: str, event: str, text: str) -> None:
        self._telemetry.heard(role, event, text)
        action, _, rest = text.partition(" ")
        if event == "HS_DESC" and action == "UPLOAD":
            onion = self._served.get(f"{rest.partition(' ')[0]}.onion")
            leaving = self.placement.leaving(onion.id) if onion is not None else None
            if onion is not None and leaving is not None and leaving.role == role and not leaving.listed:
                # a tor that it has left had the last word in the directories
                self.publisher(self.role(onion)).again(onion.address)

    def _left_behind(self, onion: Onion) -> tuple[str, ...]:
        leaving = self.placement.leaving(onion.id)
        return (leaving.role,) if leaving is not None else ()

    async def _recall(self, applied: dict[tuple[str, str], str]) -> None:
        """Where the onions are, and which tors there are, from before us."""
        roles = await self._tors.names()
        found = find_again(self._registry, applied, roles)
        self.placement.pool = sorted({HOST_ROLE, *filter(pool_number, roles)}, key=lambda role: pool_number(role) or 0)
        for onion_id, role in found.at.items():
            self.placement.put(onion_id, role)
        # published anew, the last word in the directories is that of the tor that has it
        self._applied = {row: "" if row in found.unsure else digest for row, digest in applied.items()}
        for row in found.stale:
            self._applied.pop(row)
            await quietly(self._store.applied(*row, None))
        wanted = {role_of(onion) for onion in self._registry}
        for role in roles:
            if role.startswith(OWN_PREFIX) and role not in wanted:
                await quietly(self._tors.remove(role))

    def _load(self, role: str) -> int:
        return self.placement.numbers()[role] + self._telemetry.visitors(role).total()

    def _visited(self, address: str) -> None:
        onion = self._served.get(address)
        if onion is not None:
            self._heed.looks_different(onion)

    def _know(self, before: Onion | None, now: Onion | None) -> None:
        """Count for every address that is served, and no more for those that are no longer known."""
        known = addresses(now) if now is not None else ()
        gone = set(addresses(before)).difference(known) if before is not None else set()
        for address in gone:
            self._served.pop(address, None)
        self._forget(gone & self._watched)
        if now is not None:
            self._served.update(dict.fromkeys(known, now))
            # what is there at the start was asked for long ago
            began_s = self._reactor.seconds() if self._started else None
            for address in set(known) - self._watched if now.state == "active" else ():
                self._telemetry.watch(address, now.app, began_s=began_s)
                self._watched.add(address)

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
