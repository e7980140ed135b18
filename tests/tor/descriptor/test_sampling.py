"""Every head gets its turn, whatever their number, and nobody more than its share."""

from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.tor.descriptor.build import build, room
from ron.tor.descriptor.hashring import HsDir
from ron.tor.descriptor.intropoints import MAX_INTRO_POINTS, IntroPoint, relay_of
from ron.tor.descriptor.sampling import choose, deal
from tests.tor.descriptor.samples import EXTRAS, descriptor_key, intro_point

POOL = {f"head{head:02}": [intro_point(f"{head}.{number}") for number in range(4)] for head in range(60)}
OWNER = {point.auth_key: name for name, points in POOL.items() for point in points}
DIRECTORIES = [HsDir(fingerprint=f"{number:040X}", identity=bytes([number]) * 32) for number in range(8)]

rooms = st.integers(1, MAX_INTRO_POINTS)
turns = st.integers(0, 10_000)
heads_of = st.lists(st.integers(1, 4), min_size=1, max_size=60).map(
    lambda counts: {name: POOL[name][:count] for name, count in zip(POOL, counts, strict=False)}
)


def owners(points: tuple[IntroPoint, ...]) -> Counter[str]:
    return Counter(OWNER[point.auth_key] for point in points)


class Choosing(SynchronousTestCase):
    def test_from_nobody(self) -> None:
        for heads in ({}, {"a": []}, {"a": [], "b": []}):
            self.assertEqual(choose(heads, 3, 20), ())
        self.assertEqual(choose(POOL, 3, 0), ())

    @given(heads_of, turns, rooms)
    def test_never_more_than_fits_and_none_twice(
        self, heads: dict[str, list[IntroPoint]], turn: int, room: int
    ) -> None:
        chosen = choose(heads, turn, room)
        offered = sum(map(len, heads.values()))
        self.assertEqual(len(chosen), min(room, offered))
        self.assertEqual(len(set(chosen)), len(chosen))

    @given(heads_of, turns, rooms)
    def test_one_of_each_before_a_second_of_any(self, heads: dict[str, list[IntroPoint]], turn: int, room: int) -> None:
        counts = owners(choose(heads, turn, room))
        if len(heads) <= room:
            self.assertEqual(set(counts), set(heads))
        least = min((counts[name] for name in heads if len(heads[name]) > counts[name]), default=4)
        self.assertLessEqual(max(counts.values()), max(least, 0) + 1)

    @given(heads_of, turns, rooms)
    def test_every_head_has_its_turn(self, heads: dict[str, list[IntroPoint]], turn: int, room: int) -> None:
        together = -(-len(heads) // room)
        seen = Counter[str]()
        for later in range(together):
            seen += owners(choose(heads, turn + later, room))
        self.assertEqual(set(seen), set(heads))

    @settings(max_examples=30)
    @given(st.integers(1, 60), rooms)
    def test_in_the_long_run_all_have_the_same(self, count: int, room: int) -> None:
        heads = dict(list(POOL.items())[:count])
        seen = Counter[str]()
        for turn in range(count):
            seen += owners(choose(heads, turn, room))
        self.assertEqual(len(set(seen.values())), 1)

    def test_all_points_of_a_head_in_the_long_run(self) -> None:
        for heads in (POOL, {"head00": POOL["head00"]}):
            seen = {point for turn in range(80) for point in choose(heads, turn, 3)}
            self.assertEqual(len(seen), sum(map(len, heads.values())))

    def test_the_order_tells_nothing(self) -> None:
        """Heads may be given in any order, and points of one head do not stand together."""
        backwards = dict(reversed(list(POOL.items())))
        self.assertEqual(choose(POOL, 5, 20), choose(backwards, 5, 20))
        chosen = choose(POOL, 5, 20)
        self.assertEqual(list(chosen), sorted(chosen, key=lambda point: point.auth_key))


class FewRelays(SynchronousTestCase):
    """A client finds a point again by its relay, so the second point at one relay is never used."""

    @given(st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=8), turns)
    def test_no_two_at_one_relay_unless_a_head_had_none(self, at: list[set[int]], turn: int) -> None:
        heads = {f"head{head:02}": _at_relays(head, sorted(relays)) for head, relays in enumerate(at)}
        chosen = choose(heads, turn, MAX_INTRO_POINTS)
        counts = owners(chosen)
        self.assertEqual(set(counts), set(heads))
        doubled = [relay for relay, count in Counter(relay_of(point)[0] for point in chosen).items() if count > 1]
        if doubled:
            self.assertFalse(_all_apart(at), "everybody could have had a relay of its own")
        self.assertEqual(len(set(chosen)), len(chosen))

    def test_three_heads_on_five_relays_can_all_be_reached(self) -> None:
        heads = {name: _at_relays(head, [0, 1, 2]) for head, name in enumerate(list(POOL)[:3])}
        heads["head02"] = _at_relays(2, [2, 3, 4])
        for turn in range(12):
            chosen = choose(heads, turn, MAX_INTRO_POINTS)
            self.assertEqual(len({relay_of(point) for point in chosen}), len(chosen))
            self.assertEqual((len(chosen), set(owners(chosen))), (5, set(heads)))


