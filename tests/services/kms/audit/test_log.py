"""A record's index is told when it is on disk; a checkpoint is of what is there; what was answered is never lost."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.trial.unittest import TestCase

from ron.crypto.merkle import EMPTY_ROOT, leaf_hash, verify_consistency, verify_inclusion
from ron.crypto.notes import Head, open_by
from ron.proto.errors import ErrorCode, RonError
from ron.services.kms.audit import MemoryShelf, TransparencyLog, checkpointer, files, queue
from ron.services.kms.audit import log as audit_log
from ron.services.kms.audit.leaves import decode
from ron.services.kms.ports import AuditLog
from tests.services.kms.audit.support import KID, ORIGIN, Held, Keys, entry, fill, soon


def as_a_port(log: TransparencyLog) -> AuditLog:
    """mypy compares."""
    return log


class Case(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.logs: list[TransparencyLog] = []

    async def tearDown(self) -> None:
        for log in self.logs:
            await log.close()

    async def opened(self, held: Held, shelf: Any = None, keys: Any = ()) -> TransparencyLog:
        log = held.log(shelf, keys)
        self.logs.append(log)
        await log.open()
        return log

    async def refused(self, outcome: Deferred[Any]) -> RonError:
        return await self.assertFailure(soon(outcome), RonError)


class Refused(Case):
    async def test_before_it_is_open_and_after_it_is_closed(self) -> None:
        log = Held(self.home).log()
        self.assertIs((await self.refused(log.append(entry()))).code, ErrorCode.STORE_UNAVAILABLE)
        self.assertFalse(log.writable)
        await log.open()
        self.assertTrue(log.writable)
        await log.close()
        self.assertIs((await self.refused(log.append(entry()))).code, ErrorCode.STORE_UNAVAILABLE)
        self.assertIs((await self.refused(log.checkpoint())).code, ErrorCode.STORE_UNAVAILABLE)
        self.assertFalse(log.writable)
        await log.close()

    async def test_two_at_once(self) -> None:
        held = Held(self.home)
        await self.opened(held)
        other = held.log()
        self.logs.append(other)
        error = await self.assertFailure(Deferred.fromCoroutine(other.open()), RonError)
        self.assertIs(error.code, ErrorCode.CONFLICT)

    async def test_a_place_that_is_none(self) -> None:
        held = Held(self.home)
        held.home.mkdir(parents=True)
        held.directory.write_text("a file where the directory should be")
        error = await self.assertFailure(Deferred.fromCoroutine(held.log().open()), RonError)
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)

    async def test_what_is_beyond_it(self) -> None:
        log = await self.opened(Held(self.home))
        await fill(log, 3)
        for call in (
            lambda: log.entries(-1, 1),
            lambda: log.entries(4, 1),
            lambda: log.entries(0, 0),
            lambda: log.entries(0, 1001),
            lambda: log.inclusion(3, 3),
            lambda: log.inclusion(-1, 3),
            lambda: log.inclusion(0, 4),
            lambda: log.consistency(2, 4),
            lambda: log.consistency(2, 1),
            lambda: log.consistency(-1, 1),
        ):
            self.assertIs(self.assertRaises(RonError, call).code, ErrorCode.BAD_REQUEST)
        self.assertEqual(log.entries(3, 1), [])

    async def test_one_bad_record_spoils_no_other_and_leaves_no_gap(self) -> None:
        held = Held(self.home)
        log = await self.opened(held)
        good, bad, more = log.append(entry(1)), log.append(entry(extra={"x": 1.5})), log.append(entry(2))
        self.assertIs((await self.refused(bad)).code, ErrorCode.BAD_REQUEST)
        self.assertEqual([await good, await more], [0, 1])
        self.assertEqual([decode(leaf).kid_seq for leaf in log.entries(0, 9)], [1, 2])
        self.assertIs((await self.refused(log.append(entry(extra={"x": "y" * 40_000})))).code, ErrorCode.TOO_LARGE)

    async def test_a_full_queue(self) -> None:
        held = Held(self.home, queue_limit=3)
        log = await self.opened(held)
        waiting = [log.append(entry(number)) for number in range(3)]
        error = await self.refused(log.append(entry(3)))
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
        self.assertEqual(await gatherResults(waiting), [0, 1, 2])
        self.assertEqual(held.value("kms_audit_appends_total", result="err"), 1)
        self.assertEqual(held.value("kms_audit_appends_total", result="ok"), 3)

    async def test_a_slow_disk(self) -> None:
        """The caller is told in time. What was begun may be there later, and the log goes on."""
        held = Held(self.home, deadline_s=0.05)
        shelf = SlowShelf()
        log = await self.opened(held, shelf)
        shelf.hold()
        first = log.append(entry(1))
        self.assertIs((await self.refused(first)).code, ErrorCode.STORE_UNAVAILABLE)
        second = log.append(entry(2))
        self.assertIs((await self.refused(second)).code, ErrorCode.STORE_UNAVAILABLE)
        self.assertEqual(log.size, 0)
        shelf.let_go()
        self.assertEqual(await soon(log.append(entry(3))), 1)
        self.assertEqual([decode(leaf).input_b3[-1] for leaf in log.entries(0, 9)], ["1", "3"])
        self.assertEqual(held.value("io_timeouts_total", op="audit_append"), 2)


class SlowShelf(MemoryShelf):
    """Amnesia on a disk that can be held."""

    def __init__(self) -> None:
        super().__init__()
        import threading

        self._free = threading.Event()
        self._free.set()

    def hold(self) -> None:
        self._free.clear()

    def let_go(self) -> None:
        self._free.set()

    def append(self, leaves: Any) -> None:
        self._free.wait(10)
        super().append(leaves)


class Records(Case):
    async def test_all_that_wait_share_a_write_and_keep_their_order(self) -> None:
        held = Held(self.home)
        log = await self.opened(held)
        batches: list[tuple[int, int]] = []
        log.watch(lambda _first, _leaves: 1 / 0)
        log.watch(lambda first, leaves: batches.append((first, len(leaves))))
        self.assertEqual(await fill(log, 700), list(range(700)))
        await deferLater(reactor, 0)
        self.assertEqual(batches, [(0, 512), (512, 188)])
        self.assertEqual([int(decode(leaf).input_b3, 16) for leaf in log.entries(0, 700)], list(range(700)))
        self.assertEqual((log.size, held.value("kms_audit_queue_depth"), log.writable), (700, 0, True))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    async def test_i_2_numbers_of_a_key_go_on_over_versions_and_restarts(self) -> None:
        held = Held(self.home)
        log = await self.opened(held)
        await fill(log, 2)
        await log.append(entry(kid=KID.replace("#v3", "#v4")))
        await log.append(entry(kid="core/other/ed25519/0b2e0000-1111-4222-8333-444455556666#v1"))
        await log.append(entry(kid=""))
        await log.close()
        log = await self.opened(held)
        await log.append(entry())
        self.assertEqual([decode(leaf).kid_seq for leaf in log.entries(0, 9)], [1, 2, 3, 1, 0, 4])

    async def test_informative_records_give_way(self) -> None:
        held = Held(self.home, queue_limit=3)
        log = await self.opened(held)
        for number in range(3):
            log.inform(entry(number))
        self.assertEqual(await log.append(entry(7)), 2)
        self.assertEqual([decode(leaf).input_b3[-1] for leaf in log.entries(0, 9)], ["1", "2", "7"])
        self.assertEqual(held.value("kms_audit_dropped_total", kind="non_checkpoint"), 1)
        await log.close()
        log.inform(entry(9))
        self.assertEqual(held.value("kms_audit_dropped_total", kind="non_checkpoint"), 2)

    async def test_a_page_ends_before_it_is_too_large(self) -> None:
        log = await self.opened(Held(self.home))
        await fill(log, 100, make=lambda number: entry(number, extra={"x": "y" * 30_000}))
        page = log.entries(0, 100)
        self.assertLess(sum(map(len, page)), 2 * 1024 * 1024 + 32 * 1024)
        self.assertEqual(log.entries(len(page), 1)[0], log.entries(len(page) - 1, 2)[1])

    async def test_closing_writes_what_waits(self) -> None:
        held = Held(self.home)
        log = await self.opened(held)
        waiting = [log.append(entry(number)) for number in range(5)]
        await log.close()
        self.assertEqual(await gatherResults(waiting), list(range(5)))
        log = await self.opened(held)
        self.assertEqual((log.size, log.latest().size if log.latest() else 0), (5, 5))

    async def test_proofs_over_full_tiles_and_files(self) -> None:
        held = Held(self.home)
        held.segment_bytes = 20_000
        log = await self.opened(held)
        await fill(log, 600)
        early = await log.checkpoint()
        await fill(log, 211, first=600)
        late = await log.checkpoint()
        await log.close()
        for one in (log, await self.opened(held)):
            for index in (0, 255, 256, 600, 810):
                leaf = leaf_hash(one.entries(index, 1)[0])
                self.assertTrue(verify_inclusion(index, 811, leaf, one.inclusion(index, 811), late.root))
            proof = one.consistency(600, 811)
            self.assertTrue(verify_consistency(600, 811, early.root, late.root, proof))
        self.assertEqual(len(list((held.directory / "tile").rglob("[0-9]*/[0-9]*"))), 3)


class Checkpoints(Case):
    async def test_signer_that_is_another_or_signs_something_else_or_nothing(self) -> None:
        async def elsewhere(_text: bytes) -> bytes:
            return await held.keys.sign(b"other\n0\n" + b"A" * 43 + b"=\n")

        async def broken(_text: bytes) -> bytes:
            raise RuntimeError("no token in the slot")

        async def half(text: bytes) -> bytes:
            from ron.crypto.notes import sign_note

            return sign_note(text, held.keys.signers[:1])

        async def never(_text: bytes) -> bytes:
            await Deferred()
            return b""

        held = Held(self.home, checkpoint_deadline_s=0.2)
        for number, sign in enumerate((Keys(9).sign, elsewhere, broken, half, never)):
            log = held.log()
            self.logs.append(log)
            log.use(held.keys.public, sign)
            await log.open()
            await log.append(entry(number))
            self.assertIs((await self.refused(log.checkpoint())).code, ErrorCode.STORE_UNAVAILABLE)
            self.assertTrue(log.checkpoint_failing)
            self.assertIsNone(log.latest())
            # I-2 holds all the same: the record is there
            self.assertEqual((log.size, log.writable), (number + 1, True))
            self.assertGreater(held.value("kms_audit_integrity_failed_total"), 0)
            self.assertGreater(held.value("kms_audit_checkpoint_total", result="err"), 0)
            await log.close()
            self.flushLoggedErrors(RuntimeError)
        log = await self.opened(held)
        self.assertEqual(((await log.checkpoint()).size, log.checkpoint_failing), (5, False))

    async def test_it_is_tried_again(self) -> None:
        held = Held(self.home, checkpoint_s=0.02)
        well = False

        async def sign(text: bytes) -> bytes:
            if not well:
                raise RuntimeError("the token was pulled out")
            return await held.keys.sign(text)

        log = held.log()
        self.logs.append(log)
        log.use(held.keys.public, sign)
        await log.open()
        await fill(log, 1)
        await self.until(lambda: log.checkpoint_failing)
        well = True
        await self.until(lambda: log.latest() is not None and not log.checkpoint_failing)
        self.flushLoggedErrors(RuntimeError)

    async def test_by_both_halves_over_what_is_there(self) -> None:
        held = Held(self.home)
        log = await self.opened(held)
        self.assertEqual((await log.checkpoint()).root, EMPTY_ROOT)
        await fill(log, 3)
        one = await log.checkpoint()
        text, _keys = open_by(one.note, [held.keys.public])
        self.assertEqual(text, Head(ORIGIN, 3, one.root).text())
        self.assertEqual(log.latest(), one)
        # nothing came since
        self.assertEqual(await log.checkpoint(), one)
        both = [log.checkpoint(), log.checkpoint()]
        await log.append(entry(3))
        self.assertEqual([each.size for each in await gatherResults(both)], [3, 3])
        self.assertEqual(held.value("kms_audit_checkpoint_total", result="ok"), 2)

    async def test_after_so_many_records_or_seconds(self) -> None:
        log = await self.opened(Held(self.home / "ops", checkpoint_ops=10))
        self.assertEqual(log.checkpoint_age_s, 0.0)
        await fill(log, 9)
        await deferLater(reactor, 0.01)
        self.assertIsNone(log.latest())
        self.assertGreater(log.checkpoint_age_s, 0.0)
        await fill(log, 1)
        await self.until(lambda: log.latest() is not None)
        self.assertEqual((log.latest() or EMPTY)[0], 10)
        self.assertEqual(log.checkpoint_age_s, 0.0)
        timed = await self.opened(Held(self.home / "time", checkpoint_s=0.05))
        await fill(timed, 1)
        await self.until(lambda: timed.latest() is not None)

    async def test_asked_for_by_many_while_records_come(self) -> None:
        log = await self.opened(Held(self.home))
        asked: list[Deferred[Any]] = []
        for number in range(5):
            asked += [log.append(entry(number)), log.checkpoint(), log.checkpoint()]
            await deferLater(reactor, 0)
        await soon(gatherResults(asked))
        self.assertEqual((await log.checkpoint()).size, 5)

    async def until(self, true: Any) -> None:
        while not true():
            await deferLater(reactor, 0.01)


EMPTY = (0, b"", b"")


class Amnesia(Case):
    async def test_all_but_the_disk(self) -> None:
        held = Held(self.home)
        log = await self.opened(held, MemoryShelf())
        await fill(log, 300)
        one = await log.checkpoint()
        leaf = leaf_hash(log.entries(7, 1)[0])
        self.assertTrue(verify_inclusion(7, 300, leaf, log.inclusion(7, 300), one.root))
        await log.close()
        self.assertFalse(self.home.exists())
        again = await self.opened(held, MemoryShelf())
        self.assertEqual((again.size, again.writable), (0, True))

    async def test_it_is_bounded(self) -> None:
        log = await self.opened(Held(self.home), MemoryShelf(limit_bytes=30_000))
        for number in range(10):
            await fill(log, 50, first=number * 50)
        one = await log.checkpoint()
        self.assertIs(self.assertRaises(RonError, log.entries, 0, 1).code, ErrorCode.NOT_FOUND)
        (last,) = log.entries(499, 1)
        self.assertTrue(verify_inclusion(499, 500, leaf_hash(last), log.inclusion(499, 500), one.root))
        self.assertEqual(len(log.entries(480, 20)), 20)


class FullDisk(Case):
    """RLIMIT_FSIZE is the nearest thing to a full disk that needs no mount."""

    async def test_nothing_acknowledged_is_lost_and_it_recovers(self) -> None:
        # the limit is the whole process's: trial's own log would run into it, too
        for module in (audit_log, checkpointer, files, queue):
            self.patch(module, "_log", Logger(observer=lambda _event: None))
        held = Held(self.home, retry_s=0.02)
        log = await self.opened(held)
        await fill(log, 50)
        await log.checkpoint()
        leaves = held.directory / "leaves" / f"{0:020d}.jsonl"
        before = leaves.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
        try:
            waiting = [log.append(entry(number)) for number in range(20)]
            for one in waiting:
                self.assertIs((await self.refused(one)).code, ErrorCode.STORE_UNAVAILABLE)
            self.assertFalse(log.writable)
            self.assertEqual(log.size, 50)
            self.assertIs((await self.refused(log.append(entry()))).code, ErrorCode.STORE_UNAVAILABLE)
            # what is there is served
            self.assertEqual(len(log.entries(0, 100)), 50)
            await deferLater(reactor, 0.1)
            self.assertFalse(log.writable)
            self.assertEqual(leaves.read_bytes(), before)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        while not log.writable:
            await deferLater(reactor, 0.01)
        self.assertEqual(await fill(log, 3), [50, 51, 52])
        self.assertEqual([decode(leaf).kid_seq for leaf in log.entries(48, 9)], [49, 50, 51, 52, 53])
        await log.close()
        log = await self.opened(held)
        self.assertEqual((log.size, log.trouble), (53, None))
