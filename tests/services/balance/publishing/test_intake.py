"""Heads' texts on their way to the shelf: hostile ones first."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Metrics
from ron.proto.balance import HeadDescriptor
from ron.services.balance.publishing.intake import GAP_S, Intake
from ron.services.balance.publishing.outside import Figures
from ron.services.balance.publishing.shelf import Shelf
from ron.tor.descriptor.hashring import Ring
from ron.tor.onionkeys import address_of, new_key
from tests.services.balance.publishing.samples import NOW_S, OLDER, Later, points, ring_with, told

KEY = new_key()


class Reading(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.shelf = Shelf()
        self.threads = Later()
        self.metrics = Metrics()
        self.ring: Ring | None = ring_with(*points("a"))
        self.changed: list[str] = []
        self.intake = Intake(
            self.clock,
            shelf=self.shelf,
            threads=self.threads,
            ring=lambda: self.ring,
            now_s=lambda: NOW_S + self.clock.seconds(),
            figures=Figures(self.metrics),
            on_change=self.changed.append,
        )

    def offer(self, offered: HeadDescriptor, node: str = "a") -> None:
        self.intake.offer(node, offered)
        self.threads.work()
        self.clock.advance(GAP_S)

    def refused(self, reason: str) -> float:
        value = self.metrics.registry.get_sample_value("balance_head_descriptors_refused_total", {"reason": reason})
        return value or 0.0

    def test_a_good_one(self) -> None:
        self.offer(told(KEY, points("a")))
        self.assertEqual(self.changed, ["a"])
        head = self.shelf.newest("a")
        assert head is not None
        self.assertEqual((head.onion, head.points), (address_of(KEY), points("a")))

    def test_the_same_again_is_not_read_and_counts_as_confirmed(self) -> None:
        good = told(KEY, points("a"))
        self.offer(good)
        self.clock.advance(100)
        self.intake.offer("a", good)
        self.assertEqual((self.threads.waiting, self.changed), ([], ["a"]))
        self.assertEqual(self.shelf.ages_s(NOW_S + self.clock.seconds()), {"a": 0.0})

    def test_refused_ones_are_counted_and_the_last_good_one_stays(self) -> None:
        good = told(KEY, points("a"), revision=5)
        self.offer(good)
        for reason, onion, text in (
            ("malformed", good.onion, good.text[:5000]),
            ("malformed", good.onion, ""),
            ("stranger", address_of(new_key()), good.text),
            ("bad_signature", good.onion, good.text.replace("revision-counter 5", "revision-counter 6")),
            ("too_long", good.onion, good.text * 4),
            ("old_revision", good.onion, told(KEY, points("a"), revision=4).text),
            ("stranger", good.onion, told(KEY, points("a"), 9, OLDER.shifted(-3)).text),
            ("BadRequest", "a" * 56 + ".onion", good.text),
        ):
            before = self.refused(reason)
            self.offer(HeadDescriptor(onion=onion, text=text))
            self.assertEqual(self.refused(reason), before + 1, reason)
        head = self.shelf.newest("a")
        assert head is not None
        self.assertEqual((head.revision, self.changed), (5, ["a"]))

    def test_a_flood_costs_one_reading_at_a_time(self) -> None:
        texts = [told(KEY, points("a"), revision) for revision in range(1, 9)]
        for each in texts:
            self.intake.offer("a", each)
        self.intake.offer("b", told(new_key(), points("a")))
        self.assertEqual(len(self.threads.waiting), 2)
        self.threads.work()
        self.assertEqual(self.threads.waiting, [])
        self.clock.advance(GAP_S)
        self.assertEqual(len(self.threads.waiting), 1)
        self.threads.work()
        head = self.shelf.newest("a")
        assert head is not None
        self.assertEqual((head.revision, self.refused("superseded")), (8, 6.0))

    def test_without_a_consensus_it_waits(self) -> None:
        ring, self.ring = self.ring, None
        self.offer(told(KEY, points("a")))
        self.assertEqual(self.changed, [])
        self.ring = ring
        self.intake.ring_changed()
        self.threads.work()
        self.assertEqual(self.changed, ["a"])

    def test_who_is_no_member_any_more(self) -> None:
        self.offer(told(KEY, points("a")))
        self.ring = None
        self.offer(told(new_key(), points("b")), "b")
        self.intake.keep_only(frozenset({"c"}))
        self.ring = ring_with(*points("b"))
        self.intake.ring_changed()
        self.assertEqual((self.threads.waiting, self.shelf.newest("a")), ([], None))
