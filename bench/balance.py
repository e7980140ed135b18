"""RustBalance on the private network: real daemons, killed, besieged and asked to sign; Onionbalance beside it.

BALANCE_RUNS=N: so many kills and orders of each kind instead of 20. BALANCE_PARTS=kills,shares,heads,peer: only these;
the result's file keeps what it has of the others. Needs tor, and Onionbalance (extra `test`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

from bench import balance_heads, balance_kills, balance_peer, balance_shares, harness
from bench.balance_watch import Uploads
from tests.live.cluster import Cluster

RUNS = int(os.environ.get("BALANCE_RUNS", "20"))
VISITS_S = max(20.0, 6.0 * RUNS)
QUIET_S = 20
TARGETS = {
    "leader killed, next published, p95 after detection, s": 3.0,
    "leader killed, next published, p95 in all, s": 8.0,
    "visits while leaders are killed, failed %": 0.1,
    "visits while leaders' hosts are killed, failed %, without those under way at a kill": 0.1,
    "head killed, descriptor without it, p95, s": 8.0,
    "siege ordered, descriptor without it, p95, s": 2.0,
    "sessions through a ghost, dropped": 0.0,
    "3-of-5 signature, p95, ms": 150.0,
}


def main() -> None:
    """Measure and save."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "kills": _kills,
        "shares": lambda: balance_shares.measure(RUNS),
        "heads": lambda: balance_heads.measure(RUNS),
        "peer": lambda: balance_peer.measure(RUNS),
    }
    asked = os.environ.get("BALANCE_PARTS", ",".join(parts)).split(",")
    result = _before() if set(asked) != set(parts) else {}
    for name in asked:
        began_s, load = time.monotonic(), round(os.getloadavg()[0], 2)
        print(f"   {name} …", flush=True)
        # neighbours matter: a shared machine's figures may be worse than they need be
        result[name] = {**parts[name](), "runs": RUNS, "load_before": load}
        result[name]["took_s"] = round(time.monotonic() - began_s)
    result["targets"] = _targets(result)
    harness.save("balance", result)
    _show(result)


def _before() -> dict[str, Any]:
    path = harness.RESULTS / "balance.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    return {name: one for name, one in kept.items() if name in ("kills", "shares", "heads", "peer")}


def _kills() -> dict[str, Any]:
    # a head that breaks again and again is kept out for longer each time, up to quiet_s: not what is measured here
    cluster, uploads = Cluster(nodes=3, balance=f"quiet_s = {QUIET_S}"), Uploads()
    try:
        cluster.start()
        cluster.add_service()
        for node in cluster.nodes.values():
            uploads.of_node(node)
        return {
            "quiet_s": QUIET_S,
            "visits, quiet": balance_kills.quiet(cluster, min(VISITS_S, 30.0)),
            "leader killed": balance_kills.leader_kills(cluster, uploads, RUNS),
            "head killed": balance_kills.head_kills(cluster, uploads, RUNS),
            "siege": balance_kills.sieges(cluster, uploads, RUNS),
            "sessions": balance_kills.sessions(cluster),
            "visits": balance_kills.visits(cluster, uploads, VISITS_S, tors=False),
            "visits, hosts": balance_kills.visits(cluster, uploads, VISITS_S, tors=True),
        }
    finally:
        cluster.stop()
        uploads.close()


def _targets(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    measured: dict[str, float] = {}
    if kills := result.get("kills"):
        leader, names = kills["leader killed"], iter(TARGETS)
        measured[next(names)] = leader["after_detection_s"]["p95"]
        measured[next(names)] = leader["total_s"]["p95"]
        measured[next(names)] = round(100 - kills["visits"]["percent"], 3)
        measured[next(names)] = round(100 - kills["visits, hosts"]["percent without those under way at a kill"], 3)
        measured[next(names)] = kills["head killed"]["total_s"]["p95"]
        measured[next(names)] = kills["siege"]["total_s"]["p95"]
        measured[next(names)] = kills["sessions"]["dropped"]
    if shares := result.get("shares"):
        measured["3-of-5 signature, p95, ms"] = shares["signature_ms"]["p95 at most"]
    return {
        name: {"target": TARGETS[name], "measured": value, "met": value <= TARGETS[name]}
        for name, value in measured.items()
    }


def _show(result: dict[str, Any]) -> None:
    kills, peer = result.get("kills", {}), result.get("peer", {})
    rows = [
        [f"{title}, {name}", *(figure.get(k, "—") for k in ("n", "p50", "p95", "max"))]
        for title, block in {**kills, **{f"onionbalance: {n}": one for n, one in peer.items()}}.items()
        if isinstance(block, dict)
        for name, figure in block.items()
        if name.split(",")[0].endswith("_s") and isinstance(figure, dict)
    ]
    if rows:
        harness.show("RustBalance and Onionbalance, seconds", ["", "n", "p50", "p95", "max"], rows)
    rows = [
        [name, *(kills[name][k] for k in ("visits", "failed", "percent", "percent with a second try"))]
        for name in ("visits, quiet", "visits", "visits, hosts")
        if name in kills
    ]
    if rows:
        harness.show("visits", ["", "visits", "failed", "percent", "with a second try"], rows)
    rows = [
        [count, one["first_ms"]["p50"], one["first_ms"]["p95"], one["all_ms"]["p95"], one["bytes"], one["descriptors"]]
        for count, one in result.get("heads", {}).get("by_count", {}).items()
    ]
    columns = ["heads", "first directory p50 ms", "p95", "all p95 ms", "bytes", "descriptors a period"]
    if rows:
        harness.show("publishing", columns, rows)
    if shares := result.get("shares"):
        harness.show("3 of 5", ["", ""], [[name, str(one)] for name, one in shares.items()])
    rows = [[name, t["target"], t["measured"], "yes" if t["met"] else "NO"] for name, t in result["targets"].items()]
    harness.show("targets", ["", "target", "measured", "met"], rows)
