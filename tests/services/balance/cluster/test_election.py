"""The rule of who leads, and whose clock is wrong."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.services.balance.cluster import Candidate, Fitness, leader
from ron.services.balance.cluster.election import (
    LISTENING,
    NOT_PUBLISHING,
    WRONG_CLOCK,
    fitness_told,
    wrong_clocks,
)

FIT, OFF, MUTE, OUT = Fitness.FIT, Fitness.WRONG_CLOCK, Fitness.NOT_PUBLISHING, Fitness.OUT
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        name=st.sampled_from("abcdefg"),
        born_ms=st.integers(0, 3),
        fitness=st.sampled_from(Fitness),
        holds=st.integers(0, 2),
    ),
    unique_by=lambda each: each.name,
)


def node(name: str, born_ms: int, fitness: Fitness = FIT, holds: int = 1) -> Candidate:
    return Candidate(name=name, born_ms=born_ms, fitness=fitness, holds=holds)


class Leading(SynchronousTestCase):
    def test_nobody(self) -> None:
        self.assertEqual(leader([]).name, "")
        self.assertEqual(leader([node("a", 1, OUT)]).name, "")

    def test_longest_uptime_then_name(self) -> None:
        self.assertEqual(leader([node("a", 2), node("b", 1)]).name, "b")
        self.assertEqual(leader([node("b", 1), node("a", 1)]).name, "a")

    def test_who_is_unfit_leads_only_when_nobody_is_fit(self) -> None:
        self.assertEqual(leader([node("a", 0, MUTE), node("b", 0, OFF), node("c", 9)]).name, "c")
        self.assertEqual(leader([node("a", 0, MUTE), node("b", 9, OFF)]).name, "b")
        choice = leader([node("a", 0, MUTE), node("b", 9, MUTE)])
        self.assertEqual((choice.name, choice.why), ("a", "nobody is fit; it is the least unfit"))

    def test_no_key_no_lead(self) -> None:
        choice = leader([node("a", 0, holds=1), node("b", 9, holds=2)])
        self.assertEqual((choice.name, choice.why), ("b", "nobody else is fit and has the key"))
        self.assertEqual(leader([node("a", 0, holds=0), node("b", 9, MUTE)], "a").name, "b")

    def test_a_promotion_comes_before_uptime_and_after_fitness(self) -> None:
        self.assertEqual(leader([node("a", 0), node("b", 9)], "b").why, "promoted by an operator")
        self.assertEqual(leader([node("a", 0), node("b", 9, MUTE)], "b").name, "a")
        self.assertEqual(leader([node("a", 0), node("b", 9)], "stranger").name, "a")

    @given(CANDIDATES, st.sampled_from(["a", "g", None]), st.randoms(use_true_random=False))
    def test_all_who_see_the_same_say_the_same(
        self, candidates: list[Candidate], promoted: str | None, rng: object
    ) -> None:
        shuffled = list(candidates)
        rng.shuffle(shuffled)  # type: ignore[attr-defined]
        self.assertEqual(leader(candidates, promoted), leader(shuffled, promoted))

    @given(CANDIDATES)
    def test_a_newcomer_never_takes_the_lead_from_who_is_as_able(self, candidates: list[Candidate]) -> None:
        before = leader(candidates).name
        for holds in (0, 1):
            newcomer = node("0", 99, holds=holds)
            after = leader([*candidates, newcomer]).name
            by_name = {each.name: each for each in candidates}
            if before and (by_name[before].fitness, by_name[before].holds >= holds) == (FIT, True):
                self.assertEqual(after, before)

    @given(CANDIDATES)
    def test_others_leaving_changes_nothing(self, candidates: list[Candidate]) -> None:
        first = leader(candidates).name
        for gone in candidates:
            if gone.name != first:
                self.assertEqual(leader([each for each in candidates if each is not gone]).name, first)


class Fit(SynchronousTestCase):
    def test_words_nobody_knows_are_out(self) -> None:
        self.assertIs(fitness_told(False, "I am the king"), OUT)
        self.assertIs(fitness_told(False, ""), OUT)
        self.assertIs(fitness_told(False, LISTENING), OUT)

    def test_words_that_are_known(self) -> None:
        self.assertIs(fitness_told(True, NOT_PUBLISHING), FIT)
        self.assertIs(fitness_told(False, NOT_PUBLISHING), MUTE)
        self.assertIs(fitness_told(False, WRONG_CLOCK), OFF)


class Clocks(SynchronousTestCase):
    def test_of_two_nobody_knows_which(self) -> None:
        self.assertEqual(wrong_clocks({"a": 0.0, "b": 600.0}, 30), frozenset())
        self.assertEqual(wrong_clocks({"a": 0.0, "b": 0.0, "c": 600.0, "d": 600.0}, 30), frozenset())

    def test_a_majority_knows(self) -> None:
        self.assertEqual(wrong_clocks({"a": 0.0, "b": 1.0, "c": -600.0}, 30), {"c"})
        self.assertEqual(wrong_clocks({"me": 0.0, "b": 600.0, "c": 601.0}, 30), {"me"})

    @given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.floats(-1e6, 1e6))
    def test_one_liar_cannot_make_others_wrong(self, right: list[float], lie: float) -> None:
        clocks = {str(place): offset for place, offset in enumerate(right)} | {"liar": lie}
        self.assertLessEqual(wrong_clocks(clocks, 30), {"liar"})

    @given(st.dictionaries(st.text(max_size=2), st.floats(-1e5, 1e5), max_size=8), st.integers(-1000, 1000))
    def test_whose_clock_it_is_measured_by_does_not_matter(self, clocks: dict[str, float], shift: int) -> None:
        whole = {name: float(round(offset)) for name, offset in clocks.items()}
        shifted = {name: offset + shift for name, offset in whole.items()}
        self.assertEqual(wrong_clocks(whole, 30), wrong_clocks(shifted, 30))
