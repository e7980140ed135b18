"""Group commit keeps its word: answered means on disk, one operation's failure is its own, and trouble is told."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, DeferredList, gatherResults
from twisted.internet.task import react
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from ron.proto.errors import ErrorCode, RonError
from ron.store import BatchReport, GroupCommit, open_database

SCHEMA = ["CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE)"]
FAMILY = [
    "CREATE TABLE parent (id INTEGER PRIMARY KEY);"
    "CREATE TABLE child (parent INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)"
]
DEADLINE_S = 30.0
ROOT = Path(__file__).parents[2]


def write(text: str, connection: sqlite3.Connection) -> int:
    return connection.execute("INSERT INTO note (text) VALUES (?)", (text,)).lastrowid or 0


def write_then_fail(text: str, connection: sqlite3.Connection) -> None:
    write(text, connection)
    raise ValueError("after a change")


def fail(_connection: sqlite3.Connection) -> None:
    raise ValueError("before any change")


def texts(connection: sqlite3.Connection) -> list[str]:
    return [text for (text,) in connection.execute("SELECT text FROM note ORDER BY id")]


def soon(deferred: Deferred[Any]) -> Deferred[Any]:
    return deferred.addTimeout(DEADLINE_S, reactor)


async def fill(path: Path) -> None:
    """Write notes until no file may grow any more, then go on with more room.

    Prints three lines: the notes answered before, the codes of the refusals, the notes answered after.
    """
    engine = GroupCommit(path, SCHEMA, reactor=reactor, name="notes")
    await engine.start()
    _soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, hard))
    answered: list[str] = []
    refused: list[str] = []
    for number in range(200):
        text = f"{number}" + "x" * 3000
        try:
            await engine.submit(partial(write, text))
            answered.append(text)
        except RonError as error:
            refused.append(error.code.value)
            if len(refused) == 3:
                break
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await engine.submit(partial(write, "after"))
    for line in (answered, refused, ["after"]):
        print(*line, flush=True)  # noqa: T201


def run_fill() -> None:
    """The child process of the test below."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    react(lambda _reactor: Deferred.fromCoroutine(fill(Path(sys.argv[1]))))


def run_python(statement: str, *arguments: object) -> str:
    """What a fresh interpreter prints that runs `statement` with `arguments`."""
    command = [sys.executable, "-c", statement, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=True)
    return done.stdout


class CountingMirror:
    """A mirror that counts the writes it was told of."""

    def __init__(self) -> None:
        self.count = self.at_operation = self.at_commit = 0

    def opened(self, connection: sqlite3.Connection) -> None:
        (self.count,) = connection.execute("SELECT count(*) FROM note").fetchone()
        self.at_commit = self.count

    def begins(self) -> None:
        self.at_operation = self.count

    def failed(self) -> None:
        self.count = self.at_operation

    def committed(self) -> None:
        self.at_commit = self.count

    def rolled_back(self) -> None:
        self.count = self.at_commit

    def write(self, text: str, connection: sqlite3.Connection) -> None:
        self.count += 1
        write(text, connection)

    def write_then_fail(self, text: str, connection: sqlite3.Connection) -> None:
        self.write(text, connection)
        raise ValueError("after a change")

    def count_then_fail(self, _text: str, _connection: sqlite3.Connection) -> None:
        self.count += 1
        raise ValueError("before any change")


