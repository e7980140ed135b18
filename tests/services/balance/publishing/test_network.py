"""The consensus is read when it is another one, and only then."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import RonError
from ron.services.balance.publishing.network import EVERY_S, SETTLE_S, Network, turns
from ron.tor.descriptor.hashring import Ring
from ron.tor.descriptor.periods import NetworkTime
from tests.services.balance.publishing.samples import INTERVAL_S, TIME, FakeNetwork, ring_with
from tests.tor.descriptor.samples import finish

RING = ring_with()
LATER = msgspec.structs.replace(RING, time=msgspec.structs.replace(TIME, valid_after_s=TIME.valid_after_s + INTERVAL_S))


class Looking(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.tor = FakeNetwork(self.clock, RING)
        self.changes: list[Ring] = []
        self.network = Network(self.clock, testing=True, on_change=self.changes.append)
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))
        self.addCleanup(self.pass_s, 1)
        self.addCleanup(self.network.detach)

    def pass_s(self, seconds: float) -> None:
        self.clock.pump([0.25] * int(seconds * 4))

    def test_before_the_first(self) -> None:
        self.assertRaises(RonError, self.network.known)
        self.tor.silent = True
        finish(self.network.attach(self.tor))
        self.pass_s(1)
        self.assertEqual(self.network.failed, "tor does not answer")
        self.tor.silent = False
        self.pass_s(SETTLE_S)
        self.assertEqual((self.network.known(), self.network.failed), (RING, ""))

    def test_nothing_new_is_not_read(self) -> None:
        finish(self.network.attach(self.tor))
        self.pass_s(10 * EVERY_S)
        self.assertEqual((self.tor.rings, self.changes), (1, [RING]))

    def test_told_of_a_new_one(self) -> None:
        finish(self.network.attach(self.tor))
        self.pass_s(1)
        self.tor.now_ring = LATER
        self.tor.arrived()
        self.pass_s(1)
        self.assertEqual((self.changes, self.network.ring), ([RING, LATER], LATER))

    def test_a_word_that_was_missed(self) -> None:
        finish(self.network.attach(self.tor))
        self.pass_s(1)
        self.tor.now_ring = LATER
        self.pass_s(EVERY_S)
        self.assertEqual(self.changes, [RING, LATER])

    def test_another_while_one_is_read(self) -> None:
        finish(self.network.attach(self.tor))
        self.tor.now_ring = LATER
        self.tor.arrived()
        self.tor.arrived()
        self.pass_s(1)
        self.assertEqual((self.changes[-1], self.tor.rings), (LATER, 2))

    def test_directories_that_are_not_known_yet(self) -> None:
        self.tor.now_ring = msgspec.structs.replace(RING, directories=RING.directories[:3], incomplete=2)
        finish(self.network.attach(self.tor))
        self.pass_s(1)
        self.tor.now_ring = RING
        self.pass_s(SETTLE_S)
        self.assertEqual(len(self.network.known().directories), 5)
        self.pass_s(EVERY_S * 3)
        self.assertEqual(self.tor.rings, 2)

    def test_another_tor(self) -> None:
        finish(self.network.attach(self.tor))
        self.pass_s(1)
        other = FakeNetwork(self.clock, LATER)
        finish(self.network.attach(other))
        self.tor.arrived()
        self.pass_s(1)
        self.assertEqual((self.tor.rings, self.network.ring), (1, LATER))

    def test_silence_keeps_what_is_known(self) -> None:
        finish(self.network.attach(self.tor))
        self.pass_s(1)
        self.tor.silent = True
        self.pass_s(EVERY_S)
        self.assertEqual((self.network.known(), self.network.failed), (RING, "tor does not answer"))


class WhatComesNext(SynchronousTestCase):
    @given(
        st.integers(1_500_000_000, 2_000_000_000),
        st.sampled_from([(20, True), (30, True), (300, True), (1800, False), (3600, False)]),
    )
    def test_nothing_changes_before_and_something_then(self, at_s: int, network: tuple[int, bool]) -> None:
        interval_s, testing = network
        length_min = 24 * interval_s // 60
        time = NetworkTime(
            valid_after_s=at_s // interval_s * interval_s,
            interval_s=interval_s,
            testing=testing,
            length_min=max(30, length_min),
        )
        nxt = turns(time)
        self.assertGreater(nxt.due_s, time.valid_after_s)
        self.assertGreaterEqual(nxt.due_s, nxt.asked_for_s)

        def at(seconds: int) -> NetworkTime:
            return msgspec.structs.replace(time, valid_after_s=seconds // interval_s * interval_s)

        periods = [due.period for due in time.due()]
        self.assertEqual([due.period for due in at(nxt.due_s - 1).due()], periods)
        self.assertNotEqual([due.period for due in at(nxt.due_s).due()], periods)
        moment = time.valid_after_s
        while moment + interval_s <= nxt.asked_for_s - 1:
            moment += interval_s
            self.assertEqual(at(moment).asked_for().period, time.asked_for().period)
