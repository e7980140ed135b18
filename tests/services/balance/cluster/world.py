"""A cluster in a box for tests: real `Cluster`s, and between them messages that are late, lost or cut off.

Time goes in steps. Directories keep what has the highest counter; a publication takes a moment, and may fail.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec

from ron.proto.balance import Beat, HeadReport, Published
from ron.services.balance.cluster import Cluster, Orders, Promote, Siege, Standing, Timing

STEP_S = 0.5
UNIX_MS = 1_800_000_000_000
TIMING = Timing(
    beat_s=0.5,
    suspect_s=2.5,
    gone_s=1.0,
    listen_s=2.5,
    steady_s=2.5,
    publish_every_s=20.0,
    publish_grace_s=4.0,
    drift_s=30.0,
    siege_per_s=30.0,
    quiet_s=6.0,
    gap_s=2.0,
    change_s=10.0,
    lifetime_s=10_800.0,
    prove_s=3.0,
    prove_most_s=6.0,
    retry_most_s=4.0,
)
# How long the world takes to be of one mind after the last thing that happened: what is suspected, listened for, made
# good on the bench, quiet again.
CALM_S = 30.0
PUBLISH_S = 0.75


@dataclass
class Posting:
    """What the directories got. revision: by time and author, as the publisher makes it."""

    at_s: float
    author: str
    heads: tuple[str, ...]
    reason: str


@dataclass
class Node:
    name: str
    offset_s: float = 0.0
    cluster: Cluster | None = None
    started_s: float = 0.0
    flooded: float = 0.0
    siege: bool = False
    healthy: bool = True
    broken: bool = False
    ghost: bool = False
    points: int = 0
    under_way: list[tuple[float, int, tuple[str, ...], str]] = field(default_factory=list)
    beat_s: float = 0.0
    standing: Standing = field(default_factory=Standing)
    flips: list[tuple[float, str]] = field(default_factory=list)

    def report(self) -> HeadReport:
        return HeadReport(
            mode="ghost" if self.ghost else "serving",
            onion="a" * 56 + ".onion",
            descriptor=f"{self.name}-{self.points}",
            healthy=self.healthy,
            under_siege=self.siege,
            introductions_per_s=0.0 if self.ghost else self.flooded,
        )


class World:
    """Nodes named a, b, c, ... with one service that all have the key of."""

    def __init__(self, count: int, *, seed: int = 1, timing: Timing = TIMING) -> None:
        self.now_s = 1000.0
        self.timing = timing
        self.nodes = {name: Node(name) for name in "abcdefg"[:count]}
        self.cuts: set[tuple[str, str]] = set()
        self.delay_s = 0.05
        self.loss = 0.0
        self.promote: Promote | None = None
        self.sieges: dict[str, Siege] = {}
        self.postings: list[Posting] = []
        self.disturbed_s = self.now_s
        self._random = random.Random(seed)
        self._flying: list[tuple[float, str, str, Beat]] = []
        self._trust_periods = (7, 8)

    # What happens

    def start(self, name: str, *, offset_s: float = 0.0) -> None:
        node = self.nodes[name]
        node.offset_s, node.started_s = offset_s, self.now_s
        node.cluster = Cluster(name, self.timing, now_s=self.now_s, unix_ms=self.unix_ms(node))
        node.cluster.members(self.nodes)
        node.cluster.services({"main"}, {"main"})
        node.cluster.periods(self._trust_periods)
        node.under_way, node.ghost, node.points = [], False, node.points + 1
        node.standing = Standing()
        self.disturb()

    def start_all(self) -> None:
        for name in self.nodes:
            self.start(name)

    def crash(self, name: str, *, link_seen: bool = True) -> None:
        """link_seen: the others see its connections break, as with a killed process; else it falls silent."""
        self.nodes[name].cluster = None
        self._flying = [each for each in self._flying if each[1] != name]
        if link_seen:
            for other in self.alive():
                if not self.is_cut(name, other.name):
                    assert other.cluster is not None
                    other.cluster.gone(name, self.now_s)
        self.disturb()

    def partition(self, *sides: str) -> None:
        """`partition("ab", "c")`."""
        side_of = {name: place for place, side in enumerate(sides) for name in side}
        self.cuts = {(a, b) for a in self.nodes for b in self.nodes if side_of[a] != side_of[b]}
        self.disturb()

    def cut(self, sender: str, receiver: str) -> None:
        self.cuts.add((sender, receiver))
        self.disturb()

    def heal(self) -> None:
        self.cuts, self.loss, self.delay_s = set(), 0.0, 0.05
        self.disturb()

    def disturb(self) -> None:
        self.disturbed_s = self.now_s

    # How it stands

    def alive(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.cluster is not None]

    def unix_ms(self, node: Node) -> int:
        return UNIX_MS + int(1000 * (self.now_s + node.offset_s))

    def is_cut(self, sender: str, receiver: str) -> bool:
        return (sender, receiver) in self.cuts

    def leaders(self) -> set[str]:
        return {node.name for node in self.alive() if node.standing.duties.lead}

    def followed(self) -> set[str]:
        return {node.standing.leader for node in self.alive()}

    def listed(self) -> tuple[str, ...]:
        """What visitors get."""
        return self.postings[-1].heads if self.postings else ()

    def orders(self) -> Orders:
        return Orders(promote=self.promote, siege=self.sieges)

    # Time goes on

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.step()

    def step(self) -> None:
        self.now_s += STEP_S
        self._deliver()
        for node in self.alive():
            self._end_publications(node)
            self._tick(node)
            if self.now_s >= node.beat_s:
                node.beat_s = self.now_s + self.timing.beat_s
                self._send(node)

    def _tick(self, node: Node) -> None:
        cluster = node.cluster
        assert cluster is not None
        cluster.head(node.report())
        cluster.orders(self.orders())
        before, standing = node.standing, cluster.tick(self.now_s, self.unix_ms(node))
        node.standing = standing
        if standing.leader != before.leader:
            node.flips.append((self.now_s, standing.leader))
        if node.ghost and standing.duties.head == "serve":
            node.points += 1
        node.ghost = standing.duties.head == "ghost"
        if standing.duties.publish:
            number = cluster.begin(self.now_s)
            entry = (self.now_s + PUBLISH_S, number, standing.plan.listed, str(standing.duties.publish))
            node.under_way.append(entry)

    def _end_publications(self, node: Node) -> None:
        cluster = node.cluster
        assert cluster is not None
        for entry in [each for each in node.under_way if each[0] <= self.now_s]:
            node.under_way.remove(entry)
            _, number, heads, reason = entry
            if not node.broken:
                revision = int(self.now_s * 1000)
                told = [
                    Published(service="main", period=period, revision=revision, heads=heads, taken=6, directories=6)
                    for period in self._trust_periods
                ]
                cluster.published(told, self.now_s)
                self.postings.append(Posting(self.now_s, node.name, heads, reason))
            cluster.ended(number, ok=not node.broken)

    def _send(self, node: Node) -> None:
        assert node.cluster is not None
        # over the wire, as strictly as the mesh does it
        beat = msgspec.msgpack.decode(msgspec.msgpack.encode(node.cluster.beat(self.now_s)), type=Beat)
        for other in self.alive():
            lost = self._random.random() < self.loss
            if other is not node and not lost and not self.is_cut(node.name, other.name):
                at_s = self.now_s + self._random.uniform(0, self.delay_s)
                self._flying.append((at_s, node.name, other.name, beat))

    def _deliver(self) -> None:
        arrived = [each for each in self._flying if each[0] <= self.now_s]
        self._flying = [each for each in self._flying if each[0] > self.now_s]
        for at_s, sender, receiver, beat in sorted(arrived, key=lambda each: each[0]):
            node = self.nodes[receiver]
            if node.cluster is not None and not self.is_cut(sender, receiver):
                drift_s = self.nodes[sender].offset_s - node.offset_s + self._random.uniform(-0.01, 0.01)
                node.cluster.heard(sender, beat, max(at_s, node.started_s), drift_s)
