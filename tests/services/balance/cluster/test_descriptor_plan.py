"""Which heads are in, and why each other one is out."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.balance import HeadReport
from ron.services.balance.cluster import HeadSeen, Orders, Plan, Roulette, Siege, Timing
from ron.services.balance.cluster.descriptor_plan import Planner, draw

UNIX_MS = 1_800_000_000_000
TIMING = Timing(quiet_s=60.0, steady_s=2.5, siege_per_s=30.0)
REPORTS = st.builds(
    HeadReport,
    mode=st.sampled_from(["starting", "serving", "ghost", "down"]),
    descriptor=st.sampled_from(["", "d"]),
    healthy=st.booleans(),
    under_siege=st.booleans(),
    introductions_per_s=st.sampled_from([0.0, 20.0, 1e9]),
)


def well(**more: Any) -> HeadReport:
    return HeadReport(**{"mode": "serving", "descriptor": "d", "healthy": True, **more})


def seen(**reports: HeadReport | None) -> dict[str, HeadSeen]:
    return {name: HeadSeen(report=report) for name, report in reports.items()}


class Planning(SynchronousTestCase):
    def setUp(self) -> None:
        self.planner = Planner(TIMING)
        self.now_s = 100.0
        self.orders = Orders()

    def plan(self, after_s: float = 0.5, **reports: HeadReport | None) -> Plan:
        self.now_s += after_s
        unix_ms = UNIX_MS + int(1000 * self.now_s)
        return self.planner.plan(seen(**reports), self.orders, now_s=self.now_s, unix_ms=unix_ms)

    def unix_ms(self, in_s: float) -> int:
        return UNIX_MS + int(1000 * (self.now_s + in_s))


class Broken(Planning):
    def test_each_is_out_for_its_reason(self) -> None:
        heads = seen(
            a=well(),
            b=None,
            c=well(mode="down"),
            d=HeadReport(),
            e=well(healthy=False),
            f=well(mode="ghost"),
            g=well(descriptor=""),
        )
        heads["h"] = HeadSeen(report=well(), dead="silent for 3.0 s")
        plan = self.planner.plan(heads, Orders(), now_s=1.0, unix_ms=UNIX_MS)
        # none of these is kept out on purpose: nobody is to be a ghost
        self.assertEqual((plan.listed, plan.wanted), (("a",), tuple(sorted(heads))))
        self.assertEqual(
            plan.left_out,
            {
                "b": "not heard",
                "c": "down",
                "d": "starting",
                "e": "its target does not answer",
                "f": "not ready yet",
                "g": "not ready yet",
                "h": "silent for 3.0 s",
            },
        )

    def test_a_ghost_is_called_back_before_it_is_listed(self) -> None:
        plan = self.plan(a=well(), b=well(mode="ghost"))
        self.assertEqual((plan.listed, plan.wanted), (("a",), ("a", "b")))
        self.assertEqual(self.plan(a=well(), b=well()).listed, ("a", "b"))

    def test_it_is_back_at_once_the_first_time_and_later_each_time(self) -> None:
        waits = []
        self.plan(a=well(), b=well())
        for _ in range(8):
            self.plan(a=well(), b=well(healthy=False))
            start_s = self.now_s
            while "b" not in self.plan(a=well(), b=well()).listed:
                pass
            waits.append(self.now_s - start_s)
        self.assertEqual(waits[0], 0.5)
        self.assertEqual(waits, sorted(waits))
        self.assertGreater(waits[-1], TIMING.quiet_s - 1)
        self.assertLess(waits[-1], TIMING.quiet_s + 1)

    def test_better_one_without_a_target_than_none(self) -> None:
        self.assertEqual(self.plan(a=well(healthy=False), b=well(mode="down")).listed, ("a",))
        self.assertEqual(self.plan(a=well(mode="down")).listed, ())
        # a ghost is called back for it
        self.assertIn("a", self.plan(a=well(mode="ghost", healthy=False), b=well(mode="down")).wanted)


class Sieged(Planning):
    def test_out_at_once_back_after_quiet(self) -> None:
        self.plan(a=well(), b=well())
        plan = self.plan(a=well(), b=well(introductions_per_s=30.0))
        self.assertEqual((plan.listed, plan.left_out), (("a",), {"b": "under siege"}))
        # half of the rate is not quiet yet
        self.assertEqual(self.plan(100, a=well(), b=well(introductions_per_s=16.0)).listed, ("a",))
        plan = self.plan(59.5, a=well(), b=well(introductions_per_s=14.0))
        self.assertEqual(plan.left_out, {"b": "quiet again for 60 of 60 s"})
        self.assertEqual(self.plan(0.5, a=well(), b=well()).listed, ("a", "b"))

    def test_its_own_word_is_enough_and_toggling_gains_nothing(self) -> None:
        self.plan(a=well(), b=well())
        changes, last = 0, ("a", "b")
        for beat in range(240):
            listed = self.plan(a=well(), b=well(under_siege=beat % 2 == 0)).listed
            changes, last = changes + (listed != last), listed
        self.assertLessEqual(changes, 4)

    def test_nought_is_never(self) -> None:
        planner = Planner(Timing(siege_per_s=0.0))
        plan = planner.plan(seen(a=well(introductions_per_s=1e9), b=well()), Orders(), now_s=1.0, unix_ms=UNIX_MS)
        self.assertEqual(plan.listed, ("a", "b"))

    def test_an_operators_word(self) -> None:
        self.orders = Orders(siege={"b": Siege(until_ms=self.unix_ms(10)), "c": Siege(on=False)})
        plan = self.plan(a=well(), b=well(), c=well(under_siege=True, introductions_per_s=900.0))
        self.assertEqual(plan.listed, ("a", "c"))
        self.assertIn("operator", plan.left_out["b"])
        self.assertEqual(self.plan(20, a=well(), b=well(), c=well()).listed, ("a", "c"))
        self.assertEqual(self.plan(61, a=well(), b=well(), c=well()).listed, ("a", "b", "c"))

    def test_with_all_under_siege_the_half_that_is_flooded_least(self) -> None:
        rates = {"a": 90.0, "b": 50.0, "c": 70.0}
        self.plan(**{name: well() for name in rates})
        plan = self.plan(**{name: well(introductions_per_s=rate) for name, rate in rates.items()})
        self.assertEqual(plan.listed, ("b", "c"))

    def test_and_they_stay_the_same_while_the_flood_goes_after_them(self) -> None:
        self.plan(a=well(introductions_per_s=90.0), b=well(introductions_per_s=50.0))
        for rate in (60.0, 200.0, 1e6):
            plan = self.plan(a=well(mode="ghost"), b=well(introductions_per_s=rate))
            self.assertEqual((plan.listed, plan.wanted), (("b",), ("b",)))
        # the other one is quiet again: it is called back, and takes over when it is ready
        plan = self.plan(61, a=well(mode="ghost"), b=well(introductions_per_s=50.0))
        self.assertEqual((plan.listed, plan.wanted), (("b",), ("a", "b")))
        self.assertEqual(self.plan(a=well(), b=well(introductions_per_s=50.0)).listed, ("a",))

    def test_those_that_an_operator_put_out_come_last(self) -> None:
        self.orders = Orders(siege={"a": Siege()})
        self.assertEqual(self.plan(a=well(), b=well(under_siege=True)).listed, ("b",))
        self.orders = Orders(siege={"a": Siege(), "b": Siege()})
        self.assertEqual(len(self.plan(a=well(), b=well()).listed), 1)


class Rolling(Planning):
    def test_another_half_each_turn_and_an_end(self) -> None:
        self.orders = Orders(roulette=Roulette(from_ms=self.unix_ms(0), until_ms=self.unix_ms(1800), every_s=600))
        heads = {name: well() for name in "abcd"}
        turns = [self.plan(300, **heads).listed, *(self.plan(600, **heads).listed for _ in range(3))]
        self.assertEqual(turns[:2], [("a", "b"), ("c", "d")])
        self.assertEqual(turns[3], ("a", "b", "c", "d"))

    def test_the_last_turns_heads_stay_until_the_next_are_ready(self) -> None:
        self.orders = Orders(roulette=Roulette(from_ms=self.unix_ms(0), until_ms=self.unix_ms(1800), every_s=600))
        plan = self.plan(700, a=well(), b=well(), c=well(mode="ghost"), d=well(mode="ghost"))
        self.assertEqual((plan.listed, plan.wanted), (("a", "b"), ("a", "b", "c", "d")))
        plan = self.plan(a=well(), b=well(), c=well(), d=well(mode="ghost"))
        self.assertEqual((plan.listed, plan.wanted), (("c",), ("c", "d")))
        self.assertEqual(plan.left_out["a"], "not drawn by the roulette")

    @given(st.integers(1, 64), st.integers(0, 10**6))
    def test_everybody_in_two_turns_and_never_the_same_twice(self, count: int, turn: int) -> None:
        names = [f"n{place:02}" for place in range(count)]
        one, two = draw(names, turn), draw(names, turn + 1)
        self.assertEqual(set(one) | set(two), set(names))
        self.assertEqual(len(set(one)), len(one))
        self.assertEqual(len(one), max(1, (count + 1) // 2))
        self.assertTrue(count == 1 or set(one) != set(two))


class Whatever(SynchronousTestCase):
    @given(
        st.lists(st.dictionaries(st.sampled_from("abcde"), REPORTS, min_size=1), min_size=1, max_size=8),
        st.sampled_from([0.5, 70.0]),
        st.booleans(),
        st.sets(st.sampled_from("abcde")),
    )
    def test_never_empty_while_any_serves(
        self, history: list[dict[str, HeadReport]], step_s: float, rolls: bool, ordered: set[str]
    ) -> None:
        planner = Planner(TIMING)
        roulette = Roulette(from_ms=UNIX_MS, until_ms=UNIX_MS + 10**9) if rolls else None
        orders = Orders(roulette=roulette, siege={name: Siege() for name in ordered})
        for place, reports in enumerate(history):
            now_s = 1.0 + place * step_s
            plan = planner.plan(seen(**reports), orders, now_s=now_s, unix_ms=UNIX_MS + int(1000 * now_s))
            serve = {name for name, report in reports.items() if report.mode == "serving" and report.descriptor}
            self.assertEqual(bool(plan.listed), bool(serve), plan)
            self.assertLessEqual(set(plan.listed), serve)
            self.assertLessEqual(set(plan.listed), set(plan.wanted))
            self.assertEqual(set(plan.listed) | set(plan.left_out), set(reports))
            self.assertFalse(set(plan.listed) & set(plan.left_out))


class KeptOut(Planning):
    def test_a_ghost_that_breaks_under_siege_stays_one(self) -> None:
        flooded = well(mode="ghost", under_siege=True)
        self.assertNotIn("b", self.plan(a=well(), b=flooded).wanted)
        broken = well(mode="ghost", under_siege=True, healthy=False)
        self.assertNotIn("b", self.plan(a=well(), b=broken).wanted)
        self.assertIn("c", self.plan(a=well(), b=broken, c=well(healthy=False)).wanted)
