"""What the tests of a cluster's faults share: one cluster for several, how its nodes see it, visitors all the while.

In: how to make a cluster. Out: a base for tests.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.python import log
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.files import write_private
from ron.tor.onionkeys import OnionKey, address_of
from tests.live.cluster import SERVICE, Cluster
from tests.live.onionwork import local_app
from tests.live.support import until
from tests.live.visits import Visit, Visitor, gap_s, share, told

# What tor's hs_ed25519_secret_key begins with.
TOR_HEADER = b"== ed25519v1-secret: type0 ==".ljust(32, b"\x00")
# A file to which measured figures are added; without it they are in trial's log alone.
FIGURES = os.environ.get("TEST_FIGURES")
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


def also(service: str, port: int) -> str:
    """Config of another address. Something answers at its own port, or the heads would be taken for broken; visitors
    come to port 80 of any address."""
    where = local_app()
    return f'[[balance.services]]\nname = "{service}"\nports = ["{port}:{where}"]\n'


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

    def service(self, node: str, service: str = SERVICE) -> dict[str, Any]:
        """As that node sees it; empty when it does not answer."""
        found = self.cluster.node(node).seen().get("services", ())
        return next((one for one in found if one["name"] == service), {})

    def publications(self, node: str, service: str = SERVICE) -> list[dict[str, Any]]:
        """What has been published, by what that node knows; the newest period first."""
        return list(self.service(node, service).get("publications", ()))

    def holders(self, service: str = SERVICE) -> set[str]:
        """Who has the key or a share, by whom all follow; empty while they do not agree."""
        leader = self.cluster.leader()
        return set(self.service(leader.name, service).get("holders", ())) if leader is not None else set()

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

    def imports(self, service: str, key: OnionKey) -> tuple[str, Path]:
        """An operator gives the cluster this key, as a tor keeps it; its onion, and the file it came from."""
        path = self.cluster.folder / f"{service}.key"
        write_private(path, TOR_HEADER + base64.b64decode(key.blob.removeprefix("ED25519-V3:")))
        said = self.cluster.wait_leader().ok("balance", "service", "import", service, "--key", str(path), "--yes")
        onion = address_of(key)
        self.assertEqual(said.split()[-1].removesuffix(".onion"), onion.removesuffix(".onion"))
        self.cluster.onions[service] = onion
        return onion, path

    def say(self, words: str) -> None:
        """A figure, for whoever reads the test's log."""
        log.msg(f"{self.id().rpartition('.')[2]}: {words}")
        if FIGURES:
            with Path(FIGURES).open("a") as figures:
                figures.write(f"{self.id().rpartition('.')[2]}: {words}\n")

    def fine(self, visits: list[Visit], *, gap: float, least: float) -> None:
        """Visitors: never longer than `gap` seconds without one that came through, and at least so many did."""
        how = f"visits {told(visits)}"
        self.say(how)
        self.assertTrue(gap_s(visits) <= gap and share(visits) >= least, how)
