"""The audit log as a worker sees it: records go to the owner, one batch for each turn of the reactor, and come back
with an index once they are on disk.

In: entries. Out: what `Recorder` waits for; and what was refused so a moment ago, so that it is not tried for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from twisted.internet.defer import Deferred, fail

from ron.kernel.limits import too_many
from ron.proto.errors import RonError, unavailable
from ron.services.kms.ports import AuditEntry, Checkpoint
from ron.services.kms.rates import Rates
from ron.services.kms.workers.frames import Batch, Kept

# The owner deals out its rate this often; until then, whoever had none left need not ask.
CLOSED_S = 0.05
# Batches under way. While there are so many the next one gathers: it would wait for the disk anyhow, and few large
# batches cost the owner less than many small ones.
AT_A_TIME = 2
_MOST_CLOSED = 4096
_RATE = "rate"


class PairLog:
    """`Log` of a `Recorder`. send: to the owner. most: records that wait at a time; one more is refused.

    turned_away: told of a tenant that the owner has found over its rate.
    """

    def __init__(
        self,
        reactor: Any,
        send: Callable[[Batch], None],
        *,
        most: int,
        turned_away: Callable[[str], None] = lambda _tenant: None,
        congested: Callable[[], bool] = lambda: False,
    ) -> None:
        self._reactor = reactor
        self._send = send
        self._most = most
        self._turned_away = turned_away
        self._congested = congested
        self._entries: list[AuditEntry] = []
        self._waiters: list[Deferred[int]] = []
        self._notes: list[AuditEntry] = []
        self._under_way: dict[int, tuple[list[AuditEntry], list[Deferred[int]]]] = {}
        self._in_flight = 0
        self._number = 0
        self._begun = False
        self.size = 0
        self.writable = True

    @property
    def in_flight(self) -> int:
        """Records of which nobody knows yet whether they are on disk."""
        return self._in_flight

    def append(self, entry: AuditEntry) -> Deferred[int]:
        """Fires with its index once the owner has it on disk. Fails with what the owner refuses it with, and with
        StoreUnavailable when too many wait."""
        if self._in_flight >= self._most or self._congested():
            return fail(unavailable("the audit log's queue is full"))
        outcome: Deferred[int] = Deferred()
        self._entries.append(entry)
        self._waiters.append(outcome)
        self._in_flight += 1
        self._begin()
        return outcome

    def inform(self, entry: AuditEntry) -> None:
        """A record that nobody waits for; left out while too much waits."""
        if len(self._notes) < self._most and not self._congested():
            self._notes.append(entry)
            self._begin()

    def kept(self, frame: Kept) -> None:
        """What came of a batch."""
        entries, waiters = self._under_way.pop(frame.number)
        self._in_flight -= len(waiters)
        for place, (entry, waiter) in enumerate(zip(entries, waiters, strict=True)):
            trouble = frame.refused.get(place)
            if trouble is None:
                waiter.callback(frame.at[place])
                continue
            if trouble.reason == _RATE:
                self._turned_away(entry.tenant)
            waiter.errback(trouble.error())
        if self._entries or self._notes:
            self._begin()

    def _begin(self) -> None:
        if not self._begun and len(self._under_way) < AT_A_TIME:
            self._begun = True
            # not at once: what else this turn of the reactor brings shall go with it
            self._reactor.callLater(0, self._hand_over)

    def _hand_over(self) -> None:
        self._begun = False
        self._number += 1
        entries, waiters, notes = self._entries, self._waiters, self._notes
        self._entries, self._waiters, self._notes = [], [], []
        self._under_way[self._number] = entries, waiters
        self._send(Batch(self._number, tuple(entries), tuple(notes)))

    # What only the owner can say; nothing here asks it of a worker

    def checkpoint(self) -> Deferred[Checkpoint]:
        """Fails with StoreUnavailable."""
        return fail(_owners())

    def latest(self) -> Checkpoint | None:
        """None."""
        return None

    def witnessed(self) -> Checkpoint | None:
        """None."""
        return None

    def entries(self, start: int, count: int) -> Sequence[bytes]:
        """Raises StoreUnavailable."""
        _raise()

    def inclusion(self, index: int, size: int) -> Sequence[bytes]:
        """Raises StoreUnavailable."""
        _raise()

    def consistency(self, old: int, new: int) -> Sequence[bytes]:
        """Raises StoreUnavailable."""
        _raise()


class FollowedRates(Rates):
    """`Rates` of a worker: the owner counts, record by record, and alone lets pass. Here only those are turned away
    whom it has turned away a moment ago, for as long as nothing can have changed."""

    def __init__(self, steady_s: Callable[[], float]) -> None:
        super().__init__(1.0, now_s=steady_s())
        self._steady_s = steady_s
        self._closed: dict[str, float] = {}

    def turned_away(self, tenant: str) -> None:
        """By the owner, just now."""
        if len(self._closed) >= _MOST_CLOSED:
            self._closed.clear()
        self._closed[tenant] = self._steady_s() + CLOSED_S

    def check(self, tenant: str, now_s: float) -> None:
        """Raises `Refused` 429 with reason `rate`."""
        until_s = self._closed.get(tenant)
        if until_s is None:
            return
        if now_s < until_s:
            raise too_many(_RATE, "too many requests a second")
        del self._closed[tenant]


def _owners() -> RonError:
    return unavailable("a worker has no log of its own")


def _raise() -> NoReturn:
    raise _owners()
