"""The key service in a worker: signs, verifies, wraps and unwraps by itself; everything else it has the owner do.

In: calls of `KmsDesk`, frames of the owner. Out: answers; frames for the owner. A call with an op_id is the owner's,
too: one that comes again may come to another worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
from twisted.internet.defer import Deferred

from ron.crypto.secrets import SecretBuffer
from ron.kernel import HealthState, Metrics
from ron.kernel.openspans import OpenSpans
from ron.kernel.threads import BoundedPool
from ron.proto.errors import unavailable
from ron.proto.kms import (
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
    SignRequest,
    SignResponse,
    chosen,
)
from ron.proto.kmsaudit import RotateLogKeyRequest, RotateLogKeyResponse
from ron.proto.kmscalls import AttestRequest, DestroyCall, GetKeyRequest, ListKeysRequest, RotateCall
from ron.services.kms.config import KmsConfig
from ron.services.kms.fairness import FairQueue
from ron.services.kms.index import KeyIndex
from ron.services.kms.lanes import Lanes
from ron.services.kms.model import Caller
from ron.services.kms.operations import Custody
from ron.services.kms.ports import AuditLog
from ron.services.kms.readiness import Guard
from ron.services.kms.recorder import Recorder
from ron.services.kms.room import Attestations, Room
from ron.services.kms.store import KmsStore
from ron.services.kms.telemetry import KmsTelemetry
from ron.services.kms.tracing import Spans
from ron.services.kms.workers.frames import (
    MOST_IN_FLIGHT,
    Answer,
    Applied,
    Ask,
    Count,
    Counted,
    Downward,
    Go,
    Kept,
    Keys,
    Standing,
    Upward,
    Who,
)
from ron.services.kms.workers.lent import LentKeys
from ron.services.kms.workers.mirror import Mirror, SaidQuorum
from ron.services.kms.workers.pairlog import FollowedRates, PairLog

A = TypeVar("A", bound=msgspec.Struct)
# Calls of ours that the owner has not answered.
MOST_ASKED = 1024


class Surroundings(NamedTuple):
    """What a worker's process gives its service. wishes: the config in force. adopt: takes another, as JSON. exported:
    what the process has counted. chatty: does the log take single operations, too?"""

    reactor: Any
    wishes: Callable[[], KmsConfig]
    adopt: Callable[[bytes], None]
    metrics: Metrics
    exported: Callable[[], tuple[Any, ...]]
    now_s: Callable[[], float]
    chatty: Callable[[], bool]
    spans: OpenSpans | None = None


class WorkerService:
    """`KmsDesk` of worker number so and so of `workers`. send: to the owner. go: told once, when it may listen."""

    def __init__(
        self,
        around: Surroundings,
        master: SecretBuffer,
        *,
        workers: int,
        send: Callable[[Upward], None],
        go: Callable[[], None],
        congested: Callable[[], bool] = lambda: False,
    ) -> None:
        reactor, metrics, config = around.reactor, around.metrics, around.wishes()
        self._around = around
        self._send = send
        self._go = go
        self._asked: dict[int, Deferred[bytes]] = {}
        self._number = 0
        steady_s = reactor.seconds
        quorum, backend = SaidQuorum(), LentKeys(master, allow_unlocked=config.security.allow_unlocked)
        self._backend = backend
        self._rates = FollowedRates(steady_s)
        self._log = PairLog(
            reactor,
            send,
            most=MOST_IN_FLIGHT // workers,
            turned_away=self._rates.turned_away,
            congested=congested,
        )
        limits = config.limits
        queue: FairQueue[Any] = FairQueue(
            capacity=max(1, limits.max_inflight_sign // workers), floor=limits.tenant_share_min
        )
        # one thread for what takes long: the others of the machine's cores have workers of their own
        self._lanes = Lanes(reactor, threads=1, queue=queue, metrics=metrics)
        verifies = max(1, limits.max_inflight_verify // workers)
        self._verifying = BoundedPool(reactor, name="kms-verify", threads=1, queue_limit=verifies)
        telemetry = KmsTelemetry(metrics, steady_s, around.chatty)
        traces = Spans(around.spans)
        # what the owner told us is not ours to report
        guard = Guard(HealthState(), steady_s=steady_s, ttl_ms=lambda: around.wishes().audit.verify_cache_ttl_ms)
        recorder = Recorder(now_s=around.now_s, traces=traces)
        recorder.log = self._log
        # the owner says in each record where its store stands; what we knew of that would be older
        recorder.insists = True
        self.room = Room(
            reactor=reactor,
            wishes=around.wishes,
            now_s=around.now_s,
            index=KeyIndex(),
            # never opened: what would change something there is the owner's
            store=KmsStore(None, reactor=reactor),
            backend=backend,
            lanes=self._lanes,
            recorder=recorder,
            quorum=quorum,
            guard=guard,
            telemetry=telemetry,
            attestations=Attestations(backend, telemetry, traces),
            traces=traces,
        )
        self._custody = Custody(self.room, rates=self._rates, verifying=self._verifying)
        self._mirror = Mirror(self.room.index, backend, guard, quorum, around.adopt)
        self.verify, self.wrap, self.unwrap = self._custody.verify, self._custody.wrap, self._custody.unwrap
        self._heard: dict[type[Any], Callable[[Any], None]] = {
            Keys: self._mirror.keys,
            Standing: self._stand,
            Go: lambda _frame: self._go(),
            Kept: self._log.kept,
            Answer: self._answered,
            Count: self._count,
        }

    def start(self) -> None:
        """Threads are there."""
        self._lanes.start()
        self._verifying.start()

    def stop(self) -> None:
        """Wipe keys, end threads. Blocks for what runs."""
        self._verifying.stop()
        self._lanes.stop()
        self._backend.close()

    def heard(self, frame: Downward) -> None:
        """The owner has said something."""
        self._heard[type(frame)](frame)

    # `KmsDesk`

    async def sign(self, caller: Caller, body: SignRequest) -> SignResponse:
        """Here, but for one with an op_id."""
        if body.op_id is None:
            return await self._custody.sign(caller, body)
        for kid in chosen(body.kid_or_set):
            caller.require_own(kid.tenant)
        return await self._ask("Sign", caller, body, SignResponse)

    async def create(self, caller: Caller, body: CreateKeyRequest) -> CreateKeyResponse:
        """The owner's."""
        caller.require_own(body.tenant)
        return await self._ask("CreateKey", caller, body, CreateKeyResponse)

    async def rotate(self, caller: Caller, kid: Kid, body: RotateRequest) -> RotateResponse:
        """The owner's."""
        caller.require_own(kid.tenant)
        return await self._ask("Rotate", caller, RotateCall(kid=str(kid), op_id=body.op_id), RotateResponse)

    async def destroy(self, caller: Caller, kid: Kid, body: DestroyRequest) -> DestroyResponse:
        """The owner's."""
        caller.require_own(kid.tenant)
        call = DestroyCall(kid=str(kid), proposal=body.proposal, op_id=body.op_id)
        return await self._ask("DestroyKey", caller, call, DestroyResponse)

    async def get(self, caller: Caller, kid: Kid) -> KeyView:
        """The owner's."""
        caller.require(kid.tenant)
        return await self._ask("GetKey", caller, GetKeyRequest(kid=str(kid)), KeyView)

    async def list(self, caller: Caller, tenant: str | None, after: str) -> KeyList:
        """The owner's."""
        wanted = tenant if tenant is not None else caller.tenant
        if wanted is not None:
            caller.require(wanted)
        return await self._ask("ListKeys", caller, ListKeysRequest(tenant=tenant, after=after or None), KeyList)

    async def attest(self, caller: Caller, kid: Kid | None) -> AttestResponse:
        """The owner's."""
        if kid is not None:
            caller.require(kid.tenant)
        elif caller.tenants:
            caller.require("")
        return await self._ask(
            "Attest", caller, AttestRequest(kid=str(kid) if kid is not None else None), AttestResponse
        )

    async def rotate_log_key(self, caller: Caller, body: RotateLogKeyRequest) -> RotateLogKeyResponse:
        """Raises StoreUnavailable: no call of a worker's leads here."""
        raise unavailable("the log's key is the owner's")

    @property
    def log(self) -> AuditLog:
        """What a worker has of it."""
        return cast(AuditLog, self._log)

    # Within

    async def _ask(self, operation: str, caller: Caller, body: msgspec.Struct, answer: type[A]) -> A:
        if len(self._asked) >= MOST_ASKED:
            raise unavailable("too much is asked of the owner at a time")
        self._number += 1
        number = self._number
        waiter: Deferred[bytes] = Deferred()
        self._asked[number] = waiter
        self._send(Ask(number, operation, Who.of(caller), msgspec.json.encode(body)))
        try:
            return msgspec.json.decode(await waiter, type=answer)
        finally:
            # whoever gave up is not told any more; it is done all the same
            self._asked.pop(number, None)

    def _answered(self, frame: Answer) -> None:
        waiter = self._asked.pop(frame.number, None)
        if waiter is None:
            return
        if frame.trouble is not None:
            waiter.errback(frame.trouble.error())
        else:
            waiter.callback(frame.body)

    def _stand(self, frame: Standing) -> None:
        self._mirror.standing(frame)
        self._send(Applied(frame.generation))

    def _count(self, frame: Count) -> None:
        self._send(Counted(frame.number, self._around.exported()))
