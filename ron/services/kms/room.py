"""What every operation of the service stands on, made once and handed to all of them.

In: collaborators. Out: a `Room`, and the few questions that all operations ask of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from twisted.logger import Logger

from ron.kernel.limits import Refused
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Attestation
from ron.services.kms import phases
from ron.services.kms.config import KmsConfig
from ron.services.kms.index import KeyIndex, Version
from ron.services.kms.lanes import Lanes
from ron.services.kms.phases import Phase, PqSettings
from ron.services.kms.ports import Backend, Quorum
from ron.services.kms.readiness import Guard
from ron.services.kms.recorder import Recorder
from ron.services.kms.store import KmsStore
from ron.services.kms.telemetry import KmsTelemetry
from ron.services.kms.tracing import Spans

_log = Logger(namespace="ron.kms")


@runtime_checkable
class Counting(Protocol):
    """A backend whose own store counts its changes."""

    def head(self) -> tuple[int, bytes]:
        """How many, and the digest of the last."""

    def check_head(self, counter: int, digest: bytes) -> None:
        """Raises `RonError` (Conflict) unless it is the store that was there once, then or later."""


@runtime_checkable
class Lending(Protocol):
    """A quorum whose permissions can be given back."""

    def give_back(self, proposal: str) -> None:
        """It was not made use of. Raises `RonError`."""


@dataclass(kw_only=True)
class Room:
    """wishes: the config in force. now_s: Unix time. steady_s: of a clock that does not go back."""

    reactor: Any
    wishes: Callable[[], KmsConfig]
    now_s: Callable[[], float]
    index: KeyIndex
    store: KmsStore
    backend: Backend
    lanes: Lanes
    recorder: Recorder
    quorum: Quorum
    guard: Guard
    telemetry: KmsTelemetry
    attestations: Attestations
    traces: Spans = field(default_factory=Spans)

    def settings(self) -> PqSettings:
        """The `pq` section as `phases` has it."""
        pq = self.wishes().pq
        return PqSettings(pq.produce_hybrid, pq.verify_mode, pq.rollout_percent, pq.min_verify_mode)

    def phase(self, tenant: str) -> Phase:
        """Where `tenant` is on its way."""
        return phases.tenant_phase(self.settings(), tenant, self.quorum.pq_mode(tenant))

    def check_allowed(self, version: Version) -> None:
        """Raises Unsupported for a key of an algorithm that was taken off the list."""
        allowed = self.wishes().service.allowed_algs
        gone = [half.alg for half in version.halves if half.alg not in allowed]
        if len(gone) == len(version.halves):
            raise RonError(ErrorCode.UNSUPPORTED, f"{gone[0]} is not allowed here any more", hint="use another key")

    def note_custody(self) -> None:
        """The backend has changed: from now on every record says where its store stands."""
        if isinstance(self.backend, Counting):
            counter, digest = self.backend.head()
            self.recorder.custody = f"{counter}:{digest.hex()}"

    def check_custody(self, known: str) -> None:
        """known: what a record said. Raises `RonError` (Conflict) for a backend whose store is an older copy."""
        if isinstance(self.backend, Counting) and known:
            counter, _, digest = known.partition(":")
            self.backend.check_head(int(counter), bytes.fromhex(digest))

    def give_back(self, proposal: str) -> None:
        """What a quorum allowed was not begun: it may be tried again."""
        if isinstance(self.quorum, Lending):
            self.quorum.give_back(proposal)

    def check_frozen(self, tenant: str) -> None:
        """Raises `Refused` (403) while a quorum has frozen the tenant."""
        freeze = self.quorum.frozen(tenant)
        if freeze is not None:
            hint = "it ends by itself, or by the quorum"
            raise Refused("frozen", ErrorCode.NO_CAPABILITY, f"this tenant is frozen ({freeze})", hint=hint)


class Attestations:
    """Where keys live, asked of the backend once for each. At most `MOST` are remembered."""

    MOST = 4096

    def __init__(self, backend: Backend, telemetry: KmsTelemetry, traces: Spans | None = None) -> None:
        self._backend = backend
        self._telemetry = telemetry
        self._traces = traces or Spans()
        self._known: dict[str, Attestation | None] = {}

    async def of(self, version: Version, lanes: Lanes, *, required: bool = False) -> Attestation | None:
        """Evidence for a version, or None. required: raises AttestationMissing instead, also where asking fails."""
        kid = str(version.kid)
        if kid not in self._known:
            await self._ask(version, lanes, required=required)
        found = self._known.get(kid)
        if required and (found is None or found.evidence is None):
            raise RonError(
                ErrorCode.ATTESTATION_MISSING, "there is no evidence of where this key lives", hint="see attest_require"
            )
        return found

    async def _ask(self, version: Version, lanes: Lanes, *, required: bool) -> None:
        counted = self._telemetry.attests
        try:
            with self._traces.during("svc.kms.attest.refresh", version.kid, backend=self._backend.name):
                made = await lanes.run(version.kid.tenant, "attest", self._backend.attest, version.kid)
        except RonError as error:
            _log.warn("no evidence: {why}", event="attestation_refresh_failed", why=error.message, kid=str(version.kid))
            counted.labels(self._backend.name, "err").inc()
            if required:
                raise
            return
        counted.labels(self._backend.name, "ok" if made is not None else "none").inc()
        if made is not None:
            _log.info("evidence", event="attestation_refresh_ok", kid=str(version.kid), attestation_class=made.class_)
        if len(self._known) >= self.MOST:
            self._known.pop(next(iter(self._known)))
        self._known[str(version.kid)] = made

    def forget(self) -> None:
        """Ask again: the backend was away."""
        self._known.clear()
