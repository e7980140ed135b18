"""A backend's descriptor is read strictly: whatever is wrong with it is named, and nothing of it is used."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import RonError
from ron.tor.clientauth import generate
from ron.tor.descriptor import build as building
from ron.tor.descriptor.blinding import KeySigner
from ron.tor.descriptor.build import DescriptorKey, build, certify
from ron.tor.descriptor.intropoints import (
    MAX_DESCRIPTOR_BYTES,
    Backend,
    Extras,
    common_extras,
    read_backend,
    read_revision,
    relay_of,
)
from ron.tor.descriptor.periods import TimePeriod
from ron.tor.descriptor.refused import Reason, Refused
from ron.tor.onionkeys import address_of, new_key, onion_address
from tests.tor.descriptor.samples import EXTRAS, NOW_S, RECORDED_PERIOD, descriptor_key, finish, intro_point, recorded

PERIODS = (RECORDED_PERIOD.shifted(-1), RECORDED_PERIOD)


def read(text: str, onion: str, **options: Any) -> Backend:
    return read_backend(text, onion, PERIODS, NOW_S, **options)


def address(key: DescriptorKey) -> str:
    return onion_address(key.blinded.identity)


class Refusing(SynchronousTestCase):
    def refused(self, reason: Reason, call: Callable[..., object], *arguments: Any, **options: Any) -> None:
        error = self.assertRaises(Refused, call, *arguments, **options)
        self.assertIs(error.reason, reason)


class OfTor(Refusing):
    """The descriptor of a real tor, and what can be done to it without its key."""

    def test_as_it_is(self) -> None:
        onion, text = recorded()
        backend = read(text, onion)
        self.assertEqual((backend.onion, backend.period, backend.revision), (onion, RECORDED_PERIOD, 18131688))
        self.assertEqual(len({point.auth_key for point in backend.points}), 3)
        self.assertEqual(backend.extras.flow_control, "1-2 31")
        self.assertIsNotNone(backend.extras.pow_params)

    def test_of_another_address_or_period(self) -> None:
        onion, text = recorded()
        self.refused(Reason.STRANGER, read, text, address_of(new_key()))
        later = (RECORDED_PERIOD.shifted(1), RECORDED_PERIOD.shifted(2))
        self.refused(Reason.STRANGER, read_backend, text, onion, later, NOW_S)
        self.refused(Reason.STRANGER, read_backend, text, onion, (), NOW_S)
        hour = TimePeriod(number=RECORDED_PERIOD.number, length_min=60, start_s=0)
        self.refused(Reason.STRANGER, read_backend, text, onion, (hour,), NOW_S)

    def test_for_what_is_no_address(self) -> None:
        self.assertRaises(RonError, read, recorded()[1], "example.onion")

    def test_an_old_one(self) -> None:
        onion, text = recorded()
        self.assertEqual(read(text, onion, newer_than=18131687).revision, 18131688)
        self.refused(Reason.OLD_REVISION, read, text, onion, newer_than=18131688)

    def test_expired(self) -> None:
        onion, text = recorded()
        self.refused(Reason.EXPIRED, read_backend, text, onion, PERIODS, NOW_S + 60 * 3600)

    def test_only_what_a_directory_sees(self) -> None:
        onion, text = recorded()
        self.assertEqual(read_revision(text, onion, PERIODS, NOW_S), (RECORDED_PERIOD, 18131688))
        self.refused(Reason.STRANGER, read_revision, text, address_of(new_key()), PERIODS, NOW_S)
        changed = text.replace("revision-counter 18131688", "revision-counter 99999999")
        self.refused(Reason.BAD_SIGNATURE, read_revision, changed, onion, PERIODS, NOW_S)
        key, client = descriptor_key(), generate()
        restricted = build(key, [intro_point("a")], 7, clients=[client.public])
        self.assertEqual(read_revision(restricted, address(key), PERIODS, NOW_S), (RECORDED_PERIOD, 7))

    def test_relays(self) -> None:
        onion, text = recorded()
        for point in read(text, onion).points:
            fingerprint, identity = relay_of(point)
            self.assertRegex(fingerprint, "^[0-9A-F]{40}$")
            self.assertEqual(len(identity), 32)
            without = point.link_specifiers
            twice = bytes([2 * without[0]]) + without[1:] * 2
            for wrong in (b"", b"\x00", without[:-1], without + b"x", b"\x09" + without[1:], twice):
                self.refused(Reason.MALFORMED, relay_of, msgspec.structs.replace(point, link_specifiers=wrong))

    def test_another_revision_under_the_same_signature(self) -> None:
        onion, text = recorded()
        changed = text.replace("revision-counter 18131688", "revision-counter 99999999")
        self.refused(Reason.BAD_SIGNATURE, read, changed, onion)

    def test_what_is_none(self) -> None:
        onion, text = recorded()
        for bad in ("", "\0", "hs-descriptor 3", "hs-descriptor 4\n" + text.partition("\n")[2], text[:900], text * 2):
            self.refused(Reason.MALFORMED, read, bad, onion)
        self.refused(Reason.MALFORMED, read, text.replace("hs-descriptor", "hs-d\u00e9scriptor"), onion)

    def test_too_long_a_one_is_not_looked_at(self) -> None:
        self.refused(Reason.TOO_LONG, read, "x" * (MAX_DESCRIPTOR_BYTES + 1), "no address at all")

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 14_100), st.characters(codec="ascii"))
    def test_a_changed_character(self, place: int, character: str) -> None:
        onion, text = recorded()
        place = min(place, len(text) - 1)
        changed = text[:place] + character + text[place + 1 :]
        try:
            backend = read(changed, onion)
        except Refused:
            return
        # a line end, or base64's unused bits: what is said is the same
        self.assertEqual(backend, read(text, onion))

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 14_000))
    def test_truncated(self, length: int) -> None:
        onion, text = recorded()
        self.assertRaises(Refused, read, text[:length], onion)


class OfALyingBackend(Refusing):
    """It has the keys, and signs what it should not."""

    def setUp(self) -> None:
        self.key = descriptor_key()
        self.points = [intro_point("a"), intro_point("b")]

    def signed(self, change: Callable[[str], str]) -> str:
        """A descriptor whose inner layer is `change`d before it is sealed."""
        original = building.inner_layer
        self.patch(building, "inner_layer", lambda *arguments: change(original(*arguments)))
        return build(self.key, self.points, 1, extras=EXTRAS)

    def test_its_word_is_taken_when_all_is_well(self) -> None:
        backend = read(self.signed(lambda inner: inner), address(self.key))
        self.assertEqual(backend.points, tuple(self.points))

    def test_points_certified_by_another_key(self) -> None:
        self.patch_signing(SigningKey.generate())
        self.refused(Reason.STRANGER, read, build(self.key, self.points, 1), address(self.key))

    def patch_signing(self, other: SigningKey) -> None:
        original = building.certified
        self.patch(building, "certified", lambda point, _signing: original(point, other))

    def test_an_encryption_key_that_is_not_the_certified_one(self) -> None:
        self.points[1] = msgspec.structs.replace(self.points[1], enc_key=self.points[0].enc_key)
        self.refused(Reason.STRANGER, read, build(self.key, self.points, 1), address(self.key))

    def test_a_certificate_altered(self) -> None:
        def alter(inner: str) -> str:
            return re.sub(r"(auth-key\n-----BEGIN ED25519 CERT-----\n.{20})(.)", _other_letter, inner, count=1)

        self.refused(Reason.BAD_SIGNATURE, read, self.signed(alter), address(self.key))

    def test_certificates_in_each_others_place(self) -> None:
        def swap(inner: str) -> str:
            first, second = re.findall(r"-----BEGIN ED25519 CERT-----.*?-----END ED25519 CERT-----", inner, re.S)[:2]
            return inner.replace(first, "@").replace(second, first).replace("@", second)

        self.refused(Reason.MALFORMED, read, self.signed(swap), address(self.key))

    def test_a_certificate_past_its_hour(self) -> None:
        self.points[1] = intro_point("b", expires_h=int(NOW_S) // 3600)
        self.refused(Reason.EXPIRED, read, build(self.key, self.points, 1), address(self.key))

    def test_more_points_than_tor_takes(self) -> None:
        def repeat(inner: str) -> str:
            head, mark, points = inner.partition("introduction-point ")
            return head + (mark + points) * 11

        self.refused(Reason.TOO_LONG, read, self.signed(repeat), address(self.key))

    def test_lines_missing_or_senseless(self) -> None:
        for old, new in (
            ("onion-key ntor", "onion-key tap"),
            ("enc-key ntor", "x-key ntor"),
            ("create2-formats 2", "create2-formats 1"),
            ("flow-control 1-2 31", "flow-control 1-2 31 pow-params"),
            ("introduction-point Aw", "introduction-point AA"),
            ("auth-key\n", "auth-key-x\n"),
            ("enc-key-cert", "legacy-key\n-----BEGIN RSA-----\nAA==\n-----END RSA-----\nenc-key-cert"),
        ):
            text = self.signed(lambda inner, old=old, new=new: inner.replace(old, new))
            error = self.assertRaises(Refused, read, text, address(self.key))
            self.assertIn(error.reason, (Reason.MALFORMED, Reason.SEALED), old)

    def test_keys_that_are_none(self) -> None:
        self.points[0] = msgspec.structs.replace(self.points[0], onion_key=b"short")
        self.refused(Reason.MALFORMED, read, build(self.key, self.points, 1), address(self.key))

    def test_no_fingerprint_among_the_link_specifiers(self) -> None:
        self.points[0] = msgspec.structs.replace(
            self.points[0], link_specifiers=b"\x01\x00\x06\x7f\x00\x00\x01\x01\xbb"
        )
        self.refused(Reason.MALFORMED, read, build(self.key, self.points, 1), address(self.key))

    def test_restricted_to_clients(self) -> None:
        text = build(self.key, self.points, 1, clients=[generate().public])
        self.refused(Reason.SEALED, read, text, address(self.key))

    def test_a_blinded_key_of_its_own_choice(self) -> None:
        """Certified by another address's blinded key: not the one that was asked for."""
        other = finish(certify(KeySigner(new_key()), RECORDED_PERIOD, NOW_S))
        self.refused(Reason.STRANGER, read, build(other, self.points, 1), address(self.key))

    def test_an_empty_one_is_valid(self) -> None:
        self.assertEqual(read(build(self.key, (), 1), address(self.key)).points, ())


