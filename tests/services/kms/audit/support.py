"""A log to test with: its keys, its entries, and what it is when it is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from nacl.signing import SigningKey
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from ron.crypto.notes import Kind, NoteKey, Signer, note_key, sign_note
from ron.kernel import Metrics
from ron.services.kms.audit import DiskShelf, Meters, Settings, Shelf, TransparencyLog
from ron.services.kms.ports import AuditEntry

T = TypeVar("T")
ORIGIN = "kms.example/audit"
DEADLINE_S = 20.0
KID = "core/audit/ed25519/0b2e0000-1111-4222-8333-444455556666#v3"


class Keys:
    """Both halves of the key that signs a log, made of one byte."""

    def __init__(self, number: int = 1, name: str = ORIGIN) -> None:
        first, second = SigningKey(bytes([number]) * 32), MLDSA65PrivateKey.from_seed_bytes(bytes([number]) * 32)
        self.signers = (
            Signer(note_key(name, Kind.ED25519, bytes(first.verify_key)), lambda text: first.sign(text).signature),
            Signer(note_key(name, Kind.ML_DSA_65, second.public_key().public_bytes_raw()), second.sign),
        )
        self.public: tuple[NoteKey, ...] = tuple(one.key for one in self.signers)

    async def sign(self, text: bytes) -> bytes:
        return sign_note(text, self.signers)


def entry(number: int = 0, kid: str = KID, **fields: Any) -> AuditEntry:
    return AuditEntry(
        op="sign",
        result="ok",
        ts="2026-11-21T20:30:28Z",
        tenant="core",
        kid=kid,
        alg="ed25519",
        purpose="audit",
        input_b3=f"{number:064x}",
        actor="ab" * 16,
        **fields,
    )


class Held:
    """Where a log is, and its parts, so that it can be opened again and again."""

    def __init__(self, home: Path, *, keys: Keys | None = None, **settings: Any) -> None:
        self.home = home
        self.directory, self.anchor = home / "audit", home / "elsewhere" / "anchor.json"
        self.keys = keys or Keys()
        self.settings = Settings(ORIGIN, **{"checkpoint_s": 3600.0, "deadline_s": DEADLINE_S, **settings})
        self.metrics = Metrics()
        self.segment_bytes = 64 * 1024 * 1024

    def shelf(self) -> DiskShelf:
        return DiskShelf(self.directory, self.anchor, segment_bytes=self.segment_bytes)

    def log(self, shelf: Shelf | None = None, keys: Sequence[Keys] = (), clock: Any = reactor) -> TransparencyLog:
        self.metrics = Metrics()
        trusted = [one.public for one in keys or (self.keys,)]
        signing = (keys or (self.keys,))[0].sign
        return TransparencyLog(
            self.settings,
            shelf or self.shelf(),
            reactor=clock,
            keys=trusted,
            sign=signing,
            meters=Meters(self.metrics),
        )

    async def opened(self, shelf: Shelf | None = None, keys: Sequence[Keys] = ()) -> TransparencyLog:
        log = self.log(shelf, keys)
        await log.open()
        return log

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


async def fill(
    log: TransparencyLog, count: int, first: int = 0, make: Callable[[int], AuditEntry] = entry
) -> list[int]:
    """So many records, all at once; their indexes."""
    return list(await gatherResults([log.append(make(first + number)) for number in range(count)], consumeErrors=True))


def soon(deferred: Deferred[T]) -> Deferred[T]:
    return deferred.addTimeout(DEADLINE_S, reactor)
