"""What the tests of a cluster's faults share: one cluster for several tests, how its nodes see it, visitors all the while.

In: how to make a cluster. Out: a base for tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.cluster import SERVICE, Cluster
from tests.live.support import until
from tests.live.visits import Visit, Visitor, gap_s, share, told

_shared: dict[str, Cluster] = {}


def once(name: str, make: Callable[[], Cluster]) -> Cluster:
    """What `make` gave the first time. Another one ends it: each has three processes a node and a Tor network."""
    if name not in _shared:
        end_shared()
        _shared[name] = make()
    return _shared[name]


def end_shared() -> None:
    """End what was started."""
    while _shared:
        _shared.popitem()[1].stop()


class ClusterCase(SynchronousTestCase):
    """Tests of `self.cluster`, each with visitors. The last of a class calls `end_shared`."""

    cluster: Cluster

    def visitors(self, onion: str = "", every_s: float = 0.25) -> Visitor:
        """From now to the test's end, at the first address unless said."""
        visitor = Visitor(self.cluster.client, onion or next(iter(self.cluster.onions.values())), every_s)
        self.addCleanup(visitor.stop)
        return visitor

    def views(self) -> dict[str, dict[str, Any]]:
        """Each running node's own; empty for one that does not answer."""
        return {node.name: node.seen() for node in self.cluster.alive()}

    def leaders(self) -> dict[str, str]:
        """Whom each node follows."""
        return {name: (view["leader"]["name"] or "") if view else "?" for name, view in self.views().items()}

    def is_one(self, service: str = SERVICE) -> bool:
        """Does everybody follow one who is alone in saying that it leads, and lists every running node?"""
        views = self.views()
        claims = {tuple(view["leader"]["claims"]) if view else () for view in views.values()}
        return len(claims) == 1 and len(claims.pop()) == 1 and self.cluster.heads(service) == set(views)

    def wait_one(self, timeout_s: float, service: str = SERVICE) -> float:
        """Until `is_one`; how long it took."""
        began_s = time.monotonic()
        try:
            until(lambda: self.is_one(service), timeout_s, "one leader")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.leaders()}, {self.cluster.heads(service)}") from None
        return time.monotonic() - began_s

    def fine(self, visits: list[Visit], *, gap: float, least: float) -> None:
        """Visitors: never longer than `gap` seconds without one that came through, and at least so many did."""
        how = f"{self.id().rpartition('.')[2]}: visits {told(visits)}"
        print(how)
        self.assertTrue(gap_s(visits) <= gap and share(visits) >= least, how)
