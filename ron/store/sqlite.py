"""SQLite with group commit: operations that arrive together share one transaction and one fsync.

In: callables over a `sqlite3.Connection`, submitted on the reactor thread. Out: a Deferred for each, fired only after
the COMMIT that holds its work is on disk. One thread owns the only connection; the file is locked against every other.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ron.proto.errors import RonError, backpressure, unavailable
from ron.store.database import as_ron_error, close_database, is_storage, open_database

T = TypeVar("T")

# How much may wait for the writer. Beyond it a new operation is refused (`Backpressure`).
QUEUE_LIMIT = 4096
QUEUE_LIMIT_BYTES = 64 * 1024 * 1024
# How many operations share a commit: enough to make the fsync cheap, few enough that nobody waits long for the others.
BATCH_LIMIT = 256
_log = Logger(namespace="ron.store")


class CallsFromThread(Protocol):
    """The one thing the engine needs of a reactor."""

    def callFromThread(self, callable: Callable[..., Any], *args: object, **kwargs: object) -> None: ...


class Mirror(Protocol):
    """What a store keeps in memory beside its tables (counters), told when to follow them. Writer thread only."""

    def opened(self, connection: sqlite3.Connection) -> None:
        """The tables are there: read what you need."""

    def begins(self) -> None:
        """An operation begins."""

    def failed(self) -> None:
        """What was done since `begins` never happened."""

    def committed(self) -> None:
        """What was done since the last `committed` is durable."""

    def rolled_back(self) -> None:
        """What was done since the last `committed` never happened."""


class NoMirror:
    """For a store that keeps nothing beside its tables."""

    def opened(self, connection: sqlite3.Connection) -> None:
        """Nothing to read."""

    def begins(self) -> None:
        """Nothing to mark."""

    failed = committed = rolled_back = begins


class BatchReport(NamedTuple):
    """How a batch went. Handed to the observer on the reactor thread, before the answers.

    commit_s: duration of the COMMIT. wrote: the database was changed. trouble: what the disk or the file
    refused to at least one operation. lost: nothing of the batch was kept, every operation failed with `trouble`.
    """

    operations: int
    commit_s: float
    wrote: bool
    trouble: RonError | None
    lost: bool


class _Spoilt(Exception):
    """An operation failed after it, or SQLite for it, had changed the transaction it shares with others."""


class _Job:
    """An operation on its way through the queue, the writer and back."""

    __slots__ = ("deferred", "error", "operation", "ran", "result", "then", "weight", "withdrawn")

    def __init__(
        self, operation: Callable[[sqlite3.Connection], Any], then: Callable[[Any, bool], None] | None
    ) -> None:
        self.operation = operation
        self.then = then
        self.weight = 0
        self.withdrawn = False
        self.ran = False
        self.result: Any = None
        self.error: Exception | None = None
        self.deferred: Deferred[Any] = Deferred(self._withdraw)

    def _withdraw(self, _deferred: Deferred[Any]) -> None:
        self.withdrawn = True

    def settle(self) -> None:
        """Back on the reactor thread: tell `then`, and the caller if it still waits."""
        if self.error is not None:
            if not self.withdrawn:
                self.deferred.errback(self.error)
            return
        if self.then is not None and self.ran:
            try:
                self.then(self.result, self.withdrawn)
            except Exception:  # noqa: BLE001 - one caller's mistake must not cost the others of the batch their answers
                _log.failure("after a commit", event="store_then_failed")
        if not self.withdrawn:
            self.deferred.callback(self.result)


class GroupCommit:
    """One database, one writer thread, one commit for all that waits.

    path: the file, made 0600 in a 0700 directory; None keeps everything in memory. schema: SQL scripts in order, see
    `schema_of`. observe: called on the reactor thread after each batch. Use from the reactor thread only.
    """

    def __init__(
        self,
        path: Path | None,
        schema: Sequence[str],
        *,
        reactor: CallsFromThread,
        name: str,
        mirror: Mirror | None = None,
        observe: Callable[[BatchReport], None] | None = None,
        queue_limit: int = QUEUE_LIMIT,
        queue_limit_bytes: int = QUEUE_LIMIT_BYTES,
        batch_limit: int = BATCH_LIMIT,
    ) -> None:
        self.name = name
        self._path = path
        self._schema = schema
        self._reactor = reactor
        self._mirror = mirror if mirror is not None else NoMirror()
        self._observe = observe
        self._queue_limit = queue_limit
        self._queue_limit_bytes = queue_limit_bytes
        self._batch_limit = batch_limit
        # jobs not yet handed over, and how many jobs and bytes are anywhere on their way
        self._waiting: list[_Job] = []
        self._queued = 0
        self._queued_bytes = 0
        self._busy = False
        self._stopping = False
        self._batches: SimpleQueue[list[_Job]] = SimpleQueue()
        self._refusal: RonError | None = unavailable(f"{name}: the store is not started")
        self._opened: Deferred[None] = Deferred()
        self._stopped: Deferred[None] = Deferred()
        self._thread = threading.Thread(target=self._write_until_stopped, name=f"{name}-writer", daemon=True)

    def start(self) -> Deferred[None]:
        """Open the database in the writer thread. Fires when it is open, fails with `RonError` when it cannot be.

        Operations may be submitted at once: they wait for the opening. Call it once.
        """
        self._refusal = None
        self._thread.start()
        return self._opened

    def submit(
        self,
        operation: Callable[[sqlite3.Connection], T],
        *,
        then: Callable[[T, bool], None] | None = None,
        weight: int = 0,
    ) -> Deferred[T]:
        """Run `operation` in the next transaction; its result arrives when it is durable.

        If it raises, nothing of it stays and the others of its transaction are not touched. It may be run a second time
        after a rollback, so it must change nothing but the database (and the mirror), and begin or end no transaction.
        then: `then(result, abandoned)` runs after the commit and before the caller hears, also when the caller
        cancelled meanwhile (`abandoned`). weight: bytes the operation holds in memory.
        Cancelling withdraws an operation that has not begun; one that has begun is kept, its answer dropped.
        Raises `RonError` at once: `Backpressure` when the queue is full, `StoreUnavailable` when not open or stopping.
        """
        if self._refusal is not None:
            raise _again(self._refusal)
        if self._queued >= self._queue_limit or self._queued_bytes + weight > self._queue_limit_bytes:
            raise backpressure(f"{self.name}: the store's queue is full")
        job = _Job(operation, then)
        job.weight = weight
        self._queued += 1
        self._queued_bytes += weight
        self._waiting.append(job)
        if not self._busy:
            # not at once: what else this turn of the reactor brings shall share the commit
            self._busy = True
            self._reactor.callFromThread(self._hand_over)
        return job.deferred

    def stop(self) -> Deferred[None]:
        """Refuse new operations, finish the queued ones, checkpoint, close and end the thread."""
        if self._stopping:
            return self._stopped
        self._stopping = True
        self._refusal = unavailable(f"{self.name}: the store is stopping")
        if self._thread.ident is None:
            self._stopped.callback(None)
            return self._stopped
        while self._waiting:
            self._hand_over()
        self._batches.put([])
        return self._stopped

    # Reactor thread: to the writer and back. While it has a batch the next one gathers.

    def _hand_over(self) -> None:
        batch, self._waiting = self._waiting[: self._batch_limit], self._waiting[self._batch_limit :]
        self._busy = bool(batch)
        if batch:
            self._batches.put(batch)

    def _deliver(self, batch: list[_Job], report: BatchReport) -> None:
        self._tell(report)
        for job in batch:
            self._queued -= 1
            self._queued_bytes -= job.weight
            job.settle()
        self._hand_over()

    def _tell(self, report: BatchReport) -> None:
        if self._observe is not None:
            try:
                self._observe(report)
            except Exception:  # noqa: BLE001 - the answers of the batch wait behind this
                _log.failure("observing a batch", event="store_observer_failed")

    def _opening_failed(self, error: RonError) -> None:
        if not self._stopping:
            self._refusal = error
        self._opened.errback(error)

    def _ended(self) -> None:
        self._thread.join()
        self._stopped.callback(None)

    # Writer thread.

    def _write_until_stopped(self) -> None:
        try:
            connection = open_database(self._path, self._schema)
            self._mirror.opened(connection)
        except (RonError, sqlite3.Error, OSError) as error:
            self._refuse_until_stopped(as_ron_error(error, self._path))
        else:
            self._reactor.callFromThread(self._opened.callback, None)
            while batch := self._batches.get():
                self._transact(connection, batch)
            close_database(connection, durable=self._path is not None)
        self._reactor.callFromThread(self._ended)

    def _refuse_until_stopped(self, error: RonError) -> None:
        self._reactor.callFromThread(self._opening_failed, error)
        while batch := self._batches.get():
            _fail_all(batch, error)
            report = BatchReport(len(batch), 0.0, wrote=False, trouble=error, lost=True)
            self._reactor.callFromThread(self._deliver, batch, report)

    def _transact(self, connection: sqlite3.Connection, batch: list[_Job]) -> None:
        """Run and commit `batch`, together if at all possible, and send it back."""
        changes = connection.total_changes
        lost = False
        began = time.perf_counter()
        try:
            commit_s, trouble = self._commit(connection, batch)
        except _Spoilt:
            self._undo(connection)
            trouble = self._commit_each(connection, batch)
            commit_s = time.perf_counter() - began
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing is on disk and the thread must live on
            self._undo(connection)
            lost, trouble, commit_s = True, as_ron_error(error, self._path), time.perf_counter() - began
            _fail_all(batch, trouble)
        report = BatchReport(len(batch), commit_s, connection.total_changes != changes, trouble, lost)
        self._reactor.callFromThread(self._deliver, batch, report)

    def _commit(self, connection: sqlite3.Connection, jobs: list[_Job]) -> tuple[float, RonError | None]:
        """`jobs` in one transaction: (seconds the COMMIT took, what the disk refused to one of them).

        An operation that fails before it has changed anything is simply left out. Raises `_Spoilt` when one fails
        later, and what the COMMIT raises.
        """
        trouble = None
        connection.execute("BEGIN")
        begins = self._mirror.begins
        for job in jobs:
            job.ran, job.error = False, None
            if job.withdrawn:
                continue
            begins()
            changes = connection.total_changes
            try:
                job.result = job.operation(connection)
                job.ran = True
            except Exception as error:
                if connection.total_changes != changes or not connection.in_transaction:
                    raise _Spoilt from error
                self._mirror.failed()
                job.error, trouble = self._blame(error, trouble)
        began = time.perf_counter()
        connection.execute("COMMIT")
        self._mirror.committed()
        return time.perf_counter() - began, trouble

    def _commit_each(self, connection: sqlite3.Connection, batch: list[_Job]) -> RonError | None:
        """Every job in a transaction of its own, so that the one that spoils its transaction spoils no other.

        (A savepoint round each would do for most failures and cost every operation of every batch a third more; and
        when the disk is full SQLite rolls back the whole transaction, savepoints or not.)
        """
        trouble = None
        for job in batch:
            try:
                _, refused = self._commit(connection, [job])
                trouble = refused or trouble
            except Exception as error:  # noqa: BLE001 - it goes to whoever asked for it
                self._undo(connection)
                cause = error.__cause__ if isinstance(error, _Spoilt) else error
                job.ran = False
                job.error, trouble = self._blame(cause, trouble)
        return trouble

    def _blame(self, error: BaseException | None, trouble: RonError | None) -> tuple[Exception, RonError | None]:
        """What to tell the operation's caller; and the trouble so far, or this one when the disk is behind it."""
        if isinstance(error, sqlite3.Error) and is_storage(error):
            refused = as_ron_error(error, self._path)
            return refused, refused
        return error if isinstance(error, Exception) else RuntimeError("operation failed"), trouble

    def _undo(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            _log.failure("rolling back", event="store_rollback_failed")
        self._mirror.rolled_back()


def _fail_all(batch: list[_Job], error: RonError) -> None:
    for job in batch:
        job.ran, job.error = False, _again(error)


def _again(error: RonError) -> RonError:
    """A fresh copy: an exception that is raised in many callers would carry the traceback of them all."""
    return RonError(error.code, error.message, hint=error.hint, status=error.status, retry_after_s=error.retry_after_s)
