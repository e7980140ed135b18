"""What waits for the disk: records of operations, which are never dropped, and informative ones, which may be.

In: entries, with the time. Out: batches, in order; and whoever has waited too long. No clock, no disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ron.proto.errors import RonError
from ron.services.kms.ports import AuditEntry

_log = Logger(namespace="ron.kms.audit")


class Job:
    """A record on its way. outcome: whom to tell its index, None for an informative one or once he was told."""

    __slots__ = ("at_s", "entry", "outcome")

    def __init__(self, entry: AuditEntry, at_s: float, outcome: Deferred[int] | None) -> None:
        self.entry = entry
        self.at_s = at_s
        self.outcome = outcome

    def settle(self, index: int) -> None:
        """It is on disk."""
        outcome, self.outcome = self.outcome, None
        if outcome is not None:
            outcome.callback(index)

    def fail(self, error: RonError) -> None:
        """It is not, or nobody knows."""
        outcome, self.outcome = self.outcome, None
        if outcome is not None:
            outcome.errback(again(error))


class Queue:
    """At most `limit` jobs, those that are being written among them. dropped: told of an informative one that went."""

    def __init__(self, limit: int, dropped: Callable[[], None]) -> None:
        self._limit = limit
        self._dropped = dropped
        self._waiting: deque[Job] = deque()
        self._informative = 0
        self._writing: list[Job] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._writing)

    def put(self, entry: AuditEntry, at_s: float) -> Deferred[int] | None:
        """The Deferred of an operation's record; None when there is no room. Cancelled, a record that is not being
        written yet never will be."""
        if not self._make_room():
            return None
        outcome: Deferred[int] = Deferred(lambda _outcome: self._withdraw(job))
        job = Job(entry, at_s, outcome)
        self._waiting.append(job)
        return outcome

    def inform(self, entry: AuditEntry, at_s: float) -> None:
        """A record that nobody waits for."""
        if not self._make_room():
            self._dropped()
            return
        self._informative += 1
        self._waiting.append(Job(entry, at_s, None))

    def take(self, count: int) -> list[Job]:
        """The next batch. Its jobs stay in the count until `done`."""
        while self._waiting and len(self._writing) < count:
            job = self._waiting.popleft()
            self._informative -= job.outcome is None
            self._writing.append(job)
        return self._writing

    def done(self) -> None:
        """The batch is through."""
        self._writing = []

    def fail_all(self, error: RonError) -> int:
        """Nothing of the batch was written, and nothing that waits will be. The number of those that were told."""
        jobs = [job for job in (*self._writing, *self._waiting) if job.outcome is not None]
        self._waiting.clear()
        self._informative = 0
        for job in jobs:
            job.fail(error)
        return len(jobs)

    def expire(self, before_s: float, error: RonError) -> int:
        """Those that came before `before_s` have waited long enough. One that waits is withdrawn; one that is being
        written is told `error` and may be on disk all the same. The number of those that were told."""
        late = [job for job in self._writing if job.outcome is not None and job.at_s <= before_s]
        while self._waiting and self._waiting[0].at_s <= before_s:
            job = self._waiting.popleft()
            if job.outcome is None:
                self._informative -= 1
                self._dropped()
            else:
                late.append(job)
        for job in late:
            job.fail(error)
        return len(late)

    def oldest_s(self) -> float | None:
        """When the one came that has waited longest and was not told, None without one."""
        for job in self._writing:
            if job.outcome is not None:
                return job.at_s
        return self._waiting[0].at_s if self._waiting else None

    def _withdraw(self, job: Job) -> None:
        job.outcome = None
        if job not in self._writing:
            self._waiting.remove(job)

    def _make_room(self) -> bool:
        if len(self) < self._limit:
            return True
        if self._informative:
            for job in self._waiting:
                if job.outcome is None:
                    self._waiting.remove(job)
                    self._informative -= 1
                    self._dropped()
                    return True
        return False


def again(error: RonError) -> RonError:
    """A fresh copy: an exception that is raised in many callers would carry the traceback of them all."""
    return RonError(error.code, error.message, hint=error.hint, status=error.status, retry_after_s=error.retry_after_s)
