"""Keys come, get new versions, are shown, and go; whatever stops half-way is brought to an end at the next start.

In: checked requests and who asks. Out: answers. Order of an act: it is meant (store) → done (backend) → told (audit
log) → in force (store) → answered. A crash between any two leaves what `settle` understands.
"""

from __future__ import annotations

import builtins
import uuid
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec

from ron.proto.clock import rfc3339
from ron.proto.errors import ErrorCode, RonError, conflict, not_found, unavailable
from ron.proto.kms import (
    Alg,
    AttestResponse,
    CreateKeyRequest,
    CreateKeyResponse,
    DestroyRequest,
    DestroyResponse,
    KeyList,
    KeyView,
    Kid,
    RotateRequest,
    RotateResponse,
    parse_kid,
)
from ron.services.kms.acts import Acts
from ron.services.kms.index import Version
from ron.services.kms.model import SYSTEM, Caller, check_shallow, halves_of, public_of, view_of
from ron.services.kms.once import Remembered as Known
from ron.services.kms.once import Step, act_digest, judge
from ron.services.kms.ports import Held
from ron.services.kms.recorder import hashed
from ron.services.kms.room import Room
from ron.services.kms.store import Act, KeyRecord, VersionRecord

A = TypeVar("A", bound=CreateKeyResponse | RotateResponse | DestroyResponse)
PAGE = 100
MOST_HINTS_BYTES = 4096
# A record of what a crash left, which nobody asked for.
_NOBODY = Caller()


