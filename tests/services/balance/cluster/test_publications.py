"""When a node publishes, and when it owns up to not being able to."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.balance import Published
from ron.services.balance.cluster import Reason, Timing
from ron.services.balance.cluster.publications import Agenda, Told, standing

TIMING = Timing(publish_every_s=600.0, publish_grace_s=30.0, gap_s=2.0, change_s=30.0, prove_s=30.0, prove_most_s=600.0)


def told(
    period: int, revision: int = 1, heads: tuple[str, ...] = (), service: str = "main", ago_s: float = 0
) -> Published:
    return Published(service=service, period=period, revision=revision, heads=heads, ago_ms=int(1000 * ago_s))


class Due(SynchronousTestCase):
    def setUp(self) -> None:
        self.agenda = Agenda(TIMING)
        self.agenda.due({7, 8})
        self.now_s = 1000.0
        self.heads = {"a": "1", "b": "1"}

    def tick(
        self, after_s: float = 0.5, heads: Mapping[str, str] | None = None, *, leads: bool = True
    ) -> tuple[Reason, bool]:
        self.now_s += after_s
        self.heads = dict(heads) if heads is not None else self.heads
        return self.agenda.tick(self.now_s, leads=leads, listed=self.heads, services={"main"})

    def publish(self, *, ok: bool = True) -> None:
        number = self.agenda.begin(self.now_s)
        if ok:
            self.agenda.published([told(7), told(8)], self.now_s)
        self.agenda.ended(number, ok=ok)

    def led(self) -> None:
        self.tick()
        self.publish()

    def test_a_new_leader_at_once_and_then_nothing(self) -> None:
        self.assertEqual(self.tick(), (Reason.NEW_LEADER, False))
        self.publish()
        self.assertEqual(self.tick(), (Reason.NONE, False))
        self.assertEqual(self.agenda.lease_left_s(self.now_s), 629.5)

    def test_a_head_to_take_out_does_not_wait(self) -> None:
        self.led()
        self.assertEqual(self.tick(0.1, {"a": "1"}), (Reason.HEADS_CHANGED, True))
        self.publish()
        self.assertEqual(self.tick(0.1, {}), (Reason.NONE, False))

    def test_not_even_for_a_publication_under_way(self) -> None:
        self.tick()
        first = self.agenda.begin(self.now_s)
        self.assertEqual(self.tick(0.1), (Reason.NONE, False))
        self.assertEqual(self.tick(0.1, {"a": "1"}), (Reason.NEW_LEADER, True))
        second = self.agenda.begin(self.now_s)
        self.agenda.ended(first, ok=True)
        self.assertEqual(self.tick(0.1)[0], Reason.NONE)
        self.agenda.published([told(7), told(8)], self.now_s)
        self.agenda.ended(second, ok=True)
        self.assertEqual(self.tick(10)[0], Reason.NONE)

    def test_what_a_failed_try_may_have_left_is_made_good(self) -> None:
        self.led()
        self.tick(5, {"a": "1", "b": "1", "c": "1"})
        self.publish(ok=False)
        self.assertEqual(self.tick(0.1, {"a": "1", "b": "1"}), (Reason.HEADS_CHANGED, True))

    def test_new_introduction_points_are_gathered_for_two_seconds(self) -> None:
        self.led()
        self.assertEqual(self.tick(0.5, {"a": "2", "b": "1"})[0], Reason.NONE)
        self.assertEqual(self.tick(0.5, {"a": "2", "b": "2"})[0], Reason.NONE)
        self.assertEqual(self.tick(1.0), (Reason.HEADS_CHANGED, False))
        self.publish()
        self.assertEqual(self.tick(5)[0], Reason.NONE)

    def test_a_head_that_changes_all_the_time_is_not_obeyed(self) -> None:
        self.led()
        publications = 0
        for beat in range(1200):
            if self.tick(0.5, {"a": str(beat), "b": "1"})[0]:
                self.publish()
                publications += 1
        self.assertGreater(publications, 20)
        self.assertLess(publications, 30)

    def test_periods_age_and_wishes(self) -> None:
        self.led()
        self.agenda.due({8, 9})
        self.assertEqual(self.tick(3)[0], Reason.NEW_PERIOD)
        self.publish()
        self.agenda.ask()
        self.assertEqual(self.tick(3)[0], Reason.ASKED)
        self.publish()
        self.assertEqual(self.tick(3)[0], Reason.NONE)
        self.assertEqual(self.tick(560)[0], Reason.NONE)
        self.assertEqual(self.tick(10)[0], Reason.TOO_OLD)

    def test_a_wish_during_a_publication_is_not_lost(self) -> None:
        self.tick()
        number = self.agenda.begin(self.now_s)
        self.agenda.ask()
        self.agenda.published([told(7), told(8)], self.now_s)
        self.agenda.ended(number, ok=True)
        self.assertEqual(self.tick(3)[0], Reason.ASKED)

    def test_a_service_that_nobody_published_yet(self) -> None:
        self.led()
        reason, _ = self.agenda.tick(self.now_s + 3, leads=True, listed=self.heads, services={"main", "shop"})
        self.assertEqual(reason, Reason.TOO_OLD)

    def test_failures_are_tried_again_less_and_less(self) -> None:
        self.tick()
        self.publish(ok=False)
        tries = 0
        for _ in range(200):
            if self.tick(0.5)[0]:
                self.publish(ok=False)
                tries += 1
        self.assertIn(tries, range(7, 12))

    def test_one_that_never_ends_counts_as_failed(self) -> None:
        self.tick()
        self.agenda.begin(self.now_s)
        self.assertEqual(self.tick(20)[0], Reason.NONE)
        self.assertEqual(self.tick(11)[0], Reason.NEW_LEADER)
        self.assertTrue(self.agenda.benched)

    def test_the_bench_and_the_way_back(self) -> None:
        self.tick()
        self.publish(ok=False)
        self.tick(20)
        self.assertFalse(self.agenda.benched)
        self.tick(11)
        self.assertTrue(self.agenda.benched)
        self.assertEqual(self.tick(1, leads=False)[0], Reason.NONE)
        proofs = []
        for _ in range(8):
            start_s = self.now_s
            while self.tick(1, leads=False)[0] is not Reason.PROVING:
                pass
            proofs.append(self.now_s - start_s)
            self.publish(ok=False)
        self.assertEqual(proofs, sorted(proofs))
        self.assertLessEqual(proofs[-1], 601)
        while self.tick(1, leads=False)[0] is not Reason.PROVING:
            pass
        self.publish()
        self.assertFalse(self.agenda.benched)
        self.assertEqual(self.tick(1, leads=False)[0], Reason.NONE)
        self.assertEqual(self.tick(1)[0], Reason.NEW_LEADER)

    def test_who_has_nothing_to_publish_is_not_blamed(self) -> None:
        for _ in range(200):
            self.assertEqual(self.tick(1, {})[0], Reason.NONE)
            self.agenda.tick(self.now_s, leads=True, listed={"a": "1"}, services=())
        self.assertFalse(self.agenda.benched)

    @given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from(["main", "shop"])), max_size=40))
    def test_what_is_told_stays_small(self, entries: list[tuple[int, str]]) -> None:
        agenda = Agenda(TIMING)
        for place, (period, service) in enumerate(entries):
            agenda.published([told(period, service=service)], float(place))
        self.assertLessEqual(len(agenda.told(100.0)), 4)
        for service in {service for _, service in entries}:
            newest = [period for period, each in entries if each == service][-1]
            self.assertIn((service, newest), [(each.service, each.period) for each in agenda.told(100.0)])

    def test_ages_are_told(self) -> None:
        self.agenda.published([told(7, ago_s=1), told(8)], 100.0)
        self.assertEqual([(each.period, each.ago_ms) for each in self.agenda.told(102.0)], [(7, 3000), (8, 2000)])
        self.assertEqual(self.agenda.told(100.0 + TIMING.lifetime_s), ())


class Standing(SynchronousTestCase):
    def heads(self, *entries: tuple[str, Published, float], author: str = "a") -> set[str]:
        found = standing([(name, Told(each, at_s)) for name, each, at_s in entries], author, 1000.0, 500.0)
        return {head for each in found for head in each.published.heads}

    def test_the_highest_counter_stands(self) -> None:
        old, new = told(7, 5, ("a", "b")), told(7, 6, ("a",))
        self.assertEqual(self.heads(("x", old, 999.0), ("a", new, 998.0)), {"a"})

    def test_both_periods_and_services_stand(self) -> None:
        self.assertEqual(self.heads(("a", told(7, 1, ("b",)), 999.0), ("a", told(8, 1, ("c",)), 999.0)), {"b", "c"})
        self.assertEqual(
            self.heads(("a", told(7, 9, ("b",)), 999.0), ("b", told(7, 1, ("c",), "shop"), 999.0)), {"b", "c"}
        )

    def test_what_is_over_does_not(self) -> None:
        over = ("b", told(6, 9, ("b",)), 999.0)
        self.assertEqual(self.heads(over, ("a", told(8, 1, ("c",)), 999.0)), {"c"})
        self.assertEqual(self.heads(("a", told(7, 1, ("b",)), 499.0)), set())
