"""Only informative records are dropped; whoever waits is told in time, and once."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import RonError, unavailable
from ron.services.kms.audit.queue import Queue
from tests.services.kms.audit.support import entry

LATE = unavailable("late")


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.dropped = 0
        self.queue = Queue(4, self.drop)

    def drop(self) -> None:
        self.dropped += 1

    def put(self, number: int, at_s: float = 0.0) -> Deferred[int]:
        outcome = self.queue.put(entry(number), at_s)
        assert outcome is not None
        return outcome

    def taken(self, count: int = 9) -> list[str]:
        return [job.entry.input_b3[-2:] for job in self.queue.take(count)]

    def test_an_operation_takes_the_place_of_the_oldest_informative_record(self) -> None:
        self.put(1)
        self.queue.inform(entry(2), 0.0)
        self.queue.inform(entry(3), 0.0)
        self.put(4)
        self.put(5)
        self.assertEqual(self.dropped, 1)
        self.put(6)
        self.assertIsNone(self.queue.put(entry(7), 0.0))
        self.queue.inform(entry(8), 0.0)
        self.assertEqual((self.dropped, len(self.queue)), (3, 4))
        self.assertEqual(self.taken(), ["01", "04", "05", "06"])

    def test_what_is_being_written_counts_and_is_not_dropped(self) -> None:
        for number in range(4):
            self.queue.inform(entry(number), 0.0)
        self.assertEqual(self.taken(3), ["00", "01", "02"])
        self.put(7)
        self.assertIsNone(self.queue.put(entry(8), 0.0))
        self.assertEqual(self.dropped, 1)
        self.queue.done()
        self.assertEqual(self.taken(), ["07"])

    def test_who_waited_too_long_is_told_and_one_that_was_not_begun_is_not_written(self) -> None:
        first, second, third = self.put(1), self.put(2, 1.0), self.put(3, 2.0)
        self.queue.inform(entry(4), 0.5)
        self.queue.take(1)
        self.assertEqual(self.queue.oldest_s(), 0.0)
        self.assertEqual(self.queue.expire(1.0, LATE), 2)
        for late in (first, second):
            self.failureResultOf(late, RonError)
        self.assertNoResult(third)
        self.assertEqual(self.queue.oldest_s(), 2.0)
        # it was begun and got there; nobody is told twice
        self.queue.take(1)[0].settle(5)
        self.queue.done()
        self.assertEqual(self.taken(), ["03", "04"])
        self.assertEqual(self.dropped, 0)
        self.queue.done()
        self.assertIsNone(self.queue.oldest_s())

    def test_late_informative_records_go(self) -> None:
        self.queue.inform(entry(1), 0.0)
        self.assertEqual((self.queue.expire(1.0, LATE), self.dropped, len(self.queue)), (0, 1, 0))

    def test_cancelled(self) -> None:
        first, second = self.put(1), self.put(2)
        (job,) = self.queue.take(1)
        for one in (first, second):
            one.cancel()
            self.failureResultOf(one, CancelledError)
        job.settle(0)
        self.queue.done()
        self.assertEqual(len(self.queue), 0)

    def test_all_fail(self) -> None:
        outcomes = [self.put(number) for number in range(3)]
        self.queue.take(2)
        self.assertEqual(self.queue.fail_all(LATE), 3)
        errors = {id(self.failureResultOf(one, RonError).value) for one in outcomes}
        # each its own
        self.assertEqual(len(errors), 3)
        self.queue.done()
        self.assertEqual(len(self.queue), 0)
