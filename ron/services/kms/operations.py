"""What keys are used for: sign, verify, wrap, unwrap.

In: checked requests and who asks. Out: answers, each of a private half only after its record is on disk.
Order: tenant → what stands in the way → policy → the key → the backend → the record → the answer.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import msgspec

from ron.crypto import signing, wrapping
from ron.kernel.threads import BoundedPool
from ron.proto.errors import RonError, bad_request, not_found
from ron.proto.kms import (
    MAX_WRAPPED_KEY_BYTES,
    Alg,
    Attestation,
    Kid,
    Signature,
    SignRequest,
    SignResponse,
    UnwrapRequest,
    UnwrapResponse,
    VerifyMode,
    VerifyRequest,
    VerifyResponse,
    WrapRequest,
    WrapResponse,
    chosen,
    parse_kid,
)
from ron.services.kms import phases
from ron.services.kms.acts import Acts
from ron.services.kms.index import Version
from ron.services.kms.model import Caller, b64, candidates, check_one_tenant, kem_publics, unb64
from ron.services.kms.once import act_digest
from ron.services.kms.rates import Rates
from ron.services.kms.recorder import hashed
from ron.services.kms.redaction import stands_for
from ron.services.kms.room import Room

T = TypeVar("T")
MOST_SIGNATURE_BYTES = 8192
# Verifications that are cheap enough for the reactor's thread: one key with both halves.
_INLINE = 2


class Custody:
    """The operations. rates: how often may be signed. verifying: where many verifications at a time are made."""

    def __init__(self, room: Room, *, rates: Rates, verifying: BoundedPool) -> None:
        self._room = room
        self.rates = rates
        self._verifying = verifying
        self._signed = Acts()

    # Sign

    async def sign(self, caller: Caller, body: SignRequest) -> SignResponse:
        """The 32 bytes of `payload_b3`, signed by the halves that policy asks for."""
        kids = chosen(body.kid_or_set)
        for kid in kids:
            caller.require_own(kid.tenant)
        check_one_tenant(kids)

        async def act() -> SignResponse:
            return await self._counted("sign", caller, kids[0], self._sign(caller, kids, body), body)

        if body.op_id is None:
            return await act()
        what = act_digest(caller.actor, "sign", body)
        signed: SignResponse = await self._signed.do((kids[0].tenant, body.op_id), what, act)
        return signed

    async def _sign(self, caller: Caller, kids: Sequence[Kid], body: SignRequest) -> SignResponse:
        room, tenant = self._room, kids[0].tenant
        self._admit(tenant)
        version = self._signing(kids)
        room.check_allowed(version)
        algs = self._algs(version, body)
        message = bytes.fromhex(body.payload_b3)
        sigs = tuple([await self._half(version, alg, message) for alg in algs])
        attestation = await self._attested(version)
        where = attestation.class_ if attestation is not None else version.attestation
        entry = room.recorder.entry(
            "sign", caller, version.kid, algs=algs, input_b3=body.payload_b3, op_id=body.op_id, attestation=where
        )
        await room.recorder.record(entry)
        return SignResponse(sigs=sigs, kid=str(version.kid), attestation=attestation)

    def _admit(self, tenant: str) -> None:
        """Raises `Refused` for what cannot or may not be signed just now."""
        self._room.check_frozen(tenant)
        self._room.guard.check_writes()
        self.rates.check(tenant, self._room.reactor.seconds())

    def _signing(self, kids: Sequence[Kid]) -> Version:
        """The first that may sign. Raises what is wrong with the last."""
        for number, kid in enumerate(kids, 1):
            try:
                return self._room.index.signing(kid)
            except RonError:
                if number == len(kids):
                    raise
        raise not_found("there is no such key")

    def _algs(self, version: Version, body: SignRequest) -> tuple[Alg, ...]:
        phase = self._room.phase(version.kid.tenant)
        asked = body.policy.produce_hybrid if body.policy is not None else None
        hybrid = version.kid.alg == "hybrid"
        return phases.signing_algs(version.by_alg, phase, hybrid_key=hybrid, asked=asked)

    async def _half(self, version: Version, alg: Alg, message: bytes) -> Signature:
        backend, kid = self._room.backend, version.kid
        with self._room.traces.during(f"backend.{backend.name}.sign", kid, alg=alg, backend=backend.name):
            if backend.quick and alg is Alg.ED25519:
                raw = backend.sign(kid, alg, message)
            else:
                raw = await self._room.lanes.run(kid.tenant, "sign", backend.sign, kid, alg, message)
        return Signature(alg=alg, signature_b64=b64(raw))

    async def _attested(self, version: Version) -> Attestation | None:
        """What goes with a signature. Raises AttestationMissing where it must be there and is not."""
        rank = self._room.wishes().security.attest_require
        if rank == "never":
            return None
        return await self._room.attestations.of(version, self._room.lanes, required=rank == "required")

    # Verify

    async def verify(self, caller: Caller, body: VerifyRequest) -> VerifyResponse:
        """Do these signatures hold, and do they satisfy the mode? `ok: false` is an answer, not an error."""
        kid = chosen(body.kid_or_set)[0] if body.kid_or_set is not None else None
        return await self._counted("verify", caller, kid, self._verify(caller, body), body)

    async def _verify(self, caller: Caller, body: VerifyRequest) -> VerifyResponse:
        room = self._room
        versions = self._versions(caller, body)
        if not versions:
            raise not_found("no version of this key has such halves")
        age_ms = room.guard.check_reads()
        if age_ms is not None and age_ms > room.wishes().audit.verify_cache_ttl_ms:
            room.telemetry.cache_expired.inc()
        tenant = versions[0].kid.tenant
        mode = self._mode(tenant, body)
        message = bytes.fromhex(body.payload_b3)
        sigs = {alg: unb64(one.signature_b64, "signature_b64", MOST_SIGNATURE_BYTES)
                for alg, one in phases.screened(body.sigs).items()}  # fmt: skip
        if len(versions) * len(sigs) <= _INLINE:
            answer = _judged(versions, sigs, message, mode)
        else:
            answer = await self._pooled(versions, sigs, message, mode)
        room.telemetry.cache_hits.labels("true").inc()
        kid = parse_kid(answer.kid) if answer.kid is not None else versions[0].kid
        checked = answer.details.checked
        entry = room.recorder.entry("verify", caller, kid, algs=checked, input_b3=body.payload_b3, holds=answer.ok)
        room.recorder.note(entry)
        return msgspec.structs.replace(answer, cache_age_ms=age_ms) if age_ms is not None else answer

    def _versions(self, caller: Caller, body: VerifyRequest) -> list[Version]:
        """Whom to try, newest first. Raises NotFound for a key that is not there, BadRequest where none is named."""
        index = self._room.index
        algs = [one.alg for one in body.sigs]
        if body.kid_or_set is None:
            if caller.tenant is None:
                raise bad_request("name the key", "kid_or_set, or a capability with a caveat on one tenant")
            found = candidates(index.of_tenant(caller.tenant), algs)
            if not found:
                raise not_found("this tenant has no key")
            return found
        kids = chosen(body.kid_or_set)
        for kid in kids:
            caller.require(kid.tenant)
        check_one_tenant(kids)
        exact = [index.version(kid) for kid in kids if kid.version]
        return exact + candidates([index.entry(kid) for kid in kids if not kid.version], algs)

    def _mode(self, tenant: str, body: VerifyRequest) -> VerifyMode:
        decided = self._room.quorum.pq_mode(tenant)
        minimum = self._room.settings().min_verify_mode
        asked = body.policy.mode if body.policy is not None else None
        return phases.verify_mode(self._room.phase(tenant), asked, minimum=minimum, decided=decided)

    async def _pooled(
        self, versions: Sequence[Version], sigs: dict[Alg, bytes], message: bytes, mode: VerifyMode
    ) -> VerifyResponse:
        return await self._verifying.run(_judged, versions, sigs, message, mode)

    # Wrap

    async def wrap(self, caller: Caller, body: WrapRequest) -> WrapResponse:
        """A key sealed for a key: HPKE, by default with both halves."""
        kid = parse_kid(body.kid)
        caller.require_own(kid.tenant)
        return await self._counted("wrap", caller, kid, self._wrap(caller, kid, body), body)

    async def _wrap(self, caller: Caller, kid: Kid, body: WrapRequest) -> WrapResponse:
        room = self._room
        secret = _to_wrap(body)
        self._admit(kid.tenant)
        version = room.index.signing(kid)
        room.check_allowed(version)
        phases.check_kem(room.phase(kid.tenant), body.kem_mode)
        suite = wrapping.suite_of(body.kem_mode)
        envelope = wrapping.wrap(version.kid, suite, kem_publics(version, body.kem_mode), secret)
        entry = room.recorder.entry("wrap", caller, version.kid, algs=suite.algs, input_b3=hashed(envelope))
        await room.recorder.record(entry)
        return WrapResponse(wrapped_b64=b64(envelope), alg=suite.value, kid=str(version.kid))

    async def unwrap(self, caller: Caller, body: UnwrapRequest) -> UnwrapResponse:
        """The key that was wrapped."""
        kid = parse_kid(body.kid)
        caller.require_own(kid.tenant)
        return await self._counted("unwrap", caller, kid, self._unwrap(caller, kid, body), body)

    async def _unwrap(self, caller: Caller, kid: Kid, body: UnwrapRequest) -> UnwrapResponse:
        room = self._room
        envelope = unb64(body.wrapped_b64, "wrapped_b64", wrapping.MAX_ENVELOPE_BYTES)
        head = wrapping.read_head(envelope)
        if kid.version not in {0, head.key_version}:
            raise bad_request("the envelope is for another version of this key", "leave out #vN: the envelope says it")
        self._admit(kid.tenant)
        version = room.index.signing(kid.at(head.key_version))
        room.check_allowed(version)
        suite, info = head.suite, wrapping.info_of(version.kid, head.suite)
        name = room.backend.name
        with room.traces.during(f"backend.{name}.unwrap", version.kid, alg=suite.value, backend=name):
            opened = await room.lanes.run(
                kid.tenant, "unwrap", room.backend.unwrap, version.kid, suite.value, envelope, info
            )
        entry = room.recorder.entry(
            "unwrap", caller, version.kid, algs=suite.algs, input_b3=hashed(envelope), attestation=version.attestation
        )
        await room.recorder.record(entry)
        return UnwrapResponse(plaintext_key_b64=b64(opened), alg=suite.value, kid=str(version.kid))

    # Within

    async def _counted(
        self, op: str, caller: Caller, kid: Kid | None, work: Coroutine[Any, Any, T], body: msgspec.Struct
    ) -> T:
        """`work`, counted, timed, and recorded when it is refused."""
        telemetry = self._room.telemetry
        began_s = telemetry.begin()
        if telemetry.chatty:
            telemetry.asked(op, kid, **stands_for(self._room.wishes().observability.redact_level, body))
        try:
            with self._room.traces.during(f"svc.kms.{op}", kid) as span:
                answer = await work
                if span is not None:
                    algs, mode = "+".join(_algs_of(answer)), self._room.wishes().pq.verify_mode
                    span.set({**_told(answer), "alg": algs, "pq_mode": mode})
        except Exception as error:
            telemetry.failed(op, began_s, error, kid)
            result = error.code.value if isinstance(error, RonError) else "Internal"
            self._room.recorder.note(self._room.recorder.entry(op, caller, kid, result=result))
            raise
        more = _told(answer) if telemetry.chatty else {}
        telemetry.done(op, _algs_of(answer), began_s, kid, **more)
        return answer


def _judged(versions: Sequence[Version], sigs: dict[Alg, bytes], message: bytes, mode: VerifyMode) -> VerifyResponse:
    """The first version that satisfies `mode`, or the one that comes nearest. From any thread."""
    best: VerifyResponse | None = None
    for version in versions:
        holding = [
            alg
            for alg, sig in sigs.items()
            if alg in version.by_alg and signing.verify(alg, version.by_alg[alg], message, sig)
        ]
        details = phases.verdict(mode, version.by_alg, holding)
        ok = details.satisfied_mode is not None
        if ok or best is None or len(details.checked) > len(best.details.checked):
            best = VerifyResponse(ok=ok, details=details, kid=str(version.kid) if details.checked else None)
        if ok:
            break
    if best is None:
        raise not_found("there is no such key")
    return best


def _to_wrap(body: WrapRequest) -> bytes:
    """What is to be wrapped, or fresh bytes of the system's. Raises BadRequest for both or none."""
    if (body.plaintext_key_b64 is None) == (body.size is None):
        raise bad_request("give either plaintext_key_b64 or size")
    if body.size is not None:
        return os.urandom(body.size)
    raw = unb64(body.plaintext_key_b64 or "", "plaintext_key_b64", MAX_WRAPPED_KEY_BYTES)
    if not raw:
        raise bad_request("there is nothing to wrap", f"1 to {MAX_WRAPPED_KEY_BYTES} bytes")
    return raw


def _told(answer: Any) -> dict[str, Any]:
    """For a span and a log event: what is known of an operation only once it is done."""
    said: dict[str, Any] = {}
    if answer.kid is not None:
        said["kid_version"] = parse_kid(answer.kid).version
    if (age_ms := getattr(answer, "cache_age_ms", None)) is not None:
        said["cache_age_ms"] = age_ms
    if (attestation := getattr(answer, "attestation", None)) is not None:
        said["attestation_class"] = attestation.class_
    return said


def _algs_of(answer: Any) -> tuple[Alg, ...]:
    if isinstance(answer, SignResponse):
        return tuple(one.alg for one in answer.sigs)
    if isinstance(answer, VerifyResponse):
        return answer.details.checked
    return wrapping.Suite(answer.alg).algs
