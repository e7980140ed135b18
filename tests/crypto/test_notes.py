"""A note is by whom it says, or it is none. Vectors: C2SP's own examples, and a head of Go's checksum database."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as some
from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.notes import (
    MAX_SIGNATURES,
    BadNoteError,
    Head,
    Kind,
    NoteKey,
    Signer,
    cosignature,
    cosigned_at,
    cosigned_text,
    note_key,
    open_by,
    open_note,
    parse_head,
    parse_note,
    parse_vkey,
    sign_note,
    with_signatures,
)

KNOWN = json.loads((Path(__file__).parents[1] / "vectors" / "kms" / "signed-notes.json").read_bytes())
VKEY, NOTE = KNOWN["notes"][0]["vkey"], KNOWN["notes"][0]["note"].encode()
SUMDB_VKEY, SUMDB = KNOWN["notes"][1]["vkey"], KNOWN["notes"][1]["note"].encode()
COSIGNATURE, WITNESS_VKEY = KNOWN["cosignature"]["line"], KNOWN["witness_vkey"]
TEXT = b"a text\n\nof two paragraphs\n"


def ed25519(name: str = "log.example/1", seed: bytes = b"\1" * 32) -> Signer:
    key = SigningKey(seed)
    return Signer(note_key(name, Kind.ED25519, bytes(key.verify_key)), lambda text: key.sign(text).signature)


def ml_dsa(name: str = "log.example/1") -> Signer:
    key = MLDSA65PrivateKey.from_seed_bytes(b"\2" * 32)
    return Signer(note_key(name, Kind.ML_DSA_65, key.public_key().public_bytes_raw()), key.sign)


def witness(name: str = "witness.example/w") -> tuple[NoteKey, Callable[[bytes], bytes]]:
    key = SigningKey(b"\3" * 32)
    return note_key(name, Kind.COSIGNATURE, bytes(key.verify_key)), lambda text: key.sign(text).signature


class Refused(SynchronousTestCase):
    def test_what_is_no_note(self) -> None:
        line = NOTE.split(b"\n\n")[1]
        wrong = {
            "nothing": b"",
            "no signature": b"text\n\n",
            "no empty line": b"text\n" + line,
            "no text": line,
            "a line without an end": NOTE[:-1],
            "another line among them": NOTE + b"and\n",
            "a hyphen for the dash": NOTE.replace("— ".encode(), b"- "),
            "two spaces": NOTE.replace(b"foo ", b"foo  "),
            "no name": NOTE.replace(b"example.com/foo ", b""),
            "a plus in the name": NOTE.replace(b"com/foo ", b"com+foo "),
            "a no-break space in the name": NOTE.replace(b"com/foo ", "com\xa0foo ".encode()),
            "a control character": NOTE.replace(b"This", b"\tThis"),
            "a carriage return": NOTE.replace(b"\n", b"\r\n"),
            "not UTF-8": NOTE.replace(b"This", b"\xff"),
            "base64 with a line break": NOTE.replace(b"Uw2Q", b"Uw2Q\n"),
            "base64 for URLs": NOTE.replace(b"Uw2Q", b"Uw-Q"),
            "base64 without its end": NOTE.replace(b"=", b""),
            "base64 with more of an end": NOTE.replace(b"=", b"=="),
            "base64 in another form": NOTE.replace(b"QM=", b"QN="),
            "a key id alone": b"text\n\n" + "— example.com/foo Uw2QOg==\n".encode(),
            "too many": b"text\n\n" + line * (MAX_SIGNATURES + 1),
            "too long": b"x" * 300_000 + NOTE,
        }
        for what, raw in wrong.items():
            with self.assertRaises(BadNoteError, msg=what):
                parse_note(raw)

    def test_who_is_not_known_proves_nothing(self) -> None:
        ours = ed25519()
        note = sign_note(TEXT, [ours])
        for other in (
            ed25519(seed=b"\7" * 32).key,
            ed25519("log.example/2").key,
            note_key(ours.key.name, Kind.COSIGNATURE, ours.key.public),
            ml_dsa().key,
        ):
            self.assertRaises(BadNoteError, open_note, note, [other])
        self.assertRaises(BadNoteError, open_note, note, [])

    def test_one_wrong_signature_of_a_known_key_spoils_the_note(self) -> None:
        first, second = ed25519(), ml_dsa()
        good = sign_note(TEXT, [first, second])
        other = sign_note(b"another text\n", [first, second])
        for line in other.split(b"\n\n")[1].splitlines(keepends=True):
            self.assertRaises(BadNoteError, open_note, good + line, [first.key, second.key])
        swapped = good.replace(TEXT, b"another text\n")
        self.assertRaises(BadNoteError, open_note, swapped, [first.key])
        self.assertRaises(BadNoteError, open_note, swapped, [second.key])

    def test_half_of_a_hybrid_signature(self) -> None:
        first, second = ed25519(), ml_dsa()
        keys = [first.key, second.key]
        for half in ([first], [second], [first, first]):
            self.assertRaises(BadNoteError, open_by, sign_note(TEXT, half), [keys])
        self.assertRaises(BadNoteError, open_by, sign_note(TEXT, [first, second]), [[]])

    def test_verifier_keys(self) -> None:
        name, key_id, material = VKEY.split("+", 2)
        short = base64.b64encode(b"\x01" + b"x" * 31).decode()
        unknown = base64.b64encode(b"\x02" + b"x" * 32).decode()
        for wrong in (
            "",
            name,
            f"{name}+{key_id}",
            f"+{key_id}+{material}",
            f"{name}+{key_id.upper()}+{material}",
            f"{name}+00000000+{material}",
            f"other+{key_id}+{material}",
            f"{name}+{key_id}+{material}\n",
            f"{name}+{key_id}+{material[:-1]}",
            f"{name}+{key_id}+{short}",
            f"{name}+{key_id}+{unknown}",
        ):
            with self.assertRaises(BadNoteError, msg=wrong):
                parse_vkey(wrong)
        for bad in ("", "a b", "a+b", "a\nb", "a\u2003b"):
            self.assertRaises(BadNoteError, note_key, bad, Kind.ED25519, b"x" * 32)
        self.assertRaises(BadNoteError, note_key, "a", Kind.ML_DSA_65, b"x" * 32)

    def test_what_cannot_be_signed(self) -> None:
        ours = ed25519()
        for text in (b"", b"no end", b"a\x00b\n", b"\xff\n"):
            self.assertRaises(BadNoteError, sign_note, text, [ours])
        self.assertRaises(BadNoteError, sign_note, TEXT, [])
        self.assertRaises(BadNoteError, sign_note, TEXT, [Signer(ours.key, lambda _text: b"short")])
        self.assertRaises(BadNoteError, cosignature, TEXT, ours.key, ours.sign, 1)
        key, sign = witness()
        self.assertRaises(BadNoteError, cosignature, TEXT, key, sign, -1)

    def test_what_is_no_checkpoint(self) -> None:
        root = base64.b64encode(b"r" * 32).decode()
        for text in (
            "",
            "origin\n1\n",
            f"origin\n1\n{root}",
            f"\n1\n{root}\n",
            f"origin\n01\n{root}\n",
            f"origin\n-1\n{root}\n",
            f"origin\n+1\n{root}\n",
            f"origin\n1_0\n{root}\n",
            f"origin\n٣\n{root}\n",
            f"origin\n{1 << 63}\n{root}\n",
            f"origin\n1\n{root[:-4]}\n",
            f"origin\n1\n{root}\n\n",
            f"origin\n1\n{root}\nmore\n\n",
        ):
            with self.assertRaises(BadNoteError, msg=text):
                parse_head(text.encode())

    def test_signatures_of_another_length(self) -> None:
        for key in (ed25519().key, ml_dsa().key, witness()[0]):
            self.assertFalse(key.verifies(TEXT, b""))
            self.assertFalse(key.verifies(TEXT, b"x" * (key.kind.signature_bytes + 1)))
            self.assertFalse(key.verifies(TEXT, b"\0" * key.kind.signature_bytes))
        # the point of order one "signs" everything for those who do not look
        weak = note_key("weak", Kind.ED25519, b"\1" + b"\0" * 31)
        self.assertFalse(weak.verifies(TEXT, b"\1" + b"\0" * 63))

    @given(some.binary(max_size=300))
    @settings(deadline=None, max_examples=100)
    def test_whatever_comes_it_is_refused_in_one_way(self, raw: bytes) -> None:
        for parse in (parse_note, lambda raw: parse_head(parse_note(b"x\n\n" + raw).text)):
            self.assertRaises(BadNoteError, parse, raw)


class Opened(SynchronousTestCase):
    def test_examples_of_others(self) -> None:
        for vkey, note in ((VKEY, NOTE), (SUMDB_VKEY, SUMDB)):
            key = parse_vkey(vkey)
            self.assertEqual(key.vkey(), vkey)
            text, signed = open_note(note, [key])
            self.assertEqual((text, signed), (note.split(b"\n\n")[0] + b"\n", (key,)))
        head = parse_head(open_note(SUMDB, [parse_vkey(SUMDB_VKEY)])[0])
        self.assertEqual((head.origin, head.size, head.extensions), ("go.sum database tree", 20852163, ()))
        self.assertEqual(head.text() + b"\n", SUMDB.split("— ".encode())[0])
        key = parse_vkey(WITNESS_VKEY)
        self.assertEqual((key.kind, key.vkey()), (Kind.COSIGNATURE, WITNESS_VKEY))

    def test_form_of_a_cosignature(self) -> None:
        whole = SUMDB + COSIGNATURE.encode()
        (_sumdb, line) = parse_note(whole).signatures
        self.assertEqual((line.key_id.hex(), len(line.signature)), (KNOWN["cosignature"]["key_id"], 72))
        self.assertEqual(int.from_bytes(line.signature[:8], "big"), KNOWN["cosignature"]["time_s"])
        self.assertEqual(line.line(), COSIGNATURE.encode())
        signed = cosigned_text(b"example.com/behind-the-sofa\n20852163\nCsUY\n", 1679315147)
        self.assertTrue(signed.startswith(b"cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n20852163\n"))

    def test_by_both_halves_and_by_those_of_another_time(self) -> None:
        old, new = [ed25519(seed=b"\7" * 32)], [ed25519(), ml_dsa()]
        sets = [[one.key for one in new], [one.key for one in old]]
        self.assertEqual(open_by(sign_note(TEXT, new), sets), (TEXT, sets[0]))
        self.assertEqual(open_by(sign_note(TEXT, old), sets), (TEXT, sets[1]))
        self.assertEqual(open_by(sign_note(TEXT, [*new, *old]), sets)[1], sets[0])

    def test_cosignatures_are_added_once_and_leave_the_note_as_it_was(self) -> None:
        log, (key, sign) = ed25519(), witness()
        note = sign_note(TEXT, [log])
        line = cosignature(TEXT, key, sign, 1_700_000_000)
        cosigned = with_signatures(note, [line, line])
        self.assertEqual(cosigned, note + line)
        self.assertEqual(with_signatures(cosigned, [line]), cosigned)
        self.assertEqual(open_note(cosigned, [log.key, key]), (TEXT, (log.key, key)))
        self.assertEqual(cosigned_at(cosigned, [key, log.key]), {key: 1_700_000_000})
        self.assertEqual(cosigned_at(note, [key]), {})
        # the time is part of what was signed
        later = with_signatures(note, [cosignature(TEXT, key, sign, 1_700_000_001)])
        self.assertNotEqual(later, cosigned)
        stolen = (
            parse_note(later)
            .signatures[1]
            ._replace(signature=b"\0" * 8 + parse_note(later).signatures[1].signature[8:])
        )
        self.assertEqual(cosigned_at(note + stolen.line(), [key]), {})
        self.assertRaises(BadNoteError, with_signatures, note, [b"rubbish\n"])

    def test_ml_dsa_key_is_known_by_its_long_name(self) -> None:
        key = ml_dsa().key
        self.assertEqual(parse_vkey(key.vkey()), key)
        self.assertTrue(base64.b64decode(key.vkey().split("+", 2)[2]).startswith(b"\xffrustyonions/ml-dsa-65\n"))

    @given(
        some.text(some.characters(exclude_categories=["C"]), min_size=1).filter(lambda name: not set(name) & set("+ ")),
        some.lists(some.text(some.characters(exclude_categories=["C"])), min_size=1, max_size=5),
    )
    @settings(deadline=None, max_examples=100)
    def test_round_trip(self, name: str, lines: list[str]) -> None:
        if any(char.isspace() for char in name):
            return
        text = "".join(f"{line}\n" for line in lines).encode()
        signer = ed25519(name)
        self.assertEqual(open_note(sign_note(text, [signer]), [parse_vkey(signer.key.vkey())]), (text, (signer.key,)))

    @given(some.integers(0, (1 << 63) - 1), some.binary(min_size=32, max_size=32))
    @settings(deadline=None, max_examples=50)
    def test_heads(self, size: int, root: bytes) -> None:
        head = Head("log.example/1", size, root, ("more",))
        self.assertEqual(parse_head(head.text()), head)
