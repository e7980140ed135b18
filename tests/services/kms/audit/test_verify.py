"""`ronctl audit verify`'s own work: a directory is whole, or the first bad record is named, and nothing is changed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
from twisted.trial.unittest import TestCase

from ron.crypto.merkle import CompactRange, leaf_hash
from ron.crypto.notes import BadNoteError, Head, KeySet, parse_head, parse_note, sign_note
from ron.services.kms.audit import TransparencyLog
from ron.services.kms.audit.continuity import build
from ron.services.kms.audit.leaves import encode
from ron.services.kms.audit.verify import Step, Verdict, is_log, read_keys, verify_directory
from ron.services.kms.ports import AuditEntry
from tests.services.kms.audit.support import ORIGIN, Held, Keys, entry, fill


class Case(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.held = Held(Path(self.mktemp()).absolute())
        self.directory = self.held.directory

    async def grown(self, *steps: int) -> None:
        log = await self.held.opened()
        for count in steps:
            await fill(log, count, first=log.size)
            await log.checkpoint()
        await log.close()

    def steps(self, keys: Sequence[KeySet] | None = None, earlier: Head | None = None) -> list[Step]:
        noted = [earlier] if earlier is not None else []
        return list(verify_directory(self.directory, keys or [self.held.keys.public], noted))

    def verdict(self, keys: Sequence[KeySet] | None = None, earlier: Head | None = None) -> Verdict:
        verdict = self.steps(keys, earlier)[-1].verdict
        assert verdict is not None
        return verdict

    def broken(self, why: str, record: int | None = None, **how: Head) -> None:
        broken = self.verdict(**how).broken  # type: ignore[arg-type]
        assert broken is not None
        self.assertIn(why, broken.why)
        self.assertEqual(broken.index, record)

    def change(self, name: str, place: int, old: bytes, new: bytes) -> None:
        path = self.directory / name
        lines = path.read_bytes().splitlines(keepends=True)
        self.assertIn(old, lines[place])
        lines[place] = lines[place].replace(old, new)
        path.write_bytes(b"".join(lines))


LEAVES = f"leaves/{0:020d}.jsonl"
CHECKPOINTS = "checkpoints.jsonl"


class Broken(Case):
    async def test_keys_that_are_none(self) -> None:
        for text in ("", "# nothing\n\n", "rubbish", self.held.keys.public[0].vkey()[:-3]):
            self.assertRaises(BadNoteError, read_keys, text)

    async def test_strangers_keys(self) -> None:
        await self.grown(3)
        verdict = self.verdict([Keys(9).public])
        self.assertEqual((verdict.checkpoints, verdict.others, verdict.signed), (0, 1, 0))
        self.assertIn("not by keys that are trusted", str(verdict.broken))
        half = self.verdict([(self.held.keys.public[0], Keys(9).public[1])])
        self.assertIn("not all keys of its signer", str(half.broken))

    async def test_a_changed_record(self) -> None:
        await self.grown(300, 40)
        self.change(LEAVES, 299, b'"ok"', b'"no"')
        self.broken("a record from 0 to 299 is not the one that was signed")
        self.change(LEAVES, 17, b'"ok"', b'"no"')
        self.broken("it is not the one that was signed (of records 0 to 299)", 17)
        self.change(LEAVES, 17, b'"no"', b'"ok"')
        self.change(LEAVES, 299, b'"no"', b'"ok"')
        self.change(LEAVES, 320, b'"ok"', b'"no"')
        self.broken("a record from 300 to 339 is not")
        self.assertEqual(self.verdict().signed, 300)

    async def test_a_record_that_is_none_or_out_of_its_place(self) -> None:
        await self.grown(9)
        self.change(LEAVES, 4, b'"kid_seq":5', b'"kid_seq":6')
        self.broken("its number among those of its key", 4)
        self.change(LEAVES, 2, b"}", b"} ")
        self.broken("it is no record", 2)

    async def test_records_or_checkpoints_that_are_missing(self) -> None:
        await self.grown(5, 5, 5)
        path = self.directory / CHECKPOINTS
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        for left, why in (
            (lines[:1] + lines[2:], "checkpoint 3 does not follow checkpoint 1"),
            (lines[1:], "checkpoint 2 does not follow checkpoint 0"),
            ([*lines, lines[2]], "checkpoint 3 does not follow checkpoint 3"),
            ([lines[0], b"{}\n"], "a line among the checkpoints"),
            ([], "no checkpoint by keys that are trusted covers it"),
        ):
            path.write_bytes(b"".join(left))
            self.broken(why)
        path.write_bytes(whole)
        leaves = self.directory / LEAVES
        leaves.write_bytes(b"".join(leaves.read_bytes().splitlines(keepends=True)[:-1]))
        self.broken("checkpoint 3 has 15 records, here are fewer")
        leaves.rename(leaves.with_name(f"{5:020d}.jsonl"))
        self.broken("is not the one that follows record 0")

    async def test_a_checkpoint_that_is_forged(self) -> None:
        await self.grown(5, 5)
        kept = [msgspec.json.decode(line) for line in (self.directory / CHECKPOINTS).read_bytes().splitlines()]
        of_another = Head("other", 5, bytes.fromhex(kept[0]["root"]))
        other = sign_note(Head(ORIGIN, 5, b"\0" * 32).text(), self.held.keys.signers).decode()
        for change, why in (
            ({"note": other}, "is signed for another head than it says"),
            ({"note": other, "root": "0" * 64}, "a record from 0 to 4 is not"),
            ({"note": kept[0]["note"].replace(ORIGIN, "other", 1)}, "a checkpoint is none"),
            ({"note": "no note"}, "a checkpoint is none"),
            ({"note": sign_note(b"a text\n", self.held.keys.signers).decode()}, "a checkpoint is none"),
            ({"note": sign_note(of_another.text(), self.held.keys.signers).decode()}, "of another log"),
        ):
            lines = [kept[0] | change, kept[1]]
            (self.directory / CHECKPOINTS).write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
            self.broken(why)

    async def test_another_history_than_was_noted(self) -> None:
        await self.grown(5, 5)
        first = msgspec.json.decode((self.directory / CHECKPOINTS).read_bytes().splitlines()[0])
        noted = parse_head(parse_note(first["note"].encode()).text)
        self.assertIsNone(self.verdict(earlier=noted).broken)
        # by the same keys, all of it: only who noted something sees it
        shutil.rmtree(self.held.home)
        log = await self.held.opened()
        await fill(log, 12, first=100)
        await log.close()
        self.assertIsNone(self.verdict().broken)
        self.broken("a record from 0 to 4 is not the one that was signed", earlier=noted)
        self.broken("the noted checkpoint has 20 records", earlier=noted._replace(size=20))


class Whole(Case):
    async def test_it_is_named_so_and_left_as_it_is(self) -> None:
        self.held.segment_bytes = 20_000
        await self.grown(100, 1, 200)
        newest = max((self.directory / "leaves").iterdir())
        for path in (newest, self.directory / CHECKPOINTS):
            with path.open("ab") as file:
                file.write(b'{"torn')
        before = {path: path.read_bytes() for path in self.directory.rglob("*") if path.is_file()}
        verdict = self.verdict()
        self.assertEqual((verdict.records, verdict.checkpoints, verdict.others), (301, 3, 0))
        self.assertEqual((verdict.signed, verdict.broken), (301, None))
        self.assertEqual({path: path.read_bytes() for path in before}, before)
        self.assertTrue(is_log(self.directory))
        self.assertFalse(is_log(self.directory.parent))

    async def test_nothing_yet(self) -> None:
        log = await self.held.opened()
        await log.close()
        (self.directory / "leaves").mkdir(exist_ok=True)
        self.assertEqual(self.verdict()[:5], (0, self.verdict().root, 0, 0, 0))
        self.assertIsNone(self.verdict().broken)

    async def test_while_it_grows(self) -> None:
        log = await self.held.opened()
        self.addCleanup(log.close)
        await fill(log, 10)
        await log.checkpoint()
        await fill(log, 3)
        verdict = self.verdict()
        self.assertEqual((verdict.records, verdict.signed, verdict.broken), (13, 10, None))

    async def test_steps_on_the_way(self) -> None:
        self.held = Held(self.held.home, queue_limit=9000)
        await self.grown(9000)
        self.assertEqual([(step.records, step.of) for step in self.steps()], [(4096, 9000), (8192, 9000), (9000, 9000)])

    async def test_new_keys_by_the_old_ones(self) -> None:
        old, new, third = self.held.keys, Keys(2), Keys(3)
        log = await self.held.opened()
        for before, after in ((old, new), (new, third)):
            await fill(log, 5, first=log.size)
            head = await log.checkpoint()
            note = build(Head(ORIGIN, head.size, head.root), before.signers, after.signers)
            await log.append(_rotation(note))
            log.use(after.public, after.sign)
            await fill(log, 2, first=log.size)
        await log.checkpoint()
        await log.close()
        self.assertEqual(self.verdict([old.public])[2:], (3, 0, log.size, None))
        # who has only the newest cannot judge the older ones, whose roots hold all the same
        self.assertEqual(self.verdict([third.public])[2:], (1, 2, log.size, None))
        # keys that were replaced sign nothing any more
        path = self.directory / CHECKPOINTS
        lines = path.read_bytes().splitlines(keepends=True)
        last = msgspec.json.decode(lines[-1])
        head = parse_head(parse_note(last["note"].encode()).text)
        last["note"] = sign_note(head.text(), old.signers).decode()
        path.write_bytes(b"".join([*lines[:-1], msgspec.json.encode(last) + b"\n"]))
        self.assertIn("not by keys that are trusted", str(self.verdict([old.public]).broken))

    async def test_keys_that_were_replaced_though_all_were_given(self) -> None:
        """As `log.vkeys` has them: the old ones count for what they signed, and for nothing after it."""
        old, new = self.held.keys, Keys(2)
        log = await self.held.opened()
        await fill(log, 5)
        await self._turned(log, old, new)
        await fill(log, 2, first=log.size)
        await log.close()
        every = [new.public, old.public]
        self.assertEqual(self.verdict(every)[2:], (2, 0, log.size, None))
        path = self.directory / CHECKPOINTS
        lines = path.read_bytes().splitlines(keepends=True)
        last = msgspec.json.decode(lines[-1])
        forged = last | {"number": last["number"] + 1, "size": log.size + 1}
        with (self.directory / LEAVES).open("ab") as leaves:
            leaves.write(encode(entry(99, kid="core/x/ed25519/00#v1", kid_seq=1)) + b"\n")
        tree = CompactRange()
        for leaf in (self.directory / LEAVES).read_bytes().splitlines():
            tree.append(leaf_hash(leaf))
        head = Head(ORIGIN, tree.size, tree.root())
        forged |= {"root": head.root.hex(), "note": sign_note(head.text(), old.signers).decode()}
        path.write_bytes(b"".join([*lines, msgspec.json.encode(forged) + b"\n"]))
        self.assertIn("not by keys that are trusted", str(self.verdict(every).broken))

    async def test_a_continuity_record_of_another_history(self) -> None:
        """The old keys have signed it, for a log that this one is not."""
        old, new = self.held.keys, Keys(2)
        log = await self.held.opened()
        await fill(log, 5)
        head = await log.checkpoint()
        for wrong, why in (
            (Head(ORIGIN, head.size, b"\1" * 32), "of another history"),
            (Head(ORIGIN, 3, b"\1" * 32), "of another history"),
            (Head(ORIGIN, 900, b"\1" * 32), "of a longer log"),
        ):
            await log.append(_rotation(build(wrong, old.signers, new.signers)))
            await log.checkpoint()
            broken = self.verdict().broken
            assert broken is not None
            self.assertIn(why, broken.why)
            self.assertEqual(broken.index, 5)
            await log.close()
            shutil.rmtree(self.held.home)
            log = await self.held.opened()
            await fill(log, 5)
            await log.checkpoint()
        await log.close()

    async def test_any_number_of_rotations(self) -> None:
        log, keys = await self.held.opened(), [self.held.keys, *(Keys(number) for number in range(2, 9))]
        await fill(log, 3)
        for before, after in pairwise(keys):
            await self._turned(log, before, after)
            await fill(log, 1, first=log.size)
            if len(keys) % 2:
                await log.checkpoint()
        await log.close()
        verdict = self.verdict()
        self.assertEqual((verdict.others, verdict.signed, verdict.broken), (0, log.size, None))

    async def _turned(self, log: TransparencyLog, before: Keys, after: Keys) -> None:
        head = await log.checkpoint()
        note = build(Head(ORIGIN, head.size, head.root), before.signers, after.signers)
        await log.append(_rotation(note))
        log.use(after.public, after.sign)

    async def test_files_of_keys(self) -> None:
        first, second = Keys(1).public, Keys(2).public
        text = f"# the first\n{first[0].vkey()}\n  {first[1].vkey()}\n\n\n# and another\n{second[0].vkey()}\n"
        self.assertEqual(read_keys(text), [first, second[:1]])


def _rotation(note: bytes) -> AuditEntry:
    return msgspec.structs.replace(entry(kid="", extra={"continuity": note.decode()}), op="rotate")
