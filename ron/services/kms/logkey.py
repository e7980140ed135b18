"""The service's own keys: the one that signs the audit log's heads, and the one that cosigns the logs of others.

In: store, index, backend. Out: names, the public keys that verify them, and what signs. They are in the same custody as
all others, and their tenant is nobody's: no request signs with them, or a caller could sign a head of his own.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import partial

from ron.crypto.notes import Kind, NoteKey, Signer, note_key, sign_note
from ron.proto.errors import RonError
from ron.proto.kms import Alg, KeyAlg, Kid
from ron.services.kms.index import KeyEntry, Version
from ron.services.kms.model import SYSTEM, Caller
from ron.services.kms.ports import Held
from ron.services.kms.recorder import Recorder
from ron.services.kms.room import Room
from ron.services.kms.store import KeyRecord, State, VersionRecord

PURPOSE = "audit-log"
WITNESS = "audit-witness"
_KINDS = {Alg.ED25519: Kind.ED25519, Alg.ML_DSA: Kind.ML_DSA_65}
_HALVES = (Alg.ED25519, Alg.ML_DSA)


class OwnKey:
    """One of them. `find` it, or `make` it and have it in force by `settle`, once the log takes records."""

    def __init__(self, room: Room, purpose: str, alg: KeyAlg) -> None:
        self.room = room
        self._purpose = purpose
        self._alg = alg
        # made, and not in force: no record tells of it yet
        self._fresh: VersionRecord | None = None

    def find(self) -> bool:
        """Is there one already?"""
        return self._entry() is not None

    async def make(self) -> None:
        """The first. Raises what the backend raises."""
        room = self.room
        if await self._adopt():
            return
        kid = Kid(SYSTEM, self._purpose, self._alg, str(uuid.uuid4())).at(1)
        held = await self.held_at(kid, self.algs())
        version = VersionRecord(kid, "live", held.halves, held.attestation_class, room.now_s())
        room.index.put(version)
        self._fresh = version

    async def held_at(self, kid: Kid, algs: Sequence[Alg]) -> Held:
        """The backend has made `kid`; in the store it is pending. Raises what the backend raises."""
        room = self.room
        record = KeyRecord(kid.key, {}, room.now_s())
        begun = await room.store.begin(record, kid, None)
        room.recorder.mark = begun.mark or room.recorder.mark
        room.index.add(record)
        room.index.put(VersionRecord(kid, "pending", (), "", record.created_s))
        try:
            held = await room.lanes.whole(SYSTEM, room.backend.generate, kid, algs)
        except RonError:
            await self.give_up(kid)
            raise
        room.note_custody()
        return held

    def algs(self) -> tuple[Alg, ...]:
        """What a new version is made of."""
        if self._alg != "hybrid":
            return (Alg(self._alg),)
        # both halves where both are allowed
        allowed = self.room.wishes().service.allowed_algs
        return tuple(alg for alg in _HALVES if alg in allowed) or _HALVES[:1]

    async def _adopt(self) -> bool:
        """One that a crash left on its way: the log may be signed with it already."""
        room = self.room
        pending = self.pending()
        held = {one.kid: one for one in await room.lanes.whole(SYSTEM, room.backend.held)} if pending else {}
        for kid in pending:
            if kid in held:
                found = held[kid]
                version = VersionRecord(kid, "live", found.halves, found.attestation_class, room.now_s())
                room.index.put(version)
                self._fresh = version
                return True
            await self.give_up(kid)
        return False

    def pending(self) -> list[Kid]:
        """Versions of it that were begun, and are not in force."""
        return self._unsettled("pending")

    def going(self) -> list[Kid]:
        """Versions of it whose end was begun."""
        return self._unsettled("destroying")

    def _unsettled(self, state: State) -> list[Kid]:
        unsettled = [one for one in self.room.index.unsettled() if one.state == state]
        return [one.kid for one in unsettled if (one.kid.tenant, one.kid.purpose) == (SYSTEM, self._purpose)]

    async def settle(self, recorder: Recorder) -> None:
        """Once the log takes records: its first tells of the key."""
        fresh = self._fresh
        if fresh is None:
            return
        await recorder.record(recorder.entry("create", Caller(), fresh.kid, attestation=fresh.attestation))
        recorder.mark = await self.room.store.finish(fresh, None)
        self._fresh = None

    async def give_up(self, kid: Kid, held: Held | None = None) -> None:
        """It was begun, and nothing tells of it. held: as the backend has it, None where it was never made. Raises what
        backend and store raise."""
        room = self.room
        if held is None:
            room.recorder.mark = await room.store.abandon(kid, None)
            room.index.drop(kid)
            return
        # a backend makes no version twice: this one keeps its number, and is destroyed
        await self._change(VersionRecord(kid, "destroying", held.halves, held.attestation_class, room.now_s()))
        await self.destroy(kid)

    async def destroy(self, kid: Kid) -> None:
        """Bring it to its end, which has begun. Raises what backend and store raise."""
        room = self.room
        await room.lanes.whole(SYSTEM, room.backend.destroy, kid)
        room.note_custody()
        known = self.required().versions[kid.version]
        await self._change(VersionRecord(kid, "destroyed", known.halves, known.attestation, room.now_s()))

    async def _change(self, version: VersionRecord) -> None:
        room = self.room
        room.recorder.mark = await room.store.change([version], None)
        room.index.put(version)

    def required(self) -> KeyEntry:
        """Its entry. Raises LookupError before there is one."""
        entry = self._entry()
        if entry is None:
            raise LookupError(f"there is no key for {self._purpose} yet")
        return entry

    def _entry(self) -> KeyEntry | None:
        found = [one for one in self.room.index.of_tenant(SYSTEM) if one.kid.purpose == self._purpose]
        return found[0] if found else None


class LogKey(OwnKey):
    """Signs the heads of the log, with both halves where both are allowed."""

    def __init__(self, room: Room) -> None:
        super().__init__(room, PURPOSE, "hybrid")

    @property
    def origin(self) -> str:
        """The log's name. A new version of the key is the same log's."""
        return f"ron-kms/{self.required().kid.uuid}"

    @property
    def present(self) -> Version:
        """The version that signs."""
        return self.required().usable

    def key_sets(self) -> list[tuple[NoteKey, ...]]:
        """Public keys that signed heads, the present ones first. One that was given up never did."""
        return [self.public_of(version) for version in reversed(self.required().verifiable()) if version.usable]

    def public_of(self, version: Version | VersionRecord | Held) -> tuple[NoteKey, ...]:
        """The keys by which notes of that version are known."""
        return tuple(note_key(self.origin, _KINDS[half.alg], half.public) for half in version.halves)

    def signers(self, version: Version | VersionRecord | Held) -> list[Signer]:
        """What signs with that version. Blocks."""
        return [
            Signer(key, partial(self.room.backend.sign, version.kid, half.alg))
            for key, half in zip(self.public_of(version), version.halves, strict=True)
        ]

    async def sign(self, text: bytes) -> bytes:
        """The signed note of `text`. Raises what the backend raises."""
        signers = self.signers(self.present)
        return await self.room.lanes.run(SYSTEM, "checkpoint", sign_note, text, signers)


class WitnessKey(OwnKey):
    """Cosigns the checkpoints of other logs: Ed25519, a key of its own, as C2SP tlog-cosignature has it."""

    def __init__(self, room: Room) -> None:
        super().__init__(room, WITNESS, "ed25519")

    async def begin(self) -> None:
        """There is one, and it is in force. Raises what backend, store and log raise; then ask again."""
        if not self.find():
            await self.make()
        await self.settle(self.room.recorder)

    @property
    def public(self) -> NoteKey:
        """By which the witness is known."""
        version = self.required().usable
        return note_key(f"ron-kms-witness/{version.kid.uuid}", Kind.COSIGNATURE, version.halves[0].public)

    def sign(self, text: bytes) -> bytes:
        """Ed25519. Blocks."""
        version = self.required().usable
        return self.room.backend.sign(version.kid, version.halves[0].alg, text)
