"""What we hand to Prometheus and Grafana loads there: checked with Debian's promtool (scripts/setup installs it).

Rules, config and board are read by the tool that will read them; and every metric they name is one that we have.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import HealthState, Metrics

ROOT = Path(__file__).resolve().parents[1]
PROMETHEUS = ROOT / "etc" / "prometheus"
RULES = PROMETHEUS / "ron.rules.yml"
UNIT_TESTS = PROMETHEUS / "ron.rules.test.yml"
BOARD = ROOT / "etc" / "grafana" / "ron-board.json"

_WORDS = frozenset(
    [
        "by",
        "without",
        "on",
        "ignoring",
        "group_left",
        "group_right",
        "and",
        "or",
        "unless",
        "bool",
        "offset",
        "inf",
        "nan",
    ]
)


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


def board_expressions() -> Iterator[tuple[str, str]]:
    """(panel's title, expression) with Grafana's variables filled in as it does."""
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            yield panel["title"], expression


def rule_groups() -> list[dict[str, Any]]:
    """The groups of our rules."""
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return groups


def declared() -> dict[str, str]:
    """Family name → kind, of every metric that a constructor in our source names."""
    kinds = {
        "Counter": "counter",
        "Gauge": "gauge",
        "Histogram": "histogram",
        "_counter": "counter",
        "_gauge": "gauge",
        "_count": "counter",
        "CounterMetricFamily": "counter",
        "GaugeMetricFamily": "gauge",
    }
    found: dict[str, str] = {}
    for path in (ROOT / "ron").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in kinds and isinstance(node.args[0].value, str):
                found[node.args[0].value] = kinds[name]
    return found


def sample_names() -> set[str]:
    """What a scrape of a node can hold: our own metrics, those of the process, those our rules record, and `up`."""
    names = {"up"} | {rule["record"] for group in rule_groups() for rule in group["rules"] if "record" in rule}
    for family, kind in declared().items():
        base = family.removesuffix("_total")
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(kind, ("",))
        names.update((family if kind != "counter" else base) + suffix for suffix in suffixes)
    for line in Metrics().render().decode().splitlines():
        if not line.startswith("#"):
            names.add(re.split(r"[ {]", line)[0])
    return names


class Rules(SynchronousTestCase):
    def test_prometheus_takes_them(self) -> None:
        done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES.name, cwd=PROMETHEUS)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_they_fire_when_they_should_and_not_else(self) -> None:
        done = promtool("test", "rules", UNIT_TESTS.name, cwd=PROMETHEUS)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_alert_has_a_unit_test(self) -> None:
        tested = UNIT_TESTS.read_text(encoding="utf-8")
        untested = [name for name in self.alerts() if f"alertname: {name}\n" not in tested]
        self.assertEqual(untested, [])

    def test_every_alert_says_what_to_do_where_it_says(self) -> None:
        page = (ROOT / "docs" / "observability.rst").read_text(encoding="utf-8")
        for name, rule in self.alerts().items():
            self.assertIn(f"``{name}``", page)
            self.assertIn(rule["labels"]["severity"], {"critical", "warning", "info"})
            self.assertIn("$labels.", rule["annotations"]["summary"])
            self.assertTrue((ROOT / rule["annotations"]["runbook"]).is_file(), rule["annotations"]["runbook"])

    def test_every_metric_they_read_is_ours(self) -> None:
        ours = sample_names()
        for group in rule_groups():
            for rule in group["rules"]:
                self.assertLessEqual(metric_names(rule["expr"]), ours, rule)

    def alerts(self) -> dict[str, dict[str, Any]]:
        return {rule["alert"]: rule for group in rule_groups() for rule in group["rules"] if "alert" in rule}


class Config(SynchronousTestCase):
    """`promtool check config` also looks for the files that the config names."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        shutil.copytree(PROMETHEUS, self.folder)

    def check(self) -> subprocess.CompletedProcess[str]:
        return promtool("check", "config", "prometheus.yml", cwd=self.folder)

    def test_prometheus_takes_it(self) -> None:
        (self.folder / "ron-metrics.cap").write_text("token\n")
        done = self.check()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("3 rule files found", done.stdout)

    def test_without_the_capability_it_says_so(self) -> None:
        done = self.check()
        self.assertEqual(done.returncode, 1)
        self.assertIn("ron-metrics.cap", done.stdout + done.stderr)

    def test_the_job_is_the_one_the_rules_and_the_board_ask_for(self) -> None:
        (job,) = yaml.safe_load((self.folder / "prometheus.yml").read_text())["scrape_configs"]
        self.assertEqual((job["job_name"], job["authorization"]["type"]), ("ron", "Bearer"))


class Board(SynchronousTestCase):
    def setUp(self) -> None:
        self.board = json.loads(BOARD.read_text(encoding="utf-8"))

    def test_every_expression_is_promql(self) -> None:
        rules = [
            {"record": f"panel:{index}", "expr": expression}
            for index, (_title, expression) in enumerate(board_expressions())
        ]
        self.assertGreater(len(rules), 40)
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        (folder / "board.yml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
        done = promtool("check", "rules", "--lint=none", "board.yml", cwd=folder)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_metric_it_shows_is_ours(self) -> None:
        ours = sample_names()
        for title, expression in board_expressions():
            names = metric_names(expression)
            self.assertTrue(names, expression)
            self.assertLessEqual(names, ours, f"{title}: {expression}")

    def test_every_variable_is_one_it_has(self) -> None:
        known = {variable["name"] for variable in self.board["templating"]["list"]} | {"__rate_interval", "__all"}
        self.assertLessEqual(set(re.findall(r"\$\{?(\w+)", BOARD.read_text(encoding="utf-8"))), known)

    def test_panels_have_their_own_ids_and_places(self) -> None:
        panels = self.board["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            self.assertFalse(cells & taken, panel["title"])
            taken |= cells

    def test_every_panel_has_a_title_and_a_unit(self) -> None:
        for panel in self.board["panels"]:
            self.assertTrue(panel["title"])
            if panel["type"] != "row":
                self.assertIn("unit", panel["fieldConfig"]["defaults"])
                refs = [target["refId"] for target in panel["targets"]]
                self.assertEqual(len(set(refs)), len(refs))


class Names(SynchronousTestCase):
    """The helper above must not overlook a metric, or the tests with it prove nothing."""

    def test_what_an_expression_names(self) -> None:
        for expression, names in (
            ('up{job="ron"} == 0', {"up"}),
            ("sum by (job, le) (rate(a_total[5m])) / sum(b_total) > 14.4 * 0.001", {"a_total", "b_total"}),
            ("ron:errors:ratio_rate1h > 1 and on() x_y", {"ron:errors:ratio_rate1h", "x_y"}),
            ('histogram_quantile(0.95, sum by (le) (rate(a_bucket{r!~"b{1}|c"}[1m])))', {"a_bucket"}),
            ("predict_linear(disk[6h], 86400) < 0 or vector(1)", {"disk"}),
        ):
            self.assertEqual(metric_names(expression), names)

    def test_readiness_and_disk_are_registered_by_those_who_follow_them(self) -> None:
        metrics = Metrics()
        metrics.follow_health(HealthState())
        metrics.follow_disk(ROOT)
        text = metrics.render().decode()
        self.assertIn("\nnode_ready 0.0\n", text)
        self.assertIn("\ndisk_free_bytes ", text)
