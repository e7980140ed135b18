"""Signatures and envelopes of somebody who means harm: published bad ones, and good ones put together wrongly."""

from __future__ import annotations

import base64
import json
from itertools import product
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ron.proto.kms import Alg, Kid, parse_kid
from ron.services.kms.backends.inmem import InMemoryBackend
from ron.services.kms.ports import Backend, Half
from ron.services.kms.store import KeyRecord, VersionRecord
from tests.crypto.test_signing import SMALL_ORDER
from tests.services.kms.world import B3, World, bare
from tests.web.wire import exchange, request, split_response

VECTORS = Path(__file__).parents[2] / "vectors" / "kms"
OTHER_B3 = "80" * 32
MODES = ("or", "and", "pq_only")
few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def sig(alg: str, raw: bytes) -> dict[str, str]:
    return {"alg": alg, "signature_b64": b64(raw)}


class Bundles(World):
    """What verifies, and what must not."""

    def known(self, number: int, alg: Alg, public: bytes) -> str:
        """A key whose public half is given, as a broken backend or store might give it."""
        kid = Kid("core", "audit", str(alg), f"00000000-0000-4000-8000-{number:012x}", 1)
        self.service.room.index.add(KeyRecord(kid.key, {}, 0.0))
        self.service.room.index.put(VersionRecord(kid, "live", (Half(alg, public),), "test", 0.0))
        return str(kid)

    async def holds(self, kid: str, *sigs: dict[str, str], b3: str = B3, mode: str = "or") -> bool:
        body = {"payload_b3": b3, "sigs": list(sigs), "kid_or_set": kid, "policy": {"mode": mode}}
        return bool((await self.done("POST", "/verify", body))["ok"])

    async def test_published_bad_ones(self) -> None:
        """Wycheproof's Ed25519 keys and signatures: over 32 bytes as published, any other over what it is not for."""
        groups = json.loads((VECTORS / "ed25519-wycheproof.json").read_text())["groups"]
        good = 0
        for number, group in enumerate(groups):
            kid = self.known(number, Alg.ED25519, bytes.fromhex(group["public"]))
            for one in group["tests"]:
                fits = len(one["message"]) == 64
                raw = bytes.fromhex(one["signature"])
                found = await self.holds(kid, sig("ed25519", raw), b3=one["message"] if fits else B3)
                self.assertEqual(found, fits and one["result"] == "valid", one["id"])
                good += found
        self.assertGreaterEqual(good, 2, "nothing would hold at all")

    async def test_keys_of_small_order(self) -> None:
        """Under such a key a signature can be made for everything: none holds, whoever put the key there."""
        for number, text in enumerate(SMALL_ORDER):
            kid = self.known(number, Alg.ED25519, bytes.fromhex(text))
            for r in SMALL_ORDER:
                self.assertFalse(await self.holds(kid, sig("ed25519", bytes.fromhex(r) + bytes(32))), (text, r))

    async def test_mldsa_of_another_shape(self) -> None:
        case = json.loads((VECTORS / "mldsa65-kat.json").read_text())["cases"][0]
        kid = self.known(1, Alg.ML_DSA, base64.b64decode(case["public_b64"]))
        for raw in (b"", bytes(3309), b"\xff" * 3309, bytes(3308), bytes(3310), bytes(2420), bytes(4627), bytes(64)):
            self.assertFalse(await self.holds(kid, sig("ml-dsa", raw), mode="pq_only"))
        for size in (0, 32, 1951, 1953, 1312):
            broken = self.known(100 + size, Alg.ML_DSA, bytes(size))
            self.assertFalse(await self.holds(broken, sig("ml-dsa", bytes(3309))))

    async def test_one_signature_for_two(self) -> None:
        """Twice under its own name, or a second time as what it is not."""
        kid = await self.create("hybrid")
        classical, quantum = (await self.sign(kid))["sigs"]
        for twice in ([classical] * 2, [quantum] * 2, [classical, quantum, classical]):
            body = {"payload_b3": B3, "sigs": twice, "kid_or_set": kid}
            await self.refused(400, "BadRequest", "POST", "/verify", body)
        as_quantum = {**classical, "alg": "ml-dsa"}
        as_classical = {**quantum, "alg": "ed25519"}
        for mode in ("and", "pq_only"):
            self.assertFalse(await self.holds(kid, classical, as_quantum, mode=mode))
        for mode in MODES:
            self.assertFalse(await self.holds(kid, as_quantum, mode=mode))
            self.assertFalse(await self.holds(kid, as_quantum, as_classical, mode=mode))
        self.assertTrue(await self.holds(kid, quantum, classical, mode="and"), "their order means nothing")

    async def test_halves_that_do_not_belong_together(self) -> None:
        """Of two keys, two versions, two payloads: no mode that wants both is satisfied, whatever set is named."""
        first, second = await self.create("hybrid"), await self.create("hybrid")
        one, two = (await self.sign(first))["sigs"], (await self.sign(second))["sigs"]
        turned = (await self.done("POST", "/keys/" + bare(first) + "/rotate"))["kid"]
        newer = (await self.sign(turned))["sigs"]
        elsewhere = (await self.done("POST", "/sign", {"kid_or_set": first, "payload_b3": OTHER_B3}))["sigs"]
        selectors: list[Any] = [first, bare(first), second, turned, {"kid_set": [first, second, turned]}]
        for (a, b), selector in product(((one, two), (one, newer), (one, elsewhere), (two, newer)), selectors):
            for mixed in ([a[0], b[1]], [b[0], a[1]]):
                body = {"payload_b3": B3, "sigs": mixed, "kid_or_set": selector, "policy": {"mode": "and"}}
                self.assertFalse((await self.done("POST", "/verify", body))["ok"], selector)
        self.token = self.bearer(("scope", "kms:verify"), ("tenant", "core"))
        body = {"payload_b3": B3, "sigs": [one[0], two[1]], "policy": {"mode": "and"}}
        self.assertFalse((await self.done("POST", "/verify", body))["ok"], "among all keys of the tenant")
        self.assertTrue((await self.done("POST", "/verify", {**body, "sigs": one}))["ok"])

    async def test_a_signature_of_another_tenants_key(self) -> None:
        ours, theirs = await self.create(tenant="core"), await self.create(tenant="acme")
        sigs = (await self.sign(theirs))["sigs"]
        for mode in MODES:
            self.assertFalse(await self.holds(ours, *sigs, mode=mode))

    async def test_of_two_signatures_a_bad_one(self) -> None:
        """`or` says which one held; nothing stricter is satisfied by what came beside it."""
        kid = await self.create("hybrid")
        classical, quantum = (await self.sign(kid))["sigs"]
        bad = sig("ml-dsa", bytes(3309))
        found = await self.verify([classical, bad], kid, policy={"mode": "or"})
        self.assertEqual((found["ok"], found["details"]["checked"]), (True, ["ed25519"]))
        self.assertFalse(await self.holds(kid, classical, bad, mode="and"))
        self.assertFalse(await self.holds(kid, sig("ed25519", bytes(64)), quantum, mode="and"))
        self.assertTrue(await self.holds(kid, sig("ed25519", bytes(64)), quantum, mode="pq_only"))

    def test_any_change_of_a_good_one(self) -> None:
        kid = InMemory.made(self)

        @few
        @given(st.sampled_from([0, 1]), st.integers(0, 3308), st.integers(0, 7), st.booleans())
        def changed(half: int, place: int, bit: int, label: bool) -> None:
            name, sigs = kid
            raws = [bytearray(base64.b64decode(one["signature_b64"])) for one in sigs]
            raws[half][place % len(raws[half])] ^= 1 << bit
            algs = ["ed25519", "ml-dsa"] if not label else ["ml-dsa", "ed25519"]
            sent = [sig(alg, bytes(raw)) for alg, raw in zip(algs, raws, strict=True)]
            body = {"payload_b3": B3, "sigs": sent, "kid_or_set": name, "policy": {"mode": "and"}}
            self.assertFalse(self.at_once("/verify", body)["ok"])

        changed()

    def at_once(self, path: str, body: Any) -> Any:
        raw = request("POST", f"/v1/kms{path}", {"Authorization": f"Bearer {self.token}"}, json.dumps(body).encode())
        whole = split_response(exchange(self.site, raw))
        assert whole is not None
        self.assertEqual(whole[0].status, 200, whole)
        return whole[0].json

    async def test_envelopes_put_together_wrongly(self) -> None:
        """Heads, suites and versions exchanged; a point of small order; another key's. Nothing opens, nothing tells."""
        kem, other = await self.create("hybrid", purpose="kem"), await self.create("hybrid", purpose="kem")
        made = {}
        for mode in ("hybrid", "pq"):
            answer = await self.done("POST", "/wrap", {"kid": kem, "size": 32, "kem_mode": mode})
            made[mode] = base64.b64decode(answer["wrapped_b64"])
        hybrid, pq = made["hybrid"], made["pq"]
        wrong = [hybrid[:6] + pq[6:], pq[:6] + hybrid[6:], hybrid[:40] + bytes(len(hybrid) - 40), hybrid + hybrid]
        wrong += [bytes([value]) + hybrid[1:] for value in (0, 2, 255)]
        wrong += [hybrid[:1] + bytes([value]) + hybrid[2:] for value in (0, 2, 3, 9)]
        wrong += [hybrid[: -32 - 1184], hybrid[:30], hybrid[:-16]]
        for raw in wrong:
            await self.refused(400, "BadRequest", "POST", "/unwrap", {"kid": kem, "wrapped_b64": b64(raw)})
        await self.refused(400, "BadRequest", "POST", "/unwrap", {"kid": other, "wrapped_b64": b64(hybrid)})
        self.assertEqual(len(await self.done("POST", "/unwrap", {"kid": kem, "wrapped_b64": b64(hybrid)})), 3)


class InMemory:
    """A hybrid key and a bundle of it, without waiting for anything."""

    @staticmethod
    def made(case: Bundles) -> tuple[str, list[dict[str, str]]]:
        kid = parse_kid("core/audit/hybrid/00000000-0000-4000-8000-00000000aaaa#v1")
        backend: Backend = InMemoryBackend(allow_unlocked=True)
        backend.open()
        case.addCleanup(backend.close)
        held = backend.generate(kid, (Alg.ED25519, Alg.ML_DSA))
        case.service.room.index.add(KeyRecord(kid.key, {}, 0.0))
        case.service.room.index.put(VersionRecord(kid, "live", held.halves, "test", 0.0))
        message = bytes.fromhex(B3)
        sigs = [sig(str(alg), backend.sign(kid, alg, message)) for alg in (Alg.ED25519, Alg.ML_DSA)]
        body = {"payload_b3": B3, "sigs": sigs, "kid_or_set": str(kid), "policy": {"mode": "and"}}
        case.assertTrue(case.at_once("/verify", body)["ok"])
        return str(kid), sigs
