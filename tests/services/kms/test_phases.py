"""The way to post-quantum signatures: who is where on it, what may be asked, and which bundles do."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.limits import Refused
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg, Signature, VerifyMode
from ron.services.kms.phases import (
    Phase,
    PqSettings,
    check_kem,
    configured_phase,
    rollout_bucket,
    screened,
    signing_algs,
    tenant_phase,
    verdict,
    verify_mode,
)

# of acme, core and tenant-a
PINNED = [12, 57, 43]
ED, ML = Alg.ED25519, Alg.ML_DSA
BOTH = (ED, ML)
MODES: tuple[VerifyMode, ...] = ("or", "and", "pq_only")
few = settings(deadline=None, max_examples=100)
phases = some.sampled_from(Phase)
modes = some.sampled_from(MODES)
algs = some.sets(some.sampled_from(BOTH))
tenants = some.text("abcdefghijklmnopqrstuvwxyz0123456789-._", min_size=1, max_size=63)


def sig(alg: Alg) -> Signature:
    return Signature(alg=alg, signature_b64="AAAA")


class Case(SynchronousTestCase):
    def refused(self, reason: str, call: Any, *args: Any, **more: Any) -> None:
        error = self.assertRaises(Refused, call, *args, **more)
        self.assertEqual((error.code, error.reason), (ErrorCode.UNSUPPORTED, reason))
        self.assertTrue(error.hint)


class Bad(Case):
    def test_knobs_that_contradict(self) -> None:
        for mode in ("and", "pq_only"):
            error = self.assertRaises(RonError, configured_phase, PqSettings(False, mode))
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)

    def test_a_decision_for_a_mode_that_does_not_exist(self) -> None:
        self.assertRaises(RonError, tenant_phase, PqSettings(), "acme", "off")
        self.assertRaises(RonError, verify_mode, Phase.HYBRID_OR, None, decided="AND")

    def test_one_signature_twice(self) -> None:
        for alg in BOTH:
            error = self.assertRaises(RonError, screened, [sig(alg), sig(alg)])
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)

    def test_an_algorithm_that_signs_nothing(self) -> None:
        for alg in (Alg.X25519, Alg.ML_KEM):
            self.assertRaises(RonError, screened, [sig(ED), sig(alg)])

    def test_keys_that_cannot(self) -> None:
        for halves in ((), (Alg.X25519,), (Alg.X25519, Alg.ML_KEM)):
            self.refused("unsupported", signing_algs, halves, Phase.CLASSICAL)
        self.refused("unsupported", signing_algs, (ED,), Phase.HYBRID_OR, asked=True)
        self.refused("unsupported", signing_algs, (ML,), Phase.HYBRID_OR, asked=True)
        self.refused("unsupported", signing_algs, (ED,), Phase.CLASSICAL, hybrid_key=True)
        self.refused("unsupported", signing_algs, BOTH, Phase.CLASSICAL, hybrid_key=True, asked=False)

    def test_less_than_the_phase_allows(self) -> None:
        for phase in (Phase.HYBRID_AND, Phase.PQ_ONLY):
            self.refused("pq_policy", signing_algs, (ED,), phase)
            self.refused("pq_policy", signing_algs, BOTH, phase, asked=False)
            self.refused("pq_policy", check_kem, phase, "classical")
            check_kem(phase, "pq")
            check_kem(phase, "hybrid")
        check_kem(Phase.HYBRID_OR, "classical")

    def test_a_weaker_mode_than_is_allowed(self) -> None:
        self.refused("pq_policy", verify_mode, Phase.HYBRID_AND, "or", minimum="and")
        self.refused("pq_policy", verify_mode, Phase.PQ_ONLY, "and", decided="pq_only")
        self.assertEqual(verify_mode(Phase.HYBRID_AND, "or"), "or")
        self.assertEqual(verify_mode(Phase.HYBRID_AND, "pq_only", minimum="and"), "pq_only")

    def test_a_rollback_of_one_tenant_is_not_held_up_by_the_config(self) -> None:
        self.assertEqual(verify_mode(Phase.HYBRID_OR, None, minimum="and", decided="or"), "or")


class Rollout(Case):
    def test_the_table(self) -> None:
        known = [(False, "or", 0), (True, "or", 1), (True, "and", 2), (True, "pq_only", 3)]
        for produce, mode, phase in known:
            self.assertEqual(configured_phase(PqSettings(produce, mode)), phase)

    def test_buckets_stay_where_they_are(self) -> None:
        """Pinned: a node of another version must put a tenant into the same bucket."""
        self.assertEqual([rollout_bucket(name) for name in ("acme", "core", "tenant-a")], PINNED)

    def test_buckets_are_even(self) -> None:
        first = sum(rollout_bucket(f"tenant-{n}") < 30 for n in range(2000))
        self.assertTrue(500 < first < 700, first)

    @few
    @given(tenants, modes, some.integers(0, 100), some.integers(0, 100))
    def test_more_percent_take_nobody_back(self, tenant: str, mode: VerifyMode, one: int, other: int) -> None:
        low, high = (tenant_phase(PqSettings(True, mode, percent), tenant) for percent in sorted((one, other)))
        self.assertLessEqual(low, high)

    @few
    @given(tenants, modes)
    def test_none_and_all(self, tenant: str, mode: VerifyMode) -> None:
        phase = configured_phase(PqSettings(True, mode))
        self.assertEqual(tenant_phase(PqSettings(True, mode, 100), tenant), phase)
        self.assertEqual(tenant_phase(PqSettings(True, mode, 0), tenant), phase - 1)
        self.assertEqual(tenant_phase(PqSettings(False, "or", 0), tenant), Phase.CLASSICAL)

    @few
    @given(tenants, modes, modes, some.booleans())
    def test_a_decision_beats_the_config(self, tenant: str, mode: VerifyMode, decided: str, produce: bool) -> None:
        config = PqSettings(produce, mode if produce else "or", 0)
        self.assertEqual(tenant_phase(config, tenant, decided).verify_mode, decided)


class Producing(Case):
    def test_a_companion_rests_in_phase_0_only(self) -> None:
        self.assertEqual(signing_algs(BOTH, Phase.CLASSICAL), (ED,))
        self.assertEqual(signing_algs(BOTH, Phase.CLASSICAL, asked=True), BOTH)
        self.assertEqual(signing_algs(BOTH, Phase.CLASSICAL, hybrid_key=True), BOTH)
        for phase in list(Phase)[1:]:
            self.assertEqual(signing_algs(BOTH, phase), BOTH)
        self.assertEqual(signing_algs(BOTH, Phase.HYBRID_OR, asked=False), (ED,))

    def test_keys_with_one_half(self) -> None:
        for phase in Phase:
            self.assertEqual(signing_algs((ML,), phase), (ML,))
            self.assertEqual(signing_algs((ML,), phase, asked=False), (ML,))
        for phase in (Phase.CLASSICAL, Phase.HYBRID_OR):
            self.assertEqual(signing_algs((ED,), phase), (ED,))

    @few
    @given(algs, phases, some.booleans(), some.sampled_from((None, True, False)))
    def test_what_is_made_is_what_the_phase_verifies(
        self, halves: set[Alg], phase: Phase, hybrid: bool, asked: bool | None
    ) -> None:
        """PQ-I1: no signature leaves that the tenant's own phase would not take."""
        try:
            made = signing_algs(halves, phase, hybrid_key=hybrid, asked=asked)
        except Refused:
            return
        self.assertEqual(verdict(phase.verify_mode, halves, made).satisfied_mode, phase.verify_mode)


