"""The solver: the gate takes what it finds, and the reactor, the caller and the deadline come first."""

from __future__ import annotations

import os
import time
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ron.auth.pow import KEY_BYTES, PowGate, PowSettings
from ron.kernel import Metrics
from ron.proto.errors import ErrorCode, RonError, backpressure
from ron.sdk import Api
from ron.sdk.pow import PowProgress, challenge_of, paying, solve
from ron.web import Endpoint
from tests.web.wire import OnTheWire, Response, request

SEND = "POST /v1/send"
# more work than any test has time for
HARD = "v1.28.1800000000." + ".".join(["A" * 22] * 3)


def gate(difficulty: int) -> PowGate:
    settings = PowSettings(auto_tune=False, difficulty=difficulty)
    return PowGate(os.urandom(KEY_BYTES), settings, time.time, Metrics(), hash_rate_per_s=1e6)


class Refusals(SynchronousTestCase):
    def refused(self, challenge: str, **options: Any) -> RonError:
        return self.failureResultOf(Deferred.fromCoroutine(solve(Clock(), challenge, **options)), RonError).value  # type: ignore[no-any-return]

    def test_no_challenge(self) -> None:
        for text in ("", "v1", HARD + ".1", HARD + "\n", HARD.replace("v1", "v2"), "ä" * 85, "v1." * 100_000):
            self.assertIs(self.refused(text).code, ErrorCode.BAD_REQUEST)

    def test_more_than_our_bound(self) -> None:
        error = self.refused(HARD, difficulty_bound=27)
        self.assertIs(error.code, ErrorCode.UNSUPPORTED)
        self.assertFalse(error.retryable)
        self.assertIs(self.refused(HARD.replace("28", "29", 1)).code, ErrorCode.UNSUPPORTED)
        self.assertIs(self.refused(HARD.replace("28", "99", 1), difficulty_bound=99).code, ErrorCode.UNSUPPORTED)

    def test_an_error_without_a_challenge(self) -> None:
        self.assertIsNone(challenge_of(RonError(ErrorCode.BACKPRESSURE, "full", headers={"Retry-After": "1"})))


class Turns(Clock):
    """A clock on which one turn of the reactor takes a millisecond."""

    def callLater(self, when: float, *rest: Any, **named: Any) -> Any:
        return super().callLater(max(when, 0.001), *rest, **named)


