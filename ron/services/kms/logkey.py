"""The key that signs the audit log's heads: made at the first start, in the same custody as all others.

In: store, index, backend. Out: the log's name, the public keys that verify it, and what signs. Its tenant is nobody's:
no request signs with it, or a caller could sign a head of his own.
"""

from __future__ import annotations

import uuid
from functools import partial

from ron.crypto.notes import Kind, NoteKey, Signer, note_key, sign_note
from ron.proto.kms import Alg, Kid
from ron.services.kms.index import KeyEntry, Version
from ron.services.kms.model import SYSTEM, Caller
from ron.services.kms.recorder import Recorder
from ron.services.kms.room import Room
from ron.services.kms.store import KeyRecord, VersionRecord

PURPOSE = "audit-log"
_KINDS = {Alg.ED25519: Kind.ED25519, Alg.ML_DSA: Kind.ML_DSA_65}
_HALVES = (Alg.ED25519, Alg.ML_DSA)


class LogKey:
    """Of one service. `find` it, or `make` it; then it signs."""

    def __init__(self, room: Room) -> None:
        self._room = room
        # made, and not in force: no record tells of it yet
        self._fresh: VersionRecord | None = None

    def find(self) -> bool:
        """Is there one already?"""
        return self._entry() is not None

    async def make(self) -> None:
        """The first, with both halves where both are allowed. Raises what the backend raises."""
        room = self._room
        if await self._adopt():
            return
        kid = Kid(SYSTEM, PURPOSE, "hybrid", str(uuid.uuid4())).at(1)
        record = KeyRecord(kid.key, {}, room.now_s())
        begun = await room.store.begin(record, kid, None)
        room.recorder.mark = begun.mark or room.recorder.mark
        allowed = room.wishes().service.allowed_algs
        algs = tuple(alg for alg in _HALVES if alg in allowed) or _HALVES[:1]
        held = await room.lanes.whole(SYSTEM, room.backend.generate, kid, algs)
        version = VersionRecord(kid, "live", held.halves, held.attestation_class, record.created_s)
        room.index.add(record)
        room.index.put(version)
        self._fresh = version
        room.note_custody()

    async def _adopt(self) -> bool:
        """One that a crash left on its way: the log may be signed with it already."""
        room = self._room
        pending = [one.kid for one in room.index.unsettled() if (one.kid.tenant, one.kid.purpose) == (SYSTEM, PURPOSE)]
        held = {one.kid: one for one in await room.lanes.whole(SYSTEM, room.backend.held)} if pending else {}
        for kid in pending:
            if kid in held:
                found = held[kid]
                version = VersionRecord(kid, "live", found.halves, found.attestation_class, room.now_s())
                room.index.put(version)
                self._fresh = version
                return True
        return False

    async def settle(self, recorder: Recorder) -> None:
        """Once the log takes records: its first tells of the key."""
        fresh, self._fresh = self._fresh, None
        if fresh is None:
            return
        await recorder.record(recorder.entry("create", Caller(), fresh.kid, attestation=fresh.attestation))
        recorder.mark = await self._room.store.finish(fresh, None)

    @property
    def origin(self) -> str:
        """The log's name."""
        return f"ron-kms/{self._required().kid.uuid}"

    def key_sets(self) -> list[tuple[NoteKey, ...]]:
        """Public keys that signed heads, the present ones first."""
        return [self._public(version) for version in reversed(self._required().verifiable())]

    async def sign(self, text: bytes) -> bytes:
        """The signed note of `text`. Raises what the backend raises."""
        room, version = self._room, self._required().usable
        signers = [
            Signer(key, partial(room.backend.sign, version.kid, half.alg))
            for key, half in zip(self._public(version), version.halves, strict=True)
        ]
        return await room.lanes.run(SYSTEM, "checkpoint", sign_note, text, signers)

    def _public(self, version: Version) -> tuple[NoteKey, ...]:
        return tuple(note_key(self.origin, _KINDS[half.alg], half.public) for half in version.halves)

    def _entry(self) -> KeyEntry | None:
        found = [one for one in self._room.index.of_tenant(SYSTEM) if one.kid.purpose == PURPOSE]
        return found[0] if found else None

    def _required(self) -> KeyEntry:
        entry = self._entry()
        if entry is None:
            raise LookupError("there is no key for the audit log yet")
        return entry