def _at_relays(head: int, relays: list[int]) -> list[IntroPoint]:
    """Points of one head, at those relays."""
    points = POOL[f"head{head:02}"]
    return [
        msgspec.structs.replace(point, link_specifiers=intro_point(f"relay {relay}").link_specifiers)
        for point, relay in zip(points, relays, strict=False)
    ]


def _all_apart(heads: list[set[int]]) -> bool:
    """Can each head have a relay of its own? By trying."""
    if not heads:
        return True
    return any(_all_apart([other - {relay} for other in heads[1:]]) for relay in heads[0])


class Dealing(SynchronousTestCase):
    @given(heads_of, st.integers(0, 1000), rooms, st.integers(1, 8))
    def test_every_directory_gets_one(
        self, heads: dict[str, list[IntroPoint]], rotation: int, room: int, count: int
    ) -> None:
        dealt = deal(heads, DIRECTORIES[:count], rotation, room)
        self.assertEqual(
            sorted(node.fingerprint for _, nodes in dealt for node in nodes),
            [node.fingerprint for node in DIRECTORIES[:count]],
        )
        seen = {name for points, _ in dealt for name in owners(points)}
        if len(heads) <= room * count:
            self.assertEqual(seen, set(heads))

    def test_fifty_heads_all_have_visitors_at_once(self) -> None:
        heads = dict(list(POOL.items())[:50])
        dealt = deal(heads, DIRECTORIES, 7, MAX_INTRO_POINTS)
        self.assertEqual(len(dealt), 3)
        self.assertEqual(len({points for points, _ in dealt}), 3)
        self.assertTrue(all(nodes for _, nodes in dealt))

    def test_few_heads_need_one_descriptor(self) -> None:
        heads = dict(list(POOL.items())[:8])
        ((points, nodes),) = deal(heads, DIRECTORIES, 0, MAX_INTRO_POINTS)
        self.assertEqual((len(points), list(nodes)), (20, DIRECTORIES))

    def test_more_heads_than_all_directories_take(self) -> None:
        seen: set[str] = set()
        for rotation in range(8):
            for points, _ in deal(POOL, DIRECTORIES[:2], rotation, 4):
                seen |= set(owners(points))
        self.assertEqual(seen, set(POOL))

    def test_without_directories_or_room(self) -> None:
        self.assertEqual(deal(POOL, (), 0, 20)[0][1], ())
        self.assertEqual(deal(POOL, DIRECTORIES, 0, 0), (((), tuple(DIRECTORIES)),))

    def test_what_is_dealt_fits(self) -> None:
        key = descriptor_key()
        all_points = [point for points in POOL.values() for point in points]
        fits = room(key, all_points, 200, EXTRAS)
        self.assertLess(fits, MAX_INTRO_POINTS)
        for points, _ in deal(POOL, DIRECTORIES, 1, fits):
            self.assertLess(len(build(key, points, 1, extras=EXTRAS)), 50_000)
