"""One set of guards for all heads: made by whoever leads, kept in the book, pinned everywhere."""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import RonError, unavailable
from ron.services.balance.heads.guards import LAYER2_NODES, LAYER3_NODES, MIN_RELAYS, Guard, Guards
from ron.services.balance.ports import Book
from ron.services.balance.vanguards import EVERY_S, KEY, SharedGuards
from tests.services.balance.hub import Hub

NOW_S = 1_800_000_000.0


def network(count: int) -> str:
    """`GETINFO ns/all` of so many good relays."""
    lines = []
    for number in range(count):
        identity = base64.b64encode(number.to_bytes(20, "big")).decode().rstrip("=")
        lines += [f"r relay{number} {identity} x 2026-01-01 00:00:00 10.0.0.1 9001 0", "s Fast Running Stable Valid"]
        lines += [f"w Bandwidth={1000 + number}"]
    return "\n".join(lines)


class Head:
    """fails: a tor that refuses what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Sequence[str], Sequence[str]]] = []
        self.fails = False

    async def set_guards(self, layer2: Sequence[str], layer3: Sequence[str]) -> None:
        if self.fails:
            raise unavailable("tor refuses")
        self.told.append((layer2, layer3))


class Node:
    def __init__(self, clock: Clock, book: Book) -> None:
        self.wanted = self.leads = True
        self.trusted = {"a"}
        self.text = network(MIN_RELAYS)
        self.error: RonError | None = None
        self.head = Head()
        self.asked = 0
        self.guards = SharedGuards(
            clock,
            book,
            self.head,
            wanted=lambda: self.wanted,
            leads=lambda: self.leads,
            trusted=lambda name: name in self.trusted,
            relays=self.relays,
            now_s=lambda: NOW_S + clock.seconds(),
            rng=random.Random(7),
        )

    async def relays(self) -> str:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.text


class Shared(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        hub = Hub(self.clock)
        self.book = hub.node("a").book
        self.evil = hub.node("d").book
        self.leader, self.other = Node(self.clock, self.book), Node(self.clock, self.book)
        self.other.leads = False

    def start(self) -> None:
        for node in (self.leader, self.other):
            node.guards.start()
            self.addCleanup(node.guards.stop)

    def kept(self) -> Guards:
        return self.book.get(KEY, Guards) or Guards()

    def test_the_leader_chooses_and_all_go_by_it(self) -> None:
        self.start()
        found = self.kept().fingerprints()
        self.assertEqual([len(layer) for layer in found], [LAYER2_NODES, LAYER3_NODES])
        self.assertEqual(self.leader.head.told, [found])
        self.assertEqual(self.other.head.told, [found])
        self.assertEqual(self.other.asked, 0)

    def test_nothing_changes_while_nothing_is_due(self) -> None:
        self.start()
        before = self.kept()
        self.clock.pump([EVERY_S] * 3)
        self.assertEqual((self.kept(), len(self.other.head.told)), (before, 1))

    def test_a_relay_that_has_gone_is_replaced_everywhere(self) -> None:
        self.start()
        before = self.kept().layer2[0].fingerprint
        gone = base64.b64encode(bytes.fromhex(before)).decode().rstrip("=")
        kept = [line for line in network(MIN_RELAYS + 2).split("\nr ") if gone not in line]
        self.leader.text = "\nr ".join(kept)
        self.clock.advance(EVERY_S)
        self.assertNotIn(before, self.kept().fingerprints()[0])
        self.assertEqual(self.other.head.told[-1], self.kept().fingerprints())

    def test_a_small_network_is_left_to_tor(self) -> None:
        self.leader.text = network(MIN_RELAYS - 1)
        self.start()
        self.assertEqual((self.kept(), self.leader.head.told), (Guards(), []))

    def test_not_wanted_is_not_done_and_is_undone(self) -> None:
        self.start()
        self.other.wanted = False
        self.clock.advance(EVERY_S)
        self.assertEqual(self.other.head.told[-1], ((), ()))

    def test_a_tor_that_refuses_is_told_again(self) -> None:
        self.other.head.fails = True
        self.start()
        self.other.head.fails = False
        self.clock.advance(EVERY_S)
        self.assertEqual(self.other.head.told, [self.kept().fingerprints()])

    def test_no_tor_no_harm(self) -> None:
        self.leader.error = unavailable("its tor is not there")
        self.start()
        self.assertEqual(self.kept(), Guards())
        self.leader.error = None
        self.clock.advance(EVERY_S)
        self.assertEqual(len(self.kept().layer2), LAYER2_NODES)

    def test_what_is_no_set_of_guards_pins_nobody(self) -> None:
        self.leader.leads = False
        self.book.put(KEY, Guard(fingerprint="A" * 40, until_ms=1))
        self.start()
        self.assertEqual(self.other.head.told, [])

    def test_a_set_of_a_member_that_does_not_lead_is_nobodys(self) -> None:
        """It could be of relays of its own. The leader's stays, and is put right."""
        self.start()
        before = self.kept()
        hostile = Guards(layer2=tuple(Guard(fingerprint=f"{n:040X}", until_ms=2**50) for n in range(LAYER2_NODES)))
        self.evil.put(KEY, hostile)
        self.clock.advance(1.0)
        self.assertEqual((self.kept(), len(self.other.head.told)), (hostile, 1))
        self.clock.advance(EVERY_S)
        self.assertEqual((self.kept(), self.other.head.told), (before, [before.fingerprints()]))

    def test_the_next_leader_keeps_the_set_under_its_own_name(self) -> None:
        self.start()
        before = self.kept()
        self.leader.trusted = self.other.trusted = {"d"}
        self.leader.guards.stop()
        next_one = Node(self.clock, self.evil)
        next_one.trusted = {"d"}
        self.evil.take(self.book.entries)
        next_one.guards._pinned = before
        next_one.guards.start()
        self.addCleanup(next_one.guards.stop)
        self.assertEqual((self.evil.get(KEY, Guards), self.evil.author_of(KEY)), (before, "d"))

    def test_after_the_stop_nobody_is_told(self) -> None:
        self.start()
        self.other.guards.stop()
        told: list[Any] = list(self.other.head.told)
        self.book.put(KEY, None)
        self.assertEqual(self.other.head.told, told)
