"""How far a tenant is on the way to post-quantum signatures, and what that asks of a request (IDB 3.11, QUANTUM §5).

In: the configured knobs, a quorum's decision for the tenant, what a request wishes, which signatures hold. Out: the
algorithms to sign with, the mode to verify in, the verdict; `Refused` with reason `pq_policy` for a downgrade. Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import NamedTuple

from blake3 import blake3

from ron.kernel.limits import Refused
from ron.proto.errors import ErrorCode, bad_request
from ron.proto.kms import Alg, KemMode, Signature, VerifyDetails, VerifyMode

REASON = "pq_policy"
# In the order in which they are signed and shown
SIGNING = (Alg.ED25519, Alg.ML_DSA)
POST_QUANTUM = frozenset({Alg.ML_DSA, Alg.ML_KEM})
_ROLLOUT_LABEL = "ron-kms/pq-rollout/"
_STRENGTH: dict[VerifyMode, int] = {"or": 0, "and": 1, "pq_only": 2}


class Phase(enum.IntEnum):
    """Each verifies at least as strictly as the one before."""

    CLASSICAL = 0
    HYBRID_OR = 1
    HYBRID_AND = 2
    PQ_ONLY = 3

    @property
    def verify_mode(self) -> VerifyMode:
        """What a request gets that names no mode."""
        return _MODES[self]


_MODES: dict[Phase, VerifyMode] = {
    Phase.CLASSICAL: "or",
    Phase.HYBRID_OR: "or",
    Phase.HYBRID_AND: "and",
    Phase.PQ_ONLY: "pq_only",
}
_PHASES: dict[VerifyMode, Phase] = {"or": Phase.HYBRID_OR, "and": Phase.HYBRID_AND, "pq_only": Phase.PQ_ONLY}


class PqSettings(NamedTuple):
    """The `pq` section. rollout_percent: 0 to 100 of all tenants. min_verify_mode: no request may ask for less."""

    produce_hybrid: bool = True
    verify_mode: VerifyMode = "and"
    rollout_percent: int = 100
    min_verify_mode: VerifyMode = "or"


def configured_phase(settings: PqSettings) -> Phase:
    """The phase of tenants in the rollout. Raises `RonError` (BadRequest) for knobs that contradict each other."""
    if settings.produce_hybrid:
        return _PHASES[settings.verify_mode]
    if settings.verify_mode != "or":
        # signatures without a second half would be made, and then nobody could verify them
        raise bad_request(
            f"pq.verify_mode = {settings.verify_mode} needs pq.produce_hybrid", "turn it on, or verify with or"
        )
    return Phase.CLASSICAL


@lru_cache(maxsize=4096)
def rollout_bucket(tenant: str) -> int:
    """0 to 99, the same for this tenant on every node and for ever."""
    return int.from_bytes(blake3((_ROLLOUT_LABEL + tenant).encode()).digest(length=8), "big") % 100


def tenant_phase(settings: PqSettings, tenant: str, decided: str | None = None) -> Phase:
    """Where `tenant` is. decided: the verify mode that a quorum gave it, which beats the config. Raises as above."""
    if decided is not None:
        return _PHASES[_mode(decided)]
    phase = configured_phase(settings)
    if rollout_bucket(tenant) < settings.rollout_percent:
        return phase
    return Phase(max(Phase.CLASSICAL, phase - 1))


def signing_algs(
    halves: Collection[Alg], phase: Phase, *, hybrid_key: bool = False, asked: bool | None = None
) -> tuple[Alg, ...]:
    """Which halves of a key sign, classical first. hybrid_key: made as `hybrid`, which signs with both or not at all.

    asked: the request's `produce_hybrid`, None leaves it to the phase. Raises `RonError` (Unsupported): `Refused` for
    what the phase forbids, plain for a key that cannot sign, or cannot so.
    """
    able = tuple(alg for alg in SIGNING if alg in halves)
    if not able:
        raise _unsupported("this key does not sign", "create one of ed25519, ml-dsa or hybrid")
    if hybrid_key and len(able) < len(SIGNING):
        raise _unsupported("this hybrid key lacks a half", "rotate it")
    if asked is True and len(able) < len(SIGNING):
        raise _unsupported("this key has one half only", "leave produce_hybrid out, or create a key of alg hybrid")
    if Alg.ML_DSA not in able:
        _refuse_classical(phase)
        return able
    if asked is False and len(able) == len(SIGNING):
        if hybrid_key:
            raise _unsupported("a hybrid key signs with both halves", "leave produce_hybrid out")
        _refuse_classical(phase)
        return (Alg.ED25519,)
    # a companion half that nobody asked for rests in phase 0
    resting = phase is Phase.CLASSICAL and not hybrid_key and asked is None
    return able[:1] if resting else able


def verify_mode(
    phase: Phase, asked: VerifyMode | None, *, minimum: VerifyMode = "or", decided: str | None = None
) -> VerifyMode:
    """The mode to hold a bundle against. Raises `Refused` for a request that asks for less than is allowed: what a
    quorum decided, else the config's `minimum`."""
    mode = asked if asked is not None else phase.verify_mode
    floor = _mode(decided) if decided is not None else minimum
    if asked is None:
        # what nobody asked for is never refused: it is as strict as it has to be
        return max(mode, floor, key=_STRENGTH.__getitem__)
    if _STRENGTH[mode] < _STRENGTH[floor]:
        raise _refused(f"verify mode {mode} is below what is allowed", f"ask for {floor}, or name no mode")
    return mode


