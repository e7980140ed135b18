"""What is signed and by whom: one spelling, sets of signers that are fit, and nobody who signs for another."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.proto.governance import Proposal, SignedObject, SignerSet
from ron.services.kms.governance.canonical import canonical, decode_canonical, digest
from ron.services.kms.governance.signers import (
    MACRONODE,
    MICRONODE,
    counts,
    is_due,
    key_id,
    opened,
    parse_signers,
    read_signers,
    sign,
    signer_set,
)
from tests.services.kms.governance.people import (
    AUDITOR,
    CUSTODIAN,
    DAY,
    OFFICER,
    OWNER,
    START,
    key_of,
    public_of,
    the_three,
    the_two,
)

few = settings(deadline=None, max_examples=100)
texts = some.text(some.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
THREE = the_three()


def proposal(**more: Any) -> Proposal:
    known: dict[str, Any] = {
        "book": "ab" * 16,
        "id": "00000000-0000-7000-8000-000000000001",
        "author": key_id(public_of(OWNER)),
        "action": "pq_mode",
        "scope": "tenant:acme",
        "change": {"pq_mode": "and"},
        "rationale": "cutover",
        "signer_set": "cd" * 32,
        "created_at": START,
        "expires_at": START + DAY,
    }
    return Proposal(**{**known, **more})


class Spelling(SynchronousTestCase):
    def refused(self, text: bytes) -> None:
        error = self.assertRaises(RonError, decode_canonical, text, Proposal)
        self.assertIs(error.code, ErrorCode.BAD_REQUEST, text)

    def test_other_spellings_of_the_same(self) -> None:
        text = canonical(proposal())
        self.assertEqual(decode_canonical(text, Proposal), proposal())
        members = json.loads(text)
        stamp = str(START).encode()
        for other in (
            b" " + text,
            text + b"\n",
            text.replace(b'"draft":false', b'"draft": false'),
            text.replace(b'"draft":false', b'"draft":false,"draft":false'),
            text.replace(b'"draft":false', b'"draft":true,"draft":false'),
            text.replace(stamp, stamp + b".0"),
            text.replace(stamp, stamp + b"e0"),
            text.replace(b"cutover", b"cut\\u006fver"),
            text.replace(b"cutover", b"cutov\xff"),
            text.replace(b'"draft":false,', b""),
            text.replace(b'"draft":false', b'"draft":false,"more":1'),
            json.dumps(members, separators=(",", ":")).encode()[:-1] + b',"draft":false}',
            json.dumps(dict(reversed(members.items())), separators=(",", ":")).encode(),
            b"[" * 5000,
            b"",
            b"{}",
            b"null",
        ):
            self.refused(other)

    @few
    @given(texts, some.dictionaries(some.sampled_from("abcdefgh"), texts, min_size=1))
    def test_as_another_program_writes_it(self, rationale: str, change: dict[str, str]) -> None:
        """RFC 8785 for our subset is what Python's own encoder makes of sorted keys without spaces."""
        made = proposal(rationale=rationale, change=change)
        text = canonical(made)
        again = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        self.assertEqual(text, again.encode())
        self.assertEqual(decode_canonical(text, Proposal), made)

    def test_the_escapes_of_the_standard(self) -> None:
        """The string of RFC 8785 §3.2.2, in a value."""
        text = canonical(proposal(rationale='\u20ac$\u000f\nA\'B"\\\\"/'))
        self.assertIn('"rationale":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'.encode(), text)

    def test_a_digest_anybody_can_make(self) -> None:
        self.assertEqual(digest(b"abc").hex()[:16], "ba7816bf8f01cfea")


class Signed(SynchronousTestCase):
    def refused(self, signed: SignedObject, code: ErrorCode = ErrorCode.NO_CAPABILITY) -> None:
        error = self.assertRaises(RonError, opened, signed, Proposal, THREE)
        self.assertIs(error.code, code)

    def test_whoever_is_no_signer(self) -> None:
        self.refused(sign(proposal(), key_of("stranger")))

    def test_in_anothers_name(self) -> None:
        made = sign(proposal(), key_of(OWNER))
        self.refused(replace(made, key_id=key_id(public_of(OFFICER))))
        self.refused(replace(sign(proposal(), key_of("stranger")), key_id=made.key_id))

    def test_what_was_changed_afterwards(self) -> None:
        made = sign(proposal(), key_of(OWNER))
        self.refused(replace(made, object=made.object.replace('"pq_mode":"and"', '"pq_mode":"or"')))
        for at in (0, 40, 63):
            raw = bytearray(base64.b64decode(made.signature))
            raw[at] ^= 1
            self.refused(replace(made, signature=base64.b64encode(raw).decode()))
        self.refused(replace(made, signature=base64.b64encode(bytes(64)).decode()))

    def test_a_signature_with_another_s(self) -> None:
        """RFC 8032 §5.1.7: S below the group's order; S + L verifies in careless libraries."""
        made = sign(proposal(), key_of(OWNER))
        raw = base64.b64decode(made.signature)
        order = 2**252 + 27742317777372353535851937790883648493
        raised = int.from_bytes(raw[32:], "little") + order
        self.refused(replace(made, signature=base64.b64encode(raw[:32] + raised.to_bytes(32, "little")).decode()))

    def test_signed_but_not_canonical(self) -> None:
        text = " " + canonical(proposal()).decode()
        raw = key_of(OWNER).sign(digest(text.encode())).signature
        signed = SignedObject(object=text, key_id=key_id(public_of(OWNER)), signature=base64.b64encode(raw).decode())
        self.refused(signed, ErrorCode.BAD_REQUEST)

    def test_each_signer(self) -> None:
        for role in (OWNER, OFFICER, CUSTODIAN, AUDITOR):
            found, by = opened(sign(proposal(), key_of(role)), Proposal, THREE)
            self.assertEqual((found, by.role), (proposal(), role))


