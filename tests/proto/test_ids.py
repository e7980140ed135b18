"""UUIDv7 as RFC 9562 §5.7 has it, and what counts as a correlation id."""

from __future__ import annotations

import time
import uuid

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.ids import is_uuid, uuid7, uuid7_text


class Uuid7(SynchronousTestCase):
    def test_version_and_variant(self) -> None:
        for _ in range(200):
            made = uuid7()
            self.assertEqual(made.version, 7)
            self.assertEqual(made.variant, uuid.RFC_4122)

    def test_the_first_48_bits_are_the_milliseconds_of_now(self) -> None:
        before = time.time_ns() // 1_000_000
        millis = uuid7().int >> 80
        self.assertTrue(before <= millis <= time.time_ns() // 1_000_000)

    def test_time_order(self) -> None:
        made = []
        for _ in range(5):
            made.append(uuid7())
            tick = time.time_ns() // 1_000_000
            while time.time_ns() // 1_000_000 == tick:
                pass
        self.assertEqual(made, sorted(made))
        self.assertEqual([str(m) for m in made], sorted(str(m) for m in made))

    def test_its_text_is_that_of_such_a_uuid(self) -> None:
        for _ in range(200):
            text = uuid7_text()
            made = uuid.UUID(text)
            self.assertEqual((str(made), made.version, made.variant), (text, 7, uuid.RFC_4122))
        self.assertEqual(len({uuid7_text() for _ in range(5000)}), 5000)

    def test_never_the_same_twice(self) -> None:
        self.assertEqual(len({uuid7() for _ in range(5000)}), 5000)

    def test_every_random_bit_is_used(self) -> None:
        """74 of them: each is seen both ways in a few hundred ids."""
        ones = zeros = 0
        for _ in range(300):
            value = uuid7().int
            ones |= value
            zeros |= ~value
        random_bits = ((1 << 76) - 1) & ~(0x3 << 62)
        self.assertEqual(ones & zeros & random_bits, random_bits)


class IsUuid(SynchronousTestCase):
    @given(st.uuids())
    def test_the_canonical_text_of_any_version_in_either_case(self, some: uuid.UUID) -> None:
        self.assertTrue(is_uuid(str(some)))
        self.assertTrue(is_uuid(str(some).upper()))

    @given(st.uuids())
    def test_other_spellings_are_refused(self, some: uuid.UUID) -> None:
        text = str(some)
        for other in (some.hex, f"{{{text}}}", some.urn, f"{text} ", f" {text}", f"{text}\n", text[:-1]):
            self.assertFalse(is_uuid(other), other)

    def test_near_misses_of_the_right_length(self) -> None:
        text = str(uuid7())
        for other in (
            "x" * 36,
            "-" * 36,
            text.replace("-", "_"),
            text[:8] + "0" + text[9:],
            "{" + text[1:-1] + "}",
            "urn:" + text[4:],
            "\uff11" + text[1:],
            text[:-1] + "\n",
        ):
            self.assertEqual(len(other), 36)
            self.assertFalse(is_uuid(other), other)

    @given(st.text(st.characters(), max_size=40))
    def test_what_is_accepted_can_stand_in_a_header(self, text: str) -> None:
        if is_uuid(text):
            text.encode("ascii")
            self.assertEqual(str(uuid.UUID(text)), text.lower())
