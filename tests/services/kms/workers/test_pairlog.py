"""A worker's side of the log: what is bounded, what is turned away, what is told of each record."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.limits import Refused, too_many
from ron.proto.errors import RonError, unavailable
from ron.services.kms.ports import AuditEntry
from ron.services.kms.workers import pairlog
from ron.services.kms.workers.frames import Batch, Kept, Trouble
from ron.services.kms.workers.pairlog import CLOSED_S, FollowedRates, PairLog

ENTRY = AuditEntry(op="sign", result="ok", ts="2026-01-01T00:00:00Z", tenant="core", kid="k")


class Log(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.sent: list[Batch] = []
        self.away: list[str] = []
        self.full = False
        self.log = PairLog(
            self.clock,
            self.sent.append,
            most=3,
            turned_away=self.away.append,
            congested=lambda: self.full,
        )

    def turn(self) -> None:
        self.clock.advance(0)

    def test_one_more_than_may_wait(self) -> None:
        waiting = [self.log.append(ENTRY) for _ in range(3)]
        self.failureResultOf(self.log.append(ENTRY), RonError)
        self.turn()
        self.failureResultOf(self.log.append(ENTRY), RonError)
        self.log.kept(Kept(1, (7, 8, 9), {}))
        self.assertEqual([self.successResultOf(one) for one in waiting], [7, 8, 9])
        self.assertEqual(self.log.in_flight, 0)
        self.assertNoResult(self.log.append(ENTRY))

    def test_while_the_owner_does_not_read(self) -> None:
        self.full = True
        self.failureResultOf(self.log.append(ENTRY), RonError)
        self.log.inform(ENTRY)
        self.turn()
        self.assertEqual(self.sent, [])

    def test_each_hears_what_became_of_it(self) -> None:
        one, two, three = (self.log.append(ENTRY) for _ in range(3))
        self.turn()
        refused = {0: Trouble.of(unavailable("disk")), 2: Trouble.of(too_many("rate", "too many"))}
        self.log.kept(Kept(1, (-1, 5, -1), refused))
        self.assertEqual(self.failureResultOf(one, RonError).value.status, 503)
        self.assertEqual(self.successResultOf(two), 5)
        self.failureResultOf(three, Refused)
        self.assertEqual(self.away, ["core"], "one that is over its rate, and not one whose disk failed")

    def test_turns_make_batches(self) -> None:
        waiting = [self.log.append(ENTRY)]
        self.log.inform(ENTRY)
        self.turn()
        waiting.append(self.log.append(ENTRY))
        self.turn()
        self.turn()
        self.assertEqual([(b.number, len(b.entries), len(b.notes)) for b in self.sent], [(1, 1, 1), (2, 1, 0)])
        self.log.kept(Kept(2, (4,), {}))
        self.assertNoResult(waiting[0])
        self.assertEqual(self.successResultOf(waiting[1]), 4)

    def test_while_two_are_under_way_the_next_gathers(self) -> None:
        for _ in range(2):
            self.log.inform(ENTRY)
            self.turn()
        late = [self.log.append(ENTRY) for _ in range(2)]
        self.turn()
        self.assertEqual(len(self.sent), 2)
        self.log.kept(Kept(2, (), {}))
        self.turn()
        self.assertEqual([(b.number, len(b.entries)) for b in self.sent[2:]], [(3, 2)])
        self.log.kept(Kept(3, (8, 9), {}))
        self.assertEqual([self.successResultOf(one) for one in late], [8, 9])

    def test_notes_alone(self) -> None:
        for _ in range(10):
            self.log.inform(ENTRY)
        self.turn()
        self.assertEqual([len(b.notes) for b in self.sent], [3], "those that would be too many are left out")
        self.log.kept(Kept(1, (), {}))

    def test_what_only_the_owner_says(self) -> None:
        self.failureResultOf(self.log.checkpoint(), RonError)
        self.assertIsNone(self.log.latest())
        asks: list[Any] = [self.log.entries, self.log.inclusion, self.log.consistency]
        for ask in asks:
            with self.assertRaises(RonError):
                ask(0, 1)


class Rates(SynchronousTestCase):
    def test_only_whom_the_owner_turned_away_and_only_for_a_moment(self) -> None:
        clock = Clock()
        rates = FollowedRates(clock.seconds)
        for _ in range(1000):
            rates.check("core", clock.seconds())
        rates.turned_away("core")
        with self.assertRaises(Refused) as caught:
            rates.check("core", clock.seconds())
        self.assertEqual((caught.exception.status, caught.exception.reason), (429, "rate"))
        rates.check("other", clock.seconds())
        clock.advance(CLOSED_S)
        rates.check("core", clock.seconds())

    def test_tenants_without_end(self) -> None:
        self.patch(pairlog, "_MOST_CLOSED", 10)
        clock = Clock()
        rates = FollowedRates(clock.seconds)
        for number in range(100):
            rates.turned_away(str(number))
        self.assertLessEqual(len(rates._closed), 10)
