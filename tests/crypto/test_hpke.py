"""HPKE against the published vectors, and the promises `ron.crypto.hpke` adds to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.bindings._rust import openssl
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import hpke
from ron.crypto.hpke import InvalidKeyError, OpenError, PrivateKey, PublicKey, Suite

VECTORS = Path(__file__).parent.parent / "vectors" / "e2e" / "hpke-kat.json"

# Points of order 1, 2, 4 and 8 on Curve25519: every exchange with them gives zero (RFC 7748 §6.1).
LOW_ORDER_POINTS = [
    bytes(32),
    (1).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]

suites = st.sampled_from(list(Suite))
KEYS = {suite: PrivateKey.generate(suite) for suite in Suite}


def known_answers() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(VECTORS.read_text())["cases"]
    return cases


class KnownAnswers(SynchronousTestCase):
    """RFC 9180 A.2 and draft-ietf-hpke-pq: seeds, public keys and ciphertexts are the standard's, not ours."""

    def test_every_suite_has_a_vector(self) -> None:
        self.assertEqual({case["suite"] for case in known_answers()}, {suite.label for suite in Suite})

    def test_seed_grows_into_the_published_public_key(self) -> None:
        for case in known_answers():
            key = PrivateKey(Suite[case["suite"].upper()], bytes.fromhex(case["skRm"]))
            self.assertEqual(key.public.raw.hex(), case["pkRm"], case["source"])

    def test_published_ciphertext_opens(self) -> None:
        """The vectors carry an aad and the engine's public call takes none, so this goes through its private one."""
        for case in known_answers():
            key = PrivateKey(Suite[case["suite"].upper()], bytes.fromhex(case["skRm"]))
            plaintext = openssl.hpke._decrypt_with_aad(
                hpke._ENGINES[key.suite],
                bytes.fromhex(case["enc"] + case["ct"]),
                key._key,
                info=bytes.fromhex(case["info"]),
                aad=bytes.fromhex(case["aad"]),
            )
            self.assertEqual(plaintext.hex(), case["pt"], case["source"])

    def test_lengths_are_the_registered_ones(self) -> None:
        """IANA HPKE KEM registry: Nenc and Npk of 0x0020 and 0x647a; the tag has 16 bytes."""
        self.assertEqual((Suite.CLASSICAL.public_bytes, Suite.CLASSICAL.overhead_bytes), (32, 32 + 16))
        self.assertEqual((Suite.PQ.public_bytes, Suite.PQ.overhead_bytes), (1216, 1120 + 16))

    def test_numbers_on_the_wire_never_change(self) -> None:
        self.assertEqual({suite.label: int(suite) for suite in Suite}, {"classical": 0, "pq": 1})


class Sealing(SynchronousTestCase):
    """Round trips, and everything that must not open."""

    @settings(max_examples=40, deadline=None)
    @given(suite=suites, plaintext=st.binary(max_size=100), info=st.binary(max_size=50))
    def test_round_trip(self, suite: Suite, plaintext: bytes, info: bytes) -> None:
        key = KEYS[suite]
        sealed = key.public.seal(plaintext, info=info)
        self.assertEqual(len(sealed), len(plaintext) + suite.overhead_bytes)
        self.assertEqual(key.open(sealed, info=info), plaintext)

    @settings(max_examples=40, deadline=None)
    @given(suite=suites, junk=st.binary(max_size=1300))
    def test_junk_raises_only_open_error(self, suite: Suite, junk: bytes) -> None:
        self.assertRaises(OpenError, KEYS[suite].open, junk, info=b"")

    def test_other_info_other_key_and_other_suite_do_not_open(self) -> None:
        for suite, key in KEYS.items():
            sealed = key.public.seal(b"content key", info=b"here")
            self.assertRaises(OpenError, key.open, sealed, info=b"there")
            self.assertRaises(OpenError, PrivateKey.generate(suite).open, sealed, info=b"here")
            other = KEYS[Suite.PQ if suite is Suite.CLASSICAL else Suite.CLASSICAL]
            self.assertRaises(OpenError, other.open, sealed, info=b"here")

    def test_encapsulated_low_order_point_does_not_open(self) -> None:
        """A sender who sends such a point knows the shared secret of DHKEM in advance."""
        for point in LOW_ORDER_POINTS:
            self.assertRaises(OpenError, KEYS[Suite.CLASSICAL].open, point + bytes(32 + 16), info=b"")

    def test_sealing_twice_gives_different_bytes(self) -> None:
        for key in KEYS.values():
            self.assertNotEqual(key.public.seal(b"same", info=b""), key.public.seal(b"same", info=b""))


class Keys(SynchronousTestCase):
    """A bad key is refused when it is made, not when the first message fails."""

    def test_generated_keys_differ(self) -> None:
        for suite in Suite:
            self.assertNotEqual(PrivateKey.generate(suite).seed, PrivateKey.generate(suite).seed)

    def test_wrong_lengths(self) -> None:
        for suite in Suite:
            for length in {0, 31, 32, 33, 1184, 1215, 1216, 1217} - {suite.public_bytes}:
                self.assertRaises(InvalidKeyError, PublicKey, suite, b"\x09" * length)
            for length in (0, 31, 33, 64):
                self.assertRaises(InvalidKeyError, PrivateKey, suite, bytes(length))

    def test_low_order_points(self) -> None:
        mlkem_half = KEYS[Suite.PQ].public.raw[:-32]
        for point in LOW_ORDER_POINTS:
            self.assertRaises(InvalidKeyError, PublicKey, Suite.CLASSICAL, point)
            self.assertRaises(InvalidKeyError, PublicKey, Suite.PQ, mlkem_half + point)

    def test_mlkem_coefficients_out_of_range(self) -> None:
        """FIPS 203 §7.2, the modulus check: 0xfff is not below q = 3329."""
        raw = KEYS[Suite.PQ].public.raw
        self.assertRaises(InvalidKeyError, PublicKey, Suite.PQ, b"\xff\xff\xff" + raw[3:])

    def test_repr_shows_no_secret(self) -> None:
        for suite, key in KEYS.items():
            self.assertEqual(repr(key), f"<PrivateKey {suite.label}>")
