"""Durations and sizes as people write them."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.units import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    UnitError,
    parse_duration_ms,
    parse_duration_s,
    parse_quantity,
    parse_size,
)
from ron.proto.errors import RonError

WRONG = (
    "",
    "5",
    "s",
    "5 s",
    " 5s",
    "5s\n",
    "-5s",
    "+5s",
    "1.5s",
    "5S",
    "5sec",
    "5m5s",
    "１s",
    "5e3s",
    "0x5s",
    "9" * 13 + "s",
)
WRONG_SIZES = ("", "5", "B", "5 KB", "5kb", "5K", "5Kib", "5KIB", "1.5MB", "-1B", "5iB", "1PB", "9" * 13 + "B", "1MB\n")


class Units(SynchronousTestCase):
    """One spelling, whole numbers, nothing guessed."""

    def test_what_is_no_duration(self) -> None:
        for text in WRONG:
            error = self.assertRaises(UnitError, parse_duration_ms, text)
            self.assertIn("250ms", str(error.hint))
        self.assertRaises(UnitError, parse_duration_s, "1MiB")

    def test_what_is_no_size(self) -> None:
        for text in WRONG_SIZES:
            error = self.assertRaises(UnitError, parse_size, text)
            self.assertIn("16KiB", str(error.hint))
        self.assertRaises(UnitError, parse_size, "5s")

    def test_a_complaint_is_short_and_typed(self) -> None:
        error = self.assertRaises(UnitError, parse_size, "x" * 100_000)
        self.assertLess(len(str(error)), 80)
        self.assertIsInstance(error, RonError)
        self.assertIsInstance(error, ValueError)

    def test_durations(self) -> None:
        for text, ms in (
            ("0ms", 0),
            ("250ms", 250),
            ("5s", 5000),
            ("10m", 600_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
            ("007s", 7000),
        ):
            self.assertEqual(parse_duration_ms(text), ms)
            self.assertEqual(parse_duration_s(text), ms / 1000)

    def test_sizes(self) -> None:
        for text, size in (
            ("512B", 512),
            ("64KB", 64_000),
            ("16KiB", 16_384),
            ("1MB", 1_000_000),
            ("1MiB", 1_048_576),
            ("2GiB", 2_147_483_648),
            ("1TB", 10**12),
        ):
            self.assertEqual(parse_size(text), size)

    def test_a_quantity_fits_its_unit(self) -> None:
        self.assertEqual(parse_quantity("2s", "ms"), 2000)
        self.assertEqual(parse_quantity("2m", "s"), 120)
        self.assertEqual(parse_quantity("1KiB", "bytes"), 1024)
        self.assertEqual(parse_quantity("250ms", "s", whole=False), 0.25)
        self.assertRaises(UnitError, parse_quantity, "250ms", "s")
        self.assertRaises(UnitError, parse_quantity, "2s", "bytes")
        self.assertRaises(UnitError, parse_quantity, "2B", "ms")

    @given(st.text(alphabet="0123456789msdhKMGTiB -+._", max_size=8))
    @example("1KB")
    def test_the_patterns_for_schemas_say_the_same(self, text: str) -> None:
        for pattern, parse in ((DURATION_PATTERN, parse_duration_ms), (SIZE_PATTERN, parse_size)):
            try:
                self.assertGreaterEqual(parse(text), 0)
            except UnitError:
                self.assertNotRegex(text, pattern)
            else:
                self.assertRegex(text, pattern)
