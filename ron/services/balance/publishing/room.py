"""This room as a service sees it: everything of it joined, behind few methods.

In: a tor, members' descriptors and publications, who signs, which heads are wanted. Out: publications, and orders to
publish with their reasons. What to publish, when, and whether this node leads is decided elsewhere (`cluster/`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from ron.kernel.threads import BoundedPool
from ron.proto.balance import HeadDescriptor, NodeName, Published, ServiceName
from ron.services.balance.publishing.counters import Counters
from ron.services.balance.publishing.intake import Intake
from ron.services.balance.publishing.keys import Keys
from ron.services.balance.publishing.network import Network
from ron.services.balance.publishing.outside import Directories, Figures, Threads
from ron.services.balance.publishing.publisher import Master, Publication, Publisher
from ron.services.balance.publishing.repair import Repair
from ron.services.balance.publishing.schedule import Asked, Found
from ron.services.balance.publishing.shelf import Shelf, Usable, Why
from ron.tor.control import TorSilent
from ron.tor.descriptor.blinding import Signer
from ron.tor.descriptor.hashring import Ring

THREADS = 2
NOTHING = Usable({}, {}, {})


class Publishing:
    """testing: the network runs with TestingTorNetwork. tie: 0 to 999, another one for each node (its number mod 1000).

    signer: `Vault.signer`. holds: services whose keys to keep ready, read at each consensus. ask: have a service
    published anew. every_s: how old a descriptor may become. on_heads: some head has something new on the shelf.
    on_ring: the consensus changed. threads: a pool that somebody else starts and stops; None: one of our own.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        testing: bool,
        tie: int,
        signer: Callable[[ServiceName], Signer],
        holds: Callable[[], Collection[ServiceName]],
        ask: Callable[[ServiceName, Asked], None],
        every_s: Callable[[], float],
        figures: Figures,
        on_heads: Callable[[NodeName], None] = lambda node: None,
        on_ring: Callable[[Ring], None] = lambda ring: None,
        threads: Threads | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.figures = figures
        self._now_s = now_s
        self._holds = holds
        self._on_ring = on_ring
        self._directories: Directories | None = None
        self._ours: set[ServiceName] = set()
        self._own = BoundedPool(reactor, name="balance-publishing", threads=THREADS) if threads is None else None
        pool: Any = threads if self._own is None else self._own
        self.network = Network(reactor, testing=testing, on_change=self._ring_changed)
        self.shelf = Shelf()
        self.counters = Counters(tie=tie, now_s=now_s)
        self.keys = Keys(reactor, signer=signer, now_s=now_s, figures=figures)
        self._intake = Intake(
            reactor,
            shelf=self.shelf,
            threads=pool,
            ring=lambda: self.network.ring,
            now_s=now_s,
            figures=figures,
            on_change=on_heads,
        )
        self._publisher = Publisher(
            reactor,
            ring=self.network.known,
            directories=self._tor,
            keys=self.keys,
            counters=self.counters,
            threads=pool,
            figures=figures,
        )
        self._repair = Repair(
            reactor,
            ring=self.network.known,
            directories=self._tor,
            publisher=self._publisher,
            counters=self.counters,
            threads=pool,
            now_s=now_s,
            figures=figures,
            ask=ask,
            every_s=every_s,
        )

    # Life

    def start(self) -> None:
        """Before anything else."""
        if self._own is not None:
            self._own.start()

    def stop(self) -> None:
        """Leave all descriptors to others, or to themselves. Waits for threads: late in shutdown."""
        self.detach()
        self._repair.stop_all()
        if self._own is not None:
            self._own.stop()

    async def attach(self, directories: Directories) -> None:
        """Use this tor (an `Exchange` that is open) from now on. Raises Unavailable when it does not answer."""
        self._directories = directories
        await self.network.attach(directories)

    def detach(self) -> None:
        """That tor has gone. What is published stays so, and what is known stays known."""
        self._directories = None
        self.network.detach()

    @property
    def has_tor(self) -> bool:
        """Is there a tor to reach directories by?"""
        return self._directories is not None

    # What the mesh tells

    def offer(self, node: NodeName, offered: HeadDescriptor) -> None:
        """`node`'s own head, ours too, has this descriptor."""
        self._intake.offer(node, offered)

    def confirm(self, node: NodeName, digest: str) -> bool:
        """`node` says that its newest descriptor has this digest (`HeadReport.descriptor`). False: ask it for it."""
        return self.shelf.confirm(node, digest, self._now_s())

    def heard(self, told: Published) -> None:
        """A peer published."""
        self.counters.heard(told)

    def members(self, nodes: Collection[NodeName]) -> None:
        """Forget what others have told."""
        self._intake.keep_only(frozenset(nodes))

    # What to do

    def usable(self) -> Usable:
        """Heads that can be published now, and why the others cannot; nothing before the first consensus."""
        ring = self.network.ring
        usable = self.shelf.usable(ring, self._now_s()) if ring is not None else NOTHING
        outs = list(usable.out.values())
        for why in Why:
            self.figures.points_left_out.labels(why.value).set(usable.left_out.get(why, 0))
            self.figures.heads_out.labels(why.value).set(outs.count(why))
        self.figures.descriptor_age.clear()
        for node, age_s in self.shelf.ages_s(self._now_s()).items():
            self.figures.descriptor_age.labels(node).set(age_s)
        return usable

    async def publish(
        self,
        master: Master,
        wanted: Collection[NodeName],
        turn: int,
        on_first: Callable[[Publication], None] = lambda publication: None,
    ) -> Publication:
        """Publish the usable ones of `wanted`, and look after it from then on. As `Publisher.publish`.

        When directories answer only after `release`, nothing is looked after.
        """
        usable = self.usable().heads
        self._ours.add(master.name)
        heads = {node: head for node, head in usable.items() if node in wanted}
        publication = await self._publisher.publish(master, heads, turn, on_first)
        if master.name in self._ours:
            self._repair.published(publication)
        return publication

    def release(self, service: ServiceName) -> None:
        """Another node leads: look after it no more. Keys stay, for when this node leads again."""
        self._ours.discard(service)
        self._repair.stop(service)

    def give_up(self, service: ServiceName) -> None:
        """This node may not publish it any more: its keys go too."""
        self.release(service)
        self.keys.forget(service)

    def prepare(self) -> None:
        """Have keys of all services ready that we hold, before it is our turn to lead."""
        ring = self.network.ring
        if ring is None:
            return
        periods = [due.period for due in ring.time.due()]
        for service in self._holds():
            self.keys.prepare(service, periods)

    def holding(self, service: ServiceName) -> dict[str, Found]:
        """What each directory had when last looked at, by fingerprint; empty while another leads."""
        return self._repair.holding(service)

    def looked_s(self, service: ServiceName) -> float | None:
        """How long ago that was; None: nobody has looked."""
        return self._repair.looked_s(service)

    def _tor(self) -> Directories:
        if self._directories is None:
            raise TorSilent
        return self._directories

    def _ring_changed(self, ring: Ring) -> None:
        due = [due.period for due in ring.time.due()]
        # a publication of the last hour may still be asked for by who is late
        kept = (due[0].shifted(-1), *due)
        self.keys.keep_only(kept)
        self.counters.keep_only(kept)
        self.prepare()
        self._intake.ring_changed()
        self._repair.consensus()
        self._on_ring(ring)
