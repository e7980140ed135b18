"""The mailbox's table against a plain model of it, and its queries against their indices."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest import TestCase

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ron.proto.errors import ErrorCode, RonError
from ron.services.mailbox import store as sql
from ron.services.mailbox.config import MailboxConfig
from ron.services.mailbox.model import (
    MAX_BATCH_BYTES,
    MAX_PAYLOAD_BYTES,
    RECEIPT_BYTES,
    Acked,
    Ask,
    Delivery,
    NewMessage,
    Priority,
    Sent,
    format_msg_id,
    parse_msg_id,
)
from ron.services.mailbox.store import Leased, Tables
from ron.store import open_database, schema_of

T = TypeVar("T")
START_MS = 1_700_000_000_000
SCHEMA = schema_of("ron.services.mailbox")
HOUR_MS = 3_600_000


class Driver:
    """Runs operations as the writer thread does, one transaction each, and can be restarted."""

    def __init__(self, path: Path | None, config: MailboxConfig) -> None:
        self._path = path
        self._config = config
        self.now_ms = START_MS
        self.open()

    def open(self) -> None:
        self.connection = open_database(self._path, SCHEMA)
        self.tables = Tables(self._config)
        self.tables.opened(self.connection)

    def restart(self) -> None:
        self.connection.close()
        self.open()

    def run(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        self.connection.execute("BEGIN")
        self.tables.begins()
        try:
            result = operation(self.connection)
        except BaseException:
            self.tables.failed()
            self.connection.execute("ROLLBACK")
            self.tables.rolled_back()
            raise
        self.connection.execute("COMMIT")
        self.tables.committed()
        return result

    def run_in_vain(self, operation: Callable[[sqlite3.Connection], Any]) -> None:
        """The disk refuses the commit."""
        self.connection.execute("BEGIN")
        self.tables.begins()
        try:
            operation(self.connection)
        except RonError:
            self.tables.failed()
        self.connection.execute("ROLLBACK")
        self.tables.rolled_back()

    def sending(
        self, topic: str, payload: bytes = b"sealed", priority: Priority = Priority.NORMAL, key: str | None = None
    ) -> Callable[[sqlite3.Connection], Sent]:
        new = NewMessage(os.urandom(16), topic, priority, payload, key, self.now_ms)
        return partial(self.tables.send, new)

    def receiving(
        self, topic: str, limit: int = 1, visibility_ms: int = 1000
    ) -> Callable[[sqlite3.Connection], Leased]:
        ask = Ask(topic, limit, visibility_ms)
        return partial(self.tables.recv, ask, self.now_ms, os.urandom(RECEIPT_BYTES * limit))

    def send(self, *args: Any, **kwargs: Any) -> Sent:
        return self.run(self.sending(*args, **kwargs))

    def recv(self, *args: Any, **kwargs: Any) -> Leased:
        return self.run(self.receiving(*args, **kwargs))

    def ack(self, msg_id: str, receipt: str, may: Callable[[str], bool] = lambda _topic: True) -> Acked:
        return self.run(partial(self.tables.ack, parse_msg_id(msg_id), receipt, may, self.now_ms)).acked

    def release(self, leased: Leased) -> int:
        return self.run(partial(self.tables.release, leased, self.now_ms))

    def sweep(self) -> sql.Swept:
        return self.run(partial(self.tables.sweep, self.now_ms))

    def rows(self, columns: str) -> list[Any]:
        return self.connection.execute(f"SELECT {columns} FROM message ORDER BY seq").fetchall()  # noqa: S608


@dataclass
class Known:
    """A message as the model sees it. receipt: of the newest lease. due_ms: as in the table."""

    msg_id: str
    topic: str
    priority: Priority
    payload: bytes
    key: str | None
    state: str = "ready"
    attempt: int = 0
    receipt: str | None = None
    old_receipts: list[str] = field(default_factory=list)
    due_ms: int = 0


TOPICS = st.sampled_from(["a", "b/c"])
CONFIG = MailboxConfig(
    max_inflight=3,
    max_messages=8,
    topic_max_messages=6,
    max_keys=5,
    idempotency_window_s=3 * 3600,
    ack_window_s=3600,
    max_remembered_acks=3,
)


class MailboxMachine(RuleBasedStateMachine):
    """Everything that can happen to the store, in any order, with restarts and lost commits in between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.driver = Driver(Path(self.folder) / "mailbox.sqlite3", CONFIG)
        self.known: list[Known] = []
        self.receipts: set[str] = set()
        self.leases: list[Leased] = []

    def teardown(self) -> None:
        self.driver.connection.close()
        shutil.rmtree(self.folder)

    # What the model knows

    def live(self, topic: str | None = None) -> list[Known]:
        return [m for m in self.known if m.state != "acked" and topic in (None, m.topic)]

    def leased(self, topic: str) -> list[Known]:
        return [m for m in self.known if m.state == "leased" and m.topic == topic]

    def keyed(self) -> list[Known]:
        return [m for m in self.known if m.key is not None]

    def expire(self, topic: str) -> None:
        for message in self.leased(topic):
            if message.due_ms <= self.driver.now_ms:
                message.state = "ready"

    # What can happen

    @rule(
        topic=TOPICS,
        priority=st.sampled_from(Priority),
        payload=st.sampled_from([b"", b"one", b"two"]),
        key=st.sampled_from([None, None, "k1", "k2"]),
    )
    def send(self, topic: str, priority: Priority, payload: bytes, key: str | None) -> None:
        first = next((m for m in self.keyed() if (m.topic, m.key) == (topic, key)), None)
        full = len(self.live()) >= 8 or len(self.live(topic)) >= 6 or (key is not None and len(self.keyed()) >= 5)
        try:
            sent = self.driver.send(topic, payload, priority, key)
        except RonError as error:
            if first is not None:
                assert error.code is ErrorCode.CONFLICT
                assert (first.payload, first.priority) != (payload, priority)
            else:
                assert error.code is ErrorCode.BACKPRESSURE
                assert full
            return
        if first is not None:
            assert sent == Sent(first.msg_id, duplicate=True)
            assert (first.payload, first.priority) == (payload, priority)
            return
        assert not full
        assert not sent.duplicate
        self.known.append(Known(sent.msg_id, topic, priority, payload, key))

    @rule(topic=TOPICS, limit=st.integers(1, 4), visibility_ms=st.sampled_from([100, 1000, 60_000]))
    def recv(self, topic: str, limit: int, visibility_ms: int) -> None:
        self.expire(topic)
        ready = [m for m in self.live(topic) if m.state == "ready"]
        ready.sort(key=lambda m: -m.priority)
        expected = ready[: max(0, min(limit, 3 - len(self.leased(topic))))]
        leased = self.driver.recv(topic, limit, visibility_ms)
        assert [(d.msg_id, d.payload, d.attempt) for d in leased.deliveries] == [
            (m.msg_id, m.payload, m.attempt + 1) for m in expected
        ]
        for message, delivery in zip(expected, leased.deliveries, strict=True):
            self.lend(message, delivery, visibility_ms)
        dues = [m.due_ms for m in self.leased(topic)]
        assert leased.next_due_ms == min(dues, default=None)
        assert leased.capped == (len(dues) >= 3)
        assert leased.more or leased.capped or len(expected) == len(ready)
        if leased.deliveries:
            self.leases.append(leased)

    def lend(self, message: Known, delivery: Delivery, visibility_ms: int) -> None:
        assert delivery.receipt not in self.receipts, "a receipt is handed out once"
        self.receipts.add(delivery.receipt)
        if message.receipt is not None:
            message.old_receipts.append(message.receipt)
        message.state, message.attempt, message.receipt = "leased", message.attempt + 1, delivery.receipt
        message.due_ms = self.driver.now_ms + visibility_ms

    @precondition(lambda self: any(m.receipt for m in self.known))
    @rule(choice=st.randoms(use_true_random=False))
    def ack(self, choice: Any) -> None:
        message = choice.choice([m for m in self.known if m.receipt])
        duplicate = message.state == "acked"
        assert self.driver.ack(message.msg_id, message.receipt) == Acked(duplicate)
        if not duplicate:
            window_ms = HOUR_MS if message.key is None else 3 * HOUR_MS
            message.state, message.due_ms = "acked", self.driver.now_ms + window_ms

    @precondition(lambda self: self.known)
    @rule(choice=st.randoms(use_true_random=False))
    def ack_wrongly(self, choice: Any) -> None:
        """With a receipt of an earlier lease, of another message, or none at all."""
        message = choice.choice(self.known)
        wrong = choice.choice([*message.old_receipts, "0" * 32, "", *(self.receipts - {message.receipt})])
        self.refused(ErrorCode.CONFLICT, message.msg_id, wrong)

    @precondition(lambda self: self.known)
    @rule(choice=st.randoms(use_true_random=False))
    def ack_from_outside(self, choice: Any) -> None:
        """Whoever may not touch the topic learns nothing, right receipt or not."""
        message = choice.choice(self.known)
        self.refused(ErrorCode.NOT_FOUND, message.msg_id, message.receipt or "", lambda _topic: False)

    @rule(raw=st.binary(min_size=16, max_size=16))
    def ack_unknown(self, raw: bytes) -> None:
        self.refused(ErrorCode.NOT_FOUND, format_msg_id(raw), "0" * 32)

    def refused(self, code: ErrorCode, *args: Any) -> None:
        try:
            self.driver.ack(*args)
        except RonError as error:
            assert error.code is code
        else:
            raise AssertionError("acknowledged")

    @precondition(lambda self: self.leases)
    @rule(choice=st.randoms(use_true_random=False))
    def abandon(self, choice: Any) -> None:
        """A receiver went away: what it still holds is ready at once, and never counted."""
        leased = self.leases.pop(choice.randrange(len(self.leases)))
        held = {d.receipt: d for d in leased.deliveries}
        mine = [m for m in self.known if m.state == "leased" and m.receipt in held]
        assert self.driver.release(leased) == len(mine)
        for message in mine:
            message.state, message.attempt, message.receipt = "ready", message.attempt - 1, None

    @rule(step_ms=st.sampled_from([50, 1000, 100_000, HOUR_MS]))
    def time_passes(self, step_ms: int) -> None:
        self.driver.now_ms += step_ms

    @rule()
    def sweep(self) -> None:
        self.driver.sweep()
        for topic in {m.topic for m in self.known}:
            self.expire(topic)
        now_ms = self.driver.now_ms
        self.known = [m for m in self.known if m.state != "acked" or m.due_ms > now_ms]
        unkeyed = sorted((m for m in self.known if m.state == "acked" and m.key is None), key=lambda m: m.due_ms)
        forgotten = [id(m) for m in unkeyed[: max(0, len(unkeyed) - 3)]]
        kept = {m.msg_id for m in self.stored_tombstones()}
        # among tombstones of the same instant the store may choose
        assert len(kept) == len(unkeyed) - len(forgotten)
        self.known = [m for m in self.known if m.state != "acked" or m.key is not None or m.msg_id in kept]

    def stored_tombstones(self) -> list[Known]:
        rows = self.driver.rows("msg_id, state, idem_key")
        stored = {format_msg_id(msg_id) for msg_id, state, key in rows if state == 2 and key is None}
        return [m for m in self.known if m.msg_id in stored]

    @rule()
    def restart(self) -> None:
        self.driver.restart()

    @rule(topic=TOPICS, key=st.sampled_from([None, "k1"]))
    def lose_a_commit(self, topic: str, key: str | None) -> None:
        self.driver.run_in_vain(self.driver.sending(topic, key=key))
        self.driver.run_in_vain(self.driver.receiving(topic, 2))

    # What must hold

    @invariant()
    def nothing_accepted_is_lost(self) -> None:
        rows = {
            format_msg_id(row[0]): row[1:]
            for row in self.driver.rows("msg_id, state, attempt, payload, topic, idem_key")
        }
        assert set(rows) == {m.msg_id for m in self.known}
        for message in self.known:
            state, attempt, payload, topic, key = rows[message.msg_id]
            assert ("ready", "leased", "acked")[state] == message.state
            assert (attempt, topic, key) == (message.attempt, message.topic, message.key)
            assert payload == (None if message.state == "acked" else message.payload)

    @invariant()
    def the_counts_are_right(self) -> None:
        usage = self.driver.tables.usage
        live = self.live()
        assert usage.total.messages == len(live)
        assert usage.total.bytes == sum(len(m.payload) for m in live)
        assert usage.total.leased == sum(m.state == "leased" for m in live)
        assert usage.keys == len(self.keyed())
        assert usage.remembered == sum(m.state == "acked" and m.key is None for m in self.known)
        assert set(usage.topics) == {m.topic for m in live}


