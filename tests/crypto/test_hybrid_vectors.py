"""The pinned hybrid bundle: what SDKs are held against, and that our primitives still agree with it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import blake3
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.signing import private_half, verify
from ron.proto.kms import Alg

VECTORS = Path(__file__).parent.parent / "vectors" / "kms"


def vectors(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


class Bundle(SynchronousTestCase):
    def setUp(self) -> None:
        self.bundle = vectors("hybrid-bundle-v1.json")
        self.payload = bytes.fromhex(self.bundle["payload_b3"])

    def holds(self, name: str) -> bool:
        """Does this signature, by its own half, hold over the payload?"""
        signature = self.bundle["signatures"][name]
        public = base64.b64decode(self.bundle["public_b64"][signature["alg"]])
        return verify(Alg(signature["alg"]), public, self.payload, base64.b64decode(signature["signature_b64"]))

    def test_the_payload_is_named_by_its_hash(self) -> None:
        self.assertEqual(blake3.blake3(self.bundle["payload"].encode()).hexdigest(), self.bundle["payload_b3"])
        for case in vectors("blake3.json")["cases"]:
            self.assertEqual(blake3.blake3(case["input"].encode()).hexdigest(), case["payload_b3"])

    def test_seeds_grow_into_the_keys(self) -> None:
        for alg, seed in self.bundle["seeds"].items():
            public = private_half(Alg(alg), bytes.fromhex(seed)).public
            self.assertEqual(base64.b64encode(public).decode(), self.bundle["public_b64"][alg])

    def test_ed25519_is_the_same_bytes_each_time(self) -> None:
        half = private_half(Alg.ED25519, bytes.fromhex(self.bundle["seeds"]["ed25519"]))
        pinned = self.bundle["signatures"]["ed25519"]["signature_b64"]
        self.assertEqual(base64.b64encode(half.sign(self.payload)).decode(), pinned)

    def test_what_each_selection_is_worth(self) -> None:
        for case in self.bundle["cases"]:
            good = {self.bundle["signatures"][name]["alg"] for name in case["sigs"] if self.holds(name)}
            worth = {"or": bool(good), "and": good == {"ed25519", "ml-dsa"}, "pq_only": "ml-dsa" in good}
            self.assertEqual(worth, case["ok"], case["sigs"])
