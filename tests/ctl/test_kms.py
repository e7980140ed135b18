"""`ronctl kms` as an operator calls it, against the service behind its socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blake3 import blake3
from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from ron.ctl.kms import kms as group
from ron.ctl.kms import verdict_text
from ron.ctl.kms_keys import key, key_text
from ron.ctl.status import kms_text as status_text
from ron.proto.kms import Alg, KeyMaterialPublic, KeyView, PublicHalf, VerifyDetails, VerifyResponse
from tests.ctl.with_node import RonctlCalls
from tests.sdk.test_kms import WithKms
from tests.services.kms.world import UNKNOWN, bare


class Words(SynchronousTestCase):
    def test_a_verdict(self) -> None:
        held = VerifyDetails(checked=(Alg.ED25519, Alg.ML_DSA), satisfied_mode="and")
        good = VerifyResponse(ok=True, details=held, kid=UNKNOWN, cache_age_ms=1500)
        self.assertEqual(verdict_text(good), f"good: ed25519 and ml-dsa hold, mode and, by {UNKNOWN}, known for 1.5 s")
        bad = VerifyResponse(ok=False, details=VerifyDetails(checked=()))
        self.assertEqual(verdict_text(bad), "BAD: none of the signatures hold")

    def test_a_key(self) -> None:
        half = PublicHalf(alg=Alg.ED25519, pubkey_b64="AAAA")
        public = KeyMaterialPublic(alg=Alg.ED25519, pubkey_b64="AAAA", halves=(half,))
        shown = key_text(KeyView(kid=UNKNOWN, alg="ed25519", versions=("#v1",), public=public))
        self.assertIn("ed25519    AAAA", shown)

    def test_a_status(self) -> None:
        found = {
            "service": "ron-kms", "version": "1.0", "uptime_s": 5.4, "config_version": 2, "kms_url": "http://127.0.0.1:9446",
            "ready": True, "missing": [], "degraded": ["backend_ready"], "reasons": {"backend_ready": "away\x1b[2J"},
            "snapshot": None, "grpc_addr": "127.0.0.1:9445", "oap_addr": None,
        }  # fmt: skip
        shown = status_text(found)
        self.assertIn("ron-kms  ready, degraded, up 5 s, version 1.0, config version 2", shown)
        self.assertIn("http://127.0.0.1:9446/v1/kms  gRPC 127.0.0.1:9445", shown)
        self.assertIn("backend_ready: away", shown)
        self.assertNotIn("\x1b", shown)
        self.assertIn("the audit log is not open", shown)
        snapshot = {
            "backend": "file", "pq_mode": "or", "keys": 3, "audit_records": 9, "audit_last_checkpoint_age_s": None,
        }  # fmt: skip
        shown = status_text({**found, "ready": False, "snapshot": snapshot})
        self.assertIn("NOT READY", shown)
        self.assertIn("keys     3 in file, verify mode or\nlog      9 records, not signed yet", shown)

    def test_every_command_has_help_with_examples(self) -> None:
        subcommands = [["key", name] for name in key.commands]
        for command in (["sign"], ["verify"], ["wrap"], ["unwrap"], ["attest"], ["passphrase", "change"], *subcommands):
            found = CliRunner().invoke(group, [*command, "--help"])
            self.assertEqual(found.exit_code, 0)
            self.assertIn("ronctl kms", found.output)


class KmsCalls(WithKms, RonctlCalls):
    """`ronctl kms …` as a process against a service behind its socket."""

    group = "kms"

    async def setUp(self) -> None:
        await super().setUp()
        self.cap = self.run / "admin.cap"
        self.cap.write_text(self.bearer(("scope", "*")))
        self.cap.chmod(0o600)
        self.home = self.run

    def file(self, content: bytes, name: str = "payload") -> str:
        path: Path = self.run / name
        path.write_bytes(content)
        return str(path)

    async def key(self, purpose: str = "audit", alg: str = "hybrid") -> str:
        words = ("key", "create", "--tenant", "core", "--purpose", purpose, "--alg", alg)
        return str((await self.said(*words))["kid"])

    async def refused_by(self, code: int, *words: str) -> None:
        process = await self.done_by(*words)
        self.assertEqual(process.code, code, (words, process.err))

    async def done_by(self, *words: str) -> Any:
        process = self.start(*words)
        await process.end()
        return process

    async def said(self, *words: str) -> Any:
        process = await self.done_by(*words, "--json")
        self.assertEqual(process.code, 0, process.err)
        return json.loads(process.out)


class Commands(KmsCalls):
    async def test_what_cannot_be(self) -> None:
        sigs = self.file(b"[]", "sigs")
        for code, *words in (
            (3, "sign", "--kid", "x", self.file(b"x")),
            (3, "sign", "--kid", UNKNOWN, "--payload-b3", "7f"),
            (3, "sign", "--kid", UNKNOWN, "--payload-b3", "7f" * 32, self.file(b"x")),
            (3, "sign", "--kid", UNKNOWN, str(self.run / "none")),
            (7, "sign", "--kid", UNKNOWN, self.file(b"x")),
            (3, "verify", "--sigs", self.file(b"{", "broken"), self.file(b"x")),
            (3, "verify", "--sigs", sigs, "--payload-b3", "7f" * 32),
            (3, "key", "create", "--tenant", "core", "--purpose", "audit", "--hints", "[]"),
            (2, "key", "create", "--tenant", "core", "--purpose", "audit", "--alg", "rsa"),
            (2, "sign", self.file(b"x")),
            (5, "key", "destroy", UNKNOWN.replace("core", "ron-kms"), "--proposal", "p", "--yes"),
            (4, "key", "list", "--control", "unix:/nowhere"),
        ):
            await self.refused_by(int(code), *map(str, words))

    async def test_sign_and_verify_a_file(self) -> None:
        kid = await self.key()
        path = self.file(b"hello world")
        signed = await self.said("sign", "--kid", bare(kid), path)
        self.assertEqual((signed["kid"], len(signed["sigs"])), (kid, 2))
        sigs = self.file(json.dumps(signed).encode(), "sigs")
        found = await self.said("verify", "--kid", kid, path, "--sigs", sigs, "--mode", "and")
        self.assertTrue(found["ok"])
        hashed = blake3(b"hello world").hexdigest()
        process = await self.done_by("verify", "--sigs", sigs, "--payload-b3", hashed)
        self.assertIn("good: ed25519 and ml-dsa hold", process.out.decode())
        process = await self.done_by("verify", "--sigs", sigs, self.file(b"other", "other"))
        self.assertEqual((process.code, process.out.decode().split(":")[0]), (1, "BAD"))
        bare_sigs = self.file(json.dumps(signed["sigs"]).encode(), "bare")
        self.assertTrue((await self.said("verify", "--kid", kid, path, "--sigs", bare_sigs))["ok"])

    async def test_keys(self) -> None:
        kid = await self.key(alg="ed25519")
        turned = await self.said("key", "rotate", kid)
        self.assertEqual(turned, {"kid": bare(kid) + "#v2", "previous": kid})
        shown = await self.said("key", "show", kid)
        self.assertEqual((shown["kid"], shown["versions"]), (kid, ["#v1", "#v2"]))
        listed = await self.said("key", "list", "--tenant", "core")
        self.assertEqual([one["kid"] for one in listed["keys"]], [bare(kid) + "#v2"])
        self.assertIn(b"versions 2", (await self.done_by("key", "list")).out)
        self.assertIn(b"lives in   software-inmem", (await self.done_by("key", "show", kid)).out)
        self.assertIn(b"no evidence", (await self.done_by("attest")).out)
        self.votes.allowed["p"] = ("destroy_key", "tenant:core", {"kid": kid})
        self.assertIn(b"destroyed", (await self.done_by("key", "destroy", kid, "--proposal", "p", "--yes")).out)

    async def test_wrapped(self) -> None:
        kid = await self.key("kem")
        process = await self.done_by("wrap", "--kid", kid, self.file(b"\0" * 32, "key"))
        wrapped = self.file(process.out, "wrapped")
        opened = await self.done_by("unwrap", "--kid", kid, wrapped)
        self.assertEqual(opened.out, b"\0" * 32)
        made = await self.said("wrap", "--kid", kid, "--size", "32", "--mode", "pq")
        self.assertEqual(made["alg"], "ml-kem")
