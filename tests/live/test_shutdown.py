"""How a node ends: the first Ctrl-C drains, the second is immediate; what had to be cut off shows in the exit code."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from urllib.parse import urlsplit

from twisted.trial.unittest import SynchronousTestCase

from tests.live.support import NO_TOR, alive, new_node, process_tree, until


class EndTests(SynchronousTestCase):
    """Each with a node of its own."""

    skip = NO_TOR

    def test_a_call_under_way_is_cut_off_at_the_deadline_and_counted(self) -> None:
        node = new_node("[shutdown]\ndrain_s = 1\n")
        self.addCleanup(node.destroy)
        node.start()
        url = urlsplit(node.facts()["mailbox_url"])
        with socket.create_connection((url.hostname, url.port), timeout=20) as stuck:
            # a body that never comes: the call cannot be finished, whatever the node does
            stuck.sendall(b"POST /v1/send HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
            time.sleep(0.5)
            self.assertEqual(node.stop(signal.SIGTERM), 9, node.output.read_text())
            # closed or reset, as the system sees fit: not left hanging
            with contextlib.suppress(ConnectionResetError):
                self.assertEqual(stuck.recv(1000), b"")
        self.assertEqual(process_tree(str(node.home)), [])

    def test_the_second_ctrl_c_is_immediate(self) -> None:
        node = new_node("[shutdown]\ndrain_s = 60\n")
        self.addCleanup(node.destroy)
        node.start()
        pids = node.facts()["pids"]
        url = urlsplit(node.facts()["mailbox_url"])
        with socket.create_connection((url.hostname, url.port), timeout=20) as stuck:
            stuck.sendall(b"POST /v1/send HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
            time.sleep(0.5)
            node.send(signal.SIGINT)
            time.sleep(1)
            self.assertTrue(alive(node.pid), "the first one drains")
            started = time.monotonic()
            node.send(signal.SIGINT)
            self.assertEqual(node.wait(), 130)
            self.assertLess(time.monotonic() - started, 5)
        until(lambda: not any(alive(pid) for pid in pids.values()), 10, "the tors going with their node")
