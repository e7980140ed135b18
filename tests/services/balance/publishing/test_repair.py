"""Directories that lose, keep or never get what they are given; rivals; periods that end."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import RonError
from ron.services.balance.publishing.counters import CLIMB_TO
from ron.services.balance.publishing.publisher import Publication
from ron.services.balance.publishing.repair import CHECK_S, Repair
from ron.services.balance.publishing.schedule import EMERGENCY_AGE_S, PAUSES_S, STEADY_S, Asked, Found
from ron.tor.descriptor.build import build
from ron.tor.descriptor.periods import RUN_ROUNDS
from tests.services.balance.publishing.samples import (
    INTERVAL_S,
    MASTER,
    NEWER,
    OLDER,
    TIME,
    Inline,
    backend,
    points,
    ring_with,
)
from tests.services.balance.publishing.test_publisher import World
from tests.tor.descriptor.samples import descriptor_key

RING = ring_with()
NAMES = [node.fingerprint for node in RING.directories]
HEADS = {"a": backend("a")}


class Keeping(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(RING)
        self.tor = self.world.tor
        self.asked: list[Asked] = []
        self.obedient = False
        self.every_s = 600.0
        self.repair = Repair(
            self.world.clock,
            ring=self.world.known,
            directories=lambda: self.tor,
            publisher=self.world.publisher,
            counters=self.world.counters,
            threads=Inline(),
            now_s=self.world.now_s,
            figures=self.world.figures,
            ask=self.ask,
            every_s=lambda: self.every_s,
        )
        self.addCleanup(self.stopped)

    def stopped(self) -> None:
        self.repair.stop_all()
        self.world.pass_s(40)
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def ask(self, service: str, why: Asked) -> None:
        self.assertEqual(service, "shop")
        self.asked.append(why)
        if self.obedient:
            Deferred.fromCoroutine(self.publish()).addErrback(lambda failure: failure.trap(RonError))

    async def publish(self) -> None:
        self.repair.published(await self.world.publishing(HEADS))

    def published(self) -> Publication:
        done = self.world.publishing(HEADS)
        self.world.pass_s(0.2)
        publication = self.successResultOf(done)
        self.repair.published(publication)
        return publication

    def foreign(self, revision: int, period: Any = OLDER) -> str:
        """Another publisher's descriptor of the master, by the same key."""
        return build(descriptor_key(MASTER, period), points("elsewhere"), revision)

    def held(self, period: Any = OLDER) -> set[str]:
        return set(self.tor.holding(period))

    def held_ours(self, publication: Publication) -> list[bool]:
        placed = publication.placed[0]
        return [self.tor.holding(placed.due.period).get(name) == text for name, text in placed.texts.items()]

    # reading back

    def test_all_is_well(self) -> None:
        self.published()
        self.world.pass_s(100)
        self.assertEqual(self.repair.holding("shop"), dict.fromkeys(NAMES, Found.HELD))
        self.assertEqual(self.asked, [])
        self.assertEqual(self.world.figure("balance_directories_holding", service="shop"), 5)

    def test_one_that_lost_it_has_it_again(self) -> None:
        publication = self.published()
        del self.tor.kept[NAMES[2], OLDER.number]
        self.world.pass_s(PAUSES_S[0] + 1)
        self.assertEqual(self.held_ours(publication), [True] * 5)
        self.assertEqual(self.repair.holding("shop")[NAMES[2]], Found.HELD)
        self.assertEqual(self.world.figure("balance_repairs_total", found="missing"), 1)
        # much later too
        self.world.pass_s(200)
        del self.tor.kept[NAMES[0], OLDER.number]
        self.world.pass_s(STEADY_S)
        self.assertEqual(self.held_ours(publication), [True] * 5)
        self.assertEqual(self.asked, [])

    def test_one_that_says_yes_and_keeps_nothing(self) -> None:
        self.tor.lazy = {NAMES[0]}
        self.published()
        self.world.pass_s(20)
        self.assertEqual(self.held(), set(NAMES[1:]))
        self.assertGreaterEqual(self.world.figure("balance_repairs_total", found="missing"), 2)
        self.assertEqual(self.asked, [])

    def test_an_older_one_of_another_publisher(self) -> None:
        """Its upload came late, on another circuit: it had ours refused, or took ours and lost it."""
        publication = self.published()
        self.tor.kept[NAMES[1], OLDER.number] = 5, self.foreign(5)
        self.world.pass_s(PAUSES_S[0] + 1)
        self.assertEqual(self.held_ours(publication), [True] * 5)
        self.assertEqual(self.asked, [])

    def test_nonsense(self) -> None:
        publication = self.published()
        self.tor.kept[NAMES[1], OLDER.number] = 0, "hs-descriptor 3\nsomething\n"
        self.world.pass_s(PAUSES_S[0] + 1)
        self.assertEqual(self.held_ours(publication), [True] * 5)
        self.assertEqual(self.world.figure("balance_repairs_total", found="broken"), 1)

    def test_a_silent_one_is_left_alone(self) -> None:
        self.tor.down = {NAMES[3]}
        done = self.world.publishing(HEADS)
        self.world.pass_s(31)
        self.repair.published(self.successResultOf(done))
        self.world.pass_s(90)
        self.assertIs(self.repair.holding("shop")[NAMES[3]], Found.SILENT)
        self.assertEqual(self.asked, [])
        self.tor.down = set()
        self.world.pass_s(STEADY_S)
        self.assertEqual(self.repair.holding("shop"), dict.fromkeys(NAMES, Found.HELD))
        self.assertEqual((self.held(OLDER), self.held(NEWER)), (set(NAMES), set(NAMES)))

    def test_the_other_period(self) -> None:
        """It cannot be read back; it is given again, and only who lost it takes it."""
        self.published()
        del self.tor.kept[NAMES[4], NEWER.number]
        self.world.pass_s(sum(PAUSES_S[:2]) + 2)
        self.assertNotIn(NAMES[4], self.held(NEWER))
        self.world.pass_s(PAUSES_S[2])
        self.assertEqual(self.held(NEWER), set(NAMES))
        self.assertEqual(self.asked, [])

    def test_a_tor_that_is_gone_for_a_while(self) -> None:
        publication = self.published()
        self.tor.silent = True
        self.world.pass_s(60)
        del self.tor.kept[NAMES[2], OLDER.number]
        self.tor.silent = False
        self.world.pass_s(120)
        self.assertEqual(self.held_ours(publication), [True] * 5)

    # others' counters

    def test_a_dead_leader_whose_clock_was_ahead(self) -> None:
        """Its counters are refused above ours; one read-back later both periods are ours."""
        for name in NAMES:
            self.tor.put(name, self.foreign(10**12))
            self.tor.put(name, self.foreign(10**12, NEWER))
        self.obedient = True
        publication = self.published()
        self.assertEqual(len(publication.placed[0].posted.refused), 5)
        self.world.pass_s(12)
        for period in (OLDER, NEWER):
            revisions = [self.tor.kept[name, period.number][0] for name in NAMES]
            self.assertTrue(all(revision > 10**12 for revision in revisions), revisions)
        self.assertEqual(set(self.asked), {Asked.FOREIGN})

    def test_the_other_period_alone(self) -> None:
        """Refused, and nobody can read by how much: counters climb until it is enough, at a rival's pace."""
        for name in NAMES:
            self.tor.put(name, self.foreign(10**9, NEWER))
        self.obedient = True
        self.published()
        self.world.pass_s(100)
        self.assertTrue(all(self.tor.kept[name, NEWER.number][0] > 10**9 for name in NAMES))
        self.assertLess(len(self.asked), 6)

    def test_refused_for_ever(self) -> None:
        """Whatever it is that they dislike, it is not the counter: it does not climb to where there is none left."""
        self.tor.refusing = set(NAMES)
        self.obedient = True
        self.published()
        self.world.pass_s(300)
        self.assertLess(len(self.asked), 8)
        for _ in range(20):
            self.world.counters.refused("shop", NEWER, self.world.counters.seen("shop", NEWER))
        self.assertLessEqual(self.world.counters.next("shop", NEWER), CLIMB_TO + 1)

    def test_a_foreign_one_that_comes_later(self) -> None:
        publication = self.published()
        self.tor.put(NAMES[0], self.foreign(publication.placed[0].revision + 500))
        self.obedient = True
        self.world.pass_s(PAUSES_S[0] + 2)
        self.assertEqual(self.asked, [Asked.FOREIGN])
        self.assertGreater(self.tor.kept[NAMES[0], OLDER.number][0], publication.placed[0].revision + 500)

    def test_two_who_do_not_know_of_each_other_do_not_race(self) -> None:
        self.obedient = True
        self.published()
        for _ in range(100):
            mine = self.tor.kept[NAMES[0], OLDER.number][0]
            self.tor.put(NAMES[0], self.foreign(mine + 1))
            self.world.pass_s(3)
        self.assertTrue(3 <= len(self.asked) <= 8, self.asked)

    def test_our_own_next_publication_is_not_foreign(self) -> None:
        """While the report of a later one waits for a silent directory, the one before is still looked after."""
        self.published()
        self.tor.down = {NAMES[4]}
        self.world.publishing(HEADS)
        self.world.pass_s(PAUSES_S[0] + 2)
        self.assertEqual(self.asked, [])
        self.assertIs(self.repair.holding("shop")[NAMES[0]], Found.HELD)

    def test_an_overtaken_report_changes_nothing(self) -> None:
        first = self.published()
        self.world.pass_s(1)
        second = self.published()
        self.repair.published(first)
        del self.tor.kept[NAMES[3], OLDER.number]
        self.world.pass_s(PAUSES_S[0] + 1)
        self.assertEqual(self.held_ours(second), [True] * 5)
        self.assertEqual(self.asked, [])

    # in time

    def test_too_old(self) -> None:
        self.published()
        self.world.pass_s(600 - CHECK_S)
        self.assertEqual(self.asked, [])
        self.world.pass_s(2 * CHECK_S)
        self.assertEqual(self.asked, [Asked.TOO_OLD])

    def test_asked_again_until_it_is_done(self) -> None:
        self.every_s = 10.0
        self.published()
        self.world.pass_s(31)
        self.assertGreaterEqual(len(self.asked), 3)
        self.obedient = True
        self.asked.clear()
        self.world.pass_s(60)
        self.assertTrue(4 <= len(self.asked) <= 6, self.asked)

    def test_not_while_one_is_under_way(self) -> None:
        self.every_s = 5.0
        self.published()
        self.tor.down = set(NAMES)
        self.world.publishing(HEADS)
        self.world.pass_s(25)
        self.assertEqual(self.asked, [])

    def test_a_new_consensus(self) -> None:
        self.published()
        self.world.pass_s(1)
        self.world.ring = ring_with(count=7)
        self.repair.consensus()
        self.world.pass_s(0.1)
        self.assertEqual(self.asked, [Asked.NEW_DIRECTORIES])

    def test_a_new_period(self) -> None:
        self.published()
        self.world.pass_s(1)
        time = msgspec.structs.replace(TIME, valid_after_s=TIME.valid_after_s + RUN_ROUNDS * INTERVAL_S)
        self.world.ring = self.tor.now_ring = msgspec.structs.replace(RING, time=time)
        self.repair.consensus()
        self.world.pass_s(0.1)
        self.assertEqual(self.asked, [Asked.NEW_PERIOD])

    def test_without_a_consensus(self) -> None:
        self.published()
        self.world.ring = None
        self.world.pass_s(60)
        self.assertEqual(self.asked, [])
        self.world.ring = RING
        self.world.pass_s(600)
        self.assertIn(Asked.TOO_OLD, self.asked)

    def test_before_the_lifetime_whatever_the_pace(self) -> None:
        self.every_s = 1e9
        self.published()
        self.world.clock.advance(EMERGENCY_AGE_S)
        self.world.pass_s(1)
        self.assertEqual(self.asked, [Asked.TOO_OLD])

    def test_stopped(self) -> None:
        self.published()
        self.repair.stop("shop")
        self.repair.stop("mail")
        del self.tor.kept[NAMES[2], OLDER.number]
        fetches = len(self.tor.fetches)
        self.world.pass_s(700)
        self.assertEqual((len(self.tor.fetches), self.asked, self.repair.holding("shop")), (fetches, [], {}))
