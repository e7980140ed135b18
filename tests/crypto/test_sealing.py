"""Sealed blobs and roots: nothing opens that was changed, and no key seals two messages."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import sealing
from ron.crypto.kdf import Label
from ron.crypto.sealing import (
    BLOB_OVERHEAD,
    MAX_PLAINTEXT_BYTES,
    Aead,
    BrokenSealError,
    ScryptCost,
    Sealer,
    WrongPassphraseError,
    fresh_sealer,
    new_root,
    open_root,
    reseal_root,
)
from ron.crypto.secrets import SecretBuffer

VECTORS = Path(__file__).parent.parent / "vectors" / "kms"
CHEAP = ScryptCost(log_n=4, r=1)
PASSPHRASE = b"correct horse battery staple"
LABEL = Label("acme", "audit", "key/1")
SEALERS = {aead: fresh_sealer(aead) for aead in Aead}
aeads = st.sampled_from(list(Aead))
some = settings(max_examples=60, deadline=None)


def sealer_of(master: bytes, aead: Aead = Aead.CHACHA20_POLY1305) -> Sealer:
    return Sealer(SecretBuffer.taking(bytearray(master)), aead)


class BadBlobs(SynchronousTestCase):
    @some
    @given(aead=aeads, blob=st.binary(max_size=200))
    def test_any_bytes(self, aead: Aead, blob: bytes) -> None:
        self.assertRaises(BrokenSealError, SEALERS[aead].open, LABEL, blob)

    @some
    @given(aead=aeads, plaintext=st.binary(max_size=80), at=st.integers(0, 10**6), bit=st.integers(0, 7))
    def test_a_flipped_bit(self, aead: Aead, plaintext: bytes, at: int, bit: int) -> None:
        """Also in the header, and in the number of the AEAD: one blob is not opened as the other's."""
        blob = bytearray(SEALERS[aead].seal(LABEL, plaintext))
        blob[at % len(blob)] ^= 1 << bit
        self.assertRaises(BrokenSealError, SEALERS[aead].open, LABEL, bytes(blob))

    @some
    @given(aead=aeads, cut=st.integers(1, 60))
    def test_cut_short_or_drawn_out(self, aead: Aead, cut: int) -> None:
        blob = SEALERS[aead].seal(LABEL, b"hello")
        self.assertRaises(BrokenSealError, SEALERS[aead].open, LABEL, blob[:-cut])
        self.assertRaises(BrokenSealError, SEALERS[aead].open, LABEL, blob + bytes(cut))

    def test_one_aead_in_the_other_ones_clothes(self) -> None:
        blob = bytearray(SEALERS[Aead.CHACHA20_POLY1305].seal(LABEL, b"hello"))
        blob[4] = Aead.AES_256_GCM
        self.assertRaises(BrokenSealError, SEALERS[Aead.CHACHA20_POLY1305].open, LABEL, bytes(blob))
        blob[4] = 3
        self.assertRaises(BrokenSealError, SEALERS[Aead.CHACHA20_POLY1305].open, LABEL, bytes(blob))

    def test_another_label_or_another_master(self) -> None:
        blob = SEALERS[Aead.AES_256_GCM].seal(LABEL, b"hello")
        for changed in (LABEL._replace(tenant="acme2"), LABEL._replace(purpose="x"), LABEL._replace(ctx="key/2")):
            self.assertRaises(BrokenSealError, SEALERS[Aead.AES_256_GCM].open, changed, blob)
        self.assertRaises(BrokenSealError, fresh_sealer().open, LABEL, blob)

    def test_too_much(self) -> None:
        big = bytes(MAX_PLAINTEXT_BYTES + 1)
        self.assertRaises(ValueError, SEALERS[Aead.AES_256_GCM].seal, LABEL, big)
        self.assertRaises(BrokenSealError, SEALERS[Aead.AES_256_GCM].open, LABEL, big + bytes(BLOB_OVERHEAD))

    def test_a_master_of_another_size(self) -> None:
        self.assertRaises(ValueError, sealer_of, bytes(31))


class Blobs(SynchronousTestCase):
    @some
    @given(aead=aeads, plaintext=st.binary(max_size=300))
    def test_round_trip(self, aead: Aead, plaintext: bytes) -> None:
        blob = SEALERS[aead].seal(LABEL, plaintext)
        self.assertEqual(len(blob), len(plaintext) + BLOB_OVERHEAD)
        self.assertEqual(SEALERS[aead].open(LABEL, blob), plaintext)
        self.assertNotIn(plaintext or b"?" * 40, blob if len(plaintext) > 8 else b"")

    def test_no_key_seals_twice(self) -> None:
        """The same message under the same label: another salt, so another key under the one nonce there is."""
        for sealer in SEALERS.values():
            blobs = [sealer.seal(LABEL, b"hello") for _ in range(100)]
            self.assertEqual(len({blob[5:37] for blob in blobs}), 100)
            self.assertEqual(len({blob[37:] for blob in blobs}), 100)

    def test_wiped_it_opens_nothing(self) -> None:
        sealer = fresh_sealer()
        blob = sealer.seal(LABEL, b"hello")
        sealer.close()
        self.assertRaises(ValueError, sealer.open, LABEL, blob)
        self.assertRaises(ValueError, sealer.seal, LABEL, b"hello")
        self.assertEqual(repr(sealer), "<Sealer chacha20poly1305>")

    def test_our_own_never_change(self) -> None:
        for case in json.loads((VECTORS / "sealed-v1.json").read_text())["blobs"]:
            sealer = sealer_of(bytes.fromhex(case["master"]))
            opened = sealer.open(Label(*case["label"]), bytes.fromhex(case["blob"]))
            self.assertEqual((opened.hex(), bytes.fromhex(case["blob"])[4]), (case["plaintext"], case["aead"]))


