"""Folded stacks become a flame graph: one SVG file without scripts, fonts or anything from elsewhere.

In: `root;…;leaf` → weight. Out: SVG text. The root lies at the bottom; width is the share of CPU time; one colour a
package; the whole name and its time stand in each box's tooltip.
"""

from __future__ import annotations

import colorsys
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from zlib import crc32

WIDTH_PX = 1200
ROW_PX = 18
FONT_PX = 12
# of a monospaced face at that size; a little more than it is, so that no text runs out of its box
CHAR_PX = 7.3
MARGIN_PX = 10
HEAD_PX = 62
LEGEND_NAMES = 9
# A box of less is not visible; leaving it out keeps the file small.
LEAST_PX = 0.4
MAX_BOXES = 20_000
_GREY = "#d4d4d4"
_STYLE = (
    f"text{{font-family:ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;font-size:{FONT_PX}px;fill:#1c1c1c}}"
    ".title{font-size:15px;font-weight:bold}.sub{fill:#555}rect{stroke:#fff;stroke-width:.6}"
    "g:hover>rect{stroke:#000;stroke-width:1}"
)
# what XML 1.0 cannot hold, however it is escaped
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Node:
    """A frame and what was called from it. weight: of it and all below."""

    __slots__ = ("below", "name", "weight")

    def __init__(self, name: str) -> None:
        self.name = name
        self.weight = 0
        self.below: dict[str, Node] = {}


class Box(NamedTuple):
    """Where a frame is drawn. row: 0 for the root. left, width: in parts of the whole, 0 to 1."""

    name: str
    row: int
    left: float
    width: float
    weight: int


def tree(stacks: Mapping[str, int]) -> Node:
    """The stacks merged from the root on. Weights below one are passed over."""
    root = Node("all")
    for frames, weight in stacks.items():
        if weight < 1:
            continue
        node = root
        node.weight += weight
        for name in frames.split(";"):
            node = node.below.setdefault(name, Node(name))
            node.weight += weight
    return root


def boxes(root: Node) -> Iterator[Box]:
    """Every frame wide enough to be seen, each after the one it stands on; siblings by name, so that runs compare."""
    total = root.weight or 1
    waiting = [(root, 0, 0)]
    while waiting:
        node, row, before = waiting.pop()
        yield Box(node.name, row, before / total, node.weight / total, node.weight)
        for name in sorted(node.below):
            child = node.below[name]
            if child.weight / total * (WIDTH_PX - 2 * MARGIN_PX) >= LEAST_PX:
                waiting.append((child, row + 1, before))
            before += child.weight


def hottest(stacks: Mapping[str, int]) -> list[tuple[str, int]]:
    """Functions by the time spent in themselves, most first."""
    own: Counter[str] = Counter()
    for frames, weight in stacks.items():
        own[frames.rpartition(";")[2]] += weight
    return own.most_common()


def flame_graph(stacks: Mapping[str, int], *, title: str, subtitle: str) -> str:
    """The SVG of `stacks`, whose weights are microseconds."""
    root = tree(stacks)
    drawn = sorted(boxes(root), key=lambda box: -box.width)[:MAX_BOXES]
    height = HEAD_PX + (max(box.row for box in drawn) + 1) * ROW_PX + MARGIN_PX
    svg = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH_PX} {height}",
            "width": str(WIDTH_PX),
            "height": str(height),
        },
    )
    ET.SubElement(svg, "style").text = _STYLE
    ET.SubElement(svg, "rect", {"width": "100%", "height": "100%", "fill": "#fff"})
    _text(svg, MARGIN_PX, 22, title, "title")
    _text(svg, MARGIN_PX, 39, subtitle, "sub")
    _draw_legend(svg, stacks)
    for box in sorted(drawn, key=lambda box: (box.row, box.left)):
        _draw(svg, box, height, root.weight)
    return ET.tostring(svg, encoding="unicode") + "\n"


def _draw(svg: ET.Element, box: Box, height: int, total: int) -> None:
    inner = WIDTH_PX - 2 * MARGIN_PX
    left, width = MARGIN_PX + box.left * inner, box.width * inner
    top = height - MARGIN_PX - (box.row + 1) * ROW_PX
    group = ET.SubElement(svg, "g")
    share = 100 * box.weight / (total or 1)
    ET.SubElement(group, "title").text = _xml(f"{box.name} — {box.weight / 1000:.1f} ms, {share:.1f} %")
    place = {"x": f"{left:.2f}", "y": str(top), "width": f"{width:.2f}", "height": str(ROW_PX - 1), "rx": "1.5"}
    ET.SubElement(group, "rect", {**place, "fill": colour(box.name)})
    label = fitting(box.name, int((width - 6) / CHAR_PX))
    if label:
        _text(group, left + 3, top + ROW_PX - 5, label)


def _draw_legend(svg: ET.Element, stacks: Mapping[str, int]) -> None:
    """The packages with most time of their own, each in its colour."""
    own: Counter[str] = Counter()
    for name, weight in hottest(stacks):
        if ":" in name:
            own[package(name)] += weight
    x = float(MARGIN_PX)
    for name, _weight in own.most_common(LEGEND_NAMES):
        label = fitting(name, 24)
        room = 24 + len(label) * CHAR_PX
        if x + room > WIDTH_PX - MARGIN_PX:
            break
        place = {"x": f"{x:.1f}", "y": "46", "width": "11", "height": "11", "rx": "1.5"}
        ET.SubElement(svg, "rect", {**place, "fill": _fill(name, 4)})
        _text(svg, x + 15, 56, label, "sub")
        x += room + 8


def fitting(name: str, chars: int) -> str:
    """`name` in at most `chars`: whole, or without its module, or cut with an ellipsis; nothing below three."""
    if len(name) <= chars:
        return name
    function = name.rpartition(":")[2]
    if len(function) <= chars:
        return function
    return function[: chars - 1] + "…" if chars >= 3 else ""


def package(name: str) -> str:
    """What gives a frame its colour: the first two parts of our own modules' names, the first of all others'."""
    module, found, _function = name.partition(":")
    if not found:
        return name
    parts = module.split(".")
    return ".".join(parts[:2] if parts[0] == "ron" else parts[:1])


def colour(name: str) -> str:
    """The same for the same package in every graph. What is no function (a thread, the rest) is grey."""
    return _fill(package(name), crc32(name.encode("utf-8", "replace")) % 9) if ":" in name else _GREY


def _fill(group: str, shade: int) -> str:
    """Light enough for dark text."""
    hue = crc32(group.encode("utf-8", "replace")) % 360 / 360
    red, green, blue = colorsys.hls_to_rgb(hue, 0.70 + shade / 100, 0.62)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def _text(parent: ET.Element, x: float, y: float, text: str, kind: str | None = None) -> None:
    place = {"x": f"{x:.2f}", "y": f"{y:.1f}"} | ({"class": kind} if kind else {})
    ET.SubElement(parent, "text", place).text = _xml(text)


def _xml(text: str) -> str:
    return _NOT_XML.sub("?", text)
