"""Profiles of a process that really works: its own threads, its own heap."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, LoopingCall, deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ron.kernel import profiling
from ron.kernel.profiling import DEEPER, MAX_DEPTH, OTHER, CpuSampler, Profile, Profiler, thread_cpu_ns
from ron.proto.errors import ErrorCode, RonError
from ron.web.profiling import profiling_endpoints
from tests.web.wire import OnTheWire, request

kept: list[Any] = []


def spin(stop: threading.Event) -> None:
    """Use the CPU."""
    while not stop.is_set():
        sum(range(2000))


def crunch() -> int:
    """Some milliseconds of nothing but Python."""
    total = 0
    for number in range(100_000):
        total += number
    return total


def ask_the_kernel() -> bytes:
    """A moment in a system call."""
    return os.urandom(10)


def wait(stop: threading.Event) -> None:
    """Use none."""
    stop.wait(30)


class WithThreads(TestCase):
    timeout = 60

    def thread(self, work: Callable[[threading.Event], None], name: str) -> threading.Thread:
        stop = threading.Event()
        thread = threading.Thread(target=work, args=(stop,), name=name, daemon=True)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(stop.set)
        return thread


class Profiles(WithThreads):
    def setUp(self) -> None:
        self.profiler = Profiler(reactor)

    async def test_seconds_out_of_range(self) -> None:
        for seconds in (0.0, -1.0, 60.1, float("nan"), float("inf")):
            error = await self.refusal(self.profiler.profile(seconds))
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)

    async def test_none_under_amnesia(self) -> None:
        error = await self.refusal(Profiler(reactor, amnesia=True).profile(1.0))
        self.assertIs(error.code, ErrorCode.UNSUPPORTED)

    async def test_one_at_a_time_and_cancelling_ends_it(self) -> None:
        first = Deferred.fromCoroutine(self.profiler.profile(60.0))
        error = await self.refusal(self.profiler.profile(1.0))
        self.assertIs(error.code, ErrorCode.CONFLICT)
        first.cancel()
        await self.assertFailure(first, CancelledError)
        for _ in range(500):
            try:
                await self.profiler.profile(0.1)
                return
            except RonError:
                await deferLater(reactor, 0.01)
        self.fail("the first one goes on")

    async def test_what_works_is_seen_and_what_waits_is_not(self) -> None:
        self.thread(spin, "busy;thread")
        self.thread(wait, "idle-thread")
        profile = await self.profiler.profile(0.5)
        busy = [s for s in profile.stacks if s.frames.startswith("busy,thread;")]
        self.assertTrue(busy)
        self.assertTrue(any(s.frames.split(";")[-1] == f"{__name__}:spin" for s in busy))
        share = sum(s.cpu_us for s in busy) / profile.cpu_us
        self.assertGreater(share, 0.5)
        # it needs a moment to come to its waiting, and the machine may be busy
        idle = sum(s.cpu_us for s in profile.stacks if f"{__name__}:wait" in s.frames)
        self.assertLess(idle / profile.cpu_us, 0.1)
        self.assertEqual(profile.cpu_us, sum(s.cpu_us for s in profile.stacks))
        self.assertIsNone(profile.heap)
        self.assertGreater(profile.samples, 3)

    async def test_nothing_of_the_machine_or_of_values_is_told(self) -> None:
        self.thread(spin, "t")
        profile = await self.profiler.profile(0.3, heap=True)
        assert profile.heap is not None
        told = " ".join([*(s.frames for s in profile.stacks), *(s.where for s in profile.heap.sites)])
        for base in (p for p in sys.path if len(p) > 1):
            self.assertNotIn(base, told)

    async def test_the_heap(self) -> None:
        self.addCleanup(kept.clear)
        done = Deferred.fromCoroutine(self.profiler.profile(0.3, heap=True))
        await deferLater(reactor, 0.1)
        self.assertTrue(tracemalloc.is_tracing())
        kept.extend([[number] for number in range(50_000)])
        profile: Profile = await done
        self.assertFalse(tracemalloc.is_tracing())
        heap = profile.heap
        assert heap is not None
        self.assertGreater(heap.rss_bytes, 1_000_000)
        lists = next(t for t in heap.types if t.type == "list")
        self.assertGreater(lists.count, 50_000)
        self.assertGreater(lists.bytes, 50_000 * 56)
        here = [s for s in heap.sites if "test_profiling.py:" in s.where]
        self.assertGreater(max((s.bytes for s in here), default=0), 1_000_000)

    async def test_somebody_elses_tracing_goes_on(self) -> None:
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        await self.profiler.profile(0.1, heap=True)
        self.assertTrue(tracemalloc.is_tracing())

    async def test_what_breaks_comes_back_and_leaves_it_usable(self) -> None:
        def broken() -> None:
            raise ZeroDivisionError

        self.patch(profiling, "_heap", broken)
        failed = Deferred.fromCoroutine(self.profiler.profile(0.1, heap=True))
        await self.assertFailure(failed, ZeroDivisionError)
        self.assertFalse(tracemalloc.is_tracing())
        await self.profiler.profile(0.1)

    async def test_the_reactors_own_code_is_seen_where_the_time_goes(self) -> None:
        """A sampling thread would find it in the system call, where it lets others run, nearly every time."""
        work = LoopingCall(lambda: (crunch(), ask_the_kernel()))
        work.start(0)
        self.addCleanup(work.stop)
        profile = await self.profiler.profile(1.0)
        own = Counter[str]()
        for stack in profile.stacks:
            own[stack.frames.rpartition(";")[2]] += stack.cpu_us
        crunched, asked = own[f"{__name__}:crunch"], own[f"{__name__}:ask_the_kernel"]
        self.assertGreater(crunched, profile.cpu_us // 2)
        self.assertGreater(crunched, 4 * asked)
        stack = next(s.frames for s in profile.stacks if s.frames.endswith(":crunch"))
        self.assertTrue(stack.startswith("MainThread;"), stack)

    async def test_afterwards_a_late_signal_harms_nobody(self) -> None:
        await self.profiler.profile(0.1)
        self.assertEqual(signal.getitimer(signal.ITIMER_PROF), (0.0, 0.0))
        os.kill(os.getpid(), signal.SIGPROF)

    async def test_another_profiler_is_left_alone(self) -> None:
        signal.signal(signal.SIGPROF, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_PROF, 100.0)
        self.addCleanup(signal.setitimer, signal.ITIMER_PROF, 0.0)
        self.assertIs((await self.refusal(self.profiler.profile(0.1))).code, ErrorCode.CONFLICT)

    async def test_outside_of_the_main_thread_it_says_no(self) -> None:
        error = await self.refusal(deferToThread(lambda: self.profiler.profile(0.1).send(None)))
        self.assertIs(error.code, ErrorCode.UNSUPPORTED)

    async def refusal(self, profile: Any) -> RonError:
        deferred = profile if isinstance(profile, Deferred) else Deferred.fromCoroutine(profile)
        error: RonError = await self.assertFailure(deferred, RonError)
        return error


class Sampling(SynchronousTestCase):
    """Bounds, without waiting for them."""

    def test_the_clock_of_a_thread(self) -> None:
        native_id = threading.get_native_id()
        before = thread_cpu_ns(native_id)
        assert before is not None
        end = time.thread_time_ns() + 30_000_000
        while time.thread_time_ns() < end:
            pass
        after = thread_cpu_ns(native_id)
        assert after is not None
        self.assertGreater(after, before)

    def test_a_thread_that_is_not_there(self) -> None:
        self.assertIsNone(thread_cpu_ns(2**30))

    def test_stacks_are_bounded(self) -> None:
        self.patch(profiling, "MAX_STACKS", 3)
        sampler = CpuSampler()
        for number in range(5):
            sampler.add((str(number),), 1_000_000)
        sampler.add(("0",), 1_000_000)
        profile = sampler.profile(1.0, None)
        self.assertEqual({s.frames: s.cpu_us for s in profile.stacks}, {"0": 2000, "1": 1000, "2": 1000, OTHER: 2000})
        self.assertEqual((profile.truncated, profile.cpu_us), (2, 6000))

    def test_so_is_the_text_of_them(self) -> None:
        self.patch(profiling, "MAX_FOLDED_CHARS", 25)
        sampler = CpuSampler()
        for number in range(5):
            sampler.add((f"{number}" * 10,), (10 - number) * 1_000_000)
        profile = sampler.profile(1.0, None)
        self.assertEqual([s.frames for s in profile.stacks], ["0" * 10, "1" * 10, OTHER])
        self.assertEqual(profile.cpu_us, 40_000)

    def test_deep_stacks_keep_their_root(self) -> None:
        sampler = CpuSampler()

        def deep(levels: int) -> list[str]:
            return deep(levels - 1) if levels else sampler._stack(sys._getframe())

        stack = deep(300)
        self.assertEqual(len(stack), MAX_DEPTH)
        self.assertEqual((stack[-1], stack[0]), (DEEPER, sampler._stack(sys._getframe())[0]))

    def test_names_that_would_break_the_form(self) -> None:
        self.assertEqual(profiling._clean("a;b\nc\r"), "a,b c ")
        self.assertEqual(profiling._clean(""), "?")
        self.assertLessEqual(len(profiling._clean("x" * 10_000)), 200)


class OverHttp(OnTheWire):
    """The endpoint: who may, what it takes."""

    def setUp(self) -> None:
        super().setUp()
        self.serve(profiling_endpoints(Profiler(reactor), enabled=True))

    async def post(self, body: bytes, *caveats: tuple[str, str]) -> Any:
        return await self.ask(request("POST", "/v1/profile", self.bearer(*caveats), body))

    async def test_without_the_scope(self) -> None:
        self.assertEqual((await self.ask(request("POST", "/v1/profile", {}, b"{}"))).status, 401)
        self.assertEqual((await self.post(b"{}", ("scope", "node:read"))).status, 403)

    async def test_bad_bodies(self) -> None:
        for body in (
            b"",
            b"[]",
            b'{"seconds":0}',
            b'{"seconds":61}',
            b'{"seconds":"1"}',
            b'{"second":1}',
            b'{"heap":1}',
        ):
            self.assertEqual((await self.post(body, ("scope", "node:profile"))).status, 400, body)

    async def test_a_profile(self) -> None:
        answer = await self.post(b'{"seconds":0.2,"heap":true}', ("scope", "node:profile"))
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(answer.json["seconds"], 0.2)
        self.assertGreater(answer.json["heap"]["objects"], 1000)

    async def test_a_client_that_goes_away_ends_it(self) -> None:
        wire = await self.wire()
        wire.send(request("POST", "/v1/profile", self.bearer(("scope", "*")), b'{"seconds":60}'))
        await deferLater(reactor, 0.1)
        wire.abort()
        for _ in range(200):
            if (await self.post(b'{"seconds":0.1}', ("scope", "*"))).status == 200:
                return
            await deferLater(reactor, 0.02)
        self.fail("it went on")

    async def test_off(self) -> None:
        self.serve(profiling_endpoints(Profiler(reactor), enabled=False))
        answer = await self.post(b"{}", ("scope", "*"))
        self.assertEqual((answer.status, answer.json["error"]["code"]), (400, "Unsupported"))

    def test_its_deadline_is_later_than_the_longest_profile(self) -> None:
        (endpoint,) = profiling_endpoints(Profiler(Clock()), enabled=True)
        self.assertGreater(endpoint.deadline_s, profiling.MAX_SECONDS)
