"""What a killed leader, a killed head and a siege cost a cluster of three nodes, and its visitors.

In: a running cluster and its uploads. Out: times until both periods' descriptors are with a directory, share of visits
that succeeded, sessions that were dropped. Half of the kills take the daemon alone, half its tors in the same instant.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from typing import Any

from bench import harness
from bench.balance_watch import Uploads, Visitors, availability
from ron.services.balance.cluster import Timing
from ron.services.balance.config import BalanceConfig
from tests.live.cluster import SERVICE, Cluster, Node
from tests.live.sites import ECHO_PORT
from tests.live.support import until

# The link to a killed process breaks at once; it counts as dead when it has not come back for so long.
DETECTION_S = Timing.of(BalanceConfig()).gone_s
PATIENCE_S = 60.0
# Between two clocks' readings of one moment.
CLOSE_S = 0.05
SESSIONS = 50
SESSION_S = 15.0
REST_S = 2.0
# RestartSec of etc/systemd/ron-balance.service.
RESTART_S = 5.0


def leader_kills(cluster: Cluster, uploads: Uploads, runs: int) -> dict[str, Any]:
    """From `kill -9` of the leader to the next one's first uploads."""
    totals: dict[str, list[float]] = {"daemon": [], "daemon and tors": []}
    orders: list[float] = []
    for run in range(runs):
        leader = _settled(cluster)
        began_s = time.monotonic()
        leader.kill(tors=bool(run % 2))
        upload = uploads.published(began_s, PATIENCE_S, besides=leader.name)
        if upload is None:
            raise RuntimeError(f"nobody published within {PATIENCE_S} s")
        totals["daemon and tors" if run % 2 else "daemon"].append(upload.at_s - began_s)
        ages = [one["age_s"] for one in _publications(cluster.node(upload.who)) if one["by"] == upload.who]
        orders += [upload.at_s - (time.monotonic() - min(ages))] if ages else []
        back(cluster, uploads, leader)
    every = [total for some in totals.values() for total in some]
    return {
        "total_s": _spread(every),
        "after_detection_s": _spread([total - DETECTION_S for total in every]),
        "from_order_s": _spread(orders),
        **{f"total_s, {how}": _spread(some) for how, some in totals.items() if some},
    }


