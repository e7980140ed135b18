"""The owner's side of its workers: they hear of every change before its author does, and no record is theirs to keep.

In: what changes (keys, freezes, troubles, config), batches of records, calls that are the owner's. Out: frames; a word
to whoever changed something once no living worker goes by what was before; a worker that does not say so is killed.

The owner has the last word on every use of a key: a record is taken only where its key may be used at that moment, and
a worker answers only what was taken. So what a worker believes may be old for a moment, and what it answers is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ron.kernel.aio import occurred, within
from ron.kernel.health import Readiness
from ron.kernel.metrics import Family
from ron.proto.errors import RonError, bad_request
from ron.proto.kms import Kid, parse_kid
from ron.services.kms.backends.sealedkeys import SealedKey
from ron.services.kms.index import KeyIndex, Version
from ron.services.kms.model import SYSTEM
from ron.services.kms.ports import AuditEntry
from ron.services.kms.recorder import Log
from ron.services.kms.workers.calls import Calls
from ron.services.kms.workers.frames import (
    KEYS_PER_FRAME,
    Applied,
    Ask,
    Batch,
    Count,
    Counted,
    Downward,
    Feels,
    Go,
    Keys,
    KeyWord,
    Standing,
    Upward,
)
from ron.services.kms.workers.keeping import Keeping
from ron.services.kms.workers.sums import left_behind, shown

# How long a change waits for a worker to go by it. Longer than a turn of a reactor under load.
APPLY_S = 2.0
# How often things are looked at that nobody tells of, such as a freeze that ends by itself.
LOOK_S = 1.0
COUNT_S = 1.0
# What a process has for its last words after its pair has closed.
LINGER_S = 5.0
_log = Logger(namespace="ron.kms.workers")


class Custodian(Protocol):
    """The owner's service, as far as its workers are concerned."""

    @property
    def index(self) -> KeyIndex:
        """Every key."""

    @property
    def log(self) -> Log:
        """Where records go. Raises `RonError` before it is open."""

    def sealed(self, kid: Kid) -> SealedKey | None:
        """A version's private halves at rest, None for what the backend does not hold."""

    def admit(self, kid: Kid) -> None:
        """Raises `RonError` unless this version may be used now, which counts against its tenant's rate."""

    def stand(self) -> Mapping[str, str | int | bool]:
        """What every record says of the store."""


class Ways(NamedTuple):
    """tell: to the worker. kill: at once. ended: fires when its process is gone."""

    tell: Callable[[Downward], None]
    kill: Callable[[], None]
    ended: Deferred[Any]


class Seat:
    """One worker. up: fires once it listens. live: changes wait for it. begun: it reads. told: of every key."""

    def __init__(self, name: str, ways: Ways, now_s: float) -> None:
        self.name = name
        self.ways = ways
        self.begun = self.told = self.live = self.gone = False
        self.doomed: IDelayedCall | None = None
        self.applied = -1
        self.heard_s = now_s
        self.families: tuple[Family, ...] = ()
        self.up: Deferred[None] = Deferred()
        self.waiting: list[tuple[int, Deferred[None]]] = []
        self.counting: dict[int, Deferred[None]] = {}

    def reached(self, generation: int) -> Deferred[None]:
        """Fires when it goes by `generation`, or is gone."""
        waiter: Deferred[None] = Deferred()
        if self.gone or self.applied >= generation:
            waiter.callback(None)
        else:
            self.waiting.append((generation, waiter))
        return waiter

    def settle(self) -> None:
        """Tell whoever waited for what it has reached."""
        due = [one for one in self.waiting if self.gone or one[0] <= self.applied]
        self.waiting = [one for one in self.waiting if one not in due]
        for _generation, waiter in due:
            if not waiter.called:
                waiter.callback(None)


