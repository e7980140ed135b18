"""A key service as a witness: `POST /v1/kms/witness/add-checkpoint` (C2SP tlog-witness).

In: checkpoints of the logs that it was told to witness, from anybody: their log's signatures are what counts, as the
protocol has it. Out: a cosignature; 409 with the size it knows. One at a time, in a thread of its own, never more
than a few in wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.crypto.notes import NoteKey
from ron.kernel.threads import BoundedPool
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.services.kms.audit.meters import Meters
from ron.services.kms.audit.witness import LogFiles, Witness, WitnessBook, origin_of, parse_ask
from ron.web import Call, Endpoint, Raw

PATH = "/v1/kms/witness"
SIZE_TYPE = "text/x.tlog.size"
LINES_TYPE = "text/plain; charset=utf-8"
DEADLINE_S = 5.0
RETRY_S = 1.0
# Checking one takes half a millisecond, keeping it a flush of the disk.
MOST_WAITING = 16
_log = Logger(namespace="ron.kms.audit")


class Cosigner(Protocol):
    """The witness's key, in custody."""

    async def begin(self) -> None:
        """Have one. Raises `RonError`; then it is tried again."""

    @property
    def public(self) -> NoteKey:
        """By which the witness is known."""

    def sign(self, text: bytes) -> bytes:
        """Ed25519. Blocks."""


class WitnessDesk:
    """Of one process. logs: those it witnesses. book: what it saw. shown: told the verifier key once there is one."""

    def __init__(
        self,
        reactor: Any,
        key: Cosigner,
        logs: LogFiles,
        book: WitnessBook,
        *,
        now: Callable[[], float],
        meters: Meters,
        shown: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._key = key
        self._logs = logs
        self._book = book
        self._now = now
        self._meters = meters
        self._shown = shown
        self._pool = BoundedPool(reactor, name="kms-witness", threads=1, queue_limit=MOST_WAITING)
        self._witness: Witness | None = None
        self._timer: IDelayedCall | None = None
        self._stopped = False

    def start(self) -> None:
        """Get to work, now or as soon as there is a key."""
        self._pool.start()
        self._try()

    def stop(self) -> None:
        """Cosign no more. Blocks for what runs."""
        self._stopped = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._pool.stop()

    def endpoints(self) -> list[Endpoint]:
        """The one route. Public: the protocol knows no other authority than the log's own signature."""
        return [
            Endpoint(
                method="POST",
                path=f"{PATH}/add-checkpoint",
                handler=self.add_checkpoint,
                scope=None,
                body=bytes,
                deadline_s=DEADLINE_S,
                hot=True,
            )
        ]

    async def add_checkpoint(self, _call: Call, body: bytes) -> Raw:
        """Raises `RonError` as tlog-witness has its statuses: 400, 403, 404, 422; 409 is an answer of its own."""
        try:
            line = await self._pool.run(self._cosign, body)
        except RonError as error:
            self._meters.cosigned("err")
            if error.code is not ErrorCode.CONFLICT:
                raise
            return Raw(f"{error.hint}\n".encode(), SIZE_TYPE, status=409)
        self._meters.cosigned("ok")
        return Raw(line, LINES_TYPE)

    def _cosign(self, body: bytes) -> bytes:
        ask = parse_ask(body)
        origin = origin_of(ask.note)
        if self._witness is None:
            raise unavailable("this witness has no key yet")
        return self._witness.cosign(origin, ask)

    def _try(self) -> None:
        self._timer = None
        Deferred.fromCoroutine(self._begin()).addErrback(self._later)

    async def _begin(self) -> None:
        await self._key.begin()
        public = self._key.public
        self._witness = Witness(public, self._key.sign, logs=self._logs.keys, book=self._book, now=self._now)
        self._shown(public.vkey())
        _log.info("a witness of {logs} logs", event="witness_ready", logs=len(self._logs), key=public.key_id.hex())

    def _later(self, failure: Failure) -> None:
        if failure.check(RonError):
            _log.warn("no key to witness with: {why}", event="witness_waits", why=failure.getErrorMessage())
        else:
            _log.failure("no key to witness with", failure, event="witness_waits")
        if not self._stopped:
            self._timer = self._reactor.callLater(RETRY_S, self._try)
