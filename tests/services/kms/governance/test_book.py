"""What was said stays said: restarts, torn and changed files, a full disk, an audit log that is away."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import RonError, unavailable
from ron.proto.governance import Proposal
from ron.services.kms.governance.book import Book, Record
from ron.services.kms.governance.canonical import canonical, decode_canonical
from ron.services.kms.governance.ledger import Ledger, apply
from tests.services.kms.governance.people import (
    CUSTODIAN,
    DAY,
    HOUR,
    KID,
    OFFICER,
    OWNER,
    START,
    World,
    the_three,
)

AND = {"pq_mode": "and"}
DESTROY = {"kid": KID}


class CaseOf(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()) / "governance"
        self.world = World(self.folder)
        self.addCleanup(lambda: self.world.governance.stop())

    @property
    def file(self) -> Path:
        return self.folder / "book.jsonl"

    def refused(self, code: str, call: Any, *args: Any) -> RonError:
        error = self.assertRaises(RonError, call, *args)
        self.assertEqual(error.code.value, code, error.message)
        return error

    def require(self, proposal: str) -> None:
        self.world.governance.require("destroy_key", "tenant:acme", DESTROY, proposal)


class Tampered(CaseOf):
    """A file that was changed is not read, and nothing is made of it."""

    def setUp(self) -> None:
        super().setUp()
        self.world.decide("pq_mode", AND)
        self.world.governance.stop()

    def changed(self, lines: list[bytes]) -> None:
        self.file.write_bytes(b"".join(line + b"\n" for line in lines))
        world = World.__new__(World)
        error = self.assertRaises(RonError, world.__init__, self.folder)
        self.assertIn("of the book of governance", error.message)

    @property
    def lines(self) -> list[bytes]:
        return self.file.read_bytes().split(b"\n")[:-1]

    def test_any_line_changed_dropped_or_moved(self) -> None:
        lines = self.lines
        self.assertEqual(len(lines), 5)
        for n in range(len(lines) - 1):
            self.changed([*lines[:n], lines[n].replace(b'"at":18', b'"at":17', 1), *lines[n + 1 :]])
            self.changed([*lines[:n], *lines[n + 1 :]])
            self.changed([*lines[:n], lines[n] + b" ", *lines[n + 1 :]])
        self.changed([lines[0], lines[2], lines[1], *lines[3:]])
        self.changed([*lines, lines[-1]])
        self.changed([*lines, b""])
        self.changed([b"{}"])

    def test_lines_that_fit_and_may_not_be(self) -> None:
        """Chained as they should be, by somebody who has the file and no signer's key."""
        lines = self.lines
        records = [decode_canonical(line, Record) for line in lines]
        assert records[1].signed is not None
        proposal = decode_canonical(records[1].signed.object.encode(), Proposal).id
        forged: list[dict[str, Any]] = [
            {"kind": "event", "event": "execute", "proposal": "x"},
            {"kind": "event", "event": "carry", "proposal": "x"},
            {"kind": "event", "event": "thaw", "proposal": "x"},
            {"kind": "event", "event": ""},
            {"kind": "event", "event": "expire", "proposal": proposal},
            {"kind": "event", "event": "execute", "proposal": proposal},
            {"kind": "event", "event": "use", "proposal": proposal},
            {"kind": "event", "event": "return", "proposal": proposal},
            {"kind": "event", "event": "lapse", "proposal": proposal},
            {"kind": "genesis", "genesis": records[0].genesis},
            {"kind": "propose"},
            {"kind": "state"},
        ]
        for fields in forged:
            book = Book(None)
            for record in records:
                book.append(record)
            made = book.next(START + 100, **fields)
            self.changed([*lines, canonical(made)])

    def test_executed_without_votes(self) -> None:
        lines = self.lines
        records = [decode_canonical(line, Record) for line in lines]
        book = Book(None)
        for record in records[:2]:
            book.append(record)
        assert records[1].signed is not None
        proposal = decode_canonical(records[1].signed.object.encode(), Proposal).id
        made = book.next(START + 100, kind="event", event="execute", proposal=proposal)
        self.changed([*lines[:2], canonical(made)])

    def test_a_line_without_an_end_was_never_told(self) -> None:
        whole = self.file.read_bytes()
        for torn in (b"{", self.lines[-1], b"\x00" * 100):
            self.file.write_bytes(whole + torn)
            world = World(self.folder)
            self.assertEqual(world.governance.pq_mode("acme"), "and")
            world.governance.stop()
            self.assertEqual(self.file.read_bytes(), whole)

    def test_the_end_taken_away(self) -> None:
        """It looks whole. The audit log knows better."""
        events = self.world.events
        self.file.write_bytes(b"".join(line + b"\n" for line in self.lines[:-1]))
        self.world.start()
        newest = next(event.extra for event in events if event.extra["book_records"] == 5)
        for event in events:
            records, head = int(event.extra["book_records"]), str(event.extra["book_head"])
            if records <= 4:
                self.world.governance.book.expect(records, head)
        self.refused("Conflict", self.world.governance.book.expect, 4, "00" * 32)
        self.world.governance.book.expect(0, "0" * 64)
        self.refused("Conflict", self.world.governance.compare, newest)
        # and it stays so: nothing is decided, and nothing told that the next start would believe
        told = len(self.world.events)
        self.refused("StoreUnavailable", self.world.propose, "pq_mode", AND)
        self.assertEqual(len(self.world.events), told)

    def test_another_book(self) -> None:
        """The file is gone, and with it what was decided: a fresh one is none that the audit log knows."""
        newest = self.world.events[-1].extra
        self.file.unlink()
        self.world.start()
        self.refused("Conflict", self.world.governance.compare, newest)
        self.world.governance.stop()
        # archived as docs/kms/audit.rst has it, but what it had decided would be forgotten
        name = str(newest["book"])
        archived = self.file.with_name(f"{name}.jsonl")
        archived.write_bytes(b"".join(line + b"\n" for line in self.lines))
        self.world.start()
        self.refused("Conflict", self.world.governance.compare, newest)
        self.world.governance.stop()

    def test_names_of_books_are_no_paths(self) -> None:
        for name in ("", "../../etc/passwd", "book", "0" * 31, "G" * 32):
            self.refused("Conflict", self.world.governance.book.archived, name)


