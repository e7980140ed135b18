"""`audit.sealing = "attested"`: the log's heads are bound to the device that keeps their key (SECURITY §3).

In: the log's key, the backend's evidence of where it lives. Out: that evidence in the log, at each start and for each
new key, so that whoever reads the log has it with the checkpoints that follow; trouble for `Guard` while there is none.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from blake3 import blake3
from twisted.logger import Logger

from ron.proto.errors import RonError
from ron.proto.kms import Kid
from ron.services.kms.config import KmsConfig
from ron.services.kms.logkey import LogKey
from ron.services.kms.model import SYSTEM, Caller
from ron.services.kms.readiness import Guard, Key

# A record has 32 KiB; a quote of a TPM has about three.
MOST_EVIDENCE = 24 * 1024
_KEY: Key = "log_attested"
_log = Logger(namespace="ron.kms.audit")


class LogSealing:
    """Of one service. Look once the log is open, then again and again: it costs nothing once it is proved."""

    def __init__(self, key: LogKey, guard: Guard, wishes: Callable[[], KmsConfig]) -> None:
        self._key = key
        self._guard = guard
        self._wishes = wishes
        self._proved: Kid | None = None

    async def look(self) -> None:
        """Ask for evidence where it is wanted and not in the log yet. Raises `RonError` when the log does not take it;
        until then nothing is signed."""
        if self._wishes().audit.sealing != "attested":
            if self._guard.why_not(_KEY):
                self._guard.ok(_KEY)
            return
        kid = self._key.present.kid
        if self._proved == kid:
            return
        evidence = await self._evidence(kid)
        if evidence is None:
            return
        await self._record(evidence)
        self._proved = kid
        self._guard.ok(_KEY)
        _log.info("the log's key is in a device", event="audit_key_attested", kid_version=kid.version)

    async def _evidence(self, kid: Kid) -> str | None:
        room = self._key.room
        try:
            made = await room.lanes.run(SYSTEM, "attest", room.backend.attest, kid)
        except RonError as error:
            self._guard.trouble(_KEY, f"there is no evidence of where the log's key lives: {error.message}")
            return None
        if made is None or made.evidence is None:
            self._guard.trouble(_KEY, "the log's key is in no device that could prove it: give the log another key")
            return None
        return made.evidence

    async def _record(self, evidence: str) -> None:
        room, version = self._key.room, self._key.present
        told: dict[str, str | int | bool] = {"log_evidence_b3": blake3(evidence.encode()).hexdigest()}
        if len(evidence) <= MOST_EVIDENCE:
            told["log_evidence"] = evidence
        entry = room.recorder.entry("attest", Caller(), version.kid, attestation=version.attestation)
        await room.recorder.record(msgspec.structs.replace(entry, extra={**entry.extra, **told}))