class Verdicts(Case):
    def test_every_case(self) -> None:
        good = {
            ("or", BOTH, (ED,)),
            ("or", BOTH, (ML,)),
            ("or", BOTH, BOTH),
            ("and", BOTH, BOTH),
            ("pq_only", BOTH, (ML,)),
            ("pq_only", BOTH, BOTH),
            ("or", (ED,), (ED,)),
            ("or", (ML,), (ML,)),
            ("and", (ML,), (ML,)),
            ("pq_only", (ML,), (ML,)),
        }
        sets = [tuple(some) for size in range(3) for some in combinations(BOTH, size)]
        for mode in MODES:
            for halves in sets:
                for holding in sets:
                    expected = mode if (mode, halves, holding) in good else None
                    if set(holding) <= set(halves):
                        details = verdict(mode, halves, holding)
                        self.assertEqual(details.satisfied_mode, expected, (mode, halves, holding))
                        self.assertEqual(details.checked, holding)

    def test_halves_of_two_payloads(self) -> None:
        """The classical half signs this payload, the other one another: it does not hold, and `and` says no."""
        self.assertIsNone(verdict("and", BOTH, (ED,)).satisfied_mode)
        self.assertIsNone(verdict("pq_only", BOTH, (ED,)).satisfied_mode)

    def test_a_half_of_another_key_counts_for_nothing(self) -> None:
        self.assertIsNone(verdict("or", (ED,), (ML,)).satisfied_mode)
        self.assertEqual(verdict("or", (ED,), BOTH).checked, (ED,))

    def test_a_kem_key_verifies_nothing(self) -> None:
        for mode in MODES:
            self.assertIsNone(verdict(mode, (Alg.X25519, Alg.ML_KEM), BOTH).satisfied_mode)

    @few
    @given(modes, algs, algs, algs)
    def test_a_signature_more_never_hurts(
        self, mode: VerifyMode, halves: set[Alg], holding: set[Alg], more: set[Alg]
    ) -> None:
        if verdict(mode, halves, holding).satisfied_mode:
            self.assertEqual(verdict(mode, halves, holding | more).satisfied_mode, mode)

    @few
    @given(algs, algs)
    def test_stricter_modes_take_less(self, halves: set[Alg], holding: set[Alg]) -> None:
        done = [verdict(mode, halves, holding).satisfied_mode is not None for mode in MODES]
        self.assertTrue(done[0] or not done[1])
        self.assertTrue(done[2] or not done[1], "a bundle that is enough for and is enough for pq_only")

    @few
    @given(phases, some.none() | modes, modes, some.none() | modes)
    def test_never_below_the_floor(
        self, phase: Phase, asked: VerifyMode | None, minimum: VerifyMode, decided: VerifyMode | None
    ) -> None:
        try:
            mode = verify_mode(phase, asked, minimum=minimum, decided=decided)
        except Refused:
            self.assertIsNotNone(asked)
            return
        floor = decided if decided is not None else minimum
        self.assertGreaterEqual(MODES.index(mode), MODES.index(floor))
        if asked is not None:
            self.assertEqual(mode, asked)

    def test_a_bundle_by_algorithm(self) -> None:
        self.assertEqual(set(screened([sig(ML), sig(ED)])), {ED, ML})
