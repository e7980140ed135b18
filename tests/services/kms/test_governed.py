"""K-G1 to K-G8 of the specification (GOVERNANCE §1), each by its number, over a service as it runs.

K-G4 is in governance/test_quorum.py: it takes people who sign.
"""

from __future__ import annotations

import base64
import time
from typing import Any

from ron.crypto.merkle import leaf_hash, verify_inclusion
from ron.kernel.config import convert
from ron.services.kms.config import KmsConfig
from tests.services.kms.world import B3, World, at, bare


class Governed(World):
    async def test_kg1_no_key_from_elsewhere(self) -> None:
        """Whatever brings key material with it is refused, and there is no route to bring it to."""
        body = {"tenant": "core", "purpose": "audit", "alg": "ed25519"}
        for field in ("private_key", "seed", "secret_b64", "pem", "import"):
            await self.refused(400, "BadRequest", "POST", "/keys", {**body, field: "QUJD"})
        kid = await self.create()
        for path in ("/keys/import", f"{at(kid)}/import"):
            self.assertIn((await self.ask("POST", path, {"pem": "x"})).status, {400, 404, 405})
        await self.refused(400, "BadRequest", "POST", at(bare(kid)) + "/rotate", {"seed": "QUJD"})

    async def test_kg2_no_signature_without_a_capability(self) -> None:
        kid = await self.create()
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3}
        before = len(self.backend.signed)
        expired = time.gmtime(time.time() - 60)
        for token in (
            None,
            "not a macaroon",
            self.bearer(("scope", "kms:verify"), ("scope", "kms:*")),
            self.bearer(("scope", "kms:sign"), ("tenant", "acme")),
            self.bearer(("scope", "kms:sign"), ("method", "GET")),
            self.bearer(("scope", "kms:sign"), ("exp", time.strftime("%Y-%m-%dT%H:%M:%SZ", expired))),
        ):
            self.token = token
            answer = await self.ask("POST", "/sign", body)
            self.assertIn((answer.status, answer.code), {(401, "NoCapability"), (403, "NoCapability")})
        self.assertEqual([one for one in self.backend.signed[before:] if one[0].tenant == "core"], [])
        self.token = self.bearer(("scope", "kms:sign"), ("tenant", "core"))
        self.assertEqual((await self.ask("POST", "/sign", body)).status, 200)

    async def test_kg3_a_capability_is_bounded(self) -> None:
        """To a tenant, to verbs, and to so much a second; what is added to it only ever takes away."""
        kid, other = await self.create(), await self.create(tenant="acme")
        self.token = self.bearer(("scope", "kms:sign"), ("tenant", "core"), ("rps", "1"))
        await self.refused(403, "NoCapability", "POST", "/sign", {"kid_or_set": {"kid": other}, "payload_b3": B3})
        await self.refused(403, "NoCapability", "POST", "/keys", {"tenant": "core", "purpose": "a", "alg": "ed25519"})
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3}
        statuses = [(await self.ask("POST", "/sign", body)).status for _ in range(6)]
        self.assertIn(429, statuses)
        self.token = self.bearer(("scope", "kms:verify"), ("scope", "*"))
        await self.refused(403, "NoCapability", "POST", "/sign", body)

    async def test_kg5_what_was_done_stays_said(self) -> None:
        """Each act has a record with who asked, and a proof that it is in the tree that was signed."""
        kid, kem = await self.create("hybrid"), await self.create("hybrid", purpose="kem")
        sigs = (await self.sign(kid))["sigs"]
        await self.verify(sigs, kid)
        made = await self.done("POST", "/wrap", {"kid": kem, "size": 32})
        await self.done("POST", "/unwrap", {"kid": kem, "wrapped_b64": made["wrapped_b64"]})
        await self.until(lambda: {"verify", "unwrap"} <= {one["op"] for one in self.records()}, "its records")
        checkpoint = await self.service.log.checkpoint()
        acts = {one["op"]: index for index, one in enumerate(self.records()) if one["tenant"] == "core"}
        self.assertLessEqual({"create", "sign", "verify", "wrap", "unwrap"}, set(acts))
        for index in acts.values():
            self.assertTrue(self.records()[index]["actor"])
            leaf = self.service.log.entries(index, 1)[0]
            proof = await self.done("GET", f"/audit/proof?index={index}&size={checkpoint.size}")
            path = [base64.b64decode(one) for one in proof["hashes"]]
            self.assertTrue(verify_inclusion(index, checkpoint.size, leaf_hash(leaf), path, checkpoint.root))
            changed = leaf_hash(leaf.replace(b'"ok"', b'"no"'))
            self.assertFalse(verify_inclusion(index, checkpoint.size, changed, path, checkpoint.root))

    async def test_kg6_no_evidence_no_signature_and_verifying_goes_on(self) -> None:
        kid = await self.create()
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3}
        sigs = (await self.sign(kid))["sigs"]
        self._set(security={"attest_require": "required"})
        await self.until(lambda: "attestation_ready" in self.health.snapshot().missing, "readiness to say so")
        for path, asked in (("/sign", body), ("/keys", {"tenant": "core", "purpose": "a", "alg": "ed25519"})):
            await self.refused(403, "AttestationMissing", "POST", path, asked)
        self.assertTrue((await self.verify(sigs, kid))["ok"])
        self._set()
        await self.until(lambda: self.health.snapshot().ready, "all to be well")
        self.assertEqual((await self.ask("POST", "/sign", body)).status, 200)

    async def test_kg7_hybrid_and_unless_a_quorum_says_otherwise(self) -> None:
        kid = await self.create("ed25519")
        self.assertEqual((self.wishes.pq.verify_mode, self.wishes.pq.produce_hybrid), ("and", True))
        sigs = (await self.sign(kid))["sigs"]
        self.assertEqual([one["alg"] for one in sigs], ["ed25519", "ml-dsa"])
        self.assertFalse((await self.verify(sigs[:1], kid))["ok"])
        asked = {"kid_or_set": {"kid": kid}, "payload_b3": B3, "policy": {"produce_hybrid": False}}
        await self.refused(400, "Unsupported", "POST", "/sign", asked)
        self.votes.modes["core"] = "or"
        self.assertTrue((await self.verify(sigs[:1], kid))["ok"])
        other = await self.create("ed25519", tenant="acme")
        self.assertFalse((await self.verify((await self.sign(other))["sigs"][:1], other))["ok"])

    async def test_kg8_in_doubt_no(self) -> None:
        """What contradicts itself is refused, and that is on record."""
        kid = await self.create("hybrid")
        sigs = (await self.sign(kid))["sigs"]
        both = {"kid": kid, "kid_set": [kid]}
        await self.refused(400, "BadRequest", "POST", "/sign", {"kid_or_set": both, "payload_b3": B3})
        doubled = {"kid_or_set": {"kid": kid}, "payload_b3": B3, "sigs": [sigs[0], sigs[0]]}
        await self.refused(400, "BadRequest", "POST", "/verify", doubled)
        before = len(self.backend.signed)
        self.token = self.bearer(("scope", "kms:sign"), ("tenant", "core"), ("tenant", "acme"))
        await self.refused(403, "NoCapability", "POST", "/sign", {"kid_or_set": {"kid": kid}, "payload_b3": B3})
        self.token = self.bearer(("scope", "kms:sign"))
        asked = {"kid_or_set": {"kid": kid}, "payload_b3": B3, "policy": {"produce_hybrid": False}}
        await self.refused(400, "Unsupported", "POST", "/sign", asked)
        self.assertEqual([one for one in self.backend.signed[before:] if one[0].tenant == "core"], [])
        await self.until(
            lambda: [one for one in self.records() if (one["op"], one["result"]) == ("sign", "Unsupported")],
            "the refusal's record",
        )

    def _set(self, **wished: dict[str, Any]) -> None:
        """As a reload of the config would."""
        old, given = self.wishes, {"security": {"sign_rate_limit_rps": 100_000}, **wished}
        self.wishes = convert(given, KmsConfig)
        self.service.apply(old, self.wishes)
