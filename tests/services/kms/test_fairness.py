"""Fair shares under load: nobody gets more than its part while others wait, nobody starves, nothing is lost."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.limits import Refused
from ron.proto.errors import ErrorCode
from ron.services.kms.fairness import FairQueue, Waiting, shares
from ron.services.kms.rates import Rates

few = settings(deadline=None, max_examples=100)
names = some.sampled_from("abcdefgh")
weights = some.dictionaries(names, some.floats(0.01, 100), min_size=1)
costs = some.floats(0.1, 50)


class Case(SynchronousTestCase):
    def refused(self, reason: str, call: Any, *args: Any) -> None:
        error = self.assertRaises(Refused, call, *args)
        self.assertEqual((error.code, error.reason, error.status), (ErrorCode.BACKPRESSURE, reason, 429))


class Bad(Case):
    def test_numbers_that_make_no_queue(self) -> None:
        for wrong in ({"capacity": 0}, {"floor": -0.1}, {"floor": 1.1}, {"weights": {"a": 0.0}}):
            self.assertRaises(ValueError, FairQueue, **wrong)
        self.assertRaises(ValueError, FairQueue, weights={"a": float("nan")})
        for cost in (0.0, -1.0, float("inf"), float("nan")):
            self.assertRaises(ValueError, FairQueue().put, "a", 1, cost)
        self.assertEqual(len(FairQueue()), 0)

    def test_rates_that_let_nothing_through(self) -> None:
        self.assertRaises(ValueError, Rates, 0.0, now_s=0.0)
        self.assertRaises(ValueError, Rates, 1.0, 0.0, now_s=0.0)

    def test_full_is_full(self) -> None:
        queue: FairQueue[int] = FairQueue(capacity=8)
        for tenant in "abcdefgh":
            queue.put(tenant, 1)
        self.refused("backpressure", queue.put, "i", 1)
        self.refused("backpressure", queue.put, "a", 1)
        self.assertEqual(len(queue), 8)


class Room(Case):
    def fill(self, queue: FairQueue[int], tenant: str) -> int:
        count = 0
        try:
            while True:
                queue.put(tenant, count)
                count += 1
        except Refused:
            return count

    def test_another_size(self) -> None:
        """What waits already goes on waiting."""
        queue: FairQueue[int] = FairQueue(capacity=4, floor=0.0)
        for number in range(3):
            queue.put(f"t{number}", number)
        queue.resize(capacity=2, floor=0.5)
        with self.assertRaises(Refused):
            queue.put("late", 9)
        self.assertEqual(len(queue), 3)
        queue.resize(capacity=8, floor=0.5)
        queue.put("late", 9)
        self.assertEqual(len(queue), 4)

    def test_one_that_floods_leaves_room(self) -> None:
        queue: FairQueue[int] = FairQueue()
        self.assertEqual(self.fill(queue, "greedy"), 240)
        self.refused("tenant_share", queue.put, "greedy", 1)
        filled = [self.fill(queue, tenant) for tenant in "abc"]
        self.assertTrue(all(count >= 26 for count in filled), filled)

    def test_room_for_many(self) -> None:
        """Twenty that flood leave something for those that come after them."""
        queue: FairQueue[int] = FairQueue()
        for n in range(20):
            self.fill(queue, f"greedy-{n}")
        for n in range(10):
            queue.put(f"late-{n}", 1)
            self.refused("tenant_share", queue.put, "greedy-0", 1)

    @few
    @given(some.lists(names, max_size=200), some.integers(2, 64))
    def test_never_more_than_there_is(self, arrivals: list[str], capacity: int) -> None:
        queue: FairQueue[int] = FairQueue(capacity=capacity)
        accepted = Counter[str]()
        for number, tenant in enumerate(arrivals):
            empty = queue.depth(tenant) == 0
            full = len(queue) == capacity
            try:
                queue.put(tenant, number)
                accepted[tenant] += 1
            except Refused:
                self.assertTrue(full or not empty, "a tenant with nothing waiting finds a place while there is one")
        self.assertLessEqual(len(queue), capacity)
        self.assertEqual({name: queue.depth(name) for name in accepted}, dict(accepted))


class Fair(Case):
    def test_ten_times_as_much_gets_no_more(self) -> None:
        queue: FairQueue[str] = FairQueue()
        for _ in range(200):
            queue.put("greedy", "x")
        for _ in range(20):
            queue.put("modest", "x")
        served = [queue.take() for _ in range(40)]
        self.assertEqual(Counter(one[0] for one in served if one), {"greedy": 20, "modest": 20})

    def test_a_newcomer_is_next_but_one(self) -> None:
        queue: FairQueue[str] = FairQueue()
        for _ in range(200):
            queue.put("greedy", "x")
        for _ in range(50):
            queue.take()
        queue.put("late", "x")
        served = [queue.take() for _ in range(3)]
        self.assertIn(("late", "x"), served)

    def test_idling_saves_nothing_up(self) -> None:
        queue: FairQueue[str] = FairQueue()
        queue.put("idle", "x")
        for _ in range(100):
            queue.put("busy", "x")
        for _ in range(60):
            queue.take()
        for _ in range(40):
            queue.put("idle", "x")
        served = Counter(one[0] for _ in range(20) if (one := queue.take()))
        self.assertLessEqual(abs(served["idle"] - served["busy"]), 2)

    def test_weights(self) -> None:
        queue: FairQueue[str] = FairQueue(weights={"gold": 3.0})
        for _ in range(80):
            queue.put("gold", "x")
            queue.put("tin", "x")
        served = Counter(one[0] for _ in range(80) if (one := queue.take()))
        self.assertTrue(58 <= served["gold"] <= 62, served)

    def test_the_floor_holds_against_any_weight(self) -> None:
        queue: FairQueue[str] = FairQueue(weights={"heavy": 1e6})
        for _ in range(100):
            queue.put("light", "x")
            queue.put("heavy", "x")
        served = Counter(one[0] for _ in range(100) if (one := queue.take()))
        self.assertTrue(4 <= served["light"] <= 7, served)

    def test_dear_work_counts_as_what_it_costs(self) -> None:
        queue: FairQueue[str] = FairQueue()
        for _ in range(100):
            queue.put("cheap", "ed25519", 1.0)
        for _ in range(20):
            queue.put("dear", "ml-dsa", 10.0)
        served = Counter(one[0] for _ in range(77) if (one := queue.take()))
        self.assertTrue(6 <= served["dear"] <= 8, served)

    @few
    @given(some.dictionaries(names, costs, min_size=2), some.integers(1, 60))
    def test_backlogged_tenants_are_within_one_piece(self, cost: dict[str, float], taken: int) -> None:
        """The theorem of the paper: |W_i - W_j| <= c_i + c_j, at any moment while both wait."""
        queue: FairQueue[int] = FairQueue(capacity=4096)
        for number in range(80):
            for tenant, price in cost.items():
                queue.put(tenant, number, price)
        work = dict.fromkeys(cost, 0.0)
        for _ in range(taken):
            found = queue.take()
            assert found is not None
            work[found[0]] += cost[found[0]]
        for one in cost:
            for other in cost:
                if queue.depth(one) and queue.depth(other):
                    self.assertLessEqual(abs(work[one] - work[other]), (cost[one] + cost[other]) * 1.000001)

    @few
    @given(weights, some.floats(0, 1))
    def test_shares_are_of_one_and_above_the_floor(self, given_weights: dict[str, float], floor: float) -> None:
        parts = shares(given_weights, floor)
        self.assertAlmostEqual(sum(parts.values()), 1.0)
        least = min(floor, 1 / len(parts))
        self.assertTrue(all(part >= least * 0.999999 for part in parts.values()), parts)
        order = sorted(given_weights, key=given_weights.__getitem__)
        self.assertTrue(all(parts[a] <= parts[b] * 1.000001 for a, b in pairwise(order)))
        self.assertEqual(shares({}, floor), {})

    @few
    @given(some.lists(some.tuples(some.sampled_from(("put", "take", "drop")), names, costs), max_size=300), weights)
    def test_nothing_is_lost(self, acts: list[tuple[str, str, float]], heavy: dict[str, float]) -> None:
        """Whatever was accepted comes out once, in its tenant's order, or was dropped by whoever put it."""
        queue: FairQueue[int] = FairQueue(capacity=32, weights=heavy)
        places: dict[int, Waiting[int]] = {}
        out: list[tuple[str, int]] = []
        accepted: dict[int, str] = {}
        dropped: set[int] = set()
        for number, (act, tenant, cost) in enumerate(acts):
            if act == "put":
                try:
                    places[number] = queue.put(tenant, number, cost)
                    accepted[number] = tenant
                except Refused:
                    pass
            elif act == "take":
                if (found := queue.take()) is not None:
                    out.append(found)
            elif places:
                oldest = min(places)
                if queue.drop(place := places.pop(oldest)):
                    dropped.add(oldest)
                self.assertFalse(queue.drop(place))
        while (found := queue.take()) is not None:
            out.append(found)
        taken = [item for _tenant, item in out]
        self.assertEqual(len(taken), len(set(taken)))
        self.assertEqual(set(taken) | dropped, set(accepted))
        self.assertFalse(set(taken) & dropped)
        for name in set(accepted.values()):
            mine = [item for tenant, item in out if tenant == name]
            self.assertEqual(mine, sorted(mine))
        self.assertTrue(all(accepted[item] == tenant for tenant, item in out))
        self.assertEqual((len(queue), queue.depth("a")), (0, 0))

    @few
    @given(some.lists(names, min_size=20, max_size=60))
    def test_nobody_starves(self, arrivals: list[str]) -> None:
        """With n tenants waiting, each is served within n turns of the first one's, whatever keeps arriving."""
        queue: FairQueue[str] = FairQueue(capacity=4096)
        for tenant in "abcdefgh":
            queue.put(tenant, "first")
        waiting = set("abcdefgh")
        for tenant in arrivals[:8]:
            queue.put(tenant, "more")
            found = queue.take()
            assert found is not None
            if found[1] == "first":
                waiting.discard(found[0])
        self.assertEqual(waiting, set())

    def test_tenants_that_come_and_go_are_forgotten(self) -> None:
        queue: FairQueue[int] = FairQueue(capacity=8)
        queue.put("stays", 0)
        for number in range(500):
            queue.put(f"passing-{number}", number)
            queue.take()
        self.assertLessEqual(len(queue._lines), 4 * 8)
        left: list[str] = []
        while (found := queue.take()) is not None:
            left.append(found[0])
        self.assertEqual(len(left), 1)


