"""Looks after what the service stands on, once a second: backend, store, log, clock, randomness, evidence.

In: probes, in a thread of their own with a deadline. Out: what `Guard` is told. A backend that is away is opened again
with growing patience; it comes back by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.kernel.aio import within
from ron.kernel.backoff import Backoff
from ron.kernel.threads import BoundedPool
from ron.proto.errors import ErrorCode, RonError
from ron.services.kms.config import KmsConfig
from ron.services.kms.ports import Backend
from ron.services.kms.readiness import Guard, Key
from ron.services.kms.store import KmsStore
from ron.services.kms.telemetry import KmsTelemetry
from ron.store import BatchReport

EVERY_S = 1.0
PROBE_DEADLINE_S = 2.0
ATTEST_DEADLINE_S = 3.0
ATTEST_EVERY_S = 30.0
# A jump of the clock is forgiven once it went evenly for so long: somebody has set it right.
FORGIVEN_S = 60.0
_RNG_BYTES = 32
_log = Logger(namespace="ron.kms")


class WallClock:
    """Does the wall clock go as the steady one does? tolerance_s: how far they may part. Pure but for its clocks."""

    def __init__(self, wall_s: Callable[[], float], steady_s: Callable[[], float]) -> None:
        self._wall_s = wall_s
        self._steady_s = steady_s
        self._ahead_s = wall_s() - steady_s()
        self._even_since_s = steady_s()
        self._last_ahead_s = self._ahead_s

    def jumped_s(self, tolerance_s: float) -> float:
        """How far it jumped, 0 while it goes as it should. A jump that stays is the time, after a minute."""
        now_s, ahead_s = self._steady_s(), self._wall_s() - self._steady_s()
        if abs(ahead_s - self._last_ahead_s) > tolerance_s:
            self._even_since_s = now_s
        self._last_ahead_s = ahead_s
        jump_s = ahead_s - self._ahead_s
        if abs(jump_s) <= tolerance_s or now_s - self._even_since_s >= FORGIVEN_S:
            # slow drift is the clock being steered, and no jump
            self._ahead_s = ahead_s
            return 0.0
        return jump_s


class Keeper:
    """log_trouble: what is wrong with the log, and with its checkpoints; empty for nothing. settle: brings to an end
    what an outage left. opened: the backend is open, for the first time. returned: it is back."""

    def __init__(
        self,
        reactor: Any,
        *,
        wishes: Callable[[], KmsConfig],
        backend: Backend,
        store: KmsStore,
        guard: Guard,
        telemetry: KmsTelemetry,
        wall_s: Callable[[], float],
        log_trouble: Callable[[], tuple[str, str]],
        settle: Callable[[], Coroutine[Any, Any, Any]],
        opened: Callable[[], None],
        returned: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._wishes = wishes
        self._backend = backend
        self._store = store
        self._guard = guard
        self._telemetry = telemetry
        self._log_trouble = log_trouble
        self._settle = settle
        self._opened = opened
        self._returned = returned
        self._pool = BoundedPool(reactor, name="kms-keeper", threads=2, queue_limit=2)
        self._wall = WallClock(wall_s, reactor.seconds)
        self._open = False
        self._was_up = False
        self._store_trouble = ""
        self._backoff = Backoff(base_s=1.0, ceiling_s=30.0)
        self._next_open_s = 0.0
        self._next_attest_s = 0.0
        self._rng_ops = 0
        self._loop = LoopingCall(self._tick)
        self._loop.clock = reactor
        self._round: Deferred[None] | None = None

    def start(self) -> None:
        """Threads are there; `open` and `first` may be called."""
        self._pool.start()

    async def open(self) -> None:
        """Open the backend, or try again later. Raises `RonError` (BadRequest, Unsupported) for what no waiting
        mends."""
        await self._try_to_open(first=True)

    @property
    def is_open(self) -> bool:
        """Is the backend there?"""
        return self._open

    async def first(self) -> None:
        """Look at everything, then go on by itself."""
        await self._look()
        self._loop.start(EVERY_S, now=False)

    def stop(self) -> None:
        """No more rounds."""
        if self._loop.running:
            self._loop.stop()
        if self._round is not None:
            self._round.cancel()

    def close(self) -> None:
        """Let go of the backend. Blocks for what runs."""
        self._pool.stop()
        self._backend.close()

    def observe_store(self, report: BatchReport) -> None:
        """How a batch of the store went."""
        if report.trouble is not None:
            self._store_trouble = report.trouble.message
            self._guard.trouble("store_ready", report.trouble.message, serves=True)

    # Rounds

    def _tick(self) -> Deferred[None]:
        self._round = Deferred.fromCoroutine(self._look())
        return self._round.addErrback(self._broke)

    def _broke(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            _log.failure("looking after the service broke", failure, event="kms_keeper_failed")

    async def _look(self) -> None:
        self._look_at_log()
        self._look_at_clock()
        self._look_at_randomness()
        await self._look_at_store()
        await self._look_at_backend()
        await self._look_at_evidence()
        if self._guard.degraded_age_ms() is None:
            self._guard.confirmed()
            await self._settle_rest()
        else:
            self._guard.outdated()
        if self._wishes().observability.emit_cache_age_metric:
            self._telemetry.cache_age.set(self._guard.degraded_age_ms() or 0)
        pq = self._wishes().pq
        self._telemetry.told_pq(pq.verify_mode, pq.rollout_percent)

    def _look_at_log(self) -> None:
        broken, stale = self._log_trouble()
        self._tell("audit_ready", broken)
        self._tell("checkpoint_recent", stale)

    def _tell(self, key: Key, trouble: str) -> None:
        if trouble:
            self._guard.trouble(key, trouble)
        else:
            self._guard.ok(key)

    def _look_at_clock(self) -> None:
        jumped_s = self._wall.jumped_s(self._wishes().security.time_skew_tolerance_ms / 1000)
        if jumped_s:
            self._guard.trouble("clock_ok", f"the clock jumped by {jumped_s:+.1f} s")
        else:
            self._guard.ok("clock_ok")

    def _look_at_randomness(self) -> None:
        """Every so many operations: two draws that are alike would be no randomness at all."""
        done = self._telemetry.total
        if self._rng_ops and done - self._rng_ops < self._wishes().entropy_time.rng_reseed_interval_ops:
            return
        self._rng_ops = max(done, 1)
        first, second = os.urandom(_RNG_BYTES), os.urandom(_RNG_BYTES)
        if first == second or not any(first):
            self._guard.trouble("rng_ok", "the system's randomness repeats itself")
        else:
            self._guard.ok("rng_ok")

    async def _look_at_store(self) -> None:
        if not self._store_trouble:
            self._guard.ok("store_ready")
            return
        try:
            await within(self._reactor, PROBE_DEADLINE_S, self._store.probe())
        except (RonError, DeadlineError):
            return
        self._store_trouble = ""
        self._guard.ok("store_ready")

    async def _look_at_backend(self) -> None:
        if not self._open:
            if self._reactor.seconds() >= self._next_open_s:
                await self._try_to_open()
            return
        try:
            await self._asked(PROBE_DEADLINE_S, self._backend.probe)
        except RonError as error:
            self._is_away(error)
        else:
            self._is_there()

    async def _try_to_open(self, *, first: bool = False) -> None:
        name = self._backend.name
        self._telemetry.backend(name, "connecting")
        try:
            # scrypt, a module, a slot: it takes as long as it takes
            await self._pool.run(self._backend.open)
        except RonError as error:
            self._next_open_s = self._reactor.seconds() + self._backoff.next_delay_s()
            self._is_away(error)
            if first and error.code in {ErrorCode.BAD_REQUEST, ErrorCode.UNSUPPORTED}:
                raise
        else:
            self._open = True
            self._opened()
            self._backoff = Backoff(base_s=1.0, ceiling_s=30.0)
            self._is_there()

    def _is_there(self) -> None:
        name = self._backend.name
        self._telemetry.backend(name, "connected")
        if self._guard.why_not("backend_ready") and self._was_up:
            self._telemetry.reconnects.labels(name).inc()
            self._returned()
        self._was_up = True
        self._guard.ok("backend_ready")

    def _is_away(self, error: RonError) -> None:
        self._telemetry.backend(self._backend.name, "error")
        # what is known verifies on: the service is degraded and not gone, unless it never was there
        self._guard.trouble("backend_ready", error.message, serves=self._guard.age_ms() is not None)

    async def _look_at_evidence(self) -> None:
        if self._wishes().security.attest_require != "required":
            self._guard.ok("attestation_ready")
            return
        if not self._open or self._reactor.seconds() < self._next_attest_s:
            return
        self._next_attest_s = self._reactor.seconds() + ATTEST_EVERY_S
        try:
            found = await self._asked(ATTEST_DEADLINE_S, self._backend.attest, None)
        except RonError as error:
            self._guard.trouble("attestation_ready", error.message)
            return
        if found is None or found.evidence is None:
            self._guard.trouble("attestation_ready", f"{self._backend.name} gives no evidence")
        else:
            self._guard.ok("attestation_ready")

    async def _settle_rest(self) -> None:
        try:
            await self._settle()
        except RonError as error:
            _log.warn("what was left half done stays so: {why}", event="kms_settle_failed", why=error.message)

    async def _asked(self, deadline_s: float, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return await within(self._reactor, deadline_s, self._pool.run(call, *args))
        except DeadlineError:
            raise RonError(ErrorCode.STORE_UNAVAILABLE, "the backend does not answer") from None
