"""Who did what that cannot be undone: keys exported, clients let in, peers federated. Append-only, each record chained.

In: an event's name and fields of a closed list. Out: a JSON line that is on disk before `append` returns; under amnesia
a ring in memory. `verify` finds the first line that was changed, lost or put in. The chain has no key: it shows what
somebody altered, unless they could write the file and made all after it anew; `head`, noted elsewhere, shows that too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
from blake3 import blake3
from prometheus_client import Counter
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.kernel import HealthState, Metrics
from ron.kernel.clock import Clock
from ron.kernel.files import private_dir, sync_dir
from ron.kernel.logs import redact
from ron.kernel.threads import BoundedPool
from ron.proto.clock import rfc3339
from ron.proto.errors import RonError, bad_request, conflict, unavailable

MAX_BYTES = 4 * 1024 * 1024
KEEP = 8
RING = 1024
MAX_TEXT = 256
MAX_LINE = 64 * 1024
START = "0" * 64
# Nothing else is written, so that no key gets there by mistake.
FIELDS = frozenset(
    {"app", "onion", "new_onion", "old_onion", "client", "backend", "scope", "cap_id", "corr_id", "op_id", "until"}
    | {"peer", "claimed", "role", "session_id", "roster_version", "sequence", "reason", "omitted", "lost_bytes"}
)
# What strangers can cause is told so often a minute; the rest is counted in the next one's `omitted`.
PER_MINUTE = 60
_EVENT = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_EXACT = 1 << 53
_log = Logger(namespace="ron.audit")

Value = str | int | bool
Fields = dict[str, Value]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line. seq: from 1, without a gap. at: RFC 3339. prev: BLAKE3 of the line before, in hex, without its end."""

    seq: int
    at: str
    event: str
    fields: Fields
    prev: str


class Break(NamedTuple):
    """Where a chain does not hold: the file, the line in it from 1 (0: the whole), and what is wrong."""

    path: Path
    line: int
    why: str


class Verdict(NamedTuple):
    """records: how many hold, up to the break if there is one. head: the hash of the last of them."""

    records: int
    head: str
    broken: Break | None


class Sink(Protocol):
    """Where records go."""

    def append(self, event: str, fields: Mapping[str, Value]) -> Record:
        """`event` is recorded, durably where the sink is. Raises ValueError, or `RonError` when it could not be."""
        ...

    def recent(self) -> list[Record]:
        """The latest, oldest first."""
        ...


class _Chain:
    """The place of the next record."""

    def __init__(self, now: Callable[[], float], seq: int = 0, head: str = START) -> None:
        self._now = now
        self.seq = seq
        self.head = head

    def next(self, event: str, fields: Mapping[str, Value]) -> tuple[Record, bytes]:
        """The next record and its line."""
        record = Record(
            seq=self.seq + 1, at=rfc3339(self._now()), event=event, fields=_checked(event, fields), prev=self.head
        )
        return record, msgspec.json.encode(record)

    def advance(self, line: bytes) -> None:
        """`line` was written."""
        self.seq, self.head = self.seq + 1, _hash(line)


