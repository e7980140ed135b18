"""Blinded keys and signatures under them, against tor's own vectors."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.frost.blinding import blinded_public, blinding_parameter, factor_of
from ron.proto.errors import RonError
from ron.tor.descriptor.blinding import KeySigner, blind, blind_secret, identity_of, sign_expanded, verify
from ron.tor.descriptor.periods import TimePeriod
from ron.tor.onionkeys import OnionKey, address_of, new_key, onion_address, public_key

VECTORS = Path(__file__).parents[2] / "vectors" / "descriptor" / "blinding.json"
DAY = TimePeriod(number=1234, length_min=1440, start_s=1234 * 86_400 + 43_200)
seeds = st.binary(min_size=32, max_size=32)


def key_of(seed: bytes) -> OnionKey:
    expanded = bytearray(hashlib.sha512(seed).digest())
    expanded[0] &= 248
    expanded[31] = expanded[31] & 63 | 64
    return OnionKey("ED25519-V3:" + base64.b64encode(expanded).decode())


class TorsVectors(SynchronousTestCase):
    def test_blinding(self) -> None:
        rows = json.loads(VECTORS.read_text())["vectors"]
        self.assertEqual(len(rows), 10)
        for row in rows:
            secret, public, parameter, blinded, blinded_key = (bytes.fromhex(value) for value in row.values())
            factor = factor_of(parameter)
            self.assertEqual(blind_secret(secret, factor), blinded)
            self.assertEqual(blinded_public(public, factor), blinded_key)
            self.assertTrue(verify(blinded_key, b"text", sign_expanded(blinded, b"text")))

    def test_parameter_key_and_subcredential_of_a_period(self) -> None:
        """The figures of tor's test_blinding_basics."""
        identity = bytes.fromhex("833990B085C1A688C1D4C8B1F6B56AFAF5A2ECA674449E1D704F83765CCB7BC6")
        self.assertEqual(
            blinding_parameter(identity, 1234, 1440).hex().upper(),
            "379E50DB31FEE6775ABD0AF6FB7C371E060308F4F847DB09FE4CFE13AF602287",
        )
        blinded = blind(identity, DAY)
        self.assertEqual(
            blinded.public.hex().upper(), "3A50BF210E8F9EE955AE0014F7A6917FB65EBF098A86305ABB508D1A7291B6D5"
        )
        self.assertEqual(
            blinded.subcredential.hex().upper(), "635D55907816E8D76398A675A50B1C2F3E36B42A5CA77BA3A0441285161AE07D"
        )


class Refusals(SynchronousTestCase):
    def test_addresses_with_no_proper_key(self) -> None:
        for point in (bytes(32), b"\x01" + bytes(31), b"\xff" * 32, b"\x02" + bytes(31)):
            self.assertRaises(RonError, identity_of, onion_address(point))
            self.assertRaises(RonError, blind, point, DAY)
        for text in ("", "x.onion", "a" * 56 + ".onion"):
            self.assertRaises(RonError, identity_of, text)

    def test_signatures_of_wrong_length_or_key(self) -> None:
        for public, signature in ((b"", b""), (bytes(32), bytes(64)), (b"\x01" * 31, bytes(64)), (b"\x01" * 32, b"")):
            self.assertFalse(verify(public, b"text", signature))


class Signers(SynchronousTestCase):
    @settings(max_examples=25, deadline=None)
    @given(seeds, st.binary(max_size=200), st.integers(1, 2**40))
    def test_a_signature_verifies_under_the_blinded_key_only(self, seed: bytes, message: bytes, number: int) -> None:
        key = key_of(seed)
        period = TimePeriod(number=number, length_min=1440, start_s=0)
        signature = self.successResultOf(Deferred.fromCoroutine(KeySigner(key).sign(period, message)))
        blinded = blind(public_key(key), period)
        self.assertTrue(verify(blinded.public, message, signature))
        self.assertFalse(verify(public_key(key), message, signature))
        self.assertFalse(verify(blinded.public, message + b"x", signature))
        self.assertFalse(verify(blind(public_key(key), period.shifted(1)).public, message, signature))

    def test_identity_of_its_address(self) -> None:
        key = new_key()
        self.assertEqual(identity_of(address_of(key)), KeySigner(key).identity)

    def test_the_key_is_in_no_repr(self) -> None:
        key = new_key()
        self.assertNotIn(key.blob[12:40], repr(KeySigner(key)) + str(KeySigner(key)))
