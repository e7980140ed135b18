"""The room as a service sees it: from members' words to directories, and out again when another leads."""

from __future__ import annotations

from typing import Any

import msgspec
from blake3 import blake3
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Metrics
from ron.proto.balance import HeadDescriptor, Published
from ron.proto.errors import RonError
from ron.services.balance.publishing.outside import Figures
from ron.services.balance.publishing.publisher import Master, Publication
from ron.services.balance.publishing.room import Publishing
from ron.services.balance.publishing.schedule import PAUSES_S, Asked, Found
from ron.services.balance.publishing.shelf import Why
from ron.tor.control import TorSilent
from ron.tor.descriptor.hashring import Ring
from ron.tor.descriptor.periods import RUN_ROUNDS
from ron.tor.onionkeys import new_key
from tests.services.balance.publishing.samples import (
    INTERVAL_S,
    NEWER,
    NOW_S,
    OLDER,
    ONION,
    TIME,
    FakeNetwork,
    Inline,
    points,
    ring_with,
    told,
)
from tests.services.balance.publishing.test_keys import Signing
from tests.tor.descriptor.samples import finish

SHOP = Master(name="shop", onion=ONION)
RING = ring_with(*points("a"), *points("b"))
HEADS = {node: told(new_key(), points(node)) for node in ("a", "b")}


class Room(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.tor = FakeNetwork(self.clock, RING)
        self.signing = Signing(self.clock)
        self.metrics = Metrics()
        self.asked: list[Asked] = []
        self.heads: list[str] = []
        self.rings: list[Ring] = []
        self.room = Publishing(
            self.clock,
            testing=True,
            tie=5,
            signer=lambda service: self.signing,
            holds=lambda: ["shop"],
            ask=lambda service, why: self.asked.append(why),
            every_s=lambda: 600.0,
            figures=Figures(self.metrics),
            on_heads=self.heads.append,
            on_ring=self.rings.append,
            threads=Inline(),
            now_s=lambda: NOW_S + self.clock.seconds(),
        )
        self.room.start()
        self.addCleanup(self.stopped)

    def stopped(self) -> None:
        self.room.stop()
        self.pass_s(40)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def pass_s(self, seconds: float) -> None:
        self.clock.pump([0.1] * round(seconds * 10))

    def up(self) -> None:
        finish(self.room.attach(self.tor))
        self.pass_s(0.5)
        for node, offered in HEADS.items():
            self.room.offer(node, offered)
        self.pass_s(0.5)

    def publishing(self, *wanted: str) -> Deferred[Publication]:
        return Deferred.fromCoroutine(self.room.publish(SHOP, wanted, 0))

    def published(self, *wanted: str) -> Publication:
        done = self.publishing(*wanted)
        self.pass_s(0.5)
        return self.successResultOf(done)

    def figure(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def test_before_there_is_anything(self) -> None:
        self.assertEqual(self.room.usable(), ({}, {}, {}))
        self.failureResultOf(self.publishing("a"), RonError)
        self.room.prepare()
        self.assertEqual((self.room.holding("shop"), self.signing.asked), ({}, 0))
        self.room.release("shop")

    def test_told_before_the_consensus(self) -> None:
        self.room.offer("a", HEADS["a"])
        finish(self.room.attach(self.tor))
        self.pass_s(0.5)
        self.assertEqual((self.heads, self.rings), (["a"], [RING]))

    def test_keys_are_there_before_it_is_our_turn(self) -> None:
        self.up()
        self.assertTrue(self.room.keys.ready("shop", (OLDER, NEWER)))
        self.signing.gone = True
        self.assertEqual(len(self.published("a", "b").placed), 2)

    def test_only_whom_is_wanted(self) -> None:
        self.up()
        self.assertEqual(self.published("a", "nobody").placed[0].heads, ("a",))
        self.assertEqual(self.published("a", "b").placed[0].heads, ("a", "b"))
        self.failureResultOf(self.publishing("nobody"), RonError)

    def test_looked_after_until_another_leads(self) -> None:
        self.up()
        self.published("a")
        self.pass_s(PAUSES_S[0] + 1)
        self.assertEqual(set(self.room.holding("shop").values()), {Found.HELD})
        self.room.release("shop")
        fetches = len(self.tor.fetches)
        self.pass_s(100)
        self.assertEqual((len(self.tor.fetches), self.room.holding("shop")), (fetches, {}))

    def test_released_while_it_is_published(self) -> None:
        self.up()
        done = self.publishing("a")
        self.room.release("shop")
        self.pass_s(60)
        self.successResultOf(done)
        self.assertEqual(self.tor.fetches, [])

    def test_given_up(self) -> None:
        self.up()
        self.room.give_up("shop")
        self.assertFalse(self.room.keys.ready("shop", (OLDER,)))

    def test_what_peers_published(self) -> None:
        self.up()
        self.room.heard(Published(service="shop", period=OLDER.number, revision=10**15))
        self.assertEqual(self.published("a").placed[0].revision, 10**15 + 1)

    def test_confirmed_and_forgotten(self) -> None:
        self.up()
        digest = blake3(HEADS["a"].text.encode()).hexdigest()
        self.assertEqual([self.room.confirm("a", digest), self.room.confirm("b", digest)], [True, False])
        self.room.members(["b"])
        self.assertEqual(set(self.room.usable().heads), {"b"})
        self.assertFalse(self.room.confirm("a", digest))

    def test_figures(self) -> None:
        self.up()
        self.room.offer("c", HeadDescriptor(onion=HEADS["a"].onion, text=HEADS["a"].text))
        self.pass_s(1)
        self.assertEqual(self.room.usable().out, {"c": Why.COPIED})
        self.assertEqual(self.figure("balance_heads_unusable", reason="copied"), 1)
        self.assertEqual(self.figure("balance_head_descriptor_age_seconds", head="c"), 1.0)
        self.room.members(["a"])
        self.room.usable()
        self.assertEqual(self.figure("balance_heads_unusable", reason="copied"), 0)
        self.assertIsNone(self.figure("balance_head_descriptor_age_seconds", head="c"))

    def test_a_tor_that_goes_and_comes(self) -> None:
        self.up()
        self.room.detach()
        self.assertIs(self.failureResultOf(self.publishing("a")).type, TorSilent)
        finish(self.room.attach(self.tor))
        self.published("a")

    def test_a_new_run(self) -> None:
        """Old periods' keys go, new ones are there at once, and the leader is asked to publish."""
        self.up()
        self.published("a")
        time = msgspec.structs.replace(TIME, valid_after_s=TIME.valid_after_s + 2 * RUN_ROUNDS * INTERVAL_S)
        self.tor.now_ring = msgspec.structs.replace(RING, time=time)
        self.tor.arrived()
        self.pass_s(1)
        self.assertEqual(self.asked, [Asked.NEW_PERIOD])
        new: list[Any] = [due.period for due in time.due()]
        self.assertTrue(self.room.keys.ready("shop", new))
        self.assertFalse(self.room.keys.ready("shop", (OLDER,)))
        self.assertEqual(self.room.counters.seen("shop", OLDER), 0)
