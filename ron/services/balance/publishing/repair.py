"""A publication looked after: read back, given again to directories that lost it, and another one asked for in time.

In: each publication, each consensus, the clock. Out: uploads of the same texts, counters learnt of others, orders to
publish anew with their reasons. Only whoever leads does it: `stop` when another does, or two undo each other's work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from ron.proto.balance import ServiceName
from ron.proto.errors import ErrorCode, RonError
from ron.services.balance.publishing.counters import Counters
from ron.services.balance.publishing.outside import Directories, Figures, Threads
from ron.services.balance.publishing.publisher import Placed, Publication, Publisher
from ron.services.balance.publishing.schedule import (
    GIVE_AGAIN,
    Asked,
    Found,
    Rivalry,
    another_due,
    judge,
    pauses_s,
    probed,
)
from ron.tor.descriptor.hashring import HsDir, Ring
from ron.tor.descriptor.intropoints import read_revision
from ron.tor.descriptor.refused import Refused

CHECK_S = 5.0
ASK_GAP_S = 5.0
"""Between two orders for one service: what was asked for is under way."""
BUSY_S = 2.0
_log = Logger(namespace="ron.balance")
Ask = Callable[[ServiceName, Asked], None]


class Repair:
    """Call `published` after each publication of ours, `consensus` when the ring changes, `stop` when another leads.

    ask: called to have a service published anew. every_s: how old a descriptor may become, read each time.
    """

    def __init__(
        self,
        clock: Any,
        *,
        ring: Callable[[], Ring],
        directories: Callable[[], Directories],
        publisher: Publisher,
        counters: Counters,
        threads: Threads,
        now_s: Callable[[], float],
        figures: Figures,
        ask: Ask,
        every_s: Callable[[], float],
    ) -> None:
        self.clock = clock
        self.ring = ring
        self.directories = directories
        self.publisher = publisher
        self.counters = counters
        self.threads = threads
        self.now_s = now_s
        self.figures = figures
        self.ask = ask
        self.every_s = every_s
        self._kept: dict[ServiceName, _Kept] = {}

    def published(self, publication: Publication) -> None:
        """Look after this one from now on, and after the one before no more."""
        name = publication.master.name
        before = self._kept.pop(name, None)
        if before is not None and before.publication.at_s > publication.at_s:
            # an order that was overtaken by a later one and has only now ended
            self._kept[name] = before
            return
        if before is not None:
            before.end()
        kept = self._kept[name] = _Kept(self, publication, before.rivalry if before else Rivalry())
        kept.begin()

    def consensus(self) -> None:
        """There is another consensus: are the periods and the directories still the same?"""
        for kept in list(self._kept.values()):
            kept.check_soon()

    def stop(self, service: ServiceName) -> None:
        """Leave it to whoever leads now."""
        kept = self._kept.pop(service, None)
        if kept is not None:
            kept.end()

    def stop_all(self) -> None:
        """Leave everything."""
        for service in list(self._kept):
            self.stop(service)

    def holding(self, service: ServiceName) -> dict[str, Found]:
        """What each directory of the period that clients ask for had when last looked at, by fingerprint."""
        kept = self._kept.get(service)
        return dict(kept.found) if kept is not None else {}

    def looked_s(self, service: ServiceName) -> float | None:
        """How long ago that was; None: nobody has looked."""
        at_s = kept.looked_at_s if (kept := self._kept.get(service)) is not None else None
        return self.clock.seconds() - at_s if at_s is not None else None


class _Kept:
    """One publication that is looked after."""

    def __init__(self, repair: Repair, publication: Publication, rivalry: Rivalry) -> None:
        self.publication = publication
        self.found: dict[str, Found] = {}
        self.looked_at_s: float | None = None
        self._repair = repair
        self._name = publication.master.name
        self.rivalry = rivalry
        self._round = 0
        self._asked_s: float | None = None
        # once in a round, however many directories have it
        self._outbidding = False
        # directories of whom nothing is known, by period; the one that clients ask for is read back instead
        self._unsure = {placed.due.period: placed.posted.silent for placed in publication.placed}
        refused = any(placed.posted.refused for placed in publication.placed)
        self._pauses: Iterator[float] = pauses_s(refused=refused)
        self._timers: dict[str, IDelayedCall] = {}
        self._working: dict[str, Deferred[None]] = {}
        self._ended = False

    def begin(self) -> None:
        """Look at what the directories said, then wait for the first pause."""
        refusing = [placed for placed in self.publication.placed if 2 * len(placed.posted.refused) > len(placed.texts)]
        # the period that clients ask for is read back at once, and tells by how much for the other one too
        if refusing and not any(self._asked_for(placed) for placed in refusing):
            for placed in refusing:
                self._repair.counters.refused(self._name, placed.due.period, placed.revision)
            self._rival()
        self._later("read", next(self._pauses), self._read)
        self._later("check", CHECK_S, self._check)

    def end(self) -> None:
        """Do nothing any more."""
        self._ended = True
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
        for working in list(self._working.values()):
            working.cancel()

    def check_soon(self) -> None:
        """Is another publication due?"""
        self._later("check", 0.0, self._check)

    # -- another one

    async def _check(self) -> None:
        repair = self._repair
        try:
            every_s = float(repair.every_s())
            why = await repair.threads.run(another_due, self.publication, repair.ring(), self._age_s(), every_s)
            if why is not None:
                self._ask(why)
        except RonError as error:
            _log.debug("nobody knows whether another publication is due: {why}", why=error.message)
        finally:
            self._later("check", CHECK_S, self._check)

    def _age_s(self) -> float:
        return float(self._repair.clock.seconds()) - self.publication.at_s

    def _ask(self, why: Asked) -> bool:
        """False while another publication is under way, or was just asked for."""
        now_s = self._repair.clock.seconds()
        busy = self._repair.publisher.busy(self._name) or self._ended
        if busy or (self._asked_s is not None and now_s - self._asked_s < ASK_GAP_S):
            return False
        self._asked_s = now_s
        self._repair.figures.emergencies.labels(why.value).inc()
        self._repair.ask(self._name, why)
        return True

    # -- reading back

    async def _read(self) -> None:
        try:
            for placed in self.publication.placed:
                if self._asked_for(placed):
                    await self._read_back(placed)
                else:
                    await self._probe(placed)
        except RonError as error:
            _log.debug("{service}: not read back: {why}", service=self._name, why=error.message)
        finally:
            self._round += 1
            self._later("read", next(self._pauses), self._read)

    def _asked_for(self, placed: Placed) -> bool:
        try:
            return placed.due.period == self._repair.ring().time.asked_for().period
        except RonError:
            return False

    async def _read_back(self, placed: Placed) -> None:
        """All at once, and each mended as soon as it has answered: a silent one holds up only the next round."""
        nodes = [node for _text, nodes in placed.dealt for node in nodes]
        self._outbidding = False
        self.found = {name: what for name, what in self.found.items() if name in placed.texts}
        await gatherResults([Deferred.fromCoroutine(self._tend(placed, node)) for node in nodes], consumeErrors=True)
        self.looked_at_s = self._repair.clock.seconds()
        if all(what is Found.HELD for what in self.found.values()):
            self.rivalry.stood(self._age_s())

    async def _tend(self, placed: Placed, node: HsDir) -> None:
        found = await self._look(placed, node)
        self._repair.figures.repairs.labels(found.value).inc()
        self.found[node.fingerprint] = found
        if found is Found.ABOVE:
            self._rival()
        if found in GIVE_AGAIN:
            await self._give_again(placed, node)
        held = sum(1 for what in self.found.values() if what is Found.HELD)
        self._repair.figures.holding.labels(self._name).set(held)

    async def _look(self, placed: Placed, node: HsDir) -> Found:
        repair = self._repair
        try:
            text: str | None = await repair.directories().fetch(self.publication.master.onion, node)
        except RonError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                return Found.SILENT
            text = None
        revision = None
        if text is not None and text.strip() != placed.texts[node.fingerprint].strip():
            revision = await self._revision(placed, text)
        found = judge(placed, node.fingerprint, text, revision)
        if found is not Found.ABOVE or revision is None:
            return found
        if repair.counters.is_ours(self._name, placed.due.period, revision):
            # of a later publication, which has not ended yet
            return Found.HELD
        others = [each.due.period for each in self.publication.placed]
        repair.counters.found(self._name, placed.due.period, revision, others)
        return found

    async def _revision(self, placed: Placed, text: str) -> int | None:
        onion, periods = self.publication.master.onion, (placed.due.period,)
        try:
            _period, revision = await self._repair.threads.run(
                read_revision, text, onion, periods, self._repair.now_s()
            )
        except Refused:
            return None
        return revision

    async def _give_again(self, placed: Placed, node: HsDir) -> None:
        try:
            posted = await self._repair.publisher.give_again(self.publication.master, placed, {node.fingerprint})
        except RonError as error:
            _log.debug("{service}: not given again: {why}", service=self._name, why=error.message)
            return
        if posted.taken:
            self.found[node.fingerprint] = Found.HELD
            _log.info("{service}: a directory has the descriptor again", service=self._name)

    async def _probe(self, placed: Placed) -> None:
        to = frozenset(placed.texts) if probed(self._round) else self._unsure[placed.due.period]
        posted = await self._repair.publisher.give_again(self.publication.master, placed, to)
        self._unsure[placed.due.period] = posted.silent
        for what, nodes in ((Found.MISSING, posted.taken), (Found.HELD, posted.refused), (Found.SILENT, posted.silent)):
            self._repair.figures.repairs.labels(what.value).inc(len(nodes))

    def _rival(self) -> None:
        if not self._outbidding:
            self._outbidding = True
            self._later("outbid", self.rivalry.delay_s(), self._outbid)

    async def _outbid(self) -> None:
        """Somebody published above us; what was learnt of it will be above all."""
        if not self._ask(Asked.FOREIGN):
            self._later("outbid", BUSY_S, self._outbid)

    def _later(self, what: str, delay_s: float, work: Callable[[], Any]) -> None:
        """One timer and one piece of work of each kind; while it is at work it is not begun again."""
        timer = self._timers.get(what)
        if timer is not None and timer.active():
            timer.cancel()
        if not self._ended:
            self._timers[what] = self._repair.clock.callLater(delay_s, self._begin, what, work)

    def _begin(self, what: str, work: Callable[[], Any]) -> None:
        working = self._working[what] = Deferred.fromCoroutine(work())
        working.addErrback(self._broke)
        working.addBoth(lambda _: self._working.pop(what, None) if self._working.get(what) is working else None)

    def _broke(self, failure: Any) -> None:
        if not self._ended:
            _log.failure("looking after a publication broke", failure)
