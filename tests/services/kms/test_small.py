"""The small parts: clock, guard, lanes to the backend, acts under way, two backends beside each other, the log."""

from __future__ import annotations

import threading
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ron.kernel import HealthState, Metrics
from ron.kernel.limits import Refused
from ron.kernel.logs import as_json_line
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.proto.kms import Alg, parse_kid
from ron.services.kms import lanes as lanes_module
from ron.services.kms.acts import Acts
from ron.services.kms.backends.inmem import InMemoryBackend
from ron.services.kms.fairness import FairQueue
from ron.services.kms.keeper import FORGIVEN_S, WallClock
from ron.services.kms.lanes import Lanes
from ron.services.kms.readiness import HARD_FACTOR, Guard
from ron.services.kms.split import SplitBackend
from ron.services.kms.telemetry import KmsTelemetry, reason_of
from tests.services.kms.world import UNKNOWN


class WallClocks(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.ahead_s = Clock(), 1000.0
        self.wall = WallClock(lambda: self.clock.seconds() + self.ahead_s, self.clock.seconds)

    def test_a_jump_is_seen_until_it_is_taken_back(self) -> None:
        for jump_s in (3600.0, -3600.0, 2.5):
            self.ahead_s += jump_s
            self.clock.advance(1)
            self.assertAlmostEqual(self.wall.jumped_s(2.0), jump_s)
            self.ahead_s -= jump_s
            self.clock.advance(1)
            self.assertEqual(self.wall.jumped_s(2.0), 0.0)

    def test_one_that_stays_is_the_time_after_a_minute(self) -> None:
        self.ahead_s += 60.0
        for _ in range(int(FORGIVEN_S)):
            self.clock.advance(1)
            self.assertTrue(self.wall.jumped_s(2.0))
        self.clock.advance(1)
        self.assertFalse(self.wall.jumped_s(2.0))

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.floats(-1.9, 1.9), max_size=50))
    def test_steering_is_no_jump(self, steps_s: list[float]) -> None:
        """A clock that is set right little by little (G-14)."""
        self.setUp()
        for step_s in steps_s:
            self.ahead_s += step_s
            self.clock.advance(1)
            self.assertEqual(self.wall.jumped_s(2.0), 0.0)