class Crew:
    """All of them. standing: how things stand, its generation aside. calls: of workers that are the owner's to do.

    manned: told how many listen, when that changes. feels: told of a worker's own readiness.
    """

    def __init__(
        self,
        reactor: Any,
        custodian: Custodian,
        *,
        standing: Callable[[], Standing],
        calls: Calls,
        manned: Callable[[int], None] = lambda _count: None,
        feels: Callable[[str, Readiness], None] = lambda _name, _readiness: None,
    ) -> None:
        self._reactor = reactor
        self._custodian = custodian
        self._standing = standing
        self._calls = calls
        self._manned = manned
        self._feels = feels
        self._seats: dict[str, Seat] = {}
        self._said: Standing | None = None
        self._generation = 0
        self._number = 0
        self._gone: list[Family] = []
        self._loop = LoopingCall(self._beat)
        self._loop.clock = reactor

    @property
    def live(self) -> int:
        """How many listen."""
        return sum(1 for seat in self._seats.values() if seat.live)

    def start(self) -> None:
        """Look at things each second."""
        self._loop.start(LOOK_S, now=False)

    def stop(self) -> None:
        """No more of that."""
        if self._loop.running:
            self._loop.stop()

    # Workers come and go

    def join(self, name: str, ways: Ways) -> Seat:
        """A new worker: it is told everything, once it says its first word and so reads what we say."""
        seat = Seat(name, ways, self._reactor.seconds())
        self._seats[name] = seat
        ways.ended.addBoth(self._left, seat)
        return seat

    def heard(self, seat: Seat, frame: Upward) -> None:
        """What a worker says."""
        seat.heard_s = self._reactor.seconds()
        if not seat.begun:
            seat.begun = True
            self._lend(seat, [one.kid for entry in self._custodian.index for one in entry.verifiable()])
        match frame:
            case Batch():
                self._keep(seat, frame)
            case Applied():
                self._applied(seat, frame.generation)
            case Ask():
                self._calls.ask(frame, seat.ways.tell)
            case Counted():
                seat.families = frame.families
                waiter = seat.counting.pop(frame.number, None)
                if waiter is not None:
                    waiter.callback(None)
            case Feels():
                self._feels(seat.name, frame.readiness)

    def lost(self, seat: Seat) -> None:
        """Its pair is over, and so is it, in a moment. It can answer nothing more; changes wait for its end."""
        if not seat.gone and seat.doomed is None:
            seat.doomed = self._reactor.callLater(LINGER_S, seat.ways.kill)

    def silent_s(self, name: str) -> float:
        """For how long this worker has said nothing."""
        seat = self._seats.get(name)
        return 0.0 if seat is None else float(self._reactor.seconds() - seat.heard_s)

    def _lend(self, seat: Seat, kids: list[Kid]) -> None:
        """Tell of these, a frame in each turn: there may be tens of thousands. What changes meanwhile is told as well,
        so that each word is newer than those before it about the same version."""
        if seat.gone:
            return
        now, later = kids[:KEYS_PER_FRAME], kids[KEYS_PER_FRAME:]
        seat.ways.tell(Keys(tuple(self._words(now))))
        if later:
            self._reactor.callLater(0, self._lend, seat, later)
            return
        seat.told = True
        self.look()
        seat.ways.tell(self._current(whole=True))

    def _words(self, kids: Iterable[Kid]) -> Iterator[KeyWord]:
        for kid in kids:
            try:
                yield self._word(self._custodian.index.version(kid))
            except RonError:
                # it came to nothing, and nobody ever used it
                continue

    def _left(self, result: Any, seat: Seat) -> Any:
        was_live, seat.live, seat.gone = seat.live, False, True
        if seat.doomed is not None and seat.doomed.active():
            seat.doomed.cancel()
        if self._seats.get(seat.name) is seat:
            del self._seats[seat.name]
        self._gone = left_behind(self._gone, seat.families)
        seat.settle()
        for waiter in seat.counting.values():
            waiter.callback(None)
        self._feels(seat.name, Readiness(ready=False))
        if was_live:
            self._manned(self.live)
        return result

    # Changes

    def look(self) -> None:
        """How do things stand? What has changed goes out at once."""
        now = self._standing()
        before = self._said
        self._said = now
        if before is None:
            return
        changed = msgspec.structs.replace(before, config=None) != msgspec.structs.replace(now, config=None)
        if changed or before.config != now.config:
            self._generation += 1
            self._tell_all(self._current(whole=before.config != now.config))

    def key(self, kid: Kid) -> None:
        """A version of this key has changed."""
        try:
            versions = self._custodian.index.entry(kid).verifiable()
        except RonError:
            return
        changed = [one for one in versions if not kid.version or one.kid.version == kid.version]
        self._generation += 1
        self._tell_all(Keys(tuple(map(self._word, changed))))
        self._tell_all(self._current(whole=False))

    async def settled(self) -> None:
        """Return when no living worker goes by anything older than what was said up to now."""
        self.look()
        generation = self._generation
        waits = [self._reached(seat, generation) for seat in list(self._seats.values()) if seat.live]
        if waits:
            await DeferredList(waits)

    def _reached(self, seat: Seat, generation: int) -> Deferred[None]:
        reached = seat.reached(generation)
        if not reached.called:
            late = self._reactor.callLater(APPLY_S, self._too_late, seat, generation)
            reached.addBoth(lambda _none: late.cancel() if late.active() else None)
        return reached

    def _too_late(self, seat: Seat, generation: int) -> None:
        _log.error(
            "{worker} does not go by change {generation}: it is killed",
            event="kms_worker_stale",
            worker=seat.name,
            generation=generation,
        )
        # its waiters hear of it when its process is gone, and not before
        seat.ways.kill()

    def _applied(self, seat: Seat, generation: int) -> None:
        seat.applied = max(seat.applied, generation)
        if seat.told and not seat.live and seat.applied >= self._generation:
            seat.live = True
            seat.ways.tell(Go())
            seat.up.callback(None)
            self._manned(self.live)
        seat.settle()

    def _beat(self) -> None:
        generation = self._generation
        self.look()
        if generation == self._generation:
            self._tell_all(self._current(whole=False))

    def _current(self, *, whole: bool) -> Standing:
        said = self._said or self._standing()
        config = said.config if whole else None
        return msgspec.structs.replace(said, generation=self._generation, config=config)

    def _tell_all(self, frame: Downward) -> None:
        for seat in list(self._seats.values()):
            if seat.begun:
                seat.ways.tell(frame)

    def _word(self, version: Version) -> KeyWord:
        # the service's own keys are lent to nobody
        lent = version.usable and version.kid.tenant != SYSTEM
        sealed = self._custodian.sealed(version.kid) if lent else None
        return KeyWord(
            kid=str(version.kid),
            state=version.state,
            halves=tuple((half.alg, half.public) for half in version.halves),
            attestation=version.attestation,
            made=sealed.made if sealed is not None else 0,
            blob=sealed.blob if sealed is not None else b"",
        )

    # Records

    def _keep(self, seat: Seat, batch: Batch) -> None:
        keeping = Keeping(batch, seat.ways.tell)
        try:
            log, stand = self._custodian.log, self._custodian.stand()
        except RonError as error:
            keeping.refuse_all(error)
            return
        for place, entry in enumerate(batch.entries):
            try:
                if entry.op not in USES or entry.result != "ok":
                    raise bad_request("a worker keeps no such record")
                self._custodian.admit(parse_kid(entry.kid))
                outcome = log.append(_stamped(entry, stand))
            except RonError as error:
                keeping.refuse(place, error)
            else:
                keeping.follow(place, outcome)
        for note in batch.notes:
            log.inform(_stamped(note, stand))
        keeping.all_told()

    # Metrics

    async def families(self) -> dict[str, list[Family]]:
        """What all of them have counted, by name; of one that does not answer what it said last."""
        waits = [occurred(self._counted(seat)) for seat in list(self._seats.values()) if seat.live]
        if waits:
            await DeferredList(waits)
        found = {seat.name: shown(seat.families) for seat in self._seats.values()}
        return {**found, "workers that are gone": list(self._gone)}

    def _counted(self, seat: Seat) -> Deferred[None]:
        self._number += 1
        number = self._number
        waiter: Deferred[None] = Deferred()
        seat.counting[number] = waiter
        seat.ways.tell(Count(number))

        def late(_failure: Any) -> None:
            seat.counting.pop(number, None)

        return Deferred.fromCoroutine(within(self._reactor, COUNT_S, waiter)).addErrback(late)


def _stamped(entry: AuditEntry, stand: Mapping[str, str | int | bool]) -> AuditEntry:
    # most say nothing else, and share it
    return msgspec.structs.replace(entry, extra={**entry.extra, **stand} if entry.extra else stand)


# What a worker does with private or public halves, and keeps a record of before it answers.
USES = frozenset({"sign", "wrap", "unwrap"})