class Carried(SynchronousTestCase):
    def backend(self, **said: Any) -> Backend:
        return Backend(onion="x", period=RECORDED_PERIOD, revision=1, points=(), extras=Extras(**said))

    def test_what_all_say(self) -> None:
        both = [self.backend(flow_control="1-2 31", single_onion=True)] * 2
        self.assertEqual(common_extras(both), Extras(flow_control="1-2 31", single_onion=True))

    def test_not_what_only_some_say(self) -> None:
        for other in ({}, {"flow_control": "1 31"}):
            self.assertEqual(common_extras([self.backend(flow_control="1-2 31"), self.backend(**other)]), Extras())
        self.assertEqual(common_extras(()), Extras())

    def test_never_a_puzzle_that_only_one_backend_takes(self) -> None:
        puzzle = "v1 " + "A" * 43 + "= 7 2026-11-21T16:35:10"
        self.assertIsNone(common_extras([self.backend(pow_params=puzzle)]).pow_params)

    def test_values_that_would_be_more_than_a_line(self) -> None:
        for value in ("1-2 31\nintroduction-point x", "", "1-2", "1-2 31 ", "x" * 100):
            self.assertRaises(Refused, Extras, flow_control=value)
            self.assertRaises(Refused, Extras, pow_params=value)


def _other_letter(match: re.Match[str]) -> str:
    return match[1] + ("A" if match[2] != "A" else "B")
