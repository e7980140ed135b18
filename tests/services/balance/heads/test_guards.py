"""Relays for the second and third hop."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.services.balance.heads.guards import (
    LAYER2_LIFE_S,
    LAYER2_NODES,
    LAYER3_LIFE_S,
    LAYER3_NODES,
    MIN_RELAYS,
    Guard,
    Guards,
    Relay,
    choose_guards,
    read_relays,
)

NONE = Guards()
NOW_S = 1_800_000_000.0
RELAYS = tuple(Relay(f"{number:040X}", 1000) for number in range(60))
NS_ALL = """r bad !!!!
s Running Valid Fast Stable
w Bandwidth=5
r short AAAA
s Running Valid Fast Stable
w Bandwidth=5
r first AAAAAAAAAAAAAAAAAAAAAAAAAAE 2026-11-21 17:00:00 127.0.0.1 5001 0
s Fast Guard Running Stable Valid
w Bandwidth=20 Unmeasured=1
r slow AAAAAAAAAAAAAAAAAAAAAAAAAAI 2026-11-21 17:00:00 127.0.0.1 5001 0
s Running Stable Valid
w Bandwidth=20
r odd AAAAAAAAAAAAAAAAAAAAAAAAAAM 2026-11-21 17:00:00 127.0.0.1 5001 0
s Fast Running Stable Valid
w Bandwidth=-7
"""


class GuardsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rng = random.Random(7)

    def choose(self, previous: Guards = NONE, now_s: float = NOW_S, relays: tuple[Relay, ...] = RELAYS) -> Guards:
        return choose_guards(relays, now_s, previous, self.rng)

    def test_what_is_no_relay_is_passed_over(self) -> None:
        self.assertEqual(read_relays(NS_ALL), (Relay("0" * 39 + "1", 20),))
        self.assertEqual(read_relays(""), ())

    def test_a_small_network_has_none(self) -> None:
        self.assertEqual(self.choose(self.choose(), relays=RELAYS[: MIN_RELAYS - 1]), Guards())

    def test_without_a_consensus_nothing_changes(self) -> None:
        chosen = self.choose()
        self.assertEqual(self.choose(chosen, NOW_S + 1e7, ()), chosen)

    def test_the_layers_have_their_number_and_share_nobody(self) -> None:
        layer2, layer3 = self.choose().fingerprints()
        self.assertEqual((len(layer2), len(layer3), len({*layer2, *layer3})), (LAYER2_NODES, LAYER3_NODES, 12))

    def test_nothing_changes_before_it_is_due(self) -> None:
        chosen = self.choose()
        self.assertEqual(self.choose(chosen, NOW_S + LAYER3_LIFE_S[0] - 1), chosen)

    def test_one_that_left_the_network_is_replaced_alone(self) -> None:
        chosen = self.choose()
        gone = chosen.layer2[0]
        after = self.choose(chosen, relays=tuple(relay for relay in RELAYS if relay.fingerprint != gone.fingerprint))
        self.assertEqual(after.layer2[:3], chosen.layer2[1:])
        self.assertEqual(after.layer3, chosen.layer3)
        self.assertNotIn(gone, after.layer2)

    def test_weights_count(self) -> None:
        heavy = (Relay("F" * 40, 10**9), *RELAYS)
        self.assertIn("F" * 40, self.choose(relays=heavy).fingerprints()[0])

    @given(st.integers(), st.floats(0, 100 * 86_400))
    def test_lifetimes_are_within_bounds_and_over_in_the_end(self, seed: int, later_s: float) -> None:
        chosen = choose_guards(RELAYS, NOW_S, Guards(), random.Random(seed))
        for layer, (least_s, most_s) in ((chosen.layer2, LAYER2_LIFE_S), (chosen.layer3, LAYER3_LIFE_S)):
            for guard in layer:
                self.assertTrue(least_s - 1 <= guard.until_ms / 1000 - NOW_S <= most_s)
        after = choose_guards(RELAYS, NOW_S + later_s, chosen, random.Random(seed))
        kept: set[Guard] = {*chosen.layer2, *chosen.layer3} & {*after.layer2, *after.layer3}
        self.assertEqual(
            kept, {one for one in (*chosen.layer2, *chosen.layer3) if one.until_ms > 1000 * (NOW_S + later_s)}
        )
