"""Asks for proof of work and checks it. A key authenticates the challenges; nothing is stored before one is redeemed.

In: a resource's name (`POST /v1/send`) and what the client sent. Out: a challenge, nothing, or `RonError` 429 or 400.
Workers with one key take each other's challenges; each remembers only what it redeemed itself.
"""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Callable
from secrets import compare_digest
from typing import NamedTuple

import msgspec
from blake3 import blake3
from prometheus_client import Counter, Gauge, Histogram

from ron.auth.pow import wire
from ron.auth.pow.spent import Claim, Spent
from ron.auth.pow.tuning import TuneState, Window, at_rest, bounds, judge
from ron.auth.pow.wire import CHALLENGE_HEADER, FIELD_BYTES, MAX_DIFFICULTY, SOLUTION_HEADER, Challenge
from ron.kernel import Metrics
from ron.proto.errors import ErrorCode, RonError, backpressure, bad_request

KEY_BYTES = 32
WINDOW_S = 5.0
# A solution that took more than this share of its challenge's life is a sign that clients cannot keep up. The reference
# client is expected to need half of that at most (tuning.LIFE_SHARE), and is over it in e^-2 = 14 % of all cases.
SLOW_SHARE = 0.25
# What was redeemed is remembered for two lives of a challenge: in the second one, a repeat is told from late work.
LIVES = 2
_KEY_CONTEXT = "ron.auth.pow 2026 v1 challenge mac"
_VERIFY_BUCKETS_S = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2)


class PowSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a gate is told. Raises ValueError on values that make no sense.

    auto_tune: difficulty follows target and load; else it is `difficulty` bits. target_ms: CPU of the reference client.
    upper_bound: bits never exceeded. ttl_s: life of a challenge. budget_rps: redeemed solutions a second that this
    process has CPU for. spent_limit: how many redeemed challenges are remembered, for two lives each.
    """

    auto_tune: bool = True
    target_ms: float = 3.0
    upper_bound: int = 28
    difficulty: int = 12
    ttl_s: int = 60
    budget_rps: float = 500.0
    spent_limit: int = 131_072

    def __post_init__(self) -> None:
        if not 1 <= self.difficulty <= self.upper_bound <= MAX_DIFFICULTY:
            raise ValueError(f"want 1 <= difficulty <= upper_bound <= {MAX_DIFFICULTY}")
        if min(self.target_ms, self.ttl_s, self.budget_rps, self.spent_limit) <= 0:
            raise ValueError("target_ms, ttl_s, budget_rps and spent_limit are positive")


class PowResult(enum.StrEnum):
    """What became of a solution; the values of the metric's label."""

    OK = "ok"
    MALFORMED = "malformed"
    FORGED = "forged"
    EXPIRED = "expired"
    LATE = "late"
    OTHER_RESOURCE = "other_resource"
    WEAK = "weak"
    SPENT = "spent"
    FULL = "full"


class PowTarget(NamedTuple):
    """Where the gate stands now. state: the tuner's, None when auto-tune is off. expected_tries: hashes a solution."""

    auto_tune: bool
    state: TuneState | None
    difficulty: int
    target_ms: float
    upper_bound: int
    expected_tries: int


