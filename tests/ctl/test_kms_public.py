"""Public halves for other programs: what the formats' own readers make of them, and signatures that they verify."""

from __future__ import annotations

import base64
import json
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from twisted.trial.unittest import SynchronousTestCase

from ron.ctl.kms_public import jwk_set, pem_text
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg, KeyMaterialPublic, KeyView, PublicHalf
from tests.ctl.test_kms import KmsCalls
from tests.services.kms.world import UNKNOWN


def view(*halves: tuple[Alg, bytes | str]) -> KeyView:
    shown = tuple(
        PublicHalf(alg=alg, pubkey_b64=raw if isinstance(raw, str) else base64.b64encode(raw).decode())
        for alg, raw in halves
    )
    public = KeyMaterialPublic(alg=shown[0].alg, pubkey_b64=shown[0].pubkey_b64, halves=shown)
    return KeyView(kid=UNKNOWN, alg="ed25519", versions=("#v1",), public=public)


def blocks(text: str) -> list[bytes]:
    end = "-----END PUBLIC KEY-----\n"
    return [(part + end).encode() for part in text.split(end) if part]


class Broken(SynchronousTestCase):
    def test_what_is_no_key(self) -> None:
        for alg, raw in (
            (Alg.ED25519, b"short"),
            (Alg.X25519, b"x" * 33),
            (Alg.ML_DSA, b"x" * 32),
            (Alg.ML_KEM, b"x" * 32),
            (Alg.ED25519, "no base64!"),
        ):
            error: RonError = self.assertRaises(RonError, pem_text, view((alg, raw)))
            self.assertEqual(error.code, ErrorCode.STORE_UNAVAILABLE)
            if alg is not Alg.ML_KEM:
                self.assertRaises(RonError, jwk_set, view((alg, raw)))

    def test_a_known_one(self) -> None:
        """RFC 8410 §10.1 and RFC 8037 §A.2: one key of each, in their own spelling."""
        raw = bytes.fromhex("19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1")
        self.assertIn(
            "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=", pem_text(view((Alg.ED25519, raw)))
        )
        raw = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
        (key,) = jwk_set(view((Alg.ED25519, raw)))["keys"]
        self.assertEqual(key["x"], "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
        self.assertEqual((key["kty"], key["crv"], key["kid"]), ("OKP", "Ed25519", UNKNOWN))


class Commands(KmsCalls):
    async def test_either_form_or_json(self) -> None:
        await self.refused_by(3, "key", "show", UNKNOWN, "--pem", "--json")
        await self.refused_by(7, "key", "show", UNKNOWN, "--pem")

    async def test_what_others_verify_with(self) -> None:
        kid = await self.key()
        signed = await self.said("sign", "--kid", kid, self.file(b"report"))
        pem = await self.done_by("key", "show", kid, "--pem")
        message = blake3(b"report").digest()
        for block, one in zip(blocks(pem.out.decode()), signed["sigs"], strict=True):
            key: Any = load_pem_public_key(block)
            key.verify(base64.b64decode(one["signature_b64"]), message)
        jwk = json.loads((await self.done_by("key", "show", kid, "--jwk")).out)
        self.assertEqual([key["kty"] for key in jwk["keys"]], ["OKP", "AKP"])
        self.assertEqual({key["kid"] for key in jwk["keys"]}, {kid})
        self.assertEqual(jwk["keys"][1]["alg"], "ML-DSA-65")

    async def test_a_key_that_wraps(self) -> None:
        kem = await self.key("kem")
        pem = await self.done_by("key", "show", kem, "--pem")
        self.assertEqual(
            [type(load_pem_public_key(block)).__name__ for block in blocks(pem.out.decode())],
            ["X25519PublicKey", "MLKEM768PublicKey"],
        )
        jwk = json.loads((await self.done_by("key", "show", kem, "--jwk")).out)
        self.assertEqual([key["crv"] for key in jwk["keys"]], ["X25519"])
