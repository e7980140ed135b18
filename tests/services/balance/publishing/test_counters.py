"""Revision counters across leaders: absurd ones first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.balance import Published
from ron.services.balance.publishing.counters import CLIMB, CLIMB_TO, Counters
from ron.tor.descriptor.intropoints import MAX_REVISION
from ron.tor.descriptor.revisions import PER_SECOND
from tests.services.balance.publishing.samples import NEWER, NOW_S, OLDER

told = st.integers(0, 2**63 - 1)
found = st.integers(0, MAX_REVISION)


class Going(SynchronousTestCase):
    def setUp(self) -> None:
        self.now_s = NOW_S
        self.counters = Counters(tie=7, now_s=lambda: self.now_s)

    def test_what_nobody_comes_to_is_not_learnt(self) -> None:
        before = self.counters.next("shop", OLDER)
        for absurd in (MAX_REVISION, MAX_REVISION - 1, 2**64 - 2**32):
            self.counters.found("shop", OLDER, absurd, (NEWER,))
        self.assertEqual(self.counters.next("shop", OLDER), before + 1)

    @given(st.lists(st.one_of(told, found), max_size=8))
    def test_always_above_what_can_be(self, seen: list[int]) -> None:
        counters = Counters(tie=7, now_s=lambda: NOW_S)
        for revision in seen:
            counters.heard(Published(service="shop", period=OLDER.number, revision=min(revision, 2**63 - 1)))
            counters.found("shop", OLDER, revision, (NEWER,))
            counters.refused("shop", NEWER, revision)
        believable = [revision for revision in seen if revision < 2**64 - 2**32]
        for period in (OLDER, NEWER):
            made = [counters.next("shop", period) for _ in range(3)]
            self.assertEqual(made, sorted(set(made)))
            self.assertLessEqual(made[-1], MAX_REVISION)
        self.assertGreater(counters.next("shop", OLDER), max(believable, default=0))

    def test_two_nodes_never_make_equals(self) -> None:
        other = Counters(tie=8, now_s=lambda: NOW_S)
        self.assertNotEqual(self.counters.next("shop", OLDER), other.next("shop", OLDER))

    def test_a_clock_set_back(self) -> None:
        before = self.counters.next("shop", OLDER)
        self.now_s -= 3600
        self.assertGreater(self.counters.next("shop", OLDER), before)

    def test_another_publishers_lead_holds_for_both_periods(self) -> None:
        """A dead leader's clock was ten minutes ahead: one read-back tells, for the period that cannot be read too."""
        ahead = Counters(tie=999, now_s=lambda: NOW_S + 600)
        older, newer = ahead.next("shop", OLDER), ahead.next("shop", NEWER)
        self.assertLess(self.counters.next("shop", NEWER), newer)
        self.counters.found("shop", OLDER, older, (OLDER, NEWER))
        self.assertGreater(self.counters.next("shop", OLDER), older)
        self.assertGreater(self.counters.next("shop", NEWER), newer)
        self.assertLess(self.counters.next("shop", NEWER), newer + 2 * PER_SECOND)

    def test_one_that_is_behind_us_changes_nothing(self) -> None:
        self.counters.found("shop", OLDER, 5, (NEWER,))
        self.assertEqual(self.counters.seen("shop", NEWER), 0)

    def test_services_and_periods_apart(self) -> None:
        self.counters.heard(Published(service="shop", period=OLDER.number, revision=10**15))
        self.assertLess(self.counters.next("mail", OLDER), 10**15)
        self.assertLess(self.counters.next("shop", NEWER), 10**15)
        self.counters.keep_only((NEWER,))
        self.assertEqual(self.counters.seen("shop", OLDER), 0)

    def test_refused_unread(self) -> None:
        made = self.counters.next("shop", NEWER)
        self.counters.refused("shop", NEWER, made)
        self.assertEqual(self.counters.next("shop", NEWER), CLIMB * made + 1)
        for _ in range(30):
            self.counters.refused("shop", NEWER, self.counters.seen("shop", NEWER))
        self.assertEqual(self.counters.next("shop", NEWER), CLIMB_TO + 1)

    def test_ours(self) -> None:
        made = self.counters.next("shop", OLDER)
        self.assertTrue(self.counters.is_ours("shop", OLDER, made))
        for service, period, revision in (("mail", OLDER, made), ("shop", NEWER, made), ("shop", OLDER, made + 1)):
            self.assertFalse(self.counters.is_ours(service, period, revision))
