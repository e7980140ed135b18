"""From operations to the audit log: what is answered is on disk before, and an outage of the log stops no verifying.

In: what was done, with which result. Out: an `AuditEntry` in the log; awaited where something was done with a private
half (I-2), otherwise handed over, to be left out when the log has too much to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from blake3 import blake3
from twisted.internet.defer import Deferred

from ron.proto.clock import rfc3339
from ron.proto.errors import unavailable
from ron.proto.kms import Alg, Kid
from ron.services.kms.model import Caller
from ron.services.kms.ports import AuditEntry, AuditLog
from ron.services.kms.store import NOTHING, Mark
from ron.services.kms.tracing import Spans

# What every record says of the metadata store, so that an older copy of that is noticed.
STORE = "store"
HEAD = "store_head"
# The same of a backend that counts its changes: `<counter>:<digest>`.
CUSTODY = "custody"


class Log(AuditLog, Protocol):
    """`AuditLog` that takes records which nobody waits for."""

    def inform(self, entry: AuditEntry) -> None:
        """Write it when there is time; it may be dropped."""


class Recorder:
    """now_s: Unix time. log: None until it is there. mark: where the metadata store stands, as far as it is on disk.
    custody: where the backend's own store stands, where it has one that counts.

    said: what the log said of the two when it was opened. insists: they are older than that. Records then repeat what
    was said: if they told of the older ones, the next start would believe those.
    """

    def __init__(self, *, now_s: Callable[[], float], traces: Spans | None = None) -> None:
        self.log: Log | None = None
        self.mark = NOTHING
        self.custody = ""
        self.said: dict[str, str | int | bool] = {}
        self.insists = False
        self._now_s = now_s
        self._stood: tuple[Mark, str, Mapping[str, str | int | bool]] | None = None
        self._traces = traces or Spans()

    def entry(
        self,
        op: str,
        caller: Caller,
        kid: Kid | None,
        *,
        result: str = "ok",
        algs: Sequence[Alg] = (),
        input_b3: str = "",
        op_id: str | None = None,
        attestation: str = "",
        **extra: str | int | bool,
    ) -> AuditEntry:
        """One record of what `caller` did with `kid`."""
        known = self.stand()
        return AuditEntry(
            op=op,
            result=result,
            ts=_timestamp(int(self._now_s())),
            tenant=kid.tenant if kid is not None else caller.tenant or "",
            kid=str(kid) if kid is not None else "",
            alg="+".join(algs),
            purpose=kid.purpose if kid is not None else "",
            input_b3=input_b3,
            actor=caller.actor,
            op_id=op_id or "",
            corr_id=caller.corr_id,
            attestation=attestation,
            extra={**known, **extra} if extra else known,
        )

    def stand(self) -> Mapping[str, str | int | bool]:
        """What every record says of the store and of the backend's own."""
        return self.said if self.insists else self._stand()

    def _stand(self) -> Mapping[str, str | int | bool]:
        """The same until one of the two has changed: entries share it, and none changes it."""
        if self._stood is None or self._stood[0] is not self.mark or self._stood[1] != self.custody:
            found: dict[str, str | int | bool] = {STORE: self.mark.counter, HEAD: self.mark.head.hex()[:16]}
            if self.custody:
                found[CUSTODY] = self.custody
            self._stood = (self.mark, self.custody, found)
        return self._stood[2]

    async def record(self, entry: AuditEntry) -> int:
        """Its index, once it is on disk. Raises `RonError` (StoreUnavailable): then nothing may be answered."""
        if self.log is None:
            raise unavailable("the audit log is not open yet")
        waiter: Deferred[int] = Deferred(lambda _waiter: None)
        # the log's own Deferred is not cancelled with a caller: the record is on its way
        self.log.append(entry).addBoth(lambda result: None if waiter.called else waiter.callback(result))
        with self._traces.during("svc.kms.audit.append"):
            return await waiter

    def note(self, entry: AuditEntry) -> None:
        """Hand it over and go on: what was asked needed no private half, or was refused."""
        if self.log is not None:
            self.log.inform(entry)


# the log has whole seconds, and formatting one costs more than the rest of an entry
@lru_cache(maxsize=2)
def _timestamp(unix_s: int) -> str:
    return rfc3339(unix_s)


def hashed(raw: bytes) -> str:
    """What stands for an input in the log."""
    return blake3(raw).hexdigest()
