"""May something be signed now, and what readiness says of it (specs/ron-kms.md, OBSERVABILITY §2.2).

In: what the keeper finds each second. Out: health keys, and `Guard`, which operations ask first. Writes fail closed:
without backend, log, clock or evidence nothing is signed. Reads fail open: what is known verifies for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import msgspec

from ron.kernel import HealthState
from ron.kernel.health import Readiness
from ron.kernel.limits import Refused, overloaded
from ron.proto.errors import ErrorCode

Key = Literal[
    "config_loaded",
    "listener_bound",
    "backend_ready",
    "attestation_ready",
    "audit_ready",
    "checkpoint_recent",
    "rng_ok",
    "clock_ok",
    "verify_cache_ok",
    "store_ready",
    "log_attested",
    "witnesses_recent",
]
# What has to be there before anything is done with a private half, and how a refusal is counted.
_WRITES: dict[Key, str] = {
    "backend_ready": "store_unavailable",
    "audit_ready": "store_unavailable",
    "store_ready": "store_unavailable",
    "rng_ok": "store_unavailable",
    "clock_ok": "clock_skew",
    "attestation_ready": "attest_missing",
    # told where audit.sealing is "attested"
    "log_attested": "attest_missing",
    "config_loaded": "pq_policy",
}
_EVIDENCE: dict[Key, str] = {
    "attestation_ready": "see security.attest_require",
    "log_attested": "see audit.sealing, and `ronctl kms audit rotate-key`",
}
# Beyond the soft limit verifying goes on and says how old it is, up to so many of them.
HARD_FACTOR = 2


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator wants to see beside the keys."""

    backend: str
    pq_mode: str
    keys: int
    audit_records: int
    audit_last_checkpoint_age_s: float | None = None


class KmsReadiness(Readiness, frozen=True, kw_only=True):
    """`/readyz` of ron-kms."""

    snapshot: Snapshot | None = None


class Guard:
    """The state of what operations stand on. prefix: of the keys; `kms.` in a node, where others report, too.

    ttl_ms: how old what verifying stands on may get. steady_s: a clock that does not go back.
    """

    def __init__(
        self, health: HealthState, *, steady_s: Callable[[], float], ttl_ms: Callable[[], int], prefix: str = ""
    ) -> None:
        self._health = health
        self._steady_s = steady_s
        self._ttl_ms = ttl_ms
        self._prefix = prefix
        self._troubles: dict[Key, str] = {}
        self._confirmed_s: float | None = None
        self.on_change: Callable[[Key, str], None] = lambda _key, _trouble: None

    def ok(self, key: Key) -> None:
        """`key` is satisfied."""
        changed = self._troubles.pop(key, None)
        self._health.ok(self._prefix + key)
        if changed:
            self.on_change(key, "")

    def trouble(self, key: Key, why: str, *, serves: bool = False) -> None:
        """`key` is not. serves: verifying goes on, so that the service is degraded only."""
        before = self._troubles.get(key)
        self._troubles[key] = why
        (self._health.degraded if serves else self._health.missing)(self._prefix + key, why)
        if before is None:
            self.on_change(key, why)

    def why_not(self, key: Key) -> str:
        """What is wrong with `key`, empty for nothing."""
        return self._troubles.get(key, "")

    def confirmed(self) -> None:
        """What is known of keys is what store and backend say now."""
        self._confirmed_s = self._steady_s()
        self.ok("verify_cache_ok")

    def outdated(self) -> None:
        """They could not be asked: say how old what we have is getting."""
        age_ms, ttl_ms = self.age_ms(), self._ttl_ms()
        if age_ms is None or age_ms > HARD_FACTOR * ttl_ms:
            self.trouble("verify_cache_ok", "what is known of keys is too old to verify with")
        elif age_ms > ttl_ms:
            self.trouble("verify_cache_ok", "what is known of keys is getting old", serves=True)

    def age_ms(self) -> int | None:
        """How long ago what is known of keys was confirmed; None: never."""
        return None if self._confirmed_s is None else max(0, int((self._steady_s() - self._confirmed_s) * 1000))

    def degraded_age_ms(self) -> int | None:
        """The same while something is away, None when all is well: answers that stand on it say so."""
        away = "backend_ready" in self._troubles or "store_ready" in self._troubles
        return self.age_ms() if away else None

    def check_writes(self, *, but: Collection[Key] = ()) -> None:
        """Raises `Refused` (503, 403 for missing evidence) unless a private half may be used now. but: what does not
        matter for that."""
        if not self._troubles:
            return
        for key, reason in _WRITES.items():
            why = self._troubles.get(key)
            if why is None or key in but:
                continue
            if key in _EVIDENCE:
                raise Refused(reason, ErrorCode.ATTESTATION_MISSING, why, hint=_EVIDENCE[key])
            if key == "config_loaded":
                # the config asks for less than a quorum allowed: see `inforce`
                raise Refused(reason, ErrorCode.NO_CAPABILITY, why, hint="take the change back, or have it decided")
            raise overloaded(reason, why)

    def check_reads(self) -> int | None:
        """The age to tell, None when nothing is away. Raises `Refused` (503) beyond the hard limit."""
        age_ms = self.degraded_age_ms()
        if age_ms is not None and age_ms > HARD_FACTOR * self._ttl_ms():
            raise overloaded("verify_cache_expired", "what is known of keys is too old to verify with")
        return age_ms
