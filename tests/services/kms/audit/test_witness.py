"""A witness cosigns what goes on from what it saw, remembers before it signs, and the log takes nothing but that."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as some
from nacl.signing import SigningKey
from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.merkle import leaf_hash
from ron.crypto.notes import Head, Kind, cosigned_at, note_key, sign_note, with_signatures
from ron.proto.errors import ErrorCode, RonError
from ron.services.kms.audit.tiles import Tiles
from ron.services.kms.audit.witness import Ask, Seen, Witness, Witnesses, WitnessFile, judge
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
            logs={ORIGIN: [KEYS.public]},
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
        self.refused(witness, forked.ask(9, 9), 422)
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


class Collected(Case):
    def witnesses(self, witness: Witness) -> Witnesses:
        async def ask(origin: str, asked: Ask) -> bytes:
            return witness.cosign(origin, asked)

        return Witnesses(ORIGIN, {WITNESS: ask}, consistency=self.log.tiles.consistency, reactor=task.Clock())

    def collected(self, witnesses: Witnesses, checkpoint: Checkpoint) -> tuple[list[bytes], dict[str, RonError]]:
        return self.successResultOf(Deferred.fromCoroutine(witnesses.collect(checkpoint)))

    def test_line_by_line(self) -> None:
        witness = self.witness()
        witnesses = self.witnesses(witness)
        for size in (3, 3, 12):
            checkpoint = self.log.checkpoint(size)
            lines, refused = self.collected(witnesses, checkpoint)
            self.assertEqual((len(lines), refused), (1, {}))
            self.assertEqual(cosigned_at(with_signatures(checkpoint.note, lines), [WITNESS]), {WITNESS: NOW})
        # one that has forgotten what the witness saw is told
        lines, refused = self.collected(self.witnesses(witness), self.log.checkpoint(15))
        self.assertEqual((len(lines), refused), (1, {}))

    def test_a_log_that_lost_its_end_gets_none(self) -> None:
        witness = self.witness()
        witness.cosign(ORIGIN, self.log.ask(0, 15))
        lines, refused = self.collected(self.witnesses(witness), self.log.checkpoint(12))
        self.assertEqual(lines, [])
        self.assertIn("saw 15 records", refused[WITNESS.name].message)

    def test_answers_that_are_none(self) -> None:
        good = self.witness()
        other = self.log.checkpoint(4)

        async def rubbish(_origin: str, _ask: Ask) -> bytes:
            return b"\xff rubbish\n"

        async def of_another(_origin: str, _ask: Ask) -> bytes:
            return good.cosign(ORIGIN, Ask(0, (), other.note))

        async def forever(_origin: str, _ask: Ask) -> bytes:
            await Deferred()
            return b""

        async def conflicting(_origin: str, _ask: Ask) -> bytes:
            raise RonError(ErrorCode.CONFLICT, "no", hint="many")

        for ask, code in (
            (rubbish, ErrorCode.BAD_REQUEST),
            (of_another, ErrorCode.BAD_REQUEST),
            (forever, ErrorCode.TIMEOUT),
            (conflicting, ErrorCode.CONFLICT),
        ):
            clock = task.Clock()
            asked = Witnesses(ORIGIN, {WITNESS: ask}, consistency=self.log.tiles.consistency, reactor=clock)
            outcome = Deferred.fromCoroutine(asked.collect(self.log.checkpoint(5)))
            clock.advance(5.0)
            lines, refused = self.successResultOf(outcome)
            self.assertEqual((lines, refused[WITNESS.name].code), ([], code), ask.__name__)

    def test_more_than_a_note_has_room_for(self) -> None:
        many = {WITNESS._replace(name=f"w{number}"): lambda _o, _a: None for number in range(17)}
        self.assertRaises(
            ValueError, Witnesses, ORIGIN, many, consistency=self.log.tiles.consistency, reactor=task.Clock()
        )
