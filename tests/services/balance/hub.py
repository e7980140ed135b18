"""An in-memory mesh for tests of RustBalance's other rooms: `Mesh` of `ports.py` over a clock, with a network to break.

    hub = Hub(clock, seed=1)
    a, b = hub.node("a"), hub.node("b")
    hub.latency("a", "b", 0.2); hub.cut("a", "b"); hub.loss = 0.3
    hub.partition(["a"], ["b"]); hub.heal(); hub.kill("b")

What is sent is really encoded, and strictly decoded where it arrives. Messages arrive `clock.callLater` later, in
order on each ordered pair. A cut way swallows messages; the link itself is missed `SILENCE_S` later, as in the real
mesh, a killed node's at once. Every second nodes compare their books, wherever the way is open in both directions.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from blake3 import blake3
from nacl.signing import SigningKey
from twisted.internet.defer import Deferred

from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.services.balance.mesh.book import LocalBook
from ron.services.balance.mesh.codec import Unfit, encode
from ron.services.balance.mesh.entries import Entry, write
from ron.services.balance.mesh.handlers import Handlers, opened
from ron.services.balance.mesh.roster import member_of
from ron.services.balance.ports import Member, Peer

Body = TypeVar("Body", bound=msgspec.Struct)
Answer = TypeVar("Answer", bound=msgspec.Struct)
CLUSTER = b"hub " * 4
LATENCY_S = 0.001
SILENCE_S = 3.0
SYNC_S = 1.0


class HubNode:
    """One node's `Mesh`. alive: not killed. sent, dropped: messages, for assertions."""

    def __init__(self, hub: Hub, member: Member, book: LocalBook, seal_key: bytes) -> None:
        self.name = member.name
        self.me = member
        self.book = book
        self.seal_key = seal_key
        self.alive = True
        self.sent = 0
        self.dropped = 0
        self.heard_s: dict[str, float] = {}
        self.drift_s: dict[str, float] = {}
        self.handlers = Handlers()
        self._hub = hub

    def members(self) -> Mapping[str, Member]:
        """Those of the hub."""
        return {name: node.me for name, node in self._hub.nodes.items() if name not in self._hub.removed}

    def peers(self) -> Mapping[str, Peer]:
        """All but this one."""
        return {name: self._peer(name, member) for name, member in self.members().items() if name != self.name}

    def _peer(self, name: str, member: Member) -> Peer:
        return Peer(
            member=member,
            connected=self._hub.connected(self.name, name),
            heard_s=self.heard_s.get(name),
            drift_s=self.drift_s.get(name, 0.0),
            seal_key=self._hub.nodes[name].seal_key,
        )

    def broadcast(self, kind: str, body: msgspec.Struct) -> None:
        """To all."""
        for name in self.peers():
            self.send(name, kind, body)

    def send(self, to: str, kind: str, body: msgspec.Struct) -> None:
        """To one."""
        encoded = encode(body)
        if not self.alive or not self._hub.connected(self.name, to):
            self.dropped += 1
            return
        self.sent += 1
        self._hub.carry(self.name, to, lambda node: node.take(self.name, kind, encoded))

    def take(self, sender: str, kind: str, body: bytes) -> None:
        """A message has arrived."""
        self.heard_s[sender] = self._hub.clock.seconds()
        try:
            self.handlers.deliver(sender, kind, body)
        except Unfit as problem:
            self._hub.unfit.append((self.name, kind, str(problem)))

    async def call(
        self, to: str, kind: str, body: msgspec.Struct, answer: type[Answer], *, deadline_s: float
    ) -> Answer:
        """Ask one."""
        encoded = encode(body)
        if not self.alive or not self._hub.connected(self.name, to):
            raise unavailable(f"{to} is not connected")
        waiting: Deferred[bytes] = Deferred()
        late = self._hub.clock.callLater(deadline_s, _late, waiting, to, kind)

        def arrived(answered: bytes) -> None:
            if not waiting.called:
                waiting.callback(answered)

        self._hub.carry(self.name, to, lambda node: node.asked(self.name, kind, encoded, arrived))
        try:
            return opened(await waiting, answer)
        finally:
            if late.active():
                late.cancel()

    def asked(self, sender: str, kind: str, body: bytes, arrived: Callable[[bytes], None]) -> None:
        """A call has arrived."""
        self.heard_s[sender] = self._hub.clock.seconds()

        def reply(answered: bytes) -> None:
            if self.alive:
                self._hub.carry(self.name, sender, lambda _node: arrived(answered))

        Deferred.fromCoroutine(self.handlers.answer(sender, kind, body)).addCallback(reply)

    def listen(self, kind: str, shape: type[Body], handler: Callable[[str, Body], None]) -> None:
        """`Mesh.listen`."""
        self.handlers.listen(kind, shape, handler)

    def serve(self, kind: str, shape: type[Body], handler: Callable[[str, Body], Awaitable[msgspec.Struct]]) -> None:
        """`Mesh.serve`."""
        self.handlers.serve(kind, shape, handler)


