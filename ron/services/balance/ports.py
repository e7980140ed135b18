"""Where the rooms of RustBalance meet: what each is to the others, and nothing of how it is done.

`mesh/` implements `Mesh` and `Book`, `vault/` implements `Vault`, `heads/` implements `Head`; `service.py` joins them.
Tests join the same rooms with an in-memory mesh (`tests/services/balance/hub.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

import msgspec

from ron.proto.balance import HeadDescriptor, HeadReport, Mode, NodeName, ServiceName
from ron.tor.descriptor.blinding import Signer

Body = TypeVar("Body", bound=msgspec.Struct)
Answer = TypeVar("Answer", bound=msgspec.Struct)


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node of the cluster. number: its identifier in threshold groups, 1 to 65535. key: its Ed25519 key, by which its
    messages are signed. addresses: where it listens, `host:port`, host an IP address, a name or an onion."""

    name: NodeName
    number: int
    key: bytes
    addresses: tuple[str, ...] = ()


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Another member as this node sees it now. heard_s: by the reactor's clock, None if never in this run. drift_s: how
    far its clock is ahead of ours, None while unknown. seal_key: its HPKE public key (X-Wing) of this run."""

    member: Member
    connected: bool = False
    heard_s: float | None = None
    drift_s: float | None = None
    seal_key: bytes = b""


class Book(Protocol):
    """Small facts that all nodes agree on in the end: last writer wins, by (version, author). Kept on disk; no secrets.

    Keys in use: `member/<name>`, `removed/<name>`, `promote`, `roulette`, `siege/<node>`, `service/<name>`,
    `vanguards`, `approved/<node>`, `token`, `strike/<digest>`.
    """

    def get(self, key: str, shape: type[Body]) -> Body | None:
        """The value, or None: none, ended, or not of that shape."""

    def keys(self, prefix: str) -> tuple[str, ...]:
        """Those there are, sorted."""

    def author_of(self, key: str) -> NodeName:
        """Who wrote the value; empty when there is none."""

    def put(self, key: str, value: msgspec.Struct | None) -> None:
        """Write (None: end it) and tell all. Raises `RonError` (TooLarge, Busy) beyond the book's bounds."""

    def on_change(self, heard: Callable[[str], None]) -> None:
        """Call `heard(key)` after each change, ours too."""


class Mesh(Protocol):
    """The nodes' full mesh: authenticated, encrypted, forward secret. `sender` in handlers is proven.

    listen, serve: one handler a kind; bodies are decoded strictly as `shape` before the handler sees them.
    """

    name: NodeName
    me: Member
    book: Book

    def members(self) -> Mapping[NodeName, Member]:
        """All that have not been removed, this node too."""

    def peers(self) -> Mapping[NodeName, Peer]:
        """The others."""

    def broadcast(self, kind: str, body: msgspec.Struct) -> None:
        """To all connected peers, without waiting; under pressure the oldest of a peer's queue are dropped."""

    def send(self, to: NodeName, kind: str, body: msgspec.Struct) -> None:
        """To one, in the same way."""

    async def call(
        self, to: NodeName, kind: str, body: msgspec.Struct, answer: type[Answer], *, deadline_s: float
    ) -> Answer:
        """Ask one peer. Raises `RonError`: what its handler raised, Timeout, Unavailable when it is not connected."""

    def listen(self, kind: str, shape: type[Body], handler: Callable[[NodeName, Body], None]) -> None:
        """What to do with messages of `kind`."""

    def serve(
        self, kind: str, shape: type[Body], handler: Callable[[NodeName, Body], Awaitable[msgspec.Struct]]
    ) -> None:
        """How to answer calls of `kind`. A `RonError` it raises is the caller's."""


class ServiceRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A master address, in the book under `service/<name>`. group: in threshold mode the encoded `GroupKey` of its
    present epoch. epoch: how often its shares were made. made_ms: when, Unix milliseconds."""

    onion: str
    mode: Mode
    threshold: int = 0
    group: bytes = b""
    epoch: int = 0
    made_ms: int = 0


class Vault(Protocol):
    """Who can sign for which master address, here and now. Nothing of it is on disk."""

    def holds(self) -> frozenset[ServiceName]:
        """Services of which this node has the key, or a share."""

    def signer(self, service: ServiceName) -> Signer:
        """Signs the certificate of a descriptor-signing key: alone, or with the others. Raises `RonError`
        (Unavailable) when this node has neither key nor share; `sign` raises it when too few others take part."""


class Head(Protocol):
    """This node's own tor with its throw-away onion before the target."""

    def report(self) -> HeadReport:
        """As it stands."""

    def descriptor(self) -> HeadDescriptor | None:
        """Its own newest descriptor, as its tor wrote it."""

    def serve(self) -> None:
        """Take visitors."""

    def ghost(self) -> None:
        """It is no more in the master's descriptor: keep the visitors it has, let nobody new in."""

    def on_change(self, heard: Callable[[], None]) -> None:
        """Call `heard` when the report changed in anything but its figures, or the descriptor did."""
