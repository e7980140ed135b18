"""What operators order through the book, and when it holds.

In: values of the keys `promote`, `siege/<node>`, `roulette`, who wrote them, the time. Out: `Orders`.
Any member can write them: an order is as good as the worst member. All end by themselves or by another order, and one
member's orders never leave out most of the others' heads: a seized one must not get all visitors for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from ron.proto.balance import MAX_NODES, Count, NodeName
from ron.services.balance.ports import Book

SIEGE_PREFIX = "siege/"
# As `roulette_for_s` in the configuration: a roulette that nobody ends ends after a week.
ROULETTE_MOST_MS = 604_800_000
# As `roulette_s`: a hostile order must not have a leader publish all the time.
ROULETTE_LEAST_S = 10

Fingerprint = Annotated[str, Meta(pattern=r"^[0-9A-F]{40}\Z")]


class _Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Promote(_Order, frozen=True, kw_only=True):
    """`promote`: `node` leads while it is able to. until_ms: Unix milliseconds, 0 for no end."""

    node: NodeName
    until_ms: Count = 0


class Siege(_Order, frozen=True, kw_only=True):
    """`siege/<node>`: its head is under siege (on), or is not, whatever its rates say (off). until_ms: as above."""

    on: bool = True
    until_ms: Count = 0


class Roulette(_Order, frozen=True, kw_only=True):
    """`roulette`: from `from_ms` on another half of the heads each `every_s`, until `until_ms`, which has to be there.

    every_s: 0 for the configuration's pace.
    """

    until_ms: Count
    from_ms: Count = 0
    every_s: Annotated[int, Meta(ge=0, le=86_400)] = 0


class Orders(_Order, frozen=True, kw_only=True):
    """The orders that the election and the descriptor follow. Times are Unix milliseconds of the cluster's clock.
    by: who wrote the siege about each node; about one that is not there nobody asks."""

    promote: Promote | None = None
    siege: Mapping[NodeName, Siege] = {}
    by: Mapping[NodeName, NodeName] = {}
    roulette: Roulette | None = None

    def promoted(self, unix_ms: int) -> NodeName | None:
        """Who is to lead now."""
        order = self.promote
        return order.node if order is not None and _holds(order.until_ms, unix_ms) else None

    def under_siege(self, node: NodeName, unix_ms: int) -> bool | None:
        """What the operator says of the head of `node`; None: nothing."""
        order = self.siege.get(node)
        return order.on if order is not None and _holds(order.until_ms, unix_ms) else None

    def bounded(self, members: Collection[NodeName], unix_ms: int) -> Orders:
        """Without those sieges that are one too many of their author's about others: the last by name."""
        kept: dict[NodeName, Siege] = {}
        given: Counter[NodeName] = Counter()
        for node, order in sorted(self.siege.items()):
            author = self.by.get(node, node)
            if order.on and author != node and node in members and _holds(order.until_ms, unix_ms):
                given[author] += 1
                if given[author] > most_put_out(len(members)):
                    continue
            kept[node] = order
        return msgspec.structs.replace(self, siege=kept)

    def turn(self, unix_ms: int, pace_s: float) -> int | None:
        """The roulette's turn, counted from its beginning; None while it is off. pace_s: where the order has none."""
        order = self.roulette
        if order is None or not order.from_ms <= unix_ms < min(order.until_ms, order.from_ms + ROULETTE_MOST_MS):
            return None
        every_ms = int(max(order.every_s or pace_s, ROULETTE_LEAST_S) * 1000)
        return (unix_ms - order.from_ms) // every_ms


def most_put_out(members: int) -> int:
    """How many of the others' heads the orders of one member may leave out: fewer than half of all, but one."""
    return max(1, (members - 1) // 2)


def _holds(until_ms: int, unix_ms: int) -> bool:
    return until_ms == 0 or unix_ms < until_ms


def read_orders(book: Book, members: Collection[NodeName] | None = None) -> Orders:
    """Those in the book. A value of another shape is no order. members: of others' heads nothing is read, or somebody
    could write so many that an operator's is not among those looked at."""
    nodes = [key.removeprefix(SIEGE_PREFIX) for key in book.keys(SIEGE_PREFIX)]
    wanted = [node for node in nodes if members is None or node in members][:MAX_NODES]
    named = {node: book.get(SIEGE_PREFIX + node, Siege) for node in wanted}
    return Orders(
        promote=book.get("promote", Promote),
        siege={node: order for node, order in named.items() if order is not None},
        by={node: book.author_of(SIEGE_PREFIX + node) for node, order in named.items() if order is not None},
        roulette=book.get("roulette", Roulette),
    )
