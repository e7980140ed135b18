"""Ed25519 and ML-DSA-65 against published vectors, against a second engine each, and against malformed input."""

from __future__ import annotations

import base64
import copy
import gc
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import pqcrypto.sign.ml_dsa_65 as second
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from pqcrypto import InvalidSignatureError
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import signing
from ron.crypto.group import ORDER
from ron.crypto.signing import (
    PUBLIC_BYTES,
    SIGNATURE_BYTES,
    SIGNING_ALGS,
    InvalidKeyError,
    check_public,
    private_half,
    verify,
)
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg

VECTORS = Path(__file__).parent.parent / "vectors" / "kms"
SEED = bytes(range(32))
HALVES = {alg: private_half(alg, SEED) for alg in SIGNING_ALGS}
MESSAGE = bytes(32)
algs = st.sampled_from(SIGNING_ALGS)
few = settings(max_examples=40, deadline=None)
# The eight points of small order and the second spellings of some, as in Wycheproof and libsodium's own list
SMALL_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def vectors(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


class BadInput(SynchronousTestCase):
    def test_seeds_of_another_length(self) -> None:
        for alg in SIGNING_ALGS:
            for size in (0, 31, 33, 64):
                self.assertRaises(InvalidKeyError, private_half, alg, bytes(size))

    def test_algorithms_that_do_not_sign(self) -> None:
        for call in (
            lambda alg: private_half(alg, SEED),
            lambda alg: check_public(alg, bytes(32)),
            lambda alg: verify(alg, bytes(32), MESSAGE, bytes(64)),
        ):
            for alg in (Alg.X25519, Alg.ML_KEM):
                error = self.assertRaises(RonError, call, alg)
                self.assertEqual(error.code, ErrorCode.UNSUPPORTED)

    def test_public_keys_of_another_length(self) -> None:
        for alg in SIGNING_ALGS:
            good = HALVES[alg].public
            for bad in (b"", good[:-1], good + b"\0"):
                self.assertRaises(InvalidKeyError, check_public, alg, bad)
                self.assertFalse(verify(alg, bad, MESSAGE, HALVES[alg].sign(MESSAGE)))

    def test_points_of_small_order_are_no_keys(self) -> None:
        for text in SMALL_ORDER:
            self.assertRaises(InvalidKeyError, check_public, Alg.ED25519, bytes.fromhex(text))

    def test_under_a_key_of_small_order_nothing_verifies(self) -> None:
        """S = 0 and R the identity satisfy the equation under such a key, whatever the message."""
        for key in SMALL_ORDER:
            for nonce in SMALL_ORDER:
                self.assertFalse(verify(Alg.ED25519, bytes.fromhex(key), MESSAGE, bytes.fromhex(nonce) + bytes(32)))

    def test_s_plus_the_order_is_refused(self) -> None:
        signature = HALVES[Alg.ED25519].sign(MESSAGE)
        again = signature[:32] + (int.from_bytes(signature[32:], "little") + ORDER).to_bytes(32, "little")
        self.assertTrue(verify(Alg.ED25519, HALVES[Alg.ED25519].public, MESSAGE, signature))
        self.assertFalse(verify(Alg.ED25519, HALVES[Alg.ED25519].public, MESSAGE, again))

    def test_a_second_spelling_of_a_key_is_refused(self) -> None:
        """y = p + 3 is y = 3 with a bit of luck in the encoding: RFC 8032 §5.1.3 takes y below p only."""
        for y in range(19):
            self.assertRaises(InvalidKeyError, check_public, Alg.ED25519, (2**255 - 19 + y).to_bytes(32, "little"))

    @few
    @given(alg=algs, signature=st.binary(max_size=4000))
    def test_any_bytes_are_no_signature(self, alg: Alg, signature: bytes) -> None:
        self.assertFalse(verify(alg, HALVES[alg].public, MESSAGE, signature))

    @few
    @given(alg=algs, at=st.integers(0, 10**6), bit=st.integers(0, 7))
    def test_a_flipped_bit_in_a_signature(self, alg: Alg, at: int, bit: int) -> None:
        signature = bytearray(HALVES[alg].sign(MESSAGE))
        signature[at % len(signature)] ^= 1 << bit
        self.assertFalse(verify(alg, HALVES[alg].public, MESSAGE, bytes(signature)))

    @few
    @given(alg=algs, at=st.integers(0, 10**6), bit=st.integers(0, 7))
    def test_a_flipped_bit_in_the_key(self, alg: Alg, at: int, bit: int) -> None:
        public = bytearray(HALVES[alg].public)
        public[at % len(public)] ^= 1 << bit
        self.assertFalse(verify(alg, bytes(public), MESSAGE, HALVES[alg].sign(MESSAGE)))


class KnownAnswers(SynchronousTestCase):
    def test_rfc_8032(self) -> None:
        for case in vectors("ed25519-rfc8032.json")["cases"]:
            half = private_half(Alg.ED25519, bytes.fromhex(case["seed"]))
            self.assertEqual(half.public.hex(), case["public"], case["name"])
            self.assertEqual(half.sign(bytes.fromhex(case["message"])).hex(), case["signature"], case["name"])

    def test_wycheproof_ed25519(self) -> None:
        """`acceptable` are keys of small or mixed order: none of them passes `check_public`."""
        for group in vectors("ed25519-wycheproof.json")["groups"]:
            public = bytes.fromhex(group["public"])
            for case in group["tests"]:
                said = verify(Alg.ED25519, public, bytes.fromhex(case["message"]), bytes.fromhex(case["signature"]))
                if case["result"] == "acceptable":
                    self.assertRaises(InvalidKeyError, check_public, Alg.ED25519, public)
                    self.assertFalse(said and "SmallOrderPublicKey" in case["flags"], case)
                else:
                    self.assertEqual(said, case["result"] == "valid", case)

    def test_wycheproof_mldsa(self) -> None:
        for group in vectors("mldsa65-wycheproof.json")["groups"]:
            for case in group["tests"]:
                said = verify(
                    Alg.ML_DSA, raw(group["public_b64"]), bytes.fromhex(case["message"]), raw(case["signature_b64"])
                )
                self.assertEqual(said, case["result"] == "valid", (case["id"], case["comment"]))

    def test_fips_204_seeds_grow_into_the_published_keys(self) -> None:
        for case in vectors("mldsa65-kat.json")["cases"]:
            half = private_half(Alg.ML_DSA, bytes.fromhex(case["seed"]))
            self.assertEqual(half.public, raw(case["public_b64"]))

    def test_a_signature_with_a_context_is_not_one_of_ours(self) -> None:
        for case in vectors("mldsa65-kat.json")["cases"]:
            public, message = raw(case["public_b64"]), bytes.fromhex(case["message"])
            signature, context = raw(case["signature_b64"]), bytes.fromhex(case["context"])
            MLDSA65PublicKey.from_public_bytes(public).verify(signature, message, context)
            self.assertFalse(verify(Alg.ML_DSA, public, message, signature))

    def test_lengths(self) -> None:
        for alg, half in HALVES.items():
            self.assertEqual(len(half.public), PUBLIC_BYTES[alg])
            self.assertEqual(len(half.sign(MESSAGE)), SIGNATURE_BYTES[alg])


class TwoEngines(SynchronousTestCase):
    """Each engine takes what the other made, and neither takes it for another message."""

    @few
    @given(message=st.binary(max_size=200), seed=st.binary(min_size=32, max_size=32))
    def test_ed25519_signatures_are_the_same_bytes(self, message: bytes, seed: bytes) -> None:
        half, other = private_half(Alg.ED25519, seed), Ed25519PrivateKey.from_private_bytes(seed)
        self.assertEqual(half.sign(message), other.sign(message))
        Ed25519PublicKey.from_public_bytes(half.public).verify(half.sign(message), message)

    @settings(max_examples=10, deadline=None)
    @given(message=st.binary(max_size=200))
    def test_ours_verifies_with_pqcrypto(self, message: bytes) -> None:
        half = HALVES[Alg.ML_DSA]
        second.verify(half.public, message, half.sign(message))
        self.assertRaises(InvalidSignatureError, second.verify, half.public, message + b"!", half.sign(message))

    @settings(max_examples=10, deadline=None)
    @given(message=st.binary(max_size=200))
    def test_pqcrypto_verifies_with_ours(self, message: bytes) -> None:
        public, secret = second.keygen()
        signature = second.sign(secret, message)
        self.assertTrue(verify(Alg.ML_DSA, public, message, signature))
        self.assertFalse(verify(Alg.ML_DSA, public, message + b"!", signature))

    def test_malformed_mldsa_is_refused_by_both(self) -> None:
        for group in vectors("mldsa65-wycheproof.json")["groups"]:
            for case in group["tests"]:
                public, signature = raw(group["public_b64"]), raw(case["signature_b64"])
                try:
                    second.verify(public, bytes.fromhex(case["message"]), signature)
                    said = True
                except ValueError:
                    said = False
                self.assertEqual(said, case["result"] == "valid", (case["id"], case["comment"]))


class Custody(SynchronousTestCase):
    def test_a_half_is_not_copied_stored_or_shown(self) -> None:
        for alg, half in HALVES.items():
            for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
                self.assertRaises(TypeError, attempt, half)
            self.assertEqual(repr(half), f"<PrivateHalf {alg}>")

    def test_the_base_signs_nothing(self) -> None:
        self.assertRaises(NotImplementedError, signing.PrivateHalf(Alg.ED25519, bytes(32)).sign, MESSAGE)

    def test_the_secret_is_wiped_when_nobody_refers_to_it(self) -> None:
        half = private_half(Alg.ED25519, SEED)
        buffer = half._buffer  # type: ignore[attr-defined]
        self.assertFalse(buffer.closed)
        del half
        gc.collect()
        self.assertTrue(buffer.closed)

    def test_threads_sign_at_once(self) -> None:
        expected = HALVES[Alg.ED25519].sign(MESSAGE)
        wrong: list[bytes] = []

        def many() -> None:
            for _ in range(200):
                if (said := HALVES[Alg.ED25519].sign(MESSAGE)) != expected:
                    wrong.append(said)

        threads = [threading.Thread(target=many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])

    def test_an_engine_without_mldsa_says_what_to_do(self) -> None:
        from cryptography.exceptions import UnsupportedAlgorithm

        def refuse(_raw: bytes) -> None:
            raise UnsupportedAlgorithm("none here")

        error = self.assertRaises(RonError, signing._supported, refuse, SEED)
        self.assertEqual(error.code, ErrorCode.UNSUPPORTED)
        self.assertIn("wheel", error.one_line())
