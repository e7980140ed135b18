"""What the tests of publishing begin with: a network, heads on its relays, a master key, directories that remember."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from ron.proto.balance import HeadDescriptor
from ron.proto.errors import ErrorCode, RonError, not_found
from ron.tor.descriptor.build import build
from ron.tor.descriptor.exchange import Posted
from ron.tor.descriptor.hashring import HsDir, Ring
from ron.tor.descriptor.intropoints import Backend, IntroPoint, read_revision, relay_of
from ron.tor.descriptor.periods import NetworkTime
from ron.tor.onionkeys import OnionKey, address_of, new_key
from tests.tor.descriptor.samples import NOW_S as RECORDED_S
from tests.tor.descriptor.samples import descriptor_key, intro_point, key_of

INTERVAL_S = 20
TIME = NetworkTime(valid_after_s=int(RECORDED_S) // INTERVAL_S * INTERVAL_S, interval_s=INTERVAL_S, testing=True)
# in the middle of a run, so that the period before is over for everybody
TIME = msgspec.structs.replace(TIME, valid_after_s=TIME.run_start_s + 6 * INTERVAL_S)
NOW_S = TIME.valid_after_s + 5.0
OLDER, NEWER = (due.period for due in TIME.due())
EXPIRES_H = int(NOW_S) // 3600 + 40
MASTER = key_of("master")
ONION = address_of(MASTER)


def directories(count: int) -> tuple[HsDir, ...]:
    """Another one for each number."""
    digests = [hashlib.sha256(f"directory {number}".encode()).digest() for number in range(count)]
    return tuple(HsDir(fingerprint=digest[:20].hex().upper(), identity=digest) for digest in digests)


def point(name: str, expires_h: int = EXPIRES_H) -> IntroPoint:
    return intro_point(name, expires_h)


def points(head: str, count: int = 3) -> tuple[IntroPoint, ...]:
    return tuple(point(f"{head} {number}") for number in range(count))


def ring_with(*known: IntroPoint, count: int = 5, time: NetworkTime = TIME) -> Ring:
    """A network of `count` directories, and the relays of `known`."""
    nodes = directories(count)
    relays = {node.fingerprint: node.identity for node in nodes}
    return Ring(time=time, directories=nodes, relays={**relays, **dict(map(relay_of, known))})


def backend(head: str, count: int = 3, revision: int = 1, **changed: Any) -> Backend:
    made = Backend(onion=address_of(new_key()), period=OLDER, revision=revision, points=points(head, count))
    return msgspec.structs.replace(made, **changed)


def told(key: OnionKey, those: Sequence[IntroPoint], revision: int = 1, period: Any = OLDER) -> HeadDescriptor:
    """A head's descriptor as its tor would have written it."""
    return HeadDescriptor(onion=address_of(key), text=build(descriptor_key(key, period), those, revision))


class Inline:
    """`Threads` without any."""

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)


class Later:
    """`Threads` whose work is done when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        done: Deferred[Any] = Deferred()

        def work() -> None:
            try:
                done.callback(function(*args, **kwargs))
            except RonError:
                done.errback(Failure())

        self.waiting.append(work)
        return await done

    def work(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


class FakeNetwork:
    """`Directories` that keep what they are given as tor's do: one text a period, and only with a higher counter.

    latency_s: of every answer. down: these answer nothing. refusing: these refuse all. lazy: say yes, and keep nothing.
    """

    def __init__(self, clock: Clock, ring: Ring, onion: str = ONION) -> None:
        self.clock = clock
        self.now_ring = ring
        self.latency_s = 0.1
        self.down: set[str] = set()
        self.refusing: set[str] = set()
        self.lazy: set[str] = set()
        self.silent = False
        self.kept: dict[tuple[str, int], tuple[int, str]] = {}
        self.posts: list[Mapping[str, Sequence[HsDir]]] = []
        self.fetches: list[str] = []
        self.rings = 0
        self.arrived: Callable[[], None] = lambda: None
        self._onion = onion

    async def consensus_time(self) -> str:
        return str(self._tor().time.valid_after_s)

    async def on_consensus(self, arrived: Callable[[], None]) -> None:
        self.arrived = arrived

    async def ring(self, *, testing: bool) -> Ring:
        ring = self._tor()
        self.rings += 1
        await self.later()
        return ring

    async def fetch(self, onion: str, directory: HsDir | None = None) -> str:
        ring = self._tor()
        assert directory is not None
        assert onion == self._onion
        self.fetches.append(directory.fingerprint)
        if directory.fingerprint in self.down:
            await self.later(30.0)
            raise RonError(ErrorCode.TIMEOUT, "no directory answered")
        await self.later()
        kept = self.kept.get((directory.fingerprint, ring.time.asked_for().period.number))
        if kept is None:
            raise not_found("that directory has no descriptor of the address")
        return kept[1]

    async def post(
        self,
        onion: str,
        dealt: Mapping[str, Sequence[HsDir]],
        taken: Callable[[str], None] = lambda fingerprint: None,
    ) -> Posted:
        self._tor()
        assert onion == self._onion
        self.posts.append(dealt)
        await self.later()
        took, refused, silent = set(), set(), set()
        for text, those in dealt.items():
            for name in (node.fingerprint for node in those):
                if name in self.down:
                    silent.add(name)
                elif self._takes(name, text):
                    took.add(name)
                    taken(name)
                else:
                    refused.add(name)
        if silent:
            await self.later(30.0)
        return Posted(frozenset(took), frozenset(refused), frozenset(silent))

    def put(self, fingerprint: str, text: str) -> None:
        """There by another's hand."""
        assert self._takes(fingerprint, text)

    def _takes(self, name: str, text: str) -> bool:
        due = [due.period for due in self.now_ring.time.due()]
        period, revision = read_revision(text, self._onion, (due[0].shifted(-1), *due, due[1].shifted(1)), NOW_S)
        had = self.kept.get((name, period.number), (-1, ""))[0]
        if name in self.refusing or revision <= had:
            return False
        if name not in self.lazy:
            self.kept[name, period.number] = revision, text
        return True

    def holding(self, period: Any) -> dict[str, str]:
        return {name: text for (name, number), (_, text) in self.kept.items() if number == period.number}

    def _tor(self) -> Ring:
        if self.silent:
            raise RonError(ErrorCode.STORE_UNAVAILABLE, "tor does not answer")
        return self.now_ring

    def later(self, seconds: float | None = None) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self.clock.callLater(self.latency_s if seconds is None else seconds, done.callback, None)
        return done
