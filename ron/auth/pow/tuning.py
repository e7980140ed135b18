"""How hard the challenges are. Pure: what was redeemed in a while goes in, the next standing comes out.

Three states (drawn in docs/pow.rst): `resting` at the base difficulty, `raised` while more is redeemed than the
service has CPU for, `safe` at the base again, and held there, once clients cannot keep up.
"""

from __future__ import annotations

import enum
import math
from typing import NamedTuple

# Load is lowered only after it stayed below half the budget for so long: one bit less doubles what an attacker with
# the same CPU gets through, so that half is exactly where the step down does not lead straight back up.
CALM_S = 15.0
CALM_SHARE = 0.5
# Safe mode: of this many solutions or more, over a quarter came late or slowly.
SAFE_SAMPLE = 20
SAFE_SHARE = 0.25
SAFE_HOLD_S = 120.0
# The reference client is expected to be done in an eighth of a challenge's life (e^-8 = 0.03 % are not).
LIFE_SHARE = 0.125


class TuneState(enum.StrEnum):
    """Where the tuner stands."""

    RESTING = "resting"
    RAISED = "raised"
    SAFE = "safe"


class Bounds(NamedTuple):
    """base, ceiling: difficulty in bits, 1 ≤ base ≤ ceiling. budget_rps: redeemed solutions a second that are fine."""

    base: int
    ceiling: int
    budget_rps: float


class Window(NamedTuple):
    """What happened in `seconds`: solutions redeemed in time, those of them that took long, and those that came late.

    Only finished work counts. Challenges cost nothing to ask for, so nobody moves the difficulty by asking.
    """

    seconds: float
    redeemed: int
    slow: int
    late: int

    @property
    def overdue(self) -> bool:
        """True when clients cannot keep up."""
        finished = self.redeemed + self.late
        return finished >= SAFE_SAMPLE and (self.slow + self.late) > SAFE_SHARE * finished


class Standing(NamedTuple):
    """The tuner's whole memory. calm_s: how long load has been low. hold_s: what is left of safe mode."""

    state: TuneState
    difficulty: int
    calm_s: float = 0.0
    hold_s: float = 0.0


def bounds(*, hash_rate_per_s: float, target_ms: float, upper_bound: int, ttl_s: float, budget_rps: float) -> Bounds:
    """Base: the most bits whose expected cost stays within `target_ms` of a client that tries `hash_rate_per_s`.

    Ceiling: `upper_bound`, or less when that client could not be done in time.
    """
    within_life = _bits(hash_rate_per_s * ttl_s * LIFE_SHARE)
    ceiling = max(1, min(upper_bound, within_life))
    base = max(1, min(ceiling, _bits(hash_rate_per_s * target_ms / 1000)))
    return Bounds(base, ceiling, budget_rps)


def at_rest(bounds: Bounds) -> Standing:
    """Where a tuner begins."""
    return Standing(TuneState.RESTING, bounds.base)


def judge(standing: Standing, window: Window, bounds: Bounds) -> Standing:
    """The standing after `window`."""
    if window.overdue:
        return Standing(TuneState.SAFE, bounds.base, hold_s=SAFE_HOLD_S)
    if standing.state is TuneState.SAFE:
        left_s = standing.hold_s - window.seconds
        return standing._replace(hold_s=left_s) if left_s > 0 else at_rest(bounds)
    rate = window.redeemed / window.seconds
    if rate > bounds.budget_rps:
        return _at(min(bounds.ceiling, standing.difficulty + 1), bounds)
    if rate >= CALM_SHARE * bounds.budget_rps:
        return standing._replace(calm_s=0.0)
    calm_s = standing.calm_s + window.seconds
    steps = int(calm_s // CALM_S)
    lowered = _at(max(bounds.base, standing.difficulty - steps), bounds)
    return lowered._replace(calm_s=calm_s - steps * CALM_S)


def _at(difficulty: int, bounds: Bounds) -> Standing:
    return Standing(TuneState.RAISED if difficulty > bounds.base else TuneState.RESTING, difficulty)


def _bits(tries: float) -> int:
    return int(math.log2(tries)) if tries >= 1 else 0
