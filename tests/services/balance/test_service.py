"""Whole nodes in simulated time: what visitors get, whatever happens to nodes, heads, links, tors and the book."""

from __future__ import annotations

import msgspec
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.balance import HeadReport
from ron.services.balance.cluster import Siege, Standing
from ron.services.balance.config import BalancedService
from ron.services.balance.words import ASK_PUBLISH, PublishAsked
from ron.tor.descriptor.periods import RUN_ROUNDS
from tests.services.balance.joined import DETECTED_S, MAIN, World, asked_for
from tests.services.balance.publishing.samples import INTERVAL_S, TIME


class Joined(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(Clock())
        self.addCleanup(self.world.end)


class Failures(Joined):
    def test_the_first_service(self) -> None:
        world = self.world
        world.settled("abc")
        self.assertEqual((world.leaders(), world.listed()), ("a", "abc"))
        for node in world.nodes.values():
            self.assertEqual(node.cluster.standing.leader, "a")
            self.assertEqual(node.vault.holds(), {MAIN})
            self.assertEqual(node.head.masters, [[world.onion]])
            self.assertEqual(node.visits, {MAIN: world.onion})

    def test_a_leader_dies(self) -> None:
        world = self.world
        world.settled("abc")
        world.kill("a")
        took_s = world.until_s(lambda: world.listed() == "bc", DETECTED_S + 1.0)
        self.assertLess(took_s, DETECTED_S + 1.0)
        self.assertEqual(world.leaders(), "b")

    def test_a_leader_is_stopped_in_order(self) -> None:
        """Nobody has to find out: the next one has published within the second."""
        world = self.world
        world.settled("abc")
        world.nodes["a"].end()
        took_s = world.until_s(lambda: world.listed() == "bc", 3.0)
        self.assertLess(took_s, 1.0)
        self.assertEqual(world.leaders(), "b")
        self.flushed()

    def test_a_leader_is_stopped_while_it_publishes(self) -> None:
        world = self.world
        world.settled("abc")
        for number, directory in enumerate(world.net.ring.directories):
            if number:
                world.net.of(world.onion).down.add(directory.fingerprint)
        world.nodes["a"].asked("a test")
        world.pass_s(0.5)
        world.stop("a")
        for directory in world.net.ring.directories:
            world.net.of(world.onion).down.discard(directory.fingerprint)
        world.until_s(lambda: world.listed() == "bc", 5.0)
        world.pass_s(40.0)
        self.assertEqual((world.leaders(), world.listed()), ("b", "bc"))
        self.assertEqual(world.nodes["a"].room._repair._kept, {})
        self.flushed()

    def test_a_head_dies(self) -> None:
        world = self.world
        world.settled("abc")
        world.nodes["c"].head.broken()
        self.assertLess(world.until_s(lambda: world.listed() == "ab", 3.0), 2.5)
        self.assertEqual(world.leaders(), "a")

    def test_a_head_that_has_another_descriptor(self) -> None:
        """The other nodes get it, and visitors."""
        world = self.world
        world.settled("abc")
        before = world.revisions()
        world.nodes["c"].head.renew()
        world.pass_s(5.0)
        self.assertGreater(min(world.revisions()), max(before))
        for node in world.nodes.values():
            backend = node.room.shelf.newest("c")
            assert backend is not None
            self.assertEqual(backend.revision, 2)

    def test_a_leader_whose_tor_has_gone_hands_over_and_stays_in_the_descriptor(self) -> None:
        world = self.world
        world.settled("abc")
        world.nodes["a"].lose_tor()
        world.until_s(lambda: world.leaders() == "b", 8.0)
        world.pass_s(5.0)
        self.assertEqual(world.listed(), "abc")
        self.assertEqual(world.nodes["b"].cluster.standing.nodes["a"].beat.unfit, "its tor has gone")  # type: ignore[union-attr]
        world.nodes["a"].get_tor()
        world.pass_s(10.0)
        self.assertEqual(world.leaders(), "a")

    def test_a_tor_that_is_away_for_a_moment_costs_nothing(self) -> None:
        world = self.world
        world.settled("abc")
        posted = world.nodes["b"].tor.posted
        world.nodes["a"].lose_tor()
        world.pass_s(1.5)
        world.nodes["a"].get_tor()
        world.pass_s(10.0)
        self.assertEqual((world.leaders(), world.nodes["b"].tor.posted), ("a", posted))

    def test_a_node_that_comes_back_does_not_lead_again_at_once(self) -> None:
        world = self.world
        world.settled("abc")
        world.kill("a")
        world.pass_s(5.0)
        world.start("a")
        world.pass_s(10.0)
        self.assertEqual((world.leaders(), world.listed()), ("b", "abc"))
        self.assertEqual(world.nodes["a"].vault.holds(), {MAIN})

    def test_another_period(self) -> None:
        """All know of it at about the same time; one publishes, and what is there is of the new one."""
        world = self.world
        world.settled("abc")
        time = msgspec.structs.replace(TIME, valid_after_s=TIME.valid_after_s + RUN_ROUNDS * INTERVAL_S)
        world.net.consensus(msgspec.structs.replace(world.net.ring, time=time))
        world.pass_s(5.0)
        self.assertEqual((world.leaders(), world.listed()), ("a", "abc"))
        due = {due.period.number for due in time.due()}
        self.assertEqual({told.period for told in world.nodes["a"].cluster.beat(world.clock.seconds()).published}, due)
        world.kill("a")
        world.until_s(lambda: world.listed() == "bc", DETECTED_S + 1.0)

    def test_a_leader_dies_as_the_period_changes(self) -> None:
        world = self.world
        world.settled("abc")
        time = msgspec.structs.replace(TIME, valid_after_s=TIME.valid_after_s + RUN_ROUNDS * INTERVAL_S)
        world.kill("a")
        world.net.consensus(msgspec.structs.replace(world.net.ring, time=time))
        world.until_s(lambda: world.listed() == "bc", DETECTED_S + 1.5)

    def flushed(self) -> None:
        self.assertEqual([str(failure) for failure in self.flushLoggedErrors()], [])


class Defects(Joined):
    """Of our own: none of them makes a node silent for good."""

    def test_what_only_shows_it(self) -> None:
        world = self.world
        a, _b = world.settled("ab")

        def broken(_standing: Standing) -> None:
            raise RuntimeError("a test")

        self.patch(a.service, "_stands", broken)
        world.pass_s(10.0)
        self.assertEqual((world.leaders(), world.listed()), ("a", "ab"))
        self.assertGreater(len(self.flushLoggedErrors(RuntimeError)), 5)

    def test_a_head_that_breaks_off(self) -> None:
        """A node that cannot decide is silent, and the others go on; it is back when it can."""
        world = self.world
        a, _b = world.settled("ab")
        shown = a.head.report

        def broken() -> HeadReport:
            raise RuntimeError("a test")

        self.patch(a.head, "report", broken)
        world.until_s(lambda: world.listed() == "b", 6.0)
        self.assertEqual(world.nodes["b"].cluster.standing.leader, "b")
        self.patch(a.head, "report", shown)
        world.pass_s(10.0)
        self.assertEqual(world.listed(), "ab")
        self.assertTrue(self.flushLoggedErrors(RuntimeError))

    def test_stopped_it_hears_nothing(self) -> None:
        world = self.world
        a, b = world.settled("ab")
        b.end()
        sent = b.mesh.sent
        world.pass_s(0.1)
        a.mesh.send("b", ASK_PUBLISH, PublishAsked(why="a test"))
        b.service.soon()
        b.service.tell()
        b.mesh.book.put("siege/a", Siege(on=True))
        world.pass_s(5.0)
        self.assertEqual(b.mesh.sent, sent)
        self.assertFalse([key for key in b.health.snapshot().degraded if key.startswith("balance.")])


class Orders(Joined):
    def test_a_siege_by_order(self) -> None:
        world = self.world
        a, b, _c = world.settled("abc")
        shown = world.done(a.desk.siege("b", True, None))
        # the order is given; visitors go by what is published, and that is told as it is
        self.assertEqual((shown.in_descriptor, shown.planned_in), (True, ()))
        self.assertEqual(shown.out, "an operator says that it is under siege")
        self.assertLess(world.until_s(lambda: world.listed() == "ac", 3.0), 2.5)
        world.pass_s(1.0)
        self.assertEqual(b.head.shown.mode, "ghost")
        self.assertEqual([ghost.node for ghost in world.done(a.desk.ghosts())], ["b"])
        world.done(a.desk.siege("b", False, None))
        world.until_s(lambda: world.listed() == "abc", 5.0)
        self.assertEqual(b.head.shown.mode, "serving")

    def test_a_siege_that_the_head_notices(self) -> None:
        world = self.world
        world.settled("abc")
        world.nodes["c"].head.say(under_siege=True, introductions_per_s=200.0)
        self.assertLess(world.until_s(lambda: world.listed() == "ab", 3.0), 2.0)

    def test_the_roulette_turns_and_ends(self) -> None:
        world = self.world
        a, *_ = world.settled("abcd", roulette_s=10)
        answer = world.done(a.desk.roulette(True, 25))
        self.assertTrue(answer.until and answer.warning)
        world.pass_s(7.0)
        first = world.listed()
        world.pass_s(10.0)
        second = world.listed()
        self.assertEqual(({len(first), len(second)}, first == second), ({2}, False))
        world.pass_s(15.0)
        self.assertEqual(world.listed(), "abcd")
        self.assertIsNone(world.done(a.desk.status()).roulette_until)

    def test_promote(self) -> None:
        world = self.world
        a, _b, c = world.settled("abc")
        world.done(a.desk.promote("c", 60))
        world.pass_s(5.0)
        self.assertEqual((world.leaders(), world.listed()), ("c", "abc"))
        self.assertEqual(world.done(c.desk.status()).leader.why, "promoted by an operator")
        world.done(c.desk.promote(None, None))
        world.pass_s(5.0)
        self.assertEqual(world.leaders(), "a")

    def test_publish_asked_at_a_follower(self) -> None:
        world = self.world
        _a, b, _c = world.settled("abc")
        world.pass_s(3.0)
        before = max(world.revisions())
        self.assertEqual(world.done(b.desk.publish(None)).leader, "a")
        world.pass_s(2.0)
        self.assertGreater(min(world.revisions()), before)

    def test_the_canary_of_a_follower_asks_the_leader(self) -> None:
        world = self.world
        world.settled("abc")
        world.pass_s(3.0)
        before = max(world.revisions())
        self.assertEqual(world.nodes["c"].asked("visits as a client fail"), "a")
        world.pass_s(2.0)
        self.assertGreater(min(world.revisions()), before)

    def test_leave(self) -> None:
        world = self.world
        _a, b, _c = world.settled("abc")
        self.assertEqual(world.done(b.desk.leave()), "b")
        self.assertEqual(b.vault.holds(), frozenset())
        world.pass_s(1.0)
        self.assertEqual((b.left, b.service.running), (1, False))
        world.pass_s(3.0)
        self.assertEqual((world.leaders(), world.listed()), ("a", "ac"))
        self.assertNotIn("b", world.nodes["a"].mesh.members())

    def test_the_leader_leaves(self) -> None:
        world = self.world
        a, *_ = world.settled("abc")
        world.done(a.desk.leave())
        world.pass_s(3.0)
        self.assertEqual((world.leaders(), world.listed()), ("b", "bc"))

    def test_remove(self) -> None:
        world = self.world
        a, *_ = world.settled("abc")
        world.done(a.desk.remove("c"))
        world.hub.kill("c")
        world.pass_s(3.0)
        self.assertEqual(world.listed(), "ab")
        removed = next(member for member in world.done(a.desk.status()).members if member.name == "c")
        self.assertEqual((removed.state, removed.head, removed.connected), ("removed", None, False))


class Partitions(Joined):
    def test_both_sides_publish_and_become_one_again(self) -> None:
        world = self.world
        world.settled("abcd")
        world.hub.partition("ab", "cd")
        world.until_s(lambda: world.leaders() == "ac", 10.0)
        world.pass_s(10.0)
        # what is there is of either side, whole, and of an address that verifies
        self.assertIn(world.listed(), {"ab", "cd"})
        self.assertTrue(world.nodes["c"].tor.posted and world.nodes["a"].tor.posted)
        world.hub.heal()
        world.pass_s(20.0)
        self.assertEqual((world.leaders(), world.listed()), ("a", "abcd"))
        self.assertEqual(len(world.revisions()), 1)

    def test_two_that_lead_do_not_excite_each_other(self) -> None:
        world = self.world
        world.settled("ab")
        world.hub.cut("a", "b", both=False)
        world.pass_s(10.0)
        sent = world.nodes["a"].mesh.sent
        world.pass_s(10.0)
        self.assertLess(world.nodes["a"].mesh.sent - sent, 60)

    def test_a_bad_network(self) -> None:
        world = self.world
        world.settled("abc")
        world.hub.loss = 0.3
        world.hub.latency("a", "c", 0.4)
        world.pass_s(60.0)
        self.assertEqual((world.leaders(), world.listed()), ("a", "abc"))
        self.assertLess(world.nodes["b"].cluster.standing.changes, 3)

    def test_a_leader_whose_clock_is_off(self) -> None:
        """The mesh measures it; another leads, and its counters are above those of the wrong clock."""
        world = self.world
        world.settled("a", offset_s=600.0)
        for name in world.start("bc"):
            name.mesh.drift_s["a"] = 600.0
            world.nodes["a"].mesh.drift_s[name.name] = -600.0
        world.pass_s(12.0)
        self.assertEqual(world.nodes["a"].cluster.standing.unfit, "its clock is off")
        self.assertEqual((world.leaders(), world.listed()), ("b", "abc"))


class Groups(Joined):
    def test_shares_made_anew_are_new_keys_for_the_descriptor(self) -> None:
        world = self.world
        named = BalancedService(name=MAIN, ports=("80:127.0.0.1:8080",), mode="threshold")
        a, b, c = world.start("abc", services=(named,))
        world.pass_s(4.0)
        world.done(a.desk.create(MAIN, "threshold", 2, 3, (), None), 5.0)
        world.pass_s(9.0)
        self.assertEqual((world.leaders(), world.listed()), ("a", "abc"))
        now = asked_for(world)
        first = a.room.keys._keys[MAIN, now]
        # of a key that is nobody's, only whoever leads has something to publish with
        self.assertFalse(b.room.keys.ready(MAIN, [now]) or c.room.keys.ready(MAIN, [now]))
        before = max(world.revisions())
        shown = world.done(a.desk.refresh(MAIN), 5.0)
        world.pass_s(4.0)
        self.assertEqual(shown.epoch, 2)
        self.assertIsNot(a.room.keys._keys[MAIN, now], first)
        self.assertGreater(min(world.revisions()), before)
        world.done(a.desk.promote("c", None))
        world.pass_s(5.0)
        self.assertEqual(world.leaders(), "c")
        self.assertFalse(a.room.keys.ready(MAIN, [now]))

    def test_too_few_to_sign(self) -> None:
        """The last descriptor lives on, the view says why, and the one that is left is not silent."""
        world = self.world
        named = BalancedService(name=MAIN, ports=("80:127.0.0.1:8080",), mode="threshold")
        a, _b, c = world.start("abc", services=(named,))
        world.pass_s(4.0)
        world.done(a.desk.create(MAIN, "threshold", 2, 3, (), None), 5.0)
        world.pass_s(9.0)
        world.kill("a")
        world.kill("b")
        world.pass_s(20.0)
        self.assertEqual(world.listed(), "abc")
        self.assertIn("1 of the 2 nodes", " ".join(world.done(c.desk.status()).warnings))
        self.flushLoggedErrors()
