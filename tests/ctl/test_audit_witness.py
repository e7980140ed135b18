"""`ronctl audit verify --witness`: who has seen a log, counted; what is asked for and not there is no success."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from nacl.signing import SigningKey
from twisted.trial.unittest import TestCase

from ron.crypto.notes import Head, Kind, NoteKey, cosignature, note_key, sign_note
from ron.ctl.audit import audit
from ron.services.kms.ports import Checkpoint
from tests.services.kms.audit.support import ORIGIN, Held, Keys, fill

NOW = 1_800_000_000


class Other:
    """A witness."""

    def __init__(self, number: int) -> None:
        self.secret = SigningKey(bytes([number]) * 32)
        self.key: NoteKey = note_key(f"w{number}.example", Kind.COSIGNATURE, bytes(self.secret.verify_key))

    def line(self, checkpoint: Checkpoint) -> bytes:
        text = Head(ORIGIN, checkpoint.size, checkpoint.root).text()
        return cosignature(text, self.key, lambda text: self.secret.sign(text).signature, NOW)


class Case(TestCase):
    timeout = 60

    async def setUp(self) -> None:
        self.held = Held(_home(self.mktemp()))
        self.one, self.two, self.three = (Other(number) for number in (1, 2, 3))
        log = await self.held.opened()
        await fill(log, 7)
        seen = await log.checkpoint()
        log.cosigned(seen, [self.one.line(seen), self.two.line(seen)])
        await fill(log, 3, first=7)
        await log.checkpoint()
        await log.close()
        self.vkeys = self.held.home / "log.vkeys"
        self.vkeys.write_text("".join(f"{key.vkey()}\n" for key in self.held.keys.public))

    def verify(self, *more: str) -> Any:
        """The exit code and what is printed."""
        args = ["verify", str(self.held.directory), "--key", str(self.vkeys), *more]
        return CliRunner().invoke(audit, args)

    def witnesses(self, *others: Other) -> list[str]:
        return [text for other in others for text in ("--witness", other.key.vkey())]


def _home(path: str) -> Path:
    return Path(path).absolute()


class Refused(Case):
    async def test_keys_that_are_none(self) -> None:
        for wrong in ("rubbish", self.held.keys.public[0].vkey(), self.one.key.vkey()[:-2]):
            self.assertNotEqual(self.verify("--witness", wrong).exit_code, 0)
        asked = [*self.witnesses(self.one), "--witness-quorum", "2"]
        self.assertNotEqual(self.verify(*asked).exit_code, 0)

    async def test_who_has_not_signed(self) -> None:
        found = self.verify(*self.witnesses(self.one, self.three), "--json")
        view = json.loads(found.output)
        self.assertEqual((found.exit_code, view["whole"], view["witnesses_enough"]), (1, True, False))
        self.assertEqual([one["at"] is not None for one in view["witnesses"]], [True, False])
        self.assertIn("1 of 2 have seen 7 records, 2 wanted", self.verify(*self.witnesses(self.one, self.three)).output)

    async def test_nobody_has(self) -> None:
        (self.held.directory / "cosigned.note").unlink()
        self.assertEqual(self.verify(*self.witnesses(self.one)).exit_code, 1)
        (self.held.directory / "cosigned.note").write_bytes(b"rubbish")
        self.assertEqual(self.verify(*self.witnesses(self.one)).exit_code, 1)

    async def test_a_log_that_they_have_not_seen(self) -> None:
        """Their lines hold, for another log."""
        for size, why in ((7, "is not the one that was signed"), (12, "the noted checkpoint has 12 records")):
            other = Checkpoint(size, b"\1" * 32, sign_note(Head(ORIGIN, size, b"\1" * 32).text(), Keys(1).signers))
            note = other.note + self.one.line(other)
            (self.held.directory / "cosigned.note").write_bytes(note)
            found = self.verify(*self.witnesses(self.one), "--json")
            view = json.loads(found.output)
            self.assertEqual((found.exit_code, view["whole"]), (1, False))
            self.assertIn(why, view["broken"]["why"])


class Counted(Case):
    async def test_all_or_so_many(self) -> None:
        found = self.verify(*self.witnesses(self.one, self.two), "--json")
        view = json.loads(found.output)
        self.assertEqual((found.exit_code, view["witnessed"], view["signed"]), (0, 7, 10), found.output)
        self.assertEqual({one["at"] for one in view["witnesses"]}, {"2027-01-15T08:00:00Z"})
        asked = [*self.witnesses(self.one, self.two, self.three), "--witness-quorum", "2"]
        found = self.verify(*asked)
        self.assertEqual(found.exit_code, 0, found.output)
        self.assertIn("2 of 3 have seen 7 records\n", found.output)
        self.assertIn("has not signed", found.output)

    async def test_a_file_of_keys(self) -> None:
        path = self.held.home / "witnesses"
        path.write_text(f"# ours\n{self.one.key.vkey()}\n\n{self.two.key.vkey()}\n")
        self.assertEqual(self.verify("--witness", str(path)).exit_code, 0)

    async def test_without_any(self) -> None:
        found = self.verify()
        self.assertEqual(found.exit_code, 0, found.output)
        self.assertNotIn("witnesses", found.output)
