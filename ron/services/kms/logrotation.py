"""A new key for the audit log: meant (store), made (backend), told (a continuity record), in force.

In: who asks, where a quorum governs the proposal that allows it. Out: checkpoints by the new key, which whoever trusts
the old one can follow without asking anybody. A crash between any two steps is brought to an end by `settle`: what
decides is whether the log has the record that names the new key.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Protocol, cast

import msgspec
from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from ron.crypto.notes import BadNoteError, Head, KeySet, sign_note
from ron.proto.errors import RonError, bad_request, conflict, unavailable
from ron.proto.kmsaudit import RotateLogKeyRequest, RotateLogKeyResponse
from ron.services.kms.acts import Acts
from ron.services.kms.audit import continuity
from ron.services.kms.audit.checkpointer import Sign
from ron.services.kms.inforce import Deciding
from ron.services.kms.logkey import LogKey
from ron.services.kms.model import SYSTEM, Caller
from ron.services.kms.ports import Checkpoint, Held
from ron.services.kms.readiness import Key
from ron.services.kms.recorder import Log
from ron.services.kms.store import VersionRecord

ACTION, SCOPE = "root_rotation", "global"
CHANGE = {"root": "audit-log"}
# A new key is no more than the device says of it: what keeps others from signing must not keep this from being mended.
ALL_THE_SAME: frozenset[Key] = frozenset({"log_attested"})
# What a continuity record says beside the note, so that whoever asks again hears what became of it.
KID, BEFORE, OP_ID = "log_key", "log_key_before", "log_op_id"
_log = Logger(namespace="ron.kms.audit")


class Turning(Log, Protocol):
    """The log, as a new key is put to it."""

    def use(self, keys: KeySet, sign: Sign) -> None:
        """These sign from now on."""

    def newest(self, name: str) -> Mapping[str, Any]:
        """The newest extras that have `name`."""


class LogRotation:
    """Of one service."""

    def __init__(self, key: LogKey) -> None:
        self._key = key
        self._room = key.room
        self._one_at_a_time = DeferredLock()
        self._acts = Acts()

    async def rotate(self, caller: Caller, body: RotateLogKeyRequest) -> RotateLogKeyResponse:
        """Another version of the log's key, whose continuity record both have signed. Raises `RonError`: 403 without
        the quorum's decision where there is a quorum, Conflict while another is under way, StoreUnavailable."""
        if caller.tenants:
            caller.require("")

        async def whole() -> RotateLogKeyResponse:
            done = self._done(body.op_id)
            if done is not None:
                return done
            if self._one_at_a_time.locked or self._key.pending():
                raise conflict("the log gets another key just now", "ask again in a moment")
            return await self._one_at_a_time.run(lambda: Deferred.fromCoroutine(self._rotate(caller, body)))

        made: RotateLogKeyResponse = await self._acts.do(body.op_id or uuid.uuid4(), b"", whole)
        return made

    async def settle(self) -> None:
        """Bring to an end what a crash or an outage left. Raises `RonError` where that cannot be yet."""
        if self._one_at_a_time.locked or not (self._key.pending() or self._key.going()):
            return
        await self._one_at_a_time.run(lambda: Deferred.fromCoroutine(self._settle()))

    async def _rotate(self, caller: Caller, body: RotateLogKeyRequest) -> RotateLogKeyResponse:
        room, log = self._room, self._log
        room.guard.check_writes(but=ALL_THE_SAME)
        before = self._key.present
        checkpoint = await log.checkpoint()
        # last: it is used up by asking
        proposal = self._permitted(body.proposal)
        kid = before.kid.at(self._key.required().head + 1)
        try:
            held = await self._key.held_at(kid, self._key.algs())
        except RonError:
            if proposal is not None:
                room.give_back(proposal)
            raise
        note = await self._continuity(checkpoint, held)
        told: dict[str, str | int | bool] = {
            continuity.FIELD: note.decode(),
            KID: str(kid),
            BEFORE: str(before.kid),
            OP_ID: body.op_id or "",
        }
        await self._tell(caller, held, told, proposal)
        await self._in_force(held)
        # at once, so that the old key counts no more
        await log.checkpoint()
        return self._answer(told)

    def _done(self, op_id: str | None) -> RotateLogKeyResponse | None:
        """What was answered under `op_id`, if that was the last time and is in force."""
        if op_id is None:
            return None
        said = self._log.newest(OP_ID)
        same = said.get(OP_ID) == op_id and said.get(KID) == str(self._key.present.kid)
        return self._answer(said) if same else None

    def _answer(self, said: Mapping[str, Any]) -> RotateLogKeyResponse:
        vkeys = tuple(key.vkey() for key in self._key.public_of(self._key.present))
        return RotateLogKeyResponse(kid=str(said[KID]), previous=str(said[BEFORE]), vkeys=vkeys)

    def _permitted(self, proposal: str | None) -> str | None:
        """The proposal that allows it; None where nobody was named who decides, and the capability is enough."""
        quorum = self._room.quorum
        if not isinstance(quorum, Deciding):
            if proposal is not None:
                raise bad_request("nobody governs this service", "leave the proposal out")
            return None
        found = proposal or quorum.permission(ACTION, SCOPE, CHANGE)
        quorum.require(ACTION, SCOPE, CHANGE, found)
        return found

    async def _continuity(self, checkpoint: Checkpoint, held: Held) -> bytes:
        """What both keys say. Raises what the backend raises: the new version stays pending, and `settle` ends it."""
        key = self._key
        old, new = key.signers(key.present), key.signers(held)
        head = Head(key.origin, checkpoint.size, checkpoint.root)
        try:
            text = continuity.unsigned(head, key.public_of(key.present), key.public_of(held))
        except BadNoteError as error:
            raise unavailable(f"the new key is none: {error}") from None
        return await self._room.lanes.whole(SYSTEM, sign_note, text, [*old, *new])

    async def _tell(self, caller: Caller, held: Held, told: dict[str, str | int | bool], proposal: str | None) -> None:
        recorder = self._room.recorder
        extra = told if proposal is None else {**told, "proposal": proposal}
        algs = tuple(half.alg for half in held.halves)
        where = held.attestation_class
        entry = recorder.entry(continuity.OP, caller, held.kid, algs=algs, attestation=where)
        await recorder.record(msgspec.structs.replace(entry, extra={**entry.extra, **extra}))

    async def _in_force(self, held: Held) -> None:
        room, key = self._room, self._key
        version = VersionRecord(held.kid, "live", held.halves, held.attestation_class, room.now_s())
        room.recorder.mark = await room.store.finish(version, None)
        room.index.put(version)
        # in the same turn: what signs and what it is verified with belong together
        self._log.use(key.public_of(version), key.sign)
        _log.info("the audit log has another key", event="audit_key_rotated", kid_version=held.kid.version)

    async def _settle(self) -> None:
        room = self._room
        held = {one.kid: one for one in await room.lanes.whole(SYSTEM, room.backend.held)}
        for kid in self._key.pending():
            found = held.get(kid)
            if found is not None and self._is_told(found):
                await self._in_force(found)
            else:
                await self._key.give_up(kid, found)
        for kid in self._key.going():
            await self._key.destroy(kid)

    def _is_told(self, held: Held) -> bool:
        """Does the log's newest continuity record name this version's keys?"""
        note = self._log.newest(continuity.FIELD).get(continuity.FIELD)
        if not isinstance(note, str):
            return False
        try:
            said = continuity.verify(note.encode(), self._key.public_of(self._key.present))
        except BadNoteError:
            return False
        return said.new == self._key.public_of(held)

    @property
    def _log(self) -> Turning:
        log = self._room.recorder.log
        if log is None:
            raise unavailable("the audit log is not open yet")
        return cast(Turning, log)
