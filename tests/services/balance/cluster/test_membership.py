"""Who is alive, who hears whom, and who is passed over for not publishing."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.balance import Beat, Published
from ron.services.balance.cluster import State, Timing
from ron.services.balance.cluster.leases import Leases, last_published_s
from ron.services.balance.cluster.membership import Bond, Membership

TIMING = Timing(suspect_s=2.5, beat_s=0.5, gone_s=1.0, steady_s=2.5, publish_every_s=600.0, publish_grace_s=30.0)


def beat(*hears: str, **more: Any) -> Beat:
    return Beat(born_ms=1, hears=hears, **more)


class Alive(SynchronousTestCase):
    def setUp(self) -> None:
        self.members = Membership("me", TIMING)
        self.members.set_members(["me", "a", "b"])

    def state(self, name: str, now_s: float) -> State:
        return self.members.view(name, now_s).state

    def test_strangers_are_not_heard(self) -> None:
        self.assertFalse(self.members.heard("stranger", beat("me"), 1.0, 0.0))
        self.assertFalse(self.members.heard("me", beat("me"), 1.0, 0.0))
        self.assertEqual(self.members.alive(1.0), ())
        self.assertIs(self.members.bond("stranger", 1.0), Bond.NONE)

    def test_names_that_nobody_knows_in_hears_change_nothing(self) -> None:
        self.members.heard("a", beat("ghost-town", "zz", "a"), 1.0, 0.0)
        self.assertEqual((self.members.alive(1.0), self.members.view("a", 1.0).mutual), (("a",), False))

    def test_silence(self) -> None:
        self.assertIs(self.state("a", 1.0), State.UNKNOWN)
        self.members.heard("a", beat("me"), 1.0, 0.0)
        self.assertIs(self.state("a", 2.0), State.ALIVE)
        self.assertIs(self.state("a", 2.5), State.SUSPECT)
        self.assertEqual(self.members.alive(3.4), ("a",))
        self.assertIs(self.state("a", 3.5), State.DEAD)
        self.assertEqual(self.members.view("a", 4.0).why, "silent for 3.0 s")

    def test_a_broken_link_is_noticed_sooner_and_forgiven(self) -> None:
        self.members.heard("a", beat("me"), 1.0, 0.0)
        self.members.gone("a", 1.2)
        self.members.gone("a", 2.1)
        self.assertIs(self.state("a", 2.1), State.SUSPECT)
        self.assertIs(self.state("a", 2.3), State.DEAD)
        self.members.heard("b", beat("me"), 1.0, 0.0)
        self.members.gone("b", 1.2)
        self.members.heard("b", beat("me"), 1.5, 0.0)
        self.assertIs(self.state("b", 2.3), State.ALIVE)

    def test_a_beat_that_is_late_does_not_replace_a_newer_one(self) -> None:
        self.members.heard("a", beat("me", fit=True), 2.0, 0.0)
        self.assertFalse(self.members.heard("a", beat(), 1.0, 0.0))
        self.assertTrue(self.members.view("a", 2.0).mutual)

    def test_who_does_not_hear_us_is_not_followed(self) -> None:
        self.members.heard("a", beat("b"), 1.0, 0.0)
        self.assertIs(self.members.bond("a", 1.0), Bond.WARMING)
        for tick in range(8):
            self.members.heard("a", beat("b"), 1.5 + tick / 2, 0.0)
        self.assertIs(self.members.bond("a", 5.0), Bond.NONE)
        self.assertEqual(self.members.alive(5.0), ("a",))
        self.members.heard("a", beat("b", "me"), 5.5, 0.0)
        self.assertIs(self.members.bond("a", 5.5), Bond.MUTUAL)

    def test_who_was_dead_is_listened_to_before_it_is_followed(self) -> None:
        self.members.heard("a", beat("me"), 1.0, 0.0)
        self.assertIs(self.members.bond("a", 1.0), Bond.MUTUAL)
        for tick in range(6):
            self.members.heard("a", beat("me"), 10.0 + tick / 2, 0.0)
            expected = Bond.MUTUAL if tick == 5 else Bond.WARMING
            self.assertIs(self.members.bond("a", 10.0 + tick / 2), expected)

    def test_the_removed_are_forgotten(self) -> None:
        self.members.heard("a", beat("me"), 1.0, 0.0)
        self.members.set_members(["me", "b"])
        self.members.set_members(["me", "a", "b"])
        self.assertIs(self.state("a", 1.0), State.UNKNOWN)

    def test_clocks_of_the_living(self) -> None:
        self.members.heard("a", beat("me"), 1.0, 7.0)
        self.members.heard("a", beat("me"), 1.5, None)
        self.members.heard("b", beat("me"), 1.5, None)
        self.assertEqual(self.members.clocks(2.0), {"a": 7.0})
        self.assertEqual(self.members.clocks(9.0), {})


def told(service: str, ago_s: float) -> Published:
    return Published(service=service, period=1, revision=1, ago_ms=int(1000 * ago_s))


class Publications(SynchronousTestCase):
    def test_the_oldest_of_what_it_holds_counts(self) -> None:
        said = beat(services=("main", "shop"), published=(told("main", 5), told("main", 50), told("shop", 20)))
        self.assertEqual(last_published_s(said, 100.0, {"main", "shop"}), 80.0)
        self.assertEqual(last_published_s(said, 100.0, {"main"}), 95.0)
        self.assertIsNone(last_published_s(beat(services=("main",)), 100.0, {"main"}))

    def test_who_holds_nothing_owes_nothing(self) -> None:
        self.assertEqual(last_published_s(beat(services=("other",)), 100.0, {"main"}), 100.0)


class Passing(SynchronousTestCase):
    def setUp(self) -> None:
        self.leases = Leases(TIMING)

    def against(self, published_s: float | None, now_s: float, *, first: bool = True) -> str:
        return self.leases.against("a", published_s, first=first, now_s=now_s)

    def test_a_new_leader_has_a_first_chance(self) -> None:
        self.leases.chosen("a", 0.0)
        self.leases.chosen("a", 30.0)
        self.assertEqual(self.leases.left_s("a", None, 30.0), 30.0)
        self.assertLess(self.leases.left_s("a", None, 60.5), 0)

    def test_each_publication_is_good_for_a_lease(self) -> None:
        self.leases.chosen("a", 0.0)
        self.assertEqual(self.leases.left_s("a", 100.0, 200.0), 560.0)
        self.assertLess(self.leases.left_s("a", 100.0, 761.0), 0)

    def test_it_is_back_once_it_has_published(self) -> None:
        self.leases.pass_over("a", 100.0)
        self.assertTrue(self.against(None, 101.0))
        self.assertTrue(self.against(99.0, 1e6))
        self.assertFalse(self.against(100.5, 101.0))

    def test_fit_by_turns_gains_no_chances_without_end(self) -> None:
        chances = []
        now_s = 0.0
        while now_s < 50_000:
            if not self.against(None, now_s, first=int(now_s) % 2 == 0):
                chances.append(now_s)
                self.leases.pass_over("a", now_s)
            now_s += 1.0
        self.assertLess(len(chances), 9)

    @given(st.lists(st.tuples(st.floats(0, 1e5), st.booleans(), st.booleans()), max_size=30))
    def test_a_fresh_publication_always_clears(self, acts: list[tuple[float, bool, bool]]) -> None:
        for at_s, passes, first in acts:
            if passes:
                self.leases.pass_over("a", at_s)
            self.against(None, at_s, first=first)
        self.assertEqual(self.against(2e5, 2e5), "")
