"""One tenant asks for ten times its share; all of them do, for a while; a flood of rotations: what others feel of it.

In: how long. Out: for each, the p95 before and meanwhile of whoever keeps to his share, how much was refused, and how
long until all is as before. Load that comes at its own pace, whatever becomes of what was asked before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness import percentile
from bench.kmsload import OK, Answer, Stream, figures, request, saturate, steady
from bench.kmsnode import HYBRID_OR, UNLIMITED, KmsNode, path, rotate_path, sign_body

# Who asks for too much has so long before he gives up: a backlog without end would be no burst.
PATIENCE_S = 1.0
BURST_S = float(os.environ.get("KMS_BURST_S", "60"))
ALONE_S = 6.0
# The configured rate of an instance (security.sign_rate_limit_rps), and of it what is asked for in quiet times.
RATE, QUIET = 500, 0.7
TIMES = 10
KEYS = 8
# Recovered: the p95 of so long is again within so many times that of before.
WINDOW_S, AS_BEFORE = 1.0, 2.0


def measure(folder: Path, seconds: float) -> dict[str, Any]:
    """All of it, each with a service of its own."""
    return {
        "isolation, rate": _isolation_by_rate(folder / "rate", seconds),
        "isolation, queue": _isolation_by_queue(folder / "queue", seconds),
        "burst": _burst(folder / "burst"),
        "rotate flood": _rotate_flood(folder / "rotate", seconds),
    }


def _isolation_by_rate(home: Path, seconds: float) -> dict[str, Any]:
    """As configured by default: both tenants sign with Ed25519, the quiet one nearly his half of the rate."""
    with KmsNode(home, HYBRID_OR) as node:
        loud, quiet = (_signs(node, tenant, "ed25519", hybrid=False) for tenant in ("loud", "quiet"))
        fair = RATE / 2
        return _beside(node, loud, quiet, fair * TIMES, fair * QUIET, seconds)


def _isolation_by_queue(home: Path, seconds: float) -> dict[str, Any]:
    """No rate: what is short is time in threads, and the fair queue before them deals it out."""
    with KmsNode(home, UNLIMITED) as node:
        loud, quiet = (_signs(node, tenant, "ml-dsa") for tenant in ("loud", "quiet"))
        body = sign_body(node.key("probe", "ml-dsa"))
        most = _most(node, body)
        return {"saturation_per_s": most, **_beside(node, loud, quiet, most / 2 * TIMES, most * 0.1, seconds)}


def _beside(
    node: KmsNode, loud: list[bytes], quiet: list[bytes], loud_per_s: float, quiet_per_s: float, seconds: float
) -> dict[str, Any]:
    alone = Stream(quiet, quiet_per_s, connections=32)
    steady(node.port, [alone], ALONE_S)
    pressed = Stream(quiet, quiet_per_s, connections=32)
    pressing = Stream(loud, loud_per_s, connections=96, patience_s=PATIENCE_S)
    steady(node.port, [pressed, pressing], seconds)
    before, meanwhile = figures(alone.answers, quiet_per_s), figures(pressed.answers, quiet_per_s)
    return {
        "quiet, alone": before,
        "quiet, beside the loud one": meanwhile,
        "loud": figures(pressing.answers, loud_per_s),
        "p95, times": round(meanwhile["p95_ms"] / before["p95_ms"], 2) if "p95_ms" in meanwhile else None,
    }


def _burst(home: Path) -> dict[str, Any]:
    """One tenant alone, within the rate; then ten times that; then as before."""
    with KmsNode(home, HYBRID_OR) as node:
        requests, per_s = _signs(node, "one", "ed25519", hybrid=False), RATE * QUIET
        base = Stream(requests, per_s, connections=32)
        more = Stream(requests, per_s * (TIMES - 1), 128, ALONE_S, ALONE_S + BURST_S, PATIENCE_S)
        after_s = 15.0
        began_s = steady(node.port, [base, more], ALONE_S + BURST_S + after_s)
        burst_began_s, burst_over_s = began_s + ALONE_S, began_s + ALONE_S + BURST_S
        before = [one for one in base.answers if one.due_s < burst_began_s]
        during = [one for one in (*base.answers, *more.answers) if burst_began_s <= one.due_s < burst_over_s]
        after = [one for one in base.answers if one.due_s >= burst_over_s]
        p95_ms = figures(before, per_s)["p95_ms"]
        whole = figures(during, per_s * TIMES)
        return {
            "burst_s": BURST_S,
            "before": figures(before, per_s),
            "meanwhile": {**whole, "shed_percent": round(100 * whole["shed"] / whole["n"], 1)},
            "after": figures(after, per_s),
            "recovered_s": _recovered_s(after, burst_over_s, p95_ms),
        }


def _recovered_s(after: Sequence[Answer], since_s: float, p95_ms: float) -> float | None:
    """After the burst, the end of the first window with nothing shed and a p95 as before. None: it did not."""
    windows: dict[int, list[Answer]] = {}
    for one in after:
        windows.setdefault(int((one.due_s - since_s) / WINDOW_S), []).append(one)
    for number in sorted(windows):
        answers = windows[number]
        well = all(one.status == OK for one in answers)
        if well and percentile([one.took_ms for one in answers], 95) <= AS_BEFORE * p95_ms:
            return round(number * WINDOW_S, 1)
    return None


def _rotate_flood(home: Path, seconds: float) -> dict[str, Any]:
    """One tenant rotates its keys as fast as it can on eight connections, another signs."""
    with KmsNode(home, UNLIMITED + HYBRID_OR) as node:
        signs = _signs(node, "quiet", "ed25519", hybrid=False)
        rotates = [request(rotate_path(node.key("loud", "hybrid")), node.headers, {}) for _ in range(KEYS)]
        per_s = RATE * QUIET
        alone = Stream(signs, per_s, connections=32)
        steady(node.port, [alone], ALONE_S)
        # faster than it can be done: each connection asks as soon as it may
        flood = Stream(rotates, 200.0, connections=8, patience_s=PATIENCE_S)
        pressed = Stream(signs, per_s, connections=64)
        steady(node.port, [pressed, flood], seconds)
        before, meanwhile = figures(alone.answers, per_s), figures(pressed.answers, per_s)
        done = [one for one in flood.answers if one.status == OK]
        return {
            "rotations_per_s": round(len(done) / seconds, 1),
            "rotations": figures(flood.answers, 200.0),
            "sign, alone": before,
            "sign, meanwhile": meanwhile,
            "p95, times": round(meanwhile["p95_ms"] / before["p95_ms"], 2),
        }


def _signs(node: KmsNode, tenant: str, alg: str, *, hybrid: bool | None = None) -> list[bytes]:
    kids = [node.key(tenant, alg) for _ in range(KEYS)]
    return [request(path("sign"), node.headers, sign_body(kid, hybrid=hybrid)) for kid in kids]


def _most(node: KmsNode, body: dict[str, Any]) -> float:
    from json import dumps

    found = saturate(node.url("sign"), [dumps(body)], node.headers, seconds=2, connections=32)
    return found["per_s"]
