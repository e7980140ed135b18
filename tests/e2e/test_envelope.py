"""The promises of `seal` and `open`: what opens, and everything that must not.

`build` below makes envelopes from the text of docs/e2e.rst with other people's libraries, not with `ron.e2e`. It proves
that the description suffices, and it can be told to cheat.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cbor2
from blake3 import blake3
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron import e2e
from ron.e2e import (
    DecryptionFailed,
    E2EError,
    EnvelopeMalformed,
    KeyPair,
    LimitExceeded,
    NotARecipient,
    PublicKey,
    Suite,
)
from ron.e2e import envelope as rules
from ron.proto.errors import ErrorCode, RonError

VECTORS = Path(__file__).parent.parent / "vectors" / "e2e" / "envelope-v1.json"

RING = {suite: sorted((KeyPair.generate(suite) for _ in range(4)), key=lambda pair: pair.public.kid) for suite in Suite}
ALICE, BOB, CAROL, DAVE = RING[Suite.CLASSICAL]
SEALED = {suite: e2e.seal([pair.public for pair in RING[suite][:2]], b"attack at dawn", b"topic") for suite in Suite}

suites = st.sampled_from(list(Suite))
contents = st.binary(max_size=300)


def canonical(value: Any) -> bytes:
    return cbor2.dumps(value, canonical=True)


def parts(envelope: bytes) -> list[Any]:
    """The five fields, to be meddled with."""
    fields: list[Any] = cbor2.loads(envelope)
    return fields


def wrap(key: PublicKey, cek: bytes) -> list[bytes]:
    """A recipient entry, as docs/e2e.rst describes it."""
    kid = blake3(canonical(["ron-e2e/1 kid", int(key.suite), key.raw])).digest(length=16)
    info = canonical(["ron-e2e/1", "wrap", int(key.suite), kid])
    x25519 = X25519PublicKey.from_public_bytes(key.raw[-32:])
    if key.suite is Suite.CLASSICAL:
        return [kid, engine(hpke.KEM.X25519).encrypt(cek, x25519, info)]
    hybrid = hpke.MLKEM768X25519PublicKey(MLKEM768PublicKey.from_public_bytes(key.raw[:-32]), x25519)
    return [kid, engine(hpke.KEM.MLKEM768_X25519).encrypt(cek, hybrid, info)]


def engine(kem: hpke.KEM) -> hpke.Suite:
    return hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)


def derive(cek: bytes, label: str, suite: Suite) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=canonical(["ron-e2e/1", label, int(suite)])).derive(cek)


def build(
    wrapped: Sequence[tuple[PublicKey, bytes]],
    plaintext: bytes,
    aad: bytes,
    *,
    committed: bytes | None = None,
    arrange: Callable[[list[Any]], list[Any]] = sorted,
) -> bytes:
    """Each key gets the CEK beside it. The first CEK encrypts, and is committed to unless `committed` is another."""
    suite, cek = wrapped[0][0].suite, wrapped[0][1]
    entries = arrange([wrap(key, key_cek) for key, key_cek in wrapped])
    header = [1, int(suite), entries, derive(committed or cek, "commitment", suite)]
    payload = ChaCha20Poly1305(derive(cek, "payload key", suite)).encrypt(
        bytes(12), plaintext, canonical(["ron-e2e/1", *header, aad])
    )
    return canonical([*header, payload])


class RoundTrip(SynchronousTestCase):
    """What is sealed opens, for every recipient."""

    @settings(max_examples=60, deadline=None)
    @given(suite=suites, count=st.integers(1, 4), plaintext=contents, aad=contents)
    def test_every_recipient_reads_the_plaintext(self, suite: Suite, count: int, plaintext: bytes, aad: bytes) -> None:
        pairs = RING[suite][:count]
        envelope = e2e.seal([pair.public for pair in pairs], plaintext, aad)
        for pair in pairs:
            self.assertEqual(e2e.open(pair, envelope, aad), plaintext)

    @settings(max_examples=30, deadline=None)
    @given(suite=suites, count=st.integers(1, 4), plaintext=contents, aad=contents)
    def test_an_envelope_built_from_the_documentation_opens(
        self, suite: Suite, count: int, plaintext: bytes, aad: bytes
    ) -> None:
        pairs = RING[suite][:count]
        envelope = build([(pair.public, b"c" * 32) for pair in pairs], plaintext, aad)
        for pair in pairs:
            self.assertEqual(e2e.open(pair, envelope, aad), plaintext)

    def test_aad_is_optional_and_empty_by_default(self) -> None:
        self.assertEqual(e2e.open(ALICE, e2e.seal([ALICE.public], b"x"), b""), b"x")
        self.assertEqual(e2e.open(ALICE, e2e.seal([ALICE.public], b"x", b"")), b"x")

    def test_the_largest_message_fills_the_largest_envelope(self) -> None:
        pairs = [KeyPair.generate(Suite.PQ) for _ in range(e2e.MAX_RECIPIENTS)]
        plaintext, aad = b"p" * e2e.MAX_PLAINTEXT_BYTES, b"a" * e2e.MAX_AAD_BYTES
        envelope = e2e.seal([pair.public for pair in pairs], plaintext, aad)
        self.assertEqual(len(envelope), e2e.MAX_ENVELOPE_BYTES)
        for pair in (pairs[0], pairs[-1]):
            self.assertEqual(e2e.open(pair, envelope, aad), plaintext)

    def test_the_order_of_recipients_does_not_show(self) -> None:
        there = parts(e2e.seal([ALICE.public, BOB.public, CAROL.public], b"x"))
        back = parts(e2e.seal([CAROL.public, BOB.public, ALICE.public], b"x"))
        self.assertEqual([kid for kid, _ in there[2]], [kid for kid, _ in back[2]])

    def test_no_two_envelopes_share_a_byte_of_key_or_ciphertext(self) -> None:
        """Same recipients, plaintext and aad; a repeated CEK would be a repeated nonce."""
        once, again = (parts(e2e.seal([ALICE.public], b"same" * 8)) for _ in range(2))
        self.assertNotEqual(once[2], again[2])
        self.assertNotEqual(once[3], again[3])
        self.assertNotEqual(once[4], again[4])


class StoredEnvelopes(SynchronousTestCase):
    """Envelopes sealed when version 1 was new. They must open for ever; a change that breaks them is a version 2."""

    def cases(self) -> list[dict[str, Any]]:
        cases: list[dict[str, Any]] = json.loads(VECTORS.read_text())["cases"]
        self.assertEqual([case["suite"] for case in cases], [suite.label for suite in Suite])
        return cases

    def test_they_open(self) -> None:
        for case in self.cases():
            envelope, aad = bytes.fromhex(case["envelope"]), bytes.fromhex(case["aad"])
            self.assertEqual(len(case["keys"]), 2)
            for key in case["keys"]:
                pair = KeyPair(Suite[case["suite"].upper()], bytes.fromhex(key["seed"]))
                self.assertEqual(e2e.open(pair, envelope, aad).hex(), case["plaintext"])

    def test_their_keys_keep_their_names(self) -> None:
        for case in self.cases():
            for key in case["keys"]:
                pair = KeyPair(Suite[case["suite"].upper()], bytes.fromhex(key["seed"]))
                self.assertEqual(pair.public.kid.hex(), key["kid"])
                self.assertEqual(pair.public.to_line(), key["public"])


class WrongKeyOrAad(SynchronousTestCase):
    """The ordinary refusals."""

    def test_a_stranger_is_told_that_it_is_not_for_them(self) -> None:
        for suite in Suite:
            error = self.assertRaises(NotARecipient, e2e.open, RING[suite][2], SEALED[suite], b"topic")
            self.assertIs(error.code, ErrorCode.NOT_FOUND)

    def test_a_key_of_the_other_suite_is_a_stranger(self) -> None:
        self.assertRaises(NotARecipient, e2e.open, ALICE, SEALED[Suite.PQ], b"topic")

    def test_a_kid_of_the_other_suite_is_not_looked_up(self) -> None:
        """A classical envelope that names a pq key: its wrapped CEK must not reach the pq key."""
        fields = parts(e2e.seal([ALICE.public], b"x"))
        pair = RING[Suite.PQ][0]
        fields[2][0][0] = pair.public.kid
        self.assertRaises(NotARecipient, e2e.open, pair, canonical(fields))

    def test_our_kid_over_somebody_elses_wrapped_key(self) -> None:
        fields = parts(e2e.seal([ALICE.public], b"x"))
        fields[2][0][0] = BOB.public.kid
        self.assertRaises(DecryptionFailed, e2e.open, BOB, canonical(fields))

    @settings(max_examples=50, deadline=None)
    @given(suite=suites, aad=st.binary(max_size=8))
    def test_wrong_aad(self, suite: Suite, aad: bytes) -> None:
        if aad != b"topic":
            self.assertRaises(DecryptionFailed, e2e.open, RING[suite][0], SEALED[suite], aad)

    def test_all_failures_of_decryption_look_the_same(self) -> None:
        """Wrapped key, commitment, payload, aad: an attacker who sees the error learns nothing about the step."""
        texts = set()
        for where in ("wrapped", "commitment", "payload", "aad"):
            fields = parts(SEALED[Suite.CLASSICAL])
            if where == "wrapped":
                fields[2][0][1] = flip(fields[2][0][1], 0)
            if where == "commitment":
                fields[3] = flip(fields[3], 0)
            if where == "payload":
                fields[4] = flip(fields[4], 0)
            aad = b"other" if where == "aad" else b"topic"
            error = self.assertRaises(DecryptionFailed, e2e.open, ALICE, canonical(fields), aad)
            texts.add((error.code, error.message, error.hint, error.__cause__, error.__suppress_context__))
        self.assertEqual(len(texts), 1, texts)


def flip(octets: bytes, bit: int) -> bytes:
    """`octets` with one bit turned."""
    changed = bytearray(octets)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


class Tampering(SynchronousTestCase):
    """Not a bit can be changed, added or taken away."""

    def refused(self, pair: KeyPair, envelope: bytes, aad: bytes = b"topic") -> E2EError:
        error: E2EError = self.assertRaises(E2EError, e2e.open, pair, envelope, aad)
        return error

    def test_every_single_bit(self) -> None:
        """All of them, in the part for us, in the part for the other recipient, in the payload."""
        envelope = SEALED[Suite.CLASSICAL]
        for bit in range(len(envelope) * 8):
            self.refused(ALICE, flip(envelope, bit))

    @settings(max_examples=100, deadline=None)
    @given(bit=st.integers(0, len(SEALED[Suite.PQ]) * 8 - 1))
    def test_any_bit_of_the_hybrid_suite(self, bit: int) -> None:
        self.refused(RING[Suite.PQ][0], flip(SEALED[Suite.PQ], bit))

    def test_every_truncation(self) -> None:
        for suite in Suite:
            for length in range(len(SEALED[suite])):
                self.assertIsInstance(self.refused(RING[suite][0], SEALED[suite][:length]), EnvelopeMalformed)

    @settings(max_examples=50, deadline=None)
    @given(suite=suites, tail=st.binary(min_size=1, max_size=40))
    def test_anything_after_the_envelope(self, suite: Suite, tail: bytes) -> None:
        self.assertIsInstance(self.refused(RING[suite][0], SEALED[suite] + tail), EnvelopeMalformed)

    def test_recipient_dropped(self) -> None:
        fields = parts(SEALED[Suite.CLASSICAL])
        del fields[2][1]
        self.assertIsInstance(self.refused(ALICE, canonical(fields)), DecryptionFailed)

    def test_recipient_added(self) -> None:
        fields = parts(SEALED[Suite.CLASSICAL])
        fields[2] = sorted([*fields[2], wrap(CAROL.public, b"c" * 32)])
        self.assertIsInstance(self.refused(ALICE, canonical(fields)), DecryptionFailed)

    def test_recipient_replaced(self) -> None:
        fields = parts(SEALED[Suite.CLASSICAL])
        fields[2] = sorted([fields[2][0], wrap(CAROL.public, b"c" * 32)])
        self.assertIsInstance(self.refused(ALICE, canonical(fields)), DecryptionFailed)

    def test_recipients_reordered(self) -> None:
        fields = parts(SEALED[Suite.CLASSICAL])
        fields[2].reverse()
        self.assertIsInstance(self.refused(ALICE, canonical(fields)), EnvelopeMalformed)

    def test_recipients_reordered_by_the_sender(self) -> None:
        """Even when the tag covers the wrong order: one set of recipients has one form."""
        pairs = [(ALICE.public, b"c" * 32), (BOB.public, b"c" * 32)]
        self.assertEqual(e2e.open(ALICE, build(pairs, b"x", b"topic"), b"topic"), b"x")
        backwards = build(pairs, b"x", b"topic", arrange=lambda entries: sorted(entries, reverse=True))
        self.assertIsInstance(self.refused(ALICE, backwards), EnvelopeMalformed)

    def test_recipient_named_twice_by_the_sender(self) -> None:
        twice = build([(ALICE.public, b"c" * 32), (ALICE.public, b"c" * 32)], b"x", b"topic")
        self.assertIsInstance(self.refused(ALICE, twice), EnvelopeMalformed)

    def test_payload_of_another_envelope_to_the_same_recipients(self) -> None:
        fields = parts(SEALED[Suite.CLASSICAL])
        fields[4] = parts(e2e.seal([ALICE.public, BOB.public], b"attack at dusk", b"topic"))[4]
        self.assertIsInstance(self.refused(ALICE, canonical(fields)), DecryptionFailed)


class Commitment(SynchronousTestCase):
    """All who open an envelope hold the same content key; ChaCha20-Poly1305 alone does not promise that."""

    def test_two_recipients_with_two_content_keys(self) -> None:
        envelope = build([(ALICE.public, b"a" * 32), (BOB.public, b"b" * 32)], b"x", b"")
        self.assertEqual(e2e.open(ALICE, envelope), b"x")
        self.assertRaises(DecryptionFailed, e2e.open, BOB, envelope)

    def test_a_payload_that_would_decrypt_is_refused_under_another_commitment(self) -> None:
        """Only the commitment is wrong here: the tag is right under the key the recipient gets."""
        for suite in Suite:
            pair = RING[suite][0]
            honest = build([(pair.public, b"a" * 32)], b"x", b"")
            self.assertEqual(e2e.open(pair, honest), b"x")
            cheating = build([(pair.public, b"a" * 32)], b"x", b"", committed=b"b" * 32)
            self.assertRaises(DecryptionFailed, e2e.open, pair, cheating)


class StrictDecoding(SynchronousTestCase):
    """One envelope has one encoding, and only these types and lengths."""

    def refused(self, envelope: bytes, expected: type[E2EError] = EnvelopeMalformed) -> None:
        self.assertRaises(expected, e2e.open, ALICE, envelope)

    def setUp(self) -> None:
        self.fields = parts(e2e.seal([ALICE.public], b"x"))
        self.rest = b"".join(canonical(field) for field in self.fields[1:])
        self.assertEqual(e2e.open(ALICE, b"\x85\x01" + self.rest), b"x")

    def test_long_forms_of_integers_and_lengths(self) -> None:
        for version in (b"\x18\x01", b"\x19\x00\x01", b"\x1a\x00\x00\x00\x01", b"\x1b" + bytes(7) + b"\x01"):
            self.refused(b"\x85" + version + self.rest)
        for head in (b"\x98\x05", b"\x99\x00\x05", b"\x9a\x00\x00\x00\x05", b"\x9b" + bytes(7) + b"\x05"):
            self.refused(head + b"\x01" + self.rest)
        commitment = self.fields[3]
        self.assertIn(b"\x58\x20" + commitment, self.rest)
        self.refused(b"\x85\x01" + self.rest.replace(b"\x58\x20" + commitment, b"\x59\x00\x20" + commitment))

    def test_indefinite_lengths(self) -> None:
        self.refused(b"\x9f\x01" + self.rest + b"\xff")
        commitment = self.fields[3]
        chunks = b"\x5f\x50" + commitment[:16] + b"\x50" + commitment[16:] + b"\xff"
        self.refused(b"\x85\x01" + self.rest.replace(b"\x58\x20" + commitment, chunks))
        self.refused(cbor2.dumps(self.fields, indefinite_containers=True))

    def test_other_types_that_would_compare_equal(self) -> None:
        self.refused(canonical([True, *self.fields[1:]]))
        self.refused(canonical([1.0, *self.fields[1:]]))
        self.refused(b"\x85\xc2\x41\x01" + self.rest)  # bignum 1
        self.refused(b"\xd9\xd9\xf7\x85\x01" + self.rest)  # self-described CBOR
        self.refused(canonical([*self.fields[:3], self.fields[3].hex(), self.fields[4]]))

    def test_wrong_shapes(self) -> None:
        version, suite, entries, commitment, payload = self.fields
        [[kid, wrapped]] = entries
        for fields in (
            [],
            [1],
            [version, suite, entries, commitment],
            [*self.fields, b""],
            [version, suite, [], commitment, payload],
            [version, suite, kid, commitment, payload],
            [version, suite, [kid], commitment, payload],
            [version, suite, [[kid]], commitment, payload],
            [version, suite, [[kid, wrapped, b""]], commitment, payload],
            [version, suite, [[kid[:-1], wrapped]], commitment, payload],
            [version, suite, [[kid, wrapped[:-1]]], commitment, payload],
            [version, suite, [[kid, wrapped + b"\0"]], commitment, payload],
            [version, suite, [[kid, [wrapped]]], commitment, payload],
            [version, suite, entries, commitment[:-1], payload],
            [version, suite, entries, commitment + b"\0", payload],
            [version, suite, entries, commitment, payload[:15]],
            [version, suite, entries, commitment, 1],
            [b"\1", suite, entries, commitment, payload],
            [version, b"\0", entries, commitment, payload],
        ):
            self.refused(canonical(fields))
        for value in (0, 1, b"", b"x" * 100, {}, {1: 2}, None, "text"):
            self.refused(canonical(value))

    def test_other_versions(self) -> None:
        for version in (0, 2, 23, 24, 2**64 - 1):
            self.refused(canonical([version, *self.fields[1:]]), e2e.UnsupportedVersion)
        self.refused(canonical([2]), e2e.UnsupportedVersion)

    def test_other_suites(self) -> None:
        for suite in (2, 255, 2**64 - 1):
            self.refused(canonical([1, suite, *self.fields[2:]]), e2e.UnsupportedSuite)

    def test_a_suite_that_does_not_fit_the_entries(self) -> None:
        self.refused(canonical([1, 1, *self.fields[2:]]))


class HostileBytes(SynchronousTestCase):
    """`open` meets anything a stranger can send with an `E2EError`, and soon."""

    json_like = st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats()
        | st.binary(max_size=40)
        | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=5)
            | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3)
            | st.builds(cbor2.CBORTag, st.sampled_from([0, 1, 2, 5, 25, 28, 29, 30, 35, 36, 37, 258, 999]), inner)
        ),
        max_leaves=12,
    )

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=200))
    def test_arbitrary_bytes(self, junk: bytes) -> None:
        self.assertRaises(E2EError, e2e.open, ALICE, junk)

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(json_like)
    def test_arbitrary_cbor(self, value: Any) -> None:
        self.assertRaises(E2EError, e2e.open, ALICE, canonical(value))

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(json_like, min_size=3, max_size=3))
    def test_arbitrary_cbor_behind_a_good_start(self, values: list[Any]) -> None:
        self.assertRaises(E2EError, e2e.open, ALICE, canonical([1, 0, *values]))

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_spliced_envelopes(self, data: st.DataObject) -> None:
        envelope = SEALED[data.draw(suites)]
        start = data.draw(st.integers(0, len(envelope)))
        end = data.draw(st.integers(start, len(envelope)))
        spliced = envelope[:start] + data.draw(st.binary(max_size=40)) + envelope[end:]
        if spliced != envelope:
            self.assertRaises(E2EError, e2e.open, ALICE, spliced, b"topic")

    def test_bombs_never_reach_the_decoder(self) -> None:
        """Nesting, huge counts, tags with expensive meanings, colliding map keys. A decoder would choke on some."""
        self.patch(rules.cbor2, "loads", lambda octets: self.fail("a general decoder got a bomb"))
        size = e2e.MAX_ENVELOPE_BYTES
        collisions = b"".join(b"\x1b" + ((2**61 - 1) * n).to_bytes(8, "big") + b"\0" for n in range(1, 8))
        for bomb in (
            b"\x81" * size,
            b"\xc1" * size,
            b"\xd8\x1c\x81" * (size // 3),
            b"\x85\x01\x00" + b"\x82\x00" * (size // 2 - 2),
            b"\x9a\x00\x10\x00\x00" + bytes(size - 5),
            b"\x9b" + b"\xff" * 8,
            b"\xbb" + b"\xff" * 8,
            b"\x7b" + b"\xff" * 8,
            b"\xa7" + collisions,
            b"\x82\x01\xd8\x23\x7a" + (size - 9).to_bytes(4, "big") + b"(" * (size - 9),
            b"\x82\x01\xc2\x5a" + (size - 8).to_bytes(4, "big") + b"\xff" * (size - 8),
            b"\x5f" * size,
            b"\x1c" * 9,
            b"\xf9\x7e\x00",
        ):
            self.assertRaises(E2EError, e2e.open, ALICE, bomb[:size])

    def test_a_string_longer_than_memory(self) -> None:
        for head in (b"\x5b" + b"\xff" * 8, b"\x85\x01\x00\x81\x82\x5b\x00\x00\x00\xff" + b"\xff" * 4):
            self.assertRaises(EnvelopeMalformed, e2e.open, ALICE, head)

    def test_heads_cut_short(self) -> None:
        for head in (b"", b"\x18", b"\x19\x01", b"\x1b\x01", b"\x58", b"\x85", b"\x98", b"\x9b\x00"):
            self.assertRaises(EnvelopeMalformed, e2e.open, ALICE, head)


class Limits(SynchronousTestCase):
    """Checked before work: with too much of anything not one key operation happens."""

    def setUp(self) -> None:
        self.patch(rules, "_derive", lambda *_: self.fail("worked before checking"))
        self.patch(rules, "_screen", lambda _: self.fail("parsed before checking"))

    def too_much(self, error: E2EError) -> None:
        self.assertIs(error.code, ErrorCode.TOO_LARGE)
        self.assertEqual(error.status, 413)

    def test_plaintext(self) -> None:
        plaintext = bytes(e2e.MAX_PLAINTEXT_BYTES + 1)
        self.too_much(self.assertRaises(LimitExceeded, e2e.seal, [ALICE.public], plaintext))

    def test_aad(self) -> None:
        aad = bytes(e2e.MAX_AAD_BYTES + 1)
        self.too_much(self.assertRaises(LimitExceeded, e2e.seal, [ALICE.public], b"", aad))
        self.too_much(self.assertRaises(LimitExceeded, e2e.open, ALICE, SEALED[Suite.CLASSICAL], aad))

    def test_envelope(self) -> None:
        self.too_much(self.assertRaises(LimitExceeded, e2e.open, ALICE, bytes(e2e.MAX_ENVELOPE_BYTES + 1)))

    def test_recipients(self) -> None:
        self.too_much(self.assertRaises(LimitExceeded, e2e.seal, [ALICE.public] * (e2e.MAX_RECIPIENTS + 1), b""))

    def test_nobody(self) -> None:
        self.assertRaises(e2e.RecipientsInvalid, e2e.seal, [], b"")

    def test_the_same_twice(self) -> None:
        again = PublicKey.from_line(ALICE.public.to_line())
        self.assertRaises(e2e.RecipientsInvalid, e2e.seal, [ALICE.public, BOB.public, again], b"")

    def test_mixed_suites(self) -> None:
        self.assertRaises(e2e.RecipientsInvalid, e2e.seal, [ALICE.public, RING[Suite.PQ][0].public], b"")


class TooMuchInside(SynchronousTestCase):
    """Limits that only the parts of an envelope show."""

    def test_one_recipient_too_many(self) -> None:
        fields = parts(e2e.seal([ALICE.public], b"x"))
        wrapped = fields[2][0][1]
        for count, expected in ((64, NotARecipient), (65, LimitExceeded)):
            fields[2] = [[n.to_bytes(16, "big"), wrapped] for n in range(count)]
            self.assertRaises(expected, e2e.open, ALICE, canonical(fields))

    def test_one_byte_of_payload_too_many(self) -> None:
        fields = parts(e2e.seal([ALICE.public], b"x"))
        for size, expected in ((0, DecryptionFailed), (1, EnvelopeMalformed)):
            fields[4] = bytes(e2e.MAX_PLAINTEXT_BYTES + 16 + size)
            self.assertRaises(expected, e2e.open, ALICE, canonical(fields))


class Errors(SynchronousTestCase):
    """Errors belong to the house taxonomy and keep secrets."""

    def test_all_are_ron_errors_with_a_code(self) -> None:
        types = [value for value in vars(e2e).values() if isinstance(value, type) and issubclass(value, Exception)]
        self.assertEqual(len(types), 10)
        for error_type in types:
            self.assertTrue(issubclass(error_type, E2EError) and issubclass(error_type, RonError))
            self.assertIsInstance(error_type("message").code, ErrorCode)

    def test_everything_promised_is_exported(self) -> None:
        self.assertEqual(set(e2e.__all__) - set(vars(e2e)), set())
