"""The HTTP interface: what is refused first, then what is done."""

from __future__ import annotations

import base64
import json
import os
from typing import Any
from urllib.parse import quote

from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nacl.signing import VerifyKey

from ron.crypto import signing
from ron.crypto.merkle import leaf_hash
from ron.proto.kms import Alg
from tests.services.kms.world import B3, UNKNOWN, World, at, bare
from tests.web.wire import exchange, request, split_response

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
# RFC 8032: the order of the group; S + L is the second spelling of a signature
L = 2**252 + 27742317777372353535851937790883648493
SIG = {"alg": "ed25519", "signature_b64": base64.b64encode(bytes(64)).decode()}
_FIELDS = [
    "kid_or_set",
    "kid",
    "payload_b3",
    "sigs",
    "alg",
    "signature_b64",
    "op_id",
    "policy",
    "mode",
    "tenant",
    "size",
]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=5),
    max_leaves=12,
)


class Bad(World):
    """Refused before anything is done."""

    async def test_no_capability(self) -> None:
        self.token = None
        for method, path in (
            ("POST", "/sign"),
            ("GET", "/keys"),
            ("DELETE", at(UNKNOWN)),
            ("GET", "/audit/checkpoint"),
        ):
            self.assertEqual((await self.ask(method, path, {} if method != "GET" else None)).status, 401, path)

    async def test_every_route_has_its_own_scope(self) -> None:
        wanted = {
            ("POST", "/sign"): "sign", ("POST", "/verify"): "verify", ("POST", "/wrap"): "wrap",
            ("POST", "/unwrap"): "unwrap", ("POST", "/keys"): "rotate", ("GET", "/keys"): "read",
            ("GET", at(UNKNOWN)): "read", ("POST", at(bare(UNKNOWN)) + "/rotate"): "rotate",
            ("DELETE", at(UNKNOWN)): "destroy", ("GET", "/attest"): "read", ("GET", "/audit/entries"): "audit",
        }  # fmt: skip
        scopes = sorted(set(wanted.values()))
        for (method, path), scope in wanted.items():
            self.token = self.bearer(("scope", ",".join(f"kms:{one}" for one in scopes if one != scope)))
            answer = await self.ask(method, path, {} if method in {"POST", "DELETE"} else None)
            self.assertEqual(answer.status, 403, (method, path))
            self.assertIn(f"kms:{scope}", answer.body["error"]["message"])

    async def test_another_method(self) -> None:
        self.assertEqual((await self.ask("PUT", "/sign", {})).status, 405)
        self.assertEqual((await self.ask("GET", "/sign")).status, 405)

    async def test_bodies_that_are_none(self) -> None:
        for body in (b"", b"{", b"[]", b"\xff\xfe", b"null", b"1" * 1000, b"[" * 100_000):
            await self.refused(400, "BadRequest", "POST", "/sign", body)

    async def test_a_body_over_the_cap(self) -> None:
        self.assertEqual((await self.ask("POST", "/sign", b" " * (1024 * 1024 + 1))).status, 413)

    async def test_unknown_fields_anywhere(self) -> None:
        """I-13."""
        base = {"kid_or_set": {"kid": UNKNOWN}, "payload_b3": B3}
        for body in (
            {**base, "payload": "aGVsbG8="},
            {**base, "policy": {"produce_hybrid": True, "alg": "none"}},
            {**base, "kid_or_set": {"kid": UNKNOWN, "x": 1}},
        ):
            self.assertIn("unknown field", await self.refused(400, "BadRequest", "POST", "/sign", body))

    async def test_names_that_are_there_twice(self) -> None:
        """Another reader on the way might have taken the other one for what is asked."""
        kid = await self.create()
        sign = f'"kid_or_set": {{"kid": "{kid}"}}, "payload_b3": "{B3}"'
        for body, name in (
            (f'{{{sign}, "payload_b3": "{B3}"}}', "payload_b3"),
            (f'{{{sign}, "\\u0070ayload_b3": "{B3}"}}', "payload_b3"),
            (f'{{{sign}, "policy": {{"produce_hybrid": true, "produce_hybrid": false}}}}', "produce_hybrid"),
            (f'{{"kid_or_set": {{"kid": "{UNKNOWN}", "kid": "{kid}"}}, "payload_b3": "{B3}"}}', "kid"),
        ):
            message = await self.refused(400, "BadRequest", "POST", "/sign", body.encode())
            self.assertIn(f"{name} twice", message)
        key = '"tenant": "core", "purpose": "audit", "alg": "hybrid"'
        for body in (
            f'{{{key}, "policy_hints": {{"a": {{"b": 1, "b": 2}}}}}}',
            f'{{{key}, "tenant": "acme"}}',
        ):
            self.assertIn("twice", await self.refused(400, "BadRequest", "POST", "/keys", body.encode()))
        self.assertEqual(len((await self.done("GET", "/keys?tenant=core"))["keys"]), 1)

    async def test_what_a_payloads_hash_is_not(self) -> None:
        kid = await self.create()
        for text in ("", "7f" * 31, "7f" * 33, "7F" * 32, "zz" * 32, "7f" * 32 + "\n", "0x" + "7f" * 31, 5, None):
            body = {"kid_or_set": {"kid": kid}, "payload_b3": text}
            await self.refused(400, "BadRequest", "POST", "/sign", body)
        self.assertEqual([one for one in self.backend.signed if one[0].tenant == "core"], [])

    async def test_what_a_kid_is_not(self) -> None:
        for text in (
            "", "core", "core/audit/ed25519", "../../etc/passwd", UNKNOWN.replace("#v1", "#v0"),
            UNKNOWN.replace("#v1", "#v01"), UNKNOWN + "\n", UNKNOWN.replace("ed25519", "rsa"), "x" * 5000,
            UNKNOWN.replace("core", "co re"), UNKNOWN.upper(), UNKNOWN.replace("#v1", "#v9999999999"),
        ):  # fmt: skip
            await self.refused(400, "BadRequest", "POST", "/sign", {"kid_or_set": {"kid": text}, "payload_b3": B3})
            status = (await self.ask("GET", at(text))).status if text else 400
            self.assertIn(status, {400, 404}, text)

    async def test_both_selectors_or_none(self) -> None:
        for selector in ({}, {"kid": UNKNOWN, "kid_set": [UNKNOWN]}, {"kid_set": []}, {"kid_set": [UNKNOWN] * 17}):
            await self.refused(400, "BadRequest", "POST", "/sign", {"kid_or_set": selector, "payload_b3": B3})

    async def test_keys_nobody_has(self) -> None:
        body = {"kid_or_set": {"kid": UNKNOWN}, "payload_b3": B3}
        await self.refused(404, "NotFound", "POST", "/sign", body)
        await self.refused(404, "NotFound", "POST", "/verify", {**body, "sigs": [SIG]})
        await self.refused(404, "NotFound", "GET", at(UNKNOWN))
        await self.refused(404, "NotFound", "POST", at(bare(UNKNOWN)) + "/rotate")
        kid = await self.create()
        await self.refused(404, "NotFound", "GET", at(bare(kid) + "#v2"))
        await self.refused(400, "BadRequest", "POST", at(kid) + "/rotate")

    async def test_algorithms_that_do_not_go_with_their_purpose(self) -> None:
        for alg, purpose in (("x25519", "audit"), ("ml-kem", "audit"), ("ed25519", "kem"), ("ml-dsa", "wrap")):
            body = {"tenant": "core", "purpose": purpose, "alg": alg}
            await self.refused(400, "Unsupported", "POST", "/keys", body)

    async def test_the_services_own_tenant(self) -> None:
        """Whoever signed with the log's key could sign a head of his own."""
        self.token = self.bearer(("scope", "kms:*"))
        own = next(iter(self.service.room.index)).kid
        body = {"kid_or_set": {"kid": str(own)}, "payload_b3": B3}
        self.assertIn("the service's own", await self.refused(403, "NoCapability", "POST", "/sign", body))
        await self.refused(
            403, "NoCapability", "POST", "/keys", {"tenant": "ron-kms", "purpose": "audit-log", "alg": "ed25519"}
        )
        await self.refused(403, "NoCapability", "POST", at(bare(str(own))) + "/rotate")
        await self.refused(403, "NoCapability", "DELETE", at(str(own)), {"proposal": "x"})

    async def test_signatures_that_are_none(self) -> None:
        kid = await self.create()
        first = (await self.sign(kid))["sigs"][0]
        text = first["signature_b64"]
        raw = base64.b64decode(text)
        spare_bits = text[:-3] + ALPHABET[ALPHABET.index(text[-3]) ^ 1] + "=="
        for sigs in (
            [],
            [first] * 9,
            [first, first],
            [{**first, "alg": "x25519"}],
            [{**first, "alg": "none"}],
            [{**first, "signature_b64": "!!"}],
            [{**first, "signature_b64": spare_bits}],
        ):
            body = {"kid_or_set": {"kid": kid}, "payload_b3": B3, "sigs": sigs}
            await self.refused(400, "BadRequest", "POST", "/verify", body)
        # malformed, and no error: they do not hold
        wrong = [bytes(64), raw[:-1], raw + b"\0", raw[:32] + bytes(32), bytes(32) + raw[32:], b""]
        high_s = raw[:32] + (int.from_bytes(raw[32:], "little") + L).to_bytes(32, "little")
        for bad in [*wrong, high_s]:
            sig = {"alg": "ed25519", "signature_b64": base64.b64encode(bad).decode()}
            found = await self.verify([sig], kid, policy={"mode": "or"})
            self.assertEqual((found["ok"], found["details"]["checked"]), (False, []), len(bad))

    async def test_envelopes_that_are_none(self) -> None:
        kid = await self.create("hybrid", purpose="kem")
        made = await self.done("POST", "/wrap", {"kid": kid, "size": 32})
        raw = base64.b64decode(made["wrapped_b64"])
        for bad in (b"", b"\x01", raw[:-1], raw[:100], bytes([raw[0] ^ 1]) + raw[1:], raw[:-1] + bytes([raw[-1] ^ 1])):
            body = {"kid": bare(kid), "wrapped_b64": base64.b64encode(bad).decode()}
            await self.refused(400, "BadRequest", "POST", "/unwrap", body)
        other = await self.create("hybrid", purpose="kem")
        body = {"kid": bare(other), "wrapped_b64": made["wrapped_b64"]}
        await self.refused(400, "BadRequest", "POST", "/unwrap", body)

    async def test_what_is_not_wrapped(self) -> None:
        kid = await self.create("x25519", purpose="kem")
        for more in ({}, {"size": 15}, {"size": 4097}, {"size": 32, "plaintext_key_b64": "AAAA"},
                     {"plaintext_key_b64": ""}, {"plaintext_key_b64": "A"}, {"kem_mode": "", "size": 32}):  # fmt: skip
            await self.refused(400, "BadRequest", "POST", "/wrap", {"kid": kid, **more})
        signer = await self.create()
        await self.refused(400, "Unsupported", "POST", "/wrap", {"kid": signer, "size": 32})

    async def test_hints_are_bounded(self) -> None:
        body = {"tenant": "core", "purpose": "audit", "alg": "ed25519", "policy_hints": {"x": "y" * 5000}}
        await self.refused(413, "TooLarge", "POST", "/keys", body)

    async def test_queries_that_mean_nothing(self) -> None:
        for path in ("/audit/entries?start=-1", "/audit/entries?count=0", "/audit/entries?count=1001",
                     "/audit/entries?start=x", "/audit/proof", "/audit/proof?index=99", "/audit/proof?old=99",
                     "/keys?tenant=%20", "/keys?after=x", "/attest?kid=x", "/keys?tenant=%ff"):  # fmt: skip
            self.assertEqual((await self.ask("GET", path)).status, 400, path)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(ANYTHING, st.sampled_from(["/sign", "/verify", "/wrap", "/unwrap", "/keys"]))
    def test_anything_at_all(self, body: Any, path: str) -> None:
        """Whatever is sent is refused in the envelope, at once, and never with a 500."""
        headers = {"Authorization": f"Bearer {self.token}"}
        sent = request("POST", f"/v1/kms{path}", headers, json.dumps(body).encode())
        whole = split_response(exchange(self.site, sent))
        assert whole is not None
        self.assertIn(whole[0].status, {400, 403, 404, 413}, whole)
        self.assertIn("error", whole[0].json)


