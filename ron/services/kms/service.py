"""The key service as one thing with a beginning and an end: what operates, what it stands on, and who looks after it.

In: collaborators (backend, audit log, quorum), the config. Out: the desk of `api.py`; readiness, metrics.
Start: store → index → backend → log → is either older than the other? → what a crash left. Where the store has keys,
verifying works without the backend.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.crypto.notes import KeySet
from ron.kernel import HealthState, Metrics
from ron.kernel.aio import cancellable
from ron.kernel.openspans import OpenSpans
from ron.kernel.threads import BoundedPool
from ron.kernel.units import DAY_S
from ron.proto.errors import RonError, unavailable
from ron.proto.kms import Kid
from ron.services.kms.config import KmsConfig
from ron.services.kms.fairness import FairQueue
from ron.services.kms.figures import KmsFigures
from ron.services.kms.index import KeyIndex
from ron.services.kms.inforce import InForce
from ron.services.kms.keeper import Keeper
from ron.services.kms.keys import Keys
from ron.services.kms.lanes import Lanes
from ron.services.kms.logkey import LogKey
from ron.services.kms.logrotation import LogRotation
from ron.services.kms.logsealing import LogSealing
from ron.services.kms.once import KEPT_S
from ron.services.kms.operations import Custody
from ron.services.kms.ports import Backend, Quorum
from ron.services.kms.rates import Rates
from ron.services.kms.readiness import Guard, Snapshot
from ron.services.kms.recorder import CUSTODY, HEAD, STORE, Log, Recorder
from ron.services.kms.room import Attestations, Room
from ron.services.kms.store import KmsStore
from ron.services.kms.telemetry import KmsTelemetry
from ron.services.kms.tracing import Spans
from ron.store import BatchReport

Sign = Callable[[bytes], Awaitable[bytes]]
# Two calls to a token or to scrypt at a time on two cores; the rest waits in its tenant's turn.
THREADS = 2
_log = Logger(namespace="ron.kms")


class OwnLog(Log, Protocol):
    """The log as its owner knows it."""

    async def open(self) -> None:
        """Read it, see that it is what it was. Raises `RonError`."""

    async def close(self) -> None:
        """Sign the end of it, let go."""

    def alarm(self, why: str) -> None:
        """Count that something contradicts it."""

    def newest(self, name: str) -> Mapping[str, Any]:
        """The extras of its newest record that has `name` in them; empty for none."""

    @property
    def trouble(self) -> str | None:
        """Why it takes no records."""

    @property
    def checkpoint_age_s(self) -> float:
        """Since the newest."""

    @property
    def checkpoint_failing(self) -> bool:
        """The last one could not be made."""


class KmsService(Service):
    """The service. path: the store's file, None under amnesia. make_log: by its name, the keys that signed it, and what
    signs. prefix: of readiness keys. opened: awaited once the log
    is open, before anything is asked of the quorum. now_s: Unix time. announce: topic and body, for the bus (INTEROP
    §3.1). spans: of the process, None where nothing is traced."""

    def __init__(
        self,
        reactor: Any,
        wishes: Callable[[], KmsConfig],
        *,
        path: Path | None,
        backend: Backend,
        make_log: Callable[[str, Sequence[KeySet], Sign], OwnLog],
        quorum: Quorum,
        health: HealthState,
        metrics: Metrics,
        now_s: Callable[[], float],
        chatty: Callable[[], bool] = lambda: False,
        prefix: str = "",
        opened: Callable[[], Awaitable[None]] | None = None,
        announce: Callable[[str, dict[str, Any]], None] = lambda _topic, _body: None,
        spans: OpenSpans | None = None,
    ) -> None:
        config = wishes()
        self._wishes = wishes
        self._reactor = reactor
        self._now_s = now_s
        self._opened = opened
        self._announce = announce
        self._announced: bytes | None = None
        self._make_log = make_log
        self._own_log: OwnLog | None = None
        self.guard = Guard(
            health, steady_s=reactor.seconds, ttl_ms=lambda: wishes().audit.verify_cache_ttl_ms, prefix=prefix
        )
        self.guard.on_change = self._tell_change
        self.telemetry = KmsTelemetry(metrics, reactor.seconds, chatty)
        traces = Spans(spans)
        self._store = KmsStore(path, reactor=reactor, observe=self._observe_store)
        limits = config.limits
        self._queue = queue = FairQueue[Any](capacity=limits.max_inflight_sign, floor=limits.tenant_share_min)
        self._lanes = Lanes(reactor, threads=THREADS, queue=queue, metrics=metrics)
        self._verifying = BoundedPool(reactor, name="kms-verify", threads=1, queue_limit=limits.max_inflight_verify)
        self.room = Room(
            reactor=reactor,
            wishes=wishes,
            now_s=now_s,
            index=KeyIndex(),
            store=self._store,
            backend=backend,
            lanes=self._lanes,
            recorder=Recorder(now_s=now_s, traces=traces),
            quorum=quorum,
            guard=self.guard,
            telemetry=self.telemetry,
            attestations=Attestations(backend, self.telemetry, traces),
            traces=traces,
        )
        self._figures = KmsFigures(
            clock=reactor.seconds,
            phase=self.room.phase,
            ttl_ms=lambda: wishes().audit.verify_cache_ttl_ms,
            known=lambda: self.room.index.size,
        )
        self._figures.register(metrics.registry)
        # told of each key version that has changed
        self.on_key: Callable[[Kid], None] = lambda _kid: None
        self._custody = Custody(self.room, rates=self._rates(config), verifying=self._verifying)
        self._log_key = LogKey(self.room)
        self._log_rotation = LogRotation(self._log_key)
        self._log_sealing = LogSealing(self._log_key, self.guard, wishes)
        self.rotate_log_key = self._log_rotation.rotate
        self._keys = Keys(self.room, changed=self._changed)
        self._in_force = InForce(self.room, self.guard, wishes)
        self._keeper = Keeper(
            reactor,
            wishes=wishes,
            backend=backend,
            store=self._store,
            guard=self.guard,
            telemetry=self.telemetry,
            wall_s=now_s,
            log_trouble=self._log_trouble,
            settle=self._settle,
            opened=self._check_custody,
            returned=self.room.attestations.forget,
        )
        # what the audit log knows of the store and the store does not: it is an older copy
        self._rolled_back = self._custody_known = ""
        self._swept_s = now_s()
        self._begun: Deferred[None] | None = None
        # what was begun, in its order
        self._open: list[Callable[[], Any]] = []
        self.sign, self.verify = self._custody.sign, self._custody.verify
        self.wrap, self.unwrap = self._custody.wrap, self._custody.unwrap
        self.create, self.rotate, self.destroy = self._keys.create, self._keys.rotate, self._keys.destroy
        self.get, self.list, self.attest = self._keys.get, self._keys.list, self._keys.attest

    # Life

    def startService(self) -> None:
        """Begin; `ready` says how it went."""
        super().startService()
        self._begun = Deferred.fromCoroutine(self._begin())
        self._begun.addErrback(self._not_begun)

    async def ready(self) -> None:
        """Return once it answers. Raises what beginning raised."""
        if self._begun is not None:
            await cancellable(self._begun)

    def stopService(self) -> Deferred[None]:
        """End; fires when nothing of it is left."""
        if not self.running:
            return succeed(None)
        super().stopService()
        if self._begun is not None:
            self._begun.addErrback(lambda _failure: None)
            self._begun.cancel()
        return Deferred.fromCoroutine(self._end())

    def apply(self, old: KmsConfig, new: KmsConfig) -> None:
        """What takes effect without a restart and is not read at each use."""
        if new.security.sign_rate_limit_rps != old.security.sign_rate_limit_rps:
            self._custody.rates = self._rates(new)
        self._queue.resize(capacity=new.limits.max_inflight_sign, floor=new.limits.tenant_share_min)
        self._verifying.resize(new.limits.max_inflight_verify)
        # at once; what is allowed goes on record with the keeper's next round
        self._in_force.look()

    async def _settle_log_key(self) -> None:
        await self._log_rotation.settle()
        await self._log_sealing.look()

    async def _settle(self) -> None:
        await self._settle_log_key()
        if abs(self._now_s() - self._swept_s) > DAY_S:
            self._swept_s = self._now_s()
            await self._store.forget_acts(self._swept_s - KEPT_S)
        await self._keys.settle()
        await self._in_force.settle()

    async def _begin(self) -> None:
        self._lanes.start()
        self._open.append(self._lanes.stop)
        self._verifying.start()
        self._open.append(self._verifying.stop)
        await self._store.start()
        self._open.append(self._store.stop)
        found = await self._store.load()
        self.room.index.load(found.keys, found.versions)
        self.room.recorder.mark = found.mark
        await self._store.forget_acts(self._now_s() - KEPT_S)
        self._keeper.start()
        self._open.append(self._keeper.close)
        await self._keeper.open()
        await self._open_log()
        if self._opened is not None:
            await self._opened()
        for entry in self.room.index:
            self._changed(entry.at(0).kid)
        await self._in_force.begin()
        self.guard.ok("config_loaded")
        self._in_force.look()
        await self._keeper.first()
        self._figures.evidence.set(not self.guard.why_not("attestation_ready"))

    async def _open_log(self) -> None:
        """With the keys that signed it. Raises `RonError` at a first start without the backend: there is none yet."""
        if not self._log_key.find():
            if not self._keeper.is_open:
                why = self.guard.why_not("backend_ready")
                raise unavailable(f"at the first start the backend must be there: {why}", hint="mend it, start again")
            await self._log_key.make()
        made = self._make_log(self._log_key.origin, self._log_key.key_sets(), self._sign_head)
        await made.open()
        self._open.append(made.close)
        self._own_log = self.room.recorder.log = made
        await self._compare()
        if made.writable:
            await self._log_key.settle(self.room.recorder)
            # what cannot be brought to an end now is in the keeper's next round, which says why not
            with suppress(RonError):
                await self._settle_log_key()

    async def _sign_head(self, text: bytes) -> bytes:
        with self.room.traces.on_its_own("svc.kms.audit.checkpoint", backend=self.room.backend.name):
            return await self._log_key.sign(text)

    async def _end(self) -> None:
        self._keeper.stop()
        while self._open:
            ending = self._open.pop()()
            if isinstance(ending, Awaitable):
                await ending

    def _not_begun(self, failure: Failure) -> Failure:
        if not failure.check(CancelledError, RonError):
            _log.failure("the key service did not start", failure, event="kms_not_started")
        return failure

    @property
    def log(self) -> OwnLog:
        """The audit log. Raises StoreUnavailable before it is there."""
        if self._own_log is None:
            raise unavailable("the audit log is not open yet")
        return self._own_log

    # Is the store what it was?

    async def _compare(self) -> None:
        """Every record of the log says where the store was. A store that is not as far is an older copy (I-6)."""
        said = {name: value for name, value in self.newest(STORE).items() if name in {STORE, HEAD}}
        # while a backend was away its records had nothing to say of it
        self._custody_known = self.room.recorder.custody = str(self.newest(CUSTODY).get(CUSTODY, ""))
        self.room.recorder.said = {**said, CUSTODY: self._custody_known} if self._custody_known else said
        counter, head = int(said.get(STORE, 0)), str(said.get(HEAD, ""))
        mark = self.room.recorder.mark
        known = await self._store.head_at(counter) if counter else b""
        if mark.counter < counter:
            self.distrust(f"the store is {counter - mark.counter} changes older than the audit log")
        elif counter and known is not None and not known.hex().startswith(head):
            self.distrust("the store has another past than the audit log")
        self._check_custody()

    def _check_custody(self) -> None:
        """The same for the backend's own store, once both it and the log are open."""
        if not self._keeper.is_open or self._own_log is None:
            return
        try:
            self.room.check_custody(self._custody_known)
        except RonError as error:
            self.distrust(error.message)
        else:
            self.room.note_custody()

    def distrust(self, why: str) -> None:
        """What stands beside the log is older than it says: nothing is signed any more, until somebody has looked."""
        if not self._rolled_back:
            self._rolled_back = why
            self.room.recorder.insists = True
            self.log.alarm(why)
            _log.error("{why}", event="kms_rolled_back", why=why)

    def newest(self, name: str) -> Mapping[str, Any]:
        """The extras of the log's newest record that has `name` in them; empty for none."""
        return self.log.newest(name)

    # For health

    def snapshot(self) -> Snapshot:
        """What an operator wants to see beside readiness."""
        age_s = self.log.checkpoint_age_s if self.log.latest() is not None else None
        return Snapshot(
            backend=self.room.backend.name,
            pq_mode=self._wishes().pq.verify_mode,
            keys=sum(1 for _entry in self.room.index),
            audit_records=self.log.size,
            audit_last_checkpoint_age_s=round(age_s, 1) if age_s is not None else None,
        )

    def _log_trouble(self) -> tuple[str, str]:
        if self._own_log is None:
            return "it is not open yet", ""
        self._tell_checkpoint(self._own_log)
        broken = self._rolled_back or self.log.trouble or ("" if self.log.writable else "it takes no records")
        return broken, "the last checkpoint could not be made" if self.log.checkpoint_failing else ""

    def _tell_checkpoint(self, log: OwnLog) -> None:
        latest = log.latest()
        if latest is not None and latest.root != self._announced:
            self._announced = latest.root
            ok = not log.checkpoint_failing
            _log.info("the head of the log is signed", event="audit_checkpoint_ok", records=latest.size)
            self._announce("kms.audit.checkpoint", {"head": latest.root.hex(), "index": latest.size, "ok": ok})

    def _observe_store(self, report: BatchReport) -> None:
        self._keeper.observe_store(report)

    def _tell_change(self, key: str, trouble: str) -> None:
        if key == "checkpoint_recent" and trouble:
            _log.error("{why}", event="audit_checkpoint_failed", why=trouble)
        if key == "attestation_ready":
            self._figures.evidence.set(not trouble)
        if trouble:
            _log.warn("{key}: {why}", event="readyz_false", key=key, why=trouble)
        else:
            _log.info("{key} is well again", event="readyz_true", key=key)
        if key in {"backend_ready", "attestation_ready"}:
            said = {"backend": self.room.backend.name, "ok": not trouble}
            self._announce("kms.attestation.status" if key == "attestation_ready" else "kms.health", said)

    def _changed(self, kid: Kid) -> None:
        """A key has another newest version."""
        entry = self.room.index.entry(kid)
        self.telemetry.head(kid.at(entry.head))
        self.telemetry.known(kid)
        self._figures.met(kid.tenant)
        self.on_key(kid)

    @property
    def rates(self) -> Rates:
        """How much may be used a second."""
        return self._custody.rates

    def _rates(self, config: KmsConfig) -> Rates:
        return Rates(float(config.security.sign_rate_limit_rps), now_s=self._reactor.seconds())
