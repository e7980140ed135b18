"""Two, five and ten heads: how long a publication takes, and how large the descriptor is.

In: how often. Out: milliseconds from the order until one directory, and until all have what clients ask for. The heads
are onions of one plain tor; the publisher is the service's own, on a tor of its own, in a process of its own
(`python -m bench.balance_heads NETWORK FOLDER RUNS`), for a process has one reactor.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet import endpoints
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react
from txtorcon import build_tor_connection

from bench import harness
from bench.balance_tor import PlainTor
from ron.kernel import Metrics
from ron.proto.balance import HeadDescriptor
from ron.services.balance.publishing.outside import Figures
from ron.services.balance.publishing.publisher import Master, Publication
from ron.services.balance.publishing.room import Publishing
from ron.tor.descriptor.blinding import KeySigner
from ron.tor.descriptor.exchange import Exchange
from ron.tor.onionkeys import address_of, new_key
from tests.live.cluster import network_down, network_up

COUNTS = (2, 5, 10)
POINTS = 3
PATIENCE_S = 120.0


def measure(runs: int) -> dict[str, Any]:
    """With a network of its own."""
    with harness.scratch() as folder:
        try:
            network_up(folder / "net")
            words = [sys.executable, "-m", "bench.balance_heads", str(folder / "net"), str(folder), str(runs)]
            done = subprocess.run(words, cwd=harness.ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"the publisher ended with {done.returncode}: {done.stderr[-2000:]}")
            return {"by_count": json.loads(done.stdout.splitlines()[-1])}
        finally:
            network_down(folder / "net")


class _Bench:
    """One publisher and all heads; each count publishes some of them."""

    def __init__(self, reactor: Any, tornet: Path, folder: Path, runs: int) -> None:
        self._reactor = reactor
        self._runs = runs
        self._key = new_key()
        self._master = Master(name="main", onion=address_of(self._key))
        self._heads = PlainTor(tornet, folder / "heads", [self._master.onion] * max(COUNTS))
        self._outside = PlainTor(tornet, folder / "outside")
        self._room = Publishing(
            reactor,
            testing=True,
            tie=random.randrange(1000),
            signer=lambda service: KeySigner(self._key),
            holds=lambda: ["main"],
            ask=lambda service, why: None,
            every_s=lambda: 3600.0,
            figures=Figures(Metrics()),
        )

    async def run(self) -> dict[str, Any]:
        """Every count in turn."""
        self._room.start()
        try:
            where = endpoints.TCP4ClientEndpoint(self._reactor, "127.0.0.1", self._outside.control_port)
            exchange = Exchange(self._reactor, await build_tor_connection(where, build_state=False))
            await exchange.open()
            await self._room.attach(exchange)
            names = await self._offer()
            return {str(count): await self._publish(names[:count]) for count in COUNTS}
        finally:
            self._room.stop()
            self._heads.end()
            self._outside.end()

    async def _offer(self) -> list[str]:
        """Every head's descriptor, once all its introduction points are in it."""
        onions = self._heads.onions()
        names = [f"head{number}" for number in range(len(onions))]
        deadline = self._reactor.seconds() + PATIENCE_S
        while any(len(getattr(self._room.shelf.newest(name), "points", ())) < POINTS for name in names):
            if self._reactor.seconds() > deadline:
                raise RuntimeError("not all heads have their introduction points")
            texts = self._heads.own_descriptors()
            for name, onion in zip(names, onions, strict=True):
                if onion in texts:
                    self._room.offer(name, HeadDescriptor(onion=onion, text=texts[onion]))
            await deferLater(self._reactor, 0.5)
        return names

    async def _publish(self, names: Sequence[str]) -> dict[str, Any]:
        done: list[Publication] = []
        for turn in range(self._runs + 1):
            done.append(await self._room.publish(self._master, names, turn))
            await deferLater(self._reactor, 0.2)
        # the first one had its keys to make
        counted = [one for one in done[1:] if one.first_s is not None]
        placed = [one.placed[0] for one in counted]
        sizes = [len(text) for one in placed for text, _ in one.dealt]
        return {
            "first_ms": harness.spread([one.first_s * 1000 for one in counted if one.first_s is not None]),
            "all_ms": harness.spread([one.whole_s * 1000 for one in counted]),
            "failed": self._runs - len(counted),
            "bytes": max(sizes),
            "descriptors": max(len(one.dealt) for one in placed),
            "directories": max(len(one.texts) for one in placed),
            "heads_in_all_of_them": min(len(one.heads) for one in placed),
        }


def _child(reactor: Any, *words: str) -> Deferred[None]:
    tornet, folder, runs = words

    async def work() -> None:
        print(json.dumps(await _Bench(reactor, Path(tornet), Path(folder), int(runs)).run()))

    return Deferred.fromCoroutine(work())


if __name__ == "__main__":
    react(_child, sys.argv[1:])
