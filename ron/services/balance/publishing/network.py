"""The consensus as this node's tor has it, kept fresh: which descriptors are due, and on which directories.

In: a tor, its word of new consensuses. Out: the `Ring` at any time, and who is called when it changes. While nothing
changed a look costs one short question: reading a network of 8 000 relays takes two seconds of a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from ron.kernel.clock import Clock
from ron.proto.errors import RonError, unavailable
from ron.services.balance.publishing.outside import Directories
from ron.tor.descriptor.hashring import Ring
from ron.tor.descriptor.periods import RUN_ROUNDS, NetworkTime

EVERY_S = 30.0
SETTLE_S = 5.0
"""How soon to look again while directories are left out: their microdescriptors come after a consensus."""
_log = Logger(namespace="ron.balance")


class Turns(NamedTuple):
    """Unix times by the consensus: when clients begin to ask for the other descriptor, and when others are due."""

    asked_for_s: int
    due_s: int


def turns(time: NetworkTime) -> Turns:
    """What comes next. The consensus that brings it reaches tors at times of their own, later than this."""
    due_s = time.run_start_s + RUN_ROUNDS * time.interval_s
    # within a run the new time period comes first, then the new value
    return Turns(due_s if time.awaits_srv else min(time.period.end_s, due_s), due_s)


class Network:
    """Looks when told of a new consensus, and every `every_s`. `attach` it to each connection to tor.

    on_change: called with the ring when anything in it is another.
    """

    def __init__(
        self, clock: Clock, *, testing: bool, on_change: Callable[[Ring], None], every_s: float = EVERY_S
    ) -> None:
        self.ring: Ring | None = None
        self.failed = ""
        self._clock = clock
        self._testing = testing
        self._on_change = on_change
        self._every_s = every_s
        self._directories: Directories | None = None
        self._read_at = ""
        self._looking: Deferred[None] | None = None
        self._again = False
        self._next: IDelayedCall | None = None

    def known(self) -> Ring:
        """The ring. Raises Unavailable before the first consensus."""
        if self.ring is None:
            raise unavailable("the network's consensus is not known yet")
        return self.ring

    async def attach(self, directories: Directories) -> None:
        """Use this tor from now on. Raises Unavailable when it does not answer."""
        self.detach()
        self._directories = directories
        self._read_at = ""
        await directories.on_consensus(lambda: self._told(directories))
        self.look()

    def detach(self) -> None:
        """Look no more; what is known stays."""
        self._directories = None
        looking, self._looking, self._again = self._looking, None, False
        if looking is not None:
            looking.cancel()
        self._set_timer(None)

    def look(self) -> None:
        """Find out now whether tor has another consensus."""
        if self._looking is not None:
            # what is being read may be the old one
            self._again = True
            return
        if self._directories is None:
            return
        self._set_timer(None)
        self._looking = looking = Deferred.fromCoroutine(self._look(self._directories))
        looking.addErrback(self._not_read)
        looking.addBoth(lambda _: self._looked(looking))

    async def _look(self, directories: Directories) -> None:
        at = await directories.consensus_time()
        if at == self._read_at and self.ring is not None and not self.ring.incomplete:
            return
        ring = await directories.ring(testing=self._testing)
        self._read_at, self.failed = at, ""
        if ring != self.ring:
            self.ring = ring
            self._on_change(ring)

    def _not_read(self, failure: object) -> None:
        """What was known is good for hours: go on with it, and look again."""
        error = getattr(failure, "value", None)
        self.failed = error.message if isinstance(error, RonError) else type(error).__name__
        _log.debug("the consensus was not read: {why}", why=self.failed)

    def _looked(self, looking: Deferred[None]) -> None:
        if self._looking is not looking:
            return
        self._looking = None
        again, self._again = self._again, False
        if again:
            self.look()
            return
        unfinished = self.failed or self.ring is None or self.ring.incomplete
        self._set_timer(min(SETTLE_S, self._every_s) if unfinished else self._every_s)

    def _told(self, by: Directories) -> None:
        if by is self._directories:
            self.look()

    def _set_timer(self, delay_s: float | None) -> None:
        timer, self._next = self._next, None
        if timer is not None and timer.active():
            timer.cancel()
        if delay_s is not None and self._directories is not None:
            self._next = self._clock.callLater(delay_s, self.look)