class MemoryAudit:
    """Amnesia: the latest `RING` records, gone with the process. now: Unix seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._chain = _Chain(now)
        self._ring: deque[Record] = deque(maxlen=RING)

    def append(self, event: str, fields: Mapping[str, Value]) -> Record:
        """See `Sink.append`."""
        record, line = self._chain.next(event, fields)
        self._chain.advance(line)
        self._ring.append(record)
        return record

    def recent(self) -> list[Record]:
        """See `Sink.recent`."""
        return list(self._ring)


class FileAudit:
    """`path`, 0600 in a 0700 directory; `path.1` … are older. Blocks; one process at a time, one thread at a time.

    Beyond `max_bytes` a new file is begun, and the oldest of more than `keep` old ones goes. now: Unix seconds.
    """

    def __init__(self, path: Path, now: Callable[[], float], *, max_bytes: int = MAX_BYTES, keep: int = KEEP) -> None:
        if keep < 1:
            raise ValueError("keep is at least 1")
        self.path = path
        self._now = now
        self._max_bytes = max_bytes
        self._keep = keep
        self._handle: int | None = None
        self._chain = _Chain(now)
        self._ring: deque[Record] = deque(maxlen=RING)

    @property
    def head(self) -> str:
        """The hash of the last record that this process wrote: note it where nobody who writes the file can."""
        return self._chain.head

    def append(self, event: str, fields: Mapping[str, Value]) -> Record:
        """See `Sink.append`. Raises `RonError` StoreUnavailable when the disk does not take it, Conflict when another
        process has the file."""
        _checked(event, fields)
        try:
            handle = self._open()
            if os.fstat(handle).st_size >= self._max_bytes:
                self._rotate()
                handle = self._open()
            record, line = self._chain.next(event, fields)
            _write(handle, line + b"\n")
            os.fsync(handle)
        except OSError as error:
            # whatever is there of the line now is looked at when the file is opened again
            self.close()
            raise unavailable(f"the audit log cannot be written: {error}", hint=f"look at {self.path}") from None
        self._chain.advance(line)
        self._ring.append(record)
        return record

    def recent(self) -> list[Record]:
        """See `Sink.recent`; of this process's life."""
        return list(self._ring)

    def close(self) -> None:
        """Let another process have it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _open(self) -> int:
        if self._handle is not None:
            return self._handle
        private_dir(self.path.parent)
        new = not self.path.exists()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        handle = os.open(self.path, flags, 0o600)
        try:
            _own(handle, self.path)
            lost = _cut_torn_line(handle)
            self._chain = self._resumed()
            if new:
                sync_dir(self.path.parent)
            if lost:
                _record, line = self._chain.next("audit_recovered", {"lost_bytes": lost})
                _write(handle, line + b"\n")
                self._chain.advance(line)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return handle

    def _resumed(self) -> _Chain:
        """The chain as the newest file that is not empty leaves it. Raises `RonError` when its last line is no record:
        to go on after it would hide that."""
        for path in reversed(audit_files(self.path)):
            lines = path.read_bytes().rstrip(b"\n").rsplit(b"\n", 1)
            if lines[-1]:
                try:
                    last = _decode(lines[-1] + b"\n")
                except ValueError:
                    raise unavailable(
                        f"the last line of {path} is no audit record", hint="keep the file elsewhere and remove it"
                    ) from None
                return _Chain(self._now, last.seq, _hash(lines[-1]))
        return _Chain(self._now)

    def _rotate(self) -> None:
        self.close()
        for path in audit_files(self.path):
            number = _number(self.path, path)
            if number >= self._keep:
                path.unlink()
            else:
                path.rename(path.with_name(f"{self.path.name}.{number + 1}"))
        sync_dir(self.path.parent)


class Auditor:
    """Audits from the reactor: the sink is used in `pool`, a pool of one thread, so that the order stays."""

    def __init__(self, sink: Sink, pool: BoundedPool, *, clock: Clock, metrics: Metrics, health: HealthState) -> None:
        self._sink = sink
        self._pool = pool
        self._clock = clock
        self._health = health
        self._minute = -1
        self._told: Tally[str] = Tally()
        self._omitted: Tally[str] = Tally()
        self._records = Counter("audit_records_total", "Audit records written", registry=metrics.registry)
        self._failures = Counter("audit_failures_total", "Audit records lost", registry=metrics.registry)

    async def record(self, event: str, /, **fields: Value) -> None:
        """Return when it is on disk. Raises what `append` raises, Backpressure too: then the act must not be done."""
        _checked(event, fields)
        try:
            await self._pool.run(self._sink.append, event, fields)
        except RonError as error:
            self._failures.inc()
            self._health.degraded("audit", error.message)
            raise
        self._records.inc()
        self._health.ok("audit")

    def __call__(self, event: str, /, **fields: Value) -> None:
        """Record what has happened already, soon. A failure is counted and degrades readiness; a flood is counted."""
        _checked(event, fields)
        minute = int(self._clock.seconds() // 60)
        if minute != self._minute:
            self._minute = minute
            self._told.clear()
        if self._told[event] >= PER_MINUTE:
            self._omitted[event] += 1
            return
        self._told[event] += 1
        omitted = self._omitted.pop(event, 0)
        more = {"omitted": omitted} if omitted else {}
        Deferred.fromCoroutine(self.record(event, **fields, **more)).addErrback(self._lost, event)

    def _lost(self, failure: Failure, event: str) -> None:
        _log.failure("{audited} was not audited", failure, event="audit_failed", audited=event)


def audit_files(path: Path) -> list[Path]:
    """`path` and its older ones, the oldest first."""
    found = [p for p in path.parent.glob(f"{path.name}*") if _number(path, p) >= 0]
    return sorted(found, key=lambda p: -_number(path, p))


def verify(path: Path, *, head: str | None = None, keep: int = KEEP) -> Verdict:
    """Read all of an audit log. head: a hash noted earlier, which must still be in it. keep: as its writer has it.

    What was rotated away is gone: once there is a file number `keep`, its first record is taken as it is.
    """
    files = audit_files(path)
    whole = not files or _number(path, files[0]) < keep
    records, seq, seen, found = 0, 0, START, head in {None, START}
    for file in files:
        for number, line in _lines(file):
            try:
                record = _decode(line)
            except ValueError:
                return Verdict(records, seen, Break(file, number, "it is no whole record"))
            if (records or whole) and record.prev != seen:
                return Verdict(records, seen, Break(file, number, "it does not follow from the line before"))
            if (records or whole) and record.seq != seq + 1:
                return Verdict(records, seen, Break(file, number, f"it is number {record.seq}"))
            records, seq, seen = records + 1, record.seq, _hash(line.removesuffix(b"\n"))
            found = found or seen == head
    if not found:
        return Verdict(records, seen, Break(path, 0, "the noted head is not in it: the end is missing, or all is new"))
    return Verdict(records, seen, None)


def _checked(event: str, fields: Mapping[str, Value]) -> Fields:
    """Fields as they may be written. Raises ValueError on an event or field that is not ours."""
    if not _EVENT.match(event) or not fields.keys() <= FIELDS:
        raise ValueError(f"not for the audit log: {event} with {sorted(fields.keys() - FIELDS)}")
    return {name: _plain(value) for name, value in sorted(fields.items())}


def _plain(value: Value) -> Value:
    if isinstance(value, str):
        return redact(value)[:MAX_TEXT]
    if not isinstance(value, int) or not -_EXACT < value < _EXACT:
        raise ValueError("a field is a text, a number or a yes")
    return value


def _decode(line: bytes) -> Record:
    """Raises ValueError when `line` is no record with its end."""
    if not line.endswith(b"\n"):
        raise ValueError("the line has no end")
    try:
        return msgspec.json.decode(line, type=Record)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        yield from enumerate(iter(lambda: file.readline(MAX_LINE), b""), start=1)


def _own(handle: int, path: Path) -> None:
    os.fchmod(handle, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise conflict(f"{path} is in use by another process", hint="one runtime per home") from None


def _cut_torn_line(handle: int) -> int:
    """Take away what follows the last whole line: its writer died, and nobody was told that it was recorded."""
    size = os.fstat(handle).st_size
    tail = os.pread(handle, MAX_LINE, max(0, size - MAX_LINE))
    torn = len(tail) - (tail.rfind(b"\n") + 1)
    if torn == MAX_LINE:
        raise bad_request("the audit log ends in a line that is too long", "keep the file elsewhere and remove it")
    if torn:
        os.ftruncate(handle, size - torn)
    return torn


def _write(handle: int, line: bytes) -> None:
    view = memoryview(line)
    while view:
        view = view[os.write(handle, view) :]


def _number(path: Path, candidate: Path) -> int:
    """0 of `path` itself, n of `path.n`, -1 of anything else."""
    if candidate == path:
        return 0
    with contextlib.suppress(ValueError):
        suffix = candidate.name.removeprefix(f"{path.name}.")
        return int(suffix) if suffix.isascii() and suffix.isdigit() else -1
    return -1


def _hash(line: bytes) -> str:
    return blake3(line).hexdigest()
