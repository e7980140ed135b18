"""The side of a log that has witnesses: each new checkpoint is brought to them, and what they sign is kept with it.

In: checkpoints as they are made; for each witness its key and how it is asked. Out: cosignatures in the log; how long
each witness has not signed; word to readiness. Nothing waits for it: records are written and answered meanwhile.

A witness that has seen another log than this one is evidence that this one was put back or changed. When as many say so
as the quorum has members, the log is broken, as if the anchor had said it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.crypto.notes import MAX_SIGNATURES, BadNoteError, NoteKey, cosigned_at, with_signatures
from ron.kernel.aio import occurred, within
from ron.kernel.backoff import Backoff
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.services.kms.audit.meters import Meters
from ron.services.kms.audit.witness import Ask
from ron.services.kms.ports import Checkpoint

# What comes meanwhile is asked for as one: under load a checkpoint follows every 5000 records.
PAUSE_S = 1.0
# One that is away is tried again so late at most.
PATIENCE_S = 15.0
LOOK_S = 5.0
DEADLINE_S = 5.0
MOST_WITNESSES = MAX_SIGNATURES // 2
UNPROCESSABLE = 422
# The witness' lines. Raises `RonError`: Conflict whose hint is the size that it saw, status 422 for another tree.
AskWitness = Callable[[Ask], Awaitable[bytes]]
_SIZE = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z")
_log = Logger(namespace="ron.kms.audit")


class ContradictionError(Exception):
    """A witness has seen another log. The message says what."""


class Collected(NamedTuple):
    """What a round brought: lines of those who cosigned; why others did not; what others saw instead."""

    lines: dict[NoteKey, bytes]
    refused: dict[NoteKey, str]
    contradicted: dict[NoteKey, str]


class Witnesses:
    """ask: of each witness, by its key. consistency: the log's proof from one size to another. deadline_s: for each."""

    def __init__(
        self,
        witnesses: Mapping[NoteKey, AskWitness],
        *,
        consistency: Callable[[int, int], Sequence[bytes]],
        reactor: Any,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        if len(witnesses) > MOST_WITNESSES:
            raise ValueError("more witnesses than a note has room for")
        self.keys = tuple(witnesses)
        self._witnesses = witnesses
        self._consistency = consistency
        self._reactor = reactor
        self._deadline_s = deadline_s
        self._known: dict[NoteKey, int] = {}

    async def collect(self, checkpoint: Checkpoint, keys: Sequence[NoteKey] | None = None) -> Collected:
        """Ask them all, or only `keys`, at once."""
        found = Collected({}, {}, {})
        asked = [
            Deferred.fromCoroutine(self._collect(key, checkpoint, found))
            for key in (self.keys if keys is None else keys)
        ]
        try:
            for one in asked:
                await one
        except CancelledError:
            for one in asked:
                one.addErrback(lambda _failure: None)
                one.cancel()
            raise
        return found

    async def _collect(self, key: NoteKey, checkpoint: Checkpoint, found: Collected) -> None:
        async def asking() -> bytes:
            return await self._lines(key, checkpoint)

        try:
            found.lines[key] = await within(self._reactor, self._deadline_s, asking())
        except ContradictionError as error:
            found.contradicted[key] = str(error)
        except DeadlineError:
            found.refused[key] = "no answer in time"
        except RonError as error:
            found.refused[key] = error.message

    async def _lines(self, key: NoteKey, checkpoint: Checkpoint) -> bytes:
        try:
            answer = await self._asked(key, checkpoint)
        except RonError as error:
            if error.code is not ErrorCode.CONFLICT or not _SIZE.match(error.hint or ""):
                raise
            # it says what it saw last; the second answer counts
            self._known[key] = int(error.hint or "")
            answer = await self._asked_again(key, checkpoint)
        self._known[key] = checkpoint.size
        return _line_of(answer, key, checkpoint)

    async def _asked_again(self, key: NoteKey, checkpoint: Checkpoint) -> bytes:
        seen = self._known[key]
        if seen > checkpoint.size:
            raise ContradictionError(f"saw {seen} records, there are {checkpoint.size}")
        try:
            return await self._asked(key, checkpoint)
        except RonError as error:
            if error.code is ErrorCode.CONFLICT and error.hint == str(seen) == str(checkpoint.size):
                raise ContradictionError(f"saw another tree of {seen} records") from None
            raise

    async def _asked(self, key: NoteKey, checkpoint: Checkpoint) -> bytes:
        # it may have seen more than we knew of when a round was cut short
        old = min(self._known.get(key, 0), checkpoint.size)
        # of nothing, and of itself, the path is empty
        proof = tuple(self._consistency(old, checkpoint.size))
        try:
            return await self._witnesses[key](Ask(old, proof, checkpoint.note))
        except RonError as error:
            if error.status == UNPROCESSABLE:
                raise ContradictionError(f"saw {old} records that are not the first of these") from None
            raise


def _line_of(answer: bytes, key: NoteKey, checkpoint: Checkpoint) -> bytes:
    """The line by `key` among those of an answer. Raises `RonError` (BadRequest) where there is none that holds."""
    for line in answer.splitlines(keepends=True)[:MAX_SIGNATURES]:
        try:
            if key in cosigned_at(with_signatures(checkpoint.note, [line]), [key]):
                return line
        except (BadNoteError, UnicodeDecodeError):
            continue
    raise bad_request("the witness answered with something else than its cosignature")


class Witnessed(Protocol):
    """What it needs of the log."""

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint."""

    def watch_checkpoints(self, watcher: Callable[[Checkpoint], None]) -> None:
        """Be told of each."""

    def cosigned(self, checkpoint: Checkpoint, lines: Sequence[bytes], *, enough: int = 1) -> None:
        """Keep these with it."""

    def contradicted(self, why: str) -> None:
        """The log is not what it was."""


class Policy(NamedTuple):
    """quorum: how many witnesses should have signed lately. max_age_s: what lately means, of a checkpoint that waits.
    required: without the quorum the service is not ready; else only degraded."""

    quorum: int = 0
    max_age_s: float = 600.0
    required: bool = False


# What is wrong, empty for nothing; and whether the service serves all the same.
Tell = Callable[[str, bool], None]


class Asking:
    """Of one log. tell: for readiness. Use from the reactor's thread; `start` once the log is open, `stop` at last."""

    def __init__(
        self, reactor: Any, log: Witnessed, witnesses: Witnesses, *, policy: Policy, tell: Tell, meters: Meters
    ) -> None:
        self._log = log
        self._policy = policy
        self._tell = tell
        self._meters = meters
        # what each saw that has seen another log
        self._other: dict[NoteKey, str] = {}
        self._askers = {
            key: _Asker(reactor, log, witnesses, key, answered=self._answered, over=self.look) for key in witnesses.keys
        }
        self._looking = LoopingCall(self.look)
        self._looking.clock = reactor
        for key, asker in self._askers.items():
            meters.follow_witness(label(key), asker.age_s)

    def start(self) -> None:
        """Ask now for what there is, then for each new one."""
        self._log.watch_checkpoints(lambda _checkpoint: self._made())
        if self._log.latest() is not None:
            self._made()
        self._looking.start(LOOK_S)

    async def stop(self) -> None:
        """Ask no more. More than once is fine."""
        if self._looking.running:
            self._looking.stop()
        for asker in self._askers.values():
            await asker.stop()

    def look(self) -> None:
        """Tell readiness how it stands."""
        policy = self._policy
        late = [key for key, one in self._askers.items() if key in self._other or one.age_s() > policy.max_age_s]
        fresh = len(self._askers) - len(late)
        if self._other:
            self._tell(self._contradictions(), not policy.required)
        elif fresh < policy.quorum:
            names = ", ".join(map(label, late))
            why = f"{fresh} of {len(self._askers)} witnesses have signed lately, {policy.quorum} are wanted"
            self._tell(f"{why}; not: {names}", not policy.required)
        else:
            self._tell("", True)

    def _made(self) -> None:
        for asker in self._askers.values():
            asker.wanted()

    def _answered(self, key: NoteKey, checkpoint: Checkpoint, found: Collected) -> None:
        if key in found.lines:
            self._log.cosigned(checkpoint, [found.lines[key]], enough=self._policy.quorum)
            self._meters.witness(label(key), "ok")
            self._other.pop(key, None)
        elif key in found.contradicted:
            what = self._other[key] = found.contradicted[key]
            self._meters.witness(label(key), "contradicted")
            self._meters.contradicted()
            _log.critical("witness {witness} {what}", event="audit_witness_contradicts", witness=label(key), what=what)
            if len(self._other) >= max(1, self._policy.quorum):
                self._log.contradicted(self._contradictions())
        else:
            why = found.refused.get(key, "")
            self._meters.witness(label(key), "err")
            _log.warn("witness {witness}: {why}", event="audit_witness_refused", witness=label(key), why=why)

    def _contradictions(self) -> str:
        return "; ".join(f"witness {label(key)} {what}" for key, what in self._other.items())


class _Asker:
    """Asks one of them, at its own pace: one that is slow or away keeps no other. answered: told what came of it; over:
    told then, when it is noted here."""

    def __init__(
        self,
        reactor: Any,
        log: Witnessed,
        witnesses: Witnesses,
        key: NoteKey,
        *,
        answered: Callable[[NoteKey, Checkpoint, Collected], None],
        over: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._log = log
        self._witnesses = witnesses
        self._key = key
        self._answered = answered
        self._told = over
        self._backoff = Backoff(base_s=PAUSE_S, ceiling_s=PATIENCE_S)
        # since when it has a checkpoint to sign, and when it may be asked
        self._since_s: float | None = None
        self._next_s = 0.0
        self._timer: IDelayedCall | None = None
        self._work: Deferred[None] | None = None
        self._stopped = False

    def wanted(self) -> None:
        """There is another checkpoint."""
        if self._since_s is None:
            self._since_s = self._reactor.seconds()
        self._later()

    def age_s(self) -> float:
        """Since when a checkpoint waits for it; 0 while none does."""
        return 0.0 if self._since_s is None else max(0.0, float(self._reactor.seconds() - self._since_s))

    async def stop(self) -> None:
        """Ask no more."""
        self._stopped = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._work is not None:
            work = self._work
            work.cancel()
            await occurred(work)

    def _later(self) -> None:
        waits = self._work is not None or (self._timer is not None and self._timer.active())
        if not (waits or self._stopped):
            delay_s = max(0.0, self._next_s - self._reactor.seconds())
            self._timer = self._reactor.callLater(delay_s, self._begin)

    def _begin(self) -> None:
        self._next_s = self._reactor.seconds() + PAUSE_S
        work = self._work = Deferred.fromCoroutine(self._ask())
        work.addErrback(self._broke)
        work.addBoth(self._over)

    def _broke(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            _log.failure("asking a witness", failure, event="audit_witness_broken")
            self._next_s = self._reactor.seconds() + self._backoff.next_delay_s()

    def _over(self, _none: None) -> None:
        self._work = None
        if self._since_s is not None:
            self._later()

    async def _ask(self) -> None:
        checkpoint, began_s = self._log.latest(), self._reactor.seconds()
        if checkpoint is None:
            return
        found = await self._witnesses.collect(checkpoint, [self._key])
        self._answered(self._key, checkpoint, found)
        if self._key in found.lines:
            latest = self._log.latest()
            # one that came meanwhile waits since then, at the earliest
            self._since_s = None if latest is None or latest.size == checkpoint.size else began_s
            self._backoff.reset()
        else:
            self._next_s = self._reactor.seconds() + self._backoff.next_delay_s()
        self._told()


def label(key: NoteKey) -> str:
    """The witness in metrics and logs: its key's id, 8 hex digits."""
    return key.key_id.hex()
