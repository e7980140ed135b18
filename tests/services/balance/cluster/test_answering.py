"""A dead target takes a head out of the addresses it is dead for, of no other; and no address is left with none."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.balance import Failing, HeadReport
from ron.services.balance.cluster import Orders, Plan, Roulette, Siege, Timing
from ron.services.balance.cluster.descriptor_plan import Planner
from ron.services.balance.cluster.publications import Agenda, Reason
from tests.services.balance.cluster.test_descriptor_plan import TIMING, UNIX_MS, seen, well

SERVICES = ("main", "shop")


def failing(*services: str, **more: Any) -> HeadReport:
    """Whole, but for the targets of these."""
    told = tuple(Failing(service=name, target=f"{name} does not answer") for name in services)
    return well(healthy=not services, failing=told, **more)


class Planning(SynchronousTestCase):
    def setUp(self) -> None:
        self.planner = Planner(TIMING)
        self.now_s = 100.0
        self.orders = Orders()

    def plan(self, after_s: float = 0.5, **reports: HeadReport) -> Plan:
        self.now_s += after_s
        unix_ms = UNIX_MS + int(1000 * self.now_s)
        return self.planner.plan(seen(**reports), self.orders, now_s=self.now_s, unix_ms=unix_ms, services=SERVICES)


class PerService(Planning):
    def test_only_where_it_is_dead(self) -> None:
        plan = self.plan(a=failing("main"), b=well())
        self.assertEqual(plan.lists, {"main": ("b",), "shop": ("a", "b")})
        self.assertEqual((plan.listed, plan.left_out, plan.refusing), (("a", "b"), {}, ()))
        self.assertEqual(plan.failing, {"main": {"a": "main does not answer"}, "shop": {}})

    def test_dead_for_all_of_them_it_is_out(self) -> None:
        plan = self.plan(a=failing("main", "shop"), b=well())
        self.assertEqual((plan.listed, plan.heads("main"), plan.heads("shop")), (("b",), ("b",), ("b",)))
        self.assertEqual(plan.left_out, {"a": "main does not answer; shop does not answer"})
        self.assertIn("a", plan.wanted)

    def test_a_head_that_names_none_fails_for_all(self) -> None:
        plan = self.plan(a=well(healthy=False), b=well())
        self.assertEqual((plan.lists, plan.left_out), ({"main": ("b",), "shop": ("b",)}, {"a": _OLD}))

    def test_dead_everywhere_it_is_refused_rather_than_not_found(self) -> None:
        plan = self.plan(a=failing("main"), b=failing("main"))
        self.assertEqual(plan.lists, {"main": ("a", "b"), "shop": ("a", "b")})
        self.assertEqual(plan.refusing, ("main",))

    def test_all_dead_everywhere(self) -> None:
        plan = self.plan(a=failing(*SERVICES), b=failing(*SERVICES))
        self.assertEqual(plan.lists, {"main": ("a", "b"), "shop": ("a", "b")})
        self.assertEqual((plan.refusing, plan.listed), (SERVICES, ("a", "b")))

    def test_one_that_answers_goes_before_quiet(self) -> None:
        """A flooded head that answers is better than a quiet one that refuses; it is called back for that address."""
        flooded = {"introductions_per_s": 90.0}
        self.plan(a=well(), b=well())
        plan = self.plan(a=failing("main"), b=well(**flooded))
        self.assertEqual(plan.lists, {"main": ("b",), "shop": ("a",)})
        plan = self.plan(a=failing("main"), b=well(mode="ghost", **flooded))
        self.assertEqual((plan.heads("main"), plan.refusing, plan.wanted), (("a",), ("main",), ("a", "b")))

    def test_whom_an_operator_put_out_comes_after_others_that_answer(self) -> None:
        self.orders = Orders(siege={"b": Siege()})
        self.assertEqual(self.plan(a=failing("main"), b=well(), c=well(under_siege=True)).heads("main"), ("c",))
        self.assertEqual(self.plan(a=failing("main"), b=well()).heads("main"), ("b",))

    def test_who_is_not_drawn_stands_in(self) -> None:
        unix_ms = UNIX_MS + int(1000 * self.now_s)
        self.orders = Orders(roulette=Roulette(from_ms=unix_ms, until_ms=unix_ms + 10**9, every_s=600))
        plan = self.plan(a=failing("main"), b=well())
        self.assertEqual((plan.lists, plan.listed), ({"main": ("b",), "shop": ("a",)}, ("a", "b")))

    def test_a_target_that_breaks_again_and_again_waits_longer(self) -> None:
        waits = []
        self.plan(a=well(), b=well())
        for _ in range(6):
            self.plan(a=well(), b=failing("main"))
            start_s = self.now_s
            while "b" not in self.plan(a=well(), b=well()).heads("main"):
                self.assertIn("b", self.plan(a=well(), b=well()).heads("shop"))
            waits.append(self.now_s - start_s)
        self.assertEqual((waits[0], waits), (0.5, sorted(waits)))
        self.assertGreater(waits[-1], 10)

    def test_since_when_each_is_out(self) -> None:
        self.plan(a=well(), b=well())
        plan = self.plan(a=well(), b=well(under_siege=True))
        since_s = self.now_s
        self.assertEqual(plan.out_since_s, {"b": since_s})
        self.assertEqual(self.plan(9, a=well(), b=well(under_siege=True)).out_since_s, {"b": since_s})
        self.assertEqual(self.plan(200, a=well(), b=well()).out_since_s, {})

    @settings(deadline=None)
    @given(
        st.lists(
            st.dictionaries(
                st.sampled_from("abcd"),
                st.builds(
                    lambda dead, mode, sieged: failing(*sorted(dead), mode=mode, under_siege=sieged),
                    st.sets(st.sampled_from(SERVICES)),
                    st.sampled_from(["serving", "ghost", "down", "starting"]),
                    st.booleans(),
                ),
                min_size=1,
            ),
            min_size=1,
            max_size=5,
        )
    )
    def test_whatever_happens(self, history: list[dict[str, HeadReport]]) -> None:
        self.planner = Planner(TIMING)
        for reports in history:
            plan = self.plan(60.0, **reports)
            serve = {name for name, report in reports.items() if report.mode == "serving"}
            self.assertEqual({one for heads in plan.lists.values() for one in heads}, set(plan.listed))
            for service in SERVICES:
                heads = set(plan.heads(service))
                self.assertEqual(bool(heads), bool(serve), plan)
                self.assertLessEqual(heads, serve)
                answer = {name for name in serve if service not in {one.service for one in reports[name].failing}}
                # nobody is sent to one that does not answer while another does
                self.assertTrue(heads <= answer if answer else service in plan.refusing or not heads, plan)
            self.assertFalse(set(plan.listed) & plan.left_out.keys())
            self.assertEqual({*plan.listed, *plan.left_out}, set(reports))


_OLD = "its target does not answer"


class Publishing(SynchronousTestCase):
    def test_a_head_that_leaves_one_address_does_not_wait(self) -> None:
        agenda = Agenda(Timing())
        heads = {"a": "1", "b": "1"}
        both = {"main": ("a", "b"), "shop": ("a", "b")}
        one = {**both, "main": ("b",)}
        agenda.tick(1.0, leads=True, listed=heads, services=SERVICES, lists=both)
        agenda.ended(agenda.begin(1.0), ok=True)
        found = agenda.tick(1.1, leads=True, listed=heads, services=SERVICES, lists=one)
        self.assertEqual(found[1], True)
        self.assertIsNot(found[0], Reason.NONE)
        agenda.ended(agenda.begin(1.1), ok=True)
        self.assertEqual(agenda.tick(1.2, leads=True, listed=heads, services=SERVICES, lists=one)[1], False)
