"""What alerts and boards promise, whosever they are: rules and expressions that Prometheus takes, metrics that we have.

In: the files below etc/prometheus and etc/grafana. Out: tests to inherit beside a TestCase, and what they look things
up with. Rules and boards are read by the tool that will read them, Debian's promtool (scripts/setup installs it).
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Metrics

ROOT = Path(__file__).resolve().parents[1]
PROMETHEUS = ROOT / "etc" / "prometheus"
BOARDS = ROOT / "etc" / "grafana"

_WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset"}
_WORDS |= {"inf", "nan"}
_KINDS = {
    "Counter": "counter",
    "Gauge": "gauge",
    "Histogram": "histogram",
    "_counter": "counter",
    "_gauge": "gauge",
    "_count": "counter",
    "CounterMetricFamily": "counter",
    "GaugeMetricFamily": "gauge",
}
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
# mixins are no tests of their own
_Case = SynchronousTestCase if TYPE_CHECKING else object


def promtool(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Debian's own."""
    tool = shutil.which("promtool")
    assert tool is not None, "promtool is missing: scripts/setup test installs it"
    return subprocess.run([tool, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def metric_names(expression: str) -> set[str]:
    """The metrics an expression names: what is left without matchers, ranges, label lists, functions and words."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    found = re.findall(r"(?<![\w:.$])([A-Za-z_:][\w:]*)(?!\w)(?!\s*\()", bare)
    return {name for name in found if name.lower() not in _WORDS}


def rules_of(path: Path) -> list[dict[str, Any]]:
    """Every rule of every group of a rules file."""
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


@cache
def declared() -> dict[str, str]:
    """Family name → kind, of every metric that a constructor in our source names."""
    found: dict[str, str] = {}
    for path in (ROOT / "ron").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in _KINDS and isinstance(node.args[0].value, str):
                found[node.args[0].value] = _KINDS[name]
    return found


@cache
def sample_names() -> frozenset[str]:
    """What a scrape of a node can hold: our own metrics, those of the process, those our rules record, and `up`."""
    names = {"up"} | {rule["record"] for rule in rules_of(PROMETHEUS / "ron.rules.yml") if "record" in rule}
    for family, kind in declared().items():
        base = family.removesuffix("_total") if kind == "counter" else family
        names.update(base + suffix for suffix in _SUFFIXES.get(kind, ("",)))
    for line in Metrics().render().decode().splitlines():
        if not line.startswith("#"):
            names.add(re.split(r"[ {]", line)[0])
    return frozenset(names)


class AlertRules(_Case):
    """Of a rules file. rules: where it is, its unit tests beside it. page: explains each alert.

    quiet_too: each alert also has a unit test in which it does not fire.
    """

    rules: Path
    page: Path
    quiet_too = True

    def alerts(self) -> dict[str, dict[str, Any]]:
        """By name."""
        return {rule["alert"]: rule for rule in rules_of(self.rules) if "alert" in rule}

    @property
    def unit_tests(self) -> Path:
        """In promtool's own language."""
        return self.rules.with_suffix(".test.yml")

    def test_prometheus_takes_them(self) -> None:
        done = promtool("check", "rules", "--lint=all", "--lint-fatal", self.rules.name, cwd=PROMETHEUS)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_they_fire_when_they_should_and_not_else(self) -> None:
        done = promtool("test", "rules", self.unit_tests.name, cwd=PROMETHEUS)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_alert_has_a_unit_test(self) -> None:
        tested = self.unit_tests.read_text(encoding="utf-8")
        for name in self.alerts():
            self.assertIn(f"alertname: {name}\n", tested)
            if self.quiet_too:
                self.assertIn(f"alertname: {name}, exp_alerts: []", tested)

    def test_every_alert_says_what_to_do_where_it_says(self) -> None:
        page = self.page.read_text(encoding="utf-8")
        for name, rule in self.alerts().items():
            self.assertIn(f"``{name}``", page)
            self.assertIn(rule["labels"]["severity"], {"critical", "warning", "info"})
            self.assertIn("$labels.", rule["annotations"]["summary"])
            runbook = rule["annotations"]["runbook"].partition("#")[0]
            self.assertTrue((ROOT / runbook).is_file(), runbook)

    def test_every_metric_they_read_is_ours(self) -> None:
        ours = sample_names()
        for rule in rules_of(self.rules):
            self.assertLessEqual(metric_names(rule["expr"]), ours, rule)


class BoardFile(_Case):
    """Of a Grafana board. board: where it is. least: so many expressions it has more than. described: each panel is."""

    board: Path
    least: int
    described = True

    def panels(self) -> list[dict[str, Any]]:
        """Without rows."""
        return [panel for panel in self.loaded()["panels"] if panel["type"] != "row"]

    def loaded(self) -> Any:
        """As Grafana loads it."""
        return json.loads(self.board.read_text(encoding="utf-8"))

    def expressions(self) -> list[str]:
        """With Grafana's variables filled in as it does."""
        targets = [target["expr"] for panel in self.panels() for target in panel["targets"]]
        return [text.replace("$__rate_interval", "1m").replace("$instance", ".*") for text in targets]

    def test_every_expression_is_promql(self) -> None:
        rules = [{"record": f"panel:{index}", "expr": text} for index, text in enumerate(self.expressions())]
        self.assertGreater(len(rules), self.least)
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        (folder / "board.yml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
        done = promtool("check", "rules", "--lint=none", "board.yml", cwd=folder)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_metric_it_shows_is_ours(self) -> None:
        ours = sample_names()
        for text in self.expressions():
            self.assertTrue(metric_names(text), text)
            self.assertLessEqual(metric_names(text), ours, text)

    def test_every_variable_is_one_it_has(self) -> None:
        known = {variable["name"] for variable in self.loaded()["templating"]["list"]} | {"__rate_interval", "__all"}
        self.assertLessEqual(set(re.findall(r"\$\{?(\w+)", self.board.read_text(encoding="utf-8"))), known)

    def test_panels_have_their_own_ids_and_places(self) -> None:
        panels = self.loaded()["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
            columns = range(place["x"], place["x"] + place["w"])
            cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
            self.assertFalse(cells & taken, panel["title"])
            taken |= cells

    def test_every_panel_says_what_it_shows_in_which_unit(self) -> None:
        self.assertEqual([panel["id"] for panel in self.loaded()["panels"] if not panel["title"]], [])
        for panel in self.panels():
            self.assertTrue(panel.get("description") or not self.described, panel["title"])
            self.assertIn("unit", panel["fieldConfig"]["defaults"])
            refs = [target["refId"] for target in panel["targets"]]
            self.assertEqual(len(set(refs)), len(refs))

    def test_it_is_no_other_board(self) -> None:
        for other in BOARDS.glob("*.json"):
            if other != self.board:
                self.assertNotEqual(self.loaded()["uid"], json.loads(other.read_text(encoding="utf-8"))["uid"])