class MachineTests(TestCase):
    """See `MailboxMachine`."""

    def test_the_store_and_its_model_agree(self) -> None:
        budget = settings(
            max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        )
        run_state_machine_as_test(MailboxMachine, settings=budget)


class PlanTests(TestCase):
    """Every query of a call finds its rows by an index, in the index's order."""

    FINDS = ("FIND_BY_KEY", "FIND_BY_ID", "NEXT_DUE", "TAKE")
    CHANGES = ("INSERT", "LEASE", "EXPIRE", "SHORTEN", "RELEASE", "SETTLE", "FORGET", "FORGET_KEYED")

    def setUp(self) -> None:
        self.connection = open_database(None, SCHEMA)
        self.addCleanup(self.connection.close)

    def plan(self, name: str) -> str:
        statement = getattr(sql, name)
        parameters = [None] * statement.count("?")
        rows = self.connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        return "; ".join(row[3] for row in rows)

    def test_no_call_scans_or_sorts(self) -> None:
        for name in self.FINDS + self.CHANGES:
            with self.subTest(name):
                self.assertNotIn("SCAN", self.plan(name))
                self.assertNotIn("TEMP B-TREE", self.plan(name))

    def test_recv_walks_the_ready_messages_of_its_topic(self) -> None:
        self.assertEqual(self.plan("TAKE"), "SEARCH message USING INDEX message_ready (topic=?)")
        self.assertEqual(self.plan("NEXT_DUE"), "SEARCH message USING INDEX message_leased (topic=?)")

    def test_opening_counts_along_the_partial_indices(self) -> None:
        self.assertIn("message_ready", self.plan("COUNT_READY"))
        self.assertIn("message_leased", self.plan("COUNT_LEASED"))
        self.assertIn("message_acked", self.plan("COUNT_ACKED"))