class Keys:
    """The life of keys. changed: told after each change of the index."""

    def __init__(self, room: Room, *, changed: Callable[[Kid], None] = lambda _kid: None) -> None:
        self._room = room
        self._changed = changed
        self._acts = Acts()
        self._busy: set[str] = set()

    # Acts

    async def create(self, caller: Caller, body: CreateKeyRequest) -> CreateKeyResponse:
        """A new key of the tenant, at `#v1`."""
        caller.require_own(body.tenant)
        check_shallow(body.policy_hints)
        if len(msgspec.json.encode(body.policy_hints)) > MOST_HINTS_BYTES:
            raise RonError(ErrorCode.TOO_LARGE, f"policy_hints have over {MOST_HINTS_BYTES} bytes")
        kid = Kid(body.tenant, body.purpose, body.alg, str(uuid.uuid4()))

        async def act(known: Act | None) -> CreateKeyResponse:
            return await self._create(caller, body, kid, known)

        return await self._once("create", caller, kid, body, CreateKeyResponse, act)

    async def rotate(self, caller: Caller, kid: Kid, body: RotateRequest) -> RotateResponse:
        """A new version of the key. Those before it verify on (I-5)."""
        caller.require_own(kid.tenant)

        async def act(known: Act | None) -> RotateResponse:
            return await self._rotate(caller, kid, body, known)

        return await self._once("rotate", caller, kid, body, RotateResponse, act)

    async def destroy(self, caller: Caller, kid: Kid, body: DestroyRequest) -> DestroyResponse:
        """The private halves of a version, or of all of them, are gone for good. Only with an approved proposal."""
        caller.require_own(kid.tenant)

        async def act(known: Act | None) -> DestroyResponse:
            return await self._destroy(caller, kid, body, known)

        return await self._once("destroy", caller, kid, body, DestroyResponse, act)

    # Looking

    async def get(self, caller: Caller, kid: Kid) -> KeyView:
        """Public halves, versions, where it lives."""
        caller.require(kid.tenant)
        entry = self._room.index.entry(kid)
        return view_of(entry, entry.at(kid.version))

    async def list(self, caller: Caller, tenant: str | None, after: str) -> KeyList:
        """A page of keys by name, those of one tenant or, for an operator, of all."""
        if tenant is None:
            tenant = caller.tenant
        if tenant is not None:
            caller.require(tenant)
        elif caller.tenants:
            raise not_found("nobody is two tenants")
        index = self._room.index
        shown: builtins.list[KeyView] = []
        last = ""
        for entry in index.of_tenant(tenant, after) if tenant is not None else index.everything(after):
            if len(shown) == PAGE:
                return KeyList(keys=tuple(shown), next=last)
            shown.append(view_of(entry, entry.at(0)))
            last = entry.kid.key
        return KeyList(keys=tuple(shown))

    async def attest(self, caller: Caller, kid: Kid | None) -> AttestResponse:
        """Evidence of where a key lives, or the backend as a whole."""
        room = self._room
        if kid is None:
            if caller.tenants:
                caller.require("")
            made = await room.lanes.run("", "attest", room.backend.attest, None)
            return AttestResponse(backend=room.backend.name, attestation=made, issued_at=rfc3339(room.now_s()))
        caller.require(kid.tenant)
        version = room.index.signing(kid)
        made = await room.lanes.run(kid.tenant, "attest", room.backend.attest, version.kid)
        room.recorder.note(room.recorder.entry("attest", caller, version.kid, attestation=version.attestation))
        return AttestResponse(
            backend=room.backend.name, attestation=made, kid=str(version.kid), issued_at=rfc3339(room.now_s())
        )

    # Within: each act

    async def _create(self, caller: Caller, body: CreateKeyRequest, kid: Kid, act: Act | None) -> CreateKeyResponse:
        room = self._room
        algs = halves_of(body.alg, body.purpose, room.wishes().service.allowed_algs)
        record = KeyRecord(kid.key, body.policy_hints or {}, room.now_s())
        what = hashed(msgspec.json.encode(body, order="deterministic"))

        def answer(version: Version) -> CreateKeyResponse:
            return CreateKeyResponse(kid=str(version.kid), public=public_of(version))

        return await self._make("create", caller, record, kid.at(1), algs, act, what, answer)

    async def _rotate(self, caller: Caller, kid: Kid, body: RotateRequest, act: Act | None) -> RotateResponse:
        room = self._room
        entry = room.index.entry(kid)
        newest = entry.at(0)
        if not any(one.usable for one in entry.versions.values()):
            raise not_found("this key is destroyed")
        algs = tuple(half.alg for half in newest.halves)
        allowed = room.wishes().service.allowed_algs
        gone = [alg for alg in algs if alg not in allowed]
        if gone:
            raise RonError(ErrorCode.UNSUPPORTED, f"{gone[0]} is not allowed here any more", hint="create another key")
        record = KeyRecord(kid.key, entry.hints, room.now_s())

        def answer(version: Version) -> RotateResponse:
            return RotateResponse(kid=str(version.kid), previous=str(newest.kid))

        return await self._make("rotate", caller, record, kid.at(newest.kid.version + 1), algs, act, "", answer)

    async def _make(
        self,
        op: str,
        caller: Caller,
        record: KeyRecord,
        kid: Kid,
        algs: Sequence[Any],
        act: Act | None,
        what: str,
        answer: Callable[[Version], A],
    ) -> A:
        """A version: meant, made, told, in force."""
        room = self._room
        most = room.wishes().limits.verify_cache_max
        if room.index.size >= most:
            raise unavailable(f"there are {most} key versions, and no more are made", "raise limits.verify_cache_max")
        if act is not None:
            act = act._replace(kid=str(kid))
        begun = await room.store.begin(record, kid, act)
        if begun.mark is None:
            raise unavailable("this act is under way", "ask again with the same op_id")
        room.recorder.mark = begun.mark
        room.index.add(record)
        try:
            with room.traces.during(f"backend.{room.backend.name}.generate", kid, backend=room.backend.name):
                held: Held = await room.lanes.whole(kid.tenant, room.backend.generate, kid, algs)
        except RonError:
            await self._give_up(kid, act)
            raise
        room.note_custody()
        version = VersionRecord(kid, "live", held.halves, held.attestation_class, record.created_s)
        op_id = act.op_id if act is not None else None
        where = held.attestation_class
        entry = room.recorder.entry(op, caller, kid, algs=algs, input_b3=what, op_id=op_id, attestation=where)
        try:
            await room.recorder.record(entry)
        except RonError:
            await self._unmake(version, act)
            raise
        made = answer(_shown(version))
        room.recorder.mark = await room.store.finish(version, _answered(act, made))
        room.index.put(version)
        self._changed(kid)
        return made

    async def _give_up(self, kid: Kid, act: Act | None) -> None:
        """It could not be made."""
        self._room.recorder.mark = await self._room.store.abandon(kid, act)
        self._room.index.drop(kid)

    async def _unmake(self, version: VersionRecord, act: Act | None) -> None:
        """It was made, and no record tells of it: it must not be there."""
        room, kid = self._room, version.kid
        await room.lanes.whole(kid.tenant, room.backend.destroy, kid)
        room.note_custody()
        if kid.version == 1:
            await self._give_up(kid, act)
        else:
            gone = version._replace(state="destroyed")
            room.recorder.mark = await room.store.unmake(gone, act)
            self._put([gone])

    async def _destroy(self, caller: Caller, kid: Kid, body: DestroyRequest, act: Act | None) -> DestroyResponse:
        room = self._room
        entry = room.index.entry(kid)
        meant = [entry.at(kid.version)] if kid.version else [one for one in entry.verifiable() if one.usable]
        going = [one for one in meant if one.usable]
        if not going:
            raise not_found("this key is destroyed")
        # last: it is used up by asking, and what is begun from here on is brought to its end
        room.quorum.require("destroy_key", f"tenant:{kid.tenant}", {"kid": str(kid)}, body.proposal)
        marked = [_as(one, "destroying") for one in going]
        try:
            room.recorder.mark = await room.store.change(marked, act)
        except RonError:
            room.give_back(body.proposal)
            raise
        self._put(marked)
        for one in going:
            entry_of = room.recorder.entry(
                "destroy", caller, one.kid, op_id=body.op_id, proposal=body.proposal, attestation=one.attestation
            )
            await room.recorder.record(entry_of)
            await room.lanes.whole(kid.tenant, room.backend.destroy, one.kid)
        answer = DestroyResponse(kid=str(kid))
        await self._gone(going, _answered(act, answer))
        return answer

    async def _gone(self, versions: Sequence[Version], act: Act | None) -> None:
        room = self._room
        room.note_custody()
        ended = [_as(one, "destroyed") for one in versions]
        room.recorder.mark = await room.store.change(ended, act)
        self._put(ended)
        room.attestations.forget()

    def _put(self, records: Sequence[VersionRecord]) -> None:
        for record in records:
            self._room.index.put(record)
            self._changed(record.kid)

    # Within: once

    async def _once(
        self,
        op: str,
        caller: Caller,
        kid: Kid,
        body: Any,
        answer: type[A],
        work: Callable[[Act | None], Coroutine[Any, Any, A]],
    ) -> A:
        """`work`, at most once for an op_id, also over restarts, and one at a time for a key."""
        telemetry = self._room.telemetry
        began_s = telemetry.begin()
        telemetry.asked(op, kid, **_named(body))
        try:
            with self._room.traces.during(f"svc.kms.{op}", kid):
                made = await self._guarded(op, caller, kid, body, answer, work)
        except Exception as error:
            telemetry.failed(op, began_s, error, kid, **_named(body))
            result = error.code.value if isinstance(error, RonError) else "Internal"
            self._room.recorder.note(
                self._room.recorder.entry(op, caller, kid, result=result, op_id=getattr(body, "op_id", None))
            )
            raise
        done = parse_kid(made.kid)
        telemetry.done(op, self._algs(done), began_s, done, **_named(body))
        return made

    def _algs(self, kid: Kid) -> tuple[Alg, ...]:
        """Of its halves; none for what an answer of long ago names and is not there any more."""
        try:
            return tuple(half.alg for half in self._room.index.version(kid).halves)
        except RonError:
            return ()

    async def _guarded(
        self,
        op: str,
        caller: Caller,
        kid: Kid,
        body: Any,
        answer: type[A],
        work: Callable[[Act | None], Coroutine[Any, Any, A]],
    ) -> A:
        op_id: str | None = body.op_id
        what = act_digest(caller.actor, f"{op} {kid if op != 'create' else ''}", body)

        async def whole() -> A:
            room = self._room
            act = None
            if op_id is not None:
                known = await room.store.known(kid.tenant, op_id)
                found = Known(known.digest, known.at_s, known.answer) if known is not None else None
                if judge(found, what, room.now_s()) is Step.ANSWER and known is not None and known.answer is not None:
                    return msgspec.json.decode(known.answer, type=answer)
                act = Act(kid.tenant, op_id, what, str(kid), None, room.now_s())
            # whoever asks again gets the answer even while nothing new may be done
            room.check_frozen(kid.tenant)
            room.guard.check_writes()
            return await self._alone(kid, work, act)

        key = (kid.tenant, op_id if op_id is not None else uuid.uuid4())
        made: A = await self._acts.do(key, what, whole)
        return made

    async def _alone(self, kid: Kid, work: Callable[[Act | None], Coroutine[Any, Any, A]], act: Act | None) -> A:
        if kid.key in self._busy:
            raise conflict("this key is being changed", "ask again in a moment")
        self._busy.add(kid.key)
        try:
            return await work(act)
        finally:
            self._busy.discard(kid.key)

    # At the start

    async def settle(self) -> int:
        """Bring to an end what a crash or an outage left: made versions come into force, others are given up; what was
        to be destroyed is. How many there were. Raises `RonError` where the backend cannot be asked."""
        room = self._room
        # the service's own keys are brought to an end by whoever has begun them
        begun = [one for one in room.index.unsettled() if one.kid.key not in self._busy]
        unsettled = [one for one in begun if one.kid.tenant != SYSTEM]
        if not unsettled:
            return 0
        held = {one.kid: one for one in await room.lanes.whole("", room.backend.held)}
        for version in unsettled:
            found = held.get(version.kid)
            if version.state == "destroying":
                await self._settle_destroyed(version)
            elif found is not None:
                await self._settle_made(version, found)
            else:
                room.recorder.mark = await room.store.abandon(version.kid, None)
                room.index.drop(version.kid)
        return len(unsettled)

    async def _settle_made(self, version: Version, held: Held) -> None:
        room, kid = self._room, version.kid
        op = "create" if kid.version == 1 else "rotate"
        entry = room.recorder.entry(op, _NOBODY, kid, attestation=held.attestation_class, recovered=True)
        await room.recorder.record(entry)
        record = VersionRecord(kid, "live", held.halves, held.attestation_class, room.now_s())
        room.recorder.mark = await room.store.settle(record, _settled_answer(op, record))
        self._put([record])

    async def _settle_destroyed(self, version: Version) -> None:
        room = self._room
        await room.recorder.record(room.recorder.entry("destroy", _NOBODY, version.kid, recovered=True))
        await room.lanes.whole(version.kid.tenant, room.backend.destroy, version.kid)
        await self._gone([version], None)


def _named(body: Any) -> dict[str, str]:
    """For a log event: the op_id, which is the caller's own and no input."""
    return {"op_id": body.op_id} if body.op_id is not None else {}


def _answered(act: Act | None, answer: msgspec.Struct) -> Act | None:
    return act._replace(answer=msgspec.json.encode(answer)) if act is not None else None


def _settled_answer(op: str, record: VersionRecord) -> bytes:
    """What whoever asked for it would have heard."""
    version, kid = _shown(record), record.kid
    if op == "create":
        return msgspec.json.encode(CreateKeyResponse(kid=str(kid), public=public_of(version)))
    return msgspec.json.encode(RotateResponse(kid=str(kid), previous=str(kid.at(kid.version - 1))))


def _shown(record: VersionRecord) -> Version:
    by_alg = {half.alg: half.public for half in record.halves}
    return Version(record.kid, record.state, record.halves, by_alg, record.attestation, rfc3339(record.created_s))


def _as(version: Version, state: Any) -> VersionRecord:
    return VersionRecord(version.kid, state, version.halves, version.attestation, 0.0)
