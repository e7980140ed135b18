"""Proof of work: what a challenge and a verification cost the server, and what a solution costs the client.

Client figures are the SDK's solver with the reactor turning between its slices, and its bare loop. The ratio says how
much more work the client has than the server.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from bench import harness
from ron.auth.pow import PowGate, PowSettings, wire
from ron.kernel import Metrics
from ron.sdk.pow import solve

RESOURCE = "POST /v1/send"
CHECKS = 2_000
# difficulty: solutions that are timed
SOLVED = {8: 300, 12: 200, 16: 40, 18: 15}
TARGET_MS, LIMIT_US = 3.0, 50.0


def main() -> None:
    """Measure and save."""
    os.sched_setaffinity(0, {int(harness.SERVER_CPU)})
    try:
        server = _server()
        rate = wire.measured_hash_rate()
        client = {bits: harness.spread(_bare(bits, count), 3) for bits, count in SOLVED.items()}
        through_sdk = _in_reactor()
        tuned = _gate(PowSettings(target_ms=TARGET_MS)).target
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    verify_us = server["verify"]["p50"]
    result = {
        "setup": {"checks": CHECKS, "target_verify_us": LIMIT_US, "target_client_ms": TARGET_MS},
        "server_us": server,
        "hashes_per_s": round(rate),
        "tuned_difficulty": tuned.difficulty,
        "tuned_expected_ms": round(tuned.expected_tries / rate * 1000, 2),
        "solve_ms": {"loop": client, "sdk": through_sdk},
        "ratios": {"client's work at the tuned difficulty, of a verification": _times(tuned, rate, verify_us)},
    }
    harness.save("pow", result)
    rows = [[name, *(f[k] for k in ("n", "p50", "p95", "max"))] for name, f in server.items()]
    harness.show("proof of work, server, µs", ["", "n", "p50", "p95", "max"], rows)
    rows = [
        [f"{kind}, {bits} bits", *(f[k] for k in ("n", "p50", "p95", "max"))]
        for kind, figures in (("loop", client), ("SDK", through_sdk))
        for bits, f in figures.items()
    ]
    title = f"a solution, ms ({rate / 1e6:.2f} M hashes/s; tuned for {TARGET_MS} ms: {tuned.difficulty} bits)"
    harness.show(title, ["", "n", "p50", "p95", "max"], rows)


def _gate(settings: PowSettings) -> PowGate:
    return PowGate(os.urandom(32), settings, time.time, Metrics())


def _server() -> dict[str, dict[str, float]]:
    """Microseconds of each kind of work; the whole call, metrics included."""
    gate = _gate(PowSettings(auto_tune=False, difficulty=8))
    challenges: list[str] = []
    times: dict[str, list[float]] = {"challenge": [], "verify": [], "refuse a forgery": [], "refuse a repeat": []}

    def timed(kind: str, call: Any, *arguments: str) -> None:
        started = time.perf_counter()
        try:
            challenges.append(call(*arguments) or "")
        except Exception:
            if kind == "verify":
                raise
        times[kind].append((time.perf_counter() - started) * 1e6)

    for _ in range(CHECKS):
        timed("challenge", gate.challenge, RESOURCE)
    for challenge in list(challenges):
        solution = f"{challenge}.{wire.search(challenge.encode(), 8, 0, 1 << 30)}"
        timed("refuse a forgery", gate.redeem, solution.replace("v1.8.", "v1.7."), RESOURCE)
        timed("verify", gate.redeem, solution, RESOURCE)
        timed("refuse a repeat", gate.redeem, solution, RESOURCE)
    return {kind: harness.spread(values, 2) for kind, values in times.items()}


def _bare(bits: int, count: int) -> list[float]:
    """Milliseconds of the loop alone, for each of `count` challenges."""
    gate = _gate(PowSettings(auto_tune=False, difficulty=bits))
    times = []
    for challenge in (gate.challenge(RESOURCE).encode() for _ in range(count)):
        started = time.perf_counter()
        assert wire.search(challenge, bits, 0, 1 << 40) is not None
        times.append((time.perf_counter() - started) * 1000)
    return times


def _in_reactor() -> dict[int, dict[str, float]]:
    """Milliseconds of the SDK's solver, by difficulty; and the longest the reactor was kept from anything else."""
    figures: dict[int, dict[str, float]] = {}

    async def run() -> None:
        for bits, count in SOLVED.items():
            gate, times, turns = _gate(PowSettings(auto_tune=False, difficulty=bits)), [], []
            for _ in range(count):
                started = time.perf_counter()
                marks = [started]
                await solve(
                    reactor, gate.challenge(RESOURCE), on_progress=lambda _p, m=marks: m.append(time.perf_counter())
                )
                times.append((time.perf_counter() - started) * 1000)
                turns += [(after - before) * 1000 for before, after in itertools.pairwise(marks)]
            figures[bits] = {**harness.spread(times, 3), "slice_p95_ms": round(harness.percentile(turns, 95), 2)}

    done = Deferred.fromCoroutine(run())
    failures: list[Any] = []
    done.addErrback(failures.append)
    done.addBoth(lambda _result: reactor.stop())  # type: ignore[attr-defined]
    reactor.run(installSignalHandlers=False)  # type: ignore[attr-defined]
    if failures:
        failures[0].raiseException()
    return figures


def _times(tuned: Any, rate: float, verify_us: float) -> float:
    return float(round(tuned.expected_tries / rate * 1e6 / verify_us, 1))


if __name__ == "__main__":
    sys.exit(main())
