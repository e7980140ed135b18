"""What the mailbox remembers: one table, `message`, and each thing done to it as one operation of one transaction.

In: a checked request and the present Unix milliseconds. Out: the outcome, once it is durable. `Tables` holds the SQL
and runs on the writer thread; `MailboxStore` is its face on the reactor thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
from blake3 import blake3
from twisted.internet.defer import Deferred

from ron.services.mailbox.config import MailboxConfig
from ron.services.mailbox.model import (
    MAX_BATCH_BYTES,
    MAX_VISIBILITY_S,
    NO_RECEIPT,
    RECEIPT_BYTES,
    Acked,
    AckVerdict,
    Ask,
    Delivery,
    NewMessage,
    Sent,
    State,
    Usage,
    format_msg_id,
    judge_ack,
    judge_resend,
    stale_receipt,
    unknown_message,
)
from ron.store import BatchReport, GroupCommit, schema_of
from ron.store.sqlite import CallsFromThread

T = TypeVar("T")

# Work per sweep; a full one is followed by another at once, with other people's operations in between.
SWEEP_ROWS = 500
SWEEP_TOPICS = 100
PROBE_BYTES = 16 * 1024
MAX_VISIBILITY_MS = int(MAX_VISIBILITY_S * 1000)

INSERT = (
    "INSERT INTO message (msg_id, topic, priority, state, due_ms, attempt, receipt, size, idem_key, digest, payload)"
    " VALUES (?, ?, ?, 0, ?, 0, ?, ?, ?, ?, ?)"
)
FIND_BY_KEY = "SELECT msg_id, digest, priority FROM message WHERE topic = ? AND idem_key = ?"
FIND_BY_ID = "SELECT seq, topic, state, receipt, size, idem_key IS NOT NULL FROM message WHERE msg_id = ?"
NEXT_DUE = "SELECT due_ms FROM message WHERE state = 1 AND topic = ? ORDER BY due_ms LIMIT 1"
TAKE = (
    "SELECT seq, msg_id, attempt, size, payload FROM message WHERE state = 0 AND topic = ?"
    " ORDER BY priority DESC, seq LIMIT ?"
)
LEASE = "UPDATE message SET state = 1, due_ms = ?, attempt = ?, receipt = ? WHERE seq = ?"
EXPIRE = "UPDATE message SET state = 0 WHERE state = 1 AND topic = ? AND due_ms <= ?"
SHORTEN = "UPDATE message SET due_ms = ? WHERE state = 1 AND topic = ? AND due_ms > ?"
RELEASE = (
    "UPDATE message SET state = 0, due_ms = ?, attempt = attempt - 1, receipt = ?"
    " WHERE msg_id = ? AND state = 1 AND receipt = ?"
)
SETTLE = "UPDATE message SET state = 2, due_ms = ?, payload = NULL WHERE seq = ?"
FORGET = (
    "DELETE FROM message WHERE seq IN (SELECT seq FROM message"
    " WHERE state = 2 AND idem_key IS NULL AND due_ms <= ? ORDER BY due_ms LIMIT ?)"
)
FORGET_KEYED = (
    "DELETE FROM message WHERE seq IN (SELECT seq FROM message"
    " WHERE state = 2 AND idem_key IS NOT NULL AND due_ms <= ? ORDER BY due_ms LIMIT ?)"
)
COUNT_READY = "SELECT topic, count(*), sum(size), count(idem_key) FROM message WHERE state = 0 GROUP BY topic"
COUNT_LEASED = "SELECT topic, count(*), sum(size), count(idem_key) FROM message WHERE state = 1 GROUP BY topic"
COUNT_ACKED = "SELECT count(*) FROM message WHERE state = 2 AND idem_key IS NULL"
COUNT_ACKED_KEYED = "SELECT count(*) FROM message WHERE state = 2 AND idem_key IS NOT NULL"
FOREVER_MS = 2**62


class Leased(msgspec.Struct, frozen=True, gc=False):
    """Outcome of a recv.

    more: there may be further ready messages of the topic. capped: as many are leased as may be, so that only an ack
    or a lease's end helps. next_due_ms: when the topic's next lease ends, None without leases. expired: leases of the
    topic that were found to have ended.
    """

    topic: str
    deliveries: list[Delivery]
    more: bool
    capped: bool
    next_due_ms: int | None
    expired: int


class Settled(msgspec.Struct, frozen=True, gc=False):
    """Outcome of an ack, with the topic for whoever waits there."""

    topic: str
    acked: Acked


class Swept(msgspec.Struct, frozen=True, gc=False):
    """Outcome of a sweep. forgotten: tombstones. expired: leases. more: there is more to forget right away."""

    forgotten: int
    expired: int
    more: bool


class Tables:
    """The SQL of the mailbox. Each public method is an operation: it runs whole or not at all, on the writer thread.

    A refusal is a `RonError`; the engine undoes what the operation had changed, in the table and in `usage`.
    """

    def __init__(self, config: MailboxConfig) -> None:
        self._config = config
        self.usage = Usage(config)
        self._swept_topic = ""

    def opened(self, connection: sqlite3.Connection) -> None:
        """Count what is there."""
        usage = self.usage = Usage(self._config)
        for topic, messages, size, keys in connection.execute(COUNT_READY):
            usage.change(topic, messages=messages, size=size, keys=keys)
        for topic, messages, size, keys in connection.execute(COUNT_LEASED):
            usage.change(topic, messages=messages, size=size, leased=messages, keys=keys)
        (remembered,) = connection.execute(COUNT_ACKED).fetchone()
        (keys,) = connection.execute(COUNT_ACKED_KEYED).fetchone()
        usage.change("", keys=keys, remembered=remembered)
        usage.keep()

    def begins(self) -> None:
        """An operation begins."""
        self.usage.mark()

    def failed(self) -> None:
        """The operation that began is undone."""
        self.usage.undo_step()

    def committed(self) -> None:
        """The operations since the last commit are durable."""
        self.usage.keep()

    def rolled_back(self) -> None:
        """The operations since the last commit never happened."""
        self.usage.undo()

    def send(self, new: NewMessage, connection: sqlite3.Connection) -> Sent:
        """Store `new`, or say which message its idempotency key already means (409 when that is another one)."""
        digest = None
        if new.idempotency_key is not None:
            digest = blake3(new.payload).digest()
            known = connection.execute(FIND_BY_KEY, (new.topic, new.idempotency_key)).fetchone()
            if known is not None:
                judge_resend((known[1], known[2]), (digest, new.priority))
                return Sent(format_msg_id(known[0]), duplicate=True)
        size, keyed = len(new.payload), digest is not None
        self.usage.admit(new.topic, size, keyed=keyed)
        row = (
            new.msg_id,
            new.topic,
            int(new.priority),
            new.now_ms,
            NO_RECEIPT,
            size,
            new.idempotency_key,
            digest,
            new.payload,
        )
        connection.execute(INSERT, row)
        self.usage.change(new.topic, messages=1, size=size, keys=int(keyed))
        return Sent(format_msg_id(new.msg_id), duplicate=False)

    def recv(self, ask: Ask, now_ms: int, tokens: bytes, connection: sqlite3.Connection) -> Leased:
        """Lease what `ask` wants. tokens: `RECEIPT_BYTES` random bytes for each message it may get."""
        topic = ask.topic
        next_due_ms, expired = self._expire(topic, now_ms, connection)
        capacity = self.usage.capacity(topic)
        limit = min(ask.limit, capacity)
        if limit <= 0:
            return Leased(topic, [], False, capacity <= 0 and next_due_ms is not None, next_due_ms, expired)
        rows, more = _within_bytes(connection.execute(TAKE, (topic, limit)))
        if not rows:
            return Leased(topic, [], False, False, next_due_ms, expired)
        due_ms = now_ms + ask.visibility_ms
        deliveries = []
        for at, (seq, msg_id, attempt, _size, payload) in enumerate(rows):
            receipt = tokens[at * RECEIPT_BYTES : (at + 1) * RECEIPT_BYTES]
            connection.execute(LEASE, (due_ms, attempt + 1, receipt, seq))
            deliveries.append(Delivery(format_msg_id(msg_id), payload, attempt + 1, receipt.hex()))
        self.usage.change(topic, leased=len(rows))
        next_due_ms = due_ms if next_due_ms is None else min(due_ms, next_due_ms)
        return Leased(topic, deliveries, more or len(rows) == limit, capacity == len(rows), next_due_ms, expired)

    def ack(
        self, msg_id: bytes, receipt: str, may: Callable[[str], bool], now_ms: int, connection: sqlite3.Connection
    ) -> Settled:
        """Take the payload away and leave a tombstone. 404 when unknown or `may(topic)` is false, 409 when stale."""
        row = connection.execute(FIND_BY_ID, (msg_id,)).fetchone()
        if row is None or not may(row[1]):
            raise unknown_message()
        seq, topic, state, held_receipt, size, keyed = row
        verdict = judge_ack(State(state), held_receipt, receipt)
        if verdict is AckVerdict.STALE:
            raise stale_receipt()
        if verdict is AckVerdict.DUPLICATE:
            return Settled(topic, Acked(duplicate=True))
        window_s = self._config.idempotency_window_s if keyed else self._config.ack_window_s
        connection.execute(SETTLE, (now_ms + window_s * 1000, seq))
        leased = -1 if state == State.LEASED else 0
        self.usage.change(topic, messages=-1, size=-size, leased=leased, remembered=0 if keyed else 1)
        return Settled(topic, Acked(duplicate=False))

    def release(self, leases: Leased, now_ms: int, connection: sqlite3.Connection) -> int:
        """Undo `leases`, which never reached their receiver: ready again, and the attempt does not count."""
        released = 0
        for delivery in leases.deliveries:
            msg_id, receipt = bytes.fromhex(delivery.msg_id.replace("-", "")), bytes.fromhex(delivery.receipt)
            released += connection.execute(RELEASE, (now_ms, NO_RECEIPT, msg_id, receipt)).rowcount
        self.usage.change(leases.topic, leased=-released)
        return released

    def sweep(self, now_ms: int, connection: sqlite3.Connection) -> Swept:
        """Forget old tombstones and end old leases where nobody asks, a bounded number of each."""
        forgotten = connection.execute(FORGET, (now_ms, SWEEP_ROWS)).rowcount
        surplus = self.usage.remembered - forgotten - self._config.max_remembered_acks
        if surplus > 0 and forgotten < SWEEP_ROWS:
            forgotten += connection.execute(FORGET, (FOREVER_MS, min(surplus, SWEEP_ROWS - forgotten))).rowcount
        keyed = connection.execute(FORGET_KEYED, (now_ms, SWEEP_ROWS)).rowcount
        self.usage.change("", keys=-keyed, remembered=-forgotten)
        expired = sum(self._expire(topic, now_ms, connection)[1] for topic in self._topics_to_sweep())
        return Swept(forgotten + keyed, expired, more=SWEEP_ROWS in (forgotten, keyed))

    def probe(self, msg_id: bytes, connection: sqlite3.Connection) -> None:
        """Write something and take it back: does the disk take it again?"""
        row = (msg_id, "", 0, 0, NO_RECEIPT, 0, None, None, bytes(PROBE_BYTES))
        connection.execute(INSERT, row)
        connection.execute("DELETE FROM message WHERE msg_id = ?", (msg_id,))

    def _expire(self, topic: str, now_ms: int, connection: sqlite3.Connection) -> tuple[int | None, int]:
        """End the topic's leases that are over: (when the next one ends, how many ended)."""
        mine = self.usage.topics.get(topic)
        if mine is None or mine.leased == 0:
            return None, 0
        due_ms = _next_due_ms(topic, connection)
        if due_ms is None or now_ms < due_ms <= now_ms + MAX_VISIBILITY_MS:
            return due_ms, 0
        # no lease is longer than that: the clock was set back, and without this they would wait until it has caught up
        horizon_ms = now_ms + MAX_VISIBILITY_MS
        connection.execute(SHORTEN, (horizon_ms, topic, horizon_ms))
        expired = connection.execute(EXPIRE, (topic, now_ms)).rowcount
        self.usage.change(topic, leased=-expired)
        return _next_due_ms(topic, connection), expired

    def _topics_to_sweep(self) -> list[str]:
        """The next few topics with leases, in turn."""
        leased = sorted(topic for topic, tally in self.usage.topics.items() if tally.leased)
        turn = [t for t in leased if t > self._swept_topic][:SWEEP_TOPICS]
        self._swept_topic = turn[-1] if len(turn) == SWEEP_TOPICS else ""
        return turn


