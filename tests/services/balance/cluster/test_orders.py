"""Operators' orders: what is refused, and when they hold."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.services.balance.cluster import Orders, Promote, Roulette, Siege, read_orders
from ron.services.balance.cluster.orders import ROULETTE_MOST_MS
from ron.services.balance.ports import Body

NOW_MS = 1_800_000_000_000
HOUR_MS = 3_600_000


class Dictionary:
    """A book of raw MessagePack values, which decodes as strictly as the real one."""

    def __init__(self, values: dict[str, bytes]) -> None:
        self.values = values

    def get(self, key: str, shape: type[Body]) -> Body | None:
        try:
            return msgspec.msgpack.decode(self.values[key], type=shape)
        except (KeyError, msgspec.MsgspecError):
            return None

    def keys(self, prefix: str) -> tuple[str, ...]:
        return tuple(sorted(key for key in self.values if key.startswith(prefix)))

    def author_of(self, key: str) -> str:
        return "a" if key in self.values else ""

    def put(self, key: str, value: msgspec.Struct | None) -> None:
        raise NotImplementedError

    def on_change(self, heard: Callable[[str], None]) -> None:
        raise NotImplementedError


def raw(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


class Reading(SynchronousTestCase):
    def test_what_has_another_shape_is_no_order(self) -> None:
        book = Dictionary(
            {
                "promote": raw({"node": "../etc"}),
                "siege/a": raw({"on": "yes"}),
                "siege/b": raw({"on": True, "until_ms": -1}),
                "siege/c": b"\xc1",
                "roulette": raw({"from_ms": 1}),
            }
        )
        self.assertEqual(read_orders(book), Orders())

    def test_orders_are_read(self) -> None:
        book = Dictionary(
            {"promote": raw(Promote(node="b")), "siege/c": raw(Siege()), "roulette": raw(Roulette(until_ms=5))}
        )
        orders = read_orders(book)
        self.assertEqual((orders.promoted(NOW_MS), orders.under_siege("c", NOW_MS)), ("b", True))
        self.assertIsNone(orders.under_siege("b", NOW_MS))
        self.assertEqual(orders.by, {"c": "a"})

    def test_a_book_full_of_orders_hides_none(self) -> None:
        many = {f"siege/a{number:03}": raw(Siege()) for number in range(200)}
        book = Dictionary({**many, "siege/z": raw(Siege())})
        self.assertEqual(set(read_orders(book, ("a", "z")).siege), {"z"})


class Bounded(SynchronousTestCase):
    """What one member's orders do to the others' heads."""

    def left(self, by: dict[str, str], members: str, **orders: Siege) -> set[str]:
        siege = {node: orders.get(node, Siege()) for node in by}
        return set(Orders(siege=siege, by=by).bounded(members, NOW_MS).siege)

    def test_one_member_leaves_fewer_than_half_of_the_others_out(self) -> None:
        self.assertEqual(self.left(dict.fromkeys("bc", "a"), "abc"), {"b"})
        self.assertEqual(self.left(dict.fromkeys("bcde", "a"), "abcde"), {"b", "c"})
        # of two there is no most of them
        self.assertEqual(self.left({"b": "a"}, "ab"), {"b"})

    def test_of_itself_it_may_say_what_it_likes_and_so_may_others(self) -> None:
        self.assertEqual(self.left({"a": "a", "b": "a", "c": "c"}, "abc"), {"a", "b", "c"})
        self.assertEqual(self.left({"b": "a", "c": "b"}, "abc"), {"b", "c"})

    def test_what_holds_no_more_counts_for_nothing(self) -> None:
        over, off = Siege(until_ms=1), Siege(on=False)
        self.assertEqual(self.left(dict.fromkeys("bcd", "a"), "abcd", b=over), {"b", "c"})
        self.assertEqual(self.left(dict.fromkeys("bcd", "a"), "abcd", b=off), {"b", "c"})
        self.assertEqual(self.left(dict.fromkeys("bxc", "a"), "abc"), {"b", "x"})


class Holding(SynchronousTestCase):
    def test_they_end_by_themselves(self) -> None:
        orders = Orders(
            promote=Promote(node="b", until_ms=NOW_MS), siege={"a": Siege(until_ms=NOW_MS), "b": Siege(on=False)}
        )
        self.assertEqual(orders.promoted(NOW_MS - 1), "b")
        self.assertIsNone(orders.promoted(NOW_MS))
        self.assertTrue(orders.under_siege("a", NOW_MS - 1))
        self.assertIsNone(orders.under_siege("a", NOW_MS))
        self.assertIs(orders.under_siege("b", NOW_MS), False)

    def test_no_roulette_without_an_end_or_for_more_than_a_week(self) -> None:
        self.assertIsNone(Orders(roulette=Roulette(until_ms=0, from_ms=0)).turn(NOW_MS, 600))
        endless = Orders(roulette=Roulette(until_ms=2**62, from_ms=NOW_MS))
        self.assertEqual(endless.turn(NOW_MS, 600), 0)
        self.assertIsNone(endless.turn(NOW_MS - 1, 600))
        self.assertIsNone(endless.turn(NOW_MS + ROULETTE_MOST_MS, 600))

    def test_the_order_may_have_a_pace_of_its_own_but_not_any(self) -> None:
        hour = Orders(roulette=Roulette(until_ms=NOW_MS + HOUR_MS, from_ms=NOW_MS, every_s=60))
        self.assertEqual(hour.turn(NOW_MS + 59_999, 600), 0)
        self.assertEqual(hour.turn(NOW_MS + 60_000, 600), 1)
        mad = Orders(roulette=Roulette(until_ms=NOW_MS + HOUR_MS, from_ms=NOW_MS, every_s=1))
        self.assertEqual(mad.turn(NOW_MS + 9_999, 600), 0)

    @given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 86_400), st.integers(0, 2**63 - 1))
    def test_any_roulette_has_turns_from_nought_or_none(
        self, from_ms: int, until_ms: int, every_s: int, now: int
    ) -> None:
        turn = Orders(roulette=Roulette(from_ms=from_ms, until_ms=until_ms, every_s=every_s)).turn(now, 600)
        self.assertTrue(turn is None or 0 <= turn <= ROULETTE_MOST_MS // 10_000)
