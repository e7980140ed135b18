"""One-of-many proofs: completeness, soundness, indistinguishability, and a second implementation in plain integers."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import group, schnorr
from ron.crypto.group import ORDER, InvalidElementError
from ron.crypto.schnorr import (
    HolderKey,
    InvalidKeysError,
    InvalidProofError,
    KeyList,
    NotAHolderError,
    prove,
    verify,
)

VECTORS = Path(__file__).parent.parent / "vectors" / "schnorr" / "one-of-many-v1.json"
HOLDERS = [HolderKey.generate() for _ in range(5)]
PUBLIC = [holder.public for holder in HOLDERS]
few = settings(max_examples=40, deadline=None)

# --- edwards25519 in affine integers (RFC 7748 §4.1), as slow as it is plain; nothing here comes from libsodium

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]
NEUTRAL: Point = (0, 1)


def add(a: Point, b: Point) -> Point:
    cross = D * a[0] * b[0] * a[1] * b[1]
    return (
        (a[0] * b[1] + a[1] * b[0]) * pow(1 + cross, -1, P) % P,
        (a[1] * b[1] + a[0] * b[0]) * pow(1 - cross, -1, P) % P,
    )


def times(n: int, point: Point) -> Point:
    total = NEUTRAL
    for bit in bin(n)[2:]:
        total = add(total, total)
        if bit == "1":
            total = add(total, point)
    return total


def with_y(y: int, odd: int) -> Point:
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != square:
        raise ValueError("not on the curve")
    return (x if x & 1 == odd else -x % P, y)


def decode(raw: bytes) -> Point:
    number = int.from_bytes(raw, "little")
    return with_y(number & (2**255 - 1), number >> 255)


def encode(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def integer(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


BASE = with_y(4 * pow(5, -1, P) % P, 0)


def in_frames(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def reference_challenge(transcript: bytes, keys: Sequence[bytes], commitments: Sequence[Point]) -> int:
    committed = b"".join(encode(point) for point in commitments)
    text = in_frames(b"ron-schnorr/1 challenge", encode(BASE), b"".join(keys), committed, transcript)
    return integer(hashlib.sha512(text).digest()) % ORDER


def split(proof: bytes) -> tuple[list[int], list[int]]:
    scalars = [integer(proof[at : at + 32]) for at in range(0, len(proof), 32)]
    return scalars[: len(scalars) // 2], scalars[len(scalars) // 2 :]


def reference_commitments(keys: Sequence[bytes], challenges: Sequence[int], responses: Sequence[int]) -> list[Point]:
    return [add(times(r, BASE), times(c, decode(key))) for key, c, r in zip(keys, challenges, responses, strict=True)]


def reference_holds(transcript: bytes, keys: Sequence[bytes], proof: bytes) -> bool:
    challenges, responses = split(proof)
    commitments = reference_commitments(keys, challenges, responses)
    return sum(challenges) % ORDER == reference_challenge(transcript, keys, commitments)


def reference_proof(transcript: bytes, keys: Sequence[bytes], secret: int, fresh: bytes) -> bytes:
    """The textbook's order: simulate the others, commit to v, hash, solve for the own pair."""
    own = keys.index(encode(times(secret, BASE)))
    listed = hashlib.sha256(in_frames(b"ron-schnorr/1 list", *keys)).digest()
    seed = in_frames(b"ron-schnorr/1 nonces", secret.to_bytes(32, "little"), fresh, listed, transcript)
    stream = hashlib.shake_256(seed).digest(128 * len(keys))
    drawn = [integer(stream[at : at + 64]) % ORDER for at in range(0, len(stream), 64)]
    challenges, responses = drawn[: len(keys)], drawn[len(keys) :]
    v = (responses[own] + challenges[own] * secret) % ORDER
    commitments = reference_commitments(keys, challenges, responses)
    commitments[own] = times(v, BASE)
    total = reference_challenge(transcript, keys, commitments)
    challenges[own] = (total - sum(challenges) + challenges[own]) % ORDER
    responses[own] = (v - challenges[own] * secret) % ORDER
    return b"".join(scalar.to_bytes(32, "little") for scalar in challenges + responses)


