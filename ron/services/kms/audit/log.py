"""The log itself: records in, their index out once they are on disk; checkpoints; proofs.

In: entries on the reactor's thread. All that wait share one write and one fdatasync in a thread of the log's own. Out:
Deferreds that fire after it. A record of an operation that was answered is on disk; one that could not be written in
time was not answered. What the specification drops first under pressure are informative records (`inform`) and nothing
else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.crypto.merkle import leaf_hash
from ron.crypto.notes import KeySet
from ron.proto.errors import RonError, bad_request, unavailable
from ron.services.kms.audit.checkpointer import Checkpointer, Sign
from ron.services.kms.audit.leaves import KeySeqs, Said, encode, key_of, numbered
from ron.services.kms.audit.meters import Meters
from ron.services.kms.audit.queue import Job, Queue, again
from ron.services.kms.audit.recovery import Progress, Recovered, recover
from ron.services.kms.audit.shelf import Shelf
from ron.services.kms.audit.thread import DiskThread
from ron.services.kms.audit.tiles import WIDTH, Tiles
from ron.services.kms.ports import AuditEntry, Checkpoint

MAX_ENTRIES = 1000
# An answer of entries, before base64.
MAX_PAGE_BYTES = 2 * 1024 * 1024
_log = Logger(namespace="ron.kms.audit")

# index of the first, and the leaves: told after each write
Watcher = Callable[[int, Sequence[bytes]], None]


class Settings(NamedTuple):
    """origin: the log's name, the first line of its checkpoints. A checkpoint comes after `checkpoint_ops` records or
    `checkpoint_s` seconds, whichever is first. deadline_s: of a record; checkpoint_deadline_s: of signing and writing
    one. retry_s: how often a disk that failed is tried again. batch: records that share a write."""

    origin: str
    checkpoint_ops: int = 5000
    checkpoint_s: float = 60.0
    queue_limit: int = 2048
    deadline_s: float = 2.0
    checkpoint_deadline_s: float = 1.0
    retry_s: float = 1.0
    batch: int = 512


class TransparencyLog:
    """`AuditLog` (`ron.services.kms.ports`). keys: of those who sign checkpoints, the present ones first, then older
    ones; sign: makes a note of a text with the private halves of the first. Use from the reactor's thread only."""

    def __init__(
        self, settings: Settings, shelf: Shelf, *, reactor: Any, keys: Sequence[KeySet], sign: Sign, meters: Meters
    ) -> None:
        self._settings = settings
        self._shelf = shelf
        self._reactor = reactor
        self._meters = meters
        self._thread = DiskThread(reactor, "kms-audit")
        self._queue = Queue(settings.queue_limit, meters.dropped)
        self._tiles = Tiles(shelf.tile, shelf.put_tile)
        self._seqs = KeySeqs()
        self._refusal: RonError | None = unavailable("the audit log is not open yet")
        self._broken: str | None = None
        self._disk_failed = False
        self._opened = False
        self._stopping = False
        self._busy = False
        self._deadline: IDelayedCall | None = None
        self._retry: IDelayedCall | None = None
        self._drained: list[Deferred[None]] = []
        self._watchers: list[Watcher] = []
        self._said = Said()
        self._checkpointer = Checkpointer(
            settings.origin,
            reactor=reactor,
            thread=self._thread,
            shelf=shelf,
            head=lambda: (self._tiles.size, self._tiles.root(self._tiles.size)),
            keys=keys,
            sign=sign,
            meters=meters,
            every_ops=settings.checkpoint_ops,
            every_s=settings.checkpoint_s,
            deadline_s=settings.checkpoint_deadline_s,
        )
        meters.follow_checkpoints(lambda: self.checkpoint_age_s)

    # Its life

    async def open(self, progress: Progress = lambda _done, _of: None) -> None:
        """Read all of it, see that it is what it was, and take records. Also a log that is not is opened: to be read,
        with `writable` False and `trouble` saying why. progress: told on the reactor's thread.

        Raises `RonError`: Conflict while another process has it, StoreUnavailable when it cannot be read.
        """
        self._thread.start()
        self._opened = True
        try:
            recovered = await self._thread.run(self._recover, progress)
        except OSError as error:
            await self.close()
            raise unavailable(f"the audit log cannot be read: {error}", hint="look at its directory") from None
        except BaseException:
            await self.close()
            raise
        self._tiles, self._seqs = recovered.tiles, recovered.seqs
        self._said = recovered.said
        beyond = self._checkpointer.begin(recovered.latest, recovered.number, self._tiles.root)
        self._refusal = None
        trouble = recovered.trouble or beyond
        if trouble is not None:
            self._breaks(trouble)
            return
        self._checkpointer.start()

    async def close(self) -> None:
        """Take no more, write what waits, sign the end of it, let go. More than once is fine."""
        if self._stopping:
            return
        self._stopping = True
        self._refusal = unavailable("the audit log is closing")
        if len(self._queue):
            drained: Deferred[None] = Deferred()
            self._drained.append(drained)
            await drained
        await self._checkpointer.stop(last=self._broken is None and not self._disk_failed)
        self._cancel_timers()
        if self._opened:
            await self._thread.run(self._shelf.close)
            await self._thread.stop()

    def use(self, keys: KeySet, sign: Sign) -> None:
        """From now on these sign. Append the continuity record (`ron.services.kms.audit.continuity`) before."""
        self._checkpointer.use(keys, sign)

    def expect(self, size: int, root: bytes) -> bool:
        """Somebody else (a sealed counter, a witness) knows that the first `size` records had this root. True if they
        have; else the log is broken from now on. Call it when the log is open."""
        if size <= self._tiles.size and self._tiles.root(size) == root:
            return True
        self._breaks(f"somebody else knows {size} records that are not the first of these {self._tiles.size}")
        return False

    def contradicted(self, why: str) -> None:
        """The same, where no root is told: those whom the operator trusts have seen another log. It is broken now."""
        self._breaks(why)

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` of each batch that is on disk, after those who wait for it were told."""
        self._watchers.append(watcher)

    def watch_checkpoints(self, watcher: Callable[[Checkpoint], None]) -> None:
        """Tell `watcher` of each new checkpoint that is on disk."""
        self._checkpointer.watchers.append(watcher)

    # How it stands

    @property
    def size(self) -> int:
        """See `AuditLog.size`."""
        return self._tiles.size

    @property
    def writable(self) -> bool:
        """See `AuditLog.writable`."""
        return self._refusal is None and self._broken is None and not self._disk_failed

    @property
    def trouble(self) -> str | None:
        """What is wrong with the log, for operators; None when all is well."""
        return self._broken or ("its disk takes nothing" if self._disk_failed else None)

    @property
    def checkpoint_age_s(self) -> float:
        """Since when there are records that no checkpoint covers; 0 while there are none."""
        return self._checkpointer.age_s

    @property
    def checkpoint_failing(self) -> bool:
        """The last try to make a checkpoint failed: readiness `checkpoint_recent` is false."""
        return self._checkpointer.failing

    # Records

    def append(self, entry: AuditEntry) -> Deferred[int]:
        """See `AuditLog.append`. Fails with `RonError`: StoreUnavailable also when the deadline came first, and then
        the record may be there all the same; BadRequest or TooLarge for an entry that is none."""
        refusal = self._refused()
        outcome = None if refusal is not None else self._queue.put(entry, self._reactor.seconds())
        if outcome is None:
            self._meters.appended(1, "err")
            return fail(again(refusal) if refusal is not None else unavailable("the audit log's queue is full"))
        self._begin()
        return outcome

    def inform(self, entry: AuditEntry) -> None:
        """A record that no answer waits for. Under pressure the oldest of these are dropped and counted."""
        if self._refused() is not None:
            self._meters.dropped()
            return
        self._queue.inform(entry, self._reactor.seconds())
        self._begin()

    def checkpoint(self) -> Deferred[Checkpoint]:
        """See `AuditLog.checkpoint`. Fails with StoreUnavailable. The newest one when nothing came after it."""
        refusal = self._refused()
        if refusal is not None:
            return fail(again(refusal))
        return self._checkpointer.make()

    # What it shows

    def latest(self) -> Checkpoint | None:
        """See `AuditLog.latest`."""
        return self._checkpointer.latest

    def cosigned(self, checkpoint: Checkpoint, lines: Sequence[bytes], *, enough: int = 1) -> None:
        """Witnesses signed `checkpoint`, one of this log's: show their lines with it. enough: so many cosignatures are
        not given up for a newer checkpoint that has fewer. Raises BadNoteError for what is none."""
        self._checkpointer.cosigned(checkpoint, lines, enough)

    def witnessed(self) -> Checkpoint | None:
        """The newest checkpoint with cosignatures; None where no witness was asked, or none answered."""
        return self._checkpointer.witnessed

    def newest(self, name: str) -> Mapping[str, Any]:
        """The extras of the newest record on disk that has `name` in them, empty where none has. Of all records: they
        are looked at when the log is opened and when they are written."""
        return self._said.newest(name)

    def entries(self, start: int, count: int) -> Sequence[bytes]:
        """See `AuditLog.entries`. May be fewer: a page ends at `MAX_PAGE_BYTES`. Raises `RonError` (BadRequest)."""
        if not 0 <= start <= self.size or not 1 <= count <= MAX_ENTRIES:
            raise bad_request(f"start is at most {self.size}, count from 1 to {MAX_ENTRIES}")
        return self._shelf.read(start, min(count, self.size - start), MAX_PAGE_BYTES) if start < self.size else []

    def inclusion(self, index: int, size: int) -> Sequence[bytes]:
        """See `AuditLog.inclusion`."""
        if not 0 <= index < size <= self.size:
            raise bad_request(f"index is below size, size at most {self.size}")
        return self._tiles.inclusion(index, size)

    def consistency(self, old: int, new: int) -> Sequence[bytes]:
        """See `AuditLog.consistency`. Raises `RonError` (BadRequest) unless old <= new <= the log's size."""
        if not 0 <= old <= new <= self.size:
            raise bad_request(f"old is at most new, new at most {self.size}")
        return self._tiles.consistency(old, new)

    # To the disk and back. While it has a batch the next one gathers.

    def _begin(self) -> None:
        if not self._busy:
            # not at once: what else this turn of the reactor brings shall share the write
            self._busy = True
            self._reactor.callLater(0, self._hand_over)
        if self._deadline is None:
            self._deadline = self._reactor.callLater(self._settings.deadline_s, self._expire)

    def _hand_over(self) -> None:
        written: list[Job] = []
        leaves: list[bytes] = []
        for job in self._queue.take(self._settings.batch):
            try:
                leaves.append(self._leaf(job.entry))
                written.append(job)
            except RonError as error:
                job.fail(error)
        if not leaves:
            self._after()
            return
        outcome = self._thread.run(self._shelf.append, leaves)
        outcome.addCallbacks(lambda _none: self._written(written, leaves), self._not_written)
        outcome.addErrback(self._unexpected).addBoth(lambda _none: self._after())

    def _leaf(self, entry: AuditEntry) -> bytes:
        key = key_of(entry)
        try:
            return encode(numbered(entry, self._seqs.next(key)))
        except RonError:
            # an entry that is none leaves no gap
            self._seqs.take_back(key)
            raise

    def _written(self, jobs: list[Job], leaves: list[bytes]) -> None:
        first = self._tiles.size
        self._seqs.commit()
        for leaf in leaves:
            self._tiles.append(leaf_hash(leaf))
        self._meters.appended(len(leaves), "ok")
        for index, job in enumerate(jobs, first):
            self._said.note(job.entry)
            job.settle(index)
        self._tell(first, leaves)
        if first // WIDTH != self._tiles.size // WIDTH:
            self._thread.run(self._shelf.flush_tiles).addErrback(self._unexpected)
        self._checkpointer.grown(self._tiles.size)

    def _tell(self, first: int, leaves: list[bytes]) -> None:
        for watcher in self._watchers:
            try:
                watcher(first, leaves)
            except Exception:  # noqa: BLE001 - a watcher's mistake is no doubt about the log
                _log.failure("watching the audit log", event="audit_watcher_failed")

    def _not_written(self, failure: Failure) -> None:
        self._seqs.rollback()
        error = unavailable(f"the audit log cannot be written: {failure.value}", hint="is its disk full?")
        if not self._disk_failed:
            _log.error("the audit log cannot be written: {why}", event="audit_disk_failed", why=str(failure.value))
        # before anybody is told: who tries again at once is refused
        self._disk_failed = True
        self._meters.appended(self._queue.fail_all(error), "err")
        self._try_later()

    def _after(self) -> None:
        self._queue.done()
        self._meters.depth(len(self._queue))
        self._busy = False
        if len(self._queue):
            self._begin()
            return
        for drained in self._drained:
            drained.callback(None)
        self._drained.clear()

    def _unexpected(self, failure: Failure) -> None:
        _log.failure("after a write of the audit log", failure, event="audit_failed")
        self._breaks("the log is not as its own books say")

    def _expire(self) -> None:
        """Tell those who have waited too long, and look again when the next one will have."""
        self._deadline = None
        limit_s = self._settings.deadline_s
        late = self._queue.expire(self._reactor.seconds() - limit_s, unavailable("the audit log's disk is too slow"))
        if late:
            self._meters.appended(late, "err")
            self._meters.late("audit_append")
        oldest_s = self._queue.oldest_s()
        if oldest_s is not None and self._deadline is None:
            wait_s = max(0.001, oldest_s + limit_s - self._reactor.seconds())
            self._deadline = self._reactor.callLater(wait_s, self._expire)

    # Trouble

    def alarm(self, why: str) -> None:
        """Something that its records tell of is not what they say, for its owner to act on: counted like its own."""
        self._meters.broken()
        _log.critical("the audit log is contradicted: {why}", event="audit_integrity_failed", why=why)

    def _refused(self) -> RonError | None:
        if self._refusal is not None:
            return self._refusal
        if self._broken is not None:
            return unavailable(f"the audit log is broken: {self._broken}", hint="docs/kms/audit.rst says what to do")
        return unavailable("the audit log's disk takes nothing", hint="is it full?") if self._disk_failed else None

    def _breaks(self, why: str) -> None:
        if self._broken is None:
            self._broken = why
            self._meters.broken()
            _log.critical("the audit log is broken: {why}", event="audit_integrity_failed", why=why)
            self._queue.fail_all(unavailable("the audit log is broken"))
        self._checkpointer.pause()

    def _try_later(self) -> None:
        if self._retry is None and not self._stopping:
            self._retry = self._reactor.callLater(self._settings.retry_s, self._try)

    def _try(self) -> None:
        def well(_none: None) -> None:
            self._disk_failed = False
            _log.info("the audit log can be written again", event="audit_disk_recovered")

        self._retry = None
        self._thread.run(self._shelf.probe).addCallbacks(well, lambda _failure: self._try_later())

    def _cancel_timers(self) -> None:
        for call in (self._deadline, self._retry):
            if call is not None and call.active():
                call.cancel()

    def _recover(self, progress: Progress) -> Recovered:
        def tell(done: int, of: int) -> None:
            self._reactor.callFromThread(progress, done, of)

        self._shelf.open()
        return recover(self._shelf, self._settings.origin, self._checkpointer.keys, tell)
