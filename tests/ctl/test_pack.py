"""`ronctl pack`: the map is a map, the archive is whole, and the same input gives the same bytes."""

from __future__ import annotations

import atexit
import io
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from blake3 import blake3
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from twisted.trial.unittest import SynchronousTestCase

from ron.ctl.pack import pack
from ron.ctl.worldmap import style
from ron.ctl.worldmap.labels import Site, place
from ron.ctl.worldmap.mercator import close_over_the_pole, copies, project, thin, unwrap
from ron.ctl.worldmap.topology import decode, stitch
from ron.proto.errors import RonError
from ron.proto.tiles import TileAddress
from ron.services.edge.pack import Pack

TINY = {
    "type": "Topology",
    "transform": {"scale": [1, 1], "translate": [0, 0]},
    # two unit squares that share the edge x = 1
    "arcs": [[[1, 0], [0, 1]], [[1, 1], [-1, 0], [0, -1], [1, 0]], [[1, 0], [1, 0], [0, 1], [-1, 0]]],
    "objects": {
        "countries": {
            "type": "GeometryCollection",
            "geometries": [
                {"type": "Polygon", "arcs": [[0, 1]], "properties": {"name": "West"}},
                {"type": "MultiPolygon", "arcs": [[[-1, 2]]], "properties": {"name": "East"}},
            ],
        }
    },
}


class TopologyTests(SynchronousTestCase):
    """Two squares side by side."""

    def setUp(self) -> None:
        self.world = decode(json.dumps(TINY).encode(), "countries")

    def test_rings_are_stitched_and_closed(self) -> None:
        west, east = self.world.shapes
        self.assertEqual(west.polygons, [[[(1, 0), (1, 1), (0, 1), (0, 0), (1, 0)]]])
        self.assertEqual(east.polygons, [[[(1, 1), (1, 0), (2, 0), (2, 1), (1, 1)]]])

    def test_the_shared_arc_is_the_border(self) -> None:
        self.assertEqual(list(self.world.borders()), [[(1, 0), (1, 1)]])
        self.assertEqual(len(list(self.world.coasts())), 2)
        self.assertEqual(self.world.neighbours(), [{1}, {0}])

    def test_a_topology_that_does_not_close_is_refused(self) -> None:
        self.assertRaises(ValueError, stitch, [0], self.world.arcs)
        self.assertRaises(ValueError, stitch, [0, 2], self.world.arcs)
        self.assertRaises(ValueError, decode, json.dumps(TINY).encode(), "rivers")


class MercatorTests(SynchronousTestCase):
    """The unit square."""

    def test_known_points(self) -> None:
        self.assertEqual(project((0, 0)), (0.5, 0.5))
        self.assertEqual(project((-180, 90)), (0.0, 0.0))
        self.assertAlmostEqual(project((180, -90))[1], 1.0)

    def test_a_shape_over_the_antimeridian_becomes_continuous_and_shows_twice(self) -> None:
        square = [project(p) for p in [(170, 0), (-170, 0), (-170, 10), (170, 10), (170, 0)]]
        smooth = unwrap(square)
        xs = [x for x, _ in smooth]
        self.assertLess(max(xs) - min(xs), 0.06)
        self.assertEqual(copies(min(xs), max(xs)), [-1, 0])

    def test_a_ring_round_the_pole_is_closed_below_the_map(self) -> None:
        ring = close_over_the_pole(unwrap([project((lon, -70)) for lon in (-180, -90, 0, 90, 180)]))
        self.assertGreater(max(y for _, y in ring), 1.0)
        self.assertEqual(ring[0], ring[-1])

    def test_thinning_keeps_the_ends(self) -> None:
        line = [(i / 1000, 0.0) for i in range(1000)]
        thinned = thin(line, 0.1)
        self.assertEqual((thinned[0], thinned[-1]), (line[0], line[-1]))
        self.assertLess(len(thinned), 15)


class LabelTests(SynchronousTestCase):
    """Names never cover one another."""

    sites = st.lists(
        st.builds(
            Site,
            name=st.text(st.sampled_from("abcdefgh é"), min_size=1, max_size=20).map(str.strip).filter(bool),
            x=st.floats(0, 1),
            y=st.floats(0, 1),
            width=st.floats(0, 1),
            radius=st.floats(0, 0.5),
            area=st.floats(0, 1),
        ),
        max_size=25,
    )

    @settings(max_examples=60, deadline=None)
    @given(sites, st.integers(2, 5))
    def test_no_two_overlap_and_all_lie_on_the_map(self, sites: list[Site], zoom: int) -> None:
        labels = place(sites, zoom)
        for index, label in enumerate(labels):
            self.assertTrue(label.half_width < label.x < (256 << zoom) - label.half_width)
            self.assertFalse(any(label.overlaps(other) for other in labels[:index]))

    def test_neighbours_get_different_tints(self) -> None:
        ring = [{(i - 1) % 9, (i + 1) % 9} for i in range(9)]
        colours = style.tints([f"country {i}" for i in range(9)], ring)
        for index, near in enumerate(ring):
            for other in near:
                self.assertNotEqual(colours[index], colours[other])


