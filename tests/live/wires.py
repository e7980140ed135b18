"""Wires between nodes that can be cut one way, lose packets and delay them: each node's mesh has a network namespace.

In: how many nodes, which wires are bad. Out: addresses, and the environment that puts a daemon's mesh there; its tors
and its control stay on the host's own loopback. Every packet goes through this process, so no kernel module is needed.
Needs root and /dev/net/tun.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from itertools import count, permutations
from pathlib import Path

_TUNSETIFF, _TUN, _BARE = 0x400454CA, 0x0001, 0x1000
_MTU = 1500
# Where a daemon's sockets belong that are bound to, or connect to, an address of the wires. A socket is in the
# namespace in which it was made, so it is made anew there and takes the other's place; once, Twisted connects twice.
_SITE = """import ctypes, os, socket, weakref
_there_already = weakref.WeakSet()
_libc = ctypes.CDLL(None, use_errno=True)
_here, _there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open({space!r}, os.O_RDONLY)
def _moved(method):
    def call(self, address):
        wired = self.family == socket.AF_INET and str(address[0]).startswith({prefix!r})
        if wired and self not in _there_already:
            _there_already.add(self)
            if _libc.setns(_there, 0):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                new = socket.socket(self.family, self.type, self.proto)
            finally:
                _libc.setns(_here, 0)
            new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            os.set_blocking(new.fileno(), os.get_blocking(self.fileno()))
            os.dup2(new.fileno(), self.fileno(), inheritable=False)
            new.close()
        return method(self, address)
    return call
for _name in ("bind", "connect", "connect_ex"):
    setattr(socket.socket, _name, _moved(getattr(socket.socket, _name)))
"""


class Wire:
    """One way from one node to another. loss: the share that gets lost. jitter_s: each packet is late by up to that."""

    def __init__(self) -> None:
        self.cut = False
        self.loss = 0.0
        self.jitter_s = 0.0


class Wires:
    """Between `nodes` nodes, numbered from 1. Gone, with their namespaces, after `destroy`."""

    _tags = count()

    def __init__(self, nodes: int, seed: int = 0) -> None:
        self._tag = f"rw{os.getpid() % 100000}-{next(self._tags)}"
        self._network = f"10.{random.SystemRandom().randrange(100, 200)}.0."
        self._random = random.Random(seed)
        self._ways = {pair: Wire() for pair in permutations(range(1, nodes + 1), 2)}
        self._late: list[tuple[float, int, int, bytes]] = []
        self._numbers = count()
        self._folder = Path(tempfile.mkdtemp(prefix="ron-wires-"))
        self.carried = 0
        self.lost = 0
        self._ends: dict[int, int] = {}
        self._stop, self._stopper = os.pipe()
        atexit.register(self.destroy)
        for number in range(1, nodes + 1):
            self._ends[number] = self._end(number)
        self._carrier = threading.Thread(target=self._carry, daemon=True)
        self._carrier.start()

    def address(self, number: int) -> str:
        """Of node `number`, on the wires."""
        return f"{self._network}{number}"

    def environment(self, number: int) -> dict[str, str]:
        """What a daemon's environment is to have so that its mesh is at `address(number)`."""
        already = os.environ.get("PYTHONPATH")
        return {"PYTHONPATH": os.pathsep.join(filter(None, [str(self._folder / str(number)), already]))}

    # How bad they are

    def heal(self) -> None:
        """All whole, at once."""
        for wire in self._ways.values():
            wire.cut, wire.loss, wire.jitter_s = False, 0.0, 0.0

    def split(self, *sides: Sequence[int]) -> None:
        """Nothing gets from one side to another."""
        side = {number: which for which, numbers in enumerate(sides) for number in numbers}
        for (sender, receiver), wire in self._ways.items():
            wire.cut = side[sender] != side[receiver]

    def cut(self, sender: int, receivers: Iterable[int]) -> None:
        """Nothing gets from `sender` to those; the other way round it does."""
        for receiver in receivers:
            self._ways[sender, receiver].cut = True

    def worsen(self, *, loss: float = 0.0, jitter_s: float = 0.0) -> None:
        """All of them."""
        for wire in self._ways.values():
            wire.loss, wire.jitter_s = loss, jitter_s

    def destroy(self) -> None:
        """End the carrying, remove the namespaces."""
        if not self._ends:
            return
        os.write(self._stopper, b"x")
        self._carrier.join(5)
        for number, end in self._ends.items():
            os.close(end)
            subprocess.run(["ip", "netns", "delete", self._space(number)], check=False, capture_output=True)
        self._ends.clear()
        for pipe in (self._stop, self._stopper):
            os.close(pipe)
        shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.destroy)

    # Within

    def _space(self, number: int) -> str:
        return f"{self._tag}-{number}"

    def _end(self, number: int) -> int:
        """This process's end of a node's wires."""
        space, device = self._space(number), f"w{os.getpid() % 100000}n{number}"
        end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _TUN | _BARE))
        for command in (
            ["ip", "netns", "add", space],
            ["ip", "link", "set", device, "netns", space],
            ["ip", "-n", space, "address", "add", f"{self.address(number)}/24", "dev", device],
            ["ip", "-n", space, "link", "set", "lo", "up"],
            ["ip", "-n", space, "link", "set", device, "mtu", str(_MTU), "up"],
        ):
            subprocess.run(command, check=True, capture_output=True)
        site = self._folder / str(number)
        site.mkdir()
        (site / "sitecustomize.py").write_text(_SITE.format(space=f"/run/netns/{space}", prefix=self._network))
        return end

    def _carry(self) -> None:
        numbers = {end: number for number, end in self._ends.items()}
        while True:
            wait_s = max(0.0, self._late[0][0] - time.monotonic()) if self._late else None
            ready, _, _ = select.select([self._stop, *numbers], [], [], wait_s)
            if self._stop in ready:
                return
            for end in ready:
                with contextlib.suppress(BlockingIOError):
                    self._take(numbers[end], os.read(end, _MTU))
            while self._late and self._late[0][0] <= time.monotonic():
                _, _, receiver, packet = heapq.heappop(self._late)
                self._give(receiver, packet)

    def _take(self, sender: int, packet: bytes) -> None:
        wire = self._ways.get((sender, packet[19])) if packet[0] >> 4 == 4 else None
        if wire is None:
            return
        if wire.cut or self._random.random() < wire.loss:
            self.lost += 1
        elif wire.jitter_s:
            due_s = time.monotonic() + self._random.uniform(0, wire.jitter_s)
            heapq.heappush(self._late, (due_s, next(self._numbers), packet[19], packet))
        else:
            self._give(packet[19], packet)

    def _give(self, receiver: int, packet: bytes) -> None:
        self.carried += 1
        with contextlib.suppress(OSError):
            os.write(self._ends[receiver], packet)
