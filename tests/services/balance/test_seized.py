"""What one seized member can do to a cluster of whole nodes: the lines of docs/mesh.rst, "A seized member".

Others of those lines are kept in `test_illwill`, `mesh/test_seconding`, `test_vanguards` and `vault/test_hostile`.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.services.balance.cluster import Promote, Roulette, Siege
from ron.services.balance.cluster.orders import ROULETTE_MOST_MS
from tests.services.balance.joined import World


class Seized(SynchronousTestCase):
    """e is the seized one, of five."""

    def setUp(self) -> None:
        self.world = World(Clock())
        self.addCleanup(self.world.end)
        self.nodes = dict(zip("abcde", self.world.settled("abcde"), strict=True))
        self.evil = self.nodes["e"].mesh.book

    def test_it_cannot_have_all_visitors_for_itself(self) -> None:
        for name in "abcd":
            self.evil.put(f"siege/{name}", Siege())
        self.world.pass_s(5.0)
        self.assertEqual(self.world.listed(), "cde")
        # nor by hiding its orders in a heap
        for number in range(100):
            self.evil.put(f"siege/a{number:03}", Siege())
        self.world.pass_s(5.0)
        self.assertEqual(self.world.listed(), "cde")

    def test_an_operator_ends_its_orders_about_a_head_at_that_head(self) -> None:
        """Until it writes them again: only its removal ends that."""
        self.evil.put("siege/a", Siege())
        self.world.pass_s(5.0)
        self.assertEqual(self.world.listed(), "bcde")
        self.world.done(self.nodes["a"].desk.siege("a", False, 3600))
        self.world.pass_s(5.0)
        self.assertEqual(self.world.listed(), "abcde")

    def test_it_leads_if_it_likes_and_publishes_what_all_see(self) -> None:
        self.evil.put("promote", Promote(node="e"))
        self.world.pass_s(5.0)
        self.assertEqual((self.world.leaders(), self.world.listed()), ("e", "abcde"))
        self.world.done(self.nodes["b"].desk.promote("a", None))
        self.world.pass_s(5.0)
        self.assertEqual(self.world.leaders(), "a")

    def test_its_roulette_leaves_half_in_and_ends(self) -> None:
        now_ms = int(1000 * self.nodes["a"].now_s())
        self.evil.put("roulette", Roulette(from_ms=now_ms, until_ms=2**60, every_s=600))
        self.world.pass_s(5.0)
        self.assertEqual(len(self.world.listed()), 3)
        orders = self.nodes["a"].cluster._orders
        self.assertIsNotNone(orders.turn(now_ms + ROULETTE_MOST_MS - 1, 600))
        self.assertIsNone(orders.turn(now_ms + ROULETTE_MOST_MS, 600))
        self.world.done(self.nodes["a"].desk.roulette(False, None))
        self.world.pass_s(5.0)
        self.assertEqual(self.world.listed(), "abcde")


class WithoutAKey(SynchronousTestCase):
    def test_it_leads_nobody(self) -> None:
        world = World(Clock())
        self.addCleanup(world.end)
        world.settled("abc")
        evil = world.hub.node("d")
        world.pass_s(1.0)
        evil.book.put("promote", Promote(node="d"))
        world.pass_s(5.0)
        self.assertEqual((world.leaders(), world.listed()), ("a", "abc"))


class Bounds(SynchronousTestCase):
    def test_an_operator_is_told_instead_of_not_being_obeyed(self) -> None:
        world = World(Clock())
        self.addCleanup(world.end)
        a, b, _c = world.settled("abc")
        world.done(a.desk.siege("b", True, None))
        error = self.assertRaises(RonError, world.done, a.desk.siege("c", True, None))
        self.assertEqual(error.code, ErrorCode.CONFLICT)
        self.assertIn("at most 1", error.message)
        self.assertIn("at c itself", str(error.hint))
        # again about the same, about itself, and another node's word: all as before
        world.done(a.desk.siege("b", True, 60))
        world.done(a.desk.siege("a", True, 60))
        world.done(b.desk.siege("c", True, 60))
        world.done(a.desk.siege("b", False, None))
        world.pass_s(1.0)
        self.assertEqual(world.done(a.desk.status()).members[2].planned_in, ())
