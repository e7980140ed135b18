"""A key service as a witness, over its route: the statuses of tlog-witness, what is kept, and nothing goes back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from ron.crypto.notes import cosigned_at, parse_vkey, sign_note, with_signatures
from ron.services.kms.audit import Meters
from ron.services.kms.audit.witness import Ask, LogFiles, WitnessFile
from ron.services.kms.audit.witnessdesk import MOST_WAITING, WitnessDesk
from ron.services.kms.logkey import WitnessKey
from ron.web import Edge, make_site
from tests.services.kms.audit.support import Keys
from tests.services.kms.audit.test_witness import KEYS, Grown
from tests.services.kms.world import Answer, World

PREFIX = "/v1/kms/witness"


class Case(World):
    async def begin(self) -> None:
        await super().begin()
        keys = self.home / "log.vkeys"
        keys.write_text("".join(f"{key.vkey()}\n" for key in KEYS.public))
        self.shown: list[str] = []
        self.token = None
        self.log = Grown(60)
        self.open_desk(keys)

    def open_desk(self, keys: Path) -> None:
        self.desk = WitnessDesk(
            reactor,
            WitnessKey(self.service.room),
            LogFiles([keys]),
            WitnessFile(self.home / "book.json"),
            now=time.time,
            meters=Meters(type(self.metrics)()),
            shown=self.shown.append,
        )
        edge = Edge(authority=self.authority, metrics=self.metrics, reactor=reactor)
        self.site = make_site(edge, self.desk.endpoints(), body_limit=1024 * 1024)
        self.desk.start()

    async def end(self) -> None:
        self.desk.stop()
        await super().end()

    async def bring(self, ask: Ask | bytes) -> Answer:
        body = ask if isinstance(ask, bytes) else ask.body()
        return await self.ask("POST", "/add-checkpoint", body, prefix=PREFIX)

    async def ready(self) -> None:
        await self.until(lambda: self.shown, "its key")


class Asked(Case):
    async def test_statuses(self) -> None:
        await self.ready()
        good = self.log.ask(0, 5)
        for status, ask in (
            (400, b""),
            (400, b"rubbish"),
            (400, b"old 0\n\nrubbish"),
            (400, good._replace(old=6)),
            (403, good._replace(note=self.log.checkpoint(5, Keys(2)).note)),
            (403, good._replace(note=sign_note(good.note.split(b"\n\n")[0] + b"\n", KEYS.signers[:1]))),
            (404, good._replace(note=self.log.checkpoint(5, origin="kms.example/other").note)),
            (422, good._replace(proof=(b"x" * 32,))),
        ):
            answer = await self.bring(ask)
            self.assertEqual(answer.status, status, answer.body)
            self.assertIn("error", answer.body)
        self.assertFalse((self.home / "book.json").exists())

    async def test_a_cosignature_and_a_conflict(self) -> None:
        await self.ready()
        witness = parse_vkey(self.shown[0])
        for old, size in ((0, 5), (5, 5), (5, 40)):
            answer = await self.bring(self.log.ask(old, size))
            self.assertEqual(answer.status, 200, answer.body)
            note = with_signatures(self.log.checkpoint(size).note, [answer.body])
            self.assertLess(abs(cosigned_at(note, [witness])[witness] - time.time()), 60)
        for ask in (self.log.ask(0, 50), self.log.ask(5, 50), self.log.ask(0, 5), Grown(60, other_from=3).ask(40, 40)):
            answer = await self.bring(ask)
            self.assertEqual((answer.status, answer.body), (409, b"40\n"))
            self.assertEqual(answer.headers["content-type"], "text/x.tlog.size")
        self.assertEqual((await self.bring(Grown(60, other_from=3).ask(40, 50))).status, 422)

    async def test_many_at_once_cosign_one_history(self) -> None:
        """Two trees race for one size: never are both signed."""
        await self.ready()
        forked = Grown(60, other_from=3)
        answers = await gatherResults(
            [self.deferred(log.ask(0, 20)) for _ in range(5) for log in (self.log, forked)], consumeErrors=True
        )
        roots = {index % 2 for index, answer in enumerate(answers) if answer.status == 200}
        self.assertEqual(len(roots), 1)
        self.assertEqual({answer.status for answer in answers}, {200, 409})

    async def test_more_than_it_has_time_for(self) -> None:
        await self.ready()
        asked = [self.deferred(self.log.ask(0, 1)) for _ in range(MOST_WAITING * 3)]
        answers = await gatherResults(asked, consumeErrors=True)
        self.assertIn(429, {answer.status for answer in answers})
        self.assertLessEqual({answer.status for answer in answers}, {200, 409, 429})

    async def test_without_a_key_yet(self) -> None:
        await self.ready()
        self.desk.stop()
        self.shown.clear()
        self.service.room.index.drop(WitnessKey(self.service.room).required().usable.kid)
        self.backend.away = True
        self.open_desk(self.home / "log.vkeys")
        self.assertEqual((await self.bring(self.log.ask(0, 5))).status, 503)
        self.backend.away = False
        await self.ready()
        self.assertEqual((await self.bring(self.log.ask(0, 5))).status, 200)

    def deferred(self, ask: Ask) -> Any:
        return Deferred.fromCoroutine(self.bring(ask))


class Remembered(Case):
    on_disk = True

    async def test_over_a_restart(self) -> None:
        await self.ready()
        first = self.shown[0]
        self.assertEqual((await self.bring(self.log.ask(0, 30))).status, 200)
        await self.again()
        await self.ready()
        self.assertEqual(self.shown, [first])
        self.assertEqual((await self.bring(self.log.ask(0, 20))).body, b"30\n")
        self.assertEqual((await self.bring(self.log.ask(30, 31))).status, 200)