class StoreCase(TestCase):
    """Engines on a fresh file that are stopped whatever happens."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "private" / "notes.sqlite3"
        self.reports: list[BatchReport] = []

    def engine(self, path: Path | None, schema: list[str] = SCHEMA, **options: Any) -> GroupCommit:
        engine = GroupCommit(path, schema, reactor=reactor, name="notes", observe=self.reports.append, **options)
        self.addCleanup(engine.stop)
        return engine

    async def started(self, path: Path | None, schema: list[str] = SCHEMA, **options: Any) -> GroupCommit:
        engine = self.engine(path, schema, **options)
        await soon(engine.start())
        return engine

    async def refused(self, deferred: Deferred[Any], code: ErrorCode = ErrorCode.STORE_UNAVAILABLE) -> RonError:
        error = await self.assertFailure(soon(deferred), RonError)
        self.assertEqual(error.code, code)
        return error


class CommitTests(StoreCase):
    """What is answered is there; what failed left nothing."""

    async def test_operations_of_one_turn_share_a_commit_and_keep_their_order(self) -> None:
        engine = await self.started(self.path)
        ids = await soon(gatherResults([engine.submit(partial(write, f"n{i}")) for i in range(50)]))
        self.assertEqual(ids, list(range(1, 51)))
        self.assertEqual([report.operations for report in self.reports], [50])
        self.assertTrue(self.reports[0].wrote)

    async def test_a_batch_is_bounded(self) -> None:
        engine = await self.started(self.path, batch_limit=20)
        await soon(gatherResults([engine.submit(partial(write, f"n{i}")) for i in range(50)]))
        self.assertEqual([report.operations for report in self.reports], [20, 20, 10])

    async def test_reads_alone_are_answered_without_a_write(self) -> None:
        engine = await self.started(self.path)
        self.assertEqual(await soon(engine.submit(texts)), [])
        self.assertFalse(self.reports[-1].wrote)

    async def test_a_failing_operation_does_not_spoil_the_others(self) -> None:
        engine = await self.started(self.path)
        first = engine.submit(partial(write, "first"))
        early = engine.submit(fail)
        late = engine.submit(partial(write_then_fail, "half done"))
        again = engine.submit(partial(write, "first"))
        last = engine.submit(partial(write, "last"))
        await soon(first)
        await self.assertFailure(early, ValueError)
        await self.assertFailure(late, ValueError)
        await self.assertFailure(again, sqlite3.IntegrityError)
        await soon(last)
        self.assertEqual(await soon(engine.submit(texts)), ["first", "last"])
        self.assertEqual(self.reports[0].operations, 5)
        self.assertIsNone(self.reports[0].trouble)

    async def test_the_mirror_follows_what_the_database_kept(self) -> None:
        mirror = CountingMirror()
        engine = await self.started(self.path, mirror=mirror)
        for operations in (
            (mirror.write, mirror.count_then_fail, mirror.write),
            (mirror.write, mirror.write_then_fail, mirror.write, mirror.count_then_fail),
        ):
            done = [
                engine.submit(partial(operation, f"{len(operations)}/{i}")) for i, operation in enumerate(operations)
            ]
            await soon(DeferredList(done, consumeErrors=True))
        self.assertEqual(mirror.count, 4)
        self.assertEqual(len(await soon(engine.submit(texts))), 4)
        await soon(engine.stop())
        again = CountingMirror()
        await self.started(self.path, mirror=again)
        self.assertEqual(again.count, mirror.count)

    async def test_a_commit_that_fails_answers_nobody_and_the_next_one_is_tried(self) -> None:
        engine = await self.started(self.path, FAMILY)
        good = engine.submit(lambda connection: connection.execute("INSERT INTO parent VALUES (1)"))
        orphan = engine.submit(lambda connection: connection.execute("INSERT INTO child VALUES (7)"))
        await self.refused(good)
        await self.refused(orphan)
        self.assertTrue(self.reports[0].lost)
        count = engine.submit(lambda connection: connection.execute("SELECT count(*) FROM parent").fetchone()[0])
        self.assertEqual(await soon(count), 0)
        await soon(engine.submit(lambda connection: connection.execute("INSERT INTO parent VALUES (1)")))
        self.assertFalse(self.reports[-1].lost)

    async def test_a_full_disk_refuses_what_needs_room_and_keeps_the_rest(self) -> None:
        engine = await self.started(self.path)
        await soon(engine.submit(partial(write, "kept")))
        await soon(engine.submit(lambda connection: connection.execute("PRAGMA max_page_count = 1").fetchone()))
        big = engine.submit(partial(write, "x" * 100_000))
        small = engine.submit(partial(write, "small"))
        error = await self.refused(big)
        self.assertIn("no room", error.message)
        await soon(small)
        trouble = self.reports[-1].trouble
        self.assertIsNotNone(trouble)
        self.assertFalse(self.reports[-1].lost)
        self.assertEqual(await soon(engine.submit(texts)), ["kept", "small"])

    def test_a_disk_that_refuses_the_log_loses_nothing_that_was_answered(self) -> None:
        """A child process whose files may not grow past a limit: the COMMIT itself fails there."""
        printed = run_python("from tests.store.test_sqlite import run_fill; run_fill()", self.path.absolute())
        answered, refused, after = (line.split() for line in printed.splitlines())
        self.assertTrue(refused)
        self.assertEqual(set(refused), {"StoreUnavailable"})
        connection = open_database(self.path, SCHEMA)
        self.addCleanup(connection.close)
        self.assertEqual(texts(connection), answered + after)


class QueueTests(StoreCase):
    """The queue is bounded, and a caller that gives up is heard."""

    async def test_a_full_queue_refuses_at_once(self) -> None:
        engine = await self.started(None, queue_limit=3)
        queued = [engine.submit(partial(write, f"n{i}")) for i in range(3)]
        with self.assertRaises(RonError) as refused:
            engine.submit(texts)
        self.assertEqual(refused.exception.code, ErrorCode.BACKPRESSURE)
        await soon(gatherResults(queued))
        self.assertEqual(len(await soon(engine.submit(texts))), 3)

    async def test_the_queue_is_bounded_in_bytes_too(self) -> None:
        engine = await self.started(None, queue_limit_bytes=1000)
        queued = engine.submit(partial(write, "big"), weight=900)
        with self.assertRaises(RonError) as refused:
            engine.submit(partial(write, "more"), weight=101)
        self.assertEqual(refused.exception.code, ErrorCode.BACKPRESSURE)
        await soon(queued)
        await soon(engine.submit(partial(write, "more"), weight=1000))

    async def test_an_operation_cancelled_before_it_began_never_runs(self) -> None:
        engine = await self.started(None)
        told: list[Any] = []
        gone = engine.submit(partial(write, "gone"), then=lambda result, abandoned: told.append(result))
        gone.cancel()
        await self.assertFailure(gone, CancelledError)
        self.assertEqual(await soon(engine.submit(texts)), [])
        self.assertEqual(told, [])

    async def test_an_operation_cancelled_while_it_runs_is_kept_and_told_as_abandoned(self) -> None:
        engine = await self.started(None)
        begun, go_on = threading.Event(), threading.Event()
        told: Deferred[tuple[int, bool]] = Deferred()

        def slow(connection: sqlite3.Connection) -> int:
            begun.set()
            go_on.wait(DEADLINE_S)
            return write("kept", connection)

        gone = engine.submit(slow, then=lambda result, abandoned: told.callback((result, abandoned)))
        await deferToThread(begun.wait, DEADLINE_S)
        gone.cancel()
        await self.assertFailure(gone, CancelledError)
        go_on.set()
        self.assertEqual(await soon(told), (1, True))
        self.assertEqual(await soon(engine.submit(texts)), ["kept"])

    async def test_then_hears_before_the_caller_and_its_mistakes_harm_nobody(self) -> None:
        engine = await self.started(None)
        order: list[str] = []

        def then(_result: int, abandoned: bool) -> None:
            order.append(f"then {abandoned}")
            raise ZeroDivisionError

        one = engine.submit(partial(write, "one"), then=then).addCallback(lambda _: order.append("caller"))
        two = engine.submit(partial(write, "two"))
        await soon(gatherResults([one, two]))
        self.assertEqual(order, ["then False", "caller"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class LifeTests(StoreCase):
    """Opening, closing, and what is found on the way."""

    async def test_the_file_and_its_folder_are_private(self) -> None:
        engine = await self.started(self.path)
        await soon(engine.submit(partial(write, "secret")))
        for file in self.path.parent.iterdir():
            self.assertEqual(stat.S_IMODE(file.stat().st_mode), 0o600, file.name)
        self.assertEqual(stat.S_IMODE(self.path.parent.stat().st_mode), 0o700)

    async def test_operations_submitted_before_it_is_open_wait_for_it(self) -> None:
        engine = self.engine(self.path)
        opened = engine.start()
        self.assertEqual(await soon(engine.submit(partial(write, "early"))), 1)
        await soon(opened)

    async def test_stop_finishes_what_is_queued_and_leaves_one_file(self) -> None:
        engine = await self.started(self.path, batch_limit=4)
        queued = [engine.submit(partial(write, f"n{i}")) for i in range(10)]
        stopped = engine.stop()
        await soon(gatherResults(queued))
        await soon(stopped)
        self.assertEqual([file.name for file in self.path.parent.iterdir()], [self.path.name])
        with self.assertRaises(RonError) as refused:
            engine.submit(texts)
        self.assertEqual(refused.exception.code, ErrorCode.STORE_UNAVAILABLE)
        again = await self.started(self.path)
        self.assertEqual(len(await soon(again.submit(texts))), 10)

    async def test_stop_before_start_and_twice(self) -> None:
        engine = self.engine(self.path)
        await soon(engine.stop())
        await soon(engine.stop())
        with self.assertRaises(RonError):
            engine.submit(texts)

    async def test_memory_only_writes_no_file(self) -> None:
        engine = await self.started(None)
        await soon(engine.submit(partial(write, "gone at exit")))
        self.assertFalse(self.path.parent.exists())

    async def test_a_file_that_is_no_database_is_refused_with_a_hint(self) -> None:
        self.path.parent.mkdir(parents=True)
        self.path.write_bytes(b"not a database at all, but long enough to be taken for one" * 100)
        engine = self.engine(self.path)
        opened = engine.start()
        early = engine.submit(texts)
        error = await self.refused(opened)
        self.assertIn("damaged", error.message)
        self.assertIn("backup", error.hint or "")
        self.assertNotIn(str(self.path.parent), error.message + (error.hint or ""))
        await self.refused(early)
        with self.assertRaises(RonError):
            engine.submit(texts)

    async def test_a_damaged_page_is_found_on_opening(self) -> None:
        engine = await self.started(self.path)
        await soon(gatherResults([engine.submit(partial(write, f"{i:05}" * 100)) for i in range(200)]))
        await soon(engine.stop())
        with self.path.open("r+b") as file:
            file.seek(4096 * 5)
            file.write(b"\xa5" * 4096)
        await self.refused(self.engine(self.path).start())

    async def test_a_newer_schema_is_refused(self) -> None:
        engine = await self.started(self.path, [*SCHEMA, "CREATE TABLE later (id INTEGER)"])
        await soon(engine.stop())
        error = await self.refused(self.engine(self.path).start())
        self.assertIn("newer version", error.message)

    async def test_scripts_run_once_in_order_and_whole_or_not_at_all(self) -> None:
        await soon((await self.started(self.path)).stop())
        broken = [*SCHEMA, "ALTER TABLE note ADD COLUMN at INTEGER; ALTER TABLE missing ADD COLUMN at INTEGER"]
        await self.refused(self.engine(self.path, broken).start())
        mended = [*SCHEMA, "ALTER TABLE note ADD COLUMN at INTEGER"]
        engine = await self.started(self.path, mended)
        columns = engine.submit(lambda connection: [row[1] for row in connection.execute("PRAGMA table_info(note)")])
        self.assertEqual(await soon(columns), ["id", "text", "at"])

    async def test_a_second_opener_in_this_process_is_refused(self) -> None:
        await self.started(self.path)
        error = await self.refused(self.engine(self.path).start())
        self.assertIn("in use", error.message)

    async def test_another_process_is_refused_too(self) -> None:
        await self.started(self.path)
        program = (
            "import sys, pathlib, ron.store\n"
            "try: ron.store.open_database(pathlib.Path(sys.argv[1]), [])\n"
            "except Exception as error: print(error.message)"
        )
        printed = await deferToThread(run_python, program, self.path.absolute())
        self.assertIn("in use by another process", printed)

    async def test_a_folder_that_cannot_be_made_is_told(self) -> None:
        self.path.parent.parent.mkdir(parents=True)
        self.path.parent.write_text("a file where the folder should be")
        await self.refused(self.engine(self.path).start())

    async def test_the_connection_is_as_durable_as_promised(self) -> None:
        engine = await self.started(self.path)

        def pragmas(connection: sqlite3.Connection) -> list[Any]:
            names = ("journal_mode", "synchronous", "locking_mode")
            return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

        self.assertEqual(await soon(engine.submit(pragmas)), ["wal", 2, "exclusive"])
