"""What a node does about descriptors: whatever a publication comes to, the cluster hears how it went."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.services.balance.conductor import to_prepare
from ron.services.balance.config import BalancedService
from tests.services.balance.joined import MAIN, Node, World

TWO = tuple(BalancedService(name=name, ports=("80:127.0.0.1:8080",)) for name in (MAIN, "shop"))


class Publishing(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(Clock())
        self.addCleanup(self.world.end)

    def alone(self) -> Node:
        (a,) = self.world.settled("a", services=TWO)
        self.world.done(a.desk.create("shop", "shared", 0, 0, (), None))
        self.world.pass_s(5.0)
        return a

    def failures(self, node: Node) -> int:
        return node.cluster._agenda._failures

    def logged(self) -> int:
        return len(self.flushLoggedErrors())

    def test_both_are_told(self) -> None:
        a = self.alone()
        told = a.cluster.beat(self.world.clock.seconds()).published
        self.assertEqual(
            {(one.service, one.taken, one.heads) for one in told}, {(n, 5, ("a",)) for n in (MAIN, "shop")}
        )
        self.assertEqual(len(told), 4)

    def test_one_address_fails_and_the_other_does_not(self) -> None:
        a = self.alone()
        onion = a.records.all()["shop"].onion
        directories = self.world.net.of(onion)
        directories.refusing = {node.fingerprint for node in self.world.net.ring.directories}
        self.world.pass_s(3.0)
        before = max(self.world.revisions())
        a.asked("a test")
        self.world.pass_s(1.0)
        self.assertGreater(min(self.world.revisions()), before)
        self.assertGreater(self.failures(a), 0)
        directories.refusing.clear()
        self.world.pass_s(20.0)
        self.assertEqual((self.failures(a), a.leads), (0, True))

    def test_a_defect_is_as_good_as_a_refusal(self) -> None:
        """It is logged, tried again, and the node is not silent."""
        a = self.alone()
        a.tor.defect = RuntimeError("a defect")
        self.world.pass_s(3.0)
        a.asked("a test")
        self.world.pass_s(3.0)
        self.assertGreater(self.failures(a), 0)
        self.assertGreater(self.logged(), 0)
        a.tor.defect = None
        self.world.pass_s(20.0)
        self.assertEqual((self.failures(a), a.leads, self.logged()), (0, True, 0))

    def test_nobody_to_ask(self) -> None:
        a = self.alone()
        a.lose_tor()
        a.asked("a test")
        self.world.pass_s(2.5)
        a.get_tor()
        self.world.pass_s(20.0)
        self.assertEqual((self.failures(a), a.leads), (0, True))

    def test_stopped_while_it_publishes(self) -> None:
        """Nothing is told any more, nothing goes on, nothing is complained of."""
        a = self.alone()
        network = self.world.net.of(self.world.onion)
        network.latency_s = 5.0
        self.world.pass_s(3.0)
        a.asked("a test")
        self.world.pass_s(0.5)
        self.assertEqual(len(a.conductor._working), 1)
        sent = a.mesh.sent
        a.end()
        self.assertEqual(len(a.conductor._working), 0)
        self.world.pass_s(60.0)
        self.assertEqual(
            (len(a.conductor._working), a.mesh.sent, a.conductor.leads, self.logged()), (0, sent, False, 0)
        )
        left = [call for call in self.world.clock.getDelayedCalls() if "_compare_books" not in str(call)]
        self.assertEqual(left, [])

    def test_a_publication_that_was_overtaken_is_not_what_is_told(self) -> None:
        """A directory that keeps silent holds up the old one's end until after the new one's."""
        world = self.world
        a, _b = world.settled("ab")
        network = world.net.of(world.onion)
        silent = world.net.ring.directories[0].fingerprint
        network.down.add(silent)
        world.pass_s(3.0)
        a.asked("a test")
        world.pass_s(1.0)
        network.down.clear()
        world.nodes["b"].head.broken()
        world.pass_s(2.0)
        newest = {told.period: told for told in a.cluster.beat(world.clock.seconds()).published}
        self.assertEqual({told.heads for told in newest.values()}, {("a",)})
        world.pass_s(60.0)
        for told in a.cluster.beat(world.clock.seconds()).published:
            self.assertGreaterEqual(told.revision, newest[told.period].revision)
            self.assertEqual(told.heads, ("a",))

    def test_a_head_whose_descriptor_comes_late(self) -> None:
        """Its beat tells of one, so it is listed. What is published meanwhile is without it, and does not stay so."""
        world = self.world
        (a,) = world.settled("a")
        a.room._intake._busy.add("b")
        world.start("b")
        world.pass_s(8.0)
        self.assertIn("b", a.cluster.standing.plan.listed)
        self.assertEqual(self.told_heads(a), {("a",)})
        a.room._intake._rested("b")
        world.pass_s(5.0)
        self.assertEqual(self.told_heads(a), {("a", "b")})

    def told_heads(self, node: Node) -> set[tuple[str, ...]]:
        return {one.heads for one in node.cluster.beat(self.world.clock.seconds()).published}


class Keys(SynchronousTestCase):
    def test_what_to_have_ready(self) -> None:
        """A whole key is with every node anyway; of one that is nobody's only the leader has something."""
        world = World(Clock())
        self.addCleanup(world.end)
        shop = BalancedService(name="shop", ports=("80:127.0.0.1:8080",), mode="threshold")
        a, b, c = world.start("abc", services=(TWO[0], shop))
        world.pass_s(4.0)
        world.done(a.desk.create(MAIN, "shared", 0, 0, (), None))
        world.done(a.desk.create("shop", "threshold", 2, 3, (), None), 5.0)
        world.pass_s(9.0)
        for node in (a, b, c):
            self.assertEqual(set(to_prepare(node.vault, node.records, leads=True)), {MAIN, "shop"})
            self.assertEqual(set(to_prepare(node.vault, node.records, leads=False)), {MAIN})
