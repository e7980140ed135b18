"""A log brings its checkpoints to witnesses, keeps what they sign, and believes them when they saw another log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nacl.signing import SigningKey
from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.notes import Kind, NoteKey, cosigned_at, note_key, with_signatures
from ron.kernel import Metrics
from ron.proto.errors import ErrorCode, RonError
from ron.services.kms.audit.asking import LOOK_S, PAUSE_S, Asking, Collected, Policy, Witnesses, label
from ron.services.kms.audit.meters import Meters
from ron.services.kms.audit.witness import Ask, Witness, WitnessFile, parse_ask
from ron.services.kms.ports import Checkpoint
from tests.services.kms.audit.support import ORIGIN
from tests.services.kms.audit.test_witness import KEYS, NOW, Grown


class Other:
    """A witness and how it is asked; it can be away or silent."""

    def __init__(self, folder: Path, number: int) -> None:
        self.secret = SigningKey(bytes([number]) * 32)
        self.key = note_key(f"w{number}.example", Kind.COSIGNATURE, bytes(self.secret.verify_key))
        self.witness = Witness(
            self.key,
            lambda text: self.secret.sign(text).signature,
            logs={ORIGIN: [KEYS.public]}.get,
            book=WitnessFile(folder / f"{number}.json"),
            now=lambda: NOW,
        )
        self.asked: list[Ask] = []
        self.away = self.silent = False
        self.waiting: Deferred[None] | None = None

    async def ask(self, asked: Ask) -> bytes:
        self.asked.append(asked)
        if self.away:
            raise RonError(ErrorCode.STORE_UNAVAILABLE, "away")
        if self.silent:
            self.waiting = Deferred()
            await self.waiting
        # as it goes over the wire; lines of others are passed over
        return b"\xe2\x80\x94 other.example AAAAAAAA\n" + self.witness.cosign(ORIGIN, parse_ask(asked.body()))


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.log = Grown(40)
        self.clock = task.Clock()
        self.others = [Other(self.folder, number) for number in (1, 2, 3)]

    def witnesses(self, log: Grown | None = None) -> Witnesses:
        found = {other.key: other.ask for other in self.others}
        return Witnesses(found, consistency=(log or self.log).tiles.consistency, reactor=self.clock)


class Collecting(Case):
    def collected(self, witnesses: Witnesses, checkpoint: Checkpoint, wait_s: float = 0.0) -> Collected:
        outcome = Deferred.fromCoroutine(witnesses.collect(checkpoint))
        self.clock.advance(wait_s)
        return self.successResultOf(outcome)

    def test_a_log_that_lost_its_end(self) -> None:
        self.collected(self.witnesses(), self.log.checkpoint(15))
        found = self.collected(self.witnesses(), self.log.checkpoint(12))
        self.assertEqual((found.lines, found.refused), ({}, {}))
        self.assertEqual(set(found.contradicted.values()), {"saw 15 records, there are 12"})

    def test_another_history(self) -> None:
        self.collected(self.witnesses(), self.log.checkpoint(9))
        forked = Grown(40, other_from=4)
        for size, what in (
            (12, "saw 9 records that are not the first of these"),
            (9, "saw another tree of 9 records"),
            (8, "saw 9 records, there are 8"),
        ):
            found = self.collected(self.witnesses(forked), forked.checkpoint(size))
            self.assertEqual(set(found.contradicted.values()), {what})
        # and the witnesses have not moved
        self.assertEqual(len(self.collected(self.witnesses(), self.log.checkpoint(12)).lines), 3)

    def test_answers_that_are_none(self) -> None:
        good, other = self.others[0].witness, self.log.checkpoint(4)

        async def rubbish(_ask: Ask) -> bytes:
            return b"\xff rubbish\n"

        async def of_another(_ask: Ask) -> bytes:
            return good.cosign(ORIGIN, Ask(0, (), other.note))

        async def forever(_ask: Ask) -> bytes:
            await Deferred()
            return b""

        def refusing(hint: str | None) -> Any:
            async def refuse(_ask: Ask) -> bytes:
                raise RonError(ErrorCode.CONFLICT, "no", hint=hint)

            return refuse

        for ask, why in (
            (rubbish, "something else than its cosignature"),
            (of_another, "something else than its cosignature"),
            (forever, "no answer in time"),
            (refusing("many"), "no"),
            (refusing(None), "no"),
            (refusing("3"), "no"),
        ):
            key = self.others[0].key
            asked = Witnesses({key: ask}, consistency=self.log.tiles.consistency, reactor=self.clock)
            found = self.collected(asked, self.log.checkpoint(5), 5.0)
            self.assertEqual((found.lines, found.contradicted), ({}, {}))
            self.assertIn(why, found.refused[key])

    def test_more_than_a_note_has_room_for(self) -> None:
        key = self.others[0].key
        many = {key._replace(name=f"w{number}"): self.others[0].ask for number in range(17)}
        self.assertRaises(ValueError, Witnesses, many, consistency=self.log.tiles.consistency, reactor=self.clock)

    def test_lines(self) -> None:
        witnesses = self.witnesses()
        for size in (3, 3, 12):
            checkpoint = self.log.checkpoint(size)
            found = self.collected(witnesses, checkpoint)
            self.assertEqual((found.refused, found.contradicted), ({}, {}))
            note = with_signatures(checkpoint.note, found.lines.values())
            self.assertEqual(set(cosigned_at(note, [other.key for other in self.others])), set(found.lines))
        self.assertEqual([ask.old for ask in self.others[0].asked], [0, 3, 3])
        # one that has forgotten what the witness saw is told
        self.assertEqual(len(self.collected(self.witnesses(), self.log.checkpoint(15)).lines), 3)

    def test_one_that_is_silent_keeps_no_other(self) -> None:
        self.others[1].silent = True
        found = self.collected(self.witnesses(), self.log.checkpoint(5), 5.0)
        self.assertEqual((len(found.lines), list(found.refused)), (2, [self.others[1].key]))


class Log:
    """What `Asking` needs of one."""

    def __init__(self, grown: Grown, size: int) -> None:
        self.grown = grown
        self.newest: Checkpoint | None = grown.checkpoint(size) if size else None
        self.watchers: list[Any] = []
        self.kept: list[tuple[int, int]] = []
        self.broken: list[str] = []

    def latest(self) -> Checkpoint | None:
        return self.newest

    def watch_checkpoints(self, watcher: Any) -> None:
        self.watchers.append(watcher)

    def cosigned(self, checkpoint: Checkpoint, lines: Sequence[bytes], *, enough: int = 1) -> None:
        with_signatures(checkpoint.note, lines)
        self.kept.append((checkpoint.size, len(lines)))

    def contradicted(self, why: str) -> None:
        self.broken.append(why)

    def grow(self, size: int) -> None:
        self.newest = self.grown.checkpoint(size)
        for watcher in self.watchers:
            watcher(self.newest)


class Running(Case):
    def started(self, size: int = 10, **policy: Any) -> tuple[Log, Asking]:
        log, self.metrics, self.told = Log(self.log, size), Metrics(), ["?"]
        asking = Asking(
            self.clock,
            log,
            self.witnesses(),
            policy=Policy(**policy),
            tell=lambda trouble, serves: self.told.append(trouble and f"{trouble} {serves}"),
            meters=Meters(self.metrics),
        )
        asking.start()
        self.clock.advance(0)
        self.addCleanup(lambda: self.successResultOf(Deferred.fromCoroutine(asking.stop())))
        return log, asking

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def age(self, key: NoteKey) -> float:
        return self.value("kms_audit_witness_age_seconds", witness=label(key))

    def test_a_contradiction_breaks_the_log(self) -> None:
        for other in self.others[:2]:
            other.witness.cosign(ORIGIN, self.log.ask(0, 20))
        log, _asking = self.started(10, quorum=2)
        self.assertIn("saw 20 records, there are 10", log.broken[-1])
        self.assertIn("saw 20 records, there are 10", self.told[-1])
        self.assertTrue(self.told[-1].endswith(" True"))
        self.assertEqual(self.value("kms_audit_witness_contradictions_total"), 2)
        contradicted = {"witness": label(self.others[0].key), "result": "contradicted"}
        self.assertEqual(self.value("kms_audit_witness_total", **contradicted), 1)

    def test_fewer_than_the_quorum_do_not(self) -> None:
        self.others[0].witness.cosign(ORIGIN, self.log.ask(0, 20))
        log, _asking = self.started(10, quorum=2, required=True)
        self.assertEqual(log.broken, [])
        # it is told all the same, until that witness signs again
        self.assertIn("saw 20 records", self.told[-1])
        self.assertTrue(self.told[-1].endswith(" False"))
        log.grow(25)
        self.clock.advance(60)
        self.clock.advance(60)
        self.assertEqual((self.told[-1], log.broken), ("", []))

    def test_late_ones(self) -> None:
        for other in self.others[1:]:
            other.away = True
        log, _asking = self.started(10, quorum=2, max_age_s=30)
        self.assertEqual((log.kept, self.told[-1]), ([(10, 1)], ""))
        for _ in range(10):
            self.clock.advance(LOOK_S)
        self.assertIn("1 of 3 witnesses have signed lately, 2 are wanted", self.told[-1])
        self.assertIn(label(self.others[2].key), self.told[-1])
        self.assertEqual(self.age(self.others[0].key), 0)
        self.assertGreater(self.age(self.others[1].key), 30)
        for other in self.others:
            other.away = False
        for _ in range(15):
            self.clock.advance(LOOK_S)
        self.assertEqual((self.told[-1], self.age(self.others[1].key)), ("", 0))
        # only those who had not signed were asked again
        self.assertEqual((log.kept, len(self.others[0].asked)), ([(10, 1)] * 3, 1))

    def test_checkpoints_under_load_share_rounds(self) -> None:
        log, _asking = self.started(0)
        self.assertEqual(log.kept, [])
        for size in range(1, 31):
            log.grow(size)
            self.clock.advance(0.1)
        self.clock.advance(PAUSE_S)
        self.assertLessEqual(len(log.kept), 5 * 3)
        self.assertEqual(log.kept[-3:], [(30, 1)] * 3)
        self.assertEqual([self.age(other.key) for other in self.others], [0, 0, 0])

    def test_a_checkpoint_that_comes_while_they_are_asked(self) -> None:
        self.others[1].silent = True
        log, _asking = self.started(10)
        self.assertEqual(log.kept, [(10, 1)] * 2)
        log.grow(20)
        self.others[1].silent = False
        self.clock.advance(PAUSE_S)
        # one that is slow keeps no other
        self.assertEqual(log.kept, [(10, 1)] * 2 + [(20, 1)] * 2)
        self.assertEqual((self.age(self.others[0].key), self.age(self.others[1].key)), (0, PAUSE_S))
        self.clock.advance(4.0)
        self.clock.advance(2.0)
        self.assertEqual(log.kept[4:], [(20, 1)])
        self.assertEqual(self.age(self.others[1].key), 0)

    def test_one_that_is_away_is_asked_less_and_less(self) -> None:
        self.others[0].away = True
        log, _asking = self.started(1)
        for size in range(2, 31):
            log.grow(size)
            self.clock.advance(PAUSE_S)
        self.assertLess(len(self.others[0].asked), 15)
        self.assertGreaterEqual(len(self.others[1].asked), 29)
        self.assertEqual(log.kept[-2:], [(30, 1)] * 2)

    def test_one_that_came_meanwhile_waits(self) -> None:
        self.others[0].silent = True
        log, _asking = self.started(10)
        self.others[0].silent = False
        log.grow(20)
        self.clock.advance(1.0)
        waiting, self.others[0].waiting = self.others[0].waiting, None
        assert waiting is not None
        waiting.callback(None)
        self.assertEqual(log.kept[-1], (10, 1))
        self.assertEqual(self.age(self.others[0].key), 1.0)
        self.clock.advance(0)
        self.assertEqual((log.kept[-1], self.age(self.others[0].key)), ((20, 1), 0))

    def test_it_ends_while_it_asks(self) -> None:
        self.others[1].silent = True
        log, asking = self.started(10)
        self.successResultOf(Deferred.fromCoroutine(asking.stop()))
        log.grow(20)
        self.clock.advance(60)
        self.assertEqual((log.kept, self.clock.getDelayedCalls()), ([(10, 1)] * 2, []))

    def test_a_mistake_of_ours_is_told_and_tried_again(self) -> None:
        log, _asking = self.started(0)
        fine, log.cosigned = log.cosigned, None  # type: ignore[assignment, method-assign]
        log.grow(5)
        self.clock.advance(0)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 3)
        log.cosigned = fine  # type: ignore[method-assign]
        self.clock.advance(60)
        self.assertEqual(log.kept, [(5, 1)] * 3)
