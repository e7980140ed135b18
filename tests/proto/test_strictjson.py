"""No name twice in an object: what one reader takes from the first and another from the last is taken by neither."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.strictjson import check_names, strict_decoder


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    """Below."""

    mode: str = "and"


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    """A body."""

    kid: str
    policy: Inner | None = None
    hints: dict[str, Any] = {}
    sigs: tuple[Inner, ...] = ()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


# two spellings of one, white space, and what looks like the end of a name
NAMES = ('"kid"', '"\\u006bid"', '"kid "', '"a:b"', '"{"', '""')


class Strict(SynchronousTestCase):
    def setUp(self) -> None:
        self.decode = strict_decoder(Outer)

    def twice(self, text: str) -> str:
        error: msgspec.ValidationError = self.assertRaises(msgspec.ValidationError, self.decode, text.encode())
        return str(error)

    def test_twice_at_any_depth(self) -> None:
        for text, name in (
            ('{"kid": "a", "kid": "b"}', "kid"),
            ('{"kid":"a","kid":"a"}', "kid"),
            ('{"kid": "a", "\\u006bid": "b"}', "kid"),
            ('{"kid": "a", "policy": {"mode": "or", "mode" : "and"}}', "mode"),
            ('{"kid": "a", "hints": {"x": {"y": [{"z": 1, "z": 2}]}}}', "z"),
            ('{"kid": "a", "sigs": [{"mode": "or"}, {"mode": "or", "mode": "and"}]}', "mode"),
        ):
            self.assertIn(f"`{name}` twice", self.twice(text))

    def test_a_strange_name_is_not_repeated(self) -> None:
        for name in ("a b", "<script>", "x" * 65, "\\n", "é" * 3 + "-"):
            text = f'{{"kid": "a", "hints": {{"{name}": 1, "{name}": 2}}}}'
            self.assertEqual(self.twice(text), "Object contains `a name` twice")

    def test_once_in_each_is_once(self) -> None:
        text = '{"kid": "a:b,\\"kid\\":1", "hints": {"kid": 1, "Kid": 2, "x": {"kid": 3}}, "policy": {"mode": "or"}}'
        self.assertEqual(self.decode(text.encode()).hints["x"], {"kid": 3})
        self.assertEqual(self.decode(b'{"kid": "a"}').kid, "a")

    def test_all_else_is_msgspecs_to_say(self) -> None:
        for text in (b"", b"{", b'{"kid": 1}', b'{"kid": "a", "more": 1}', b"[]", b'{"kid": "\xff"}'):
            error = self.assertRaises((msgspec.DecodeError, ValueError), msgspec.json.Decoder(Outer).decode, text)
            self.assertRaises(type(error), self.decode, text)

    def test_a_number_of_many_digits_costs_nothing(self) -> None:
        """Python would refuse to make it, and msgspec has made a float of it."""
        self.assertEqual(self.decode(b'{"kid": "a", "hints": {"x": 1e3, "y": %s}}' % (b"1" * 300)).kid, "a")
        check_names(b'{"a": 1, "b": %s}' % (b"7" * 10_000))

    def test_too_deep(self) -> None:
        text = b'{"kid": "a", "hints": {"x": %s%s}}' % (b"[" * 100_000, b"]" * 100_000)
        self.assertRaises(RecursionError, self.decode, text)

    def test_what_only_one_of_two_readers_can_read(self) -> None:
        self.assertRaises(msgspec.DecodeError, check_names, b'{"a": 1, "b": }')

    @given(st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), max_size=5), st.booleans())
    @settings(deadline=None, max_examples=50)
    def test_large_and_small_are_judged_alike(self, members: list[tuple[str, bool]], large: bool) -> None:
        """Names beside and within one another; what is long is looked at in a shorter way."""
        filler = '"' + "x:,{}" * (300 if large else 1) + '"'
        inside = [f"{name} : {filler}" for name, nested in members if nested]
        beside = [f"{name}:{filler if large else '1'}" for name, nested in members if not nested]
        raw = "{" + ", ".join([*beside, '"n": {' + ",".join(inside) + "}"]) + "}"
        names = [[json.loads(name) for name, nested in members if nested is wanted] for wanted in (True, False)]
        twice = any(len(set(each)) < len(each) for each in names)
        if twice:
            self.assertRaises(msgspec.ValidationError, check_names, raw.encode())
        else:
            check_names(raw.encode())

    @given(st.dictionaries(st.text(max_size=4), values, max_size=4))
    @settings(deadline=None, max_examples=50)
    def test_what_one_object_can_hold_is_taken(self, hints: dict[str, Any]) -> None:
        raw = json.dumps({"kid": "a", "hints": hints}).encode("utf-8", "surrogatepass")
        try:
            msgspec.json.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        self.decode(raw)
