"""The mailbox's life: it opens and closes its store, lets receivers wait, watches leases end, sweeps, and counts.

In: `send`, `recv`, `ack` with plain values, on the reactor thread. Out: their outcomes once they are durable, or a
`RonError`. The HTTP face is api.py, the rules are model.py, the table is store.py.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ron.kernel import HealthState, Metrics
from ron.proto.errors import RonError, unavailable
from ron.services.mailbox import model
from ron.services.mailbox.config import MailboxConfig
from ron.services.mailbox.entropy import Entropy
from ron.services.mailbox.metrics import MailboxMetrics
from ron.services.mailbox.model import (
    MSG_ID_ENTROPY_BYTES,
    RECEIPT_BYTES,
    Acked,
    Ask,
    Delivery,
    MailboxStats,
    NewMessage,
    Sent,
)
from ron.services.mailbox.store import Leased, MailboxStore, Settled
from ron.services.mailbox.waiting import MailboxReactor, WaitingRoom
from ron.store import BatchReport

HEALTH_KEY = "mailbox.store"
SWEEP_S = 1.0
# Wall clock and reactor clock may disagree by a little: an alarm that rings early must not ring in a tight loop.
MIN_ALARM_S = 0.005
_log = Logger(namespace="ron.mailbox")


class MailboxService(MultiService):
    """Store and forward of opaque messages, at least once.

    path: the database, None for memory only (amnesia). now: Unix seconds; it may step, see docs/mailbox.rst.
    random_bytes: where receipts come from. Usable between `startService` and `stopService`; may be started again.
    """

    def __init__(
        self,
        config: MailboxConfig,
        *,
        path: Path | None,
        reactor: MailboxReactor,
        health: HealthState,
        metrics: Metrics,
        now: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        super().__init__()
        self.setName("mailbox")
        self._config = config
        self._path = path
        self._reactor = reactor
        self._health = health
        self._now = now
        self._entropy = Entropy(random_bytes)
        self._visibility_s = config.visibility_timeout_ms / 1000
        self._waiting = WaitingRoom(reactor, limit=config.max_waiters, topic_limit=config.topic_max_waiters)
        self._store = self._new_store()
        self._sweeping = LoopingCall(self._sweep)
        self._sweeping.clock = cast(IReactorTime, reactor)
        self._alive = False
        self._opening: RonError | None = None
        self._opened_waiters: list[Deferred[None]] | None = []
        self._metrics = MailboxMetrics(metrics, self.stats)

    # Life

    def startService(self) -> None:
        """Begin to open the store; calls are taken from now on and wait for it."""
        super().startService()
        self._health.missing(HEALTH_KEY, "the mailbox's store is being opened")
        self._opened_waiters, self._opening, self._alive = [], None, False
        self._store = self._new_store()
        self._store.start().addCallbacks(self._opened, self._not_opened)

    def stopService(self) -> Deferred[Any]:
        """Send waiting receivers home with nothing, finish what is queued, close the store."""
        self._health.missing(HEALTH_KEY, "the mailbox is stopping")
        if self._sweeping.running:
            self._sweeping.stop()
        self._waiting.close()
        super().stopService()
        return self._store.stop()

    async def opened(self) -> None:
        """Return when the store is open. Raises `RonError` when it cannot be opened."""
        if self._opened_waiters is not None:
            waiter: Deferred[None] = Deferred()
            self._opened_waiters.append(waiter)
            await waiter
        if self._opening is not None:
            raise self._opening

    # Calls

    async def send(
        self, topic: str, payload: bytes, *, idempotency_key: str | None = None, priority: str | None = None
    ) -> Sent:
        """Store `payload` for `topic`; it is on disk when this returns. priority: None is the configured default.

        Raises `RonError`: 400 malformed, 409 the key means another message, 413 too large, 429 full, 503 disk.
        After a 503 the message may or may not be there: send again with the same key.
        """
        now_ms = self._now_ms()
        new = NewMessage(
            model.make_msg_id(now_ms, self._entropy.take(MSG_ID_ENTROPY_BYTES)),
            model.check_topic(topic),
            model.parse_priority(self._config.qos_default if priority is None else priority),
            model.check_payload(payload),
            model.check_key(idempotency_key),
            now_ms,
        )
        try:
            return await self._store.send(new, then=lambda sent, _abandoned: self._sent(topic, sent))
        except RonError as error:
            self._metrics.count_conflict(error)
            raise

    async def recv(
        self,
        topic: str,
        *,
        max_messages: int = 1,
        visibility_timeout_s: float | None = None,
        wait_s: float = 0.0,
    ) -> list[Delivery]:
        """Lease up to `max_messages`; with `wait_s` wait that long for the first. The leases are on disk.

        Cancelled while it waits, nothing is leased; cancelled later, the leases are given back at once.
        Raises `RonError`: 400 malformed, 429 too many receivers wait already, 503 disk.
        """
        visibility_s = self._visibility_s if visibility_timeout_s is None else visibility_timeout_s
        ask = model.make_ask(topic, max_messages, visibility_s)
        model.check_wait(wait_s)
        deadline = self._reactor.seconds() + wait_s
        leased = await self._lease(ask)
        if wait_s > 0 and not leased.deliveries:
            leased = await self._wait_and_lease(ask, leased, deadline)
        return leased.deliveries

    async def ack(self, msg_id: str, receipt: str, *, may: Callable[[str], bool] = lambda _topic: True) -> Acked:
        """The message was received: forget it. may: is the caller allowed that topic? Runs on the writer thread.

        Raises `RonError`: 404 unknown or not allowed, 409 the receipt is not that of the latest delivery, 503 disk.
        """
        key = model.parse_msg_id(msg_id)
        try:
            settled = await self._store.ack(key, receipt, may=may, now_ms=self._now_ms(), then=self._settled)
        except RonError as error:
            self._metrics.count_conflict(error)
            raise
        return settled.acked

    def stats(self) -> MailboxStats:
        """What the mailbox holds at present."""
        usage = self._store.usage
        total, leased = usage.total.messages, usage.total.leased
        return MailboxStats(
            ready=total - leased,
            inflight=leased,
            total=total,
            bytes=usage.total.bytes,
            topics=len(usage.topics),
            keys=usage.keys,
            waiting=len(self._waiting),
        )

    # Waiting for a message

    def _lease(self, ask: Ask) -> Deferred[Leased]:
        tokens = self._entropy.take(RECEIPT_BYTES * ask.limit)
        return self._store.recv(ask, now_ms=self._now_ms(), tokens=tokens, then=self._leased)

    async def _wait_and_lease(self, ask: Ask, leased: Leased, deadline: float) -> Leased:
        robbed = False
        with self._waiting.seat(ask.topic):
            while not leased.deliveries and (left_s := deadline - self._reactor.seconds()) > 0:
                self._watch(leased)
                if not await self._waiting.sleep(ask.topic, left_s, in_front=robbed):
                    break
                robbed = True
                try:
                    leased = await self._lease(ask)
                except BaseException:
                    # it was woken for a message that is still there: the next one's turn, outside of this stack
                    self._reactor.callLater(0, self._waiting.wake, ask.topic)
                    raise
        return leased

    def _watch(self, leased: Leased) -> None:
        """Wake a receiver of the topic when its next lease ends, and remember what else it waits for."""
        if leased.next_due_ms is not None:
            delay_s = (leased.next_due_ms - self._now_ms()) / 1000
            self._waiting.alarm(leased.topic, min(max(delay_s, MIN_ALARM_S), model.MAX_VISIBILITY_S))
        if leased.capped:
            self._waiting.capped.add(leased.topic)

    # What happens once an operation is durable, whether or not its caller is still there

    def _sent(self, topic: str, sent: Sent) -> None:
        if sent.duplicate:
            self._metrics.send_duplicates += 1
        else:
            self._metrics.sends += 1
            self._waiting.wake(topic)

    def _leased(self, leased: Leased, abandoned: bool) -> None:
        self._metrics.expirations += leased.expired
        if leased.topic in self._waiting:
            self._watch(leased)
            if leased.deliveries and leased.more:
                self._waiting.wake(leased.topic)
        if abandoned:
            self._give_back(leased)
        else:
            self._metrics.count_deliveries(leased.deliveries)

    def _settled(self, settled: Settled, _abandoned: bool) -> None:
        if settled.acked.duplicate:
            self._metrics.ack_duplicates += 1
        else:
            self._metrics.acks += 1
        if settled.topic in self._waiting.capped:
            self._waiting.capped.discard(settled.topic)
            self._waiting.wake(settled.topic)

    def _give_back(self, leased: Leased) -> None:
        """The receiver went away after its messages were leased: they are ready again, as if nothing had happened."""
        if not leased.deliveries:
            return
        try:
            released = self._store.release(
                leased, now_ms=self._now_ms(), then=lambda _count, _abandoned: self._waiting.wake(leased.topic)
            )
        except RonError:
            return  # the queue is full or the store stops: the leases end by themselves
        released.addErrback(lambda failure: failure.trap(RonError))

    # The store's state

    def _new_store(self) -> MailboxStore:
        return MailboxStore(self._config, self._path, reactor=self._reactor, observe=self._batch_done)

    def _opened(self, _none: None) -> None:
        if self.running:
            self._alive = True
            self._health.ok(HEALTH_KEY)
            sweeping = self._sweeping.start(SWEEP_S, now=False)
            sweeping.addErrback(lambda failure: _log.failure("sweeping ended", failure, event="sweep_failed"))
        self._tell_opened()

    def _not_opened(self, failure: Any) -> None:
        error = (
            failure.value if isinstance(failure.value, RonError) else unavailable("the mailbox's store did not open")
        )
        self._opening = error
        self._health.missing(HEALTH_KEY, f"{error.message}: {error.hint}" if error.hint else error.message)
        _log.error(
            "the mailbox's store did not open: {why}", why=error.message, path=str(self._path), event="store_down"
        )
        self._tell_opened()

    def _tell_opened(self) -> None:
        waiters, self._opened_waiters = self._opened_waiters or [], None
        for waiter in waiters:
            waiter.callback(None)

    def _batch_done(self, report: BatchReport) -> None:
        self._metrics.count_batch(report)
        if report.trouble is not None:
            self._in_trouble(report.trouble, lost=report.lost)

    def _in_trouble(self, error: RonError, *, lost: bool) -> None:
        if self._alive:
            _log.error("the mailbox's store refused: {why}", why=error.message, event="store_trouble")
        self._alive = False
        if lost:
            self._health.missing(HEALTH_KEY, error.message)
        else:
            self._health.degraded(HEALTH_KEY, error.message)

    def _out_of_trouble(self) -> None:
        """Only a probe gets us here: with a full disk some writes succeed all the time, and health would flutter."""
        if self.running:
            self._alive = True
            self._health.ok(HEALTH_KEY)
            _log.info("the mailbox's store takes writes again", event="store_up")

    def _sweep(self) -> Deferred[None]:
        return ensureDeferred(self._sweep_all())

    async def _sweep_all(self) -> None:
        try:
            if not self._alive:
                await self._store.probe(self._entropy.take(16))
                self._out_of_trouble()
            more = True
            while more and self.running:
                swept = await self._store.sweep(now_ms=self._now_ms())
                self._metrics.expirations += swept.expired
                more = swept.more
        except RonError:
            return  # told by health and counted already; the next round tries again

    def _now_ms(self) -> int:
        return int(self._now() * 1000)
