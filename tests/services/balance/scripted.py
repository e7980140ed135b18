"""What a whole node of a test has around it: a head that says what it is to say, a tor, directories that all share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from blake3 import blake3
from twisted.internet.task import Clock

from ron.proto.balance import HeadDescriptor, HeadReport
from ron.proto.errors import unavailable
from ron.tor.descriptor.exchange import Posted
from ron.tor.descriptor.hashring import HsDir, Ring
from ron.tor.descriptor.intropoints import read_backend
from ron.tor.onionkeys import new_key
from tests.services.balance.publishing.samples import NOW_S, FakeNetwork, points, ring_with, told

NAMES = "abcde"


class ScriptedHead:
    """`ports.Head`. shown: what it reports. siege, broke, renew: what happens to it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._key = new_key()
        self._revision = 0
        self._observers: list[Callable[[], None]] = []
        self.served: list[bool] = []
        self.masters: list[list[str]] = []
        self.text: HeadDescriptor | None = None
        self.shown = HeadReport(mode="starting")
        self.renew()

    def renew(self) -> None:
        """Another descriptor of the same onion."""
        self._revision += 1
        self.text = told(self._key, points(self._name), self._revision)
        self.say(mode="serving", healthy=True, onion=self.text.onion, descriptor=_digest(self.text))

    def broken(self, mode: Any = "down") -> None:
        """Its tor, or its target, has gone."""
        self.say(mode=mode, healthy=False)

    def say(self, **report: Any) -> None:
        """Its report changes."""
        self.shown = msgspec.structs.replace(self.shown, **report)
        for heard in self._observers:
            heard()

    def report(self) -> HeadReport:
        return self.shown

    def descriptor(self) -> HeadDescriptor | None:
        return self.text if self.shown.mode in ("serving", "ghost") else None

    def serve(self) -> None:
        self._go(True)

    def ghost(self) -> None:
        self._go(False)

    def _go(self, serving: bool) -> None:
        if not self.served or self.served[-1] is not serving:
            self.served.append(serving)
        if self.shown.mode == ("ghost" if serving else "serving"):
            self.say(mode="serving" if serving else "ghost")

    def on_change(self, heard: Callable[[], None]) -> None:
        self._observers.append(heard)


class Net:
    """Directories that all nodes share, and the consensus. Each onion's are a `FakeNetwork`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ring: Ring = ring_with(*(point for name in NAMES for point in points(name)))
        self.tors: list[NodeTor] = []
        self._onions: dict[str, FakeNetwork] = {}

    def of(self, onion: str) -> FakeNetwork:
        """Those of one address."""
        if onion not in self._onions:
            self._onions[onion] = FakeNetwork(self.clock, self.ring, onion)
        return self._onions[onion]

    def consensus(self, ring: Ring) -> None:
        """Another one, for all."""
        self.ring = ring
        for network in self._onions.values():
            network.now_ring = ring
        for tor in self.tors:
            tor.arrived()

    def heads(self, onion: str) -> list[frozenset[str]]:
        """Whose introduction points each directory has, of the period that clients ask for: as a client reads them."""
        period = self.ring.time.asked_for().period
        owners = {point.auth_key: name for name in NAMES for point in points(name)}
        found = []
        for text in self.of(onion).holding(period).values():
            read = read_backend(text, onion, (period,), NOW_S)
            found.append(frozenset(owners[point.auth_key] for point in read.points))
        return found


class NodeTor:
    """`Directories` as one node's tor reaches them. silent: it has gone. defect: raised when it is to post."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.silent = False
        self.arrived: Callable[[], None] = lambda: None
        self.posted = 0
        self.defect: Exception | None = None
        net.tors.append(self)

    async def consensus_time(self) -> str:
        self._there()
        return str(self.net.ring.time.valid_after_s)

    async def on_consensus(self, arrived: Callable[[], None]) -> None:
        self._there()
        self.arrived = arrived

    async def ring(self, *, testing: bool) -> Ring:
        self._there()
        return self.net.ring

    async def fetch(self, onion: str, directory: HsDir | None = None) -> str:
        self._there()
        return await self.net.of(onion).fetch(onion, directory)

    async def post(
        self, onion: str, dealt: Mapping[str, Sequence[HsDir]], taken: Callable[[str], None] = lambda fingerprint: None
    ) -> Posted:
        self._there()
        self.posted += 1
        if self.defect is not None:
            raise self.defect
        return await self.net.of(onion).post(onion, dealt, taken)

    def _there(self) -> None:
        if self.silent:
            raise unavailable("tor does not answer")


def _digest(descriptor: HeadDescriptor) -> str:
    return blake3(descriptor.text.encode()).hexdigest()
