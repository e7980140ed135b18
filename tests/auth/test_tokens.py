"""Tokens as text: any change is refused, anybody can narrow, and inspection says what is there and proves nothing."""

from __future__ import annotations

import base64

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pymacaroons import Macaroon
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import Authority, Caveat, RootKeys, Wanted, attenuate, inspect
from ron.auth.tokens import MAX_TOKEN_CHARS
from ron.proto.errors import ErrorCode, RonError

NOW = 1_800_000_000.0
KEYS = RootKeys.generate(NOW)
GOOD = Authority(KEYS, audience="ron-node", now=lambda: NOW).mint(
    [Caveat("scope", "mailbox:send"), Caveat("method", "POST"), Caveat("exp", "2030-01-01T00:00:00Z")]
)
SEND = Wanted("mailbox:send", "POST", "/v1/send")
RAW = base64.urlsafe_b64decode(GOOD + "=" * (-len(GOOD) % 4))


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Changed(SynchronousTestCase):
    """Whatever is done to a good token without its key, but adding caveats, makes it a bad one."""

    def refused(self, token: str) -> None:
        authority = Authority(KEYS, audience="ron-node", now=lambda: NOW)
        authority.admit(GOOD, SEND)
        error = self.assertRaises(RonError, authority.admit, token, SEND)
        self.assertEqual((error.code, error.status), (ErrorCode.NO_CAPABILITY, 401))

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, len(RAW) - 1), st.integers(1, 255))
    def test_any_byte(self, at: int, flip: int) -> None:
        changed = bytearray(RAW)
        changed[at] ^= flip
        self.refused(encoded(bytes(changed)))

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, len(GOOD) - 1), st.characters(), st.booleans())
    def test_any_character(self, at: int, put: str, instead: bool) -> None:
        assume(not instead or GOOD[at] != put)
        self.refused(GOOD[:at] + put + GOOD[at + instead :])

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, len(RAW)), st.integers(0, len(RAW)))
    def test_any_piece_cut_out(self, start: int, end: int) -> None:
        assume(start < end and (start, end) != (0, len(RAW)))
        self.refused(encoded(RAW[:start] + RAW[end:]))
        if start:
            self.refused(encoded(RAW[:start]))

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(0, 3), max_size=6))
    def test_any_other_choice_and_order_of_caveats(self, order: list[int]) -> None:
        assume(order != [0, 1, 2, 3])
        macaroon = Macaroon.deserialize(GOOD)
        macaroon.caveats = [macaroon.caveats[index] for index in order]
        self.refused(str(macaroon.serialize()))

    @settings(max_examples=100, deadline=None)
    @given(st.binary(min_size=32, max_size=32))
    def test_any_other_signature(self, signature: bytes) -> None:
        assume(signature != RAW[-32:])
        self.refused(encoded(RAW[:-32] + signature))


class Narrowing(SynchronousTestCase):
    def test_without_keys(self) -> None:
        authority = Authority(KEYS, audience="ron-node", now=lambda: NOW)
        child = attenuate(GOOD, [Caveat("path", "/v1/send"), Caveat("path", "/v1")])
        capability = authority.admit(child, SEND)
        self.assertEqual(capability.cap_id, authority.admit(GOOD, SEND).cap_id)
        self.assertEqual(capability.caveats[-2:], (Caveat("path", "/v1/send"), Caveat("path", "/v1")))
        self.assertRaises(RonError, authority.admit, child, SEND._replace(path="/v1/recv"))

    def test_bad_input(self) -> None:
        self.assertRaises(ValueError, attenuate, GOOD, [Caveat("colour", "red")])
        self.assertRaises(ValueError, attenuate, GOOD, [Caveat("rps", "-1")])
        for token in ("", "x", GOOD[:-1], GOOD + "=", "A" * (MAX_TOKEN_CHARS + 1)):
            self.assertIs(self.assertRaises(RonError, attenuate, token, []).code, ErrorCode.NO_CAPABILITY)
        error = self.assertRaises(RonError, attenuate, GOOD, [Caveat("topic", "x" * 500)] * 8)
        self.assertIs(error.code, ErrorCode.TOO_LARGE)


class Inspecting(SynchronousTestCase):
    def test_what_it_says(self) -> None:
        seen = inspect(attenuate(GOOD, [Caveat("exp", "2029-01-01T00:00:00Z"), Caveat("exp", "2031-01-01T00:00:00Z")]))
        self.assertEqual((seen.kid, seen.expires_at_s, seen.not_understood), (1, 1861920000.0, ()))
        self.assertEqual([caveat.name for caveat in seen.caveats], ["aud", "scope", "method", "exp", "exp", "exp"])
        self.assertEqual(len(bytes.fromhex(seen.cap_id)), 16)
        self.assertIsNone(inspect(Authority(KEYS, audience="x", now=lambda: NOW).mint([])).expires_at_s)

    def test_it_verifies_nothing_and_says_what_is_not_understood(self) -> None:
        macaroon = Macaroon.deserialize(GOOD)
        macaroon.add_first_party_caveat("colour = red")
        macaroon.add_third_party_caveat("elsewhere", "their key", "are they a member?")
        macaroon.signature = "00" * 32
        seen = inspect(str(macaroon.serialize()))
        self.assertEqual(len(seen.not_understood), 2)
        self.assertEqual(seen.not_understood[0], "colour = red")

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=len(RAW)), st.integers(0, len(RAW)))
    def test_hostile_bytes_are_a_refusal_and_nothing_worse(self, rest: bytes, kept: int) -> None:
        for work in (inspect, lambda token: attenuate(token, [Caveat("topic", "x")])):
            try:
                work(encoded(RAW[:kept] + rest))
            except RonError as error:
                self.assertEqual(error.status, 401)
