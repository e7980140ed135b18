"""The invariants of the specification (specs/ron-kms.md, IDB §1), each by its number, over a service as it runs."""

from __future__ import annotations

import base64
import json
import os
import re
from typing import Any, ClassVar

from ron.crypto.merkle import leaf_hash, verify_inclusion
from ron.kernel.config import convert
from ron.proto.kms import Alg, parse_kid
from ron.services.kms import ports
from ron.services.kms.backends.inmem import InMemoryBackend
from ron.services.kms.backends.multi import MultiBackend
from ron.services.kms.config import KmsConfig
from tests.services.kms.world import B3, Faulty, World, at, bare, op_id

SECRET_WORDS = ("private", "seed", "secret", "passphrase")


class Memory(World):
    """With everything in memory."""

    async def test_i01_private_halves_are_never_shown(self) -> None:
        """No field of any answer could hold one, and no route asks for one."""
        kid, kem = await self.create("hybrid"), await self.create("hybrid", purpose="kem")
        answers = [
            await self.done("GET", at(kid)),
            await self.done("GET", "/keys"),
            await self.sign(kid),
            await self.done("GET", f"/attest?kid={at(kid).removeprefix('/keys/')}"),
            await self.done("POST", "/wrap", {"kid": kem, "size": 32}),
        ]
        for answer in answers:
            # a public half of three kilobytes spells every short word now and then
            said = re.sub(r'"[A-Za-z0-9+/=]{40,}"', '""', json.dumps(answer)).lower()
            for word in SECRET_WORDS:
                self.assertNotIn(word, said)
        self.assertEqual((await self.ask("GET", f"{at(kid)}/export")).status, 400)
        calls = {name for name in vars(ports.Backend) if not name.startswith("_")}
        self.assertEqual(calls, {"open", "close", "probe", "held", "generate", "sign", "unwrap", "destroy", "attest"})

    async def test_i02_every_operation_is_in_the_log(self) -> None:
        """With all its fields, in order for each key, and provably in the tree."""
        self.token = self.bearer(("scope", "kms:*"))
        kid, kem = await self.create(op_id=op_id(1)), await self.create("hybrid", purpose="kem")
        sigs = (await self.sign(kid, op_id=op_id(2)))["sigs"]
        await self.verify(sigs, kid)
        made = await self.done("POST", "/wrap", {"kid": kem, "size": 32})
        await self.done("POST", "/unwrap", {"kid": kem, "wrapped_b64": made["wrapped_b64"]})
        await self.done("POST", at(bare(kid)) + "/rotate")
        await self.ask("POST", "/sign", {"kid_or_set": {"kid": bare(kid) + "#v9"}, "payload_b3": B3})
        await self.until(lambda: len(self.records()) >= 9, "the informative ones")
        records = self.records()
        told = [(one["op"], one["result"]) for one in records]
        for op in ("create", "sign", "wrap", "unwrap", "rotate"):
            self.assertIn((op, "ok"), told)
        self.assertIn(("verify", "ok"), told)
        self.assertIn(("sign", "NotFound"), told)
        signed = next(one for one in records if one["op"] == "sign" and one["result"] == "ok")
        self.assertEqual((signed["kid"], signed["tenant"], signed["purpose"]), (kid, "core", "audit"))
        self.assertEqual((signed["alg"], signed["input_b3"], signed["op_id"]), ("ed25519+ml-dsa", B3, op_id(2)))
        self.assertEqual((len(signed["actor"]), signed["attestation"]), (32, "software-inmem"))
        own = [one["kid_seq"] for one in records if bare(one.get("kid", "")) == bare(kid)]
        self.assertEqual(own, list(range(1, len(own) + 1)))
        log = self.service.log
        checkpoint = await log.checkpoint()
        for index, leaf in enumerate(log.entries(0, 1000)):
            path = log.inclusion(index, checkpoint.size)
            self.assertTrue(verify_inclusion(index, checkpoint.size, leaf_hash(leaf), path, checkpoint.root))

    async def test_i03_a_capability_or_nothing(self) -> None:
        kid = await self.create()
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3}
        for token in (None, "Bearer", self.bearer(("scope", "kms:verify")), self.bearer(("scope", "mailbox:*"))):
            self.token = token
            self.assertIn((await self.ask("POST", "/sign", body)).status, {401, 403})
        self.assertEqual([one for one in self.backend.signed if one[0].tenant == "core"], [])
        self.token = self.bearer(("scope", "kms:sign"), ("rps", "1"))
        statuses = [(await self.ask("POST", "/sign", body)).status for _ in range(6)]
        self.assertIn(429, statuses)

    async def test_i04_custody_makes_no_policy(self) -> None:
        """What it goes by is the config and what a quorum decided; hints are kept and shown, and mean nothing here."""
        kid = await self.create(policy_hints={"forbid_sign": True, "verify_mode": "pq_only"})
        self.assertEqual(len((await self.sign(kid))["sigs"]), 2)
        self.votes.modes["core"] = "pq_only"
        sigs = (await self.sign(kid))["sigs"]
        self.assertFalse((await self.verify(sigs[:1], kid))["ok"])
        self.assertTrue((await self.verify(sigs, kid))["ok"])
        await self.refused(400, "Unsupported", "POST", "/verify", {
            "payload_b3": B3, "sigs": sigs, "kid_or_set": {"kid": kid}, "policy": {"mode": "or"}})  # fmt: skip

    async def test_i05_old_versions_verify_on(self) -> None:
        kid = await self.create()
        signed = [(kid, (await self.sign(kid))["sigs"])]
        for number in range(2, 6):
            made = await self.done("POST", at(bare(kid)) + "/rotate")
            self.assertEqual((made["kid"], made["previous"]), (f"{bare(kid)}#v{number}", signed[-1][0]))
            signed.append((made["kid"], (await self.sign(bare(kid)))["sigs"]))
        for version, sigs in signed:
            self.assertTrue((await self.verify(sigs, version))["ok"])
            self.assertEqual((await self.verify(sigs, bare(kid)))["kid"], version)
        self.assertFalse((await self.verify(signed[0][1], signed[1][0]))["ok"])
        self.assertEqual((await self.done("GET", at(bare(kid))))["versions"], [f"#v{n}" for n in range(1, 6)])

    async def test_i07_hybrid(self) -> None:
        """A classical key has its companion from the start, so that a phase is a matter of config."""
        kid = await self.create("ed25519")
        self.assertEqual([one["alg"] for one in (await self.sign(kid))["sigs"]], ["ed25519", "ml-dsa"])
        self.set(pq={"produce_hybrid": False, "verify_mode": "or"})
        self.assertEqual([one["alg"] for one in (await self.sign(kid))["sigs"]], ["ed25519"])
        hybrid = await self.create("hybrid")
        self.assertEqual(len((await self.sign(hybrid))["sigs"]), 2)
        asked = await self.sign(kid, policy={"produce_hybrid": True})
        self.assertEqual(len(asked["sigs"]), 2)

    async def test_i07_a_key_without_a_second_half(self) -> None:
        self.set(service={"allowed_algs": ["ed25519"]}, pq={"produce_hybrid": False, "verify_mode": "or"})
        kid = await self.create("ed25519")
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3, "policy": {"produce_hybrid": True}}
        await self.refused(400, "Unsupported", "POST", "/sign", body)
        await self.refused(400, "Unsupported", "POST", "/keys", {"tenant": "a", "purpose": "b", "alg": "hybrid"})

    async def test_i08_no_secret_in_a_representation(self) -> None:
        await self.create()
        for thing in (self.service.room.backend, self.backend.inner, self.service.room):
            self.assertNotIn("seed", repr(thing).lower())

    async def test_i09_tenants_do_not_see_one_another(self) -> None:
        ours, theirs = await self.create(tenant="core"), await self.create(tenant="acme")
        sigs = (await self.sign(theirs))["sigs"]
        self.token = self.bearer(("scope", "kms:*"), ("tenant", "core"))
        bodies = {"kid_or_set": {"kid": theirs}, "payload_b3": B3}
        unknown = theirs.replace(parse_kid(theirs).uuid[:8], "00000000")
        for kid in (theirs, unknown):
            # whether there is such a key, nobody learns
            message = await self.refused(403, "NoCapability", "POST", "/sign", {**bodies, "kid_or_set": {"kid": kid}})
            self.assertIn("another tenant", message)
            await self.refused(403, "NoCapability", "GET", at(kid))
            await self.refused(403, "NoCapability", "POST", at(bare(kid)) + "/rotate")
            await self.refused(403, "NoCapability", "DELETE", at(kid), {"proposal": "x"})
            await self.refused(403, "NoCapability", "POST", "/unwrap", {"kid": kid, "wrapped_b64": "AAAA"})
        await self.refused(403, "NoCapability", "POST", "/verify", {**bodies, "sigs": sigs})
        await self.refused(403, "NoCapability", "POST", "/keys", {"tenant": "acme", "purpose": "x", "alg": "ed25519"})
        mixed = {"kid_or_set": {"kid_set": [ours, theirs]}, "payload_b3": B3}
        await self.refused(403, "NoCapability", "POST", "/sign", mixed)
        self.assertEqual([one["kid"] for one in (await self.done("GET", "/keys"))["keys"]], [ours])
        await self.refused(403, "NoCapability", "GET", "/keys?tenant=acme")

    async def test_i09_one_op_id_of_two_tenants(self) -> None:
        first = await self.create(tenant="core", op_id=op_id(7))
        self.assertNotEqual(first, await self.create(tenant="acme", op_id=op_id(7)))

    async def test_i10_the_clock(self) -> None:
        """A wall clock that jumps stops what signs, and nothing that verifies."""
        kid = await self.create()
        sigs = (await self.sign(kid))["sigs"]
        self.ahead_s = 3600.0
        await self.until(lambda: "clock_ok" in self.health.snapshot().missing, "the jump to be seen")
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3}
        message = await self.refused(503, "StoreUnavailable", "POST", "/sign", body)
        self.assertIn("the clock jumped by +3600.0 s", message)
        self.assertTrue((await self.verify(sigs, kid))["ok"])
        self.assertEqual(self.value("kms_reject_total", reason="clock_skew"), 1)
        self.ahead_s = 0.0
        await self.until(lambda: self.health.snapshot().ready, "the clock to be right again")
        await self.sign(kid)

    async def test_i10_randomness_of_the_system(self) -> None:
        self.patch(os, "urandom", lambda count: bytes(count))
        self.set(entropy_time={"rng_reseed_interval_ops": 1})
        self.service.telemetry.total += 10
        await self.until(lambda: "rng_ok" in self.health.snapshot().missing, "it to be noticed")

    async def test_i11_in_memory_nothing_is_written(self) -> None:
        await self.sign(await self.create())
        self.assertEqual([path for path in self.home.rglob("*") if path.is_file()], [])

    async def test_i12_evidence_goes_with_signatures(self) -> None:
        self.backend.evidence = "cXVvdGU="
        kid = await self.create()
        self.assertEqual((await self.sign(kid))["attestation"], {"class": "test-device", "evidence": "cXVvdGU="})
        self.set(security={"attest_require": "never"})
        self.assertNotIn("attestation", await self.sign(kid))

    async def test_i12_required_and_missing(self) -> None:
        kid = await self.create()
        self.set(security={"attest_require": "required"})
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3}
        await self.refused(403, "AttestationMissing", "POST", "/sign", body)
        await self.until(lambda: "attestation_ready" in self.health.snapshot().missing, "readiness to say so")
        self.assertGreaterEqual(self.value("kms_reject_total", reason="attest_missing"), 1)

    async def test_i13_unknown_fields_and_sizes(self) -> None:
        kid = await self.create()
        for body in ({"kid_or_set": {"kid": kid}, "payload_b3": B3, "x": 1}, {"kid_or_set": kid * 9, "payload_b3": B3}):
            await self.refused(400, "BadRequest", "POST", "/sign", body)
        await self.refused(400, "BadRequest", "POST", at(bare(kid)) + "/rotate", {"x": 1})
        await self.refused(400, "BadRequest", "DELETE", at(kid), {"proposal": "p", "force": True})

    async def test_i14_an_op_id_is_one_act(self) -> None:
        body = {"tenant": "core", "purpose": "audit", "alg": "ed25519", "op_id": op_id(1)}
        first = await self.done("POST", "/keys", body)
        self.assertEqual(await self.done("POST", "/keys", body), first)
        await self.refused(409, "Conflict", "POST", "/keys", {**body, "alg": "hybrid"})
        kid = first["kid"]
        turned = await self.done("POST", at(bare(kid)) + "/rotate", {"op_id": op_id(2)})
        self.assertEqual(await self.done("POST", at(bare(kid)) + "/rotate", {"op_id": op_id(2)}), turned)
        self.assertEqual(len((await self.done("GET", at(bare(kid))))["versions"]), 2)
        await self.refused(409, "Conflict", "POST", at(bare(kid)) + "/rotate", {"op_id": op_id(1)})
        signed = await self.sign(kid, op_id=op_id(3))
        self.assertEqual(await self.sign(kid, op_id=op_id(3)), signed)
        other = {"kid_or_set": {"kid": kid}, "payload_b3": "80" * 32, "op_id": op_id(3)}
        await self.refused(409, "Conflict", "POST", "/sign", other)

    async def test_i14_what_failed_may_be_tried_again(self) -> None:
        body = {"tenant": "core", "purpose": "audit", "alg": "ed25519", "op_id": op_id(1)}
        self.backend.away = True
        await self.refused(503, "StoreUnavailable", "POST", "/keys", body)
        self.backend.away = False
        await self.until(lambda: not self.health.snapshot().degraded, "the backend to be back")
        made = await self.done("POST", "/keys", body)
        shown = (await self.done("GET", "/keys?tenant=core"))["keys"]
        self.assertEqual([one["kid"] for one in shown], [made["kid"]])

    async def test_i15_algorithms_on_the_list_only(self) -> None:
        kid = await self.create("ed25519")
        self.set(service={"allowed_algs": ["x25519"]})
        await self.refused(400, "Unsupported", "POST", "/keys", {"tenant": "a", "purpose": "b", "alg": "ed25519"})
        await self.refused(400, "Unsupported", "POST", "/sign", {"kid_or_set": {"kid": kid}, "payload_b3": B3})
        await self.refused(400, "Unsupported", "POST", at(bare(kid)) + "/rotate")
        self.assertEqual({str(one) for one in Alg}, {"ed25519", "ml-dsa", "x25519", "ml-kem"})

    async def test_i16_no_input_in_metrics(self) -> None:
        kid = await self.create()
        await self.sign(kid)
        shown = self.metrics.render().decode()
        self.assertIn('kms_ops_total{alg="ed25519",op="sign",result="ok"} 1.0', shown)
        for text in (kid, bare(kid), parse_kid(kid).uuid, B3, str(self.token)):
            self.assertNotIn(text, shown)

    async def test_i17_a_rate_for_everybody(self) -> None:
        kid = await self.create()
        self.set(security={"sign_rate_limit_rps": 5})
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3}
        statuses = [(await self.ask("POST", "/sign", body)).status for _ in range(30)]
        self.assertIn(429, statuses)
        other = await self.create(tenant="acme")
        answer = await self.ask("POST", "/sign", {"kid_or_set": {"kid": other}, "payload_b3": B3})
        self.assertEqual(answer.status, 200, "a newcomer has one to begin with")

    async def test_i18_verifying_without_the_backend(self) -> None:
        """And without a log that takes records."""
        kid = await self.create()
        sigs = (await self.sign(kid))["sigs"]
        self.backend.away = True
        await self.until(lambda: "backend_ready" in self.health.snapshot().degraded, "the outage to be seen")
        answer = await self.ask("POST", "/verify", {"payload_b3": B3, "sigs": sigs, "kid_or_set": {"kid": kid}})
        self.assertTrue(answer.body["ok"])
        self.assertEqual(answer.headers["x-kms-cache-age"], str(answer.body["cache_age_ms"]))
        self.assertTrue(self.health.snapshot().ready)
        self.assertEqual((await self.done("GET", at(kid)))["kid"], kid)

    async def test_i18_not_for_ever(self) -> None:
        kid = await self.create()
        sigs = (await self.sign(kid))["sigs"]
        self.set(audit={"verify_cache_ttl_ms": 20})
        self.backend.away = True
        await self.until(lambda: "verify_cache_ok" in self.health.snapshot().missing, "the hard limit")
        body = {"payload_b3": B3, "sigs": sigs, "kid_or_set": {"kid": kid}}
        await self.refused(503, "StoreUnavailable", "POST", "/verify", body)
        self.assertEqual(self.value("verify_cache_expired_total"), 1)
        self.backend.away = False
        await self.until(lambda: self.health.snapshot().ready and not self.health.snapshot().degraded, "all to be well")
        self.assertNotIn("cache_age_ms", await self.done("POST", "/verify", body))
        self.assertEqual(self.value("kms_backend_reconnects_total", backend="inmem"), 1)

    async def test_i19_signing_says_that_it_cannot(self) -> None:
        kid, kem = await self.create(), await self.create("hybrid", purpose="kem")
        made = await self.done("POST", "/wrap", {"kid": kem, "size": 32})
        self.backend.away = True
        await self.until(lambda: "backend_ready" in self.health.snapshot().degraded, "the outage to be seen")
        for path, body in (
            ("/sign", {"kid_or_set": {"kid": kid}, "payload_b3": B3}),
            ("/unwrap", {"kid": kem, "wrapped_b64": made["wrapped_b64"]}),
            ("/keys", {"tenant": "core", "purpose": "audit", "alg": "ed25519"}),
            (at(bare(kid)) + "/rotate", {}),
        ):
            answer = await self.ask("POST", path, body)
            self.assertEqual((answer.status, answer.code), (503, "StoreUnavailable"), path)
            self.assertTrue(answer.body["error"]["retryable"])
            self.assertIn(int(answer.headers["retry-after"]), range(1, 6))

    def set(self, **sections: dict[str, Any]) -> None:
        """As a reload of the config would."""
        old = self.wishes
        self.wishes = convert({"security": {"sign_rate_limit_rps": 100_000}, **sections}, KmsConfig)
        self.service.apply(old, self.wishes)


