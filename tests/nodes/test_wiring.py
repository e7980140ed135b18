"""What a node tells a child: whole, with descriptors, over a socket pair; damaged words and strangers are refused."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from ron.nodes import wiring as module
from ron.nodes.wiring import VARIABLE, Wiring, environment, give, is_spare, take
from ron.proto.errors import RonError
from ron.services.configs import NodeConfig

EXAMPLE = Wiring(
    process="gateway.1",
    part="gateway",
    bus="/run/bus.sock",
    word="0123",
    run="/run",
    config=NodeConfig(),
    listeners=("gateway", "gateway-tls"),
    addresses={"gateway": "127.0.0.1:9080", "mailbox": "[::1]:9410"},
)


class WiringTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.addCleanup(self.ours.close)
        self.patch(module, "DESCRIPTOR", theirs.detach())  # `take` closes it
        self.patch(os, "environ", {**os.environ, **environment(spare=False)})

    def descriptors(self, count: int) -> list[int]:
        pairs = [os.pipe() for _ in range(count)]
        for ends in pairs:
            for end in ends:
                self.addCleanup(os.close, end)
        return [reading for reading, _writing in pairs]

    def refused(self) -> str:
        return self.assertRaises(RonError, take).message

    def test_a_person_who_starts_a_child_is_told(self) -> None:
        self.patch(os, "environ", {})
        error = self.assertRaises(RonError, take)
        self.assertIn("twistd -n ron-node", error.hint or "")
        os.close(module.DESCRIPTOR)

    def test_without_the_socket_pair(self) -> None:
        os.close(module.DESCRIPTOR)
        self.assertIn("started by the node itself", self.refused())

    def test_a_node_that_goes_away_ends_the_child(self) -> None:
        self.ours.close()
        self.assertRaises(SystemExit, take)

    def test_a_node_that_goes_away_in_the_middle(self) -> None:
        self.ours.sendall(struct.pack(">I", 1000) + b"{")
        self.ours.close()
        self.assertRaises(SystemExit, take)

    def test_damaged_words(self) -> None:
        raw = msgspec.json.encode(msgspec.to_builtins(EXAMPLE) | {"surprise": 1})
        self.ours.sendall(struct.pack(">I", len(raw)) + raw)
        self.assertIn("damaged", self.refused())

    def test_fewer_descriptors_than_listeners(self) -> None:
        give(self.ours, EXAMPLE, self.descriptors(1))
        self.assertIn("damaged", self.refused())

    def test_it_arrives_whole(self) -> None:
        given = self.descriptors(2)
        give(self.ours, EXAMPLE, given)
        wiring, taken = take()
        self.assertEqual(wiring, EXAMPLE)
        self.assertEqual(list(taken), ["gateway", "gateway-tls"])
        for mine, theirs in zip(given, taken.values(), strict=True):
            self.assertNotEqual(mine, theirs)
            self.assertTrue(os.path.sameopenfile(mine, theirs))
            os.close(theirs)
        self.assertEqual(wiring.host_ports()["mailbox"].host, "::1")
        self.assertEqual(wiring.bus_path, Path("/run/bus.sock"))

    def test_a_long_one_in_pieces(self) -> None:
        long = msgspec.structs.replace(EXAMPLE, listeners=(), addresses={f"n{i}": "127.0.0.1:1" for i in range(4000)})
        give(self.ours, long, [])
        self.assertEqual(take()[0], long)

    def test_spares_know_what_they_are(self) -> None:
        self.assertFalse(is_spare())
        self.patch(os, "environ", environment(spare=True))
        self.assertTrue(is_spare())
        os.close(module.DESCRIPTOR)


class StartedByAPersonTests(SynchronousTestCase):
    def test_one_line_and_an_exit_code(self) -> None:
        twistd = str(Path(sys.executable).with_name("twistd"))
        clean = {k: v for k, v in os.environ.items() if k != VARIABLE}
        done = subprocess.run(
            [twistd, "-n", "--pidfile=", "ron-service"], env=clean, capture_output=True, text=True, timeout=60
        )
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertIn("started by the node itself", done.stderr)