class TableTests(TestCase):
    """What the machine's small numbers do not reach."""

    def setUp(self) -> None:
        self.driver = Driver(None, MailboxConfig())
        self.addCleanup(lambda: self.driver.connection.close())

    def test_an_answer_is_bounded_in_bytes_and_never_empty_for_that(self) -> None:
        for _ in range(10):
            self.driver.send("big", bytes(MAX_PAYLOAD_BYTES))
        first = self.driver.recv("big", 64)
        self.assertEqual(len(first.deliveries), MAX_BATCH_BYTES // MAX_PAYLOAD_BYTES)
        self.assertTrue(first.more)
        self.assertEqual(len(self.driver.recv("big", 64).deliveries), 5)
        self.assertEqual(self.driver.tables.usage.total.leased, 10)

    def test_leasing_a_large_message_does_not_rewrite_it(self) -> None:
        """The row keeps its width, so that SQLite changes it in place."""
        path = Path(tempfile.mkdtemp()) / "mailbox.sqlite3"
        self.addCleanup(shutil.rmtree, path.parent)
        driver = Driver(path, MailboxConfig())
        self.addCleanup(lambda: driver.connection.close())
        driver.send("big", bytes(MAX_PAYLOAD_BYTES))
        driver.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        driver.recv("big")
        self.assertLess(path.with_name(path.name + "-wal").stat().st_size, 64 * 1024)

    def test_a_clock_set_back_delays_a_message_by_no_more_than_the_longest_lease(self) -> None:
        sent = self.driver.send("t")
        self.driver.recv("t", visibility_ms=1000)
        self.driver.now_ms -= 10 * 24 * HOUR_MS
        self.assertEqual(self.driver.recv("t").deliveries, [])
        self.driver.now_ms += 12 * HOUR_MS
        again = self.driver.recv("t").deliveries
        self.assertEqual([(d.msg_id, d.attempt) for d in again], [(sent.msg_id, 2)])

    def test_a_clock_set_forward_delivers_again_and_the_old_receipt_is_stale(self) -> None:
        self.driver.send("t")
        (first,) = self.driver.recv("t", visibility_ms=HOUR_MS).deliveries
        self.driver.now_ms += 2 * HOUR_MS
        (second,) = self.driver.recv("t").deliveries
        with self.assertRaises(RonError) as refused:
            self.driver.ack(first.msg_id, first.receipt)
        self.assertEqual(refused.exception.code, ErrorCode.CONFLICT)
        self.assertFalse(self.driver.ack(second.msg_id, second.receipt).duplicate)

    def test_sweeps_are_bounded_and_say_when_there_is_more(self) -> None:
        for _ in range(sql.SWEEP_ROWS + 10):
            self.driver.send("t")
            (delivery,) = self.driver.recv("t").deliveries
            self.driver.ack(delivery.msg_id, delivery.receipt)
        self.driver.now_ms += 2 * HOUR_MS
        first, second = self.driver.sweep(), self.driver.sweep()
        self.assertEqual((first.forgotten, first.more), (sql.SWEEP_ROWS, True))
        self.assertEqual((second.forgotten, second.more), (10, False))
        self.assertEqual(self.driver.rows("count(*)"), [(0,)])

    def test_sweeps_end_leases_of_all_topics_in_turns(self) -> None:
        topics = [f"t{number:04}" for number in range(sql.SWEEP_TOPICS + 5)]
        for topic in topics:
            self.driver.send(topic)
            self.driver.recv(topic)
        self.driver.now_ms += 1000
        ended = list(itertools.islice((self.driver.sweep().expired for _ in topics), 3))
        self.assertEqual(ended, [sql.SWEEP_TOPICS, 5, 0])
        self.assertEqual(self.driver.tables.usage.total.leased, 0)

    def test_a_probe_leaves_nothing(self) -> None:
        self.driver.run(partial(self.driver.tables.probe, bytes(16)))
        self.assertEqual(self.driver.rows("count(*)"), [(0,)])
