"""Every record also goes to an audit service elsewhere, at once (K-G5): what is taken from this disk is still there.

In: the log, which tells of each write; a sender. Out: batches in order, each at least once, and how far it got, which
is on disk. What was not sent stays in the log and nowhere else, so that nothing piles up while nobody listens.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta
from prometheus_client import Counter, Gauge
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.kernel import Metrics
from ron.kernel.aio import occurred, within
from ron.kernel.backoff import Backoff
from ron.kernel.files import write_private
from ron.proto.errors import RonError
from ron.services.kms.audit.log import Watcher
from ron.services.kms.audit.thread import DiskThread

BATCH = 500
# What one turn of many operations brings shall go as one; the promise is a second.
GATHER_S = 0.05
DEADLINE_S = 5.0
# A JSON batch to where it goes. Raises `RonError` unless it was taken.
Send = Callable[[bytes], Awaitable[None]]
_log = Logger(namespace="ron.kms.audit")


class Readable(Protocol):
    """What it needs of the log."""

    @property
    def size(self) -> int:
        """Records on disk."""

    def entries(self, start: int, count: int) -> Sequence[bytes]:
        """Leaves, at most so many."""

    def watch(self, watcher: Watcher) -> None:
        """Be told of each write."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent. origin: the log's name. start: index of the first; a receiver that has it already may pass over it.
    entries: leaves as they are hashed, base64. size: of the log."""

    origin: str
    start: int
    size: int
    entries: list[str]


class _Cursor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    origin: str
    sent: Annotated[int, Meta(ge=0)]


class Exporter:
    """Of one log. path: where it keeps how far it got, None under amnesia. Use from the reactor's thread."""

    def __init__(
        self, reactor: Any, log: Readable, origin: str, send: Send, *, path: Path | None, metrics: Metrics
    ) -> None:
        registry = metrics.registry
        self._sent_total = Counter("kms_audit_exported_total", "Audit records sent on", ["result"], registry=registry)
        self._lag = Gauge("kms_audit_export_lag_records", "Audit records not sent on yet", registry=registry)
        self._lag_s = Gauge("kms_audit_export_lag_seconds", "Since when there are some", registry=registry)
        self._reactor = reactor
        self._log = log
        self._origin = origin
        self._send = send
        self._path = path
        self._thread = DiskThread(reactor, "kms-export")
        self._backoff = Backoff(base_s=0.2, ceiling_s=30.0)
        self._sent = 0
        self._behind_since_s: float | None = None
        self._timer: IDelayedCall | None = None
        self._work: Deferred[None] | None = None
        self._failing = self._stopped = False
        self._noting = False
        self._noted = 0
        self._lag_s.set_function(lambda: self.behind_s)

    @property
    def behind_s(self) -> float:
        """Since when there are records that were not sent on; 0 while there are none."""
        since_s = self._behind_since_s
        return 0.0 if since_s is None else max(0.0, self._reactor.seconds() - since_s)

    @property
    def sent(self) -> int:
        """So many of the log's records were taken."""
        return self._sent

    async def start(self) -> None:
        """Go on from where it stopped. Raises OSError where that cannot be read."""
        self._thread.start()
        self._sent = self._noted = await self._thread.run(self._read)
        if self._sent > self._log.size:
            # the log says itself that its end is missing; whoever has it is asked to compare
            _log.error("more was sent on than the log has", event="audit_export_ahead", sent=self._sent)
            self._sent = 0
        self._log.watch(lambda _first, _leaves: self._grown())
        self._grown()

    async def stop(self) -> None:
        """Send no more. More than once is not fine."""
        self._stopped = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._work is not None:
            work = self._work
            work.cancel()
            await occurred(work)
        # what is still being written, and what came after that
        while self._noting:
            await self._thread.run(lambda: None)
        await self._thread.stop()

    def _grown(self) -> None:
        behind = self._log.size - self._sent
        self._lag.set(behind)
        if behind and self._behind_since_s is None:
            self._behind_since_s = self._reactor.seconds()
        if behind and self._work is None and (self._timer is None or not self._timer.active()):
            self._later(GATHER_S)

    def _later(self, delay_s: float) -> None:
        if not self._stopped:
            self._timer = self._reactor.callLater(delay_s, self._begin)

    def _begin(self) -> None:
        work = self._work = Deferred.fromCoroutine(self._all())
        if work.called:
            self._work = None
        else:
            work.addBoth(self._over)
        work.addErrback(self._broke)

    def _over(self, outcome: Any) -> Any:
        self._work = None
        return outcome

    def _broke(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        if not failure.check(RonError, OSError, DeadlineError):
            _log.failure("sending audit records on", failure, event="audit_export_broken")
        self._sent_total.labels("err").inc()
        if not self._failing:
            why = failure.getErrorMessage() or "no answer in time"
            _log.warn("audit records are not taken: {why}", event="audit_export_failed", why=why)
        self._failing = True
        self._later(self._backoff.next_delay_s())

    async def _all(self) -> None:
        while self._sent < self._log.size and not self._stopped:
            await self._batch()
        self._behind_since_s = None

    async def _batch(self) -> None:
        start, began_s = self._sent, self._reactor.seconds()
        leaves = self._log.entries(start, BATCH)
        body = Batch(
            origin=self._origin,
            start=start,
            size=self._log.size,
            entries=[base64.b64encode(leaf).decode() for leaf in leaves],
        )

        async def sending() -> None:
            await self._send(msgspec.json.encode(body))

        await within(self._reactor, DEADLINE_S, sending())
        self._sent = start + len(leaves)
        self._behind_since_s = began_s
        self._lag.set(self._log.size - self._sent)
        self._sent_total.labels("ok").inc(len(leaves))
        self._backoff.reset()
        if self._failing:
            self._failing = False
            _log.info("audit records are taken again", event="audit_export_recovered")
        self._note()

    def _note(self) -> None:
        """Write down how far it got, while the next batch is on its way: a crash sends again what was taken since, and
        nothing not at all."""
        if self._noting or self._noted == self._sent:
            return
        self._noting, noted = True, self._sent

        def written(outcome: Any) -> None:
            self._noting = False
            if isinstance(outcome, Failure):
                _log.warn("how far records were sent: {why}", event="audit_aside_failed", why=str(outcome.value))
                return
            self._noted = noted
            self._note()

        self._thread.run(self._write, noted).addBoth(written)

    def _read(self) -> int:
        if self._path is None:
            return 0
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=_Cursor)
        except FileNotFoundError:
            return 0
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            _log.error("how far audit records were sent on is not readable: from the first", event="audit_export_lost")
            return 0
        return found.sent if found.origin == self._origin else 0

    def _write(self, sent: int) -> None:
        if self._path is not None:
            write_private(self._path, msgspec.json.encode(_Cursor(origin=self._origin, sent=sent)))
