"""Whatever happens to 2 to 7 nodes, in whatever order: who leads, who publishes, who is listed.

`LONG=5000` in the environment runs so many histories instead of a few.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from ron.services.balance.cluster import Promote, Siege
from tests.services.balance.cluster.world import CALM_S, STEP_S, TIMING, Node, World

NAMES = st.sampled_from("abcdefg")
# From a siege's beginning to the leader's knowing it: a beat, its way, a tick.
NOTICED_S = 2.0
# In a torn mesh, where some hear each other one way or by nobody: the longest anybody waits for somebody else.
TORN_S = TIMING.lease_s + 6 * TIMING.first_chance_s + CALM_S


class Model(RuleBasedStateMachine):
    """The world and what must hold in it. `sides` are the parts of a clean partition, `torn` says it is not clean."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(2)
        self.torn = False
        self.sides: list[str] = []
        self.sieged_s: dict[str, float] = {}
        self.well_s: dict[str, float] = {}

    @initialize(count=st.integers(2, 7), seed=st.integers(0, 999), together=st.booleans())
    def begin(self, count: int, seed: int, together: bool) -> None:
        self.world = World(count, seed=seed)
        self.sides = ["".join(self.world.nodes)]
        for name in self.world.nodes:
            self.world.start(name)
            self.bad(name)
            if not together:
                self.world.run(1.5)

    def node(self, name: str) -> Node:
        return self.world.nodes.get(name) or self.world.nodes["a"]

    def bad(self, name: str) -> None:
        """Its head is not beyond doubt for a while: new, back, flooded, or seen so by others."""
        self.well_s[name] = self.world.now_s + 3 * TIMING.quiet_s

    def go(self, seconds: float) -> None:
        """Time passes; each step is looked at."""
        for _ in range(round(seconds / STEP_S)):
            before = {node.name: node.standing.leader for node in self.world.alive()}
            self.world.step()
            for name, node in self.world.nodes.items():
                if self.is_bad(node):
                    self.bad(name)
            self.look(before)

    def is_bad(self, node: Node) -> bool:
        order = self.world.sieges.get(node.name)
        flooded = node.siege or node.flooded >= TIMING.siege_per_s or not node.healthy
        return node.cluster is None or flooded or (order is not None and order.on)

    # What happens

    @rule(seconds=st.floats(0.5, 12))
    def wait(self, seconds: float) -> None:
        self.go(seconds)

    @rule(name=NAMES, link_seen=st.booleans())
    def crash(self, name: str, link_seen: bool) -> None:
        node = self.node(name)
        if node.cluster is not None:
            self.world.crash(node.name, link_seen=link_seen)
            self.sieged_s.pop(node.name, None)

    @rule(name=NAMES, offset_s=st.sampled_from([0.0, 0.0, 0.0, -600.0, 600.0, 5.0]))
    def restart(self, name: str, offset_s: float) -> None:
        node = self.node(name)
        if node.cluster is None:
            self.world.start(node.name, offset_s=offset_s)

    @rule(name=NAMES, offset_s=st.sampled_from([0.0, 0.0, -600.0, 600.0]))
    def set_clock(self, name: str, offset_s: float) -> None:
        self.node(name).offset_s = offset_s
        self.world.disturb()

    @rule(places=st.lists(st.integers(0, 2), min_size=7, max_size=7))
    def partition(self, places: list[int]) -> None:
        names = list(self.world.nodes)
        sides = ["".join(n for n, place in zip(names, places, strict=False) if place == side) for side in range(3)]
        self.sides = [side for side in sides if side]
        self.torn = False
        self.world.partition(*self.sides)
        for name in names:
            self.bad(name)

    @rule(sender=NAMES, receiver=NAMES, both=st.booleans())
    def cut(self, sender: str, receiver: str, both: bool) -> None:
        self.torn = True
        self.world.cut(self.node(sender).name, self.node(receiver).name)
        if both:
            self.world.cut(self.node(receiver).name, self.node(sender).name)

    @rule(name=NAMES)
    def deaf(self, name: str) -> None:
        """All hear it, and it hears nobody."""
        self.torn = True
        for other in self.world.nodes:
            self.world.cut(other, self.node(name).name)

    @rule(loss=st.sampled_from([0.1, 0.3]), delay_s=st.sampled_from([0.05, 1.0]))
    def bad_weather(self, loss: float, delay_s: float) -> None:
        self.world.loss, self.world.delay_s = loss, delay_s
        self.world.disturb()

    @rule()
    def heal(self) -> None:
        self.torn, self.sides = False, ["".join(self.world.nodes)]
        self.world.heal()
        for name in self.world.nodes:
            self.bad(name)

    @rule(name=NAMES)
    def promote(self, name: str) -> None:
        self.world.promote = Promote(node=self.node(name).name)
        self.world.disturb()

    @rule()
    def end_promotion(self) -> None:
        self.world.promote = None
        self.world.disturb()

    @rule(name=NAMES, how=st.sampled_from(["rate", "word", "order"]))
    def siege(self, name: str, how: str) -> None:
        node = self.node(name)
        if node.cluster is None or node.name in self.sieged_s:
            return
        if how == "rate":
            node.flooded = 100.0 + ord(node.name)
        elif how == "word":
            node.siege = True
        else:
            self.world.sieges[node.name] = Siege()
        self.sieged_s[node.name] = self.world.now_s
        self.world.disturb()

    @rule(rates=st.lists(st.integers(30, 99), min_size=7, max_size=7))
    def flood_all(self, rates: list[int]) -> None:
        for node, rate in zip(self.world.nodes.values(), rates, strict=False):
            node.flooded = float(rate)
            if node.cluster is not None:
                self.sieged_s.setdefault(node.name, self.world.now_s)
        self.world.disturb()
        self.go(3)
        for node in self.world.alive():
            assert not node.standing.duties.lead or node.standing.plan.listed, f"{node.name}: {node.standing.plan}"

    @rule()
    def sieges_end(self) -> None:
        for node in self.world.nodes.values():
            node.flooded, node.siege = 0.0, False
        self.world.sieges = {}
        self.sieged_s.clear()
        self.world.disturb()

    @rule(name=NAMES)
    def break_publisher(self, name: str) -> None:
        self.node(name).broken = not self.node(name).broken
        self.world.disturb()

    @rule(name=NAMES)
    def target_fails(self, name: str) -> None:
        node = self.node(name)
        node.healthy = not node.healthy
        self.world.disturb()

    # What must hold at every moment

    def look(self, before: dict[str, str]) -> None:
        for node in self.world.alive():
            self.stable(node, before)
            if node.standing.duties.lead:
                self.sieged_are_out(node)

    def stable(self, node: Node, before: dict[str, str]) -> None:
        """(c) No change of leader without a cause."""
        if self.world.loss == 0 and self.world.now_s - self.world.disturbed_s > (TORN_S if self.torn else CALM_S):
            now = node.standing.leader
            assert now == before[node.name], f"{node.name} changes from {before[node.name]} to {now} for nothing"

    def sieged_are_out(self, node: Node) -> None:
        """(d) Unless no other head is beyond doubt."""
        now_s, heard = (
            self.world.now_s,
            {node.name} | {name for name, view in node.standing.nodes.items() if view.state == "alive"},
        )
        others = [name for name in heard if self.well_s[name] < now_s]
        if others and self.world.loss == 0 and not self.torn and now_s - self.world.disturbed_s > NOTICED_S:
            wrong = [
                n for n in node.standing.plan.listed if now_s - self.sieged_s.get(n, now_s) > NOTICED_S and n in heard
            ]
            assert not wrong, f"{wrong} of {node.standing.plan.listed} are under siege, {others} are not"

    @invariant()
    def never_empty(self) -> None:
        """(e) Nothing is published without heads; whoever hears a head that serves lists one."""
        assert all(posting.heads for posting in self.world.postings)
        for node in self.world.alive():
            serves = node.healthy and not node.ghost and self.world.now_s - node.started_s > 1
            plan = node.standing.plan
            assert not (serves and node.standing.leader == node.name) or plan.listed, f"{node.name}: {plan}"

    # What must hold after a while

    @precondition(lambda self: self.world.loss == 0 and not self.torn)
    @rule()
    def come_to_rest(self) -> None:
        """(a), (b) One leader on each side, whom all there follow, and who publishes."""
        self.go(max(0.0, CALM_S - (self.world.now_s - self.world.disturbed_s)) + 12)
        for side in self.sides:
            living = [node for node in self.world.alive() if node.name in side]
            if living:
                self.one_leader(living)

    def one_leader(self, living: list[Node]) -> None:
        said = {node.name: (node.standing.leader, node.standing.why) for node in living}
        leaders = [node.name for node in living if node.standing.duties.lead]
        assert len(leaders) == 1, said
        assert {name for name, _ in said.values()} == set(leaders), said
        able = [node for node in living if not node.broken]
        if able:
            assert not self.node(leaders[0]).broken, said
            self.published(leaders[0], living)
            self.promoted(leaders[0], living)

    def published(self, leader: str, living: list[Node]) -> None:
        """By the leader, not too long ago, with the heads there are."""
        last = [posting for posting in self.world.postings if posting.author == leader]
        healthy = {node.name for node in living if node.healthy and self.well_s[node.name] < self.world.now_s}
        if not healthy and not any(node.healthy for node in living):
            return
        most_s = TIMING.publish_every_s + TIMING.publish_grace_s
        assert last and self.world.now_s - last[-1].at_s <= most_s, f"{leader} last published {last[-1:]}"
        assert healthy <= set(last[-1].heads), f"{healthy} are well, {last[-1].heads} are listed"
        assert set(last[-1].heads) <= {node.name for node in living}
        sieged = set(self.sieged_s) & set(last[-1].heads)
        assert not (healthy and sieged), f"{sieged} are under siege, {healthy} are not, {last[-1].heads} are listed"

    def promoted(self, leader: str, living: list[Node]) -> None:
        """Nobody leads whose clock most others call wrong, while somebody else can; else an operator's word counts."""
        able = {node.name for node in living if not node.broken and not self.is_off(node, living)}
        assert not able or leader in able, f"{leader} leads, {able} have a right clock"
        if self.world.promote is not None and self.world.promote.node in able:
            assert leader == self.world.promote.node, f"{leader} leads, promoted is {self.world.promote.node}"

    def is_off(self, node: Node, living: list[Node]) -> bool:
        return 2 * sum(abs(other.offset_s - node.offset_s) > 30 for other in living) > len(living)

    @precondition(lambda self: self.world.loss == 0 and self.torn)
    @rule()
    def somebody_publishes(self) -> None:
        """In a torn mesh there may be several leaders; there is never none for long."""
        self.go(max(0.0, TORN_S - (self.world.now_s - self.world.disturbed_s)) + 1)
        living = self.world.alive()
        if living and not any(node.broken or not node.healthy for node in living):
            assert self.world.leaders()
            self.all_are_served(living)

    def all_are_served(self, living: list[Node]) -> None:
        """Whoever is well is in a leader's descriptor that is not too old."""
        since_s = self.world.now_s - TIMING.publish_every_s - TIMING.publish_grace_s
        recent = [each for each in self.world.postings if each.at_s >= since_s and each.author in self.world.leaders()]
        for node in living:
            if self.well_s[node.name] < self.world.now_s:
                assert any(node.name in posting.heads for posting in recent), f"{node.name} is in none of {recent}"

    # Whole stories, which chance tells too seldom

    @precondition(lambda self: bool(self.world.alive()))
    @rule()
    def heal_and_rest(self) -> None:
        self.heal()
        self.come_to_rest()

    @precondition(lambda self: bool(self.world.alive()))
    @rule(name=NAMES, how=st.sampled_from(["rate", "word", "order"]))
    def siege_at_rest(self, name: str, how: str) -> None:
        self.sieges_end()
        self.heal_and_rest()
        self.siege(name, how)
        self.go(NOTICED_S + 2)

    @precondition(lambda self: len(self.world.alive()) >= 3)
    @rule(name=NAMES)
    def a_clock_is_set_right(self, name: str) -> None:
        """Whoever started with a clock 10 minutes late is not the eldest when it goes right."""
        self.heal_and_rest()
        node, living = self.node(name), self.world.alive()
        if node.standing.duties.lead or any(each.offset_s or each.broken for each in living):
            return
        if node.cluster is not None:
            self.world.crash(node.name)
        self.go(5)
        (leader,) = self.world.leaders()
        promoted = self.world.promote
        self.world.start(node.name, offset_s=-600)
        self.go(10)
        assert not node.standing.duties.lead, "a late clock made it the eldest"
        node.offset_s = 0.0
        self.world.disturb()
        self.go(20)
        assert self.world.leaders() == {leader} or (promoted is not None and promoted.node == node.name)

    @precondition(lambda self: len(self.world.alive()) >= 2)
    @rule()
    def the_leader_goes_deaf(self) -> None:
        """All hear it, it hears nobody: it leads itself, and the others somebody else, who lists them."""
        self.heal_and_rest()
        (leader,) = self.world.leaders()
        self.deaf(leader)
        self.go(20)
        assert not [node.name for node in self.world.alive() if node.name != leader and node.standing.leader == leader]


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
    )


class Cluster(SynchronousTestCase):
    def test_whatever_happens(self) -> None:
        machine: Any = Model
        run_state_machine_as_test(machine, settings=_settings(int(os.environ.get("LONG", "20"))))
