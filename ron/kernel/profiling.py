"""Where a running process spends its CPU time and its memory, on demand (issue: profiling).

In: a number of seconds. Out: folded stacks weighted by CPU time, and on request what lies on the heap. One profile at a
time, everything bounded, and nothing at all under amnesia: names of functions only, never a value.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import msgspec
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from ron.proto.errors import ErrorCode, RonError, bad_request, conflict

INTERVAL_S = 0.01
MAX_SECONDS = 60.0
MIN_SECONDS = 0.1
MAX_DEPTH = 128
MAX_STACKS = 20_000
MAX_FOLDED_CHARS = 8 * 1024 * 1024
MAX_OBJECTS = 5_000_000
TOP_TYPES = 40
TOP_SITES = 40
OTHER = "[other stacks]"
DEEPER = "[deeper]"
_SITE_FRAMES = 1
_NAME_CHARS = 120
_FORBIDDEN = str.maketrans({";": ",", "\n": " ", "\r": " "})
_TASKS = Path("/proc/self/task")
_log = Logger(namespace="ron.profiling")


class Stack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """frames: `thread;module:function;…`, the root first. cpu_us: microseconds of CPU spent with it on top."""

    frames: str
    cpu_us: int


class TypeSize(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Objects of one type that the garbage collector tracks; bytes without what they refer to."""

    type: str
    count: int
    bytes: int


class Site(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of code and what it allocated during the profile and had not freed at its end."""

    where: str
    count: int
    bytes: int


class Heap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """objects: tracked ones that were counted. frozen: those kept out of collection since start-up, not counted."""

    rss_bytes: int
    objects: int
    frozen: int
    types: tuple[TypeSize, ...]
    sites: tuple[Site, ...]


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One profile. cpu_us: the CPU time of all stacks. truncated: samples counted under `[other stacks]`."""

    seconds: float
    samples: int
    cpu_us: int
    truncated: int
    stacks: tuple[Stack, ...]
    heap: Heap | None = None


class Profiler:
    """Takes profiles of its own process; the reactor must run in its main thread, as twistd's does."""

    def __init__(self, reactor: Any, *, amnesia: bool = False) -> None:
        self._reactor = reactor
        self._amnesia = amnesia
        self._busy = False

    async def profile(self, seconds: float, *, heap: bool = False) -> Profile:
        """Sample for `seconds` (0.1 to 60). heap: count the heap too, and trace allocations, which slows all code down.

        Raises `RonError`: Unsupported under amnesia or outside of the main thread, BadRequest for seconds out of range,
        Conflict while another profile is taken. Cancelled, it stops at once.
        """
        if self._amnesia:
            raise RonError(ErrorCode.UNSUPPORTED, "no profiles are taken under amnesia")
        if threading.current_thread() is not threading.main_thread():
            raise RonError(ErrorCode.UNSUPPORTED, "only a reactor in the main thread can be profiled")
        if not MIN_SECONDS <= seconds <= MAX_SECONDS:
            raise bad_request(f"seconds must be {MIN_SECONDS} to {MAX_SECONDS:.0f}")
        if self._busy or any(signal.getitimer(signal.ITIMER_PROF)):
            raise conflict("a profile is being taken", "wait for its end; there is one at a time")
        self._busy = True
        _log.info("profiling for {seconds} s", event="profile", seconds=seconds, heap=heap)
        try:
            return await self._take(seconds, heap)
        finally:
            self._busy = False

    async def _take(self, seconds: float, heap: bool) -> Profile:
        sampler = CpuSampler()
        with _allocations_traced(heap):
            with sampler.running():
                await deferLater(self._reactor, seconds)
            # counting takes long: in a thread the reactor goes on in between
            found = await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), _heap) if heap else None
        return sampler.profile(seconds, found)


@contextmanager
def _allocations_traced(wanted: bool) -> Iterator[None]:
    ours = wanted and not tracemalloc.is_tracing()
    if ours:
        tracemalloc.start(_SITE_FRAMES)
    try:
        yield
    finally:
        if ours:
            tracemalloc.stop()


# -- CPU ------------------------------------------------------------------------------------------------------------


