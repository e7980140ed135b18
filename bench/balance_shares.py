"""A cluster whose address is shared out 3 of 5: signatures over the mesh between real daemons, and who must live.

In: how often. Out: the signers' own figures (a histogram: a percentile is its bucket's upper end), how a cluster fares
with two and with three of its five nodes dead. Each refresh makes new shares, so that the leader has to have a
certificate signed for each time period anew.
"""

from __future__ import annotations

import contextlib
import http.client
import time
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from bench import harness
from bench.balance_watch import Uploads
from tests.live.cluster import SERVICE, Cluster, Node
from tests.live.onionwork import op_id
from tests.live.support import until

SIGNED = "balance_vault_sign_seconds"
PATIENCE_S = 60.0
SILENCE_S = 20.0
VISITS = 20


def measure(runs: int) -> dict[str, Any]:
    """All of it, with a cluster of its own."""
    cluster, uploads = Cluster(nodes=5, threshold="3-of-5"), Uploads()
    try:
        cluster.start()
        cluster.add_service()
        for node in cluster.nodes.values():
            uploads.of_node(node)
        signed = _signatures(cluster, uploads, runs)
        return {**signed, "two dead": _two_dead(cluster, uploads), "three dead": _three_dead(cluster, uploads)}
    finally:
        cluster.stop()
        uploads.close()


def _signatures(cluster: Cluster, uploads: Uploads, runs: int) -> dict[str, Any]:
    before = _signed(cluster.alive())
    took: list[float] = []
    for _ in range(runs):
        leader = cluster.wait_leader()
        began_s = time.monotonic()
        reply = leader.call("POST", "/refresh", {"op_id": op_id(), "service": SERVICE})
        if reply.status != 200:
            raise RuntimeError(f"refresh: {reply.status} {reply.body!r}")
        took.append((time.monotonic() - began_s) * 1000)
        asked_s = time.monotonic()
        leader.call("POST", "/publish", {"service": SERVICE})
        uploads.published(asked_s, PATIENCE_S)
    after = _signed(cluster.alive())
    buckets = {le: after["buckets"][le] - before["buckets"][le] for le in after["buckets"]}
    count, total_s = after["count"] - before["count"], after["sum"] - before["sum"]
    if not count:
        raise RuntimeError("nothing was signed")
    figures: dict[str, float] = {"n": count, "mean": round(total_s / count * 1000, 1)}
    for percent in (50, 95):
        le = min((le for le, within in buckets.items() if within >= count * percent / 100), default=float("inf"))
        figures[f"p{percent} at most"] = round(le * 1000, 1)
    figures["percent within 150"] = round(100 * buckets[0.15] / count, 1)
    return {"signature_ms": figures, "refresh_ms": harness.spread(took)}


def _two_dead(cluster: Cluster, uploads: Uploads) -> dict[str, Any]:
    """The leader among them: the next one has to ask the others to sign."""
    leader = cluster.wait_leader()
    other = next(node for node in reversed(cluster.alive()) if node is not leader)
    began_s = time.monotonic()
    other.kill(tors=True)
    leader.kill(tors=True)
    upload = uploads.published(began_s, PATIENCE_S, besides=leader.name)
    took = round(upload.at_s - began_s, 2) if upload is not None else None
    cluster.wait_whole()
    failed = [problem for problem in (_visit(cluster) for _ in range(VISITS)) if problem]
    heads = sorted(cluster.heads())
    return {"published after, s": took, "heads": heads, "visits": VISITS, "failed": len(failed), "why": failed}


def _three_dead(cluster: Cluster, uploads: Uploads) -> dict[str, Any]:
    """Not the leader, so that somebody is there who has tried."""
    leader = cluster.wait_leader()
    # what has been signed for the periods that are due is good until they are over: new shares make it forgotten
    victim = next(node for node in cluster.alive() if node is not leader)
    began_s = time.monotonic()
    victim.kill(tors=True)
    with contextlib.suppress(AssertionError):
        until(lambda: _warnings(cluster), PATIENCE_S, "a warning")
    said_s = time.monotonic() - began_s
    asked = leader.call("POST", "/refresh", {"op_id": op_id(), "service": SERVICE})
    upload = uploads.published(time.monotonic(), SILENCE_S)
    return {
        "warned after, s": round(said_s, 2),
        "warnings": _warnings(cluster),
        "a refresh": asked.json().get("error", {}).get("message", asked.status),
        "published by one who had signed before": upload is not None,
        "last descriptor answers": any(not _visit(cluster) for _ in range(5)),
    }


def _warnings(cluster: Cluster) -> list[str]:
    return sorted({said for node in cluster.alive() for said in node.seen().get("warnings", ()) if SERVICE in said})


def _visit(cluster: Cluster) -> str:
    """What went wrong, or nothing."""
    try:
        cluster.get()
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _signed(nodes: list[Node]) -> dict[str, Any]:
    """Of all these together."""
    found: dict[str, Any] = {"buckets": {}, "sum": 0.0, "count": 0.0}
    for node in nodes:
        for family in text_string_to_metric_families(node.metrics()):
            if family.name != SIGNED:
                continue
            for sample in family.samples:
                what = sample.name.removeprefix(f"{SIGNED}_")
                if what == "bucket":
                    le = float(sample.labels["le"])
                    found["buckets"][le] = found["buckets"].get(le, 0.0) + sample.value
                elif what in found:
                    found[what] += sample.value
    return found
