"""`ronctl audit verify DIR|URL`: a key service's log, from its files and over HTTP, by somebody who has its keys."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from click.testing import CliRunner, Result
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import AUDIENCE, Authority, Caveat, RootKeys
from ron.crypto.merkle import CompactRange, leaf_hash
from ron.crypto.notes import Head, sign_note
from ron.ctl.audit import audit
from ron.kernel import Metrics
from ron.proto.errors import ErrorCode, RonError
from ron.services.kms.api import endpoints
from ron.services.kms.audit.checkpoints import kept
from ron.services.kms.audit.continuity import build
from ron.services.kms.audit.leaves import encode, numbered
from ron.services.kms.audit.shelf import MemoryShelf
from ron.services.kms.ports import AuditEntry, Checkpoint
from ron.web import Edge, make_site
from tests.ctl.test_audit_witness import Other
from tests.ctl.with_node import RonctlCalls
from tests.services.kms.audit.support import ORIGIN, Held, Keys, entry, fill
from tests.web.wire import until

KEYS = Keys()
LEAVES = f"leaves/{0:020d}.jsonl"


def made(held: Held, count: int) -> None:
    """A log of so many records and one checkpoint, without a reactor."""
    shelf, tree = held.shelf(), CompactRange()
    shelf.open()
    assert not [*shelf.leaves(), *shelf.checkpoints()]
    leaves = [encode(numbered(entry(number), number + 1)) for number in range(count)]
    shelf.append(leaves)
    for leaf in leaves:
        tree.append(leaf_hash(leaf))
    note = sign_note(Head(ORIGIN, count, tree.root()).text(), KEYS.signers)
    shelf.add_checkpoint(kept(1, Checkpoint(count, tree.root(), note)))
    shelf.close()


def rotation(note: bytes) -> AuditEntry:
    return msgspec.structs.replace(entry(kid="", extra={"continuity": note.decode()}), op="rotate")


def key_file(home: Path, keys: Keys = KEYS) -> Path:
    path = home / "kms.vkeys"
    path.write_text("".join(f"{key.vkey()}\n" for key in keys.public))
    return path


class Directory(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir(parents=True)
        self.held = Held(self.home)
        made(self.held, 30)
        self.log, self.key = str(self.held.directory), key_file(self.home)

    def run_it(self, *arguments: str) -> Result:
        result = CliRunner().invoke(audit, ["verify", *arguments], env={"RON_HOME": str(self.home)})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def refused(self, *arguments: str) -> ErrorCode:
        error = self.assertRaises(RonError, self.run_it, *arguments)
        self.assertTrue(error.hint)
        return error.code

    def test_what_cannot_be_asked(self) -> None:
        rubbish, key = self.home / "rubbish", str(self.key)
        rubbish.write_bytes(b"\xff\xff")
        for arguments in (
            (self.log,),
            (self.log, str(self.home), "--key", key),
            (self.log, "--key", key, "--head", "0" * 64),
            (self.log, "--key", str(rubbish)),
            (self.log, "--key", key, "--checkpoint", str(rubbish)),
            (self.log, "--key", key, "--save", str(rubbish)),
            ("--key", key),
            ("--checkpoint", key),
            ("--save", key),
        ):
            self.assertIs(self.refused(*arguments), ErrorCode.BAD_REQUEST, arguments)
        self.assertIs(self.refused(self.log, "--key", str(self.home / "none")), ErrorCode.NOT_FOUND)

    def test_the_first_bad_record_is_named(self) -> None:
        path = self.held.directory / LEAVES
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*lines[:7], b'{"\x1b[2J":1}\n', *lines[8:]]))
        result = self.run_it(self.log, "--key", str(self.key))
        self.assertEqual(result.exit_code, 1)
        self.assertIn("broken at record 7: it is no record", result.stdout)
        shown = json.loads(self.run_it(self.log, "--key", str(self.key), "--json").stdout)
        self.assertEqual((shown["whole"], shown["records"], shown["broken"]["record"]), (False, 7, 7))

    def test_a_range_when_no_tile_names_it(self) -> None:
        path = self.held.directory / LEAVES
        path.write_bytes(path.read_bytes().replace(b'"ok"', b'"no"', 1))
        result = self.run_it(self.log, "--key", str(self.key))
        self.assertEqual(result.exit_code, 1)
        self.assertIn("broken: a record from 0 to 29 is not the one that was signed; 0 records", result.stdout)

    def test_strangers_keys(self) -> None:
        other = key_file(self.home, Keys(9))
        result = self.run_it(self.log, "--key", str(other))
        self.assertEqual(result.exit_code, 1)
        self.assertIn("not by keys that are trusted", result.stdout)

    def test_whole(self) -> None:
        result = self.run_it(self.log, "--key", str(self.key))
        self.assertEqual(result.exit_code, 0, result.stdout)
        self.assertIn("whole, 30 records, 1 checkpoints, root ", result.stdout)
        shown = json.loads(self.run_it(self.log, "--key", str(self.key), "--json").stdout)
        self.assertEqual(
            (shown["log"], shown["whole"], shown["records"], shown["checkpoints"], shown["signed"], shown["broken"]),
            (self.log, True, 30, 1, 30, None),
        )

    def test_against_a_noted_checkpoint(self) -> None:
        noted = self.home / "noted"
        root = bytes.fromhex(json.loads(self.run_it(self.log, "--key", str(self.key), "--json").stdout)["root"])
        noted.write_bytes(sign_note(Head(ORIGIN, 30, root).text(), KEYS.signers))
        self.assertEqual(self.run_it(self.log, "--key", str(self.key), "--checkpoint", str(noted)).exit_code, 0)
        noted.write_bytes(sign_note(Head(ORIGIN, 31, root).text(), KEYS.signers))
        result = self.run_it(self.log, "--key", str(self.key), "--checkpoint", str(noted))
        self.assertEqual(result.exit_code, 1)
        self.assertIn("the noted checkpoint has 31 records", result.stdout)


class Lying(MemoryShelf):
    """Shows one record other than it was."""

    index = -1

    def read(self, start: int, count: int, limit_bytes: int) -> list[bytes]:
        leaves = super().read(start, count, limit_bytes)
        if start <= self.index < start + len(leaves):
            leaves[self.index - start] = leaves[self.index - start].replace(b'"ok"', b'"no"')
        return leaves


class Service(RonctlCalls):
    """The service's own routes on a port, `ronctl` as a process."""

    group = "audit"
    timeout = 90

    async def setUp(self) -> None:
        self.home = Path(self.mktemp())
        self.home.mkdir(parents=True)
        self.held = Held(self.home, queue_limit=5000)
        self.shelf = Lying()
        self.log = await self.held.opened(self.shelf)
        self.addCleanup(self.log.close)
        authority = Authority(RootKeys.generate(), audience=AUDIENCE, now=time.time)
        self.cap = authority.mint([Caveat("scope", "kms:audit")])
        edge = Edge(authority=authority, metrics=Metrics(), reactor=reactor)
        desk: Any = SimpleNamespace(log=self.log)
        self.site = make_site(edge, endpoints(desk, lambda: b""))
        self.port = reactor.listenTCP(0, self.site, interface="127.0.0.1")
        self.addCleanup(self.stop)
        self.url = f"http://127.0.0.1:{self.port.getHost().port}"
        self.key = key_file(self.home)

    async def stop(self) -> None:
        await maybeDeferred(self.port.stopListening)
        for channel in list(self.site.channels):
            channel.forceAbortClient()
        await until(lambda: not self.site.channels)

    async def verified(self, *arguments: str) -> Any:
        return await self.done("verify", self.url, "--key", str(self.key), "--cap", self.cap, *arguments)

    async def test_nothing_to_check_or_nobody_there(self) -> None:
        process = await self.verified()
        self.assertEqual((process.code, process.out), (7, b""), process.err)
        await self.stop()
        self.assertEqual((await self.verified()).code, 4)

    async def test_a_record_that_is_shown_as_it_was_not_signed(self) -> None:
        await fill(self.log, 2500)
        await self.log.checkpoint()
        for index in (0, 1321, 2499):
            self.shelf.index = index
            process = await self.verified("--json")
            self.assertEqual(process.code, 1, process.err)
            broken = json.loads(process.out)["broken"]
            self.assertEqual(broken, {"record": index, "why": "it is not the one that was signed"})

    async def test_whole_noted_and_against_what_was_noted(self) -> None:
        await fill(self.log, 1200)
        await self.log.checkpoint()
        noted = self.home / "noted"
        process = await self.verified("--save", str(noted))
        self.assertEqual(process.code, 0, process.err)
        self.assertIn(b"whole, 1200 records, 1 checkpoints, root ", process.out)
        await fill(self.log, 10)
        latest = await self.log.checkpoint()
        process = await self.verified("--checkpoint", str(noted), "--json")
        self.assertEqual(process.code, 0, process.err)
        shown = json.loads(process.out)
        self.assertEqual((shown["records"], shown["signed"], shown["root"]), (1210, 1210, latest.root.hex()))

    async def test_new_keys_by_the_old_ones_and_who_has_seen_it(self) -> None:
        """From the first keys on, over two rotations; the service proves the heads that the records of them name."""
        await fill(self.log, 40)
        for before, after in ((KEYS, Keys(2)), (Keys(2), Keys(3))):
            head = await self.log.checkpoint()
            note = build(Head(ORIGIN, head.size, head.root), before.signers, after.signers)
            await self.log.append(rotation(note))
            self.log.use(after.public, after.sign)
            await fill(self.log, 5, first=self.log.size)
        latest = await self.log.checkpoint()
        witness = Other(1)
        process = await self.verified("--witness", witness.key.vkey())
        self.assertEqual(process.code, 1, process.err)
        self.log.cosigned(latest, [witness.line(latest)])
        process = await self.verified("--witness", witness.key.vkey(), "--json")
        self.assertEqual(process.code, 0, process.out)
        shown = json.loads(process.out)
        self.assertEqual((shown["signed"], shown["witnessed"], shown["other_checkpoints"]), (52, 52, 0))

    async def test_a_new_key_from_another_history(self) -> None:
        await fill(self.log, 9)
        note = build(Head(ORIGIN, 5, b"r" * 32), KEYS.signers, Keys(2).signers)
        await self.log.append(rotation(note))
        self.log.use(Keys(2).public, Keys(2).sign)
        await self.log.checkpoint()
        process = await self.verified("--json")
        self.assertEqual(process.code, 1, process.err)
        broken = json.loads(process.out)["broken"]
        self.assertEqual(broken, {"record": 9, "why": "its continuity record is of another history"})

    async def test_progress_on_a_terminal(self) -> None:
        await fill(self.log, 1500)
        await self.log.checkpoint()
        process = self.start("verify", self.url, "--key", str(self.key), "--cap", self.cap, tty=True)
        self.assertEqual(await process.end(), 0, process.out)
        self.assertIn(b"1500 of 1500", process.out)
        self.assertIn(b"whole, 1500 records", process.out)

    async def test_strangers_keys_and_a_capability_that_does_not_reach(self) -> None:
        await fill(self.log, 3)
        await self.log.checkpoint()
        self.key = key_file(self.home, Keys(9))
        process = await self.verified()
        self.assertEqual(process.code, 1, process.err)
        self.assertIn(b"its checkpoint is not by keys that are trusted", process.out)
        self.cap = "no-capability"
        self.assertEqual((await self.verified()).code, 5)
