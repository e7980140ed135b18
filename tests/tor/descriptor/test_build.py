"""Descriptors of ours: read back whole, of tor's shape, within its limits, with counters that only grow."""

from __future__ import annotations

import base64
import hashlib
import re

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_scalarmult
from stem.descriptor.hidden_service import HiddenServiceDescriptorV3, OuterLayer, _decrypt_layer
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.tor.clientauth import MAX_CLIENTS, ClientKey, generate
from ron.tor.descriptor.blinding import KeySigner
from ron.tor.descriptor.build import CLIENTS_MULTIPLE, MAX_DESCRIPTOR_BYTES, DescriptorKey, build, certify, room
from ron.tor.descriptor.intropoints import MAX_INTRO_POINTS, MAX_REVISION, Extras, read_backend
from ron.tor.descriptor.periods import TimePeriod
from ron.tor.descriptor.refused import Reason, Refused
from ron.tor.descriptor.revisions import MAX_SEEN, PER_SECOND, next_revision
from ron.tor.onionkeys import new_key, onion_address
from tests.tor.descriptor.samples import EXTRAS, NOW_S, RECORDED_PERIOD, descriptor_key, finish, intro_point, recorded

KEY = descriptor_key()
ONION = onion_address(KEY.blinded.identity)
POINTS = [intro_point(str(number)) for number in range(MAX_INTRO_POINTS)]
CLIENTS = [generate().public for _ in range(MAX_CLIENTS)]


class WrongSigner:
    """Signs, but with another address's key; or not at all."""

    def __init__(self, signature: bytes | None = None) -> None:
        self.identity = KeySigner(new_key()).identity
        self._other = KeySigner(new_key())
        self._signature = signature

    async def sign(self, period: TimePeriod, message: bytes) -> bytes:
        if self._signature is not None:
            return self._signature
        return await self._other.sign(period, message)


class Unwilling(WrongSigner):
    async def sign(self, period: TimePeriod, message: bytes) -> bytes:
        raise RonError(ErrorCode.STORE_UNAVAILABLE, "two of five members answer")


class Certifying(SynchronousTestCase):
    def test_a_signer_that_lies(self) -> None:
        for signature in (None, b"", bytes(64), b"x" * 65):
            error = self.assertRaises(Refused, finish, certify(WrongSigner(signature), RECORDED_PERIOD, NOW_S))
            self.assertIs(error.reason, Reason.BAD_SIGNATURE)

    def test_a_signer_that_cannot(self) -> None:
        error = self.assertRaises(RonError, finish, certify(Unwilling(), RECORDED_PERIOD, NOW_S))
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)

    def test_the_certificate_lasts_as_tors_does(self) -> None:
        self.assertTrue(54 * 3600 <= KEY.expires_s - NOW_S < 55 * 3600)

    def test_the_signing_key_is_in_no_repr(self) -> None:
        self.assertNotIn(repr(bytes(KEY.signing)), repr(KEY))


class Building(SynchronousTestCase):
    def test_more_than_tor_takes(self) -> None:
        error = self.assertRaises(Refused, build, KEY, [*POINTS, intro_point("21")], 1)
        self.assertIs(error.reason, Reason.TOO_LONG)
        error = self.assertRaises(Refused, build, KEY, POINTS, 1, clients=CLIENTS)
        self.assertIs(error.reason, Reason.TOO_LONG)

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.sampled_from(POINTS), max_size=MAX_INTRO_POINTS, unique=True), st.integers(0, MAX_REVISION))
    def test_read_back(self, points: list[object], revision: int) -> None:
        text = build(KEY, points, revision, extras=EXTRAS)
        backend = read_backend(text, ONION, [RECORDED_PERIOD], NOW_S)
        self.assertEqual((backend.points, backend.revision, backend.extras), (tuple(points), revision, EXTRAS))

    def test_line_by_line_like_tors(self) -> None:
        """The same lines in the same order, in all three layers, and not a byte more or less for the same content."""
        onion, theirs = recorded()
        backend = read_backend(theirs, onion, [RECORDED_PERIOD], NOW_S)
        ours = build(KEY, backend.points, backend.revision, extras=backend.extras)
        self.assertEqual(len(ours), len(theirs))
        for mine, tors in zip(layers(ours, ONION), layers(theirs, onion), strict=True):
            self.assertEqual([shape(line) for line in mine], [shape(line) for line in tors])

    def test_padded_so_that_directories_cannot_count(self) -> None:
        lengths = {len(build(KEY, POINTS[:count], 1)) for count in range(7)}
        self.assertEqual(len(lengths), 1)

    def test_nothing_is_the_same_twice(self) -> None:
        first, second = (re.findall(r"^\S{64}$", build(KEY, POINTS[:3], 1), re.M)[5:-5] for _ in range(2))
        self.assertEqual(set(first) & set(second), set())


