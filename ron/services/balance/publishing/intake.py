"""Heads' descriptors as they come over the mesh: read in a thread, strictly, and onto the shelf.

In: texts, each from a proven sender. Out: a fuller shelf and who changed; what is refused is named and counted, and the
last good one stays. A member that floods us costs one reading each quarter of a second.
"""

from __future__ import annotations

from collections.abc import Callable

from blake3 import blake3
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ron.kernel.clock import Clock
from ron.proto.balance import HeadDescriptor, NodeName
from ron.proto.errors import RonError
from ron.services.balance.publishing.outside import Figures, Threads
from ron.services.balance.publishing.shelf import Shelf, readable_periods
from ron.tor.descriptor.hashring import Ring
from ron.tor.descriptor.intropoints import Backend, read_backend
from ron.tor.descriptor.refused import Refused

GAP_S = 0.25
"""Between two readings of one sender's."""
_log = Logger(namespace="ron.balance")


class Intake:
    """Reads what `offer` is given. ring: what the consensus says, None while unknown: then the newest text waits.

    now_s: Unix time. on_change: called with a head's name when the shelf has something new of it.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        shelf: Shelf,
        threads: Threads,
        ring: Callable[[], Ring | None],
        now_s: Callable[[], float],
        figures: Figures,
        on_change: Callable[[NodeName], None],
    ) -> None:
        self._clock = clock
        self._shelf = shelf
        self._threads = threads
        self._ring = ring
        self._now_s = now_s
        self._figures = figures
        self._on_change = on_change
        self._waiting: dict[NodeName, HeadDescriptor] = {}
        self._busy: set[NodeName] = set()

    def offer(self, node: NodeName, offered: HeadDescriptor) -> None:
        """`node` says that this is its head's newest descriptor. Of several that wait the last one counts."""
        if node in self._waiting:
            self._figures.refused.labels("superseded").inc()
        self._waiting[node] = offered
        self._next(node)

    def ring_changed(self) -> None:
        """There is a consensus, or another one: look at what waits for it."""
        for node in list(self._waiting):
            self._next(node)

    def keep_only(self, nodes: frozenset[NodeName]) -> None:
        """Forget all others."""
        self._shelf.keep_only(nodes)
        self._waiting = {node: offered for node, offered in self._waiting.items() if node in nodes}

    def _next(self, node: NodeName) -> None:
        ring = self._ring()
        if node in self._busy or node not in self._waiting or ring is None:
            return
        self._busy.add(node)
        offered = self._waiting.pop(node)
        reading = Deferred.fromCoroutine(self._read(node, offered, ring))
        reading.addErrback(lambda failure: _log.failure("reading a head's descriptor broke", failure))
        reading.addBoth(lambda _: self._clock.callLater(GAP_S, self._rested, node))

    def _rested(self, node: NodeName) -> None:
        self._busy.discard(node)
        self._next(node)

    async def _read(self, node: NodeName, offered: HeadDescriptor, ring: Ring) -> None:
        digest = blake3(offered.text.encode()).hexdigest()
        known = self._shelf.newest(node)
        if known and known.onion == offered.onion and self._shelf.confirm(node, digest, self._now_s()):
            return
        try:
            backend = await self._threads.run(_read, offered, ring, self._now_s())
            changed = self._shelf.put(node, backend, digest, self._now_s())
        except RonError as error:
            reason = error.reason.value if isinstance(error, Refused) else error.code.value
            self._figures.refused.labels(reason).inc()
            _log.warn("head {node}: its descriptor is not used: {why}", node=node, why=error.message, reason=reason)
            return
        if changed:
            self._on_change(node)


def _read(offered: HeadDescriptor, ring: Ring, now_s: float) -> Backend:
    return read_backend(offered.text, offered.onion, readable_periods(ring.time, now_s), now_s)
