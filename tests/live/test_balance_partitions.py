"""A cluster whose mesh is torn, one-eared, lossy or slow, and visitors who must not notice.

Needs tor, root, /dev/net/tun. Each node's mesh is in a network namespace of its own; its tors are on the host's one
private network.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.live.cluster import NAMES, Cluster, Node
from tests.live.clusterwork import ClusterCase, end_shared, once
from tests.live.netns import why_not
from tests.live.support import NO_TOR, until
from tests.live.wires import Wires

COUNT = 3
NO_WIRES = why_not() or (None if os.access("/dev/net/tun", os.W_OK) else "there is no /dev/net/tun")
# After the wires are whole: dialling again (up to 5 s, and 5 s for a connection that went nowhere), hearing (2.5 s),
# being heard for as long before being followed, and a publication.
ONE_LEADER_S = 20.0
# What a visitor may notice: a descriptor is fetched anew, from another directory perhaps.
GAP_S = 5.0
# Silence for 2.5 s, the former leader's last chance, a publication without the others' heads.
TORN_SEEN_S = 20.0
# So long the wires are bad.
BAD_S = 30.0
# So long each stays torn, and is watched afterwards.
TORN_S, REST_S = 12.0, 5.0


class WiredCluster(Cluster):
    """Its nodes' meshes are on `wires`, in the order of their names."""

    def __init__(self, wires: Wires, **settings: Any) -> None:
        super().__init__(listen=lambda name: wires.address(NAMES.index(name) + 1), **settings)
        self.wires = wires

    def stop(self) -> None:
        super().stop()
        self.wires.destroy()

    def make(self, name: str) -> Node:
        node = super().make(name)
        environment, more = node.daemon.environment, self.wires.environment(NAMES.index(name) + 1)
        node.daemon.environment = lambda: {**environment(), **more}  # type: ignore[method-assign]
        return node


def started(wires: Wires, **settings: Any) -> WiredCluster:
    """It runs, and its address is reached."""
    cluster = WiredCluster(wires, nodes=COUNT, **settings)
    try:
        cluster.start()
        cluster.add_service()
    except BaseException:
        cluster.stop()
        raise
    return cluster


def missed(view: dict[str, Any]) -> set[str]:
    """Whom this node does not hear, by its own words."""
    return {one["name"] for one in view["members"] if one["state"] == "dead"}


class Torn(ClusterCase):
    """One cluster for all; each test leaves its wires whole and one leader."""

    skip = NO_TOR or NO_WIRES

    def setUp(self) -> None:
        cluster = once("wired", lambda: started(Wires(COUNT)))
        assert isinstance(cluster, WiredCluster)
        self.cluster, self.wires = cluster, cluster.wires
        self.wires.heal()
        self.wait_one(60)

    def each_side_leads(self, *sides: Sequence[str]) -> bool:
        """Has every side one leader of its own, whose descriptor lists the heads of its side and no others, and do all
        there say that they miss the others?"""
        views = self.views()
        if not all(views.get(name) for side in sides for name in side):
            return False
        for side in sides:
            said = {views[name]["leader"]["name"] for name in side}
            leader = said.pop()
            if said or leader not in side or any(missed(views[name]) & set(side) for name in side):
                return False
            if len(side) < COUNT and not all(missed(views[name]) for name in side):
                return False
            published = views[leader]["services"][0]["publications"]
            if not published or published[0]["by"] != leader or set(published[0]["heads"]) != set(side):
                return False
        return True

    def goes(self, tear: Callable[[], None], condition: Callable[[], bool], within_s: float) -> None:
        """Tear, wait for what is to come of it, let it be so for a while, heal; visitors do not notice."""
        visitor = self.visitors()
        began_s = time.monotonic()
        tear()
        until(condition, within_s, f"what was to come: {self.leaders()}")
        torn_s = time.monotonic() - began_s
        time.sleep(TORN_S)
        self.assertTrue(condition(), self.leaders())
        self.wires.heal()
        healed_s = self.wait_one(ONE_LEADER_S)
        time.sleep(REST_S)
        self.assertTrue(self.is_one(), self.leaders())
        self.say(f"torn after {torn_s:.1f} s, one leader {healed_s:.1f} s after healing")
        self.fine(visitor.stop(), gap=GAP_S, least=0.99)

    def test_two_sides(self) -> None:
        """A|BC: who led goes on where it is, the others find a leader among them; afterwards the elder leads alone."""
        self.goes(
            lambda: self.wires.split([1], [2, 3]),
            lambda: self.each_side_leads(["alpha"], ["beta", "gamma"]),
            TORN_SEEN_S,
        )

    def test_three_sides(self) -> None:
        """A|B|C: each is its own leader."""
        self.goes(
            lambda: self.wires.split([1], [2], [3]),
            lambda: self.each_side_leads(["alpha"], ["beta"], ["gamma"]),
            TORN_SEEN_S,
        )

    def test_nobody_hears_the_leader(self) -> None:
        """One way: the leader hears all and is heard by none. The others go on with one of them, who lists them."""
        leader = self.cluster.wait_leader().name
        others = sorted({*NAMES[:COUNT]} - {leader})
        number = NAMES.index(leader) + 1
        self.goes(
            lambda: self.wires.cut(number, {1, 2, 3} - {number}),
            lambda: self.each_side_leads(others),
            TORN_SEEN_S,
        )

    def test_a_follower_hears_nobody(self) -> None:
        """One way: it is heard and hears none."""
        leader = self.cluster.wait_leader().name
        deaf = sorted({*NAMES[:COUNT]} - {leader})[0]
        number = NAMES.index(deaf) + 1

        def tear() -> None:
            for other in {1, 2, 3} - {number}:
                self.wires.cut(other, [number])

        rest = sorted({*NAMES[:COUNT]} - {deaf})
        self.goes(tear, lambda: self.each_side_leads(rest), TORN_SEEN_S)

    def test_a_third_is_lost(self) -> None:
        """TCP makes up for it: somebody leads all the time, and afterwards one."""
        self.bad(loss=0.3)

    def test_up_to_a_second_late(self) -> None:
        """Packets overtake each other; the lead does not go to and fro."""
        self.bad(jitter_s=1.0)

    def tearDown(self) -> None:
        self.wires.heal()
        if self._testMethodName == "test_up_to_a_second_late":
            end_shared()

    def bad(self, **how: float) -> None:
        visitor = self.visitors()
        self.wires.worsen(**how)
        ends_s = time.monotonic() + BAD_S
        followed: set[str] = set()
        while time.monotonic() < ends_s:
            leaders = self.leaders()
            followed |= set(leaders.values())
            self.assertTrue(any(leaders.values()), "nobody leads")
            time.sleep(1)
        self.wires.heal()
        healed_s = self.wait_one(ONE_LEADER_S)
        self.say(f"followed were {sorted(followed)}, one leader {healed_s:.1f} s after healing")
        self.fine(visitor.stop(), gap=GAP_S, least=0.99)
