"""The master key in an age file: opened by rage itself, and by nobody with another passphrase."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyrage
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import ageroot
from ron.crypto.kdf import Label
from ron.crypto.sealing import Aead, BrokenSealError, WrongPassphraseError
from ron.proto.errors import ErrorCode, RonError

VECTORS = Path(__file__).parent.parent / "vectors" / "kms" / "age-root.json"
PASSPHRASE = b"correct horse battery staple"
LABEL = Label("acme", "audit", "key/1")
AEAD = Aead.CHACHA20_POLY1305


class AgeRoots(SynchronousTestCase):
    def setUp(self) -> None:
        self.case = json.loads(VECTORS.read_text())
        self.root = bytes.fromhex(self.case["root"])

    def test_bad_input(self) -> None:
        for passphrase in (b"", b"1234567", b"x" * 1025, b"\xff" * 8):
            self.assertRaises(ValueError, ageroot.new_root, passphrase, AEAD)
        for root in (b"", b"age", ageroot.MAGIC + bytes(ageroot.MAX_ROOT_BYTES)):
            self.assertRaises(BrokenSealError, ageroot.open_root, root, PASSPHRASE, AEAD)
        self.assertRaises(WrongPassphraseError, ageroot.open_root, ageroot.MAGIC, PASSPHRASE, AEAD)

    def test_a_new_root(self) -> None:
        """The one that takes rage's full cost, which cannot be lowered."""
        root, sealer = ageroot.new_root(PASSPHRASE, AEAD)
        blob = sealer.seal(LABEL, b"hello")
        self.assertEqual(ageroot.open_root(root, PASSPHRASE, AEAD).open(LABEL, blob), b"hello")

    def test_a_pinned_root(self) -> None:
        """Written by the book of age-encryption.org/v1, with scrypt at 2^4, by none of our engines."""
        with ageroot.open_root(self.root, PASSPHRASE, AEAD).lend() as master:
            self.assertEqual(bytes(master).hex(), self.case["master"])

    def test_another_passphrase_or_a_changed_root(self) -> None:
        for passphrase in (PASSPHRASE + b"!", PASSPHRASE[1:], b"\xff" * 8):
            self.assertRaises(WrongPassphraseError, ageroot.open_root, self.root, passphrase, AEAD)
        for at in range(len(ageroot.MAGIC), len(self.root)):
            changed = bytearray(self.root)
            changed[at] ^= 0x40
            self.assertRaises(WrongPassphraseError, ageroot.open_root, bytes(changed), PASSPHRASE, AEAD)
        self.assertRaises(WrongPassphraseError, ageroot.open_root, self.root[:-1], PASSPHRASE, AEAD)

    def test_a_file_that_holds_something_else(self) -> None:
        self.assertRaises(BrokenSealError, ageroot.open_root, bytes.fromhex(self.case["other"]), PASSPHRASE, AEAD)

    def test_without_the_engine_it_says_what_to_do(self) -> None:
        self.addCleanup(sys.modules.__setitem__, "pyrage", pyrage)
        sys.modules["pyrage"] = None  # type: ignore[assignment]
        error = self.assertRaises(RonError, ageroot.new_root, PASSPHRASE, AEAD)
        self.assertEqual(error.code, ErrorCode.UNSUPPORTED)
        self.assertIn("[age]", error.one_line())
