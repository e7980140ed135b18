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