class PowGate:
    """One gate per process.

    key: 32 random bytes; workers of one listener share it. now: Unix seconds. hash_rate_per_s: tries a second of the
    reference client, measured here (some 30 ms) when not given. Raises ValueError on a key of another length.
    """

    def __init__(
        self,
        key: bytes,
        settings: PowSettings,
        now: Callable[[], float],
        metrics: Metrics,
        *,
        hash_rate_per_s: float | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a proof-of-work key has {KEY_BYTES} bytes")
        self._key = blake3(key, derive_key_context=_KEY_CONTEXT).digest()
        self._settings = settings
        self._now = now
        self._entropy = entropy
        self._timer = timer
        self._bounds = bounds(
            hash_rate_per_s=hash_rate_per_s or wire.measured_hash_rate(),
            target_ms=settings.target_ms,
            upper_bound=settings.upper_bound,
            ttl_s=settings.ttl_s,
            # whatever the budget, what can be remembered never gets more than half full for long
            budget_rps=min(settings.budget_rps, settings.spent_limit / (2 * LIVES * settings.ttl_s)),
        )
        self._auto_tune = settings.auto_tune
        self._standing = at_rest(self._bounds)
        self._spent = Spent(settings.spent_limit)
        self._second = int(now())
        self._start_window(now())
        self._register(metrics)

    def challenge(self, resource: str) -> str:
        """A new challenge for `resource`, good for `ttl_s` seconds and one call."""
        now_s = self._tick()
        self._challenges.inc()
        nonce = wire.encode_field(self._entropy(FIELD_BYTES))
        unsigned = Challenge(self._difficulty, int(now_s) + self._settings.ttl_s, _digest(resource), nonce, "")
        return str(unsigned._replace(mac=self._mac(unsigned)))

    def demand(self, resource: str) -> RonError:
        """The error to raise when a call on `resource` came without a solution."""
        return self._ask(resource, "this call asks for proof of work")

    def redeem(self, solution: str, resource: str) -> None:
        """Take `solution` for one call on `resource`. Raises `RonError`: 400 malformed, else 429, mostly with a new
        challenge."""
        started = self._timer()
        result = self._judged(solution, resource)
        self._verify_s.observe(self._timer() - started)
        self._results[result].inc()
        if result is PowResult.OK:
            return
        if result is PowResult.MALFORMED:
            raise bad_request(f"the {SOLUTION_HEADER} is malformed", "append a dot and the counter to the challenge")
        if result is PowResult.FULL:
            # without a new challenge: this solution is still good once there is room
            raise backpressure("too many calls with proof of work at once")
        raise self._ask(resource, f"the proof of work does not hold ({result.value.replace('_', ' ')})")

    def check(self, solution: str | None, resource: str) -> None:
        """`redeem` what the call carries, or raise `demand` when it carries nothing."""
        if solution is None:
            raise self.demand(resource)
        self.redeem(solution, resource)

    def autotune(self, on: bool) -> None:
        """Switch auto-tuning; it begins at the base difficulty. Off means the configured difficulty."""
        self._auto_tune = on
        self._standing = at_rest(self._bounds)

    @property
    def target(self) -> PowTarget:
        """Where the gate stands now."""
        self._tick()
        difficulty = self._difficulty
        return PowTarget(
            auto_tune=self._auto_tune,
            state=self._standing.state if self._auto_tune else None,
            difficulty=difficulty,
            target_ms=self._settings.target_ms,
            upper_bound=self._settings.upper_bound,
            expected_tries=wire.expected_tries(difficulty),
        )

    @property
    def _difficulty(self) -> int:
        return self._standing.difficulty if self._auto_tune else self._settings.difficulty

    def _judged(self, solution: str, resource: str) -> PowResult:
        challenge = wire.parse_solution(solution)
        if challenge is None:
            return PowResult.MALFORMED
        if not compare_digest(challenge.mac, self._mac(challenge)):
            return PowResult.FORGED
        now_s = self._tick()
        left_s = challenge.expires_unix - now_s
        if left_s <= 0:
            return self._expired(challenge, solution)
        # more than a whole life left, or forgotten already: the clock was set back
        if left_s > self._settings.ttl_s or self._until_unix(challenge) <= self._spent.forgotten_until_unix:
            return PowResult.EXPIRED
        if challenge.resource != _digest(resource):
            return PowResult.OTHER_RESOURCE
        if not wire.is_solved(solution, challenge.difficulty):
            return PowResult.WEAK
        claim = self._spent.claim(challenge.nonce, self._until_unix(challenge))
        if claim is not Claim.FIRST:
            return PowResult.SPENT if claim is Claim.AGAIN else PowResult.FULL
        self._redeemed += 1
        self._slow += self._settings.ttl_s - left_s > SLOW_SHARE * self._settings.ttl_s
        return PowResult.OK

    def _expired(self, challenge: Challenge, solution: str) -> PowResult:
        """LATE, and counted, when somebody did the work and was too slow. Once per challenge, and not for one that was
        redeemed in time: nobody brings the difficulty down by sending the same work again."""
        until_unix = self._until_unix(challenge)
        if until_unix <= max(self._second, self._spent.forgotten_until_unix):
            return PowResult.EXPIRED
        if not wire.is_solved(solution, challenge.difficulty):
            return PowResult.EXPIRED
        if self._spent.claim(challenge.nonce, until_unix) is not Claim.FIRST:
            return PowResult.EXPIRED
        self._late += 1
        return PowResult.LATE

    def _until_unix(self, challenge: Challenge) -> int:
        return challenge.expires_unix + (LIVES - 1) * self._settings.ttl_s

    def _ask(self, resource: str, why: str) -> RonError:
        return RonError(
            ErrorCode.BACKPRESSURE,
            why,
            hint=f"solve the {CHALLENGE_HEADER} of this answer and repeat the call with {SOLUTION_HEADER}",
            retry_after_s=1,
            headers={CHALLENGE_HEADER: self.challenge(resource)},
        )

    def _mac(self, challenge: Challenge) -> str:
        return wire.encode_field(blake3(challenge.signed.encode("ascii"), key=self._key).digest(length=FIELD_BYTES))

    def _tick(self) -> float:
        """The time; on the way, windows end and what has expired is forgotten."""
        now_s = self._now()
        if int(now_s) != self._second:
            self._second = int(now_s)
            self._spent.forget(now_s)
            seconds = now_s - self._window_began_s
            if seconds >= WINDOW_S:
                self._end_window(seconds)
            if seconds >= WINDOW_S or seconds < 0:
                self._start_window(now_s)
        return now_s

    def _end_window(self, seconds: float) -> None:
        if self._auto_tune:
            window = Window(seconds, self._redeemed, self._slow, self._late)
            self._standing = judge(self._standing, window, self._bounds)

    def _start_window(self, now_s: float) -> None:
        self._window_began_s = now_s
        self._redeemed = self._slow = self._late = 0

    def _register(self, metrics: Metrics) -> None:
        registry = metrics.registry
        # of several workers, the hardest; the rest adds up
        metrics.merge_rules.update({"pow_difficulty": "max", "pow_safe_mode": "max"})
        self._challenges = Counter("pow_challenges_total", "Proof-of-work challenges given out", registry=registry)
        solutions = Counter("pow_solutions_total", "Solutions by what became of them", ["result"], registry=registry)
        self._results = {result: solutions.labels(result.value) for result in PowResult}
        self._verify_s = Histogram(
            "pow_verify_seconds", "Time to check a solution", buckets=_VERIFY_BUCKETS_S, registry=registry
        )
        difficulty = Gauge("pow_difficulty", "Leading zero bits that new challenges ask for", registry=registry)
        difficulty.set_function(lambda: self.target.difficulty)
        safe = Gauge("pow_safe_mode", "1 while the difficulty is held at its base", registry=registry)
        safe.set_function(lambda: float(self.target.state is TuneState.SAFE))
        remembered = Gauge("pow_spent", "Redeemed challenges that are remembered", registry=registry)
        remembered.set_function(lambda: len(self._spent))


def _digest(resource: str) -> str:
    return wire.encode_field(blake3(resource.encode("utf-8", "surrogatepass")).digest(length=FIELD_BYTES))