class Roots(SynchronousTestCase):
    def test_passphrases_of_a_wrong_size(self) -> None:
        for passphrase in (b"", b"1234567", b"x" * 1025):
            self.assertRaises(ValueError, new_root, passphrase, CHEAP, Aead.AES_256_GCM)

    def test_a_wrong_passphrase(self) -> None:
        root, _ = new_root(PASSPHRASE, CHEAP, Aead.AES_256_GCM)
        for wrong in (PASSPHRASE + b"!", PASSPHRASE[:-1], b"x" * 28):
            self.assertRaises(WrongPassphraseError, open_root, root, wrong, Aead.AES_256_GCM)

    def test_a_flipped_bit_anywhere(self) -> None:
        root, _ = new_root(PASSPHRASE, CHEAP, Aead.CHACHA20_POLY1305)
        for at in range(len(root)):
            changed = bytearray(root)
            # the costs' high bits ask for more work than anybody would have asked for
            changed[at] ^= 0x80
            self.assertRaises(
                (WrongPassphraseError, BrokenSealError), open_root, bytes(changed), PASSPHRASE, Aead.CHACHA20_POLY1305
            )

    def test_a_cost_beyond_all_bounds_is_refused_before_it_is_paid(self) -> None:
        root, _ = new_root(PASSPHRASE, CHEAP, Aead.AES_256_GCM)
        for cost in ((30, 8, 1), (22, 32, 1), (3, 8, 1), (17, 0, 1), (17, 33, 1), (17, 8, 0), (17, 8, 255)):
            costly = root[:4] + bytes(cost) + root[7:]
            self.assertRaises(BrokenSealError, open_root, costly, PASSPHRASE, Aead.AES_256_GCM)
            self.assertRaises(BrokenSealError, new_root, PASSPHRASE, ScryptCost(*cost), Aead.AES_256_GCM)

    def test_what_is_no_root(self) -> None:
        for root in (b"", b"RKR\x01", bytes(124), bytes(125)):
            self.assertRaises(BrokenSealError, open_root, root, PASSPHRASE, Aead.AES_256_GCM)

    def test_blobs_open_under_a_root_that_was_read_again(self) -> None:
        for aead in Aead:
            root, sealer = new_root(PASSPHRASE, CHEAP, aead)
            blob = sealer.seal(LABEL, b"hello")
            self.assertEqual(open_root(root, PASSPHRASE, aead).open(LABEL, blob), b"hello")

    def test_two_roots_have_two_masters(self) -> None:
        _, one = new_root(PASSPHRASE, CHEAP, Aead.AES_256_GCM)
        _, other = new_root(PASSPHRASE, CHEAP, Aead.AES_256_GCM)
        self.assertRaises(BrokenSealError, other.open, LABEL, one.seal(LABEL, b"hello"))

    def test_another_passphrase_for_the_same_blobs(self) -> None:
        root, sealer = new_root(PASSPHRASE, CHEAP, Aead.AES_256_GCM)
        blob = sealer.seal(LABEL, b"hello")
        again = reseal_root(sealer, b"another passphrase", ScryptCost(log_n=5, r=2), Aead.CHACHA20_POLY1305)
        self.assertRaises(WrongPassphraseError, open_root, again, PASSPHRASE, Aead.AES_256_GCM)
        self.assertEqual(open_root(again, b"another passphrase", Aead.AES_256_GCM).open(LABEL, blob), b"hello")
        self.assertNotEqual(again, root)

    def test_our_own_never_change(self) -> None:
        case = json.loads((VECTORS / "sealed-v1.json").read_text())["root"]
        sealer = open_root(bytes.fromhex(case["root"]), case["passphrase"].encode(), Aead.CHACHA20_POLY1305)
        with sealer.lend() as master:
            self.assertEqual(bytes(master).hex(), case["master"])

    def test_the_usual_cost(self) -> None:
        """128 MiB: RFC 7914 §2 and what a node can spare."""
        usual = ScryptCost()
        self.assertEqual((usual, 128 * usual.r << usual.log_n), ((17, 8, 1), 128 * 2**20))
        usual.check()
        self.assertLessEqual(128 * usual.r << usual.log_n, sealing.MAX_SCRYPT_BYTES)
