"""A cluster whose mesh is torn, one-eared, lossy or slow, and visitors who must not notice.

Needs tor, root, /dev/net/tun. Each node's mesh is in a network namespace; its tors are on the host's one private network.
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
    cluster.start()
    cluster.add_service()
    return cluster


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
        """Has every side one leader of its own, whose descriptor lists the heads of its side and no others?"""
        views = self.views()
        for side in sides:
            said = {views[name]["leader"]["name"] if views[name] else None for name in side}
            leader = said.pop()
            if said or leader not in side:
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
        print(f"torn after {torn_s:.1f} s, one leader {healed_s:.1f} s after healing")
        self.fine(visitor.stop(), gap=GAP_S, least=0.99)

    def test_two_sides(self) -> None:
        """A|B: whoever led goes on on its side, the other side finds a leader; after it the elder leads alone."""
        self.goes(
            lambda: self.wires.split([1], [2, 3]),
            lambda: self.each_side_leads(["alpha"], ["beta", "gamma"]),
            15,
        )