def _within_bytes(rows: sqlite3.Cursor) -> tuple[list[tuple[int, bytes, int, int, bytes]], bool]:
    """The first of `rows` whose payloads fit into one answer, at least one; and whether some were left."""
    taken: list[tuple[int, bytes, int, int, bytes]] = []
    size = 0
    for row in rows:
        size += row[3]
        if taken and size > MAX_BATCH_BYTES:
            rows.close()
            return taken, True
        taken.append(row)
    return taken, False


def _next_due_ms(topic: str, connection: sqlite3.Connection) -> int | None:
    row = connection.execute(NEXT_DUE, (topic,)).fetchone()
    return None if row is None else row[0]


class MailboxStore:
    """The mailbox's database behind its group commit.

    Every method raises or fails with `RonError`: `StoreUnavailable` when the disk refuses, `Backpressure` when too much
    waits. `then` is called as soon as the operation is durable, with whether the caller has given up meanwhile.
    """

    def __init__(
        self,
        config: MailboxConfig,
        path: Path | None,
        *,
        reactor: CallsFromThread,
        observe: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self._tables = Tables(config)
        self._engine = GroupCommit(
            path,
            schema_of("ron.services.mailbox"),
            reactor=reactor,
            name="mailbox",
            mirror=self._tables,
            observe=observe,
        )

    @property
    def usage(self) -> Usage:
        """What is held, read-only here; it may be an operation ahead of what is durable."""
        return self._tables.usage

    def start(self) -> Deferred[None]:
        """Open; fails with `RonError` when the database cannot be used."""
        return self._engine.start()

    def stop(self) -> Deferred[None]:
        """Finish what is queued and close."""
        return self._engine.stop()

    def send(self, new: NewMessage, *, then: Callable[[Sent, bool], None]) -> Deferred[Sent]:
        """See `Tables.send`."""
        return self._engine.submit(partial(self._tables.send, new), then=then, weight=len(new.payload))

    def recv(self, ask: Ask, *, now_ms: int, tokens: bytes, then: Callable[[Leased, bool], None]) -> Deferred[Leased]:
        """See `Tables.recv`."""
        weight = min(ask.limit * self.usage.mean_size(ask.topic), MAX_BATCH_BYTES)
        return self._engine.submit(partial(self._tables.recv, ask, now_ms, tokens), then=then, weight=weight)

    def ack(
        self,
        msg_id: bytes,
        receipt: str,
        *,
        may: Callable[[str], bool],
        now_ms: int,
        then: Callable[[Settled, bool], None],
    ) -> Deferred[Settled]:
        """See `Tables.ack`."""
        return self._engine.submit(partial(self._tables.ack, msg_id, receipt, may, now_ms), then=then)

    def release(self, leases: Leased, *, now_ms: int, then: Callable[[int, bool], None]) -> Deferred[int]:
        """See `Tables.release`."""
        return self._engine.submit(partial(self._tables.release, leases, now_ms), then=then)

    def sweep(self, *, now_ms: int) -> Deferred[Swept]:
        """See `Tables.sweep`."""
        return self._engine.submit(partial(self._tables.sweep, now_ms))

    def probe(self, msg_id: bytes) -> Deferred[None]:
        """See `Tables.probe`."""
        return self._engine.submit(partial(self._tables.probe, msg_id))
