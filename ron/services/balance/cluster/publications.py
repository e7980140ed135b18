"""When this node publishes, what it tells of it, and when it owns up to not being able to.

In: the heads to be listed, the periods that are due, how publications went, the time. Out: a reason to publish.
What takes a head out does not wait; what can wait is done together.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping

import msgspec

from ron.kernel.limits import TokenBucket
from ron.proto.balance import NodeName, Published, ServiceName
from ron.services.balance.cluster.timing import Timing

# A head may change its introduction points so often in a row before it has to wait.
CHANGES = 5
# Of each service the descriptors of the older and the newer period are told.
PERIODS = 2
_MOST_DOUBLINGS = 6


class Reason(enum.StrEnum):
    """Why to publish now. PROVING: by one that could not, to show that it can again; it does not lead."""

    NONE = ""
    NEW_LEADER = "new leader"
    HEADS_CHANGED = "heads changed"
    NEW_PERIOD = "new period"
    TOO_OLD = "too old"
    ASKED = "asked"
    PROVING = "proving"


class Told(msgspec.Struct, frozen=True):
    """A publication and when it was, by the clock of who remembers it."""

    published: Published
    at_s: float


class Changes:
    """How often a head's change is worth a publication: one that changes all the time must not be obeyed."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._taken: dict[NodeName, str] = {}
        self._buckets: dict[NodeName, TokenBucket] = {}

    def take(self, heads: Mapping[NodeName, str], now_s: float) -> dict[NodeName, str]:
        """`heads` (digests by name), with a head's last digest where it changes too often."""
        for name, digest in heads.items():
            if self._taken.get(name) == digest:
                continue
            bucket = self._buckets.setdefault(name, TokenBucket(1 / self._timing.change_s, CHANGES, now_s))
            if name not in self._taken or bucket.take(1, now_s) == 0.0:
                self._taken[name] = digest
        return {name: self._taken[name] for name in heads}

    def forget(self, names: Iterable[NodeName]) -> None:
        """They are no members any more."""
        for name in names:
            self._taken.pop(name, None)
            self._buckets.pop(name, None)


