"""I-6, G-7, G-13: a log that is not what it was takes nothing more, says why, and shows what can be read.

Everything here is done to the files of a closed log, as somebody would who can write them and has no key.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as some
from nacl.signing import SigningKey
from twisted.trial.unittest import TestCase

from ron.crypto.merkle import leaf_hash, verify_inclusion
from ron.crypto.notes import Head, Kind, cosignature, cosigned_at, note_key, parse_note, sign_note
from ron.proto.errors import ErrorCode, RonError
from ron.services.kms.audit import TransparencyLog
from ron.services.kms.audit.checkpoints import Anchor
from ron.services.kms.audit.recovery import Recovered, recover
from ron.services.kms.audit.shelf import DiskShelf
from ron.services.kms.audit.verify import read_keys
from ron.services.kms.ports import Checkpoint
from tests.services.kms.audit.support import ORIGIN, Held, Keys, entry, fill


class Case(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.held = Held(self.home)
        self.logs: list[TransparencyLog] = []

    async def tearDown(self) -> None:
        for log in self.logs:
            await log.close()

    async def grown(self, *steps: int) -> None:
        """So many records, a checkpoint, so many more, …; one at the end always."""
        log = await self.held.opened()
        for count in steps:
            await fill(log, count, first=log.size)
            await log.checkpoint()
        await log.close()

    async def opened(self, held: Held | None = None) -> TransparencyLog:
        log = (held or self.held).log()
        self.logs.append(log)
        await log.open()
        return log

    async def broken(self, why: str, held: Held | None = None) -> TransparencyLog:
        """It refuses writes and says `why`; the integrity alarm is on."""
        log = await self.opened(held)
        self.assertFalse(log.writable)
        self.assertIn(why, log.trouble or "")
        error = await self.assertFailure(log.append(entry()), RonError)
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
        await self.assertFailure(log.checkpoint(), RonError)
        self.assertEqual((held or self.held).value("kms_audit_integrity_failed_total"), 1)
        return log

    @property
    def leaves(self) -> Path:
        return self.held.directory / "leaves" / f"{0:020d}.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.held.directory / "checkpoints.jsonl"

    def lines(self, path: Path, change: Callable[[list[bytes]], object]) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        change(lines)
        path.write_bytes(b"".join(lines))


class Deleted(Case):
    async def test_i_6_g_13_last_records(self) -> None:
        await self.grown(20, 10)
        self.lines(self.leaves, lambda lines: lines.__delitem__(slice(-4, None)))
        log = await self.broken("4 records are missing after record 25")
        self.assertEqual((log.size, len(log.entries(0, 100))), (26, 26))

    async def test_last_records_and_the_checkpoint_that_had_them(self) -> None:
        await self.grown(20, 10)
        self.lines(self.leaves, lambda lines: lines.__delitem__(slice(20, None)))
        self.lines(self.checkpoints, lambda lines: lines.pop())
        await self.broken("the anchor knows 30 records, there are 20")

    async def test_everything(self) -> None:
        await self.grown(20)
        shutil.rmtree(self.held.directory)
        await self.broken("the anchor knows 20 records, there are 0")

    async def test_everything_and_the_anchor_too_which_somebody_else_sees(self) -> None:
        await self.grown(20, 10)
        before = await self.opened()
        head = before.latest()
        assert head is not None
        await before.close()
        self.lines(self.leaves, lambda lines: lines.__delitem__(slice(20, None)))
        self.lines(self.checkpoints, lambda lines: lines.pop())
        (kept,) = [msgspec.json.decode(line) for line in self.checkpoints.read_bytes().splitlines()]
        old = {"number": 1, "size": 20, "root": kept["root"]}
        self.held.anchor.write_bytes(msgspec.json.encode(old))
        log = await self.opened()
        self.assertTrue(log.writable)
        self.assertTrue(log.expect(20, bytes.fromhex(kept["root"])))
        self.assertFalse(log.expect(head.size, head.root))
        self.assertFalse(log.writable)
        self.assertIn("somebody else knows 30 records", log.trouble or "")

    async def test_checkpoints(self) -> None:
        await self.grown(5, 5, 5)
        for place, why in ((1, "checkpoint 3 does not follow checkpoint 1"), (2, "the anchor knows 3 checkpoints")):
            held = self.copy(f"checkpoint-{place}")
            self.lines(held.directory / "checkpoints.jsonl", lambda lines, place=place: lines.pop(place))
            await self.broken(why, held)
        held = self.copy("all")
        (held.directory / "checkpoints.jsonl").unlink()
        await self.broken("the anchor knows 3 checkpoints, there are 0", held)

    async def test_anchor(self) -> None:
        await self.grown(5)
        self.held.anchor.write_bytes(b"{}extra")
        await (await self.broken("is no anchor")).close()
        self.held.anchor.unlink()
        await self.broken("the anchor is gone")

    def copy(self, name: str) -> Held:
        shutil.copytree(self.home, self.home.with_name(self.home.name + name))
        return Held(self.home.with_name(self.home.name + name))


class Changed(Case):
    async def test_a_record_is_named_by_its_tile(self) -> None:
        await self.grown(300, 300)
        self.lines(self.leaves, lambda lines: lines.__setitem__(100, lines[100].replace(b'"ok"', b'"no"')))
        log = await self.broken("a record from 0 to 299 is not the one that was signed; record 100 is the first")
        # what is there is shown as it is, and it is not what was signed
        latest = log.latest()
        assert latest is not None
        leaf = leaf_hash(log.entries(100, 1)[0])
        self.assertFalse(verify_inclusion(100, 600, leaf, log.inclusion(100, 600), latest.root))
        # the evidence outlives the start
        await log.close()
        await self.broken("record 100 is the first")

    async def test_between_two_checkpoints(self) -> None:
        await self.grown(10, 10)
        self.lines(self.leaves, lambda lines: lines.__setitem__(14, lines[14].replace(b'"ok"', b'"no"')))
        await self.broken("a record from 10 to 19 is not the one that was signed")

    async def test_no_record_at_all(self) -> None:
        await self.grown(10)
        for line in (b"\xff\n", b"{}\n", b"\n"):
            self.lines(self.leaves, lambda lines, line=line: lines.__setitem__(3, line))
            log = await self.broken("record 3: it is no record")
            self.assertEqual(len(log.entries(0, 100)), 10)
            await log.close()

    async def test_one_that_no_checkpoint_covers_yet_is_seen_by_its_number(self) -> None:
        await self.grown(10)
        log = await self.opened()
        await fill(log, 5)
        await log._thread.run(log._shelf.close)
        self.lines(self.leaves, lambda lines: lines.pop(12))
        await self.broken("record 12: its number among those of its key")

    async def test_checkpoints_of_another_key_log_or_head(self) -> None:
        await self.grown(10)
        good = self.checkpoints.read_bytes()
        kept = msgspec.json.decode(good)
        for change, why in (
            ({"note": kept["note"].replace("AA", "BB", 1)}, "the newest checkpoint: "),
            ({"size": 9}, "is not the one that was signed"),
            ({"root": "0" * 64}, "is not the one that was signed"),
            ({"number": 2}, "checkpoint 2 does not follow checkpoint 0"),
            ({"more": 1}, "a line among the checkpoints that is none"),
        ):
            self.checkpoints.write_bytes(msgspec.json.encode(kept | change) + b"\n")
            await (await self.broken(why)).close()
        self.checkpoints.write_bytes(good)
        stranger = Held(self.home, keys=Keys(9))
        await self.broken("the newest checkpoint: none of the keys that are trusted signed it", stranger)

    async def test_anchor_of_another_history(self) -> None:
        await self.grown(10)
        anchor = msgspec.json.decode(self.held.anchor.read_bytes(), type=Anchor)
        self.held.anchor.write_bytes(msgspec.json.encode(msgspec.structs.replace(anchor, size=9)))
        await self.broken("the first 9 records are not those that the anchor knows")

    @given(some.data())
    @settings(deadline=None, max_examples=60)
    def test_g_7_no_change_of_what_was_signed_goes_unseen(self, draw: some.DataObject) -> None:
        """Any byte flipped, line lost, moved or doubled, at any place of leaves or checkpoints."""
        if not hasattr(self, "made"):
            self.made = self.signed_log()
        held = Held(Path(self.mktemp()).absolute())
        shutil.copytree(self.made, held.home)
        path = draw.draw(
            some.sampled_from([held.directory / "leaves" / f"{0:020d}.jsonl", held.directory / "checkpoints.jsonl"])
        )
        lines = path.read_bytes().splitlines(keepends=True)
        place = draw.draw(some.integers(0, len(lines) - 1))
        act = draw.draw(some.sampled_from(["lost", "doubled", "moved", "flipped", "cut"]))
        if act == "lost":
            del lines[place]
        elif act == "doubled":
            lines.insert(place, lines[place])
        elif act == "moved":
            lines.append(lines.pop(place))
            if place == len(lines) - 1:
                return
        elif act == "flipped":
            at = draw.draw(some.integers(0, len(lines[place]) - 1))
            line = bytearray(lines[place])
            line[at] ^= 1 << draw.draw(some.integers(0, 6))
            lines[place] = bytes(line)
        else:
            lines = [*lines[:place], lines[place][: len(lines[place]) // 2]]
        path.write_bytes(b"".join(lines))
        recovered = self.recovered(held)
        # the notes of earlier checkpoints are only looked at by `ronctl audit verify`
        if act == "flipped" and path.name == "checkpoints.jsonl" and place < len(lines) - 1:
            return
        self.assertIsNotNone(recovered.trouble, (act, path.name, place))

    def signed_log(self) -> Path:
        """Made without the reactor: hypothesis does not wait."""
        from ron.crypto.notes import Head, sign_note
        from ron.services.kms.audit.checkpoints import anchor_of, kept
        from ron.services.kms.audit.leaves import encode, numbered
        from ron.services.kms.ports import Checkpoint

        held = Held(self.home / "made")
        shelf = held.shelf()
        shelf.open()
        recovered = recover(shelf, ORIGIN, [held.keys.public], lambda _done, _of: None)
        for number in range(12):
            leaf = encode(numbered(entry(number), number + 1))
            shelf.append([leaf])
            recovered.tiles.append(leaf_hash(leaf))
            if number in (3, 7, 11):
                size, root = number + 1, recovered.tiles.root(number + 1)
                note = sign_note(Head(ORIGIN, size, root).text(), held.keys.signers)
                shelf.add_checkpoint(kept(size // 4, Checkpoint(size, root, note)))
                shelf.set_anchor(anchor_of(kept(size // 4, Checkpoint(size, root, note))))
        shelf.close()
        self.assertIsNone(self.recovered(held).trouble)
        return held.home

    def recovered(self, held: Held) -> Recovered:
        shelf = held.shelf()
        shelf.open()
        try:
            return recover(shelf, ORIGIN, [held.keys.public], lambda _done, _of: None)
        finally:
            shelf.close()


class Whole(Case):
    async def test_torn_ends_are_cut_and_it_goes_on(self) -> None:
        await self.grown(10)
        for path, torn in ((self.leaves, b'{"actor":"abab'), (self.checkpoints, b'{"number":2,"si')):
            with path.open("ab") as file:
                file.write(torn)
        log = await self.opened()
        self.assertEqual((log.size, log.trouble, log.writable), (10, None, True))
        await fill(log, 1)
        await log.checkpoint()
        await log.close()
        self.assertEqual((await self.opened()).size, 11)

    async def test_a_tail_without_a_checkpoint_gets_one_at_once(self) -> None:
        await self.grown(10)
        log = await self.opened()
        await fill(log, 5)
        # as after a kill: nobody closes it
        log._checkpointer.pause()
        await log._thread.run(log._shelf.close)
        later = await self.opened()
        self.assertEqual((await later.checkpoint()).size, 15)

    async def test_killed_between_checkpoint_and_anchor(self) -> None:
        await self.grown(10)
        anchor = self.held.anchor.read_bytes()
        await self.grown(5)
        self.held.anchor.write_bytes(anchor)
        log = await self.opened()
        self.assertEqual((log.trouble, log.size), (None, 15))
        self.assertEqual(msgspec.json.decode(self.held.anchor.read_bytes(), type=Anchor).size, 15)

    async def test_an_anchor_that_cannot_be_written(self) -> None:
        """The checkpoint is there, the service is not ready, and the anchor is tried again."""
        await self.grown(5)
        log = await self.opened()
        await fill(log, 5)
        elsewhere = self.held.anchor.parent
        elsewhere.rename(elsewhere.with_name("away"))
        elsewhere.write_text("a file where the directory was")
        await self.assertFailure(log.checkpoint(), RonError)
        self.assertTrue(log.checkpoint_failing)
        await self.assertFailure(log.checkpoint(), RonError)
        elsewhere.unlink()
        elsewhere.with_name("away").rename(elsewhere)
        self.assertEqual(((await log.checkpoint()).size, log.checkpoint_failing), (10, False))
        anchor = msgspec.json.decode(self.held.anchor.read_bytes(), type=Anchor)
        self.assertEqual((anchor.number, anchor.size), (2, 10))
        await log.close()
        again = await self.opened()
        self.assertEqual((again.trouble, again.size), (None, 10))

    async def test_tiles_are_made_again(self) -> None:
        await self.grown(600)
        tiles = self.held.directory / "tile" / "0"
        whole = (tiles / "001").read_bytes()
        (tiles / "000").unlink()
        (tiles / "001").write_bytes(b"\0" * len(whole))
        log = await self.opened()
        self.assertEqual(log.trouble, None)
        self.assertEqual((tiles / "001").read_bytes(), whole)
        latest = log.latest()
        assert latest is not None
        leaf = leaf_hash(log.entries(300, 1)[0])
        self.assertTrue(verify_inclusion(300, 600, leaf, log.inclusion(300, 600), latest.root))

    async def test_a_tile_that_is_gone_while_it_runs(self) -> None:
        await self.grown(600)
        log = await self.opened()
        shutil.rmtree(self.held.directory / "tile")
        log._tiles._cache.drop((0, 0))
        self.assertIs(self.assertRaises(RonError, log.inclusion, 0, 600).code, ErrorCode.STORE_UNAVAILABLE)

    async def test_cosignatures_and_keys_are_there_again(self) -> None:
        await self.grown(10)
        log = await self.opened()
        latest = log.latest()
        assert latest is not None
        secret = SigningKey(b"w" * 32)
        witness = note_key("witness.example/w", Kind.COSIGNATURE, bytes(secret.verify_key))
        text = Head(ORIGIN, latest.size, latest.root).text()
        log.cosigned(latest, [cosignature(text, witness, lambda text: secret.sign(text).signature, 7)])
        await log.close()
        again = await self.opened()
        self.assertEqual(cosigned_at((again.latest() or latest).note, [witness]), {witness: 7})
        self.assertEqual(read_keys((self.held.directory / "log.vkeys").read_text()), [self.held.keys.public])
        # they are of that checkpoint alone
        await fill(again, 1)
        self.assertEqual(cosigned_at((await again.checkpoint()).note, [witness]), {})
        self.assertEqual(again.witnessed(), log.witnessed())
        await again.close()
        again = await self.opened()
        seen = again.witnessed()
        assert seen is not None
        self.assertEqual((seen.size, cosigned_at(seen.note, [witness])), (latest.size, {witness: 7}))
        await again.close()
        for rubbish in (b"rubbish", sign_note(Head("other", 3, b"r" * 32).text(), self.held.keys.signers)):
            (self.held.directory / "cosigned.note").write_bytes(rubbish)
            again = await self.opened()
            self.assertEqual((again.trouble, again.witnessed()), (None, None))
            await again.close()

    async def test_a_newer_one_with_fewer_cosignatures_takes_no_ones_place(self) -> None:
        await self.grown(10)
        log = await self.opened()
        first = log.latest()
        assert first is not None
        log.cosigned(first, _cosigned(first, 1, 2), enough=2)
        await fill(log, 5)
        second = await log.checkpoint()
        log.cosigned(second, _cosigned(second, 1), enough=2)
        self.assertEqual((log.witnessed() or second).size, first.size)
        # a third signature of the older one does not come too late, nor does the second of the newer one
        log.cosigned(first, _cosigned(first, 3), enough=2)
        self.assertEqual((log.witnessed() or second).size, first.size)
        log.cosigned(second, _cosigned(second, 2), enough=2)
        self.assertEqual((log.witnessed() or first).size, second.size)
        self.assertEqual(len(parse_note((log.latest() or first).note).signatures), 4)

    async def test_an_older_copy_that_left_what_witnesses_signed(self) -> None:
        """The end is gone, with checkpoints and anchor: the note with its cosignatures is still there."""
        await self.grown(10)
        log = await self.opened()
        older = self.home / "older"
        await log.close()
        shutil.copytree(self.held.directory, older)
        anchor = self.held.anchor.read_bytes()
        log = await self.opened()
        await fill(log, 5)
        newest = await log.checkpoint()
        log.cosigned(newest, _cosigned(newest, 1))
        await log.close()
        kept = (self.held.directory / "cosigned.note").read_bytes()
        shutil.rmtree(self.held.directory)
        shutil.copytree(older, self.held.directory)
        self.held.anchor.write_bytes(anchor)
        (self.held.directory / "cosigned.note").write_bytes(kept)
        again = await self.opened()
        self.assertIn("witnesses have signed for 15 records, there are 10", again.trouble or "")
        self.assertFalse(again.writable)
        # the same number again, and others
        await again.close()
        (self.held.directory / "cosigned.note").unlink()
        again = await self.opened()
        await fill(again, 5, first=100)
        await again.checkpoint()
        await again.close()
        (self.held.directory / "cosigned.note").write_bytes(kept)
        again = await self.opened()
        self.assertIn("not those that witnesses have signed for", again.trouble or "")

    async def test_what_records_said_last(self) -> None:
        """Of all records, however long ago: what stands beside the log is compared with it."""
        log = await self.opened()
        await fill(log, 1, make=lambda _n: entry(extra={"book": "b", "book_records": 7}))
        await fill(log, 3, make=lambda n: entry(extra={"store": n}))
        self.assertEqual(log.newest("book_records"), {"book": "b", "book_records": 7})
        self.assertEqual((log.newest("store"), log.newest("nothing")), ({"store": 2}, {}))
        await fill(log, 400)
        await log.close()
        again = await self.opened()
        self.assertEqual(again.newest("book_records"), {"book": "b", "book_records": 7})
        await fill(again, 1, make=lambda _n: entry(extra={"book": "b", "book_records": 8}))
        self.assertEqual(again.newest("book"), {"book": "b", "book_records": 8})

    async def test_progress_is_told(self) -> None:
        await self.grown(10)
        told: list[tuple[int, int]] = []
        log = self.held.log()
        self.logs.append(log)
        await log.open(lambda done, of: told.append((done, of)))
        self.assertEqual(told, [(10, 10)])

    async def test_rotated_keys(self) -> None:
        await self.grown(10)
        new = Keys(2)
        log = self.held.log(keys=(self.held.keys,))
        self.logs.append(log)
        await log.open()
        await fill(log, 1)
        log.use(new.public, new.sign)
        await log.checkpoint()
        await log.close()
        # the old key alone does not know it, both do
        alone = await self.held.opened()
        self.assertIn("none of the keys", alone.trouble or "")
        await alone.close()
        log = self.held.log(keys=(new, self.held.keys))
        self.logs.append(log)
        await log.open()
        self.assertIsNone(log.trouble)

    async def test_an_anchor_is_outside_or_there_is_none(self) -> None:
        self.assertRaises(ValueError, DiskShelf, self.home, self.home / "anchor")
        for _time in range(2):
            log = await self.held.opened(DiskShelf(self.held.directory, None))
            await fill(log, 3)
            await log.close()
        self.assertEqual((log.size, log.trouble, self.held.anchor.exists()), (6, None, False))


def _cosigned(checkpoint: Checkpoint, *numbers: int) -> list[bytes]:
    """By so many witnesses."""
    text = Head(ORIGIN, checkpoint.size, checkpoint.root).text()
    lines = []
    for number in numbers:
        secret = SigningKey(bytes([number]) * 32)
        key = note_key(f"w{number}.example", Kind.COSIGNATURE, bytes(secret.verify_key))
        lines.append(cosignature(text, key, lambda text, secret=secret: secret.sign(text).signature, 7))  # type: ignore[misc]
    return lines
