"""Wrapped keys in three suites: published vectors of each KEM, bindings, and everything that must not open."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

from cryptography.hazmat.bindings._rust import openssl
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM
from cryptography.hazmat.primitives.hpke import Suite as Engine
from hypothesis import given, settings
from hypothesis import strategies as st
from pqcrypto.kem import ml_kem_768 as second
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import wrapping
from ron.crypto.hpke import InvalidKeyError
from ron.crypto.wrapping import (
    PUBLIC_BYTES,
    SEED_BYTES,
    PrivateHalves,
    Suite,
    check_public,
    info_of,
    read_head,
    suite_of,
    wrap,
)
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import MAX_WRAPPED_KEY_BYTES, Alg, Kid, WrapResponse, parse_kid

VECTORS = Path(__file__).parent.parent / "vectors"
SEEDS = {Alg.X25519: bytes(range(32)), Alg.ML_KEM: bytes(range(64))}
KEY = PrivateHalves(SEEDS)
KID = parse_kid("acme/wrap/hybrid/00000000-0000-4000-8000-000000000001#v3")
SECRET = b"k" * 32
suites = st.sampled_from(list(Suite))
some = settings(max_examples=60, deadline=None)


def vectors(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


class BadEnvelopes(SynchronousTestCase):
    def refused(self, suite: Suite, envelope: bytes, kid: Kid = KID, key: PrivateHalves = KEY) -> None:
        error = self.assertRaises(RonError, key.open, suite, envelope, info_of(kid, suite))
        self.assertEqual(error.code, ErrorCode.BAD_REQUEST)

    @some
    @given(suite=suites, envelope=st.binary(max_size=1300))
    def test_any_bytes(self, suite: Suite, envelope: bytes) -> None:
        self.refused(suite, envelope)

    @some
    @given(suite=suites, at=st.integers(0, 10**6), bit=st.integers(0, 7))
    def test_a_flipped_bit(self, suite: Suite, at: int, bit: int) -> None:
        """The four bytes of the key version are the caller's to compare; the rest does not open."""
        envelope = bytearray(wrap(KID, suite, KEY.publics, SECRET))
        at %= len(envelope)
        envelope[at] ^= 1 << bit
        if not 2 <= at < 6:
            self.refused(suite, bytes(envelope))

    @some
    @given(suite=suites, cut=st.integers(1, 40))
    def test_cut_short_or_drawn_out(self, suite: Suite, cut: int) -> None:
        envelope = wrap(KID, suite, KEY.publics, SECRET)
        self.refused(suite, envelope[:-cut])
        self.refused(suite, envelope + bytes(cut))

    def test_one_suite_in_the_other_ones_clothes(self) -> None:
        for suite in Suite:
            envelope = wrap(KID, suite, KEY.publics, SECRET)
            for other in set(Suite) - {suite}:
                self.refused(other, envelope)
                number = wrapping._NUMBERS[other]
                self.refused(other, envelope[:1] + bytes([number]) + envelope[2:])

    def test_another_key_tenant_or_version(self) -> None:
        for suite in Suite:
            envelope = wrap(KID, suite, KEY.publics, SECRET)
            for kid in (KID.at(4), KID._replace(tenant="acme2"), KID._replace(uuid=KID.uuid[:-1] + "2")):
                self.refused(suite, envelope, kid)
            other = PrivateHalves({alg: bytes(reversed(seed)) for alg, seed in SEEDS.items()})
            self.refused(suite, envelope, KID, other)

    def test_heads(self) -> None:
        good = wrap(KID, Suite.HYBRID, KEY.publics, SECRET)
        self.assertEqual(read_head(good), (Suite.HYBRID, 3))
        for bad in (b"", good[:6], b"\2" + good[1:], good[:1] + b"\4" + good[2:], good[:2] + bytes(4) + good[6:]):
            self.assertEqual(self.assertRaises(RonError, read_head, bad).code, ErrorCode.BAD_REQUEST)
        self.assertRaises(RonError, read_head, good + bytes(wrapping.MAX_ENVELOPE_BYTES))

    def test_a_low_order_point_in_the_envelope(self) -> None:
        """The exchange would give zero, which anybody knows."""
        envelope = wrap(KID, Suite.CLASSICAL, KEY.publics, SECRET)
        self.refused(Suite.CLASSICAL, envelope[:6] + bytes(32) + envelope[38:])