class Guards(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.health = Clock(), HealthState()
        self.guard = Guard(self.health, steady_s=self.clock.seconds, ttl_ms=lambda: 1000, prefix="kms.")

    def test_what_stops_writes(self) -> None:
        self.guard.check_writes()
        for key in ("backend_ready", "audit_ready", "store_ready", "rng_ok", "clock_ok"):
            self.guard.trouble(key, "why")  # type: ignore[arg-type]
            error = self.assertRaises(Refused, self.guard.check_writes)
            self.assertEqual((error.status, error.message), (503, "why"))
            self.assertIn(f"kms.{key}", self.health.snapshot().missing)
            self.guard.ok(key)  # type: ignore[arg-type]
        self.guard.trouble("attestation_ready", "no quote")
        error = self.assertRaises(Refused, self.guard.check_writes)
        self.assertEqual((error.status, error.code), (403, ErrorCode.ATTESTATION_MISSING))

    def test_a_config_that_nobody_decided(self) -> None:
        self.guard.trouble("config_loaded", "why")
        error = self.assertRaises(Refused, self.guard.check_writes)
        self.assertEqual((error.status, error.code, error.message), (403, ErrorCode.NO_CAPABILITY, "why"))

    def test_what_does_not(self) -> None:
        for key in ("checkpoint_recent", "verify_cache_ok", "listener_bound"):
            self.guard.trouble(key, "why")  # type: ignore[arg-type]
        self.guard.check_writes()

    def test_reads_go_on_for_a_while(self) -> None:
        self.guard.confirmed()
        self.clock.advance(5)
        self.assertIsNone(self.guard.check_reads(), "nothing is away")
        self.guard.confirmed()
        self.guard.trouble("backend_ready", "away", serves=True)
        self.clock.advance(0.742)
        self.assertEqual(self.guard.check_reads(), 742)
        self.guard.outdated()
        self.assertEqual(self.health.snapshot().degraded, ("kms.backend_ready",))
        self.clock.advance(1)
        self.guard.outdated()
        self.assertIn("kms.verify_cache_ok", self.health.snapshot().degraded)
        self.clock.advance(HARD_FACTOR)
        self.guard.outdated()
        self.assertIn("kms.verify_cache_ok", self.health.snapshot().missing)
        self.assertEqual(self.assertRaises(Refused, self.guard.check_reads).status, 503)

    def test_a_change_is_told_once(self) -> None:
        told: list[tuple[str, str]] = []
        self.guard.on_change = lambda key, why: told.append((key, why))
        for _ in range(3):
            self.guard.trouble("backend_ready", "away")
        self.guard.ok("backend_ready")
        self.guard.ok("backend_ready")
        self.assertEqual(told, [("backend_ready", "away"), ("backend_ready", "")])


class Lines(TestCase):
    def lanes(self, threads: int = 1, capacity: int = 16) -> Lanes:
        self.metrics = Metrics()
        queue: FairQueue[Any] = FairQueue(capacity=capacity)
        made = Lanes(reactor, threads=threads, queue=queue, metrics=self.metrics)
        made.start()
        self.addCleanup(made.stop)
        return made

    async def test_results_and_errors_come_back(self) -> None:
        lanes = self.lanes()
        self.assertEqual(await lanes.run("core", "sign", pow, 2, 10), 1024)

        def fails() -> None:
            raise unavailable("away")

        error: Any = await self.assertFailure(Deferred.fromCoroutine(lanes.run("core", "sign", fails)), RonError)
        self.assertEqual(error.message, "away")
        self.assertEqual(lanes.running, 0)

    async def test_a_deadline(self) -> None:
        self.patch(lanes_module, "DEADLINE_S", 0.05)
        lanes, gate = self.lanes(), threading.Event()
        first = Deferred.fromCoroutine(lanes.run("core", "sign", gate.wait, 10))
        second = Deferred.fromCoroutine(lanes.run("core", "sign", pow, 1, 1))
        for call in (first, second):
            error: Any = await self.assertFailure(call, RonError)
            self.assertEqual(error.code, ErrorCode.TIMEOUT)
        self.assertEqual(self.metrics.registry.get_sample_value("io_timeouts_total", {"op": "sign"}), 2)
        self.assertEqual(lanes.running, 1, "what has begun keeps its thread")
        gate.set()
        self.patch(lanes_module, "DEADLINE_S", 5.0)
        self.assertEqual(await lanes.run("core", "sign", pow, 3, 2), 9)

    async def test_a_full_queue_refuses_at_once(self) -> None:
        lanes, gate = self.lanes(capacity=16), threading.Event()
        calls = [Deferred.fromCoroutine(lanes.whole("core", gate.wait, 10)) for _ in range(40)]
        refused = [call for call in calls if call.called]
        self.assertGreater(len(refused), 20)
        for call in refused:
            error: Any = await self.assertFailure(call, RonError)
            self.assertEqual(error.code, ErrorCode.BACKPRESSURE)
        busy = self.metrics.registry.get_sample_value("busy_rejections_total", {"queue": "sign"})
        self.assertEqual(busy, len(refused))
        gate.set()
        await gatherResults([call for call in calls if call not in refused])

    async def test_another_tenants_work_is_not_behind_all_of_a_greedy_ones(self) -> None:
        """I-17."""
        lanes, gate, order = self.lanes(capacity=64), threading.Event(), []
        first = Deferred.fromCoroutine(lanes.whole("greedy", gate.wait, 10))
        greedy = [Deferred.fromCoroutine(lanes.whole("greedy", order.append, "greedy")) for _ in range(20)]
        modest = Deferred.fromCoroutine(lanes.whole("modest", order.append, "modest"))
        gate.set()
        await gatherResults([first, *greedy, modest])
        self.assertLess(order.index("modest"), 3)


class Twice(TestCase):
    async def test_one_act_for_all_who_ask(self) -> None:
        acts, done, ran = Acts(), Deferred[int](), []

        async def work() -> int:
            ran.append(1)
            return await done

        waiting = [Deferred.fromCoroutine(acts.do("k", b"w", work)) for _ in range(3)]
        waiting[0].addErrback(lambda _failure: None)
        waiting[0].cancel()
        other = Deferred.fromCoroutine(acts.do("k", b"other", work))
        error: Any = await self.assertFailure(other, RonError)
        self.assertEqual(error.code, ErrorCode.CONFLICT)
        done.callback(7)
        self.assertEqual(await gatherResults(waiting[1:]), [7, 7])
        self.assertEqual((await acts.do("k", b"w", work), len(ran)), (7, 1))

    async def test_what_failed_is_forgotten(self) -> None:
        acts, outcomes = Acts(), [unavailable("no"), None]

        async def work() -> str:
            error = outcomes.pop(0)
            if error is not None:
                raise error
            return "done"

        await self.assertFailure(Deferred.fromCoroutine(acts.do("k", b"w", work)), RonError)
        self.assertEqual(await acts.do("k", b"w", work), "done")

    async def test_they_are_bounded(self) -> None:
        acts, never = Acts(most=2), Deferred[None]()

        async def work() -> None:
            await never

        async def at_once() -> str:
            return "done"

        await acts.do(1, b"w", at_once)
        waiting = [Deferred.fromCoroutine(acts.do(number, b"w", work)) for number in (2, 3)]
        error: Any = await self.assertFailure(Deferred.fromCoroutine(acts.do(4, b"w", work)), RonError)
        self.assertEqual(error.code, ErrorCode.BACKPRESSURE)
        never.callback(None)
        await gatherResults(waiting)
        await deferLater(reactor, 0)


class Beside(SynchronousTestCase):
    def test_by_purpose(self) -> None:
        wrapping, signing = InMemoryBackend(allow_unlocked=True), InMemoryBackend(allow_unlocked=True)
        both = SplitBackend(wrapping, signing)
        both.open()
        self.addCleanup(both.close)
        signs = parse_kid(UNKNOWN)
        wraps = signs._replace(purpose="kem", alg="x25519")
        both.generate(signs, [Alg.ED25519])
        both.generate(wraps, [Alg.X25519])
        both.probe()
        self.assertEqual([[one.kid for one in half.held()] for half in (wrapping, signing)], [[wraps], [signs]])
        self.assertEqual(len(both.held()), 2)
        self.assertEqual(len(both.sign(signs, Alg.ED25519, bytes(32))), 64)
        self.assertIsNone(both.attest(None) or both.attest(signs))
        both.destroy(wraps)
        self.assertEqual(tuple(wrapping.held()), ())


class Told(SynchronousTestCase):
    def test_no_key_and_no_input_in_the_log(self) -> None:
        """I-16: its hash, and never the name; single operations only while the log's level is debug."""
        from twisted.logger import globalLogPublisher

        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        chatty = [False]
        telemetry = KmsTelemetry(Metrics(), Clock().seconds, lambda: chatty[0])
        kid = parse_kid(UNKNOWN)
        telemetry.asked("sign", kid)
        telemetry.done("sign", (Alg.ED25519,), telemetry.begin(), kid)
        self.assertEqual([one for one in events if "event" in one], [])
        chatty[0] = True
        telemetry.asked("sign", kid)
        telemetry.done("sign", (Alg.ED25519, Alg.ML_DSA), telemetry.begin(), kid)
        telemetry.failed("sign", telemetry.begin(), unavailable("away"), kid)
        lines = [as_json_line(one, service="ron-kms") for one in events if "event" in one]
        self.assertEqual(len(lines), 3)
        for line in lines:
            self.assertNotIn(kid.uuid, line)
            self.assertRegex(line, r'"kid_hash":"[0-9a-f]{8}"')
            self.assertIn('"tenant":"core"', line)
        self.assertIn('"event":"sign_request"', lines[0])
        self.assertIn('"alg":"ed25519+ml-dsa"', lines[1])
        self.assertIn('"reason":"store_unavailable"', lines[2])

    def test_labels_are_a_closed_set(self) -> None:
        metrics = Metrics()
        telemetry = KmsTelemetry(metrics, Clock().seconds, lambda: False)
        for number in range(400):
            telemetry.known(parse_kid(UNKNOWN)._replace(tenant=f"t{number}", purpose=f"p{number}"))
            telemetry.head(parse_kid(UNKNOWN)._replace(tenant=f"t{number}"))
        text = metrics.render().decode()
        self.assertEqual(text.count("kms_keys_total{"), 257)
        self.assertEqual(text.count("kms_key_version_head{"), 256)
        self.assertIn('kms_keys_total{alg="ed25519",purpose="-",tenant="other"} 144.0', text)

    def test_reasons(self) -> None:
        self.assertEqual(reason_of(ValueError("x")), "internal")
        for code in ErrorCode:
            self.assertNotIn(reason_of(RonError(code, "x")), {"other", ""})
