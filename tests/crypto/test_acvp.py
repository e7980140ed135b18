"""NIST's own vectors (ACVP) for what we use: ML-DSA-65 and ML-KEM-768. Sources: tests/vectors/kms/README.rst."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from pqcrypto.kem import ml_kem_768 as second
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import signing
from ron.crypto.wrapping import PrivateHalves
from ron.proto.kms import Alg

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "kms"


def read(name: str) -> Any:
    """The vectors of one file."""
    return json.loads((VECTORS / name).read_text())


def mu_of(public: bytes, message: bytes) -> bytes:
    """FIPS 204 §6.3, step 7: what the internal interface signs, of a message that has its prefix already."""
    return hashlib.shake_256(hashlib.shake_256(public).digest(64) + message).digest(64)


class MlDsa(SynchronousTestCase):
    def test_keys_from_seeds(self) -> None:
        """keyGen: what our halves grow from is FIPS 204's ξ."""
        cases = read("mldsa65-acvp.json")["keyGen"]
        self.assertEqual(len(cases), 25)
        for case in cases:
            half = signing.private_half(Alg.ML_DSA, bytes.fromhex(case["seed"]), allow_unlocked=True)
            self.assertEqual(half.public.hex(), case["pk"], case["tcId"])

    def test_signatures(self) -> None:
        """sigVer: the engine takes those that hold and none that was changed: commitment, z, hints, too many hints."""
        group = read("mldsa65-acvp.json")["sigVer"]
        public = bytes.fromhex(group["pk"])
        engine, found = MLDSA65PublicKey.from_public_bytes(public), set()
        for case in group["tests"]:
            message, signature = bytes.fromhex(case["message"]), bytes.fromhex(case["signature"])
            try:
                engine.verify_mu(signature, mu_of(public, message))
                holds = True
            except InvalidSignature:
                holds = False
            self.assertEqual(holds, case["testPassed"], case)
            found.add((holds, case["reason"]))
            # these are of the internal interface: none of them is a signature as we take them, pure with no context
            self.assertFalse(signing.verify(Alg.ML_DSA, public, message, signature), case["tcId"])
        self.assertGreaterEqual(len(found), 4)


class MlKem(SynchronousTestCase):
    def test_keys_from_seeds(self) -> None:
        """keyGen: ours grow from d ‖ z, as FIPS 203 §7.1 has them."""
        cases = read("mlkem768-acvp.json")["keyGen"]
        self.assertEqual(len(cases), 25)
        for case in cases:
            halves = PrivateHalves({Alg.ML_KEM: bytearray.fromhex(case["d"] + case["z"])})
            self.assertEqual(bytes(halves.publics[Alg.ML_KEM]).hex(), case["ek"], case["tcId"])

    def test_encapsulation(self) -> None:
        """encapDecap, AFT: the second provider, which takes expanded keys, finds the secret that was encapsulated."""
        for case in read("mlkem768-acvp.json")["encapsulation"]:
            found = second.decaps(bytes.fromhex(case["dk"]), bytes.fromhex(case["c"]))
            self.assertEqual(bytes(found).hex(), case["k"], case["tcId"])

    def test_decapsulation(self) -> None:
        """encapDecap, VAL: a changed ciphertext gives the implicit rejection's secret, and no error (FIPS 203 §6.3)."""
        group = read("mlkem768-acvp.json")["decapsulation"]
        reasons = set()
        for case in group["tests"]:
            found = second.decaps(bytes.fromhex(group["dk"]), bytes.fromhex(case["c"]))
            self.assertEqual(bytes(found).hex(), case["k"], case["tcId"])
            reasons.add(case["reason"])
        self.assertEqual(len(reasons), 2)

    def test_both_providers_reject_alike(self) -> None:
        """The engine takes seeds only: on NIST's keys it finds what the second provider finds, of changed ones too."""
        cases = [case for case in read("mlkem768-acvp.json")["keyGen"] if "dk" in case]
        self.assertEqual(len(cases), 3)
        for case in cases:
            engine = MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(case["d"] + case["z"]))
            secret, ciphertext = engine.public_key().encapsulate()
            changed = bytes((ciphertext[0] ^ 1,)) + ciphertext[1:]
            expanded = bytes.fromhex(case["dk"])
            self.assertEqual(bytes(second.decaps(expanded, ciphertext)), secret)
            self.assertEqual(bytes(second.decaps(expanded, changed)), engine.decapsulate(changed))
            self.assertNotEqual(engine.decapsulate(changed), secret)