class PerSecond(Case):
    def served(self, rates: Rates, asks: dict[str, int], seconds: int, *, from_s: int = 0) -> Counter[str]:
        """Requests that get through when each tenant asks so often a second, evenly."""
        count = Counter[str]()
        times = sorted(
            (from_s + second + n / asked, tenant)
            for tenant, asked in asks.items()
            for second in range(seconds)
            for n in range(asked)
        )
        for now_s, tenant in times:
            try:
                rates.check(tenant, now_s)
                count[tenant] += 1
            except Refused as error:
                self.assertEqual((error.reason, error.status), ("rate", 429))
        return count

    def test_the_instance_gives_no_more_than_its_rate(self) -> None:
        count = self.served(Rates(50, now_s=0.0), {"a": 200, "b": 200, "c": 200}, 10)
        # a burst of a second, and what newcomers begin with
        self.assertLessEqual(sum(count.values()), 50 * 11 + 3)
        self.assertGreaterEqual(sum(count.values()), 50 * 9)

    def test_ten_times_as_much_takes_nothing_from_others(self) -> None:
        count = self.served(Rates(100, now_s=0.0), {"greedy": 400, "modest": 40}, 10)
        self.assertGreaterEqual(count["modest"], 395)
        self.assertGreaterEqual(count["greedy"], 500)

    def test_a_lone_tenant_has_all_of_it(self) -> None:
        rates = Rates(100, now_s=0.0)
        self.served(rates, {"a": 50, "b": 50, "c": 50}, 5)
        count = self.served(rates, {"a": 200}, 10, from_s=10)
        self.assertGreaterEqual(count["a"], 950)

    def test_a_tenants_own_limit(self) -> None:
        count = self.served(Rates(1000, 10, now_s=0.0), {"a": 100, "b": 5}, 10)
        self.assertTrue(100 <= count["a"] <= 111, count)
        self.assertEqual(count["b"], 50)

    def test_limits_are_remembered_for_so_many(self) -> None:
        rates = Rates(1e6, 1, now_s=0.0)
        rates.check("first", 0.0)
        self.refused("rate", rates.check, "first", 0.0)
        for n in range(4096):
            rates.check(f"t{n}", 0.0)
        rates.check("first", 0.0)

    def test_a_clock_that_goes_back_gives_nothing(self) -> None:
        rates = Rates(5, now_s=1000.0)
        for _ in range(5):
            rates.check("a", 1000.0)
        for _ in range(50):
            self.refused("rate", rates.check, "a", 0.0)
        rates.check("a", 1.0)

    @few
    @given(some.dictionaries(names, some.integers(1, 100), min_size=1), some.integers(5, 100))
    def test_never_over_the_rate(self, asks: dict[str, int], rps: int) -> None:
        count = self.served(Rates(rps, now_s=0.0), asks, 3)
        self.assertLessEqual(sum(count.values()), rps * 4 + len(asks) + 1)