class Kept(CaseOf):
    def test_private_and_one_process_only(self) -> None:
        self.assertEqual(stat.S_IMODE(self.folder.stat().st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(self.file.stat().st_mode), 0o600)
        self.refused("Conflict", World, self.folder)

    def test_all_of_it_after_a_restart(self) -> None:
        self.world.decide("pq_mode", AND)
        pending = self.world.approve(self.world.propose("destroy_key", DESTROY), OFFICER)
        used = self.world.decide("destroy_key", DESTROY)
        self.require(used.proposal.id)
        frozen = self.world.decide("freeze", {"freeze": "on"}, "global")
        self.world.dispute("dispute", "cap:1")
        before = self.world.governance.ledger
        self.world.restart()
        after = self.world.governance
        for name in ("cases", "signers", "freezes", "pq_modes", "disputes", "book"):
            self.assertEqual(getattr(after.ledger, name), getattr(before, name), name)
        self.assertEqual(after.frozen("any"), frozen.proposal.id)
        self.refused("NoCapability", self.require, used.proposal.id)
        self.assertEqual(self.world.approve(pending, CUSTODIAN).state, "approved")

    def test_a_book_after_one_that_is_full(self) -> None:
        """As docs/kms/audit.rst has it: its archived copy, the same people, nothing left that would be forgotten."""
        self.world.decide("destroy_key", DESTROY)
        newest = self.world.events[-1].extra
        self.world.governance.stop()
        archived = self.file.with_name(f"{newest['book']}.jsonl")
        self.file.rename(archived)
        self.world.start()
        self.world.governance.compare(newest)
        self.assertNotEqual(self.world.governance.ledger.book, newest["book"])
        self.world.decide("pq_mode", AND)
        whole = archived.read_bytes()
        for changed, code in (
            (b"".join(whole.splitlines(keepends=True)[:-1]), "Conflict"),
            (whole.replace(b'"at":18', b'"at":17', 1), "StoreUnavailable"),
        ):
            archived.write_bytes(changed)
            self.refused(code, self.world.governance.compare, newest)
        archived.write_bytes(whole)
        self.world.governance.stop()
        self.file.unlink()
        self.world.signers = msgspec.structs.replace(the_three(START), threshold=3)
        self.world.start()
        error = self.refused("Conflict", self.world.governance.compare, newest)
        self.assertIn("begins with others", error.message)

    def test_replayed_by_somebody_else(self) -> None:
        """An auditor with a copy of the file comes to the same."""
        self.world.decide("pq_mode", AND)
        ledger = Ledger()
        for line in self.file.read_bytes().splitlines():
            apply(ledger, decode_canonical(line, Record))
        self.assertEqual(ledger.pq_modes, {"tenant:acme": "and"})

    def test_a_permission_used_the_moment_before(self) -> None:
        case = self.world.decide("destroy_key", DESTROY)
        self.world.trouble = unavailable("the audit log is away")
        self.require(case.proposal.id)
        self.world.restart()
        self.refused("NoCapability", self.require, case.proposal.id)
        self.world.trouble = None
        self.world.do(self.world.governance.settle())
        self.assertEqual(self.world.events[-1].op, "governance.use")

    def test_a_freeze_goes_on_and_ends(self) -> None:
        self.world.decide("freeze", {"freeze": "on"})
        self.world.clock.advance(HOUR / 2)
        self.world.restart()
        self.world.clock.advance(HOUR / 2 - 1)
        self.assertIsNotNone(self.world.governance.frozen("acme"))
        self.world.clock.advance(2)
        self.assertIsNone(self.world.governance.frozen("acme"))

    def test_time_spent_switched_off_counts(self) -> None:
        self.world.decide("freeze", {"freeze": "on"})
        case = self.world.decide("destroy_key", DESTROY)
        self.world.governance.stop()
        self.world.clock.advance(DAY)
        self.world.start()
        self.assertIsNone(self.world.governance.frozen("acme"))
        self.refused("NoCapability", self.require, case.proposal.id)

    def test_started_with_a_clock_that_is_behind(self) -> None:
        """The book knows that it is later: nothing that has run out comes back, and a lock is not longer either."""
        case = self.world.decide("destroy_key", DESTROY)
        self.world.clock.advance(DAY)
        self.world.do(self.world.governance.overdue())
        self.world.propose("pq_mode", AND)
        self.world.governance.stop()
        self.world.wrong_s = -10 * DAY
        self.world.start()
        self.refused("StoreUnavailable", self.require, case.proposal.id)
        self.world.wrong_s = 0
        self.refused("NoCapability", self.require, case.proposal.id)

    def test_the_first_signers_stay_whatever_the_config_says(self) -> None:
        self.world.began = START + 999
        self.world.restart()
        self.assertEqual(self.world.governance.ledger.deciders(), the_three(START))

    def test_in_memory_nothing_is_left(self) -> None:
        world = World(None)
        world.decide("pq_mode", AND)
        world.restart()
        self.assertIsNone(world.governance.pq_mode("acme"))
        world.governance.stop()


class Away(CaseOf):
    """The audit log does not answer: nothing takes effect that it does not know."""

    def test_a_decision_waits_for_it(self) -> None:
        other = self.world.decide("destroy_key", DESTROY)
        case = self.world.approve(self.world.propose("pq_mode", AND), OWNER, OFFICER)
        governance = self.world.governance
        self.world.trouble = unavailable("the audit log is away")
        for _ in range(2):
            self.refused("StoreUnavailable", self.world.do, governance.execute(case.proposal.id))
            self.assertIsNone(governance.pq_mode("acme"))
        self.refused("StoreUnavailable", self.world.propose, "pq_mode", AND)
        self.refused("StoreUnavailable", self.require, other.proposal.id)
        self.world.trouble = None
        self.assertEqual(self.world.do(governance.execute(case.proposal.id)).state, "executed")
        self.assertEqual(governance.pq_mode("acme"), "and")
        self.assertEqual([one.op for one in self.world.events].count("governance.execute"), 2)
        self.require(other.proposal.id)

    def test_across_a_restart_too(self) -> None:
        case = self.world.approve(self.world.propose("pq_mode", AND), OWNER, OFFICER)
        self.world.trouble = unavailable("the audit log is away")
        self.refused("StoreUnavailable", self.world.do, self.world.governance.execute(case.proposal.id))
        self.world.restart()
        self.assertIsNone(self.world.governance.pq_mode("acme"))
        self.world.trouble = None
        self.world.do(self.world.governance.settle())
        self.assertEqual(self.world.governance.pq_mode("acme"), "and")

    def test_what_time_does_is_tried_again(self) -> None:
        case = self.world.propose("pq_mode", AND)
        self.world.trouble = unavailable("the audit log is away")
        self.world.pass_(DAY)
        self.assertEqual(self.world.governance.ledger.case(case.proposal.id).state, "pending")
        self.refused("StoreUnavailable", self.world.approve, case, OWNER)
        self.world.trouble = None
        self.world.clock.advance(15)
        self.assertEqual(self.world.governance.ledger.case(case.proposal.id).state, "expired")

    def test_every_event_says_which_record(self) -> None:
        self.world.decide("pq_mode", AND)
        records = self.world.governance.book.records
        self.assertEqual(len(self.world.events), len(records))
        for record, event in zip(records, self.world.events, strict=True):
            self.assertEqual(event.extra["book_records"], record.seq + 1)
            self.assertEqual(event.extra["book_head"], self.world.governance.book.hash_of(record.seq))
        last = self.world.events[-1]
        self.assertEqual((last.op, last.tenant, last.actor), ("governance.execute", "acme", "cap-2"))
        self.assertEqual((last.extra["state"], last.extra["action"]), ("executed", "pq_mode"))


_WRITER = """
import sys
from pathlib import Path
from ron.services.kms.governance.book import Book
book = Book(Path(sys.argv[1]))
book.open()
for number in range(len(book), 100_000):
    book.append(book.next(1_800_000_000, kind="event", event="thaw", actor="x" * 150))
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


class Killed(SynchronousTestCase):
    def test_what_was_reported_is_there(self) -> None:
        """`kill -9` in the middle of writing, again and again: it opens, and holds what it said it holds."""
        folder = Path(self.mktemp()).absolute()
        told = -1
        for round_ in range(5):
            writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(folder)], stdout=subprocess.PIPE)
            assert writer.stdout is not None
            for _ in range(3 + 7 * round_):
                writer.stdout.readline()
            writer.kill()
            lines = writer.stdout.read().split(b"\n")
            writer.stdout.close()
            writer.wait()
            told = max([told, *(int(line) for line in lines[:-1])])
            book = Book(folder)
            book.open()
            self.assertGreater(len(book), told)
            book.close()


class Disk(SynchronousTestCase):
    def setUp(self) -> None:
        self.full = False
        self.folder = Path(self.mktemp()) / "governance"
        self.book = Book(self.folder, max_records=20, sync=self.sync)
        self.book.open()
        self.addCleanup(self.book.close)

    def sync(self, handle: int) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        os.fdatasync(handle)

    def put(self) -> None:
        self.book.append(self.book.next(START, kind="event", event="thaw"))

    def test_what_was_not_written_is_not_there(self) -> None:
        self.put()
        self.full = True
        for _ in range(2):
            self.assertRaises(RonError, self.put)
        self.full = False
        self.put()
        self.assertEqual(len(self.book), 2)
        again = Book(self.folder, sync=self.sync)
        self.book.close()
        again.open()
        self.assertEqual((len(again), again.head), (2, self.book.head))
        again.close()

    def test_a_closed_one(self) -> None:
        self.book.close()
        self.assertRaises(RonError, self.put)

    def test_it_ends_somewhere(self) -> None:
        for _ in range(18):
            self.assertTrue(self.book.room(vital=False))
            self.put()
        self.assertFalse(self.book.room(vital=False))
        self.put()
        self.put()
        self.assertRaises(RonError, self.put)

    def test_two_records_for_one_place(self) -> None:
        one, other = (self.book.next(START, kind="event", event="thaw", proposal=str(n)) for n in range(2))
        self.book.append(one)
        self.assertRaises(RonError, self.book.append, other)

    def test_a_nearly_full_book_takes_votes_and_no_proposals(self) -> None:
        world = World(None)
        world.governance.stop()
        world.governance.book._max = 10
        case = world.propose("pq_mode", AND)
        for _ in range(7):
            world.propose("pq_mode", AND)
        error = self.assertRaises(RonError, world.propose, "pq_mode", AND)
        self.assertEqual(error.code.value, "StoreUnavailable")
        world.approve(case, OFFICER)