class Done(World):
    """What comes back."""

    async def test_a_signature_that_anybody_verifies(self) -> None:
        """With a standard library and what GET shows: exactly the 32 bytes."""
        kid = await self.create(policy_hints={"rotate_days": 30})
        payload_b3 = blake3(b"hello world").hexdigest()
        made = await self.done("POST", "/sign", {"kid_or_set": {"kid": kid}, "payload_b3": payload_b3})
        self.assertEqual((made["kid"], [one["alg"] for one in made["sigs"]]), (kid, ["ed25519", "ml-dsa"]))
        self.assertNotIn("attestation", made)
        shown = await self.done("GET", at(kid))
        self.assertEqual(
            (shown["versions"], shown["alg"], shown["policy_hints"]), (["#v1"], "ed25519", {"rotate_days": 30})
        )
        self.assertEqual(shown["attestation_class"], "software-inmem")
        raw = base64.b64decode(shown["public"]["pubkey_b64"])
        VerifyKey(raw).verify(bytes.fromhex(payload_b3), base64.b64decode(made["sigs"][0]["signature_b64"]))
        halves = {one["alg"]: base64.b64decode(one["pubkey_b64"]) for one in shown["public"]["halves"]}
        signature = base64.b64decode(made["sigs"][1]["signature_b64"])
        self.assertTrue(signing.verify(Alg.ML_DSA, halves["ml-dsa"], bytes.fromhex(payload_b3), signature))

    async def test_the_bare_kid_as_a_selector(self) -> None:
        kid = await self.create()
        made = await self.done("POST", "/sign", {"kid_or_set": bare(kid), "payload_b3": B3})
        self.assertEqual(made["kid"], kid)

    async def test_the_first_of_a_set_that_may(self) -> None:
        kid = await self.create()
        made = await self.done("POST", "/sign", {"kid_or_set": {"kid_set": [UNKNOWN, kid]}, "payload_b3": B3})
        self.assertEqual(made["kid"], kid)

    async def test_without_naming_the_key(self) -> None:
        kids = [await self.create() for _ in range(3)]
        sigs = (await self.sign(kids[1]))["sigs"]
        await self.refused(400, "BadRequest", "POST", "/verify", {"payload_b3": B3, "sigs": sigs})
        self.token = self.bearer(("scope", "kms:verify"), ("tenant", "core"))
        self.assertEqual((await self.verify(sigs))["kid"], kids[1])
        self.token = self.bearer(("scope", "kms:verify"), ("tenant", "acme"))
        await self.refused(404, "NotFound", "POST", "/verify", {"payload_b3": B3, "sigs": sigs})

    async def test_too_many_versions_to_try(self) -> None:
        for _ in range(33):
            await self.create("x25519", purpose="kem")
            kid = await self.create()
            await self.done("POST", at(bare(kid)) + "/rotate")
        self.token = self.bearer(("scope", "kms:verify"), ("tenant", "core"))
        await self.refused(400, "BadRequest", "POST", "/verify", {"payload_b3": B3, "sigs": [SIG]})

    async def test_halves_of_two_payloads(self) -> None:
        kid = await self.create("hybrid")
        one = (await self.sign(kid))["sigs"]
        two = (await self.done("POST", "/sign", {"kid_or_set": {"kid": kid}, "payload_b3": "80" * 32}))["sigs"]
        mixed = [one[0], two[1]]
        self.assertFalse((await self.verify(mixed, kid, policy={"mode": "and"}))["ok"])
        found = await self.verify(mixed, kid, policy={"mode": "or"})
        self.assertEqual((found["ok"], found["details"]), (True, {"checked": ["ed25519"], "satisfied_mode": "or"}))

    async def test_modes(self) -> None:
        kid = await self.create("hybrid")
        sigs = (await self.sign(kid))["sigs"]
        for given_sigs, mode, ok in ((sigs, "and", True), (sigs[:1], "and", False), (sigs[:1], "or", True),
                               (sigs[1:], "pq_only", True), (sigs[:1], "pq_only", False)):  # fmt: skip
            self.assertEqual((await self.verify(given_sigs, kid, policy={"mode": mode}))["ok"], ok, mode)

    async def test_wrapped_and_opened(self) -> None:
        kid = await self.create("x25519", purpose="kem")
        key = os.urandom(32)
        for mode, name in (("hybrid", "hybrid(x25519+ml-kem)"), ("pq", "ml-kem")):
            body = {"kid": kid, "plaintext_key_b64": base64.b64encode(key).decode(), "kem_mode": mode}
            made = await self.done("POST", "/wrap", body)
            self.assertEqual((made["alg"], made["kid"]), (name, kid))
            opened = await self.done("POST", "/unwrap", {"kid": bare(kid), "wrapped_b64": made["wrapped_b64"]})
            self.assertEqual(base64.b64decode(opened["plaintext_key_b64"]), key)
        body = {"kid": kid, "size": 48}
        made = await self.done("POST", "/wrap", body)
        opened = await self.done("POST", "/unwrap", {"kid": kid, "wrapped_b64": made["wrapped_b64"]})
        self.assertEqual(len(base64.b64decode(opened["plaintext_key_b64"])), 48)

    async def test_what_was_wrapped_for_an_older_version(self) -> None:
        kid = await self.create("hybrid", purpose="kem")
        made = await self.done("POST", "/wrap", {"kid": kid, "size": 32})
        newer = (await self.done("POST", at(bare(kid)) + "/rotate"))["kid"]
        opened = await self.done("POST", "/unwrap", {"kid": bare(kid), "wrapped_b64": made["wrapped_b64"]})
        self.assertEqual(opened["kid"], kid)
        await self.refused(400, "BadRequest", "POST", "/unwrap", {"kid": newer, "wrapped_b64": made["wrapped_b64"]})

    async def test_pages_of_keys(self) -> None:
        made = sorted([bare(await self.create()) for _ in range(102)])
        first = await self.done("GET", "/keys?tenant=core")
        self.assertEqual(len(first["keys"]), 100)
        rest = await self.done("GET", f"/keys?tenant=core&after={quote(first['next'], safe='')}")
        self.assertEqual(sorted(bare(one["kid"]) for one in first["keys"] + rest["keys"]), made)
        self.assertNotIn("next", rest)

    async def test_the_log_is_there_for_auditors(self) -> None:
        await self.create()
        page = await self.done("GET", "/audit/entries?start=0&count=1000")
        self.assertEqual((page["start"], page["size"]), (0, len(page["entries"])))
        self.assertEqual(len(leaf_hash(base64.b64decode(page["entries"][0]))), 32)
        self.assertEqual((await self.done("GET", "/audit/entries?start=99"))["entries"], [])
        proof = await self.done("GET", "/audit/proof?index=0&size=2")
        self.assertEqual((proof["index"], len(proof["hashes"])), (0, 1))
        self.assertEqual((await self.done("GET", "/audit/proof?old=1&size=2"))["old"], 1)
        await self.refused(404, "NotFound", "GET", "/audit/checkpoint")
        await self.service.log.checkpoint()
        self.assertIn(b"ron-kms/", (await self.ask("GET", "/audit/checkpoint")).body)
        self.token = self.bearer(("scope", "kms:audit"), ("tenant", "core"))
        await self.refused(403, "NoCapability", "GET", "/audit/entries")

    async def test_evidence(self) -> None:
        kid = await self.create()
        self.assertEqual((await self.done("GET", "/attest"))["backend"], "inmem")
        self.backend.evidence = "cXVvdGU="
        found = await self.done("GET", f"/attest?kid={at(kid).removeprefix('/keys/')}")
        self.assertEqual((found["kid"], found["attestation"]["class"]), (kid, "test-device"))
        self.token = self.bearer(("scope", "kms:read"), ("tenant", "core"))
        await self.refused(403, "NoCapability", "GET", "/attest")

    async def test_it_describes_itself_to_anybody(self) -> None:
        self.token = None
        answer = await self.ask("GET", "/openapi.yaml", prefix="")
        self.assertEqual((answer.status, answer.headers["content-type"]), (200, "application/yaml"))
