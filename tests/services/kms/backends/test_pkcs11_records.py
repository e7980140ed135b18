"""What a token gives back is judged as a stranger's request would be. Needs no token."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from pkcs11 import Mechanism
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import RonError
from ron.proto.kms import Alg
from ron.services.kms.backends.pkcs11_objects import point_bytes
from ron.services.kms.backends.pkcs11_records import (
    MAX_RECORD_BYTES,
    DamagedRecordError,
    HalfRecord,
    KeyRecord,
    bound_to,
    decode,
    encode,
    object_id,
    slug,
)
from ron.services.kms.backends.pkcs11_sealing import GCM, HMAC, sealer_of
from tests.services.kms.backends.contract import new_kid

KID = new_kid()
HALVES = (
    HalfRecord(alg=Alg.ED25519, public=bytes(32), where="token"),
    HalfRecord(alg=Alg.ML_DSA, public=bytes(1952), where="aes-gcm", sealed=bytes(48)),
)


class Records(SynchronousTestCase):
    """The data object's value."""

    @settings(deadline=None, max_examples=100)
    @given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda tail: encode(good())[:-40] + tail))
    def test_whatever_comes_is_a_record_or_damaged(self, raw: bytes) -> None:
        """Nothing else is ever raised, and what is taken says what it is."""
        try:
            record = decode(raw, str(KID))
        except DamagedRecordError:
            return
        self.assertEqual(record.kid, str(KID))

    def test_bad_ones(self) -> None:
        """Another key's, without a version, a half twice, fields that nobody knows, too long."""
        whole = msgspec.msgpack.decode(encode(good()))
        for change in (
            {"kid": str(KID.at(2))},
            {"kid": str(KID.at(0))},
            {"halves": []},
            {"halves": [whole["halves"][0]] * 2},
            {"v": 2},
            {"more": 1},
        ):
            self.assertRaises(DamagedRecordError, decode, msgspec.msgpack.encode({**whole, **change}), str(KID))
        unversioned = msgspec.msgpack.encode({**whole, "kid": str(KID.at(0))})
        self.assertRaises(DamagedRecordError, decode, unversioned, str(KID.at(0)))
        error = self.assertRaises(DamagedRecordError, decode, bytes(MAX_RECORD_BYTES + 1), "no kid at all")
        self.assertNotIn("no kid at all", error.one_line())

    def test_there_and_back(self) -> None:
        """With the class of each half, in their order and each once."""
        record = decode(encode(good()), str(KID))
        self.assertEqual(record, good())
        self.assertEqual(record.held("pkcs11-x").attestation_class, "pkcs11-x+pkcs11-wrapped")
        self.assertRaises(RonError, record.half, Alg.X25519)

    def test_what_seals_is_bound(self) -> None:
        """Every part counts, and no two of them run into each other."""
        bounds = {
            bound_to(kid, alg, public)
            for kid in (KID, KID.at(2))
            for alg in (Alg.ED25519, Alg.ML_DSA)
            for public in (b"a", b"b")
        }
        self.assertEqual(len(bounds), 8)
        self.assertEqual(len(object_id(KID)), 16)
        self.assertNotEqual(object_id(KID), object_id(KID.at(2)))


class Tokens(SynchronousTestCase):
    """What tokens say in various ways."""

    def test_models(self) -> None:
        """Any text is a part of a class."""
        for model, name in (("SoftHSM v2", "softhsm-v2"), ("YubiHSM", "yubihsm"), ("", "token"), ("é/..", "token")):
            self.assertEqual(slug(model), name)

    def test_points(self) -> None:
        """DER or raw; anything else stays, and does not verify later."""
        raw = bytes(range(32))
        self.assertEqual([point_bytes(b"\x04\x20" + raw), point_bytes(raw)], [raw, raw])
        self.assertEqual(point_bytes(b"\x04\x21" + raw), b"\x04\x21" + raw)

    def test_the_best_way_to_seal(self) -> None:
        """AES-GCM, else HMAC, else none."""
        gcm, hmac = (
            {Mechanism.AES_GCM, Mechanism.AES_KEY_GEN},
            {Mechanism.SHA256_HMAC, Mechanism.GENERIC_SECRET_KEY_GEN},
        )
        self.assertIs(sealer_of(gcm | hmac), GCM)
        self.assertIs(sealer_of(hmac | {Mechanism.AES_GCM}), HMAC)
        self.assertIsNone(sealer_of({Mechanism.AES_GCM, Mechanism.SHA256_HMAC}))


def good() -> KeyRecord:
    """One of each."""
    return KeyRecord(kid=str(KID), halves=HALVES)
