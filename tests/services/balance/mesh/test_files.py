"""What a node has on disk: damaged files are named, nothing is open to others, an invitation is whole or refused."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
from nacl.signing import SigningKey
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import x509
from ron.kernel import HealthState, Metrics
from ron.proto.errors import ErrorCode, RonError
from ron.services.balance.mesh.entries import write
from ron.services.balance.mesh.files import NodeFiles, accept, found, invitation
from ron.services.balance.mesh.mesh import MeshService
from ron.services.balance.mesh.tokens import new_token
from tests.services.balance.mesh.cluster import CA, LOOPBACK, OTHER_CA

SEEDS = ("10.0.0.1:9470",)


class OnDisk(SynchronousTestCase):
    """One node's directory."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.files = found(self.directory, "a", CA)

    def refused(self, code: ErrorCode, act: object, *arguments: object) -> RonError:
        error = self.assertRaises(RonError, act, *arguments)
        self.assertEqual(code, error.code)
        return error

    def test_no_node(self) -> None:
        error = self.refused(ErrorCode.NOT_FOUND, NodeFiles.open, Path(self.mktemp()))
        self.assertIn("ronctl balance", error.hint or "")

    def test_a_node_already(self) -> None:
        self.refused(ErrorCode.CONFLICT, found, self.directory, "a", CA)
        self.refused(ErrorCode.CONFLICT, accept, self.directory, invitation(self.files, "b", CA, SEEDS))

    def test_damaged(self) -> None:
        for name, content in (
            ("node.json", b"{"),
            ("node.json", b'{"name":"a","cluster":"","other":1}'),
            ("token.json", b'{"version":0,"secret":""}'),
            ("mesh.key", b"00\n"),
            ("mesh.key", b"\xff\xfe"),
        ):
            path = self.directory / name
            before = path.read_bytes()
            path.write_bytes(content)
            error = self.refused(ErrorCode.CONFLICT, NodeFiles.open, self.directory)
            self.assertIn(name, error.message)
            path.write_bytes(before)
        (self.directory / "run").write_bytes(b"-1")
        (self.directory / "run").chmod(0o600)
        self.refused(ErrorCode.CONFLICT, self.files.next_run, 1)

    def test_missing(self) -> None:
        for name in ("token.json", "mesh.key"):
            path = self.directory / name
            before = path.read_bytes()
            path.unlink()
            self.assertIn(name, self.refused(ErrorCode.NOT_FOUND, NodeFiles.open, self.directory).message)
            path.write_bytes(before)
            path.chmod(0o600)

    def test_open_to_others(self) -> None:
        (self.directory / "mesh.key").chmod(0o644)
        self.assertIn("chmod", self.assertRaises(RonError, NodeFiles.open, self.directory).hint or "")

    def test_closed_to_others(self) -> None:
        self.files.next_run(1)
        self.files.keep_book(())
        self.assertEqual(0o700, stat.S_IMODE(self.directory.stat().st_mode))
        for path in self.directory.iterdir():
            self.assertEqual(0o600, stat.S_IMODE(path.stat().st_mode), path)

    def test_runs_only_grow(self) -> None:
        self.assertEqual(1000, self.files.next_run(1000))
        self.assertEqual(1001, self.files.next_run(10))
        self.assertEqual(5000, NodeFiles.open(self.directory).next_run(5000))

    def test_the_book(self) -> None:
        self.assertEqual((), self.files.read_book())
        entries = (write("promote", b"\x80", 1, "a", self.files.signing, self.files.cluster),)
        self.files.keep_book(entries)
        self.assertEqual(entries, self.files.read_book())

    def test_a_damaged_book_is_named_at_once(self) -> None:
        signing = SigningKey.generate()
        self.files.keep_book((write("promote", b"\x80", 1, "a", signing, self.files.cluster),))
        path = self.directory / "book.json"
        good = path.read_bytes()
        for content in (b"", b"{}", good[:-5], good.replace(b'"promote"', b'"promotf"'), b"\xff", b"[" * 100_000):
            path.write_bytes(content)
            error = self.refused(ErrorCode.CONFLICT, self.service)
            self.assertIn("book.json", error.message)
            self.assertIn("remove it", error.hint or "")

    def service(self) -> MeshService:
        return MeshService(Clock(), files=self.files, listen=LOOPBACK, health=HealthState(), metrics=Metrics())

    def test_founded_once(self) -> None:
        self.assertTrue(NodeFiles.open(self.directory).founder)
        self.files.founded()
        self.assertFalse(NodeFiles.open(self.directory).founder)


class Invitations(SynchronousTestCase):
    """The way of a new node into the cluster."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.files = found(self.directory / "a", "a", CA)

    def bad(self, act: object, *arguments: object) -> None:
        self.assertEqual(ErrorCode.BAD_REQUEST, self.assertRaises(RonError, act, *arguments).code)

    def test_that_leads_nowhere(self) -> None:
        self.bad(invitation, self.files, "b", CA, ())
        self.bad(invitation, self.files, "b", CA, ("no address",))
        self.bad(invitation, self.files, "B!", CA, SEEDS)
        self.bad(invitation, self.files, "b", OTHER_CA, SEEDS)

    def test_damaged(self) -> None:
        text = invitation(self.files, "b", CA, SEEDS)
        plain = msgspec.json.decode(text)
        certificate = x509.certificate_pem(x509.issue(OTHER_CA, "b").certificate).decode()
        for bad in (
            "",
            text[:-3],
            "[" * 100_000,
            msgspec.json.encode(plain | {"more": 1}).decode(),
            msgspec.json.encode(plain | {"format": "ron-balance-invitation/2"}).decode(),
            msgspec.json.encode(plain | {"name": "c"}).decode(),
            msgspec.json.encode(plain | {"certificate": certificate}).decode(),
            msgspec.json.encode(plain | {"ca": "?"}).decode(),
        ):
            self.bad(accept, self.directory / "b", bad)
        self.assertFalse((self.directory / "b").exists())

    def test_accepted(self) -> None:
        files = accept(self.directory / "b", invitation(self.files, "b", CA, SEEDS))
        again = NodeFiles.open(self.directory / "b")
        for each in (files, again):
            self.assertEqual(
                ("b", self.files.cluster, SEEDS, False), (each.name, each.cluster, each.seeds, each.founder)
            )
            self.assertEqual(self.files.token, each.token)
        self.assertEqual(files.signing, again.signing)
        self.assertNotEqual(self.files.signing, files.signing)

    def test_neither_token_shows_itself(self) -> None:
        token = new_token()
        self.assertNotIn(token.secret.hex(), repr(token))
        self.assertEqual("<Token 1>", repr(token))
