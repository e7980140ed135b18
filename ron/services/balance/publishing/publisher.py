"""One publication: both due descriptors of a master address, built and given to their directories at once.

In: usable heads, a turn, keys, counters, the consensus. Out: who took what, how long the first and all of them took,
and what there is to tell the mesh. Building runs in threads; only the report waits for a directory that keeps silent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.proto.balance import NodeName, Published, ServiceName
from ron.proto.errors import RonError, unavailable
from ron.services.balance.publishing.counters import Counters
from ron.services.balance.publishing.keys import Keys
from ron.services.balance.publishing.outside import Directories, Figures, Threads
from ron.tor.clientauth import ClientPublic
from ron.tor.descriptor.blinding import BlindedKey
from ron.tor.descriptor.build import DescriptorKey, build, room
from ron.tor.descriptor.exchange import Posted
from ron.tor.descriptor.hashring import HsDir, Ring
from ron.tor.descriptor.intropoints import Backend, IntroPoint, common_extras
from ron.tor.descriptor.periods import Due
from ron.tor.descriptor.sampling import deal

_log = Logger(namespace="ron.balance")
NOBODY = Posted(frozenset(), frozenset(), frozenset())


class Master(msgspec.Struct, frozen=True, kw_only=True):
    """A master address. clients: who may visit; none: everybody."""

    name: ServiceName
    onion: str
    clients: tuple[ClientPublic, ...] = ()


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """The descriptor of one period. dealt: which text is for which directories. heads: whose points are in any."""

    due: Due
    blinded: BlindedKey
    revision: int
    dealt: tuple[tuple[str, tuple[HsDir, ...]], ...]
    heads: tuple[NodeName, ...]
    posted: Posted = NOBODY

    @property
    def texts(self) -> dict[str, str]:
        """By the fingerprint of the directory that is to have it."""
        return {node.fingerprint: text for text, nodes in self.dealt for node in nodes}


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one order to publish.

    at_s: when it was given, by the reactor's clock. placed: of the period that clients ask for first, then the other;
    one is missing when its key could not be had. first_s, whole_s: from the order until the first directory took what
    clients ask for (None: none did), and until all had answered or their time was over.
    """

    master: Master
    at_s: float
    placed: tuple[Placed, ...]
    first_s: float | None
    whole_s: float

    def told(self, now_s: float) -> tuple[Published, ...]:
        """For the mesh, at `now_s` by the reactor's clock."""
        return tuple(
            Published(
                service=self.master.name,
                period=placed.due.period.number,
                revision=placed.revision,
                heads=placed.heads,
                taken=len(placed.posted.taken),
                directories=len(placed.texts),
                ago_ms=max(0, round((now_s - self.at_s) * 1000)),
            )
            for placed in self.placed
        )


