"""Key trees: RFC 5869's vectors, our own pinned ones, and labels that cannot be left out or mixed up."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.kdf import MAX_PART, MAX_SUBKEY_BYTES, Label, subkey
from ron.proto.errors import ErrorCode, RonError

VECTORS = Path(__file__).parent.parent / "vectors" / "kms"
SECRET = bytes(range(32))
parts = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=20)
labels = st.builds(Label, parts, parts, parts)


class BadInput(SynchronousTestCase):
    def test_labels(self) -> None:
        for part in ("", "a:b", "::", "a\nb", "a\0b", "x" * (MAX_PART + 1)):
            for at in range(3):
                label = Label(*("good" if number != at else part for number in range(3)))
                error = self.assertRaises(RonError, subkey, SECRET, label)
                self.assertEqual(error.code, ErrorCode.BAD_REQUEST)

    def test_secrets_and_sizes(self) -> None:
        label = Label("a", "b", "c")
        for secret in (b"", bytes(31)):
            self.assertRaises(ValueError, subkey, secret, label)
        for size in (0, -1, MAX_SUBKEY_BYTES + 1):
            self.assertRaises(ValueError, subkey, SECRET, label, size=size)


class Trees(SynchronousTestCase):
    def test_rfc_5869(self) -> None:
        """Of the engine; a label has no room for the binary `info` of these."""
        for case in json.loads((VECTORS / "hkdf-rfc5869.json").read_text())["cases"]:
            salt, info = bytes.fromhex(case["salt"]), bytes.fromhex(case["info"])
            grown = HKDF(SHA256(), case["length"], salt=salt, info=info).derive(bytes.fromhex(case["ikm"]))
            self.assertEqual(grown.hex(), case["okm"])

    def test_our_own_never_change(self) -> None:
        for case in json.loads((VECTORS / "subkeys-v1.json").read_text())["cases"]:
            label = Label(*case["label"])
            self.assertEqual(label.info.decode(), case["info"])
            grown = subkey(bytes.fromhex(case["secret"]), label, salt=bytes.fromhex(case["salt"]), size=case["size"])
            self.assertEqual(grown.hex(), case["subkey"])

    @settings(max_examples=60, deadline=None)
    @given(one=labels, other=labels)
    def test_labels_that_differ_give_keys_that_differ(self, one: Label, other: Label) -> None:
        self.assertEqual(one == other, one.info == other.info)
        self.assertEqual(one == other, subkey(SECRET, one) == subkey(SECRET, other))

    def test_a_branch_of_a_branch(self) -> None:
        label = Label("acme", "audit", "one")
        branch = subkey(SECRET, label)
        self.assertNotEqual(subkey(branch, label), branch)
        self.assertNotEqual(subkey(SECRET, label, salt=b"salt"), branch)
        self.assertEqual(subkey(SECRET, label, size=16), branch[:16])