class BadKeys(SynchronousTestCase):
    def test_seeds_of_another_length(self) -> None:
        for alg, size in SEED_BYTES.items():
            for bad in (0, size - 1, size + 1):
                self.assertRaises(InvalidKeyError, PrivateHalves, {alg: bytes(bad)})

    def test_algorithms_that_sign(self) -> None:
        for alg in (Alg.ED25519, Alg.ML_DSA):
            for call in (lambda: PrivateHalves({alg: bytes(32)}), lambda: check_public(alg, bytes(32))):  # noqa: B023
                self.assertEqual(self.assertRaises(RonError, call).code, ErrorCode.UNSUPPORTED)

    def test_public_keys(self) -> None:
        for alg, size in PUBLIC_BYTES.items():
            check_public(alg, KEY.publics[alg])
            # all zero is a point of small order; all ones are coefficients beyond q
            wild = bytes(size) if alg is Alg.X25519 else b"\xff" * size
            for bad in (b"", bytes(size - 1), bytes(size + 1), wild):
                self.assertRaises(InvalidKeyError, check_public, alg, bad)

    def test_a_suite_whose_half_is_missing(self) -> None:
        for alg, unfit in ((Alg.X25519, (Suite.HYBRID, Suite.PQ)), (Alg.ML_KEM, (Suite.HYBRID, Suite.CLASSICAL))):
            half = PrivateHalves({alg: SEEDS[alg]})
            for suite in unfit:
                error = self.assertRaises(RonError, wrap, KID, suite, half.publics, SECRET)
                self.assertEqual(error.code, ErrorCode.UNSUPPORTED)
                envelope = wrap(KID, suite, KEY.publics, SECRET)
                error = self.assertRaises(RonError, half.open, suite, envelope, info_of(KID, suite))
                self.assertEqual(error.code, ErrorCode.UNSUPPORTED)

    def test_secrets_of_a_wrong_size(self) -> None:
        for size in (0, MAX_WRAPPED_KEY_BYTES + 1):
            error = self.assertRaises(RonError, wrap, KID, Suite.HYBRID, KEY.publics, bytes(size))
            self.assertEqual(error.code, ErrorCode.BAD_REQUEST)

    def test_a_kid_without_a_version(self) -> None:
        self.assertRaises(ValueError, info_of, KID.at(0), Suite.HYBRID)
        self.assertRaises(ValueError, wrap, KID.at(0), Suite.HYBRID, KEY.publics, SECRET)

    def test_a_key_is_not_copied_stored_or_shown(self) -> None:
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            self.assertRaises(TypeError, attempt, KEY)
        self.assertEqual(repr(KEY), "<PrivateHalves x25519 ml-kem>")

    def test_an_engine_without_mlkem_says_what_to_do(self) -> None:
        from cryptography.exceptions import UnsupportedAlgorithm

        class Without:
            @staticmethod
            def from_seed_bytes(_seed: bytes) -> None:
                raise UnsupportedAlgorithm("none here")

        self.patch(wrapping, "MLKEM768PrivateKey", Without)
        error = self.assertRaises(RonError, PrivateHalves, {Alg.ML_KEM: bytes(64)})
        self.assertEqual(error.code, ErrorCode.UNSUPPORTED)