class Room(SynchronousTestCase):
    def test_twenty_points_fit_when_clients_are_few(self) -> None:
        self.assertEqual(room(KEY, POINTS, 0, EXTRAS), MAX_INTRO_POINTS)
        self.assertEqual(room(KEY, POINTS, 64, EXTRAS), MAX_INTRO_POINTS)

    def test_it_is_what_fits(self) -> None:
        for clients in (0, 1, 16, 17, 100, 180, 200, MAX_CLIENTS):
            count = room(KEY, POINTS, clients, EXTRAS)
            text = build(KEY, POINTS[:count], MAX_REVISION, clients=CLIENTS[:clients], extras=EXTRAS)
            self.assertLess(len(text), MAX_DESCRIPTOR_BYTES)
            if count < MAX_INTRO_POINTS:
                more = POINTS[: count + 1]
                self.assertRaises(Refused, build, KEY, more, 1, clients=CLIENTS[:clients], extras=EXTRAS)

    def test_no_room_at_all(self) -> None:
        self.assertEqual(room(KEY, POINTS, 1000, EXTRAS), 0)

    def test_no_points(self) -> None:
        self.assertEqual(room(KEY, (), 0, Extras()), MAX_INTRO_POINTS)


class Restricted(SynchronousTestCase):
    """Client authorisation, opened as rend-spec-v3 §2.5.1.2 tells a client to; tor does it in tests/live."""

    def setUp(self) -> None:
        self.clients = [generate() for _ in range(3)]
        self.text = build(KEY, POINTS[:3], 7, clients=[client.public for client in self.clients])

    def test_each_client_opens_it(self) -> None:
        for client in self.clients:
            self.assertEqual(self.opened_by(client).count("introduction-point "), 3)

    def test_others_do_not(self) -> None:
        self.assertRaises(LookupError, self.opened_by, generate())
        self.assertRaises(ValueError, HiddenServiceDescriptorV3.from_str(self.text).decrypt, ONION)

    def test_nobody_can_count_them(self) -> None:
        for count, entries in ((0, 16), (1, 16), (16, 16), (17, 32)):
            middle = outer_layer(build(KEY, POINTS[:3], 7, clients=CLIENTS[:count]))
            self.assertEqual(len(middle.clients), entries)
            self.assertEqual(entries % CLIENTS_MULTIPLE, 0)

    def opened_by(self, client: ClientKey) -> str:
        middle = outer_layer(self.text)
        shared = crypto_scalarmult(client.secret, base64.b64decode(middle.ephemeral_key))
        keys = hashlib.shake_256(KEY.blinded.subcredential + shared).digest(40)
        entry = middle.clients[base64.b64encode(keys[:8]).decode().rstrip("=")]
        iv, sealed = (base64.b64decode(part + "==") for part in (entry.iv, entry.cookie))
        cookie = Cipher(algorithms.AES(keys[8:]), modes.CTR(iv)).decryptor().update(sealed)
        secret = KEY.blinded.public + cookie
        return str(_decrypt_layer(middle.encrypted, b"hsdir-encrypted-data", 7, KEY.blinded.subcredential, secret))


class Revisions(SynchronousTestCase):
    def test_what_no_publisher_comes_to(self) -> None:
        for seen in (-1, MAX_SEEN + 1, MAX_REVISION):
            self.assertRaises(Refused, next_revision, RECORDED_PERIOD, NOW_S, seen=seen)

    @given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 4)), min_size=1, max_size=30))
    def test_whoever_publishes_when_with_whatever_clock(self, publications: list[tuple[float, int]]) -> None:
        """Five nodes, clocks off by days, each knows what was published last: every counter is above all before."""
        seen = 0
        for clock_s, node in publications:
            revision = next_revision(RECORDED_PERIOD, NOW_S + clock_s, seen=seen, tie=node)
            self.assertGreater(revision, seen)
            seen = revision

    @given(st.floats(0, 1e5), st.floats(1.001, 1e4), st.integers(0, 999), st.integers(0, 999))
    def test_a_leader_that_has_seen_nothing(self, at_s: float, later_s: float, first: int, second: int) -> None:
        """With a right clock it is above those before it, from the next second on."""
        start_s = RECORDED_PERIOD.shifted(-1).start_s
        before = next_revision(RECORDED_PERIOD, start_s + at_s, tie=first)
        self.assertGreater(next_revision(RECORDED_PERIOD, start_s + at_s + later_s, tie=second), before)

    def test_two_leaders_in_one_second(self) -> None:
        counters = {next_revision(RECORDED_PERIOD, NOW_S, tie=node) for node in range(PER_SECOND)}
        self.assertEqual(len(counters), PER_SECOND)

    def test_from_the_first_second_it_is_due(self) -> None:
        start_s = RECORDED_PERIOD.shifted(-1).start_s
        self.assertEqual(next_revision(RECORDED_PERIOD, start_s - 1e9), 1)
        self.assertEqual(next_revision(RECORDED_PERIOD, start_s + 2.9), 2 * PER_SECOND)


def outer_layer(text: str, key: DescriptorKey = KEY) -> OuterLayer:
    descriptor = HiddenServiceDescriptorV3.from_str(text)
    blinded = key.blinded
    sealed, revision = descriptor.superencrypted, descriptor.revision_counter
    return OuterLayer._decrypt(sealed, revision, blinded.subcredential, blinded.public)


def layers(text: str, onion: str) -> tuple[list[str], list[str], list[str]]:
    inner = HiddenServiceDescriptorV3.from_str(text).decrypt(onion)
    return text.splitlines(), str(inner.outer).splitlines(), str(inner).splitlines()


def shape(line: str) -> str:
    """The keyword and the lengths of what follows; of a line of base64 its length."""
    if re.fullmatch("[A-Za-z0-9+/=]{16,}", line):
        return str(len(line))
    keyword, *values = line.split(" ")
    return " ".join([keyword, *(str(len(value)) for value in values)])
