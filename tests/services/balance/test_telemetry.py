"""Figures of the cluster, the alerts on them, and the names that rooms share."""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Metrics
from ron.proto.balanceviews import BalanceView, LeaderView, PublicationView
from ron.services.balance.telemetry import Telemetry
from tests.alerting import BOARDS, PROMETHEUS, ROOT, AlertRules, BoardFile
from tests.services.balance.desk import NODES, head, member, service

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


class Alerts(AlertRules, SynchronousTestCase):
    rules = PROMETHEUS / "balance.rules.yml"
    page = PAGE

    def test_their_runbook_is_this_page(self) -> None:
        self.assertEqual({rule["annotations"]["runbook"] for rule in self.alerts().values()}, {"docs/rustbalance.rst"})

    def test_every_metric_of_the_cluster_is_explained(self) -> None:
        page = PAGE.read_text(encoding="utf-8")
        source = Path(ROOT / "ron/services/balance/telemetry.py").read_text(encoding="utf-8")
        for name in re.findall(r'"(balance_[a-z_]+)"', source):
            self.assertIn(name, page)


class Board(BoardFile, SynchronousTestCase):
    board = BOARDS / "balance-board.json"
    least = 20