class Several(World):
    """Two backends, of which the first signs."""

    fallback = False

    def make_backend(self) -> ports.Backend:
        self.first, self.second = Faulty(InMemoryBackend(allow_unlocked=True)), InMemoryBackend(allow_unlocked=True)
        return MultiBackend([self.first, self.second], allow_sign_fallback=self.fallback)

    async def test_i20_nobody_signs_in_the_place_of_the_first(self) -> None:
        """Not even where the other has a key of that name."""
        kid = await self.create("ed25519")
        sigs = (await self.sign(kid))["sigs"]
        self.second.generate(parse_kid(kid), [Alg.ED25519, Alg.ML_DSA])
        self.first.away = True
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3}
        answer = await self.ask("POST", "/sign", body)
        self.assertIn((answer.status, answer.code), {(503, "StoreUnavailable"), (409, "Conflict")})
        self.assertTrue((await self.verify(sigs, kid))["ok"])
        self.first.away = False
        await self.until(lambda: not self.health.snapshot().degraded, "the first to be back")
        await self.sign(kid)


class SeveralWithFallback(Several):
    """Another key of that name is no copy: the public halves differ."""

    fallback = True


class OnDisk(World):
    """What has to outlive the process."""

    on_disk = True
    sections: ClassVar[dict[str, Any]] = {}

    async def test_i01_nothing_on_disk_is_a_key(self) -> None:
        """None of the randomness that keys were made of, in any file, in any spelling."""
        await self.create("hybrid")
        await self.create("hybrid", purpose="kem")
        await self.end()
        self.assertGreater(len(self.drawn), 4)
        files = [path for path in self.home.rglob("*") if path.is_file()]
        self.assertGreater(len(files), 5)
        for path in files:
            self.assertEqual(path.stat().st_mode & 0o077, 0, path)
            content = path.read_bytes()
            for seed in self.drawn:
                for text in (seed, base64.b64encode(seed), seed.hex().encode(), base64.urlsafe_b64encode(seed)):
                    self.assertNotIn(text, content, path)
        await self.begin()

    async def test_i06_an_older_store(self) -> None:
        """Writes are refused, verifying is not."""
        kid = await self.create()
        sigs = (await self.sign(kid))["sigs"]
        await self.end()
        store = self.home / "kms" / "kms.sqlite3"
        older = store.read_bytes()
        await self.begin()
        await self.done("POST", at(bare(kid)) + "/rotate")
        await self.end()
        store.write_bytes(older)
        await self.begin()
        snapshot = self.health.snapshot()
        self.assertIn("audit_ready", snapshot.missing)
        self.assertIn("older than the audit log", snapshot.reasons["audit_ready"])
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3}
        await self.refused(503, "StoreUnavailable", "POST", "/sign", body)
        await self.refused(503, "StoreUnavailable", "POST", at(bare(kid)) + "/rotate")
        self.assertTrue((await self.verify(sigs, kid))["ok"])
        self.assertGreaterEqual(self.value("kms_audit_integrity_failed_total"), 1)
        # what was recorded meanwhile must not teach the next start that all is as it was
        await self.again()
        self.assertIn("older than the audit log", self.health.snapshot().reasons["audit_ready"])
        await self.refused(503, "StoreUnavailable", "POST", "/sign", body)

    async def test_i06_an_older_custody(self) -> None:
        """A whole copy of the key store that is consistent in itself."""
        kid = await self.create()
        await self.end()
        sealed = self.home / "sealed"
        older = {path: path.read_bytes() for path in sealed.iterdir() if path.is_file()}
        await self.begin()
        await self.create()
        await self.end()
        for path in list(sealed.iterdir()):
            if path.is_file() and path not in older:
                path.unlink()
        for path, content in older.items():
            path.write_bytes(content)
        await self.begin()
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3}
        for _ in range(2):
            self.assertIn("audit_ready", self.health.snapshot().missing)
            await self.refused(503, "StoreUnavailable", "POST", "/sign", body)
            await self.again()

    async def test_i06_the_end_of_the_log_is_gone(self) -> None:
        kid = await self.create()
        sigs = (await self.sign(kid))["sigs"]
        await self.end()
        for path in (self.home / "audit" / "leaves").iterdir():
            lines = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join(lines[:-1]))
        await self.begin()
        self.assertIn("audit_ready", self.health.snapshot().missing)
        await self.refused(503, "StoreUnavailable", "POST", "/sign", {"kid_or_set": {"kid": kid}, "payload_b3": B3})
        self.assertTrue((await self.verify(sigs, kid))["ok"])
        self.assertGreaterEqual(self.value("kms_audit_integrity_failed_total"), 1)

    async def test_i11_keys_and_log_are_there_again(self) -> None:
        kid = await self.create("hybrid")
        sigs = (await self.sign(kid))["sigs"]
        size = self.service.log.size
        await self.again()
        self.assertTrue(self.health.snapshot().ready, self.health.snapshot())
        self.assertTrue((await self.verify(sigs, kid))["ok"])
        self.assertEqual((await self.sign(kid))["kid"], kid)
        self.assertGreater(self.service.log.size, size)

    async def test_i14_over_a_restart(self) -> None:
        body = {"tenant": "core", "purpose": "audit", "alg": "ed25519", "op_id": op_id(1)}
        self.token = token = self.bearer(("scope", "*"))
        first = await self.done("POST", "/keys", body)
        turned = await self.done("POST", at(bare(first["kid"])) + "/rotate", {"op_id": op_id(2)})
        await self.again()
        self.token = token
        self.assertEqual(await self.done("POST", "/keys", body), first)
        self.assertEqual(await self.done("POST", at(bare(first["kid"])) + "/rotate", {"op_id": op_id(2)}), turned)
        await self.refused(409, "Conflict", "POST", "/keys", {**body, "purpose": "other"})
        self.assertEqual(len((await self.done("GET", "/keys?tenant=core"))["keys"]), 1)

    async def test_i18_a_start_without_the_backend(self) -> None:
        """What the store knows verifies from the first moment."""
        kid = await self.create()
        sigs = (await self.sign(kid))["sigs"]
        await self.end()
        self.patch(type(self), "before_start", lambda world: setattr(world.backend, "away", True))
        await self.begin()
        self.assertIn("backend_ready", self.health.snapshot().missing)
        body = {"payload_b3": B3, "sigs": sigs, "kid_or_set": {"kid": kid}}
        self.assertTrue((await self.done("POST", "/verify", body))["ok"])
        await self.refused(503, "StoreUnavailable", "POST", "/sign", {"kid_or_set": {"kid": kid}, "payload_b3": B3})
        self.backend.away = False
        await self.until(lambda: self.health.snapshot().ready, "the backend to be opened")
        await self.sign(kid)
