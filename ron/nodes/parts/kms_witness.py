"""Witnesses of the key service hosted: it asks those of `audit.witnesses`, and is one to those of `audit.witness_for`.

In: `[kms.audit]`, the service, its log once that is open. Out: what runs between `start` and `stop`, and a witness's
route.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import HTTPConnectionPool, ResponseDone
from twisted.web.http_headers import Headers

from ron.crypto.notes import BadNoteError, Kind, NoteKey, parse_vkey
from ron.kernel.config import ConfigError
from ron.kernel.files import write_private
from ron.proto.errors import ErrorCode, RonError, bad_request, unavailable
from ron.sdk.transport import Requests, direct_http
from ron.services.kms.audit import Meters, TransparencyLog
from ron.services.kms.audit.asking import Asking, AskWitness, Policy, Witnesses
from ron.services.kms.audit.witness import Ask, LogFiles, WitnessFile
from ron.services.kms.audit.witnessdesk import WitnessDesk
from ron.services.kms.config import KmsAudit
from ron.services.kms.logkey import WitnessKey
from ron.services.kms.service import KmsService
from ron.web import Endpoint

BOOK = "witness-book.json"
SHOWN = "witness.vkey"
MOST_ANSWER_BYTES = 64 * 1024
_HEADERS = Headers({"Content-Type": ["text/plain; charset=utf-8"], "User-Agent": ["ron-kms"]})
_CODES = {
    400: ErrorCode.BAD_REQUEST,
    403: ErrorCode.NO_CAPABILITY,
    404: ErrorCode.NOT_FOUND,
    422: ErrorCode.BAD_REQUEST,
}
_log = Logger(namespace="ron.kms.audit")


class KmsWitnessing:
    """folder: the service's own. section: of the config's keys. Raises `ConfigError` for a key or file that is none."""

    def __init__(
        self,
        reactor: Any,
        pool: HTTPConnectionPool,
        service: KmsService,
        meters: Meters,
        wanted: KmsAudit,
        *,
        home: Path,
        folder: Path,
        section: str = "",
    ) -> None:
        self._reactor = reactor
        self._service = service
        self._meters = meters
        self._wanted = wanted
        self._folder = folder
        self._askers = _askers(direct_http(reactor, pool), wanted, f"{section}audit.witnesses")
        self._asking: Asking | None = None
        self._desk = self._make_desk([home / path for path in wanted.witness_for], f"{section}audit.witness_for")

    def endpoints(self) -> list[Endpoint]:
        """The witness's route, where it is one."""
        return self._desk.endpoints() if self._desk is not None else []

    def start(self, log: TransparencyLog) -> None:
        """The log is open: ask, and answer."""
        if self._desk is not None:
            self._desk.start()
        if self._askers:
            wanted = self._wanted
            self._asking = Asking(
                self._reactor,
                log,
                Witnesses(self._askers, consistency=log.consistency, reactor=self._reactor),
                policy=Policy(wanted.witness_quorum, wanted.witness_max_age_ms / 1000, wanted.witness_required),
                tell=self._tell,
                meters=self._meters,
            )
            self._asking.start()

    async def stop(self) -> None:
        """Ask and cosign no more. More than once is fine."""
        asking, self._asking = self._asking, None
        if asking is not None:
            await asking.stop()
        desk, self._desk = self._desk, None
        if desk is not None:
            desk.stop()

    def _make_desk(self, files: Sequence[Path], key: str) -> WitnessDesk | None:
        if not files:
            return None
        try:
            logs = LogFiles(files)
            book = WitnessFile(self._folder / BOOK)
        except OSError as error:
            raise ConfigError(f"{error.filename} cannot be read: {error.strerror}", key=key, hint=_HINT) from None
        except ValueError as error:
            raise ConfigError(str(error), key=key, hint=_HINT) from None
        own = WitnessKey(self._service.room)
        return WitnessDesk(self._reactor, own, logs, book, now=time.time, meters=self._meters, shown=self._show)

    def _show(self, vkey: str) -> None:
        """For whoever is to trust this witness."""
        try:
            write_private(self._folder / SHOWN, f"{vkey}\n".encode())
        except OSError as error:
            _log.warn("{name} is not kept: {why}", event="audit_aside_failed", name=SHOWN, why=str(error))

    def _tell(self, trouble: str, serves: bool) -> None:
        if trouble:
            self._service.guard.trouble("witnesses_recent", trouble, serves=serves)
        else:
            self._service.guard.ok("witnesses_recent")


_HINT = "a copy of the other service's kms-audit/log.vkeys"


def _askers(http: Requests, wanted: KmsAudit, key: str) -> dict[NoteKey, AskWitness]:
    found: dict[NoteKey, AskWitness] = {}
    for one in wanted.witnesses:
        try:
            witness = parse_vkey(one.key)
        except BadNoteError as error:
            raise ConfigError(str(error), key=key, hint=f"the line in the witness's {SHOWN}") from None
        if witness.kind is not Kind.COSIGNATURE:
            raise ConfigError("this is no key of a witness", key=key, hint=f"the line in the witness's {SHOWN}")
        if witness in found:
            raise ConfigError("one witness is there twice", key=key, hint="remove one")
        found[witness] = asker(http, one.url)
    return found


def asker(http: Requests, url: str) -> AskWitness:
    """Brings checkpoints to the witness whose submission prefix is `url`."""
    where = f"{url.rstrip('/')}/add-checkpoint"

    async def ask(asked: Ask) -> bytes:
        try:
            answer = await http.request(
                "POST", where, headers=_HEADERS, data=asked.body(), unbuffered=True, allow_redirects=False
            )
            collected = _Body()
            answer.deliverBody(collected)
            body = await collected.whole
        except (RonError, CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - TCP, TLS and HTTP each have their own; all mean: nobody is there
            raise unavailable(f"the witness cannot be reached: {type(error).__name__}") from None
        if answer.code == 200:
            return body
        if answer.code == 409:
            size = body.decode("ascii", "replace").removesuffix("\n")
            raise RonError(ErrorCode.CONFLICT, "the witness saw another size", hint=size)
        code = _CODES.get(answer.code, ErrorCode.STORE_UNAVAILABLE)
        raise RonError(code, f"the witness answered {answer.code}", status=answer.code)

    return ask


class _Body(Protocol):
    """Collects an answer's body in `whole`; hangs up at the first byte too many, and when nobody waits any more."""

    def __init__(self) -> None:
        self.whole: Deferred[bytes] = Deferred(lambda _whole: self._hang_up())
        self._received = bytearray()

    def dataReceived(self, data: bytes) -> None:
        """Keep `data`."""
        self._received += data
        if len(self._received) > MOST_ANSWER_BYTES and not self.whole.called:
            self._hang_up()
            self.whole.errback(bad_request("the witness's answer is too long"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The body has ended, or broke off."""
        if self.whole.called:
            return
        if reason.check(ResponseDone):
            self.whole.callback(bytes(self._received))
        else:
            self.whole.errback(reason)

    def _hang_up(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()
