"""Heads that share their guards, on a network that is large enough for it. Needs tor; some fifty of them."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ron.services.balance.heads.guards import LAYER2_NODES, LAYER3_NODES, MIN_RELAYS, read_relays
from tests.live.cluster import Client, Cluster, Node, network_down, network_up, tell
from tests.live.relays import MoreRelays
from tests.live.support import NO_TOR, until

RELAYS = MIN_RELAYS + 2
WIDER_S = 300.0
# A node looks at once, when its tor has no consensus yet, and then every minute.
PINNED_S = 150.0


def told(node: Node, line: str) -> str:
    """What the tor of its head answers."""
    folder = node.home / "tornet-joined"
    return tell(folder / "head", json.loads((folder / "ports.json").read_text())["head.control"], line)


def pinned(node: Node) -> tuple[frozenset[str], frozenset[str]]:
    """The layers that its head goes by: fingerprints."""
    text = told(node, "GETCONF HSLayer2Nodes HSLayer3Nodes")
    layers = (re.search(rf"HSLayer{number}Nodes=(.*)", text) for number in (2, 3))
    second, third = (frozenset(re.findall(r"\$([0-9A-F]{40})", layer[1] if layer else "")) for layer in layers)
    return second, third


def introductions(node: Node) -> list[list[str]]:
    """The paths of its introduction circuits: fingerprints, the guard first."""
    lines = told(node, "GETINFO circuit-status").splitlines()
    there = [line for line in lines if " BUILT " in line and "PURPOSE=HS_SERVICE_INTRO" in line]
    return [re.findall(r"\$([0-9A-F]{40})", line) for line in there]


class SharedGuards(SynchronousTestCase):
    skip = NO_TOR
    timeout = 900

    def setUp(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="ron-vanguards-"))
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        network = folder / "net"
        self.addCleanup(network_down, network)
        network_up(network)
        relays = MoreRelays(network, folder, RELAYS)
        self.addCleanup(relays.end)
        client = Client(network)
        # so many tors at once keep the machine busy until they all know each other
        until(lambda: len(read_relays(client.tell("GETINFO ns/all"))) >= MIN_RELAYS, WIDER_S, "a network large enough")
        (folder / "cluster").mkdir(mode=0o700)
        self.nodes = Cluster(folder / "cluster", nodes=3, network=network, balance="vanguards = true")
        self.addCleanup(self.nodes.stop)

    def same(self, wait_s: float = PINNED_S) -> tuple[frozenset[str], frozenset[str]]:
        """What all heads go by, once it is the same for all."""

        def agreed() -> Any:
            seen = {pinned(node) for node in self.nodes.alive()}
            return seen.pop() if len(seen) == 1 and all(next(iter(seen))) else None

        found: tuple[frozenset[str], frozenset[str]] = until(agreed, wait_s, "all heads having the same guards")
        return found

    def test_every_head_goes_by_one_set_also_when_its_leader_dies(self) -> None:
        self.nodes.start()
        second, third = self.same()
        self.assertEqual((len(second), len(third), second & third), (LAYER2_NODES, LAYER3_NODES, frozenset()))
        # an address made now has all its circuits made now
        self.nodes.add_service()
        for node in self.nodes.alive():
            paths = introductions(node)
            self.assertGreaterEqual(len(paths), 3, node.name)
            astray = [path for path in paths if path[1] not in second or path[2] not in third]
            self.assertEqual(astray, [], (node.name, paths, second, third))
        leader = self.nodes.wait_leader()
        leader.kill(tors=True)
        self.nodes.wait_leader()
        time.sleep(70)  # whoever leads now has looked once more
        self.assertEqual(self.same(), (second, third))
        until(self.nodes.reachable, 60, "a visitor getting in")
