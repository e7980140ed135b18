"""A witness cosigns what goes on from what it saw, remembers before it signs, and the log takes nothing but that."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as some
from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.merkle import leaf_hash
from ron.crypto.notes import Head, Kind, cosigned_at, note_key, sign_note, with_signatures
from ron.proto.errors import ErrorCode, RonError
from ron.services.kms.audit.tiles import Tiles
from ron.services.kms.audit.witness import (
    MAX_ASK_BYTES,
    Ask,
    LogFiles,
    Seen,
    Witness,
    WitnessFile,
    judge,
    origin_of,
    parse_ask,
)
from ron.services.kms.ports import Checkpoint
from tests.services.kms.audit.support import ORIGIN, Keys

KEYS = Keys()
SECRET = SigningKey(b"w" * 32)
WITNESS = note_key("witness.example/w", Kind.COSIGNATURE, bytes(SECRET.verify_key))
NOW = 1_800_000_000


class Grown:
    """A log of which only the hashes matter."""

    def __init__(self, count: int, other_from: int = 1 << 30) -> None:
        self._kept: dict[tuple[int, int], bytes] = {}
        self.tiles = Tiles(
            lambda level, number: self._kept[level, number],
            lambda level, number, hashes: self._kept.update({(level, number): hashes}),
        )
        for number in range(count):
            self.tiles.append(leaf_hash(b"%d %d" % (number, number >= other_from)))

    def checkpoint(self, size: int, keys: Keys = KEYS, origin: str = ORIGIN) -> Checkpoint:
        root = self.tiles.root(size)
        return Checkpoint(size, root, sign_note(Head(origin, size, root).text(), keys.signers))

    def ask(self, old: int, size: int) -> Ask:
        return Ask(old, tuple(self.tiles.consistency(old, size)), self.checkpoint(size).note)


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute() / "witness.json"
        self.log = Grown(20)

    def witness(self) -> Witness:
        return Witness(
            WITNESS,
            lambda text: SECRET.sign(text).signature,
            logs={ORIGIN: [KEYS.public]}.get,
            book=WitnessFile(self.path),
            now=lambda: NOW + 0.7,
        )

    def refused(self, witness: Witness, ask: Ask, status: int, origin: str = ORIGIN) -> RonError:
        error = self.assertRaises(RonError, witness.cosign, origin, ask)
        self.assertEqual(error.status, status)
        return error


class Judged(Case):
    def test_what_is_not_signed_by_the_log(self) -> None:
        witness = self.witness()
        good = self.log.ask(0, 5)
        half = sign_note(good.note.split(b"\n\n")[0] + b"\n", KEYS.signers[:1])
        for note in (
            b"",
            b"rubbish",
            half,
            self.log.checkpoint(5, Keys(2)).note,
            good.note.replace(b"\n5\n", b"\n6\n"),
        ):
            self.refused(witness, good._replace(note=note), 403)
        self.refused(witness, good, 404, "kms.example/other")
        self.refused(witness, good._replace(note=self.log.checkpoint(5, origin="kms.example/other").note), 400)
        self.refused(witness, good._replace(old=6), 400)
        self.refused(witness, good._replace(proof=(b"x" * 32,) * 64), 400)
        self.refused(witness, good._replace(proof=(b"x" * 32,)), 422)
        self.assertFalse(self.path.exists())

    def test_another_size_than_it_saw(self) -> None:
        witness = self.witness()
        witness.cosign(ORIGIN, self.log.ask(0, 5))
        for old in (0, 4, 6):
            self.assertEqual(self.refused(witness, self.log.ask(old, 9), 409).hint, "5")

    def test_a_tree_that_does_not_go_on(self) -> None:
        witness = self.witness()
        witness.cosign(ORIGIN, self.log.ask(0, 9))
        forked = Grown(20, other_from=4)
        self.refused(witness, forked.ask(9, 12), 422)
        # as tlog-witness has it: another tree of the size that was seen is a conflict
        self.assertEqual(self.refused(witness, forked.ask(9, 9), 409).hint, "9")
        good = self.log.ask(9, 12)
        self.refused(witness, good._replace(proof=good.proof[1:]), 422)
        self.assertTrue(witness.cosign(ORIGIN, good))

    @given(some.integers(0, 19), some.integers(0, 20), some.integers(0, 25))
    @settings(deadline=None, max_examples=80)
    def test_only_one_history_is_ever_cosigned(self, fork: int, first: int, second: int) -> None:
        """After the one tree, of the other no size above the fork, whatever proof is given."""
        honest, forked = Grown(25), Grown(25, other_from=fork)
        _text, seen = judge(honest.ask(0, first), Seen(), ORIGIN, [KEYS.public])
        self.assertEqual(seen, Seen(size=first, root=honest.tiles.root(first).hex()))
        if second < first:
            with self.assertRaises(RonError):
                judge(forked.ask(0, second)._replace(old=first), seen, ORIGIN, [KEYS.public])
            return
        for proof in (forked.tiles.consistency(first, second), honest.tiles.consistency(first, second)):
            ask = Ask(first, tuple(proof), forked.checkpoint(second).note)
            if first <= fork and proof == forked.tiles.consistency(first, second):
                judge(ask, seen, ORIGIN, [KEYS.public])
            elif first > fork:
                self.assertRaises(RonError, judge, ask, seen, ORIGIN, [KEYS.public])


class Remembered(Case):
    def test_over_a_restart(self) -> None:
        self.witness().cosign(ORIGIN, self.log.ask(0, 9))
        again = self.witness()
        self.refused(again, Grown(20, other_from=4).ask(9, 12), 422)
        line = again.cosign(ORIGIN, self.log.ask(9, 12))
        cosigned = with_signatures(self.log.checkpoint(12).note, [line])
        self.assertEqual(cosigned_at(cosigned, [WITNESS]), {WITNESS: NOW})
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)

    def test_a_book_that_cannot_be_read_is_not_begun_anew(self) -> None:
        self.path.parent.mkdir()
        for wrong in (b"", b"{", b'{"a": 1}', b"\xff"):
            self.path.write_bytes(wrong)
            self.assertRaises(ValueError, self.witness)

    def test_what_it_would_forget_it_does_not_sign(self) -> None:
        witness = self.witness()
        self.path.parent.write_text("a file where the directory was")
        self.assertIs(self.refused(witness, self.log.ask(0, 5), 503).code, ErrorCode.STORE_UNAVAILABLE)
        self.path.parent.unlink()
        # it was not counted as seen
        self.assertTrue(witness.cosign(ORIGIN, self.log.ask(0, 4)))


class Wire(SynchronousTestCase):
    """The body of `add-checkpoint`."""

    def test_what_is_none(self) -> None:
        good = Grown(9).ask(4, 9)
        top, _, note = good.body().partition(b"\n\n")
        first, *proof = top.split(b"\n")
        for body in (
            b"",
            b"old 4",
            note,
            top + b"\n" + note,
            b"\n\n".join([b"old -4", note]),
            b"\n\n".join([b"old 04", note]),
            b"\n\n".join([b"old  4", note]),
            b"\n\n".join([b"OLD 4", note]),
            b"\n\n".join([b"old 4\r", note]),
            b"\n\n".join([b"old " + b"9" * 20, note]),
            b"\n\n".join([b"\n".join([first, b"*" * 44]), note]),
            b"\n\n".join([b"\n".join([first, proof[0][:-4]]), note]),
            b"\n\n".join([b"\n".join([first, proof[0] + b" "]), note]),
            b"\n\n".join([b"\n".join([first, *[proof[0]] * 64]), note]),
            b"\n\n".join([first, note]) + b"x" * MAX_ASK_BYTES,
        ):
            self.assertEqual(self.assertRaises(RonError, parse_ask, body).code, ErrorCode.BAD_REQUEST, body[:80])
        for wrong in (b"", b"rubbish", b"a\n\n", sign_note(b"one line\n", KEYS.signers)):
            self.assertEqual(self.assertRaises(RonError, origin_of, wrong).code, ErrorCode.BAD_REQUEST)

    @given(some.integers(0, 40), some.integers(0, 40))
    @settings(deadline=None, max_examples=30)
    def test_there_and_back(self, one: int, other: int) -> None:
        ask = Grown(40).ask(min(one, other), max(one, other))
        self.assertEqual(parse_ask(ask.body()), ask)
        self.assertEqual(origin_of(ask.note), ORIGIN)

    def test_as_the_protocol_writes_it(self) -> None:
        ask = Ask(20852014, (bytes.fromhex("3e5" + "0" * 61),), b"example.com/behind-the-sofa\n")
        lines = b"old 20852014\nPlAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\nexample.com/behind-the-sofa\n"
        self.assertEqual(ask.body(), lines)


class Files(SynchronousTestCase):
    """Whose logs it witnesses."""

    def setUp(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        self.path, self.other = folder / "a.vkeys", folder / "b.vkeys"
        self.write(self.path, KEYS)
        self.write(self.other, Keys(2, "kms.example/b"), Keys(3, "kms.example/b"))

    def write(self, path: Path, *sets: Keys) -> None:
        path.write_text("\n".join("".join(f"{key.vkey()}\n" for key in one.public) for one in sets))

    def test_what_is_none(self) -> None:
        for text in ("", "rubbish", KEYS.public[0].vkey() + "\n" + Keys(2, "other").public[1].vkey()):
            self.path.write_text(text)
            self.assertRaises(ValueError, LogFiles, [self.path])
        self.assertRaises(OSError, LogFiles, [self.path.with_name("c")])

    def test_by_name(self) -> None:
        logs = LogFiles([self.path, self.other])
        self.assertEqual(len(logs), 2)
        self.assertEqual(logs.keys(ORIGIN), [KEYS.public])
        expected = [Keys(2, "kms.example/b").public, Keys(3, "kms.example/b").public]
        self.assertEqual(logs.keys("kms.example/b"), expected)
        self.assertIsNone(logs.keys("kms.example/c"))

    def test_a_new_key_without_a_restart(self) -> None:
        logs = LogFiles([self.path])
        self.write(self.path, Keys(7), KEYS)
        self.assertEqual(logs.keys(ORIGIN), [Keys(7).public, KEYS.public])
        # half written, or gone for a moment: what was read holds
        self.path.write_text("rub")
        self.assertEqual(logs.keys(ORIGIN), [Keys(7).public, KEYS.public])
        self.path.unlink()
        self.assertEqual(logs.keys(ORIGIN), [Keys(7).public, KEYS.public])
        self.write(self.path, Keys(8))
        self.assertEqual(logs.keys(ORIGIN), [Keys(8).public])
