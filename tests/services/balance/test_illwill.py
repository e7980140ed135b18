"""A member that means ill among whole nodes: it can write the book and say what it likes, and harms nobody."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.balance import MAX_SERVICES, Beat, HeadReport, Published
from ron.proto.errors import backpressure
from ron.services.balance.cluster import Promote, Roulette, Siege
from ron.services.balance.ports import ServiceRecord
from ron.services.balance.words import ASK_DESCRIPTOR, ASK_PUBLISH, BEAT, Nothing, PublishAsked
from ron.tor.descriptor.revisions import MAX_SEEN
from ron.tor.onionkeys import address_of, new_key
from tests.services.balance.hub import HubNode
from tests.services.balance.joined import MAIN, World, asked_for


class Hostile(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(Clock())
        self.addCleanup(self.world.end)

    def settle(self) -> HubNode:
        self.world.settled("abc")
        evil = self.world.hub.node("d")
        self.world.pass_s(1.0)
        self.before = self.world.onion
        return evil

    def well(self, nodes: str = "abc", seconds: float = 5.0) -> None:
        """All as it was."""
        world = self.world
        world.pass_s(seconds)
        self.assertEqual((world.leaders(), world.onion), ("a", self.before))
        for directory in world.net.of(world.onion).now_ring.directories:
            self.assertIn(directory.fingerprint, world.net.of(world.onion).holding(asked_for(world)))
        self.assertEqual(world.listed(), nodes)
        before = max(world.revisions())
        world.nodes["a"].asked("a test")
        world.pass_s(3.0)
        self.assertGreater(min(world.revisions()), before)
        for node in world.nodes.values():
            world.done(node.desk.status())
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_the_onion_is_another(self) -> None:
        """Whoever has the key knows better; a node that comes later gets what is right."""
        evil, world = self.settle(), self.world
        for onion in (address_of(new_key()), "x", "a" * 56 + ".onion", "x\nHiddenServiceDir /"):
            evil.book.put(f"service/{MAIN}", ServiceRecord(onion=onion, mode="shared"))
            world.pass_s(1.0)
        self.well()
        self.assertEqual(world.nodes["a"].mesh.book.get(f"service/{MAIN}", ServiceRecord).onion, self.before)  # type: ignore[union-attr]
        for node in world.nodes.values():
            self.assertEqual(node.head.masters, [[self.before]])
        world.start("e")
        world.pass_s(8.0)
        self.assertEqual(world.nodes["e"].vault.holds(), {MAIN})

    def test_the_record_is_struck_out(self) -> None:
        evil = self.settle()
        evil.book.put(f"service/{MAIN}", None)
        self.world.pass_s(1.0)
        evil.book.put(f"service/{MAIN}", Nothing())
        self.well()

    def test_one_who_goes_on_striking_it_out(self) -> None:
        """The fight is not fought at the expense of those who serve."""
        evil, world = self.settle(), self.world
        posted, sent = world.nodes["a"].tor.posted, world.nodes["a"].mesh.sent
        for _ in range(200):
            evil.book.put(f"service/{MAIN}", None)
            world.pass_s(0.1)
        self.assertLess(world.nodes["a"].tor.posted - posted, 10)
        self.assertLess((world.nodes["a"].mesh.sent - sent) / 3, 20 * 20)
        self.well()
        # and in the end who comes later finds it right
        world.pass_s(70.0)
        found = world.nodes["c"].mesh.book.get(f"service/{MAIN}", ServiceRecord)
        self.assertEqual(found and found.onion, self.before)

    def test_one_who_goes_on_writing_groups(self) -> None:
        """Each would be new signatures and another publication."""
        evil, world = self.settle(), self.world
        posted = world.nodes["a"].tor.posted
        for number in range(100):
            record = ServiceRecord(onion=self.before, mode="shared", group=bytes([number]))
            evil.book.put(f"service/{MAIN}", record)
            world.pass_s(0.2)
        self.assertLess((world.nodes["a"].tor.posted - posted) / 2, 8)
        self.well()

    def test_a_book_without_room(self) -> None:
        """What is wrong cannot be put right; what is published stays as it was."""
        evil, world = self.settle(), self.world
        evil.book.put(f"service/{MAIN}", None)
        for node in world.nodes.values():
            self.patch(node.mesh.book, "put", lambda key, value: self._full())
        self.well()
        self.assertEqual(world.nodes["a"].mesh.book.keys("service/"), ())

    def _full(self) -> None:
        raise backpressure("a test")

    def test_a_thousand_entries(self) -> None:
        evil, world = self.settle(), self.world
        reads: list[str] = []
        b = world.nodes["b"]
        b.mesh.book.on_change(reads.append)
        looked: list[object] = []
        change = b.service._read_book
        self.patch(b.service, "_read_book", lambda: (looked.append(None), change()))
        for number in range(250):
            evil.book.put(f"service/a{number}", ServiceRecord(onion="x", mode="shared"))
            evil.book.put(f"siege/nobody{number}", Siege(on=True))
        self.well()
        self.assertGreater(len(reads), 400)
        self.assertLess(len(looked), 30)
        self.assertEqual(set(b.records.all()), {MAIN})

    def test_more_addresses_than_there_can_be(self) -> None:
        """Those that are ours stay; a head is not made anew for each of the others."""
        evil, world = self.settle(), self.world
        for number in range(40):
            evil.book.put(f"service/a{number}", ServiceRecord(onion=address_of(new_key()), mode="shared"))
            world.pass_s(0.5)
        self.assertEqual(len(world.nodes["b"].records.all()), MAX_SERVICES)
        self.assertIn(MAIN, world.nodes["b"].records.all())
        self.assertLess(len(world.nodes["b"].head.masters), 8)
        self.well()

    def test_orders_without_end(self) -> None:
        """That no calendar has a date for."""
        evil = self.settle()
        evil.book.put("promote", Promote(node="d", until_ms=2**62))
        evil.book.put("roulette", Roulette(from_ms=0, until_ms=2**62, every_s=10))
        self.well()

    def test_a_flood_of_beats(self) -> None:
        """Each says something new: it is looked at, and others hear of us no more often for it."""
        evil, world = self.settle(), self.world
        a = world.nodes["a"]
        head = {"onion": address_of(new_key()), "healthy": True}
        world.pass_s(5.0)
        sent = a.mesh.sent
        for number in range(2000):
            mode = ("serving", "down")[number % 2]
            told = tuple(Published(service=f"s{n}", period=number * 64 + n, revision=2**61) for n in range(60))
            report = HeadReport(mode=mode, descriptor=f"{number:064x}", under_siege=number % 3 == 0, **head)
            beat = Beat(born_ms=1, fit=True, leads=number % 2 == 0, head=report, hears=("a",), published=told)
            evil.send("a", BEAT, beat)
            world.clock.advance(0.005)
        # to three peers, over ten seconds; its own beats, publications and questions are among them
        self.assertLess((a.mesh.sent - sent) / 3 / 10, 20)
        self.assertLess(len(a.room.counters._seen), 10)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_flood_of_questions(self) -> None:
        evil, world = self.settle(), self.world
        a = world.nodes["a"]
        world.pass_s(5.0)
        sent, posted = a.mesh.sent, a.tor.posted
        for _ in range(1000):
            evil.send("a", ASK_DESCRIPTOR, Nothing())
            evil.send("a", ASK_PUBLISH, PublishAsked(why="x" * 200))
            world.clock.advance(0.02)
        self.assertLess(a.mesh.sent - sent, 400)
        # two descriptors each time
        self.assertLess((a.tor.posted - posted) / 2, 8)
        self.well()

    def test_counters_without_end(self) -> None:
        """Of what is due: those of the leader are above all that anybody can have made."""
        evil, world = self.settle(), self.world
        for revision in (2**40, MAX_SEEN - 1, MAX_SEEN, 2**63 - 1):
            for due in world.net.ring.time.due():
                told = Published(service=MAIN, period=due.period.number, revision=revision, heads=("d",), taken=9)
                evil.broadcast(BEAT, Beat(born_ms=2**60, published=(told,), hears=("a", "b", "c")))
                world.pass_s(0.2)
            self.well()

    def test_a_boaster_leads_nobody_for_long(self) -> None:
        """It is the eldest, has the key by its own word, and publishes nothing."""
        evil, world = self.settle(), self.world
        for _ in range(200):
            beat = Beat(born_ms=1, fit=True, leads=True, hears=("a", "b", "c"), services=(MAIN,))
            evil.broadcast(BEAT, beat)
            world.pass_s(0.5)
        self.assertEqual((world.leaders(), world.listed()), ("a", "abc"))
