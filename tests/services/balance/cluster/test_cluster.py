"""The whole: stories of a cluster, and what a lying member gets."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.balance import Beat, HeadReport, Published
from ron.services.balance.cluster import Cluster, Orders, Promote, Standing, Timing
from ron.services.balance.config import BalanceConfig
from tests.services.balance.cluster.world import TIMING, UNIX_MS, World

LIE = Beat(born_ms=0, fit=True, leads=True, services=("main",), hears=("a", "b", "c"))


class Liar:
    """A member of `world` that says what it likes to everybody, every beat. Its own cluster's decisions go nowhere."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.said: dict[str, Beat] = {}
        world.nodes[name].broken = True

    def lie(self, seconds: float, beat: Beat = LIE) -> None:
        for _ in range(round(seconds * 2)):
            self.world.cuts |= {(self.name, other) for other in self.world.nodes}
            for node in self.world.alive():
                if node.name != self.name and node.cluster is not None:
                    node.cluster.heard(self.name, self.said.get(node.name, beat), self.world.now_s, 0.0)
            self.world.step()

    def honest(self) -> list[Standing]:
        return [node.standing for node in self.world.alive() if node.name != self.name]


class Stories(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(3)

    def test_no_flash_of_two_leaders_at_the_start(self) -> None:
        self.world.start_all()
        for _ in range(40):
            self.world.step()
            self.assertLessEqual(len(self.world.leaders()), 1)
        self.assertEqual((self.world.followed(), len(self.world.postings)), ({"a"}, 1))

    def test_who_hears_nobody_leads_alone(self) -> None:
        self.world.start("b")
        self.world.run(TIMING.listen_s)
        self.assertEqual(self.world.leaders(), set())
        self.world.run(TIMING.listen_s + 3)
        self.assertEqual((self.world.leaders(), self.world.listed()), ({"b"}, ("b",)))

    def test_a_killed_leader_is_replaced_in_seconds(self) -> None:
        for link_seen, bound_s in ((True, TIMING.gone_s + 2), (False, TIMING.suspect_s + 2)):
            self.world = World(3)
            self.world.start_all()
            self.world.run(15)
            killed_s = self.world.now_s
            self.world.crash("a", link_seen=link_seen)
            self.world.run(10)
            first = next(each for each in self.world.postings if each.at_s > killed_s)
            self.assertEqual((first.author, first.heads), ("b", ("b", "c")))
            self.assertLessEqual(first.at_s - killed_s, bound_s)

    def test_who_comes_back_is_a_newcomer(self) -> None:
        self.world.start_all()
        self.world.run(10)
        self.world.crash("a")
        self.world.run(10)
        self.world.start("a")
        self.world.run(20)
        self.assertEqual((self.world.followed(), self.world.listed()), ({"b"}, ("a", "b", "c")))

    def test_both_sides_publish_and_one_is_left_after_healing(self) -> None:
        self.world.start_all()
        self.world.run(10)
        self.world.partition("a", "bc")
        self.world.run(10)
        self.assertEqual(self.world.leaders(), {"a", "b"})
        self.assertEqual({each.heads for each in self.world.postings[-2:]}, {("a",), ("b", "c")})
        self.world.heal()
        self.world.run(10)
        self.assertEqual((self.world.followed(), self.world.listed()), ({"a"}, ("a", "b", "c")))
        self.assertEqual(self.world.nodes["c"].standing.rivals, ())

    def test_a_leader_that_cannot_publish_steps_down_and_proves_itself_before_it_is_back(self) -> None:
        self.world.start_all()
        self.world.run(10)
        self.world.nodes["a"].broken = True
        self.world.run(40)
        self.assertEqual(self.world.followed(), {"b"})
        self.assertEqual(self.world.nodes["a"].standing.unfit, "could not publish")
        changes = self.world.nodes["c"].standing.changes
        self.world.run(60)
        self.assertEqual(self.world.nodes["c"].standing.changes, changes)
        self.world.nodes["a"].broken = False
        self.world.run(12)
        self.assertEqual(self.world.followed(), {"a"})
        self.assertIn("proving", [each.reason for each in self.world.postings if each.author == "a"])

    def test_when_nobody_can_publish_the_eldest_goes_on_trying(self) -> None:
        self.world.start_all()
        self.world.run(10)
        for node in self.world.nodes.values():
            node.broken = True
        self.world.run(120)
        self.assertEqual(len(self.world.followed()), 1)
        self.world.nodes["c"].broken = False
        self.world.run(30)
        self.assertEqual(self.world.followed(), {"c"})

    def test_a_promotion_ends(self) -> None:
        self.world.start_all()
        self.world.run(10)
        until_ms = UNIX_MS + int(1000 * (self.world.now_s + 10))
        self.world.promote = Promote(node="c", until_ms=until_ms)
        self.world.run(5)
        self.assertEqual(self.world.followed(), {"c"})
        self.assertEqual(self.world.nodes["b"].standing.why, "promoted by an operator")
        self.world.run(10)
        self.assertEqual(self.world.followed(), {"a"})

    def test_a_late_clock_makes_nobody_the_eldest(self) -> None:
        for name in "ab":
            self.world.start(name)
        self.world.run(10)
        self.world.start("c", offset_s=-600)
        self.world.run(10)
        self.assertEqual((self.world.followed(), self.world.nodes["c"].standing.unfit), ({"a"}, "its clock is off"))
        self.world.nodes["c"].offset_s = 0
        self.world.run(20)
        self.assertEqual((self.world.followed(), self.world.nodes["c"].standing.fit), ({"a"}, True))

    def test_a_sieged_head_leaves_and_becomes_a_ghost_once_no_descriptor_lists_it(self) -> None:
        self.world.start_all()
        self.world.run(10)
        self.world.nodes["c"].flooded = 500.0
        started_s = self.world.now_s
        while not self.world.nodes["c"].ghost:
            self.world.step()
        self.assertEqual(self.world.listed(), ("a", "b"))
        self.assertLessEqual(self.world.now_s - started_s, 3)
        self.world.nodes["c"].flooded = 0.0
        self.world.run(TIMING.quiet_s + 5)
        self.assertEqual((self.world.listed(), self.world.nodes["c"].ghost), (("a", "b", "c"), False))

    def test_a_sieged_head_serves_on_while_nobody_publishes_without_it(self) -> None:
        self.world.start_all()
        self.world.run(10)
        for node in self.world.nodes.values():
            node.broken = True
        self.world.nodes["c"].flooded = 500.0
        self.world.run(30)
        self.assertFalse(self.world.nodes["c"].ghost)


class Lies(SynchronousTestCase):
    """d is the liar; a leads."""

    def setUp(self) -> None:
        self.world = World(4)
        for name in "abc":
            self.world.start(name)
        self.world.run(15)
        self.liar = Liar(self.world, "d")

    def test_who_boasts_of_its_age_and_does_not_publish_changes_nothing(self) -> None:
        before = len(self.world.postings)
        for _ in range(4):
            self.liar.lie(20)
            # a goes on until its elder has published, and then knows that it does not
            self.assertIn("a", self.world.leaders())
        self.assertGreaterEqual(len(self.world.postings) - before, 3)
        self.assertEqual(self.world.followed(), {"a"})
        self.assertEqual(self.world.nodes["b"].standing.passed_over, {"d": "has not told that it published"})

    def test_who_says_fit_and_never_leads_is_passed_over_too(self) -> None:
        self.liar.lie(60, msgspec.structs.replace(LIE, leads=False))
        self.assertEqual(self.world.followed(), {"a"})

    def test_who_also_claims_to_have_published_leads_until_an_operator_acts(self) -> None:
        """Nobody but the author reads descriptors back. A promotion of another is enough."""
        claim = Published(service="main", period=8, revision=2**63 - 1, heads=("d",), taken=6, directories=6)
        lie = msgspec.structs.replace(LIE, published=(claim,))
        self.liar.lie(10, lie)
        self.assertEqual({each.leader for each in self.liar.honest()}, {"d"})
        # whoever is wanted serves, whatever a descriptor is said to list
        self.assertEqual({each.duties.head for each in self.liar.honest()}, {"serve"})
        self.world.promote = Promote(node="a")
        self.liar.lie(5, lie)
        self.assertEqual(self.world.followed(), {"a"})
        self.assertEqual(self.world.postings[-1].author, "a")

    def test_different_stories_to_different_nodes_split_nobody_for_long(self) -> None:
        self.liar.said = {"a": LIE, "b": msgspec.structs.replace(LIE, fit=False, unfit="no tor"), "c": LIE}
        self.liar.lie(60)
        self.assertEqual(self.world.followed(), {"a"})

    def test_restarts_without_end_win_nothing(self) -> None:
        for life in range(30):
            self.liar.lie(4, msgspec.structs.replace(LIE, born_ms=life))
            self.assertIn("a", self.world.leaders())

    def test_absurd_heads_are_out_or_in_and_nothing_else(self) -> None:
        mad = HeadReport(
            mode="serving", descriptor="x", healthy=True, introductions_per_s=1e9, sessions=2**63 - 1, attacks=2**63 - 1
        )
        self.liar.lie(10, msgspec.structs.replace(LIE, fit=False, head=mad, hears=("nobody", "x-y", "d")))
        self.assertEqual((self.world.followed(), self.world.listed()), ({"a"}, ("a", "b", "c")))

    def test_a_head_that_changes_every_beat_costs_little(self) -> None:
        before = len(self.world.postings)
        for turn in range(240):
            head = HeadReport(mode="serving", healthy=turn % 3 > 0, descriptor=f"{turn}")
            self.liar.lie(0.5, msgspec.structs.replace(LIE, fit=False, head=head))
        # 120 s: six for age, five changes and one each change_s, what flaps is damped
        self.assertLess(len(self.world.postings) - before, 45)
        self.assertEqual(self.world.followed(), {"a"})

    @settings(max_examples=12, deadline=None)
    @given(st.data())
    def test_no_beat_of_the_right_shape_breaks_anybody(self, data: Any) -> None:
        names = st.sampled_from(["a", "b", "c", "d", "nobody"])
        published = st.builds(
            Published,
            service=st.sampled_from(["main", "other"]),
            period=st.integers(0, 2**63 - 1),
            revision=st.integers(0, 2**63 - 1),
            heads=st.lists(names, max_size=3).map(tuple),
            ago_ms=st.integers(0, 2**63 - 1),
        )
        head = st.builds(
            HeadReport,
            mode=st.sampled_from(["starting", "serving", "ghost", "down"]),
            descriptor=st.text(max_size=3),
            healthy=st.booleans(),
            under_siege=st.booleans(),
            introductions_per_s=st.floats(0, 1e9),
        )
        beats = st.builds(
            Beat,
            born_ms=st.integers(0, 2**63 - 1),
            fit=st.booleans(),
            unfit=st.text(max_size=20),
            leads=st.booleans(),
            head=head,
            hears=st.lists(names, max_size=5).map(tuple),
            published=st.lists(published, max_size=4).map(tuple),
            services=st.lists(st.sampled_from(["main", "other"]), max_size=2).map(tuple),
        )
        drifts = st.one_of(st.none(), st.floats(-1e12, 1e12))
        cluster = Cluster("a", TIMING, now_s=0.0, unix_ms=UNIX_MS)
        cluster.members("abcd")
        cluster.services({"main"}, {"main"})
        cluster.head(HeadReport(mode="serving", healthy=True, descriptor="d"))
        for at in range(1, 8):
            for name in "bcd":
                cluster.heard(name, data.draw(beats), float(at), data.draw(drifts))
            standing = cluster.tick(float(at), UNIX_MS + 1000 * at)
            self.assertTrue(standing.plan.listed)
            msgspec.msgpack.decode(msgspec.msgpack.encode(cluster.beat(float(at))), type=Beat)


class Alone(SynchronousTestCase):
    def test_before_the_first_tick_it_leads_nobody(self) -> None:
        beat = Cluster("a", TIMING, now_s=0.0, unix_ms=UNIX_MS).beat(0.0)
        self.assertEqual((beat.fit, beat.leads, beat.born_ms), (False, False, UNIX_MS))

    def test_a_node_without_the_key_does_not_lead_one_with_it(self) -> None:
        world = World(2)
        world.start_all()
        cluster = world.nodes["a"].cluster
        assert cluster is not None
        cluster.services({"main"}, ())
        world.run(20)
        self.assertEqual((world.followed(), world.listed()), ({"b"}, ("a", "b")))

    def test_a_node_that_says_it_is_unable_does_not_lead(self) -> None:
        world = World(2)
        world.start_all()
        cluster = world.nodes["a"].cluster
        assert cluster is not None
        world.run(10)
        cluster.unable("its tor is down")
        world.run(10)
        self.assertEqual((world.followed(), world.nodes["a"].standing.unfit), ({"b"}, "its tor is down"))

    def test_the_removed_are_not_waited_for(self) -> None:
        world = World(3)
        world.start_all()
        world.run(10)
        for name in "bc":
            cluster = world.nodes[name].cluster
            assert cluster is not None
            cluster.members("bc")
        world.run(5)
        self.assertEqual({world.nodes[name].standing.leader for name in "bc"}, {"b"})
        self.assertEqual(world.listed(), ("b", "c"))

    def test_an_order_holds_by_the_clusters_clock(self) -> None:
        world = World(3)
        world.start_all()
        world.nodes["a"].offset_s = 8.0
        world.run(10)
        cluster = world.nodes["a"].cluster
        assert cluster is not None
        cluster.orders(Orders(promote=Promote(node="b", until_ms=UNIX_MS + int(1000 * (world.now_s + 5)))))
        # by its own clock the order is over
        self.assertEqual(cluster.tick(world.now_s, world.unix_ms(world.nodes["a"])).why[:5], "until")

    def test_timing_follows_the_configuration(self) -> None:
        timing = Timing.of(BalanceConfig(beat_ms=100, suspect_ms=300, quiet_s=7))
        self.assertEqual((timing.beat_s, timing.suspect_s, timing.gone_s, timing.quiet_s), (0.1, 0.3, 0.2, 7.0))
