"""Figures of the cluster, the alerts on them, and the names that rooms share."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Metrics
from ron.proto.balanceviews import BalanceView, LeaderView, PublicationView
from ron.services.balance.telemetry import Telemetry
from tests.services.balance.desk import NODES, head, member, service
from tests.test_prometheus import PROMETHEUS, ROOT, metric_names, promtool, sample_names

BOARD = ROOT / "etc" / "grafana" / "balance-board.json"
RULES, UNIT_TESTS = PROMETHEUS / "balance.rules.yml", PROMETHEUS / "balance.rules.test.yml"
PAGE = ROOT / "docs" / "rustbalance.rst"


def view(**more: Any) -> BalanceView:
    known = {"node": "alpha", "cluster": "ab" * 16, "time": "2026-11-21T08:27:27Z"}
    known |= {"leader": LeaderView(name="alpha", why="longest uptime", lease_left_s=12.0, claims=("alpha",))}
    known |= {"members": tuple(map(member, range(3))), "services": (service(),)}
    return BalanceView(**{**known, **more})


class Figures(SynchronousTestCase):
    def setUp(self) -> None:
        self.metrics = Metrics()
        self.telemetry = Telemetry(self.metrics)

    def shown(self) -> dict[str, float]:
        lines = self.metrics.render().decode().splitlines()
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines if line.startswith("balance_"))
        }

    def stands(self, **more: Any) -> dict[str, float]:
        self.telemetry.stands(view(**more))
        return self.shown()

    def test_nothing_is_made_up_before_anything_is_known(self) -> None:
        self.assertEqual(self.shown(), {"balance_leader_changes_total": 0})

    def test_all_is_well(self) -> None:
        shown = self.stands()
        for name, value in {
            'balance_leader{cluster="abababab"}': 1,
            'balance_leader_known{cluster="abababab"}': 1,
            'balance_leader_claims{cluster="abababab"}': 1,
            "balance_lease_seconds": 12,
            'balance_members{state="alive"}': 3,
            'balance_members{state="dead"}': 0,
            'balance_descriptor_heads{service="main"}': 3,
            'balance_descriptor_age_seconds{service="main"}': 42,
            'balance_directories_missing{service="main"}': 1,
            'balance_signers{service="main"}': 3,
            'balance_signers_needed{service="main"}': 2,
            "balance_siege": 0,
            "balance_in_descriptor": 1,
            "balance_visitors": 4,
            "balance_introduction_rate": 1.5,
            "balance_roulette": 0,
        }.items():
            self.assertEqual(shown[name], value, name)

    def test_a_follower_and_a_split(self) -> None:
        shown = self.stands(leader=LeaderView(name="beta", why="x", claims=("beta", "gamma")))
        self.assertEqual(shown['balance_leader{cluster="abababab"}'], 0)
        self.assertEqual(shown['balance_leader_claims{cluster="abababab"}'], 2)

    def test_no_leader(self) -> None:
        shown = self.stands(leader=LeaderView(name=None, why="nobody is fit"))
        self.assertEqual(shown['balance_leader_known{cluster="abababab"}'], 0)
        self.assertNotIn("balance_lease_seconds", shown)

    def test_changes_are_counted_and_a_gap_is_none(self) -> None:
        for name, changes in (
            ("alpha", 0),
            ("alpha", 0),
            (None, 0),
            ("alpha", 0),
            ("beta", 1),
            (None, 1),
            ("gamma", 2),
        ):
            shown = self.stands(leader=LeaderView(name=name, why="x"))
            self.assertEqual(shown["balance_leader_changes_total"], changes)

    def test_never_published_is_older_than_anything(self) -> None:
        shown = self.stands(services=(service(publications=()), service("shop")))
        self.assertEqual(shown['balance_descriptor_age_seconds{service="main"}'], math.inf)
        self.assertEqual(shown['balance_descriptor_age_seconds{service="shop"}'], 42)

    def test_what_a_look_found_goes_before_what_was_taken(self) -> None:
        known = {"revision": 1, "by": "alpha", "age_s": 1.0, "heads": NODES, "directories": 6}
        publications = (
            PublicationView(period=1, taken=6, checked_s=2.0, missing=("A", "B"), **known),
            PublicationView(period=2, taken=2, checked_s=2.0, **known),
        )
        shown = self.stands(services=(service(publications=publications),))
        self.assertEqual(shown['balance_directories_missing{service="main"}'], 2)

    def test_whose_clock_is_off(self) -> None:
        """One wrong clock moves the median of its own node only."""
        drifts = [(None, 600.0, 600.0), (None, 600.0, 0.1)]
        for told, offset in zip(drifts, (600.0, 300.05), strict=True):
            members = tuple(member(number, drift_s=drift) for number, drift in enumerate(told))
            self.assertAlmostEqual(self.stands(members=members)["balance_clock_offset_seconds"], offset)
        four = tuple(member(min(number, 2), drift_s=drift) for number, drift in enumerate((None, 600.0, 0.1, 0.2)))
        self.assertAlmostEqual(self.stands(members=four)["balance_clock_offset_seconds"], 0.2)
        self.assertNotIn("balance_clock_offset_seconds", self.stands(members=(member(0, drift_s=0.0),)))

    def test_sieges_and_ghosts(self) -> None:
        under = member(0, head=head(0, mode="ghost", under_siege=True), in_descriptor=False)
        shown = self.stands(members=(under, member(1), member(2, head=None, waiting=True)))
        self.assertEqual((shown["balance_sieges"], shown["balance_ghosts"], shown["balance_siege"]), (1, 1, 1))
        self.assertEqual((shown["balance_in_descriptor"], shown["balance_members_waiting"]), (0, 1))

    def test_without_a_head_of_its_own(self) -> None:
        self.assertNotIn("balance_siege", self.stands(members=(member(0, head=None), member(1))))

    def test_what_is_gone_is_no_more_shown(self) -> None:
        self.stands(services=(service(), service("shop")))
        self.assertFalse([name for name in self.stands() if "shop" in name])

    def test_no_node_and_no_address_is_a_label(self) -> None:
        self.stands()
        text = "\n".join(line for line in self.metrics.render().decode().splitlines() if line.startswith("balance_"))
        for secret in (*NODES, "aaaaaaaa.onion", "10.7.0."):
            self.assertNotIn(secret, text)


class Names(SynchronousTestCase):
    def test_no_two_rooms_use_one_name(self) -> None:
        """The registry refuses a second metric of a name only for those that it makes itself."""
        found: Counter[str] = Counter()
        for path in (ROOT / "ron" / "services" / "balance").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                    name = getattr(node.func, "id", "")
                    if name in {"Counter", "Gauge", "Histogram", "CounterMetricFamily", "GaugeMetricFamily"}:
                        found[str(node.args[0].value).removesuffix("_total")] += 1
        self.assertGreater(len(found), 15)
        self.assertEqual([name for name, times in found.items() if times > 1], [])


class Alerts(SynchronousTestCase):
    """As tests/test_prometheus.py has it for the node's own."""

    def alerts(self) -> dict[str, dict[str, Any]]:
        groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
        return {rule["alert"]: rule for group in groups for rule in group["rules"]}

    def test_prometheus_takes_them(self) -> None:
        done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES.name, cwd=PROMETHEUS)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_they_fire_when_they_should_and_not_else(self) -> None:
        done = promtool("test", "rules", UNIT_TESTS.name, cwd=PROMETHEUS)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_alert_has_a_unit_test_for_both(self) -> None:
        tested = UNIT_TESTS.read_text(encoding="utf-8")
        for name in self.alerts():
            self.assertIn(f"alertname: {name}\n", tested)
            self.assertIn(f"alertname: {name}, exp_alerts: []", tested)

    def test_every_alert_says_what_to_do_where_it_says(self) -> None:
        for name, rule in self.alerts().items():
            self.assertIn(f"``{name}``", PAGE.read_text(encoding="utf-8"))
            self.assertIn(rule["labels"]["severity"], {"critical", "warning", "info"})
            self.assertIn("$labels.", rule["annotations"]["summary"])
            self.assertEqual(rule["annotations"]["runbook"], "docs/rustbalance.rst")

    def test_every_metric_they_read_is_ours(self) -> None:
        ours = sample_names()
        for rule in self.alerts().values():
            self.assertLessEqual(metric_names(rule["expr"]), ours, rule)

    def test_every_metric_of_the_cluster_is_explained(self) -> None:
        page = PAGE.read_text(encoding="utf-8")
        source = Path(ROOT / "ron/services/balance/telemetry.py").read_text(encoding="utf-8")
        for name in re.findall(r'"(balance_[a-z_]+)"', source):
            self.assertIn(name, page)