class CpuSampler:
    """Looks at every thread's stack each 10 ms of the process's CPU time and books on it what it has used since.

    A signal interrupts the main thread wherever it is. A sampling thread would not do: it gets the interpreter when
    the others give it up, so that it sees them in system calls and hardly ever in the code that takes the time (it put
    a third of a request on the line that asks the kernel for 10 random bytes). A thread that waits costs nothing, and
    time in C code that has released the lock still goes to its caller.
    """

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        # by identity: comparing code objects compares their constants. Holding them keeps the ids from being used again
        self._names: dict[int, tuple[str, CodeType]] = {}
        self._weights: Counter[tuple[str, ...]] = Counter()
        self._other_ns = 0
        self._looking = False
        self.samples = 0
        self.truncated = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample within the block. Main thread only."""
        before = signal.signal(signal.SIGPROF, self._interrupted)
        # C code in other threads (a database's fsync, say) need not know
        signal.siginterrupt(signal.SIGPROF, False)
        self._book_others()
        self._last[threading.get_native_id()] = time.thread_time_ns()
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            # one signal may still be on its way, and by default it ends the process
            signal.signal(signal.SIGPROF, signal.SIG_IGN if before in {signal.SIG_DFL, None} else before)

    def _interrupted(self, _number: int, frame: FrameType | None) -> None:
        if self._looking or frame is None:
            return
        self._looking = True
        self.samples += 1
        thread = threading.main_thread()
        self._book(threading.get_native_id(), thread.name, frame, time.thread_time_ns())
        self._book_others()
        self._last[threading.get_native_id()] = time.thread_time_ns()  # our own work is nobody's
        self._looking = False

    def _book_others(self) -> None:
        own = threading.get_ident()
        threads = {thread.ident: thread for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            thread = threads.get(ident)
            if ident == own or thread is None or thread.native_id is None:
                continue
            now = thread_cpu_ns(thread.native_id)
            if now is None:
                self._last.pop(thread.native_id, None)
            else:
                self._book(thread.native_id, thread.name, frame, now)

    def _book(self, native_id: int, thread: str, frame: FrameType, now_ns: int) -> None:
        used = now_ns - self._last.get(native_id, now_ns)
        self._last[native_id] = now_ns
        if used > 0:
            self.add((_clean(thread), *self._stack(frame)), used)

    def add(self, stack: tuple[str, ...], ns: int) -> None:
        """Book `ns` on `stack`, or on `[other stacks]` when there are too many."""
        if stack not in self._weights and len(self._weights) >= MAX_STACKS:
            self._other_ns += ns
            self.truncated += 1
        else:
            self._weights[stack] += ns

    def _stack(self, leaf: FrameType) -> list[str]:
        names: list[str] = []
        frame: FrameType | None = leaf
        while frame is not None:
            names.append(self._name(frame))
            frame = frame.f_back
        names.reverse()
        # the root is kept: a tree that has lost its trunk cannot be read
        return names if len(names) <= MAX_DEPTH else [*names[: MAX_DEPTH - 1], DEEPER]

    def _name(self, frame: FrameType) -> str:
        code = frame.f_code
        known = self._names.get(id(code))
        if known is None:
            name = _clean(f"{frame.f_globals.get('__name__', '?')}:{code.co_qualname}")
            known = self._names[id(code)] = (name, code)
        return known[0]

    def profile(self, seconds: float, heap: Heap | None) -> Profile:
        """What was found, the heaviest stacks first; what would make it too long goes to `[other stacks]`."""
        stacks: list[Stack] = []
        other_ns, truncated, room = self._other_ns, self.truncated, MAX_FOLDED_CHARS
        for frames, ns in self._weights.most_common():
            text = ";".join(frames)
            room -= len(text)
            if room < 0:
                other_ns, truncated = other_ns + ns, truncated + 1
            elif ns >= 1000:
                stacks.append(Stack(text, ns // 1000))
        if other_ns >= 1000:
            stacks.append(Stack(OTHER, other_ns // 1000))
        return Profile(
            seconds=seconds,
            samples=self.samples,
            cpu_us=sum(stack.cpu_us for stack in stacks),
            truncated=truncated,
            stacks=tuple(stacks),
            heap=heap,
        )


def thread_cpu_ns(native_id: int) -> int | None:
    """CPU nanoseconds of one of our threads, by its kernel id; None when it has ended.

    /proc rather than `pthread_getcpuclockid`, which must not be asked about a thread that may just have ended.
    """
    task = _TASKS / str(native_id)
    try:
        return int((task / "schedstat").read_bytes().split(None, 1)[0])
    except (OSError, ValueError, IndexError):
        pass  # a kernel without CONFIG_SCHED_INFO has the coarser figure only
    try:
        # proc(5): after the command in parentheses, utime and stime are the 12th and 13th field
        fields = (task / "stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return None


def _clean(name: str) -> str:
    """`name` fit for folded stacks, where `;` and the line's end mean something."""
    return name.translate(_FORBIDDEN)[:_NAME_CHARS] or "?"


# -- heap -----------------------------------------------------------------------------------------------------------


def _heap() -> Heap:
    sites = _sites()  # first, so that our own counting does not stand in it
    objects = gc.get_objects()
    counts: Counter[type] = Counter()
    sizes: Counter[type] = Counter()
    for thing in islice(objects, MAX_OBJECTS):
        kind = type(thing)
        counts[kind] += 1
        sizes[kind] += _size(thing)
    types = tuple(TypeSize(_type_name(kind), counts[kind], size) for kind, size in sizes.most_common(TOP_TYPES))
    return Heap(
        rss_bytes=_rss_bytes(),
        objects=min(len(objects), MAX_OBJECTS),
        frozen=gc.get_freeze_count(),
        types=types,
        sites=sites,
    )


def _sites() -> tuple[Site, ...]:
    snapshot = tracemalloc.take_snapshot()
    ours = (tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, __file__))
    found = snapshot.filter_traces(ours).statistics("lineno")[:TOP_SITES]
    return tuple(Site(_place(s.traceback[0].filename, s.traceback[0].lineno), s.count, s.size) for s in found)


def _place(filename: str, line: int) -> str:
    """`package/module.py:line`, without where the packages lie on this machine."""
    path = Path(filename)
    for base in sorted((p for p in sys.path if p), key=len, reverse=True):
        if path.is_relative_to(base):
            return f"{path.relative_to(base)}:{line}"
    return f"{path.name}:{line}"


def _size(thing: object) -> int:
    try:
        return sys.getsizeof(thing, 0)
    except Exception:  # noqa: BLE001 - a class may say anything about its size, even nothing
        return 0


def _type_name(kind: type) -> str:
    return _clean(kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}")


def _rss_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