def check_kem(phase: Phase, asked: KemMode) -> None:
    """Raise `Refused` for wrapping that a quantum computer would open, once the phase asks for more (PQ-I1)."""
    if asked == "classical":
        _refuse_classical(phase)


def screened(sigs: Sequence[Signature]) -> dict[Alg, Signature]:
    """The bundle by algorithm. Raises `RonError` (BadRequest) for one algorithm twice, and for one that signs nothing.

    One good signature given twice must not count as two.
    """
    found: dict[Alg, Signature] = {}
    for one in sigs:
        if one.alg not in SIGNING:
            raise bad_request(f"{one.alg} signs nothing", "sigs holds ed25519 and ml-dsa")
        if one.alg in found:
            raise bad_request(f"{one.alg} is in sigs twice", "one signature of each algorithm")
        found[one.alg] = one
    return found


def verdict(mode: VerifyMode, halves: Collection[Alg], holding: Collection[Alg]) -> VerifyDetails:
    """The outcome; `satisfied_mode` is None when it fails. halves: of the key version. holding: whose signature over
    this very payload verified under that half.

    or: one half holds. and: every signing half of the key holds, and one of them is post-quantum. pq_only: the
    post-quantum half holds. A key with an Ed25519 half alone never satisfies the latter two.
    """
    own = tuple(alg for alg in SIGNING if alg in halves)
    checked = tuple(alg for alg in own if alg in holding)
    if mode == "or":
        satisfied = bool(checked)
    elif mode == "and":
        satisfied = checked == own and Alg.ML_DSA in own
    else:
        satisfied = Alg.ML_DSA in checked
    return VerifyDetails(checked=checked, satisfied_mode=mode if satisfied else None)


def _mode(decided: str) -> VerifyMode:
    if decided not in _STRENGTH:
        raise bad_request("a quorum decided a verify mode that does not exist")
    return decided


def _refuse_classical(phase: Phase) -> None:
    if phase >= Phase.HYBRID_AND:
        raise _refused(
            f"in phase {int(phase)} nothing classical alone is made: a post-quantum half is needed",
            "leave produce_hybrid and kem_mode out, and use a key with a post-quantum half",
        )


def _refused(message: str, hint: str) -> Refused:
    return Refused(REASON, ErrorCode.UNSUPPORTED, message, hint=hint)


def _unsupported(message: str, hint: str) -> Refused:
    return Refused("unsupported", ErrorCode.UNSUPPORTED, message, hint=hint)
