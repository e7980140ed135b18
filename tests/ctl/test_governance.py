"""`ronctl governance` as those who decide call it, against the real governance behind a socket."""

from __future__ import annotations

import json
import stat
import tempfile
import time
from pathlib import Path
from shutil import rmtree
from typing import Any

import click
from click.testing import CliRunner
from nacl.signing import SigningKey
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import AUDIENCE, Authority, Caveat, RootKeys
from ron.ctl.governance import governance as group
from ron.ctl.governance_keys import signing_key
from ron.ctl.governance_signing import parse_changes, proposed, vote
from ron.ctl.governance_text import proposal_text, question
from ron.kernel import Metrics
from ron.kernel.unixsock import UnixListener
from ron.proto.errors import RonError
from ron.sdk.client import Api
from ron.sdk.governance import Governance as Client
from ron.sdk.governance import governance_at
from ron.sdk.transport import connection_pool, unix_http
from ron.services.kms.governance.api import endpoints
from ron.services.kms.governance.book import Book
from ron.services.kms.governance.quorum import Governance
from ron.services.kms.governance.signers import key_id, read_signers, signer_set
from ron.services.kms.governance.views import proposal_view, standing
from ron.web import Edge, make_site
from tests.ctl.with_node import RonctlCalls
from tests.services.kms.governance.people import OFFICER, OWNER, World, key_of
from tests.web.wire import until

EVIL = "\x1b[2J\n\u202e"


