"""What was audited stays: on disk before anybody hears of it, one chain over crashes and rotations, no secrets."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ron.kernel import HealthState, Metrics
from ron.kernel.threads import BoundedPool
from ron.proto.errors import ErrorCode, RonError
from ron.services.oniond.audit import (
    FIELDS,
    MAX_TEXT,
    PER_MINUTE,
    RING,
    START,
    Auditor,
    FileAudit,
    MemoryAudit,
    Sink,
    audit_files,
    verify,
)

NOW_S = 1_800_000_000.0


def now() -> float:
    return NOW_S


class EverySink:
    """What both kinds promise alike."""

    sink: Sink
    assertEqual: Callable[..., None]
    assertRaises: Callable[..., Any]

    def test_only_what_is_on_the_list(self) -> None:
        for event, fields in (
            ("key_exported", {"key": "ED25519-V3:…"}),
            ("key_exported", {"private_key": "x"}),
            ("key_exported", {"App": "wiki"}),
            ("key_exported", {"app": 1.5}),
            ("key_exported", {"app": None}),
            ("key_exported", {"app": ["wiki"]}),
            ("key_exported", {"sequence": 1 << 60}),
            ("", {}),
            ("two words", {}),
            ("line\nbreak", {}),
            ("x" * 65, {}),
        ):
            self.assertRaises(ValueError, self.sink.append, event, fields)
        self.assertEqual(self.sink.recent(), [])

    def test_the_list_has_no_name_for_a_secret(self) -> None:
        self.assertEqual({name for name in FIELDS if "key" in name or "secret" in name or "token" in name}, set())

    def test_a_secret_in_an_honest_field_is_cut_out(self) -> None:
        record = self.sink.append("onion_deleted", {"reason": "password=hunter2 did not fit"})
        self.assertEqual("hunter2" in str(record.fields["reason"]), False)

    def test_long_texts_are_cut(self) -> None:
        record = self.sink.append("federation_refused", {"reason": "r" * 10_000, "peer": "\ud800\n\x00" * 1000})
        self.assertEqual({len(str(value)) <= MAX_TEXT for value in record.fields.values()}, {True})

    def test_a_chain(self) -> None:
        first = self.sink.append("key_exported", {"app": "wiki", "cap_id": "c"})
        second = self.sink.append("client_added", {"app": "wiki", "client": "anna"})
        self.assertEqual((first.seq, first.prev, second.seq), (1, START, 2))
        self.assertEqual(first.at, "2027-01-15T08:00:00Z")
        self.assertEqual(first.fields, {"app": "wiki", "cap_id": "c"})
        self.assertEqual(second.prev in {START, first.prev}, False)
        self.assertEqual(self.sink.recent(), [first, second])


class InMemory(EverySink, SynchronousTestCase):
    def setUp(self) -> None:
        self.sink = MemoryAudit(now)

    def test_bounded(self) -> None:
        for n in range(RING + 5):
            self.sink.append("federation_facts", {"sequence": n})
        kept = self.sink.recent()
        self.assertEqual((len(kept), kept[0].seq), (RING, 6))


class WithFile(SynchronousTestCase):
    """A log in a folder of its own."""

    sink: FileAudit

    def setUp(self) -> None:
        umask = os.umask(0)
        self.addCleanup(os.umask, umask)
        self.path = Path(self.mktemp()).absolute() / "audit" / "audit.jsonl"
        self.sink = self.opened()

    def opened(self, **options: int) -> FileAudit:
        sink = FileAudit(self.path, now, **options)
        self.addCleanup(sink.close)
        return sink

    def again(self, **options: int) -> FileAudit:
        """The next process."""
        self.sink.close()
        self.sink = self.opened(**options)
        return self.sink

    def fill(self, count: int, sink: FileAudit | None = None) -> None:
        for n in range(count):
            (sink or self.sink).append("federation_facts", {"sequence": n, "peer": "p" * 50})


class InFiles(EverySink, WithFile):
    sink: FileAudit


class Writing(WithFile):
    def test_private(self) -> None:
        self.fill(1)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.path.parent.stat().st_mode), 0o700)
        self.path.chmod(0o666)
        self.fill(1, self.again())
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_on_disk_before_it_returns(self) -> None:
        """Every record is synced after it was written and before `append` returns."""
        steps: list[str] = []
        write, fsync = os.write, os.fsync

        def writing(handle: int, view: Any) -> int:
            steps.append("write")
            return write(handle, view)

        def syncing(handle: int) -> None:
            steps.append("sync" if stat.S_ISREG(os.fstat(handle).st_mode) else "folder")
            fsync(handle)

        self.patch(os, "write", writing)
        self.patch(os, "fsync", syncing)
        self.fill(2)
        self.assertEqual(steps, ["folder", "write", "sync", "write", "sync"])

    def test_one_chain_from_process_to_process(self) -> None:
        self.fill(3)
        self.fill(2, self.again())
        verdict = verify(self.path)
        self.assertEqual((verdict.records, verdict.broken, verdict.head), (5, None, self.sink.head))

    def test_two_processes_at_once(self) -> None:
        self.fill(1)
        error: RonError = self.assertRaises(RonError, self.opened().append, "key_exported", {})
        self.assertIs(error.code, ErrorCode.CONFLICT)
        self.fill(1)
        self.assertEqual(verify(self.path).records, 2)

    def test_no_link_is_followed(self) -> None:
        target = Path(self.mktemp()).absolute()
        target.write_text("precious\n")
        self.path.parent.mkdir(parents=True)
        self.path.symlink_to(target)
        error: RonError = self.assertRaises(RonError, self.sink.append, "key_exported", {})
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
        self.assertEqual(target.read_text(), "precious\n")

    def test_a_writer_that_died_in_the_middle(self) -> None:
        self.fill(3)
        whole = self.path.read_bytes()
        last = whole.splitlines(keepends=True)[-1]
        for left in (1, len(last) // 2, len(last) - 1):
            self.path.write_bytes(whole[: len(whole) - len(last) + left])
            self.fill(1, self.again())
            verdict = verify(self.path)
            self.assertEqual((verdict.records, verdict.broken), (4, None))
            recovered = json.loads(self.path.read_bytes().splitlines()[2])
            self.assertEqual((recovered["event"], recovered["fields"]), ("audit_recovered", {"lost_bytes": left}))

    def test_it_does_not_go_on_after_a_line_that_is_none(self) -> None:
        self.fill(2)
        with self.path.open("ab") as file:
            file.write(b"hello\n")
        error: RonError = self.assertRaises(RonError, self.again().append, "key_exported", {})
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
        self.assertTrue(self.path.read_bytes().endswith(b"hello\n"))

    def test_an_endless_line(self) -> None:
        self.fill(1)
        with self.path.open("ab") as file:
            file.write(b"x" * 200_000)
        self.assertRaises(RonError, self.again().append, "key_exported", {})

    def test_a_full_disk(self) -> None:
        """The kernel refuses to write beyond a size, as it does on a full disk, in the middle of a line."""
        self.fill(2)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGXFSZ, handler)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.path.stat().st_size + 20, before[1]))
        try:
            error: RonError = self.assertRaises(RonError, self.sink.append, "key_exported", {"app": "wiki"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
        self.assertEqual(len(self.sink.recent()), 2)
        self.sink.append("key_exported", {"app": "wiki"})
        verdict = verify(self.path)
        self.assertEqual((verdict.records, verdict.broken), (4, None))


class Rotating(WithFile):
    SMALL: ClassVar = {"max_bytes": 2000, "keep": 3}

    def test_bounded_and_one_chain(self) -> None:
        self.fill(100, self.again(**self.SMALL))
        files = audit_files(self.path)
        self.assertEqual([p.name for p in files], [*(f"audit.jsonl.{n}" for n in (3, 2, 1)), "audit.jsonl"])
        self.assertTrue(all(p.stat().st_size < 2500 for p in files))
        verdict = verify(self.path, keep=3)
        self.assertIsNone(verdict.broken)
        self.assertEqual(verdict.head, self.sink.head)
        self.assertLess(verdict.records, 100)

    def test_a_process_that_died_between_two_files(self) -> None:
        self.fill(8, self.again(**self.SMALL))
        self.sink.close()
        self.path.rename(self.path.with_name("audit.jsonl.1"))
        self.fill(1, self.again(**self.SMALL))
        verdict = verify(self.path, keep=3)
        self.assertEqual((verdict.records, verdict.broken), (9, None))

    def test_a_missing_file_shows(self) -> None:
        self.fill(100, self.again(**self.SMALL))
        self.path.with_name("audit.jsonl.2").unlink()
        broken = verify(self.path, keep=3).broken
        assert broken is not None
        self.assertEqual((broken.path.name, broken.line), ("audit.jsonl.1", 1))

    def test_other_files_are_left_alone(self) -> None:
        self.fill(1)
        for name in ("audit.jsonl.bak", "audit.jsonl.1.gz", "audit.jsonl2", "audit.jsonl.-1", "audit.jsonl.²"):
            self.path.with_name(name).write_text("mine")
        self.fill(100, self.again(**self.SMALL))
        self.assertEqual(self.path.with_name("audit.jsonl.bak").read_text(), "mine")
        self.assertEqual(len(audit_files(self.path)), 4)

    def test_keeping_none_is_refused(self) -> None:
        self.assertRaises(ValueError, FileAudit, self.path, now, keep=0)


class Verifying(WithFile):
    def setUp(self) -> None:
        super().setUp()
        self.fill(10)
        self.sink.close()
        self.lines = self.path.read_bytes().splitlines(keepends=True)

    def broken(self, lines: list[bytes], **options: Any) -> tuple[int, int] | None:
        """(line of the break, records before it)."""
        self.path.write_bytes(b"".join(lines))
        verdict = verify(self.path, **options)
        return verdict.broken and (verdict.broken.line, verdict.records)

    def test_no_file_at_all(self) -> None:
        self.path.unlink()
        self.assertEqual(verify(self.path), (0, START, None))

    def test_untouched(self) -> None:
        self.assertIsNone(self.broken(self.lines))

    def test_a_changed_line(self) -> None:
        changed = [*self.lines]
        changed[4] = changed[4].replace(b'"sequence":4', b'"sequence":5')
        self.assertEqual(self.broken(changed), (6, 5))

    def test_a_lost_one_one_too_many_and_two_that_changed_places(self) -> None:
        self.assertEqual(self.broken(self.lines[:3] + self.lines[4:]), (4, 3))
        self.assertEqual(self.broken(self.lines[:3] + self.lines[2:]), (4, 3))
        self.assertEqual(self.broken([*self.lines[:3], self.lines[4], self.lines[3], *self.lines[5:]]), (4, 3))
        self.assertEqual(self.broken(self.lines[1:]), (1, 0))

    def test_no_record(self) -> None:
        for wrong in (b"\n", b"{}\n", b"null\n", b"[" * 5000 + b"\n", b"\xff\n", b'{"seq":1}\n'):
            self.assertEqual(self.broken([*self.lines[:3], wrong, *self.lines[3:]]), (4, 3))

    def test_an_unfinished_line(self) -> None:
        self.assertEqual(self.broken([*self.lines[:-1], self.lines[-1][:-1]]), (10, 9))

    def test_a_missing_end_shows_to_whoever_noted_the_head(self) -> None:
        self.assertIsNone(self.broken(self.lines[:8]))
        self.assertEqual(self.broken(self.lines[:8], head=self.sink.head), (0, 8))
        self.assertIsNone(self.broken(self.lines, head=self.sink.head))
        self.assertIsNone(self.broken(self.lines, head=json.loads(self.lines[5])["prev"]))

    @settings(max_examples=100)
    @given(st.data())
    def test_any_byte_that_is_another(self, data: st.DataObject) -> None:
        """In all lines but the last, of which only somebody who noted the head can tell."""
        whole = b"".join(self.lines)
        place = data.draw(st.integers(0, len(whole) - 1))
        byte = data.draw(st.integers(0, 255).filter(lambda b: b != whole[place]))
        self.path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
        self.assertIsNotNone(verify(self.path, head=self.sink.head).broken)
        if place < len(whole) - len(self.lines[-1]):
            self.assertIsNotNone(verify(self.path).broken)


class Auditing(TestCase):
    """From the reactor, with a real thread."""

    timeout = 60

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute() / "audit.jsonl"
        self.sink = FileAudit(self.path, now)
        self.addCleanup(self.sink.close)
        self.clock, self.metrics, self.health = Clock(), Metrics(), HealthState()
        self.pool = BoundedPool(reactor, name="audit", threads=1)  # type: ignore[arg-type]
        self.pool.start()
        self.addCleanup(self.pool.stop)
        self.audit = Auditor(self.sink, self.pool, clock=self.clock, metrics=self.metrics, health=self.health)

    def value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0

    async def test_recorded(self) -> None:
        await self.audit.record("key_exported", app="wiki")
        self.assertEqual(verify(self.path).records, 1)
        self.assertEqual(self.value("audit_records_total"), 1)

    async def test_what_cannot_be_recorded_must_not_be_done(self) -> None:
        self.path.mkdir(parents=True)
        with self.assertRaises(RonError):
            await self.audit.record("key_exported", app="wiki")
        self.assertEqual(self.value("audit_failures_total"), 1)
        self.assertIn("audit", self.health.snapshot().degraded)
        self.path.rmdir()
        await self.audit.record("key_exported", app="wiki")
        self.assertNotIn("audit", self.health.snapshot().degraded)

    async def test_a_field_that_is_not_on_the_list_is_a_fault_of_ours(self) -> None:
        with self.assertRaises(ValueError):
            self.audit("federation_refused", password="x")

    async def test_the_order_stays(self) -> None:
        for n in range(50):
            self.audit("federation_facts", sequence=n)
        await self.audit.record("key_exported")
        kept = [record.fields.get("sequence") for record in self.sink.recent()]
        self.assertEqual(kept, [*range(50), None])

    async def test_a_flood_is_counted_and_pushes_nothing_out(self) -> None:
        for _ in range(10 * PER_MINUTE):
            self.audit("federation_refused", reason="proof")
        self.audit("federation_opened", peer="p")
        await self.audit.record("key_exported")
        self.assertEqual(len(self.sink.recent()), PER_MINUTE + 2)
        self.clock.advance(60)
        self.audit("federation_refused", reason="proof")
        self.audit("federation_refused", reason="proof")
        await self.audit.record("key_exported")
        told = [record.fields.get("omitted") for record in self.sink.recent()[-3:]]
        self.assertEqual(told, [9 * PER_MINUTE, None, None])

    async def test_one_that_is_lost_is_counted_and_logged(self) -> None:
        self.path.mkdir(parents=True)
        self.audit("federation_opened", peer="p")
        with self.assertRaises(RonError):
            await self.audit.record("key_exported")
        self.assertEqual(self.value("audit_failures_total"), 2)
        self.assertEqual(len(self.flushLoggedErrors(RonError)), 1)