class Publisher:
    """ring: the consensus; directories: the tor to use now. Both raise Unavailable while there is none."""

    def __init__(
        self,
        clock: Any,
        *,
        ring: Callable[[], Ring],
        directories: Callable[[], Directories],
        keys: Keys,
        counters: Counters,
        threads: Threads,
        figures: Figures,
    ) -> None:
        self._clock = clock
        self._ring = ring
        self._directories = directories
        self._keys = keys
        self._counters = counters
        self._threads = threads
        self._figures = figures
        self._under_way: Counter[ServiceName] = Counter()

    def busy(self, service: ServiceName) -> bool:
        """Is a publication of it under way?"""
        return self._under_way[service] > 0

    async def publish(
        self,
        master: Master,
        heads: Mapping[NodeName, Backend],
        turn: int,
        on_first: Callable[[Publication], None] = lambda publication: None,
    ) -> Publication:
        """Publish `heads`, usable ones (`Shelf.usable`), and return when every directory has answered, or in 30 s.

        turn: grows with each publication; with more heads than room it decides whose turn it is. on_first: called as
        soon as one directory has what clients ask for, so that others may be told. Several publications may be under
        way: the later one's counters are higher. Raises `RonError` when nothing could be posted: Unavailable without
        heads, consensus or tor, and what the signer raises.
        """
        order = _Order(self._clock, self._figures, master, on_first)
        self._under_way[master.name] += 1
        try:
            if not any(head.points for head in heads.values()):
                raise unavailable("no head has an introduction point: the last descriptor lives on")
            ring = self._ring()
            asked_for = ring.time.asked_for()
            dues = [asked_for, *(due for due in ring.time.due() if due != asked_for)]
            # both at once: neither the signers of one period nor its directories hold up the other's
            outcomes: Any = await DeferredList(
                [Deferred.fromCoroutine(self._place(order, ring, due, heads, turn)) for due in dues],
                consumeErrors=True,
            )
        except RonError:
            self._figures.published.labels(master.name, "failed").inc()
            raise
        finally:
            self._under_way[master.name] -= 1
        return self._outcome(order, [result for _success, result in outcomes])

    async def give_again(self, master: Master, placed: Placed, to: Collection[str]) -> Posted:
        """The same texts once more to those of their directories whose fingerprints are in `to`."""
        dealt = {text: tuple(node for node in nodes if node.fingerprint in to) for text, nodes in placed.dealt}
        wanted = {text: nodes for text, nodes in dealt.items() if nodes}
        return await self._directories().post(master.onion, wanted) if wanted else NOBODY

    async def _place(self, order: _Order, ring: Ring, due: Due, heads: Mapping[NodeName, Backend], turn: int) -> Placed:
        master = order.master
        key = await self._keys.key(master.name, due.period)
        revision = self._counters.next(master.name, due.period)
        placed = await self._threads.run(_build, key, ring, due, heads, turn, revision, master.clients)
        order.built(placed, asked_for=due == ring.time.asked_for())

        def taken(fingerprint: str) -> None:
            order.taken(placed, fingerprint)

        posted = await self._directories().post(master.onion, dict(placed.dealt), taken)
        return msgspec.structs.replace(placed, posted=posted)

    def _outcome(self, order: _Order, results: list[Placed | Failure]) -> Publication:
        failures = [result for result in results if isinstance(result, Failure)]
        for failure in failures:
            if not failure.check(RonError, CancelledError):
                _log.failure("a descriptor was not made", failure)
        placed = tuple(result for result in results if isinstance(result, Placed))
        name = order.master.name
        if not placed:
            self._figures.published.labels(name, "failed").inc()
            failures[0].raiseException()
        self._figures.published.labels(name, "partly" if failures else "published").inc()
        publication = order.publication(placed)
        self._figures.upload.labels(name, "all").observe(publication.whole_s)
        return publication


class _Order:
    """One order to publish, while it is carried out."""

    def __init__(self, clock: Any, figures: Figures, master: Master, on_first: Callable[[Publication], None]) -> None:
        self.master = master
        self.first_s: float | None = None
        self._clock = clock
        self._figures = figures
        self._on_first = on_first
        self._at_s = clock.seconds()
        self._asked_for: Placed | None = None

    def built(self, placed: Placed, *, asked_for: bool) -> None:
        """About to be posted."""
        if asked_for:
            self._asked_for = placed

    def taken(self, placed: Placed, fingerprint: str) -> None:
        """A directory has it."""
        if placed is not self._asked_for or self.first_s is not None:
            return
        self.first_s = self._clock.seconds() - self._at_s
        self._figures.upload.labels(self.master.name, "first").observe(self.first_s)
        posted = Posted(frozenset({fingerprint}), frozenset(), frozenset())
        self._on_first(self.publication((msgspec.structs.replace(placed, posted=posted),)))

    def publication(self, placed: tuple[Placed, ...]) -> Publication:
        """As far as it has come."""
        return Publication(
            master=self.master,
            at_s=self._at_s,
            placed=placed,
            first_s=self.first_s,
            whole_s=self._clock.seconds() - self._at_s,
        )


def _build(
    key: DescriptorKey,
    ring: Ring,
    due: Due,
    heads: Mapping[NodeName, Backend],
    turn: int,
    revision: int,
    clients: tuple[ClientPublic, ...],
) -> Placed:
    """In a thread: 3 to 15 ms a text, and 15 ms for the places of 8 000 directories."""
    directories = ring.to_store(key.blinded, due)
    if not directories:
        raise unavailable("the consensus has no directories for onions")
    offered = {node: head.points for node, head in heads.items()}
    owners = {point.auth_key: node for node, points in offered.items() for point in points}
    extras = common_extras(list(heads.values()))
    # of any number of points only the longest matters to what fits
    longest = [max((point for points in offered.values() for point in points), key=_length)]
    fits = room(key, longest, len(clients), extras)
    dealt = deal(offered, directories, turn, fits)
    return Placed(
        due=due,
        blinded=key.blinded,
        revision=revision,
        dealt=tuple((build(key, points, revision, clients=clients, extras=extras), nodes) for points, nodes in dealt),
        heads=tuple(sorted({owners[point.auth_key] for points, _ in dealt for point in points})),
    )


def _length(point: IntroPoint) -> int:
    return len(point.link_specifiers)
