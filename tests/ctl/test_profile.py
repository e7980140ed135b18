"""`ronctl profile` against a process that works, and the graph it draws."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.task import LoopingCall
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase

from ron.ctl.flamegraph import CHAR_PX, MAX_BOXES, WIDTH_PX, boxes, colour, fitting, flame_graph, hottest, tree
from ron.kernel.profiling import Profiler
from ron.web.profiling import profiling_endpoints
from tests.ctl.forkserver import RONCTL
from tests.web.wire import OnTheWire

SVG = "{http://www.w3.org/2000/svg}"
# Other tests may leave us a tenth of a core.
SECONDS = 1.5


def crunch() -> int:
    """Some milliseconds in one function, also where every line is traced."""
    total = 0
    for _ in range(100):
        total += sum(range(10_000))
    return total


def parsed(svg: str) -> ET.Element:
    """As a browser would."""
    return ET.fromstring(svg)  # noqa: S314 - our own


def draw(stacks: dict[str, int]) -> ET.Element:
    """The graph."""
    return parsed(flame_graph(stacks, title="t", subtitle="s"))


def drawn(svg: ET.Element) -> dict[str, tuple[float, float, float]]:
    """Tooltip → x, width, y of its box."""
    found = {}
    for group in svg.iter(f"{SVG}g"):
        title, rect = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        assert title is not None and rect is not None
        found[title.text or ""] = tuple(float(rect.get(k) or "nan") for k in ("x", "width", "y"))
    return found  # type: ignore[return-value]


class CommandTests(OnTheWire):
    timeout = 60

    def setUp(self) -> None:
        super().setUp()
        self.serve(profiling_endpoints(Profiler(reactor), enabled=True))
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        work = LoopingCall(crunch)
        work.start(0.005)
        self.addCleanup(work.stop)

    async def ronctl(self, *arguments: str, cap: str = "node:profile") -> tuple[str, str, int]:
        token = self.bearer(("scope", cap))["Authorization"].removeprefix("Bearer ")
        url = f"http://127.0.0.1:{self.port}"
        command = ["profile", "--node", url, "--cap", token, "--seconds", str(SECONDS), *arguments]
        env = {**os.environ, "RON_HOME": str(self.folder)}
        out, err, code = await getProcessOutputAndValue(str(RONCTL), command, env=env, path=str(self.folder))
        return out.decode(), err.decode(), code

    async def test_refusals_have_their_exit_codes(self) -> None:
        out, err, code = await self.ronctl(cap="node:read")
        self.assertEqual((out, code), ("", 5), err)
        self.assertIn("ronctl: ", err)
        for wrong in ("0", "61", "nan", "x"):
            self.assertEqual((await self.ronctl("--seconds", wrong))[2], 2, wrong)
        out, err, code = await self.ronctl("-o", "/nonexistent/out.svg")
        self.assertEqual(code, 8, err)
        self.assertEqual((await self.ronctl("--node", "http://127.0.0.1:9"))[2], 4)

    async def test_a_flame_graph(self) -> None:
        out, err, code = await self.ronctl("-o", "out.svg")
        self.assertEqual(code, 0, err)
        self.assertIn(f"{__name__}:crunch", out)
        self.assertIn("written to out.svg", out)
        self.assertIn("100 %", err, "progress goes to stderr")
        svg = parsed((self.folder / "out.svg").read_text())
        hot = [box for title, box in drawn(svg).items() if title.startswith(f"{__name__}:crunch —")]
        self.assertGreater(sum(width for _x, width, _y in hot), WIDTH_PX / 4)
        self.assertEqual([e.tag for e in svg.iter() if e.tag.endswith(("script", "image", "a", "use"))], [])

    async def test_folded_stacks(self) -> None:
        _out, err, code = await self.ronctl("-o", "out.folded")
        self.assertEqual(code, 0, err)
        lines = (self.folder / "out.folded").read_text().splitlines()
        for line in lines:
            self.assertRegex(line, r"^[^;]+(;[^;]+)* \d+$")
        self.assertTrue(any(f";{__name__}:crunch " in line for line in lines))

    async def test_heap(self) -> None:
        out, err, code = await self.ronctl("--heap")
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r"memory: [\d.]+ MiB resident, \d+ objects")
        self.assertRegex(out, r"\n +\d+ +[\d.]+ [KM]iB  dict\n")

    async def test_json_is_one_object_and_quiet(self) -> None:
        out, err, code = await self.ronctl("--json", "--heap")
        self.assertEqual((code, err), (0, ""))
        found: Any = json.loads(out)
        self.assertEqual(found["seconds"], SECONDS)
        self.assertEqual(found["hottest"][0]["function"], f"{__name__}:crunch")
        self.assertIsNone(found["written"])
        self.assertGreater(found["heap"]["rss_bytes"], 1e6)


class Graph(SynchronousTestCase):
    def test_nothing_at_all(self) -> None:
        svg = draw({})
        self.assertEqual(len(list(svg.iter(f"{SVG}g"))), 1)

    def test_widths_are_shares_and_callers_lie_below(self) -> None:
        found = drawn(draw({"T;a:f;b:g": 3000, "T;a:f": 1000, "T;c:h": 4000, "T;gone:x": 0}))
        inner = WIDTH_PX - 20
        self.assertEqual(len(found), 5)
        for title, share in (
            ("all — 8.0 ms, 100.0 %", 1.0),
            ("T — 8.0 ms, 100.0 %", 1.0),
            ("a:f — 4.0 ms, 50.0 %", 0.5),
            ("b:g — 3.0 ms, 37.5 %", 0.375),
            ("c:h — 4.0 ms, 50.0 %", 0.5),
        ):
            self.assertAlmostEqual(found[title][1], share * inner, places=1)
        (x_f, _w, y_f), (x_g, _w2, y_g) = found["a:f — 4.0 ms, 50.0 %"], found["b:g — 3.0 ms, 37.5 %"]
        self.assertLess(y_g, y_f)
        self.assertEqual(x_f, x_g)
        self.assertAlmostEqual(found["c:h — 4.0 ms, 50.0 %"][0], x_f + inner / 2, places=1)

    def test_names_cannot_break_out_of_the_file(self) -> None:
        evil = "<script>alert(1)</script>\"'&]]>\x00\x1b\ud800:x"
        text = flame_graph({evil: 1000}, title=evil, subtitle=evil)
        self.assertNotIn("<script", text)
        text.encode("utf-8")
        titles = [e.text or "" for e in parsed(text).iter(f"{SVG}title")]
        self.assertTrue(any("<script>alert(1)" in title for title in titles))

    @settings(max_examples=60, deadline=None)
    @given(
        st.dictionaries(
            st.lists(st.text(max_size=30), min_size=1, max_size=6).map(";".join), st.integers(-5, 10**9), max_size=12
        )
    )
    def test_any_stacks(self, stacks: dict[str, int]) -> None:
        svg = draw(stacks)
        root = tree(stacks)
        self.assertEqual(root.weight, sum(w for w in stacks.values() if w > 0))
        right_edge: dict[int, float] = {}
        for box in sorted(boxes(root), key=lambda b: (b.row, b.left)):
            self.assertGreaterEqual(box.left, right_edge.get(box.row, 0.0) - 1e-9, "boxes of a row do not overlap")
            right_edge[box.row] = box.left + box.width
            self.assertLessEqual(right_edge[box.row], 1.0 + 1e-9)
        for group in svg.iter(f"{SVG}g"):
            rect, label = group.find(f"{SVG}rect"), group.find(f"{SVG}text")
            if label is not None and rect is not None:
                self.assertLessEqual(len(label.text or "") * CHAR_PX, float(rect.get("width") or 0), "text fits")

    def test_what_cannot_be_seen_is_left_out(self) -> None:
        stacks = {f"T;m:f{number}": 1 for number in range(5000)} | {"T;big:f": 10**9}
        self.assertLess(len(list(draw(stacks).iter(f"{SVG}g"))), 10)
        self.assertLessEqual(MAX_BOXES, 50_000)

    def test_deep_stacks_need_no_recursion(self) -> None:
        self.assertEqual(max(box.row for box in boxes(tree({";".join(["m:f"] * 5000): 7}))), 5000)

    def test_labels(self) -> None:
        self.assertEqual(fitting("ron.web.site:RonSite.drain", 40), "ron.web.site:RonSite.drain")
        self.assertEqual(fitting("ron.web.site:RonSite.drain", 15), "RonSite.drain")
        self.assertEqual(fitting("ron.web.site:RonSite.drain", 6), "RonSi…")
        self.assertEqual(fitting("ron.web.site:RonSite.drain", 2), "")

    def test_one_colour_a_package(self) -> None:
        def hue(name: str) -> str:
            red, green, blue = (int(colour(name)[i : i + 2], 16) for i in (1, 3, 5))
            return "".join("rgb"[i] for i in sorted(range(3), key=lambda i: (red, green, blue)[i]))

        self.assertEqual(hue("ron.web.site:a"), hue("ron.web.endpoint:b"))
        self.assertEqual(colour("MainThread"), colour("[other stacks]"))
        self.assertNotEqual(colour("ron.web.site:a"), colour("twisted.web.http:a"))

    def test_the_hottest_are_by_their_own_time(self) -> None:
        stacks = {"T;a:f;b:g": 30, "T;b:g": 5, "T;a:f": 20}
        self.assertEqual(hottest(stacks), [("b:g", 35), ("a:f", 20)])
