"""Leaves on disk: append-only files of JSON lines, a new one when the last is large enough.

In: leaves. Out: they are on disk when `append` returns, and when it raises nothing of them will be. What a dead writer
left of a line is cut away when the log is read again: nobody was told that it was there. Blocks; one thread at a time,
but `read`, which any may call.
"""

from __future__ import annotations

import contextlib
import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from twisted.logger import Logger

from ron.kernel.files import private_dir, sync_dir
from ron.services.kms.audit.leaves import MAX_LEAF_BYTES, BadLeafError

SEGMENT_BYTES = 64 * 1024 * 1024
# Room for a full batch of ordinary records must be there before the disk is called well again.
PROBE_BYTES = 256 * 1024
# The place of each so manieth leaf is in memory, 8 bytes for it.
_EVERY = 256
_READ_BYTES = 1024 * 1024
_NAME = re.compile(r"([0-9]{20})\.jsonl\Z")
_log = Logger(namespace="ron.kms.audit")


class LeafFiles:
    """`directory`/<index of the first leaf>.jsonl, 0600 in a 0700 directory. Call `scan` to its end before all else."""

    def __init__(self, directory: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._handle: int | None = None
        self._torn = False
        self.size = 0
        self.cut_bytes = 0

    def scan(self, *, mend: bool = True) -> Iterator[bytes]:
        """All leaves from the first. The torn end of the last file is cut away, or with `mend` False passed over: then
        nothing is changed, and another process may be writing.

        Raises BadLeafError where the files do not make one log: a gap, a line that is too long or torn before the end.
        """
        if mend:
            private_dir(self._directory)
        paths = sorted(path for path in self._directory.iterdir() if _NAME.match(path.name))
        for path in paths:
            start = int(path.name[:20])
            if start != self.size:
                raise BadLeafError(f"the file {path.name} is not the one that follows record {self.size}")
            segment = _Segment(path, start)
            self._segments.append(segment)
            yield from self._scanned(segment, last=path == paths[-1], mend=mend)
        if mend and self._segments:
            # what a killed writer left may be in memory only: nothing is to be signed that a power cut could take
            os.fdatasync(self._open(self._segments[-1]))

    def append(self, leaves: Sequence[bytes]) -> None:
        """Durably, all or none. Raises OSError."""
        segment = self._current()
        handle = self._open(segment)
        lines = b"\n".join([*leaves, b""])
        try:
            if self._torn:
                self._cut(handle, segment)
            _write_at(handle, lines, segment.bytes)
            os.fdatasync(handle)
        except OSError:
            self._torn = True
            # what can be taken back now should be; else it is before the next write, or when the log is read again
            with contextlib.suppress(OSError):
                self._cut(handle, segment)
            raise
        segment.grow(map(len, leaves))
        self.size += len(leaves)

    def probe(self) -> None:
        """Raises OSError unless the disk would take `PROBE_BYTES` more."""
        segment = self._current()
        handle = self._open(segment)
        try:
            self._torn = True
            _write_at(handle, b"\0" * PROBE_BYTES, segment.bytes)
            os.fdatasync(handle)
        finally:
            self._cut(handle, segment)

    def read(self, start: int, count: int, limit_bytes: int) -> list[bytes]:
        """The leaves from `start`, at most `count` and about `limit_bytes`, at least one where there is one."""
        found: list[bytes] = []
        left = limit_bytes
        while count > len(found) and start < self.size and left > 0:
            segment = self._segments[bisect_right(self._segments, start, key=_start) - 1]
            some = segment.read(start, count - len(found), left)
            found += some
            start += len(some)
            left -= sum(map(len, some))
        return found

    def close(self) -> None:
        """Let go of the files."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _current(self) -> _Segment:
        """The file to write to; a new one when the last is full."""
        if not self._segments or self._segments[-1].bytes >= self._segment_bytes:
            self.close()
            segment = _Segment(self._directory / f"{self.size:020d}.jsonl", self.size)
            os.close(os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            sync_dir(self._directory)
            self._segments.append(segment)
        return self._segments[-1]

    def _open(self, segment: _Segment) -> int:
        if self._handle is None:
            self._handle = os.open(segment.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return self._handle

    def _cut(self, handle: int, segment: _Segment) -> None:
        os.ftruncate(handle, segment.bytes)
        os.fdatasync(handle)
        self._torn = False

    def _scanned(self, segment: _Segment, *, last: bool, mend: bool) -> Iterator[bytes]:
        rest = b""
        with segment.path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if len(line) > MAX_LEAF_BYTES:
                        raise BadLeafError(f"record {self.size} is longer than a record can be")
                    segment.grow((len(line),))
                    self.size += 1
                    yield line
                if len(rest) > MAX_LEAF_BYTES and not last:
                    raise BadLeafError(f"record {self.size} is longer than a record can be")
                rest = rest[: PROBE_BYTES + MAX_LEAF_BYTES]
        if rest and not last:
            raise BadLeafError(f"record {self.size} is torn, and others follow it")
        if rest and mend:
            self.cut_bytes = segment.path.stat().st_size - segment.bytes
            _log.warn("cut {bytes} bytes of a torn record", event="audit_torn_record_cut", bytes=self.cut_bytes)
            os.truncate(segment.path, segment.bytes)


class _Mark(NamedTuple):
    """Where to begin to read: leaf `leaf` begins `offset` bytes from the beginning of its file."""

    leaf: int
    offset: int


class _Segment:
    """One file. bytes: of whole lines that are on disk; what is behind them does not count."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self.start = start
        self.count = 0
        self.bytes = 0
        self._marks = array("Q")

    def grow(self, lengths: Iterator[int] | Sequence[int]) -> None:
        """Lines of so many bytes each, without their ends, were added."""
        for length in lengths:
            if self.count % _EVERY == 0:
                self._marks.append(self.bytes)
            self.count += 1
            self.bytes += length + 1

    def read(self, start: int, count: int, limit_bytes: int) -> list[bytes]:
        """Leaves of this file from `start`, which is in it."""
        mark = self._mark(start)
        end = self._end(start + count)
        with self.path.open("rb") as file:
            file.seek(mark.offset)
            lines = file.read(min(end - mark.offset, limit_bytes + _EVERY * (MAX_LEAF_BYTES + 1))).split(b"\n")[:-1]
        found = lines[start - mark.leaf :][:count]
        used = 0
        for number, line in enumerate(found):
            used += len(line)
            if used > limit_bytes and number:
                return found[:number]
        return found

    def _mark(self, index: int) -> _Mark:
        number = (index - self.start) // _EVERY
        return _Mark(self.start + number * _EVERY, self._marks[number])

    def _end(self, index: int) -> int:
        """Where the first leaf begins that is marked and not before `index`."""
        number = -(-(index - self.start) // _EVERY)
        return self._marks[number] if number < len(self._marks) else self.bytes


def _start(segment: _Segment) -> int:
    return segment.start


def _write_at(handle: int, lines: bytes, offset: int) -> None:
    view = memoryview(lines)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