def run_pack(*arguments: str) -> str:
    result = CliRunner().invoke(pack, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def build(out: Path, jobs: int) -> dict[str, Any]:
    """What the command says."""
    words = ("build", "--out", str(out), "--max-zoom", "2", "--jobs", str(jobs), "--json")
    return dict(json.loads(run_pack(*words)))


@cache
def a_world() -> tuple[Path, dict[str, Any]]:
    """A pack made once, and what was said of it; tests work on copies."""
    folder = Path(tempfile.mkdtemp(prefix="ron-pack-"))
    atexit.register(shutil.rmtree, folder, True)
    return folder / "world.pmtiles", build(folder / "world.pmtiles", 1)


class BuildTests(SynchronousTestCase):
    """The command, down to zoom 2."""

    def copy(self) -> Path:
        """A pack, its digest beside it."""
        made, self.built = a_world()
        out = Path(self.mktemp()).absolute()
        shutil.copytree(made.parent, out)
        return out / made.name

    def colour(self, archive: Pack, z: int, x: int, y: int, pixel: tuple[int, int]) -> tuple[int, ...]:
        body = archive.read(TileAddress(z, x, y, "png"))
        assert body is not None
        picture = Image.open(io.BytesIO(body))
        self.assertEqual((picture.format, picture.size), ("PNG", (256, 256)))
        return picture.convert("RGB").getpixel(pixel)  # type: ignore[return-value]

    def test_sea_and_land_are_where_they_belong(self) -> None:
        archive = Pack(self.copy())
        self.addCleanup(archive.close)
        self.assertEqual(archive.header.addressed_tiles, 1 + 4 + 16)
        self.assertEqual(self.colour(archive, 2, 0, 1, (60, 200)), style.SEA)  # the North Pacific
        self.assertIn(self.colour(archive, 2, 1, 2, (90, 70)), style.LAND)  # inner Brazil
        self.assertEqual(self.colour(archive, 2, 1, 0, (130, 200)), style.ICE)  # Greenland
        self.assertEqual(self.colour(archive, 2, 2, 3, (128, 250)), style.ICE)  # Antarctica goes down to the edge
        self.assertIsNone(archive.read(TileAddress(3, 0, 0, "png")))

    def test_the_archive_is_deterministic_and_its_digest_right(self) -> None:
        one = self.copy()
        digest = f"b3:{blake3(one.read_bytes()).hexdigest()}"
        self.assertEqual(self.built["b3"], digest)
        self.assertEqual(Path(f"{one}.b3").read_text().strip(), digest)
        two = one.with_name("two.pmtiles")
        build(two, 2)
        self.assertEqual(one.read_bytes(), two.read_bytes())

    def test_if_missing_leaves_what_is_there(self) -> None:
        out = Path(self.mktemp()).absolute()
        out.write_bytes(b"mine")
        told = json.loads(run_pack("build", "--out", str(out), "--if-missing", "--json"))
        self.assertEqual((told["built"], out.read_bytes()), (False, b"mine"))

    def test_info(self) -> None:
        out = self.copy()
        told = json.loads(run_pack("info", str(out), "--json"))
        self.assertEqual((told["tiles"], told["min_zoom"], told["max_zoom"]), (21, 0, 2))
        self.assertEqual((told["content_type"], told["b3"]), ("image/png", self.built["b3"]))
        self.assertIn("21 tiles", run_pack("info", str(out)))

    def test_a_place_that_cannot_be_written_is_named(self) -> None:
        blocker = Path(self.mktemp()).absolute()
        blocker.write_bytes(b"")
        arguments = ["build", "--out", str(blocker / "x.pmtiles"), "--max-zoom", "0", "--jobs", "1"]
        refusal = self.assertRaises(RonError, CliRunner().invoke, pack, arguments, catch_exceptions=False)
        self.assertIn("cannot write", refusal.message)
        self.assertIn("--out", refusal.hint or "")

    def test_a_broken_pack_is_named(self) -> None:
        out = self.copy()
        out.write_bytes(out.read_bytes()[:-100])
        refusal = self.assertRaises(RonError, CliRunner().invoke, pack, ["info", str(out)], catch_exceptions=False)
        self.assertIn("truncated", refusal.message)
