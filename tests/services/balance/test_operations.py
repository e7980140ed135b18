"""Operators' orders, carried out by real rooms: what they do, and what they refuse without having done half of it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.balance import MAX_SERVICES
from ron.proto.balanceviews import ROULETTE_WARNING
from ron.proto.errors import ErrorCode, RonError, conflict
from ron.services.balance.cluster import Promote, Roulette, Siege
from ron.services.balance.config import BalancedService
from ron.services.balance.vault.keyring import new_expanded
from tests.services.balance.joined import MAIN, Node, World

PORTS = ("80:127.0.0.1:8080",)


def services(*names: str, mode: Any = "shared") -> tuple[BalancedService, ...]:
    return tuple(BalancedService(name=name, ports=PORTS, mode=mode) for name in names)


class Desk(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(Clock())
        self.addCleanup(self.world.end)

    def refused(self, order: Coroutine[Any, Any, Any]) -> RonError:
        return self.assertRaises(RonError, self.world.done, order)

    def put(self, node: Node, key: str, shape: Any) -> Any:
        return node.mesh.book.get(key, shape)


class Before(Desk):
    def test_a_node_that_does_not_run_takes_no_orders(self) -> None:
        """Its socket is there before it is; looking is always allowed."""
        world = self.world
        (a,) = world.start("a")
        a.end()
        key = new_expanded()
        for order in (
            a.desk.promote("a", None),
            a.desk.siege("a", True, None),
            a.desk.roulette(True, None),
            a.desk.create(MAIN, "shared", 0, 0, (), key),
            a.desk.refresh(MAIN),
            a.desk.reshare(MAIN, None, (), ()),
            a.desk.approve("a"),
            a.desk.remove("b"),
            a.desk.leave(),
            a.desk.rotate_token(),
            a.desk.invite("b", ()),
            a.desk.publish(None),
        ):
            self.assertEqual(self.refused(order).code, ErrorCode.STORE_UNAVAILABLE)
        self.assertEqual(key, bytearray(64))
        self.assertEqual(a.mesh.book.keys("service/"), ())
        world.done(a.desk.status())
        world.done(a.desk.ghosts())

    def test_nobody_leads_yet(self) -> None:
        (a,) = self.world.start("a")
        self.assertIn("no node leads", self.refused(a.desk.publish(None)).message)


class Cluster(Desk):
    def test_promote_nobody_knows(self) -> None:
        a, _b = self.world.settled("ab")
        self.assertEqual(self.refused(a.desk.promote("zz", None)).code, ErrorCode.NOT_FOUND)
        self.assertIsNone(self.put(a, "promote", Promote))

    def test_promote_for_a_while(self) -> None:
        world = self.world
        a, _b = world.settled("ab")
        world.done(a.desk.promote("b", 10))
        world.pass_s(4.0)
        view = world.done(a.desk.status()).leader
        self.assertEqual(view.name, "b")
        self.assertIsNotNone(view.promoted_until)
        world.pass_s(10.0)
        self.assertEqual(world.leaders(), "a")

    def test_a_siege_for_a_while(self) -> None:
        world = self.world
        a, b = world.settled("ab", quiet_s=5)
        self.assertEqual(world.done(b.desk.siege("a", True, 4)).planned_in, ())
        order = self.put(b, "siege/a", Siege)
        self.assertEqual((order.on, order.until_ms > 0), (True, True))
        world.pass_s(15.0)
        self.assertEqual(world.listed(), "ab")
        self.assertEqual(self.refused(a.desk.siege("zz", True, None)).code, ErrorCode.NOT_FOUND)

    def test_the_roulette(self) -> None:
        world = self.world
        a, _b = world.settled("ab", roulette_for_s=50)
        answer = world.done(a.desk.roulette(True, None))
        self.assertEqual(answer.warning, ROULETTE_WARNING)
        order = self.put(a, "roulette", Roulette)
        self.assertEqual(order.until_ms - order.from_ms, 50_000)
        self.assertEqual(world.done(a.desk.status()).roulette_until, answer.until)
        ended = world.done(a.desk.roulette(False, None))
        self.assertEqual((ended.until, ended.warning, self.put(a, "roulette", Roulette)), (None, "", None))

    def test_publish(self) -> None:
        world = self.world
        a, b = world.settled("ab")
        self.assertEqual(self.refused(b.desk.publish("zz")).code, ErrorCode.NOT_FOUND)
        answer = world.done(b.desk.publish(MAIN))
        self.assertEqual((answer.leader, answer.services), ("a", (MAIN,)))
        self.assertEqual(world.done(a.desk.publish(MAIN)).leader, "a")


class Keys(Desk):
    def test_an_address_twice_and_one_that_no_config_names(self) -> None:
        world = self.world
        (a,) = world.settled("a")
        self.assertEqual(self.refused(a.desk.create(MAIN, "shared", 0, 0, (), None)).code, ErrorCode.CONFLICT)
        key = new_expanded()
        error = self.refused(a.desk.create("shop", "shared", 0, 0, (), key))
        self.assertEqual((error.code, key), (ErrorCode.CONFLICT, bytearray(64)))
        self.assertIn("[[balance.services]]", error.message)
        self.assertEqual(a.mesh.book.keys("service/"), (f"service/{MAIN}",))

    def test_too_few_for_shares(self) -> None:
        """The key that came with it is wiped all the same."""
        world = self.world
        (a,) = world.start("a", services=services(MAIN, mode="threshold"))
        world.pass_s(4.0)
        key = new_expanded()
        error = self.refused(a.desk.create(MAIN, "threshold", 2, 3, (), key))
        self.assertEqual((error.code, key), (ErrorCode.STORE_UNAVAILABLE, bytearray(64)))
        key = new_expanded()
        error = self.refused(a.desk.create(MAIN, "threshold", 2, 3, ("a", "zz"), key))
        self.assertEqual((error.code, key), (ErrorCode.NOT_FOUND, bytearray(64)))

    def test_a_key_of_old(self) -> None:
        """Moves in, is lost with all nodes, and is brought back from its copy; another one is not taken for it."""
        world = self.world
        (a,) = world.start("a")
        world.pass_s(4.0)
        copy = bytes(new_expanded())
        key = bytearray(copy)
        made = world.done(a.desk.create(MAIN, "shared", 0, 0, (), key))
        self.assertEqual((key, made.holders), (bytearray(64), ("a",)))
        world.pass_s(5.0)
        self.assertEqual(world.listed(), "a")
        world.kill("a")
        (a,) = world.start("a")
        world.pass_s(4.0)
        self.assertEqual(world.done(a.desk.status()).services[0].holders, ())
        self.assertEqual(a.cluster.standing.unfit, "it has no key and no share")
        other = new_expanded()
        self.assertEqual(self.refused(a.desk.create(MAIN, "shared", 0, 0, (), other)).code, ErrorCode.CONFLICT)
        self.assertEqual(other, bytearray(64))
        back = world.done(a.desk.create(MAIN, "shared", 0, 0, (), bytearray(copy)))
        self.assertEqual((back.onion, back.holders), (made.onion, ("a",)))

    def test_as_many_as_there_can_be(self) -> None:
        world = self.world
        named = services(MAIN, *(f"s{number}" for number in range(MAX_SERVICES)))
        (a,) = world.start("a", services=named)
        world.pass_s(4.0)
        for service in named[:MAX_SERVICES]:
            world.done(a.desk.create(service.name, "shared", 0, 0, (), None))
        error = self.refused(a.desk.create(named[MAX_SERVICES].name, "shared", 0, 0, (), None))
        self.assertIn("at most", error.message)

    def test_shares(self) -> None:
        world = self.world
        a, b, *_ = world.start("abcd", services=services(MAIN, mode="threshold"))
        world.pass_s(4.0)
        made = world.done(a.desk.create(MAIN, "threshold", 2, 3, ("a", "b", "c"), None), 5.0)
        self.assertEqual((made.threshold, made.members, made.epoch), (2, 3, 1))
        world.pass_s(2.0)
        self.assertEqual(world.done(b.desk.refresh(MAIN), 5.0).epoch, 2)
        shown = world.done(a.desk.reshare(MAIN, None, ("d",), ("c",)), 5.0)
        self.assertEqual((shown.onion, shown.members), (made.onion, 3))
        world.pass_s(2.0)
        self.assertEqual(world.done(a.desk.status()).services[0].holders, ("a", "b", "d"))
        self.assertEqual(self.refused(a.desk.refresh("shop")).code, ErrorCode.NOT_FOUND)


class Members(Desk):
    def test_approve(self) -> None:
        world = self.world
        a, _b = world.settled("ab")
        self.assertEqual(world.done(a.desk.approve("b")).approved, True)
        self.assertEqual(self.refused(a.desk.approve("zz")).code, ErrorCode.NOT_FOUND)

    def test_remove(self) -> None:
        world = self.world
        a, _b = world.settled("ab")
        self.assertEqual(self.refused(a.desk.remove("a")).code, ErrorCode.CONFLICT)
        self.assertEqual(self.refused(a.desk.remove("zz")).code, ErrorCode.NOT_FOUND)

    def test_leave_refused(self) -> None:
        """Then it goes on, with its key."""
        world = self.world
        (a,) = world.settled("a")
        a.gate.refuses = conflict("a test")
        self.refused(a.desk.leave())
        self.assertEqual(a.vault.holds(), {MAIN})
        world.pass_s(5.0)
        self.assertEqual((a.left, a.leads, world.listed()), (0, True, "a"))

    def test_the_last_that_holds_it_does_not_leave(self) -> None:
        """While there are others: alone it may end what it began."""
        world = self.world
        a, b = world.settled("ab")
        b.end()
        world.hub.kill("b")
        world.pass_s(5.0)
        self.assertIn("nobody could sign for main", self.refused(a.desk.leave()).message)
        self.assertEqual(a.vault.holds(), {MAIN})
        world.done(a.desk.remove("b"))
        world.pass_s(1.0)
        world.done(a.desk.leave())
        self.assertEqual(a.vault.holds(), frozenset())

    def test_the_gate(self) -> None:
        (a,) = self.world.settled("a")
        self.assertEqual(self.world.done(a.desk.rotate_token()).version, 2)
        self.assertEqual(self.world.done(a.desk.invite("b", ())).name, "b")