class Keys(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()

    def ran(self, *words: str) -> str:
        done = CliRunner().invoke(group, words)
        self.assertIsNone(done.exception, f"{words}: {done.exception!r} {done.output}")
        return done.output

    def refused(self, *words: str) -> RonError:
        error = CliRunner().invoke(group, words).exception
        assert isinstance(error, RonError), f"{words}: {error!r}"
        self.assertTrue(error.hint, error.message)
        return error

    def secret(self, name: str, content: bytes, mode: int = 0o600) -> Path:
        path = self.home / name
        path.write_bytes(content)
        path.chmod(mode)
        return path

    def test_files_that_hold_no_key(self) -> None:
        self.assertRaises(RonError, signing_key, self.home / "gone", None)
        for content in (
            b"",
            b"x" * 64,
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            _other_pem(),
        ):
            self.assertRaises(RonError, signing_key, self.secret("key", content), None)

    def test_a_key_that_others_may_read(self) -> None:
        out = self.home / "a.key"
        self.ran("keygen", "--role", OWNER, "--out", str(out))
        out.chmod(0o644)
        error = self.assertRaises(RonError, signing_key, out, None)
        self.assertIn("chmod 600", error.hint or "")

    def test_a_new_key(self) -> None:
        out = self.home / "a.key"
        shown = json.loads(self.ran("keygen", "--role", OWNER, "--out", str(out), "--json"))
        self.assertEqual(stat.S_IMODE(out.stat().st_mode), 0o600)
        key = signing_key(out, None)
        public = bytes(key.verify_key)
        self.assertEqual((shown["public"], shown["key_id"]), (public.hex(), key_id(public)))
        self.assertEqual(json.loads((self.home / "a.key.pub").read_text())["role"], OWNER)
        before = out.read_bytes()
        self.refused("keygen", "--role", OWNER, "--out", str(out))
        out.unlink()
        self.refused("keygen", "--role", OWNER, "--out", str(out))
        self.assertFalse(out.exists(), "a key whose public half is another's is not left behind")
        self.assertNotIn(bytes(key).hex().encode(), before)

    def test_one_with_a_passphrase(self) -> None:
        out, good = self.home / "a.key", self.secret("good", b"correct horse\n")
        self.ran("keygen", "--role", OWNER, "--out", str(out), "--passphrase-file", str(good))
        self.assertIn(b"ENCRYPTED", out.read_bytes())
        self.assertIsInstance(signing_key(out, good), SigningKey)
        for wrong in (
            self.secret("bad", b"other"),
            self.secret("empty", b"\n"),
            self.secret("open", b"x", 0o644),
            None,
        ):
            self.assertRaises(RonError, signing_key, out, wrong)
        self.refused("keygen", "--role", OWNER, "--out", str(self.home / "b.key"), "--encrypt")

    def test_a_signers_file(self) -> None:
        for role in (OWNER, OFFICER, "custodian"):
            self.ran("keygen", "--role", role, "--out", str(self.home / role))
        publics = [str(self.home / f"{role}.pub") for role in (OWNER, OFFICER, "custodian")]
        out = self.home / "signers.json"
        self.assertIn("2 of 3", self.ran("signers", *publics, "--out", str(out)))
        self.assertEqual(read_signers(out.read_bytes(), 5).rotated_at, 5)
        self.assertIn(f"--change signers={OWNER}:", self.ran("signers", *publics))
        self.refused("signers", *publics, "--out", str(out))
        self.refused("signers", *publics, "--threshold", "1")
        self.refused("signers", publics[0], publics[0])
        self.assertEqual(
            json.loads(self.ran("signers", *publics[:2], "--threshold", "1", "--micronode", "--json"))["threshold"], 1
        )
        self.assertRaises(RonError, lambda: _raise(CliRunner().invoke(group, ["signers", str(out)]).exception))
        self.assertRaises(RonError, lambda: _raise(CliRunner().invoke(group, ["signers", str(out) + "x"]).exception))

    def test_changes(self) -> None:
        self.assertEqual(parse_changes(("a=b=c", "d=")), {"a": "b=c", "d": ""})
        for wrong in (("a",), ("=b",), ("a=b", "a=c")):
            self.assertRaises(click.BadParameter, parse_changes, wrong)

    def test_help_has_examples(self) -> None:
        for name, command in group.commands.items():
            self.assertIn("ronctl governance", self.ran(name, "--help"), name)
            self.assertTrue(command.short_help or command.help)


class Text(SynchronousTestCase):
    def test_nothing_is_obeyed(self) -> None:
        world = World()
        self.addCleanup(world.governance.stop)
        case = world.propose("override", {"a": EVIL}, rationale=EVIL, risk=EVIL, rollback=EVIL, attachments=(EVIL,))
        case = world.say("reject", case, OFFICER, reason=EVIL)
        shown = proposal_text(proposal_view(case, world.governance)) + question(case.proposal)
        self.assertNotIn("\x1b", shown)
        self.assertNotIn("\u202e", shown)
        self.assertNotIn("\n\n", shown)


class Lying(SynchronousTestCase):
    """A service that shows one thing and has another signed."""

    def test_only_what_was_asked_for_is_signed(self) -> None:
        world = World()
        self.addCleanup(world.governance.stop)
        one, other = (world.propose("pq_mode", {"pq_mode": "and"}) for _ in range(2))

        class Service:
            async def standing(self) -> Any:
                return standing(world.governance)

            async def proposal(self, _proposal: str) -> Any:
                return proposal_view(other, world.governance)

        error = self.assertRaises(
            RonError,
            world.do,
            vote(Service(), "approve", one.proposal.id, key_of(OWNER)),  # type: ignore[arg-type]
        )
        self.assertIn("another proposal", error.message)


class Commands(RonctlCalls):
    """Against the API on its socket."""

    group = "governance"
    timeout = 120

    async def setUp(self) -> None:  # type: ignore[override]
        self.home = Path(tempfile.mkdtemp(prefix="ron-"))
        self.addCleanup(rmtree, self.home, True)
        runner = CliRunner()
        members = []
        for role in (OWNER, OFFICER, "custodian", "auditor"):
            path = self.home / f"{role}.key"
            runner.invoke(group, ["keygen", "--role", role, "--out", str(path)])
            members.append((role, json.loads(path.with_name(path.name + ".pub").read_text())["public"]))
        self.authority = Authority(RootKeys.generate(), audience=AUDIENCE, now=time.time)
        self.governance = Governance(reactor, time.time, Book(self.home / "book"), _nobody)
        self.governance.load(signer_set(members, 2, int(time.time())))
        await self.governance.settle()
        self.addCleanup(self.governance.stop)
        edge = Edge(authority=self.authority, metrics=Metrics(), reactor=reactor)
        self.site = make_site(edge, endpoints(self.governance))
        self.socket = self.home / "run" / "kms.sock"
        listener = UnixListener(reactor, self.socket, self.site, backlog=16)
        listener.listen()
        self.addCleanup(until, lambda: not self.site.channels)
        self.addCleanup(listener.stop)
        cap = self.home / "admin.cap"
        cap.write_text(self.authority.mint([Caveat("scope", "*")]))
        cap.chmod(0o600)

    def key(self, role: str) -> str:
        return str(self.home / f"{role}.key")

    async def propose(self, *more: str) -> str:
        words = [
            "--scope",
            "tenant:ACME",
            "--change",
            "pq_mode=and",
            "--rationale",
            "cutover",
            "--key",
            self.key(OWNER),
        ]
        done = await self.done("propose", *words, *more)
        self.assertEqual(done.code, 0, done.err)
        return done.lines[0]

    async def test_wrong_words(self) -> None:
        base = ["propose", "--scope", "tenant:ACME", "--rationale", "x", "--key", self.key(OWNER)]
        await self.refused(2, *base)
        await self.refused(2, *base, "--change", "pq_mode")
        self.assertIn("--action", await self.refused(3, *base, "--change", "colour=red"))
        await self.refused(3, *base, "--change", "pq_mode=maybe")
        await self.refused(3, *base, "--change", "pq_mode=and", "--expires", "8d")
        await self.refused(3, *base, "--change", "pq_mode=and", "--rationale", "")
        self.assertIn("keygen", await self.refused(3, *base[:-2], "--change", "pq_mode=and"))
        await self.refused(7, "show", "0192")
        self.assertEqual(len(self.governance.book), 1)

    async def test_from_proposal_to_effect(self) -> None:
        proposal = await self.propose("--attach", "https://ci/1", "--expires", "2h")
        wrong = await self.refused(3, "approve", proposal, "--role", OFFICER, "--key", self.key(OWNER))
        self.assertIn("decides as policy-owner", wrong)
        await self.done("approve", proposal, "--role", OFFICER, "--key", self.key(OFFICER))
        self.assertEqual((await self.said("show", proposal))["approvals"], 1)
        await self.refused(3, "execute", proposal)
        await self.done("approve", proposal, RON_GOVERNANCE_KEY=self.key("custodian"))
        executed = await self.said("execute", proposal)
        self.assertEqual(executed["state"], "executed")
        self.assertEqual(self.governance.pq_mode("ACME"), "and")
        shown = (await self.done("show", proposal)).out.decode()
        for words in ("pq_mode = and", "evidence   https://ci/1", "approve  custodian"):
            self.assertIn(words, shown)
        log = await self.done("log", "--since", "1h")
        self.assertEqual(
            [line.split()[2] for line in log.lines], ["genesis", "propose", "approve", "approve", "execute"]
        )
        self.assertEqual((await self.said("log"))["records"][-1]["hash"], self.governance.book.head)
        listed = await self.done("list", "--state", "executed")
        self.assertIn(proposal, listed.lines[0])
        self.assertEqual(len((await self.said("list"))["proposals"]), 1)
        self.assertIn(b"no proposals", (await self.done("list", "--state", "draft")).err)

    async def test_a_draft_taken_back(self) -> None:
        proposal = await self.propose("--draft")
        await self.refused(3, "approve", proposal, "--key", self.key(OFFICER))
        self.assertEqual((await self.said("submit", proposal, "--key", self.key(OWNER)))["state"], "pending")
        done = await self.said("reject", proposal, "--reason", "later", "--key", self.key(OWNER))
        self.assertEqual((done["state"], done["signatures"][-1]["reason"]), ("rejected", "later"))

    async def test_a_freeze(self) -> None:
        words = ["freeze", "--scope", "global", "--rationale", "leak", "--key", self.key(OWNER)]
        proposal = (await self.done(*words)).lines[0]
        self.assertIsNone(self.governance.frozen("ACME"))
        await self.done("approve", proposal, "--key", self.key(OFFICER))
        self.assertEqual(self.governance.frozen("ACME"), proposal)
        shown = (await self.done("list", "--signers")).out.decode()
        self.assertIn(f"FROZEN     global by {proposal}", shown)
        off = (await self.done(*words, "--off")).lines[0]
        await self.done("approve", off, "--key", self.key(OFFICER))
        self.assertIsNone(self.governance.frozen("ACME"))

    async def test_an_auditor(self) -> None:
        proposal = await self.propose()
        await self.refused(5, "approve", proposal, "--key", self.key("auditor"))
        await self.refused(3, "tiebreak", proposal, "--key", self.key("auditor"))
        subject = f"proposal:{proposal}"
        await self.done("dispute", subject, "--reason", "evidence?", "--key", self.key("auditor"))
        self.assertTrue((await self.said("show", proposal))["disputed"])
        view = await self.said("dispute", subject, "--resolve", "--reason", "found", "--key", self.key("auditor"))
        self.assertEqual(view["disputes"][0]["resolution"], "found")
        await self.refused(3, "dispute", "everything", "--reason", "x", "--key", self.key("auditor"))

    async def test_it_asks_before_it_signs(self) -> None:
        proposal = await self.propose()
        process = self.start("approve", proposal, "--key", self.key(OFFICER), tty=True)
        await process.shows(lambda: b"[y/N]" in process.out)
        self.assertIn(b"pq_mode for tenant:ACME: pq_mode=and (cutover)", process.out)
        process.transport.write(b"n\n")  # type: ignore[union-attr]
        self.assertNotEqual(await process.end(), 0)
        self.assertEqual((await self.said("show", proposal))["approvals"], 0)

    async def test_a_stranger(self) -> None:
        stranger = self.home / "stranger.key"
        CliRunner().invoke(group, ["keygen", "--role", OWNER, "--out", str(stranger)])
        proposal = await self.propose()
        await self.refused(3, "approve", proposal, "--key", str(stranger))
        words = ["--scope", "tenant:ACME", "--change", "pq_mode=and", "--rationale", "x", "--key", str(stranger)]
        await self.refused(5, "propose", *words)
        await self.refused(5, "list", RON_CAP=self.authority.mint([Caveat("scope", "kms:sign")]))
        await self.refused(4, "list", RON_HOME=str(self.home / "gone"))

    async def test_more_than_a_page(self) -> None:
        """The SDK goes on until it has all of them."""
        key = signing_key(Path(self.key(OWNER)), None)
        pool = connection_pool(reactor)
        self.addCleanup(pool.closeCachedConnections)
        token = (self.home / "admin.cap").read_text()
        service = Client(Api(reactor, unix_http(reactor, self.socket, pool), "http://kms", token))
        fields = {"action": "pq_mode", "scope": "tenant:ACME", "change": {"pq_mode": "and"}, "rationale": "x"}
        made = []
        for _ in range(105):
            shown = await service.propose(proposed(await service.standing(), key, fields, 3600))
            made.append(shown.id)
            await vote(service, "reject", shown.id, key)
        self.assertEqual([one.id for one in await service.proposals()], made[::-1])
        self.assertEqual(len(await service.proposals("rejected")), 105)
        self.assertEqual([one.seq for one in await service.log()], list(range(211)))
        api = governance_at(reactor, self.socket, None)
        self.assertEqual(api.base_url, "http://kms")


async def _nobody(_entry: object) -> None:
    """An audit log that takes everything."""


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def _other_pem() -> bytes:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    key = X25519PrivateKey.generate()
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