class Refusals(SynchronousTestCase):
    """Everything that is no key, no list or no proof."""

    def test_what_is_no_element_is_no_key(self) -> None:
        torsion = (pow(2, (P - 1) // 4, P), 0)  # order 4
        order_two = (0, P - 1)
        off_curve = next(y for y in range(2, 50) if _off_curve(y))
        bad = {
            "identity": encode(NEUTRAL),
            "order 2": encode(order_two),
            "order 4": encode(torsion),
            "a part of order 2": encode(add(decode(PUBLIC[0]), order_two)),
            "a part of order 4": encode(add(decode(PUBLIC[0]), torsion)),
            "off the curve": off_curve.to_bytes(32, "little"),
            "a second spelling of the identity": (P + 1).to_bytes(32, "little"),
            "above the field": (2**255 - 1).to_bytes(32, "little"),
            "a minus zero": (1 | 1 << 255).to_bytes(32, "little"),
            "short": PUBLIC[0][:31],
            "long": PUBLIC[0] + b"\0",
            "empty": b"",
        }
        for name, raw in bad.items():
            with self.assertRaises(InvalidElementError, msg=name):
                group.check_element(raw)
            with self.assertRaises(InvalidKeysError, msg=name):
                KeyList([PUBLIC[1], raw])

    def test_what_is_no_scalar_is_no_secret(self) -> None:
        for number in (0, ORDER, ORDER + 1, 2**256 - 1):
            self.assertRaises(InvalidKeysError, HolderKey, number.to_bytes(32, "little"))
        self.assertRaises(InvalidKeysError, HolderKey, b"\x01" * 31)
        HolderKey((ORDER - 1).to_bytes(32, "little"))

    def test_a_list_is_not_empty_not_too_long_and_names_nobody_twice(self) -> None:
        self.assertRaises(InvalidKeysError, KeyList, [])
        self.assertRaises(InvalidKeysError, KeyList, [PUBLIC[0], PUBLIC[1], PUBLIC[0]])
        self.assertRaises(InvalidKeysError, KeyList, [bytes(32)] * (schnorr.MAX_KEYS + 1))

    def test_a_secret_that_is_not_on_the_list_proves_nothing(self) -> None:
        self.assertRaises(NotAHolderError, prove, b"t", KeyList(PUBLIC[:3]), HOLDERS[4])

    def test_claiming_somebody_elses_place_proves_nothing(self) -> None:
        impostor = HolderKey.generate()
        impostor.public = PUBLIC[1]
        keys = KeyList(PUBLIC[:3])
        self.assertRaises(InvalidProofError, verify, b"t", keys, prove(b"t", keys, impostor))

    @few
    @given(junk=st.binary(max_size=200) | st.binary(min_size=128, max_size=128))
    def test_junk_is_no_proof(self, junk: bytes) -> None:
        self.assertRaises(InvalidProofError, verify, b"t", KeyList(PUBLIC[:2]), junk)

    def test_scalars_out_of_range_are_refused_even_where_the_equation_would_hold(self) -> None:
        keys = KeyList(PUBLIC[:2])
        proof = prove(b"t", keys, HOLDERS[0])
        for at in range(0, len(proof), 32):
            spelt_twice = integer(proof[at : at + 32]) + ORDER
            again = proof[:at] + spelt_twice.to_bytes(32, "little") + proof[at + 32 :]
            self.assertRaises(InvalidProofError, verify, b"t", keys, again)
            self.assertRaises(InvalidProofError, verify, b"t", keys, proof[:at] + bytes(32) + proof[at + 32 :])

    def test_the_secret_is_not_in_the_repr(self) -> None:
        self.assertNotIn(HOLDERS[0].secret.hex(), repr(HOLDERS[0]))


class Proofs(SynchronousTestCase):
    """Every holder convinces; whatever is changed no longer does."""

    @few
    @given(transcript=st.binary(max_size=100), size=st.integers(1, 5), place=st.integers(0, 4))
    def test_every_holder_convinces(self, transcript: bytes, size: int, place: int) -> None:
        keys = KeyList(PUBLIC[:size])
        proof = prove(transcript, keys, HOLDERS[place % size])
        verify(transcript, keys, proof)
        self.assertEqual(len(proof), 64 * size)
        self.assertEqual(len(proof), keys.proof_bytes)

    def test_the_longest_list(self) -> None:
        holders = [HolderKey.generate() for _ in range(schnorr.MAX_KEYS)]
        keys = KeyList([holder.public for holder in holders])
        proof = prove(b"t", keys, holders[-1])
        verify(b"t", keys, proof)
        self.assertRaises(InvalidProofError, verify, b"u", keys, proof)

    def test_any_flipped_bit_of_a_proof_is_noticed(self) -> None:
        keys = KeyList(PUBLIC[:2])
        proof = prove(b"t", keys, HOLDERS[1])
        for bit in range(8 * len(proof)):
            flipped = bytearray(proof)
            flipped[bit // 8] ^= 1 << bit % 8
            self.assertRaises(InvalidProofError, verify, b"t", keys, bytes(flipped))

    @few
    @given(transcript=st.binary(min_size=1, max_size=60), bit=st.integers(min_value=0))
    def test_any_flipped_bit_of_the_transcript_is_noticed(self, transcript: bytes, bit: int) -> None:
        keys = KeyList(PUBLIC[:2])
        proof = prove(transcript, keys, HOLDERS[0])
        flipped = bytearray(transcript)
        flipped[bit // 8 % len(flipped)] ^= 1 << bit % 8
        self.assertRaises(InvalidProofError, verify, bytes(flipped), keys, proof)
        self.assertRaises(InvalidProofError, verify, transcript[:-1], keys, proof)
        self.assertRaises(InvalidProofError, verify, transcript + b"\0", keys, proof)

    @few
    @given(order=st.permutations(range(4)), holder=st.integers(0, 3))
    def test_the_order_of_the_list_counts(self, order: list[int], holder: int) -> None:
        keys, other = KeyList(PUBLIC[:4]), KeyList([PUBLIC[i] for i in order])
        proof = prove(b"t", keys, HOLDERS[holder])
        if order == [0, 1, 2, 3]:
            verify(b"t", other, proof)
            return
        self.assertNotEqual(keys.digest, other.digest)
        self.assertRaises(InvalidProofError, verify, b"t", other, proof)
        challenges, responses = split(proof)
        moved = [challenges[i] for i in order] + [responses[i] for i in order]
        permuted = b"".join(scalar.to_bytes(32, "little") for scalar in moved)
        self.assertRaises(InvalidProofError, verify, b"t", other, permuted)

    @few
    @given(holder=st.integers(0, 2), replaced=st.integers(0, 2))
    def test_another_key_in_any_place_is_noticed(self, holder: int, replaced: int) -> None:
        proof = prove(b"t", KeyList(PUBLIC[:3]), HOLDERS[holder])
        changed = list(PUBLIC[:3])
        changed[replaced] = PUBLIC[4]
        self.assertRaises(InvalidProofError, verify, b"t", KeyList(changed), proof)

    def test_stuck_randomness_never_gives_one_commitment_two_challenges(self) -> None:
        """Two responses to one commitment would give the secret away (special soundness)."""
        stuck = b"\0" * 32
        keys, longer = KeyList(PUBLIC[:2]), KeyList(PUBLIC[:3])
        seen = set()
        for transcript, on in ((b"t", keys), (b"u", keys), (b"t", longer)):
            proof = prove(transcript, on, HOLDERS[0], token_bytes=lambda _: stuck)
            self.assertEqual(proof, prove(transcript, on, HOLDERS[0], token_bytes=lambda _: stuck))
            seen.add(encode(reference_commitments(on.keys, *split(proof))[0]))
        self.assertEqual(len(seen), 3)
        self.assertNotEqual(prove(b"t", keys, HOLDERS[0]), prove(b"t", keys, HOLDERS[0]))


class Indistinguishable(SynchronousTestCase):
    """Witness indistinguishability is perfect, so it can be tested exactly and not only statistically."""

    @few
    @given(maker=st.integers(0, 3), other=st.integers(0, 3), drawn=st.integers(1, ORDER - 1))
    def test_every_proof_is_also_a_proof_that_any_other_holder_could_have_made(
        self, maker: int, other: int, drawn: int
    ) -> None:
        """For whatever the other one drew first, exactly one second draw leads it to the very same bytes."""
        keys = KeyList(PUBLIC[:4])
        proof = prove(b"t", keys, HOLDERS[maker])
        challenges, responses = split(proof)
        x = integer(HOLDERS[other].secret)
        responses[other] = (responses[other] + (challenges[other] - drawn) * x) % ORDER
        challenges[other] = drawn
        as_bytes = [[scalar.to_bytes(32, "little") for scalar in part] for part in (challenges, responses)]
        self.assertEqual(schnorr._complete(b"t", keys, HOLDERS[other], *as_bytes), proof)

    def test_a_simulator_that_may_choose_the_hash_needs_no_secret(self) -> None:
        """Zero knowledge: pairs drawn at random satisfy every equation once the hash is set to their sum."""
        keys = KeyList(PUBLIC[:3])
        drawn = [secrets.randbelow(ORDER - 1) + 1 for _ in range(6)]
        commitments = reference_commitments(keys.keys, drawn[:3], drawn[3:])
        for key, c, r, commitment in zip(keys.keys, drawn[:3], drawn[3:], commitments, strict=True):
            raw = (scalar.to_bytes(32, "little") for scalar in (r, c))
            self.assertEqual(group.combine(*raw, key), encode(commitment))
        simulated = b"".join(scalar.to_bytes(32, "little") for scalar in drawn)
        # and without choosing the hash it convinces nobody
        self.assertRaises(InvalidProofError, verify, b"t", keys, simulated)


class SecondImplementation(SynchronousTestCase):
    """libsodium and plain integers agree, on fresh proofs and on the kept ones."""

    def test_the_group_is_the_published_one(self) -> None:
        self.assertEqual(group.GENERATOR, encode(BASE))
        self.assertEqual(times(ORDER, BASE), NEUTRAL)

    @settings(max_examples=5, deadline=None)
    @given(size=st.integers(1, 3), holder=st.integers(0, 2), transcript=st.binary(max_size=40))
    def test_each_accepts_what_the_other_makes(self, size: int, holder: int, transcript: bytes) -> None:
        keys, maker, fresh = KeyList(PUBLIC[:size]), HOLDERS[holder % size], secrets.token_bytes(32)
        proof = prove(transcript, keys, maker, token_bytes=lambda _: fresh)
        self.assertTrue(reference_holds(transcript, keys.keys, proof))
        self.assertFalse(reference_holds(transcript + b"!", keys.keys, proof))
        self.assertEqual(reference_proof(transcript, list(keys.keys), integer(maker.secret), fresh), proof)

    def test_kept_vectors(self) -> None:
        cases = json.loads(VECTORS.read_text())["cases"]
        self.assertEqual({len(case["keys"]) for case in cases}, {1, 2, 4})
        for case in cases:
            transcript, fresh, proof = (bytes.fromhex(case[name]) for name in ("transcript", "fresh", "proof"))
            keys = KeyList([bytes.fromhex(key) for key in case["keys"]])
            maker = HolderKey(bytes.fromhex(case["secret"]))
            self.assertEqual(keys.digest.hex(), case["list_digest"])
            self.assertEqual(prove(transcript, keys, maker, token_bytes=lambda _, fresh=fresh: fresh), proof)
            verify(transcript, keys, proof)
            self.assertTrue(reference_holds(transcript, keys.keys, proof))
            self.assertEqual(reference_proof(transcript, list(keys.keys), integer(maker.secret), fresh), proof)


def _off_curve(y: int) -> bool:
    try:
        with_y(y, 0)
    except ValueError:
        return True
    return False
