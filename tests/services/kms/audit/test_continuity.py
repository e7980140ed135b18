"""A new key is the log's when the old one says so, and the new one says that it is there."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.merkle import EMPTY_ROOT, CompactRange, leaf_hash, verify_consistency, verify_inclusion
from ron.crypto.notes import BadNoteError, Head, open_by, parse_vkey, sign_note
from ron.services.kms.audit.continuity import build, of, unsigned, verify
from ron.services.kms.audit.leaves import decode, encode
from ron.services.kms.ports import AuditEntry
from tests.services.kms.audit.support import ORIGIN, Keys, entry

OLD, NEW, THIRD = Keys(1), Keys(2), Keys(3)
HEAD = Head(ORIGIN, 7, b"r" * 32)


class Refused(SynchronousTestCase):
    def test_signatures_that_are_missing(self) -> None:
        text = unsigned(HEAD, OLD.public, NEW.public)
        first, second = OLD.signers
        for signers in ((first, second), (*NEW.signers,), (first, *NEW.signers), (first, second, NEW.signers[0])):
            self.assertRaises(BadNoteError, verify, sign_note(text, signers), OLD.public)
        self.assertRaises(BadNoteError, verify, build(HEAD, OLD.signers, NEW.signers), THIRD.public)

    def test_old_keys_that_are_not_all_that_are_trusted(self) -> None:
        text = unsigned(HEAD, OLD.public[:1], NEW.public)
        self.assertRaises(BadNoteError, verify, sign_note(text, [*OLD.signers, *NEW.signers]), OLD.public)
        more = unsigned(HEAD, [*OLD.public, THIRD.public[0]], NEW.public)
        self.assertRaises(BadNoteError, verify, sign_note(more, [*OLD.signers, *NEW.signers]), OLD.public)

    def test_records_that_are_none(self) -> None:
        for old, new in (((), NEW.public), (OLD.public, ()), (OLD.public, OLD.public), (OLD.public * 3, NEW.public)):
            self.assertRaises(BadNoteError, unsigned, HEAD, old, new)
        self.assertRaises(BadNoteError, build, HEAD, OLD.signers, (*NEW.signers, OLD.signers[0]))
        good = unsigned(HEAD, OLD.public, NEW.public)
        first, *lines = good.split(b"\n")
        for text in (
            HEAD.text(),
            b"ron-kms/key-continuity/v2\n" + b"\n".join(lines),
            good.replace(b"old ", b"old  "),
            good.replace(b"\n7\n", b"\n07\n"),
            b"\n".join([first, lines[2], lines[0], lines[1], *lines[3:]]),
            first + b"\n",
        ):
            note = sign_note(text, [*OLD.signers, *NEW.signers])
            self.assertRaises(BadNoteError, verify, note, OLD.public)

    def test_other_records(self) -> None:
        for one in (entry(), entry(extra={"continuity": "x"}), _rotate({}), _rotate({"continuity": 1})):
            self.assertIsNone(of(one))


class Verified(SynchronousTestCase):
    def test_through_a_record(self) -> None:
        note = build(HEAD, OLD.signers, NEW.signers)
        leaf = encode(_rotate({"continuity": note.decode()}))
        found = of(decode(leaf))
        self.assertEqual(found, note)
        said = verify(note, OLD.public)
        self.assertEqual((said.head, said.old, said.new), (HEAD, OLD.public, NEW.public))
        # as signers elsewhere would do it
        elsewhere = sign_note(unsigned(HEAD, OLD.public, NEW.public), [*OLD.signers, *NEW.signers])
        self.assertEqual(verify(elsewhere, OLD.public), said)

    def test_what_was_pinned(self) -> None:
        """Records, root, checkpoint and continuity record as the first version wrote them."""
        known = json.loads((Path(__file__).parents[3] / "vectors" / "kms" / "audit-v1.json").read_bytes())
        leaves, tree = [leaf.encode() for leaf in known["leaves"]], CompactRange()
        for leaf in leaves:
            self.assertEqual(encode(decode(leaf)), leaf)
            tree.append(leaf_hash(leaf))
        root = tree.root()
        self.assertEqual(root.hex(), known["root"])
        path = [bytes.fromhex(one) for one in known["inclusion_of_1"]]
        self.assertTrue(verify_inclusion(1, 3, leaf_hash(leaves[1]), path, root))
        path = [bytes.fromhex(one) for one in known["consistency_from_1"]]
        self.assertTrue(verify_consistency(1, 3, leaf_hash(leaves[0]), root, path))
        old, new = (tuple(map(parse_vkey, known[name])) for name in ("vkeys", "new_vkeys"))
        self.assertEqual((old, new), (OLD.public, NEW.public))
        head = Head(ORIGIN, 3, root)
        self.assertEqual(open_by(known["checkpoint"].encode(), [old]), (head.text(), old))
        self.assertEqual(verify(known["continuity"].encode(), old), (head, old, new))

    def test_of_an_empty_log(self) -> None:
        note = build(Head(ORIGIN, 0, EMPTY_ROOT), OLD.signers, NEW.signers)
        self.assertEqual(verify(note, OLD.public).head.size, 0)


def _rotate(extra: dict[str, str | int | bool]) -> AuditEntry:
    return msgspec.structs.replace(entry(extra=extra), op="rotate")
