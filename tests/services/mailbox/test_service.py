"""The mailbox's promises to senders and receivers, with a clock that stands still until it is told."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock, react
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from ron.kernel import HealthState, Metrics
from ron.proto.errors import ErrorCode, RonError
from ron.services.mailbox.config import MailboxConfig
from ron.services.mailbox.model import Delivery, Sent
from ron.services.mailbox.service import HEALTH_KEY, SWEEP_S, MailboxService
from ron.store import open_database, schema_of

T0 = 1_700_000_000.0
DEADLINE_S = 30.0
ROOT = Path(__file__).parents[3]


class StillClock(Clock):
    """A reactor whose time is ours and whose threads are real."""

    def callFromThread(self, callable: Callable[..., Any], *args: object, **kwargs: object) -> None:
        reactor.callFromThread(callable, *args, **kwargs)


def start(coroutine: Any) -> Deferred[Any]:
    return Deferred.fromCoroutine(coroutine).addTimeout(DEADLINE_S, reactor)


class MailboxCase(TestCase):
    """A mailbox in memory; a test that needs a file makes it with `mailbox(path=…)`."""

    async def setUp(self) -> None:
        self.clock = StillClock()
        self.health = HealthState()
        self.metrics = Metrics()
        self.skew_s = 0.0
        self.box = await self.mailbox()

    async def mailbox(self, path: Path | None = None, **config: Any) -> MailboxService:
        self.metrics = Metrics()
        box = MailboxService(
            MailboxConfig(**config),
            path=path,
            reactor=self.clock,
            health=self.health,
            metrics=self.metrics,
            now=lambda: T0 + self.clock.seconds() + self.skew_s,
        )
        box.startService()
        self.addCleanup(lambda: box.stopService() if box.running else None)
        await start(box.opened())
        return box

    async def settled(self, box: MailboxService | None = None) -> None:
        """Return when everything under way, and what follows from it, is done."""
        for _ in range(3):
            await start((box or self.box).recv("nobody-sends-here"))

    async def refused(self, code: ErrorCode, coroutine: Any) -> RonError:
        error = await self.assertFailure(start(coroutine), RonError)
        self.assertEqual(error.code, code)
        return error

    async def recv_one(self, topic: str = "t", **options: Any) -> Delivery:
        (delivery,) = await start(self.box.recv(topic, **options))
        return delivery

    def waiting(self, topic: str = "t", wait_s: float = 10.0, **options: Any) -> Deferred[list[Delivery]]:
        return start(self.box.recv(topic, wait_s=wait_s, **options))

    def counted(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0


class SendTests(MailboxCase):
    """A message is taken once, whole, and within bounds."""

    async def test_what_was_sent_is_received_and_acknowledged_once(self) -> None:
        sent = await start(self.box.send("t", b"\x00sealed\xff"))
        self.assertFalse(sent.duplicate)
        delivery = await self.recv_one()
        self.assertEqual((delivery.msg_id, delivery.payload, delivery.attempt), (sent.msg_id, b"\x00sealed\xff", 1))
        self.assertFalse((await start(self.box.ack(delivery.msg_id, delivery.receipt))).duplicate)
        self.assertTrue((await start(self.box.ack(delivery.msg_id, delivery.receipt))).duplicate)
        self.clock.advance(3600)
        self.assertEqual(await start(self.box.recv("t")), [])

    async def test_higher_priority_first_then_first_come_first_served(self) -> None:
        sends = [("low", b"1"), ("normal", b"2"), ("high", b"3"), ("low", b"4"), ("normal", b"5"), ("high", b"6")]
        for priority, payload in sends:
            await start(self.box.send("t", payload, priority=priority))
        deliveries = await start(self.box.recv("t", max_messages=10))
        self.assertEqual([d.payload for d in deliveries], [b"3", b"6", b"2", b"5", b"1", b"4"])

    async def test_malformed_calls_are_refused(self) -> None:
        await self.refused(ErrorCode.BAD_REQUEST, self.box.send("a b", b""))
        await self.refused(ErrorCode.BAD_REQUEST, self.box.send("t", b"", priority="urgent"))
        await self.refused(ErrorCode.BAD_REQUEST, self.box.send("t", b"", idempotency_key=""))
        await self.refused(ErrorCode.TOO_LARGE, self.box.send("t", bytes(768 * 1024 + 1)))
        await self.refused(ErrorCode.BAD_REQUEST, self.box.recv("t", max_messages=65))
        await self.refused(ErrorCode.BAD_REQUEST, self.box.recv("t", wait_s=26))
        await self.refused(ErrorCode.NOT_FOUND, self.box.ack("nonsense", "0"))
        self.assertEqual(self.box.stats().total, 0)

    async def test_a_repeated_key_means_the_first_message(self) -> None:
        first = await start(self.box.send("t", b"x", idempotency_key="k"))
        again = await start(self.box.send("t", b"x", idempotency_key="k"))
        self.assertEqual(again, Sent(first.msg_id, duplicate=True))
        await self.refused(ErrorCode.CONFLICT, self.box.send("t", b"y", idempotency_key="k"))
        await self.refused(ErrorCode.CONFLICT, self.box.send("t", b"x", idempotency_key="k", priority="high"))
        other = await start(self.box.send("u", b"x", idempotency_key="k"))
        self.assertFalse(other.duplicate)
        self.assertEqual(self.box.stats().total, 2)
        self.assertEqual(self.counted("mailbox_send_duplicates_total"), 1)
        self.assertEqual(self.counted("mailbox_conflicts_total"), 2)

    async def test_repeats_in_one_commit_are_one_message(self) -> None:
        sends = [start(self.box.send("t", b"x", idempotency_key="k")) for _ in range(5)]
        outcomes = await gatherResults(sends)
        self.assertEqual(len({sent.msg_id for sent in outcomes}), 1)
        self.assertEqual([sent.duplicate for sent in outcomes], [False, True, True, True, True])

    async def test_a_key_outlives_the_ack_and_a_restart_and_ends_with_its_window(self) -> None:
        path = Path(self.mktemp()) / "mailbox.sqlite3"
        self.box = await self.mailbox(path, idempotency_window_s=600)
        first = await start(self.box.send("t", b"x", idempotency_key="k"))
        delivery = await self.recv_one()
        await start(self.box.ack(delivery.msg_id, delivery.receipt))
        await self.box.stopService()
        self.box = await self.mailbox(path, idempotency_window_s=600)
        self.clock.advance(599)
        self.assertEqual((await start(self.box.send("t", b"x", idempotency_key="k"))).msg_id, first.msg_id)
        self.assertTrue((await start(self.box.ack(delivery.msg_id, delivery.receipt))).duplicate)
        self.clock.advance(2 * SWEEP_S)
        await self.settled()
        self.assertFalse((await start(self.box.send("t", b"y", idempotency_key="k"))).duplicate)

    async def test_full_is_told_and_an_ack_makes_room(self) -> None:
        self.box = await self.mailbox(max_messages=3, topic_max_messages=2)
        for topic in ("t", "t", "u"):
            await start(self.box.send(topic, b"x"))
        await self.refused(ErrorCode.BACKPRESSURE, self.box.send("t", b"x"))
        await self.refused(ErrorCode.BACKPRESSURE, self.box.send("v", b"x"))
        delivery = await self.recv_one("u")
        await start(self.box.ack(delivery.msg_id, delivery.receipt))
        await self.refused(ErrorCode.BACKPRESSURE, self.box.send("t", b"x"))
        await start(self.box.send("v", b"x"))


class LeaseTests(MailboxCase):
    """One receiver at a time, for a time."""

    async def test_a_leased_message_is_invisible_until_its_time_is_up(self) -> None:
        await start(self.box.send("t", b"x"))
        first = await self.recv_one(visibility_timeout_s=5)
        self.clock.advance(4.9)
        self.assertEqual(await start(self.box.recv("t")), [])
        self.clock.advance(0.2)
        second = await self.recv_one()
        self.assertEqual((second.msg_id, second.attempt), (first.msg_id, 2))
        self.assertNotEqual(second.receipt, first.receipt)
        await self.refused(ErrorCode.CONFLICT, self.box.ack(first.msg_id, first.receipt))
        await start(self.box.ack(second.msg_id, second.receipt))
        self.assertEqual(self.counted("mailbox_redeliveries_total"), 1)
        self.assertEqual(self.counted("mailbox_visibility_timeouts_total"), 1)

    async def test_the_configured_visibility_is_the_default(self) -> None:
        self.box = await self.mailbox(visibility_timeout_ms=2000)
        await start(self.box.send("t", b"x"))
        await self.recv_one()
        self.clock.advance(1.9)
        self.assertEqual(await start(self.box.recv("t")), [])
        self.clock.advance(0.2)
        await self.recv_one()

    async def test_a_late_ack_counts_until_the_message_is_delivered_again(self) -> None:
        await start(self.box.send("t", b"x"))
        delivery = await self.recv_one(visibility_timeout_s=1)
        self.clock.advance(10)
        await self.settled()
        self.assertEqual(self.box.stats().inflight, 0)
        self.assertFalse((await start(self.box.ack(delivery.msg_id, delivery.receipt))).duplicate)

    async def test_wrong_receipts_unknown_messages_and_foreign_topics(self) -> None:
        sent = await start(self.box.send("t", b"x"))
        await self.refused(ErrorCode.CONFLICT, self.box.ack(sent.msg_id, "0" * 32))
        delivery = await self.recv_one()
        await self.refused(ErrorCode.CONFLICT, self.box.ack(sent.msg_id, "0" * 32))
        unknown = await self.refused(
            ErrorCode.NOT_FOUND, self.box.ack("018f0000-0000-7000-8000-000000000000", delivery.receipt)
        )
        foreign = await self.refused(
            ErrorCode.NOT_FOUND, self.box.ack(sent.msg_id, delivery.receipt, may=lambda topic: topic != "t")
        )
        self.assertEqual((foreign.message, foreign.hint), (unknown.message, unknown.hint))
        self.assertEqual(self.box.stats().inflight, 1)

    async def test_no_more_than_max_inflight_of_a_topic_are_out(self) -> None:
        self.box = await self.mailbox(max_inflight=3)
        for number in range(5):
            await start(self.box.send("t", b"%d" % number))
        await start(self.box.send("u", b"other"))
        out = await start(self.box.recv("t", max_messages=10))
        self.assertEqual([d.payload for d in out], [b"0", b"1", b"2"])
        self.assertEqual(await start(self.box.recv("t")), [])
        self.assertEqual((await self.recv_one("u")).payload, b"other")
        await start(self.box.ack(out[0].msg_id, out[0].receipt))
        self.assertEqual([d.payload for d in await start(self.box.recv("t", max_messages=10))], [b"3"])

    async def test_leases_and_receipts_survive_a_restart(self) -> None:
        path = Path(self.mktemp()) / "mailbox.sqlite3"
        self.box = await self.mailbox(path)
        await start(self.box.send("t", b"x"))
        delivery = await self.recv_one(visibility_timeout_s=60)
        await self.box.stopService()
        self.box = await self.mailbox(path)
        self.assertEqual(self.box.stats().inflight, 1)
        self.assertEqual(await start(self.box.recv("t")), [])
        self.assertFalse((await start(self.box.ack(delivery.msg_id, delivery.receipt))).duplicate)

    async def test_a_clock_set_back_loses_nothing(self) -> None:
        await start(self.box.send("t", b"x"))
        await self.recv_one(visibility_timeout_s=30)
        self.skew_s = -30 * 86400.0
        receiver = self.waiting(wait_s=25)
        self.clock.advance(25)
        self.assertEqual(await receiver, [])
        self.clock.advance(43_200)
        self.assertEqual((await self.recv_one()).attempt, 2)

    async def test_sweeps_end_leases_nobody_asks_for(self) -> None:
        await start(self.box.send("t", b"x"))
        await self.recv_one(visibility_timeout_s=1)
        self.assertEqual(self.box.stats().inflight, 1)
        self.clock.advance(2 * SWEEP_S)
        await self.settled()
        stats = self.box.stats()
        self.assertEqual((stats.ready, stats.inflight, stats.total, stats.bytes), (1, 0, 1, 1))


class WaitTests(MailboxCase):
    """Receivers that wait get a message as soon as there is one, and cost nothing until then."""

    async def test_a_send_ends_the_wait(self) -> None:
        receiver = self.waiting()
        await self.settled()
        self.assertNoResult(receiver)
        self.assertEqual(self.box.stats().waiting, 1)
        await start(self.box.send("t", b"x"))
        self.assertEqual([d.payload for d in await receiver], [b"x"])
        self.assertEqual(self.box.stats().waiting, 0)

    async def test_the_deadline_ends_it_with_nothing(self) -> None:
        receiver = self.waiting(wait_s=2.5)
        await self.settled()
        self.clock.advance(2.4)
        await self.settled()
        self.assertNoResult(receiver)
        self.clock.advance(0.2)
        self.assertEqual(await receiver, [])

    async def test_a_lease_that_ends_ends_it(self) -> None:
        await start(self.box.send("t", b"x"))
        await self.recv_one(visibility_timeout_s=3)
        receiver = self.waiting()
        await self.settled()
        self.clock.advance(2.9)
        await self.settled()
        self.assertNoResult(receiver)
        self.clock.advance(0.2)
        self.assertEqual([d.attempt for d in await receiver], [2])

    async def test_a_shorter_lease_given_meanwhile_ends_it_sooner(self) -> None:
        await start(self.box.send("t", b"long"))
        await self.recv_one(visibility_timeout_s=100)
        receiver = self.waiting()
        await self.settled()
        sent, quicker = start(self.box.send("t", b"short")), start(self.box.recv("t", visibility_timeout_s=1))
        await sent
        await quicker
        await self.settled()
        self.assertNoResult(receiver)
        self.clock.advance(1.1)
        self.assertEqual([(d.payload, d.attempt) for d in await receiver], [(b"short", 2)])

    async def test_several_leases_that_end_together_wake_several(self) -> None:
        for number in range(3):
            await start(self.box.send("t", b"%d" % number))
        await start(self.box.recv("t", max_messages=3, visibility_timeout_s=1))
        receivers = [self.waiting() for _ in range(3)]
        await self.settled()
        self.clock.advance(1.1)
        got = await gatherResults(receivers)
        self.assertEqual(sorted(d.payload for (d,) in got), [b"0", b"1", b"2"])

    async def test_who_waits_longest_is_served_first_and_the_others_sleep_on(self) -> None:
        receivers = [self.waiting() for _ in range(10)]
        await self.settled()
        before = self.counted("mailbox_commit_batch_operations_sum")
        await start(self.box.send("t", b"x"))
        self.assertEqual(len(await receivers[0]), 1)
        self.assertEqual(self.counted("mailbox_commit_batch_operations_sum") - before, 2, "one send, one recv")
        for receiver in receivers[1:]:
            self.assertNoResult(receiver)
        self.clock.advance(10)
        self.assertEqual(await gatherResults(receivers[1:]), [[]] * 9)

    async def test_who_was_woken_in_vain_is_served_before_those_who_came_later(self) -> None:
        receivers = [self.waiting() for _ in range(4)]
        await self.settled()
        sent, quicker = start(self.box.send("t", b"1")), start(self.box.recv("t"))
        await sent
        self.assertEqual([d.payload for d in await quicker], [b"1"])
        await self.settled()
        await start(self.box.send("t", b"2"))
        await start(self.box.send("t", b"3"))
        await gatherResults(receivers[:2])
        self.assertNoResult(receivers[2])
        self.assertNoResult(receivers[3])
        self.clock.advance(10)
        await gatherResults(receivers[2:])

    async def test_an_ack_ends_the_wait_of_a_capped_topic(self) -> None:
        self.box = await self.mailbox(max_inflight=1)
        await start(self.box.send("t", b"1"))
        await start(self.box.send("t", b"2"))
        delivery = await self.recv_one()
        receiver = self.waiting()
        await self.settled()
        self.assertNoResult(receiver)
        await start(self.box.ack(delivery.msg_id, delivery.receipt))
        self.assertEqual([d.payload for d in await receiver], [b"2"])

    async def test_waiting_is_bounded_for_a_topic_and_in_all(self) -> None:
        self.box = await self.mailbox(max_waiters=3, topic_max_waiters=2)
        receivers = [self.waiting("t"), self.waiting("t")]
        await self.settled()
        await self.refused(ErrorCode.BACKPRESSURE, self.box.recv("t", wait_s=1))
        receivers.append(self.waiting("u"))
        await self.settled()
        await self.refused(ErrorCode.BACKPRESSURE, self.box.recv("v", wait_s=1))
        self.assertEqual(await start(self.box.recv("v")), [])
        await start(self.box.send("v", b"x"))
        self.assertEqual(len(await start(self.box.recv("v", wait_s=1))), 1)
        self.clock.advance(10)
        await gatherResults(receivers)
        self.assertEqual(self.box.stats().waiting, 0)

    async def test_no_timer_is_left_when_nobody_waits(self) -> None:
        await start(self.box.send("t", b"x"))
        await self.recv_one(visibility_timeout_s=5)
        receiver = self.waiting(wait_s=1)
        await self.settled()
        self.clock.advance(1)
        self.assertEqual(await receiver, [])
        await self.settled()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1, "the sweep")


class GoneTests(MailboxCase):
    """A receiver that goes away takes nothing with it."""

    async def gone(self, receiver: Deferred[Any]) -> None:
        receiver.cancel()
        await self.assertFailure(receiver, CancelledError)

    async def hold_the_commit(self) -> Callable[[], None]:
        """Returns when what was submitted so far has run, and its commit waits for the returned function."""
        begun, go_on = threading.Event(), threading.Event()

        def hold(_connection: sqlite3.Connection) -> None:
            begun.set()
            go_on.wait(DEADLINE_S)

        self.box._store._engine.submit(hold)
        await deferToThread(begun.wait, DEADLINE_S)
        return go_on.set

    async def test_while_it_waits(self) -> None:
        gone, other = self.waiting(), self.waiting()
        await self.settled()
        await self.gone(gone)
        self.assertEqual(self.box.stats().waiting, 1)
        await start(self.box.send("t", b"x"))
        self.assertEqual([d.attempt for d in await other], [1])

    async def test_before_its_lease_is_taken(self) -> None:
        await start(self.box.send("t", b"x"))
        await self.gone(start(self.box.recv("t")))
        self.assertEqual((await self.recv_one()).attempt, 1)

    async def test_while_its_lease_is_taken(self) -> None:
        """The lease is on its way to the disk when the receiver goes: it is given back, and did not count."""
        await start(self.box.send("t", b"x"))
        receiver = start(self.box.recv("t"))
        let_go = await self.hold_the_commit()
        await self.gone(receiver)
        let_go()
        await self.settled()
        self.assertEqual(self.box.stats().inflight, 0)
        self.assertEqual((await self.recv_one()).attempt, 1)
        self.assertEqual(self.counted("mailbox_recvs_total"), 1)

    async def test_with_the_lease_it_was_woken_for(self) -> None:
        gone, other = self.waiting(), self.waiting()
        await self.settled()
        held: Deferred[Any] = Deferred()
        sent = start(self.box.send("t", b"x"))
        sent.addCallback(lambda _: start(self.hold_the_commit()).chainDeferred(held))
        await sent
        let_go = await held
        await self.gone(gone)
        let_go()
        await self.settled()
        self.clock.advance(0)
        self.assertEqual([d.attempt for d in await other], [1])

    async def test_after_it_was_woken_and_before_it_has_the_message(self) -> None:
        gone, other = self.waiting(), self.waiting()
        await self.settled()
        sent = start(self.box.send("t", b"x"))
        sent.addCallback(lambda _: gone.cancel())
        await sent
        await self.assertFailure(gone, CancelledError)
        await self.settled()
        self.clock.advance(0)
        self.assertEqual([d.attempt for d in await other], [1])

    async def test_a_sender_that_goes_while_its_message_is_stored_still_wakes_the_receiver(self) -> None:
        receiver = self.waiting()
        await self.settled()
        sender = start(self.box.send("t", b"x"))
        let_go = await self.hold_the_commit()
        await self.gone(sender)
        let_go()
        self.assertEqual([d.payload for d in await receiver], [b"x"])


class LifeTests(MailboxCase):
    """Starting, stopping, and a store that is not well."""

    async def test_stopping_sends_receivers_home_and_refuses_what_comes_after(self) -> None:
        receiver = self.waiting()
        await self.settled()
        sent = start(self.box.send("u", b"x"))
        stopped = self.box.stopService()
        self.assertEqual(await receiver, [])
        await sent
        await stopped
        await self.refused(ErrorCode.STORE_UNAVAILABLE, self.box.send("t", b"x"))
        await self.refused(ErrorCode.STORE_UNAVAILABLE, self.box.recv("t", wait_s=5))
        self.assertFalse(self.health.is_ok(HEALTH_KEY))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_it_can_be_started_again(self) -> None:
        path = Path(self.mktemp()) / "mailbox.sqlite3"
        self.box = await self.mailbox(path)
        await start(self.box.send("t", b"x"))
        await self.box.stopService()
        self.box.startService()
        await start(self.box.opened())
        self.assertTrue(self.health.is_ok(HEALTH_KEY))
        self.assertEqual((await self.recv_one()).payload, b"x")

    async def test_calls_made_while_it_opens_wait_for_it(self) -> None:
        box = MailboxService(
            MailboxConfig(), path=None, reactor=self.clock, health=self.health, metrics=Metrics(), now=lambda: T0
        )
        self.addCleanup(box.stopService)
        await self.refused(ErrorCode.STORE_UNAVAILABLE, box.send("t", b"x"))
        box.startService()
        self.assertFalse(self.health.is_ok(HEALTH_KEY))
        await start(box.send("t", b"x"))
        self.assertTrue(self.health.is_ok(HEALTH_KEY))

    async def test_a_store_that_does_not_open_is_told(self) -> None:
        path = Path(self.mktemp())
        path.write_bytes(b"no database" * 1000)  # noqa: ASYNC240
        box = MailboxService(
            MailboxConfig(),
            path=path,
            reactor=self.clock,
            health=self.health,
            metrics=Metrics(),
            now=lambda: T0,
        )
        box.startService()
        self.addCleanup(box.stopService)
        early = start(box.send("t", b"x"))
        error = await self.refused(ErrorCode.STORE_UNAVAILABLE, box.opened())
        self.assertIn("damaged", error.message)
        await self.assertFailure(early, RonError)
        await self.refused(ErrorCode.STORE_UNAVAILABLE, box.send("t", b"x"))
        self.assertIn("damaged", self.health.snapshot().reasons[HEALTH_KEY])

    async def test_a_full_disk_refuses_sends_and_nothing_else(self) -> None:
        """The database may grow no more: 503, what was answered is there, acks go on and make room again."""
        path = Path(self.mktemp()) / "mailbox.sqlite3"
        self.box = await self.mailbox(path)
        payload = bytes(8000)
        answered = [(await start(self.box.send("t", payload))).msg_id for _ in range(5)]
        set_max_pages(self.box, 1)
        error = await self.refused(ErrorCode.STORE_UNAVAILABLE, self.box.send("t", payload))
        self.assertTrue(error.retryable)
        self.assertIn(HEALTH_KEY, self.health.snapshot().degraded)
        deliveries = await start(self.box.recv("t", max_messages=10))
        self.assertEqual([d.msg_id for d in deliveries], answered)
        for delivery in deliveries:
            await start(self.box.ack(delivery.msg_id, delivery.receipt))
        self.clock.advance(2 * SWEEP_S)
        await self.settled()
        self.assertEqual(self.health.snapshot().degraded, ())
        await start(self.box.send("t", payload))
        self.assertEqual(self.box.stats().total, 1)

    async def test_nothing_told_names_a_topic_or_a_payload(self) -> None:
        await start(self.box.send("secret-topic", b"secret-payload"))
        await self.recv_one("secret-topic")
        text = self.metrics.render()
        self.assertNotIn(b"secret", text)
        for line in (
            b"mailbox_sends_total 1.0",
            b"mailbox_recvs_total 1.0",
            b"mailbox_depth 1.0",
            b"mailbox_inflight 1.0",
        ):
            self.assertIn(line, text)

    async def test_stats(self) -> None:
        for topic in ("t", "t", "u"):
            await start(self.box.send(topic, b"12345", idempotency_key=os.urandom(8).hex()))
        await self.recv_one("u")
        stats = self.box.stats()
        self.assertEqual((stats.ready, stats.inflight, stats.total, stats.bytes), (2, 1, 3, 15))
        self.assertEqual((stats.topics, stats.keys, stats.waiting), (2, 3, 0))


def set_max_pages(box: MailboxService, pages: int) -> None:
    """The disk is full from now on: SQLite raises a limit below the present size to that size."""
    box._store._engine.submit(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone())


def run_sender() -> None:
    """The child of the test below: sends until it is killed, printing each id once it is answered."""

    async def send(box: MailboxService, sender: int) -> None:
        number = 0
        while True:
            sent = await box.send(f"t{sender}", b"%d/%d" % (sender, number))
            os.write(1, f"{sent.msg_id} {sender}/{number}\n".encode())
            number += 1

    async def send_all(the_reactor: Any) -> None:
        path = Path(sys.argv[1])
        box = MailboxService(MailboxConfig(), path=path, reactor=the_reactor, health=HealthState(), metrics=Metrics())
        box.startService()
        await gatherResults([Deferred.fromCoroutine(send(box, sender)) for sender in range(16)])

    react(lambda the_reactor: Deferred.fromCoroutine(send_all(the_reactor)))


class KillTests(MailboxCase):
    """SIGKILL in the middle of it all."""

    KILL_AFTER = 1000

    async def test_every_answered_message_is_there_after_kill_9(self) -> None:
        path = Path(self.mktemp()) / "mailbox.sqlite3"
        answered = await deferToThread(self.send_and_kill, path)
        self.assertGreaterEqual(len(answered), self.KILL_AFTER)
        connection = open_database(path, schema_of("ron.services.mailbox"))
        stored = dict(connection.execute("SELECT lower(hex(msg_id)), payload FROM message"))
        connection.close()
        for msg_id, payload in answered.items():
            self.assertEqual(stored.get(msg_id.replace("-", "")), payload.encode())
        self.box = await self.mailbox(path, max_inflight=10_000)
        self.assertEqual(self.box.stats().total, len(stored))
        await self.recv_one("t0")

    def send_and_kill(self, path: Path) -> dict[str, str]:
        statement = "from tests.services.mailbox.test_service import run_sender; run_sender()"
        child = subprocess.Popen(
            [sys.executable, "-c", statement, str(path.absolute())],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        with child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(self.KILL_AFTER)]
            child.kill()
            lines += child.stdout.readlines()
        whole = [line.split() for line in lines if line.endswith("\n")]
        return dict(whole)
