"""What of the heads' words gets into the master's descriptor, and what does not."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.services.balance.publishing.shelf import GRACE_INTERVALS, MAX_AGE_S, Shelf, Why, readable_periods
from ron.tor.descriptor.intropoints import IntroPoint, relay_of
from ron.tor.descriptor.refused import Reason, Refused
from tests.services.balance.publishing.samples import (
    EXPIRES_H,
    INTERVAL_S,
    NEWER,
    NOW_S,
    OLDER,
    TIME,
    backend,
    point,
    points,
    ring_with,
)

KNOWN = [known for head in "abc" for known in points(head)]
RING = ring_with(*KNOWN)


class Kept(SynchronousTestCase):
    def setUp(self) -> None:
        self.shelf = Shelf()

    def test_nothing(self) -> None:
        self.assertEqual(self.shelf.usable(RING, NOW_S), ({}, {}, {}))
        self.assertFalse(self.shelf.confirm("a", "d", NOW_S))
        self.assertIsNone(self.shelf.newest("a"))

    def test_an_older_one_changes_nothing(self) -> None:
        first = backend("a", revision=5)
        self.shelf.put("a", first, "5", NOW_S)
        for changed in ({"revision": 4}, {"period": OLDER.shifted(-1), "revision": 9}):
            older = msgspec.structs.replace(first, **changed)
            error = self.assertRaises(Refused, self.shelf.put, "a", older, "4", NOW_S + 1)
            self.assertIs(error.reason, Reason.OLD_REVISION)
        self.assertEqual(self.shelf.newest("a"), first)
        self.assertEqual(self.shelf.ages_s(NOW_S + 1), {"a": 1.0})

    def test_newer_ones(self) -> None:
        first = backend("a", revision=5)
        self.assertTrue(self.shelf.put("a", first, "one", NOW_S))
        same_counter = msgspec.structs.replace(first, points=points("b"))
        self.assertTrue(self.shelf.put("a", same_counter, "two", NOW_S))
        self.assertFalse(self.shelf.put("a", same_counter, "two", NOW_S))
        next_period = msgspec.structs.replace(first, period=NEWER, revision=1)
        self.assertTrue(self.shelf.put("a", next_period, "three", NOW_S))
        new_onion = backend("c", revision=1)
        self.assertTrue(self.shelf.put("a", new_onion, "four", NOW_S))
        self.assertEqual(self.shelf.newest("a"), new_onion)

    def test_too_old(self) -> None:
        self.shelf.put("a", backend("a"), "digest", NOW_S)
        late = NOW_S + MAX_AGE_S + 1
        self.assertEqual(self.shelf.usable(RING, late).out, {"a": Why.TOO_OLD})
        self.assertFalse(self.shelf.confirm("a", "another", late))
        self.assertEqual(self.shelf.usable(RING, late).out, {"a": Why.TOO_OLD})
        self.assertTrue(self.shelf.confirm("a", "digest", late))
        self.assertIn("a", self.shelf.usable(RING, late).heads)

    def test_forgotten(self) -> None:
        self.shelf.put("a", backend("a"), "1", NOW_S)
        self.shelf.put("b", backend("a"), "2", NOW_S)
        self.assertEqual(self.shelf.usable(RING, NOW_S).out, {"b": Why.COPIED})
        self.shelf.keep_only({"b"})
        self.shelf.put("b", backend("a"), "2", NOW_S)
        self.assertEqual(set(self.shelf.usable(RING, NOW_S).heads), {"b"})


class Usable(SynchronousTestCase):
    def setUp(self) -> None:
        self.shelf = Shelf()

    def put(self, node: str, *those: IntroPoint, **changed: object) -> None:
        self.shelf.put(node, backend(node, points=those, **changed), node, NOW_S)

    def test_what_is_well(self) -> None:
        self.put("a", *points("a"))
        self.put("b", *points("b"))
        usable = self.shelf.usable(RING, NOW_S)
        self.assertEqual({node: head.points for node, head in usable.heads.items()}, {n: points(n) for n in "ab"})
        self.assertEqual((usable.out, usable.left_out), ({}, {}))

    def test_without_points(self) -> None:
        self.put("a")
        self.assertEqual(self.shelf.usable(RING, NOW_S).out, {"a": Why.NO_POINTS})

    def test_relays_that_are_not_there(self) -> None:
        stranger, renamed, known = point("stranger"), *points("a", 2)
        fingerprint, _identity = relay_of(renamed)
        ring = msgspec.structs.replace(RING, relays={**RING.relays, fingerprint: b"another".ljust(32)})
        self.put("a", stranger, renamed, known)
        usable = self.shelf.usable(ring, NOW_S)
        self.assertEqual(usable.heads["a"].points, (known,))
        self.assertEqual(usable.left_out, {Why.UNKNOWN_RELAY: 2})
        not_yet = msgspec.structs.replace(RING, relays={**RING.relays, fingerprint: b""})
        self.assertEqual(self.shelf.usable(not_yet, NOW_S).heads["a"].points, (renamed, known))

    def test_expired_points(self) -> None:
        now_expired = point("a 0", int(NOW_S) // 3600)
        self.put("a", now_expired, point("a 1"))
        usable = self.shelf.usable(RING, NOW_S)
        self.assertEqual((len(usable.heads["a"].points), usable.left_out), (1, {Why.EXPIRED: 1}))
        self.shelf.confirm("a", "a", EXPIRES_H * 3600.0)
        late = msgspec.structs.replace(RING, time=TIME)
        self.assertEqual(self.shelf.usable(late, EXPIRES_H * 3600.0).out, {"a": Why.NO_POINTS})

    def test_one_key_twice(self) -> None:
        one, two = points("a", 2)
        self.put("a", one, two, one)
        usable = self.shelf.usable(RING, NOW_S)
        self.assertEqual((usable.heads["a"].points, usable.left_out), ((one, two), {Why.REPEATED: 1}))

    def test_a_head_that_copies_anothers(self) -> None:
        """The first to name a key has it; the copy's own points do not help it."""
        stolen = msgspec.structs.replace(points("a")[0], enc_key=bytes(32))
        self.put("a", *points("a"))
        self.put("b", stolen, *points("b"))
        usable = self.shelf.usable(RING, NOW_S)
        self.assertEqual((set(usable.heads), usable.out), ({"a"}, {"b": Why.COPIED}))
        self.assertNotIn(stolen, usable.heads["a"].points)
        self.put("b", *points("b"))
        self.assertEqual(set(self.shelf.usable(RING, NOW_S).heads), {"a", "b"})

    def test_periods(self) -> None:
        late_s = TIME.run_start_s + GRACE_INTERVALS * INTERVAL_S
        self.assertEqual(readable_periods(TIME, NOW_S), (OLDER, NEWER))
        self.assertEqual(readable_periods(TIME, late_s), (OLDER.shifted(-1), OLDER, NEWER))
        self.put("a", *points("a"), period=OLDER.shifted(-1))
        self.put("b", *points("b"), period=NEWER)
        self.put("c", *points("c"), period=NEWER.shifted(1))
        self.assertEqual(self.shelf.usable(RING, late_s).out, {"c": Why.OLD_PERIOD})
        self.assertEqual(set(self.shelf.usable(RING, NOW_S).heads), {"b"})

    @given(
        st.lists(st.tuples(st.sampled_from("abcd"), st.lists(st.sampled_from(KNOWN), max_size=5)), max_size=12),
    )
    def test_never_one_key_in_two_heads(self, said: list[tuple[str, list[IntroPoint]]]) -> None:
        shelf = Shelf()
        for node, those in said:
            shelf.put(node, backend(node, points=tuple(those)), str(those), NOW_S)
        usable = shelf.usable(RING, NOW_S)
        merged = [known.auth_key for head in usable.heads.values() for known in head.points]
        self.assertEqual(len(merged), len(set(merged)))
        self.assertEqual(usable.heads.keys() | usable.out.keys(), {node for node, _ in said})
        self.assertTrue(all(head.points for head in usable.heads.values()))
