"""More visitors than an onion lets in: tor asks them for work, and our metric and `/metrics` say so. Needs tor.

tor looks at its queue every 300 s, and only then raises the effort; so the flood lasts that long.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
import uuid
from collections import deque

from twisted.trial.unittest import SynchronousTestCase

from tests.live.onionwork import OnionWork, oniond
from tests.live.support import NO_TOR, until

# tor's HS_UPDATE_PERIOD, a look at the descriptor of ours (every 30 s at most), and room.
PATIENCE_S = 300 + 30 + 120
VISITS_S = 5.0
# So long a visitor waits before it gives up and another comes.
STAYS_S = 20.0


class Flood:
    """Visitors of `onion` through the client tor, each on a circuit of its own, until the end of the `with`."""

    def __init__(self, work: OnionWork, onion: str) -> None:
        self.came = 0
        self._port, self._onion = work.socks_port(), onion.encode()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._come)

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join(STAYS_S)

    def _come(self) -> None:
        there: deque[tuple[float, socket.socket]] = deque()
        while not self._over.wait(1 / VISITS_S):
            with contextlib.suppress(OSError):  # the tor has its hands full
                there.append((time.monotonic(), self._visitor()))
                self.came += 1
            while there and time.monotonic() - there[0][0] > STAYS_S:
                there.popleft()[1].close()
        for _came, visitor in there:
            visitor.close()

    def _visitor(self) -> socket.socket:
        """A SOCKS request (RFC 1928, 1929) that is sent and not waited for."""
        name = uuid.uuid4().hex.encode()
        visitor = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        for request, answer in (
            (b"\x05\x01\x02", b"\x05\x02"),
            (b"\x01" + bytes([len(name)]) + name + b"\x01x", b"\x01\x00"),
        ):
            visitor.sendall(request)
            if visitor.recv(2) != answer:
                visitor.close()
                raise OSError("this is no SOCKS port of ours")
        visitor.sendall(b"\x05\x01\x00\x03" + bytes([len(self._onion)]) + self._onion + b"\x00\x50")
        return visitor


class WorkAsked(SynchronousTestCase):
    """One onion in a flood, another beside it."""

    skip = NO_TOR

    def setUp(self) -> None:
        self.work = oniond()
        self.addCleanup(self.work.end)
        self.work.daemon.start()

    def effort(self, app: str) -> float | None:
        text = self.work.call("GET", "/metrics").body.decode()
        match = re.search(rf'^onion_pow_effort{{app="{app}"}} (\S+)$', text, re.MULTILINE)
        return float(match[1]) if match else None

    def test_a_flood_raises_the_effort_of_its_onion_alone(self) -> None:
        pow_ = {"enabled": True, "queue_rate": 1, "queue_burst": 1}
        flooded, quiet = self.work.create("flooded", pow=pow_), self.work.create("quiet", pow=pow_)
        until(lambda: {self.effort("flooded"), self.effort("quiet")} == {0.0}, 60, "the effort of both being known")
        self.assertIsNone(self.effort("wiki"), "an app without proof of work has none")
        with Flood(self.work, flooded["onion"]) as flood:
            until(lambda: (self.effort("flooded") or 0) > 0, PATIENCE_S, "visitors of the flooded onion having to work")
            self.assertEqual(self.effort("quiet"), 0.0)
            # a visitor who works is let in before those who do not
            until(lambda: self.work.reachable(flooded["onion"]), 120, "a working visitor getting in")
        self.assertGreater(flood.came, 100)
        until(lambda: self.work.reachable(quiet["onion"]), 60, "the other onion being reachable")