class Slices(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Turns()
        self.seen: list[PowProgress] = []
        self.solving = Deferred.fromCoroutine(solve(self.clock, HARD, on_progress=self.seen.append, slice_s=0))

    def test_it_gives_way_after_every_slice(self) -> None:
        for slices in range(1, 10):
            self.assertEqual(len(self.seen), slices)
            self.clock.advance(0.001)
        self.assertEqual(self.seen[0], PowProgress(64, 2**28))
        self.assertEqual([p.tries for p in self.seen], [64 * n for n in range(1, 11)])
        self.solving.cancel()
        self.failureResultOf(self.solving, CancelledError)

    def test_a_slice_ends_by_its_timer(self) -> None:
        ticks = iter(range(1000))
        seen: list[PowProgress] = []
        solving = Deferred.fromCoroutine(
            solve(self.clock, HARD, on_progress=seen.append, slice_s=5, timer=lambda: next(ticks))
        )
        self.assertEqual(seen[-1].tries, 5 * 64)
        solving.cancel()
        self.failureResultOf(solving, CancelledError)

    def test_cancelled_it_stops(self) -> None:
        self.solving.cancel()
        self.failureResultOf(self.solving, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_deadline(self) -> None:
        self.clock.advance(60)
        error = self.failureResultOf(self.solving, RonError).value
        self.assertIs(error.code, ErrorCode.TIMEOUT)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_progress_that_fails_is_the_callers_own_error(self) -> None:
        def broken(progress: PowProgress) -> None:
            raise ZeroDivisionError

        solving = Deferred.fromCoroutine(solve(self.clock, HARD, on_progress=broken))
        self.failureResultOf(solving, ZeroDivisionError)


class Solves(TestCase):
    async def test_the_gate_takes_it(self) -> None:
        this = gate(8)
        error: RonError = self.assertRaises(RonError, this.check, None, SEND)
        challenge = challenge_of(error)
        assert challenge is not None
        this.check(await solve(reactor, challenge), SEND)
        # as an HTTP client may hand headers over
        lowered = RonError(error.code, error.message, headers={"pow-challenge": challenge})
        self.assertEqual(challenge_of(lowered), challenge)

    async def test_whoever_is_asked_pays_once(self) -> None:
        this, seen = gate(8), []

        async def once(solution: str | None) -> str:
            seen.append(solution)
            this.check(solution, SEND)
            return "done"

        self.assertEqual(await paying(reactor, once), "done")
        self.assertIsNone(seen[0])
        self.assertEqual(len(seen), 2)

    async def test_whoever_is_asked_again_and_again_pays_once(self) -> None:
        this, seen = gate(4), []

        async def once(solution: str | None) -> str:
            seen.append(solution)
            raise this.demand(SEND)

        with self.assertRaises(RonError) as caught:
            await paying(reactor, once)
        self.assertEqual(len(seen), 2)
        self.assertIsNotNone(challenge_of(caught.exception))

    async def test_another_refusal_is_not_paid_for(self) -> None:
        seen = []

        async def once(solution: str | None) -> str:
            seen.append(solution)
            raise backpressure("full")

        with self.assertRaises(RonError):
            await paying(reactor, once)
        self.assertEqual(seen, [None])

    async def test_the_last_progress_is_the_solution(self) -> None:
        seen: list[PowProgress] = []
        solution = await solve(reactor, gate(6).challenge(SEND), on_progress=seen.append)
        self.assertEqual(seen[-1], PowProgress(int(solution.rpartition(".")[2]) + 1, 64))

    async def test_the_reactor_turns_between_slices(self) -> None:
        turns, seen = 0, []

        def turn() -> None:
            nonlocal turns, call
            turns += 1
            call = reactor.callLater(0, turn)  # type: ignore[attr-defined]

        call = reactor.callLater(0, turn)  # type: ignore[attr-defined]
        try:
            await solve(reactor, gate(12).challenge(SEND), on_progress=seen.append, slice_s=0)
        finally:
            call.cancel()
        self.assertGreaterEqual(turns, len(seen) - 1)


class OverHttp(OnTheWire):
    """Through a real site that asks: the headers are the contract."""

    def setUp(self) -> None:
        super().setUp()
        self.edge.pow = PowGate(
            os.urandom(KEY_BYTES),
            PowSettings(auto_tune=False, difficulty=6),
            time.time,
            self.metrics,
            hash_rate_per_s=1e6,
        )
        self.serve(
            [
                Endpoint(method="GET", path="/dear", handler=lambda call: {"ok": True}, scope=None, gate=True),
                Endpoint(method="GET", path="/free", handler=lambda call: {"ok": True}, scope=None),
            ]
        )

    async def get(self, path: str, solution: str | None = None) -> Response:
        return await self.ask(request("GET", path, {"PoW-Solution": solution} if solution is not None else None))

    async def test_asked_and_paid(self) -> None:
        refused = await self.get("/dear")
        self.assertEqual((refused.status, refused.json["error"]["code"]), (429, "Backpressure"))
        self.assertEqual(refused.headers["retry-after"], "1")
        solution = await solve(reactor, refused.headers["pow-challenge"])
        self.assertEqual((await self.get("/dear", solution)).status, 200)
        again = await self.get("/dear", solution)
        self.assertEqual(again.status, 429)
        self.assertNotEqual(again.headers["pow-challenge"], refused.headers["pow-challenge"])

    async def test_nonsense_is_a_400(self) -> None:
        for solution in ("", "x", "v1", "\xff" * 40, "1" * 5000):
            self.assertEqual((await self.get("/dear", solution)).status, 400)

    async def test_others_are_not_asked(self) -> None:
        self.assertEqual((await self.get("/free")).status, 200)

    async def test_the_sdk_pays_by_itself_and_tells(self) -> None:
        seen: list[PowProgress] = []
        api = Api(reactor, self.http(), f"http://127.0.0.1:{self.port}", tries=1, on_pow=seen.append)
        for _ in range(3):
            self.assertEqual((await api.fetch("GET", "/dear")).status, 200)
        self.assertGreaterEqual(len(seen), 3)
        sample = self.metrics.registry.get_sample_value
        self.assertEqual(sample("pow_challenges_total"), 3)
        self.assertEqual(sample("pow_solutions_total", {"result": "ok"}), 3)
