"""Frames and envelopes: what is refused, and that what is taken is what was sent."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from ron.services.balance.mesh.wire import MAX_FRAME_BYTES, Envelope, Frames, Refused, framed, seal, unseal

KEY, OTHER_KEY = SigningKey(b"k" * 32), SigningKey(b"o" * 32)
PUBLIC = bytes(KEY.verify_key)
CLUSTER = b"c" * 16
NAMES = st.from_regex(r"\A[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?\Z")
NUMBERS = st.integers(0, 2**63 - 1)
ENVELOPES = st.builds(
    Envelope,
    cluster=st.just(CLUSTER),
    sender=st.just("a"),
    to=st.just("b"),
    run=NUMBERS,
    boot=st.binary(min_size=8, max_size=8),
    seq=NUMBERS,
    sent_ms=NUMBERS,
    kind=st.from_regex(r"\A[a-z][a-z0-9_./-]{0,63}\Z"),
    corr=NUMBERS,
    body=st.binary(max_size=2000),
)
ONE = Envelope(CLUSTER, "a", "b", 1, b"boot8888", 1, 1, "beat", 0, b"body")


def opened(payload: bytes, *, cluster: bytes = CLUSTER, sender: str = "a", to: str = "b") -> Envelope:
    return unseal(payload, cluster=cluster, sender=sender, to=to, key=PUBLIC)


class Envelopes(SynchronousTestCase):
    """One message."""

    def refused(self, reason: str, payload: bytes, **expected: object) -> None:
        problem = self.assertRaises(Refused, opened, payload, **expected)
        self.assertEqual((reason, True), (problem.reason, problem.fatal))

    def test_refused(self) -> None:
        good = seal(ONE, KEY)
        self.refused("malformed", b"")
        self.refused("malformed", good[:64])
        self.refused("malformed", good[:-1])
        self.refused("malformed", good + b"\0")
        self.refused("too_long", good + bytes(MAX_FRAME_BYTES))
        self.refused("other_cluster", good, cluster=b"d" * 16)
        self.refused("stranger", good, sender="c")
        self.refused("stranger", good, to="c")
        self.refused("bad_signature", seal(ONE, OTHER_KEY))
        self.refused("bad_signature", bytes([good[0] ^ 1]) + good[1:])
        self.refused("bad_signature", good[:-1] + b"?")

    def test_a_second_spelling_is_refused_though_it_is_signed(self) -> None:
        packed = msgspec.msgpack.encode(ONE)
        longer = packed.replace(b"\xa4beat", b"\xd9\x04beat")
        self.assertEqual(ONE, msgspec.msgpack.decode(longer, type=Envelope))
        self.refused("malformed", KEY.sign(b"ron-mesh/1 message\0" + longer).signature + longer)
        extra = msgspec.msgpack.encode([*msgspec.structs.astuple(ONE), 1])
        self.refused("malformed", KEY.sign(b"ron-mesh/1 message\0" + extra).signature + extra)

    def test_fields_out_of_range_are_refused_though_they_are_signed(self) -> None:
        for change in (
            {"seq": -1},
            {"boot": b"short"},
            {"kind": "Beat"},
            {"kind": ""},
            {"body": bytes(MAX_FRAME_BYTES)},
        ):
            bad = msgspec.structs.replace(ONE, **change)
            problem = self.assertRaises(Refused, opened, seal(bad, KEY))
            self.assertIn(problem.reason, {"malformed", "too_long"})

    @given(ENVELOPES)
    def test_there_and_back(self, envelope: Envelope) -> None:
        self.assertEqual(envelope, opened(seal(envelope, KEY)))

    @given(st.binary(max_size=300))
    def test_noise(self, noise: bytes) -> None:
        self.assertRaises(Refused, opened, noise)

    @given(st.data())
    def test_any_changed_bit(self, data: st.DataObject) -> None:
        good = bytearray(seal(ONE, KEY))
        bit = data.draw(st.integers(0, len(good) * 8 - 1))
        good[bit // 8] ^= 1 << bit % 8
        self.assertRaises(Refused, opened, bytes(good))


class Stream(SynchronousTestCase):
    """Frames."""

    def test_refused_before_it_is_kept(self) -> None:
        for length, reason in ((MAX_FRAME_BYTES + 1, "too_long"), (2**32 - 1, "too_long"), (0, "malformed")):
            frames = Frames()
            with self.assertRaises(Refused) as caught:
                list(frames.feed(length.to_bytes(4, "big") + bytes(1000)))
            self.assertEqual((reason, 0), (caught.exception.reason, frames.waiting_bytes))
        self.assertRaises(Refused, framed, bytes(MAX_FRAME_BYTES + 1))

    def test_the_limit_of_who_is_not_known_yet(self) -> None:
        frames = Frames(10)
        self.assertRaises(Refused, list, frames.feed(framed(bytes(11))))

    @given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.lists(st.integers(1, 20), max_size=40))
    def test_however_it_is_cut(self, payloads: list[bytes], cuts: list[int]) -> None:
        stream, found, frames = b"".join(map(framed, payloads)), [], Frames()
        for cut in [*cuts, len(stream)]:
            found += frames.feed(stream[:cut])
            stream = stream[cut:]
        self.assertEqual(payloads, found)
        self.assertEqual(0, frames.waiting_bytes)
