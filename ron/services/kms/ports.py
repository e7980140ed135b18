"""Where the rooms of the key service meet: what each is to the others, and nothing of how it is done.

`backends/` implements `Backend`, `audit/` implements `AuditLog`, `governance/` implements `Quorum`; `service.py` joins
them. What blocks (`Backend`) is called in a bounded pool; all else on the reactor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec
from twisted.internet.defer import Deferred

from ron.proto.kms import Alg, Attestation, Kid


class Half(NamedTuple):
    """One half of a key version: its algorithm and its raw public bytes."""

    alg: Alg
    public: bytes


class Held(NamedTuple):
    """A key version as its backend knows it. attestation_class says where each private half lives."""

    kid: Kid
    halves: tuple[Half, ...]
    attestation_class: str


class Backend(Protocol):
    """Custody of private halves: they go in or are made there, and never come out. Every call may block.

    Raises `RonError`: StoreUnavailable while it cannot be reached, NotFound for what it does not hold, Conflict for a
    kid that exists, Unsupported for an algorithm it cannot do. A `generate` or `destroy` that returned is on disk.
    quick: Ed25519 signing takes under 100 µs and may run on the reactor.
    """

    name: str
    quick: bool

    def open(self) -> None:
        """Get to work. Raises `RonError` for what cannot be opened, `RolledBackError` where an older copy was put."""

    def close(self) -> None:
        """Let go of sessions and secrets; more than once is fine."""

    def probe(self) -> None:
        """Raises StoreUnavailable unless it could sign now."""

    def held(self) -> Sequence[Held]:
        """Everything it has."""

    def generate(self, kid: Kid, algs: Sequence[Alg]) -> Held:
        """Make a new key version with these halves. kid has a version."""

    def sign(self, kid: Kid, alg: Alg, message: bytes) -> bytes:
        """64 bytes of Ed25519, or 3309 of ML-DSA-65 with an empty context."""

    def unwrap(self, kid: Kid, suite: str, envelope: bytes, info: bytes) -> bytes:
        """Open an HPKE envelope (`ron.crypto.wrapping`). Raises BadRequest for one that was changed."""

    def destroy(self, kid: Kid) -> None:
        """The private halves are gone for good; nothing happens when they are already."""

    def attest(self, kid: Kid | None) -> Attestation | None:
        """Evidence for a key, or for the whole; None where there is none to have."""


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One operation (I-2), no secret in it. seq: from 0, set by the log. kid_seq: from 1 for each key, set by the log.

    op: sign, verify, wrap, unwrap, create, rotate, destroy, attest, and of governance. input_b3: what came in, hashed.
    result: ok, or the error's code. actor: the capability's id. extra: what the operation adds, flat.
    """

    op: str
    result: str
    ts: str
    tenant: str = ""
    kid: str = ""
    alg: str = ""
    purpose: str = ""
    input_b3: str = ""
    actor: str = ""
    op_id: str = ""
    corr_id: str = ""
    attestation: str = ""
    kid_seq: int = 0
    extra: Mapping[str, str | int | bool] = {}


class Checkpoint(NamedTuple):
    """A signed tree head. note: C2SP tlog-checkpoint, as a signed note."""

    size: int
    root: bytes
    note: bytes


class AuditLog(Protocol):
    """The transparency log of this service (RFC 9162 tree, C2SP checkpoints)."""

    @property
    def size(self) -> int:
        """Records on disk."""

    @property
    def writable(self) -> bool:
        """False once it was found rolled back or broken, or its disk fails: nothing may be signed then."""

    def append(self, entry: AuditEntry) -> Deferred[int]:
        """Fires with its index once it is on disk (group commit). Fails with StoreUnavailable."""

    def checkpoint(self) -> Deferred[Checkpoint]:
        """Sign the head as it is on disk and keep it."""

    def latest(self) -> Checkpoint | None:
        """The newest signed one."""

    def witnessed(self) -> Checkpoint | None:
        """The newest that witnesses signed, too."""

    def entries(self, start: int, count: int) -> Sequence[bytes]:
        """Leaves as they are hashed, JSON. At most 1000."""

    def inclusion(self, index: int, size: int) -> Sequence[bytes]:
        """RFC 9162 §2.1.3. Raises BadRequest beyond the log."""

    def consistency(self, old: int, new: int) -> Sequence[bytes]:
        """RFC 9162 §2.1.4."""


class Quorum(Protocol):
    """What nobody may do alone (GOVERNANCE, K-G4)."""

    def require(self, action: str, scope: str, change: Mapping[str, str], proposal: str | None) -> None:
        """Raises `RonError` (403) unless `proposal` is approved for exactly this, neither run out nor used.

        action: destroy_key, root_rotation, backend_change, pq_mode, attest_require, hybrid_off, amnesia_off, rollback.
        """

    def frozen(self, tenant: str) -> str | None:
        """Why `tenant` may not sign now (the freeze's id), or None."""

    def pq_mode(self, tenant: str) -> str | None:
        """The verify mode a decision gave this tenant, None where the config's holds."""