class Wrapping(SynchronousTestCase):
    @some
    @given(suite=suites, secret=st.binary(min_size=1, max_size=200))
    def test_round_trip(self, suite: Suite, secret: bytes) -> None:
        envelope = wrap(KID, suite, KEY.publics, secret)
        self.assertEqual(len(envelope), len(secret) + suite.overhead_bytes)
        self.assertEqual(read_head(envelope).suite, suite)
        self.assertEqual(KEY.open(suite, envelope, info_of(KID, suite)), secret)
        self.assertNotEqual(envelope, wrap(KID, suite, KEY.publics, secret))

    def test_the_largest_fits_the_largest_envelope(self) -> None:
        envelope = wrap(KID, Suite.HYBRID, KEY.publics, bytes(MAX_WRAPPED_KEY_BYTES))
        self.assertEqual(len(envelope), wrapping.MAX_ENVELOPE_BYTES)
        self.assertEqual(len(KEY.open(Suite.HYBRID, envelope, info_of(KID, Suite.HYBRID))), MAX_WRAPPED_KEY_BYTES)

    def test_names_are_those_of_the_wire(self) -> None:
        self.assertEqual([suite_of(mode) for mode in ("hybrid", "classical", "pq")], list(Suite))
        for suite in Suite:
            self.assertIn(f"`{suite.value}`", WrapResponse.__doc__ or "")
        self.assertEqual(wrapping._NUMBERS, {Suite.HYBRID: 1, Suite.CLASSICAL: 2, Suite.PQ: 3})

    def test_our_own_never_change(self) -> None:
        for case in vectors("kms/wrapped-v1.json")["cases"]:
            key = PrivateHalves({Alg(alg): bytes.fromhex(seed) for alg, seed in case["seeds"].items()})
            kid, suite = parse_kid(case["kid"]), Suite(case["alg"])
            self.assertEqual({alg: raw(public) for alg, public in case["public_b64"].items()}, key.publics)
            self.assertEqual(info_of(kid, suite).hex(), case["info"])
            self.assertEqual(
                key.open(suite, raw(case["wrapped_b64"]), info_of(kid, suite)), raw(case["plaintext_key_b64"])
            )


class PublishedVectors(SynchronousTestCase):
    def test_mlkem_seeds_and_ciphertexts(self) -> None:
        """FIPS 203, through both engines."""
        for case in vectors("kms/mlkem768-kat.json")["cases"]:
            half = PrivateHalves({Alg.ML_KEM: bytes.fromhex(case["seed"])})
            self.assertEqual(half.publics[Alg.ML_KEM], raw(case["public_b64"]))
            key = MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(case["seed"]))
            self.assertEqual(key.decapsulate(raw(case["ciphertext_b64"])).hex(), case["shared"])

    def test_pqcrypto_encapsulates_to_our_halves(self) -> None:
        ciphertext, shared = second.encaps(KEY.publics[Alg.ML_KEM])
        self.assertEqual(MLKEM768PrivateKey.from_seed_bytes(SEEDS[Alg.ML_KEM]).decapsulate(ciphertext), shared)

    def test_hpke_with_mlkem_alone(self) -> None:
        """draft-ietf-hpke-pq has AES-128-GCM with this KEM; the AEAD is proven by the two suites of `test_hpke`."""
        case = vectors("kms/hpke-mlkem768.json")
        key = MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(case["skRm"]))
        self.assertEqual(key.public_key().public_bytes_raw(), raw(case["pkRm_b64"]))
        opened = openssl.hpke._decrypt_with_aad(
            Engine(KEM.MLKEM768, KDF.HKDF_SHA256, AEAD.AES_128_GCM),
            raw(case["enc_b64"]) + bytes.fromhex(case["ct"]),
            key,
            info=bytes.fromhex(case["info"]),
            aad=bytes.fromhex(case["aad"]),
        )
        self.assertEqual(opened.hex(), case["pt"])

    def test_xwing_with_two_halves_is_xwing_with_one_seed(self) -> None:
        """The published seed, grown into two halves as the draft has it, opens the published ciphertext here too."""
        for case in vectors("e2e/hpke-kat.json")["cases"]:
            if case["suite"] != "pq":
                continue
            grown = hashlib.shake_256(bytes.fromhex(case["skRm"])).digest(96)
            key = PrivateHalves({Alg.ML_KEM: grown[:64], Alg.X25519: grown[64:]})
            self.assertEqual((key.publics[Alg.ML_KEM] + key.publics[Alg.X25519]).hex(), case["pkRm"])
            opened = openssl.hpke._decrypt_with_aad(
                wrapping._ENGINES[Suite.HYBRID],
                bytes.fromhex(case["enc"] + case["ct"]),
                wrapping.MLKEM768X25519PrivateKey(key._keys[Alg.ML_KEM], key._keys[Alg.X25519]),
                info=bytes.fromhex(case["info"]),
                aad=bytes.fromhex(case["aad"]),
            )
            self.assertEqual(opened.hex(), case["pt"])