def head_kills(cluster: Cluster, uploads: Uploads, runs: int) -> dict[str, Any]:
    """From `kill -9` of a node that does not lead to a descriptor without it."""
    totals: list[float] = []
    for run in range(runs):
        leader = _settled(cluster)
        victim = [node for node in cluster.alive() if node is not leader][run % 2]
        began_s = time.monotonic()
        victim.kill(tors=bool(run // 2 % 2))
        totals.append(_without(leader, uploads, victim.name, began_s) - began_s)
        back(cluster, uploads, victim)
    return {"total_s": _spread(totals)}


def visits(cluster: Cluster, uploads: Uploads, seconds: float, *, tors: bool) -> dict[str, Any]:
    """A visit every tenth of a second, on a circuit of its own, while one leader after another is killed.

    tors: kill theirs in the same instant, as when a host goes away; else they go on for a while, see
    `ron.tor.afterlife`. What was killed is started again after the time that its unit has in etc/systemd.
    """
    visitors = Visitors(cluster.client, cluster.onions[SERVICE]).start()
    kills_s: list[float] = []
    totals: list[float] = []
    try:
        end_s = time.monotonic() + seconds
        time.sleep(REST_S)
        while time.monotonic() < end_s:
            leader = cluster.wait_leader()
            kills_s.append(time.monotonic())
            leader.kill(tors=tors)
            upload = uploads.published(kills_s[-1], PATIENCE_S, besides=leader.name)
            totals += [upload.at_s - kills_s[-1]] if upload is not None else []
            time.sleep(max(0.0, kills_s[-1] + RESTART_S - time.monotonic()))
            back(cluster, uploads, leader)
            time.sleep(REST_S)
    finally:
        seen = visitors.stop()
    return {"seconds": seconds, "kills": len(kills_s), "total_s": _spread(totals), **availability(seen, kills_s)}


def quiet(cluster: Cluster, seconds: float) -> dict[str, Any]:
    """The same visits while nothing happens: what the machine can do."""
    visitors = Visitors(cluster.client, cluster.onions[SERVICE]).start()
    time.sleep(seconds)
    return availability(visitors.stop(), [])


def sieges(cluster: Cluster, uploads: Uploads, runs: int) -> dict[str, Any]:
    """From an operator's order, given to any node, to a descriptor without that head."""
    totals: list[float] = []
    for run in range(runs):
        leader = _settled(cluster)
        nodes = list(cluster.nodes.values())
        victim, asked = nodes[run % len(nodes)], nodes[run // 2 % len(nodes)]
        began_s = time.monotonic()
        order(asked, victim.name, on=True)
        totals.append(_without(leader, uploads, victim.name, began_s) - began_s)
        order(asked, victim.name, on=False)
        cluster.wait_whole()
    return {"total_s": _spread(totals)}


def sessions(cluster: Cluster) -> dict[str, Any]:
    """Echo sessions, the most of them through the head that becomes a ghost, asked all the while."""
    _settled(cluster)
    # one that has been here while heads were killed knows few that still are there
    cluster.client.forget()
    onion = cluster.onions[SERVICE]
    there = [cluster.client.connect(onion, ECHO_PORT, PATIENCE_S) for _ in range(SESSIONS)]
    dropped = set[int]()
    try:
        for number, session in enumerate(there):
            if not _echoes(session):
                raise RuntimeError(f"session {number} did not begin")
        victim = max(cluster.nodes.values(), key=lambda node: node.site.sessions)
        through = victim.site.sessions
        order(victim, victim.name, on=True)
        end_s = time.monotonic() + SESSION_S
        rounds = 0
        while time.monotonic() < end_s:
            dropped |= {number for number, one in enumerate(there) if number not in dropped and not _echoes(one)}
            rounds += 1
        mode = next(one["head"]["mode"] for one in victim.status()["members"] if one["name"] == victim.name)
        order(victim, victim.name, on=False)
    finally:
        for session in there:
            session.close()
    cluster.wait_whole()
    return {
        "sessions": SESSIONS,
        "through the ghost": through,
        "mode of its head": mode,
        "rounds": rounds,
        "dropped": len(dropped),
    }


def order(asked: Node, victim: str, *, on: bool) -> None:
    """An operator's siege."""
    reply = asked.call("POST", "/siege", {"node": victim, "on": on, "for_s": None if on else 1})
    if reply.status != 200:
        raise RuntimeError(f"siege: {reply.status} {reply.body!r}")


def back(cluster: Cluster, uploads: Uploads, node: Node) -> None:
    """Start a killed node, and wait until its head is listed. It would end the tors that were left by itself."""
    for pid in node.tors():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.start()
    uploads.of_node(node)
    cluster.wait_whole()


def _settled(cluster: Cluster) -> Node:
    """The leader of a cluster that has nothing left to publish."""
    cluster.wait_whole()
    time.sleep(REST_S)
    return cluster.wait_leader()


def _without(leader: Node, uploads: Uploads, victim: str, since_s: float) -> float:
    """When the first descriptors that do not list `victim` were with a directory; by when they were ordered."""

    def ordered_s() -> float | None:
        at_s = time.monotonic()
        found = [one for one in _publications(leader) if victim not in one["heads"] and one["by"] == leader.name]
        orders = [at_s - one["age_s"] for one in found]
        return max((order for order in orders if order > since_s - CLOSE_S), default=None)

    began_s: float = until(ordered_s, PATIENCE_S, f"a descriptor without {victim}")
    upload = uploads.published(began_s - CLOSE_S, PATIENCE_S)
    if upload is None:
        raise RuntimeError(f"no directory took the descriptor without {victim}")
    return upload.at_s


def _publications(node: Node) -> list[dict[str, Any]]:
    services = node.status()["services"]
    return [one for service in services if service["name"] == SERVICE for one in service["publications"]]


def _echoes(session: socket.socket) -> bool:
    with contextlib.suppress(OSError):
        session.sendall(b"still there?")
        left = len(b"still there?")
        while left and (found := session.recv(left)):
            left -= len(found)
        return not left
    return False


def _spread(seconds: list[float]) -> dict[str, float]:
    return harness.spread(seconds, 3) if seconds else {"n": 0}