class Hub:
    """The network between in-memory nodes. unfit: bodies that were refused, as (node, kind, why)."""

    def __init__(self, clock: Any, *, seed: int = 0, latency_s: float = LATENCY_S) -> None:
        self.clock = clock
        self.latency_s = latency_s
        self.loss = 0.0
        self.nodes: dict[str, HubNode] = {}
        self.removed: set[str] = set()
        self.unfit: list[tuple[str, str, str]] = []
        self._random = random.Random(seed)
        self._latencies: dict[tuple[str, str], float] = {}
        self._cut_at_s: dict[tuple[str, str], float] = {}
        self._free_at_s: dict[tuple[str, str], float] = {}
        clock.callLater(SYNC_S, self._compare_books)

    def node(self, name: str, *, seal_key: bytes = b"") -> HubNode:
        """A new node, connected to all. For the name of a killed one: it starts again, with its book only."""
        old = self.nodes.get(name)
        if old is not None and old.alive:
            raise AssertionError(f"{name} is running")
        entries = tuple(old.book.entries) if old is not None else ()
        book = LocalBook(CLUSTER, name, signing_key(name), entries, tell=lambda entry: self._spread(name, entry))
        node = HubNode(self, member(name), book, seal_key)
        self.nodes[name] = node
        self.removed.discard(name)
        # that all know all from the beginning is what the real mesh has joining for
        members = [_written_by_itself(each) for each in self.nodes]
        for each in self.nodes.values():
            each.book.take(members, vouched=True)
        return node

    def kill(self, name: str) -> None:
        """End it: it sends and hears nothing any more. Its timers are its test's to stop."""
        self.nodes[name].alive = False

    def remove(self, name: str) -> None:
        """Kill it and strike it off the roster, in everybody's book too."""
        self.kill(name)
        self.removed.add(name)
        by = next((node for node in self.nodes.values() if node.alive), None)
        if by is not None:
            by.book.remove(name)

    def latency(self, a: str, b: str, seconds: float, *, both: bool = True) -> None:
        """From `a` to `b` it takes so long; back too unless not `both`."""
        for pair in _ways(a, b, both):
            self._latencies[pair] = seconds

    def cut(self, a: str, b: str, *, both: bool = True) -> None:
        """Nothing arrives from `a` at `b` any more; nor back unless not `both`."""
        for pair in _ways(a, b, both):
            self._cut_at_s.setdefault(pair, self.clock.seconds())

    def partition(self, *sides: Iterable[str]) -> None:
        """Nothing passes between nodes of different sides. Whoever is in none is a side alone."""
        side_of = {name: number for number, side in enumerate(sides) for name in side}
        for a in self.nodes:
            for b in self.nodes:
                if a != b and side_of.get(a, a) != side_of.get(b, b):
                    self.cut(a, b, both=False)

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """All ways are open again, or those between `a` and `b`."""
        for pair in list(self._cut_at_s) if a is None or b is None else _ways(a, b, both=True):
            self._cut_at_s.pop(pair, None)

    def connected(self, a: str, b: str) -> bool:
        """Whether `a` takes `b` for connected: both live, and no way between them was cut for `SILENCE_S`."""
        if b not in self.nodes or b in self.removed or not (self.nodes[a].alive and self.nodes[b].alive):
            return False
        now_s = self.clock.seconds()
        return all(now_s - self._cut_at_s.get(pair, now_s) < SILENCE_S for pair in _ways(a, b, both=True))

    def carry(self, sender: str, to: str, arrive: Callable[[HubNode], None]) -> None:
        """Have `arrive(node)` called there, later; or never."""
        if (sender, to) in self._cut_at_s or (self.loss and self._random.random() < self.loss):
            return
        there = self.nodes[to]
        # one link carries them one after another
        due_s = max(
            self.clock.seconds() + self._latencies.get((sender, to), self.latency_s),
            self._free_at_s.get((sender, to), 0.0),
        )
        self._free_at_s[sender, to] = due_s

        def now() -> None:
            if there.alive and (sender, to) not in self._cut_at_s:
                arrive(there)

        self.clock.callLater(max(0.0, due_s - self.clock.seconds()), now)

    def _spread(self, author: str, entry: Entry) -> None:
        for name in self.nodes:
            if name != author and self.connected(author, name):
                self.carry(author, name, lambda node: node.book.take([entry]))

    def _compare_books(self) -> None:
        self.clock.callLater(SYNC_S, self._compare_books)
        for a in self.nodes:
            for b in self.nodes:
                if a != b and self.connected(a, b) and (b, a) not in self._cut_at_s:
                    self._give(a, b)

    def _give(self, a: str, b: str) -> None:
        entries = tuple(self.nodes[a].book.entries)

        def take(node: HubNode) -> None:
            node.heard_s[a] = self.clock.seconds()
            node.book.take(entries)

        self.carry(a, b, take)


def signing_key(name: str) -> SigningKey:
    """The same for the same name."""
    return SigningKey(blake3(name.encode()).digest())


def member(name: str) -> Member:
    """The same name is always the same member."""
    return member_of(name, bytes(signing_key(name).verify_key), (f"{name}.internal:9470",))


def _written_by_itself(name: str) -> Entry:
    return write(f"member/{name}", encode(member(name)), 1, name, signing_key(name), CLUSTER)


def _ways(a: str, b: str, both: bool) -> tuple[tuple[str, str], ...]:
    return ((a, b), (b, a)) if both else ((a, b),)


def _late(waiting: Deferred[bytes], to: str, kind: str) -> None:
    if not waiting.called:
        waiting.errback(RonError(ErrorCode.TIMEOUT, f"{to} did not answer {kind} in time"))
