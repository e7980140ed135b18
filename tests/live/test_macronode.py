"""A Macronode as its operator runs it: everything that a Micronode promises, and its end. Needs tor."""

from __future__ import annotations

import signal

from twisted.trial.unittest import SynchronousTestCase

from tests.live import test_node
from tests.live.runbooks import macronode
from tests.live.support import MACRONODE, NO_TOR, Daemon, alive, new_node, until


class KilledNodeTests(SynchronousTestCase):
    """`kill -9` of the node itself."""

    skip = NO_TOR

    def test_it_takes_its_children_with_it(self) -> None:
        node = new_node(MACRONODE)
        self.addCleanup(node.destroy)
        node.start()
        pids = node.facts()["pids"]
        node.stop(signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in pids.values()), 20, "every process ending")


class SharedMacronodeTests(test_node.SharedNodeTests):
    """Everything a Micronode promises while it is well, kept by a Macronode: the one that runbooks are rehearsed on."""

    processes = 9 + 5

    def running(self) -> Daemon:
        """Before anything is rehearsed on it."""
        return macronode()