class Board(SynchronousTestCase):
    """As tests/test_prometheus.py has it for the node's own."""

    def setUp(self) -> None:
        self.board = json.loads(BOARD.read_text(encoding="utf-8"))
        self.panels = [panel for panel in self.board["panels"] if panel["type"] != "row"]

    def expressions(self) -> list[str]:
        return [
            target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            for panel in self.panels
            for target in panel["targets"]
        ]

    def test_every_expression_is_promql(self) -> None:
        rules = [{"record": f"panel:{index}", "expr": text} for index, text in enumerate(self.expressions())]
        self.assertGreater(len(rules), 20)
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

    def test_panels_have_their_own_ids_and_places(self) -> None:
        panels = self.board["panels"]
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
        for panel in self.panels:
            self.assertTrue(panel["title"] and panel["description"])
            self.assertIn("unit", panel["fieldConfig"]["defaults"])

    def test_it_is_no_other_board(self) -> None:
        other = json.loads((BOARD.parent / "ron-board.json").read_text(encoding="utf-8"))
        self.assertNotEqual(self.board["uid"], other["uid"])
        known = {variable["name"] for variable in self.board["templating"]["list"]} | {"__rate_interval", "__all"}
        self.assertLessEqual(set(re.findall(r"\$\{?(\w+)", BOARD.read_text(encoding="utf-8"))), known)
