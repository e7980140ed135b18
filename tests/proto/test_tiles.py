"""Tile addresses: every character counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import RonError
from ron.proto.tiles import EXTENSIONS, MAX_ZOOM, TileAddress, parse_tile


class TileAddressTests(SynchronousTestCase):
    """`/tiles/{z}/{x}/{y}.{ext}`."""

    def test_a_tile(self) -> None:
        self.assertEqual(parse_tile("5", "17", "10.png"), TileAddress(5, 17, 10, "png"))

    @given(st.integers(0, MAX_ZOOM), st.data())
    def test_every_tile_of_every_zoom(self, z: int, data: st.DataObject) -> None:
        x, y = (data.draw(st.integers(0, (1 << z) - 1)) for _ in "xy")
        ext = data.draw(st.sampled_from(sorted(EXTENSIONS)))
        self.assertEqual(parse_tile(str(z), str(x), f"{y}.{ext}"), TileAddress(z, x, y, ext))

    def test_malformed(self) -> None:
        for z, x, y_ext in [
            ("", "0", "0.png"),
            ("-1", "0", "0.png"),
            ("+1", "0", "0.png"),
            ("01", "0", "0.png"),
            ("1", " 0", "0.png"),
            ("1", "0", "0"),
            ("1", "0", "0.exe"),
            ("1", "0", "0.png.png"),
            ("1", "0", ".png"),
            ("1", "0", "0.PNG"),
            ("1", "²", "0.png"),
            ("1", "٣", "0.png"),
            ("1", "0x0", "0.png"),
            ("27", "0", "0.png"),
            ("1", "2", "0.png"),
            ("1", "0", "2.png"),
            ("1", "9" * 400, "0.png"),
            ("1e1", "0", "0.png"),
        ]:
            refusal = self.assertRaises(RonError, parse_tile, z, x, y_ext)
            self.assertEqual(refusal.status, 400, (z, x, y_ext))

    @given(st.text(), st.text(), st.text())
    def test_any_text_is_a_tile_or_a_400(self, z: str, x: str, y_ext: str) -> None:
        try:
            parse_tile(z, x, y_ext)
        except RonError as refusal:
            self.assertEqual(refusal.status, 400)