class Agenda:
    """Of this node's own publications. It is asked every tick, leader or not."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._changes = Changes(timing)
        self._told: dict[tuple[ServiceName, int], Told] = {}
        self._services: frozenset[ServiceName] = frozenset()
        # digests of the heads' descriptors, by address and head
        self._listed: dict[tuple[ServiceName, NodeName], str] = {}
        self._due: frozenset[int] = frozenset()
        self._leads = False
        self._asked = False
        # of the last success, since this node leads; of the last try; of the one that is under way
        self._done: dict[tuple[ServiceName, NodeName], str] | None = None
        self._done_due: frozenset[int] = frozenset()
        self._tried: dict[tuple[ServiceName, NodeName], str] = {}
        self._tried_s = float("-inf")
        self._tried_asked = False
        self._under_way = False
        self._number = 0
        self._failures = 0
        self._owed_s: float | None = None
        self._benched_s: float | None = None
        self._proof_s = float("inf")
        self._proofs = 0

    # What is told

    def due(self, periods: Collection[int]) -> None:
        """The periods' numbers for which descriptors are due now, by the consensus."""
        self._due = frozenset(periods)

    def ask(self) -> None:
        """Somebody wants a publication: an operator, the canary, the repair."""
        self._asked = True

    def begin(self, now_s: float) -> int:
        """A publication begins, with the heads of the last tick. Returns its number; the one before counts no more."""
        self._tried, self._tried_s, self._tried_asked = dict(self._listed), now_s, self._asked
        self._under_way = True
        self._number += 1
        return self._number

    def published(self, entries: Iterable[Published], now_s: float) -> None:
        """Directories took them. Per service and period the newest is kept, of a service the two newest periods."""
        for entry in entries:
            known = self._told.get((entry.service, entry.period))
            # one that a later publication overtook may end after it
            if known is None or known.published.revision <= entry.revision:
                self._told[entry.service, entry.period] = Told(entry, now_s - entry.ago_ms / 1000)
        by_age = sorted(self._told.items(), key=lambda item: (item[1].at_s, item[0][1]), reverse=True)
        kept: dict[ServiceName, int] = {}
        self._told = {}
        for (service, period), told in by_age:
            kept[service] = kept.get(service, 0) + 1
            if kept[service] <= PERIODS:
                self._told[service, period] = told

    def ended(self, number: int, *, ok: bool) -> None:
        """That publication is over. ok: each service that this node holds was taken by a directory at least."""
        if not self._under_way or number != self._number:
            return
        self._under_way = False
        if not ok:
            self._failures += 1
            return
        self._failures = 0
        self._done, self._done_due = self._tried, self._due
        self._asked = self._asked and not self._tried_asked
        self._owed_s = self._benched_s = None

    # What follows

    def tick(
        self,
        now_s: float,
        *,
        leads: bool,
        listed: Mapping[NodeName, str],
        services: Collection[ServiceName],
        lists: Mapping[ServiceName, Collection[NodeName]] | None = None,
    ) -> tuple[Reason, bool]:
        """What to publish for now, and whether it is urgent: a head is to be taken out.

        listed: heads with their descriptors' digests. services: those that this node has key or share of. lists: which
        of the heads are for which service; all of them where it does not say.
        """
        if self._under_way and now_s - self._tried_s > self._timing.publish_grace_s:
            self.ended(self._number, ok=False)
        if leads != self._leads:
            self._leads, self._done = leads, None
        self._services = frozenset(services)
        heads, of = self._changes.take(listed, now_s), lists or {}
        self._listed = {
            (service, name): heads[name]
            for service in sorted(self._services)
            for name in of.get(service, heads)
            if name in heads
        }
        if not self._listed:
            self._owed_s = None
            return Reason.NONE, False
        if not leads:
            self._owed_s = None
            return self._proof(now_s), False
        reason = self._wanted(now_s)
        self._owe(reason, now_s)
        leaving = bool(self._tried.keys() - self._listed.keys())
        return (reason, leaving) if reason and self._may(reason, leaving, now_s) else (Reason.NONE, False)

    def _wanted(self, now_s: float) -> Reason:
        if self._done is None:
            return Reason.NEW_LEADER
        oldest_s = self.oldest_s()
        if oldest_s is None:
            return Reason.TOO_OLD
        # a try that failed may have left its heads with some directories
        if not self._done == self._tried == self._listed:
            return Reason.HEADS_CHANGED
        if self._done_due != self._due:
            return Reason.NEW_PERIOD
        if self._asked:
            return Reason.ASKED
        every_s = self._timing.publish_every_s
        early_s = min(self._timing.publish_grace_s, every_s / 2)
        return Reason.TOO_OLD if now_s - oldest_s >= every_s - early_s else Reason.NONE

    def _owe(self, reason: Reason, now_s: float) -> None:
        """A publication that is due for longer than the grace puts this node on the bench."""
        if not reason:
            self._owed_s = None
        elif self._owed_s is None:
            self._owed_s = now_s
        elif now_s - self._owed_s > self._timing.publish_grace_s and self._benched_s is None:
            if now_s - self._proof_s > self._timing.lease_s:
                self._proofs = 0
            self._benched_s = now_s
            self._next_proof(now_s)

    def _may(self, reason: Reason, leaving: bool, now_s: float) -> bool:
        """Not while one is under way, unless it still lists a head that has to go; nor too soon after the last."""
        since_s = now_s - self._tried_s
        if leaving:
            return True
        if self._under_way:
            return False
        if self._failures:
            pause_s = self._timing.retry_s * 2.0 ** min(self._failures - 1, _MOST_DOUBLINGS)
            return since_s >= min(pause_s, self._timing.retry_most_s)
        return reason is Reason.NEW_LEADER or since_s >= self._timing.gap_s

    def _proof(self, now_s: float) -> Reason:
        if self._benched_s is None or self._under_way or now_s < self._proof_s:
            return Reason.NONE
        self._next_proof(now_s)
        return Reason.PROVING

    def _next_proof(self, now_s: float) -> None:
        pause_s = self._timing.prove_s * 2.0 ** min(self._proofs, _MOST_DOUBLINGS)
        self._proof_s = now_s + min(pause_s, self._timing.prove_most_s)
        self._proofs += 1

    # What others are told

    @property
    def benched(self) -> bool:
        """It could not publish, and has not since."""
        return self._benched_s is not None

    def oldest_s(self) -> float | None:
        """When it last published, of the service where that is longest ago. None: one of them never."""
        newest: dict[ServiceName, float] = {}
        for (service, _), told in self._told.items():
            newest[service] = max(newest.get(service, float("-inf")), told.at_s)
        if not self._services <= newest.keys():
            return None
        return min((newest[service] for service in self._services), default=None)

    def told(self, now_s: float) -> tuple[Published, ...]:
        """For the beat. What is too old for any directory to have is left out."""
        return tuple(
            msgspec.structs.replace(told.published, ago_ms=max(0, int((now_s - told.at_s) * 1000)))
            for _, told in sorted(self._told.items())
            if now_s - told.at_s < self._timing.lifetime_s
        )

    def lease_left_s(self, now_s: float) -> float:
        """For how long this node may still lead without a publication, by its own measure."""
        grace_s = self._timing.publish_grace_s
        if self._owed_s is not None:
            return self._owed_s + grace_s - now_s
        oldest_s = self.oldest_s()
        return grace_s if oldest_s is None else oldest_s + self._timing.publish_every_s + grace_s - now_s

    def forget(self, names: Iterable[NodeName]) -> None:
        """They are no members any more."""
        self._changes.forget(names)


def standing(told: Iterable[tuple[NodeName, Told]], author: NodeName, now_s: float, lifetime_s: float) -> list[Told]:
    """Those descriptors that clients may still get: of each service and period the one with the highest counter.

    told: by whom. author: who leads; periods older than the two newest it published for are over.
    """
    fresh = [(name, each) for name, each in told if now_s - each.at_s < lifetime_s]
    over: dict[ServiceName, int] = {}
    for name, each in fresh:
        if name == author:
            service, period = each.published.service, each.published.period
            over[service] = max(over.get(service, 0), period - PERIODS)
    best: dict[tuple[ServiceName, int], Told] = {}
    for _, each in fresh:
        key = each.published.service, each.published.period
        if key[1] > over.get(key[0], -1) and (
            key not in best or best[key].published.revision < each.published.revision
        ):
            best[key] = each
    return list(best.values())