class Sets(SynchronousTestCase):
    def made(self, names: str, threshold: int, micronode: bool = False) -> SignerSet:
        roles = {"o": OWNER, "s": OFFICER, "c": CUSTODIAN, "a": AUDITOR}
        members = [(roles[letter], public_of(f"{letter}{n}")) for n, letter in enumerate(names)]
        return signer_set(members, threshold, START, profile=MICRONODE if micronode else MACRONODE)

    def test_sets_in_which_one_decides_alone(self) -> None:
        for names, threshold in (("o", 1), ("os", 1), ("osc", 1), ("osca", 1)):
            self.assertRaises(RonError, self.made, names, threshold)

    def test_sets_that_cannot_decide_or_not_clearly(self) -> None:
        for names, threshold in (("osc", 4), ("oscc", 2), ("osa", 3), ("oaaa", 2), ("osc", 0), ("", 2)):
            self.assertRaises(RonError, self.made, names, threshold)

    def test_a_micronodes_two(self) -> None:
        self.made("os", 1, micronode=True)
        self.made("osa", 1, micronode=True)
        self.made("osc", 2, micronode=True)
        for names in ("oc", "osc", "o", "oo"):
            self.assertRaises(RonError, self.made, names, 1, micronode=True)

    def test_keys_that_are_none(self) -> None:
        good = [(OWNER, public_of("a")), (OFFICER, public_of("b"))]
        small = "01" + "00" * 31
        for wrong in ("00" * 32, small, "ff" * 32, "ab", "AB" * 32, "xy" * 32, public_of("a")):
            self.assertRaises(RonError, signer_set, [*good, (CUSTODIAN, wrong)], 2, START)
        self.assertRaises(RonError, signer_set, [*good, ("boss", public_of("c"))], 2, START)

    def test_good_sets(self) -> None:
        for names, threshold in (("osc", 2), ("os", 2), ("oscca", 3), ("oscsc", 3)):
            self.assertEqual(self.made(names, threshold).threshold, threshold)

    def test_who_stays_keeps_the_date(self) -> None:
        before = the_three()
        members = [(OWNER, public_of(OWNER)), (OFFICER, public_of("new")), (CUSTODIAN, public_of(OFFICER))]
        after = signer_set(members, 2, START + 5, before=before)
        self.assertEqual([one.since for one in after.members], [START, START + 5, START + 5])

    def test_a_micronodes_second_key_is_good_for_a_week(self) -> None:
        owner, second = the_two().members
        self.assertTrue(counts(second, START + 7 * DAY, MICRONODE))
        self.assertFalse(counts(second, START + 7 * DAY + 1, MICRONODE))
        self.assertTrue(counts(owner, START + 700 * DAY, MICRONODE))
        self.assertTrue(is_due(second, START + 8 * DAY, MICRONODE))
        self.assertFalse(is_due(owner, START + 90 * DAY, MICRONODE))
        self.assertTrue(is_due(owner, START + 91 * DAY, MACRONODE))

    def test_from_a_file(self) -> None:
        good = json.loads(canonical(the_three(START - DAY)))
        members = good["members"]
        self.assertEqual(read_signers(json.dumps(good).encode(), START), THREE)
        for wrong in ({**good, "threshold": 1}, {**good, "more": 1}, {"members": members}, {**good, "members": []}, []):
            self.assertRaises(RonError, read_signers, json.dumps(wrong).encode(), START)
        for junk in (b"", b"\xff", b"[" * 9000):
            self.assertRaises(RonError, read_signers, junk, START)

    def test_as_text(self) -> None:
        self.assertEqual(parse_signers("custodian:ab, auditor:cd"), [("custodian", "ab"), ("auditor", "cd")])
        for wrong in ("", "custodian", "a:b:c", "a:b,"):
            self.assertRaises(RonError, parse_signers, wrong)
