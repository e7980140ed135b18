"""The alerts and the board of ron-kms: read by the tool that reads them, and held against a service as it runs.

What an alert asks for must be what the service counts: its name, its labels, and the reasons it gives for refusals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from twisted.trial.unittest import SynchronousTestCase

from ron.auth.ceilings import Ceiling, CeilingFigures
from ron.kernel.config import convert
from ron.services.kms.config import KmsConfig
from ron.services.kms.governance.meters import GovernanceMeters
from tests.services.kms.world import B3, UNKNOWN, World
from tests.test_prometheus import PROMETHEUS, ROOT, metric_names, promtool, sample_names

BOARD = ROOT / "etc" / "grafana" / "kms-board.json"
RULES, UNIT_TESTS = PROMETHEUS / "kms.rules.yml", PROMETHEUS / "kms.rules.test.yml"
RUNBOOK = "docs/kms/runbook.rst"
_MATCHERS = re.compile(r"([a-z][a-z0-9_]*)\{([^}]*)\}")
_MATCHER = re.compile(r'([a-z_]+)(=~|!~|!=|=)"([^"]*)"')
# Labels that Prometheus adds when it scrapes.
SCRAPED = {"job", "instance"}


def alerts() -> dict[str, dict[str, Any]]:
    """By name."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def board() -> Any:
    """As Grafana loads it."""
    return json.loads(BOARD.read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    """Without rows."""
    return [panel for panel in board()["panels"] if panel["type"] != "row"]


def board_expressions() -> list[str]:
    """With Grafana's variables filled in as it does."""
    return [
        target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
        for panel in panels()
        for target in panel["targets"]
    ]


def matched(expression: str) -> Iterator[tuple[str, str, str, str]]:
    """Each matcher in it: metric, label, operator, value."""
    for metric, inside in _MATCHERS.findall(expression):
        for label, operator, value in _MATCHER.findall(inside):
            yield metric, label, operator, value


def sections(page: Path) -> set[str]:
    """Titles of a page as docutils makes anchors of them."""
    lines = page.read_text(encoding="utf-8").splitlines()
    titles = [
        title
        for title, line in pairwise(lines)
        if title and len(line) >= len(title) and re.fullmatch(r"([=~^-])\1+", line)
    ]
    return {re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") for title in titles}


class Alerts(SynchronousTestCase):
    """As tests/test_prometheus.py has it for the node's own."""

    def test_prometheus_takes_them(self) -> None:
        done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES.name, cwd=PROMETHEUS)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_they_fire_when_they_should_and_not_else(self) -> None:
        done = promtool("test", "rules", UNIT_TESTS.name, cwd=PROMETHEUS)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_alert_has_a_unit_test_for_both(self) -> None:
        tested = UNIT_TESTS.read_text(encoding="utf-8")
        for name in alerts():
            self.assertIn(f"alertname: {name}\n", tested)
            self.assertIn(f"alertname: {name}, exp_alerts: []", tested)

    def test_every_alert_says_what_to_do_where_it_says(self) -> None:
        page = ROOT / RUNBOOK
        known = sections(page)
        for name, rule in alerts().items():
            self.assertIn(f"``{name}``", page.read_text(encoding="utf-8"))
            self.assertIn(rule["labels"]["severity"], {"critical", "warning", "info"})
            self.assertIn("$labels.", rule["annotations"]["summary"])
            where, _, section = rule["annotations"]["runbook"].partition("#")
            self.assertEqual(where, RUNBOOK)
            self.assertIn(section, known, name)


class Board(SynchronousTestCase):
    """The same for the board."""

    def test_every_expression_is_promql(self) -> None:
        rules = [{"record": f"panel:{index}", "expr": text} for index, text in enumerate(board_expressions())]
        self.assertGreater(len(rules), 30)
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        (folder / "board.yml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
        done = promtool("check", "rules", "--lint=none", "board.yml", cwd=folder)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_panels_have_their_own_ids_and_places(self) -> None:
        every = board()["panels"]
        self.assertEqual(len({panel["id"] for panel in every}), len(every))
        taken: set[tuple[int, int]] = set()
        for panel in every:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
            columns = range(place["x"], place["x"] + place["w"])
            cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
            self.assertFalse(cells & taken, panel["title"])
            taken |= cells

    def test_every_panel_says_what_it_shows_in_which_unit(self) -> None:
        for panel in panels():
            self.assertTrue(panel["title"] and panel["description"])
            self.assertIn("unit", panel["fieldConfig"]["defaults"])
            refs = [target["refId"] for target in panel["targets"]]
            self.assertEqual(len(set(refs)), len(refs))

    def test_every_variable_is_one_it_has(self) -> None:
        known = {variable["name"] for variable in board()["templating"]["list"]} | {"__rate_interval", "__all"}
        self.assertLessEqual(set(re.findall(r"\$\{?(\w+)", BOARD.read_text(encoding="utf-8"))), known)

    def test_it_is_no_other_board(self) -> None:
        for other in BOARD.parent.glob("*.json"):
            if other != BOARD:
                self.assertNotEqual(board()["uid"], json.loads(other.read_text(encoding="utf-8"))["uid"])


class AsItRuns(World):
    """A service that did everything and was refused everything."""

    async def setUp(self) -> None:
        await super().setUp()
        self.metrics.follow_health(self.health)
        meters = GovernanceMeters(self.metrics)
        meters.watch(list, lambda: 0.0)
        meters.watch_disputes(list, lambda: 0.0)
        CeilingFigures(Ceiling(), list, lambda: 0.0).register(self.metrics.registry)
        kid, kem = await self.create("hybrid"), await self.create("hybrid", purpose="kem")
        sigs = (await self.sign(kid))["sigs"]
        await self.verify(sigs, kid)
        made = await self.done("POST", "/wrap", {"kid": kem, "size": 32})
        await self.done("POST", "/unwrap", {"kid": kem, "wrapped_b64": made["wrapped_b64"]})
        await self.done("POST", f"/keys/{kid.partition('#')[0].replace('/', '%2F')}/rotate")
        await self.service.log.checkpoint()
        self.body = {"kid_or_set": {"kid": kid}, "payload_b3": B3}
        self.asked = {**self.body, "sigs": sigs}

    async def test_every_metric_and_label_is_one_it_has(self) -> None:
        ours, labels = sample_names(), self._labels()
        for text in (*(rule["expr"] for rule in alerts().values()), *board_expressions()):
            names = metric_names(text)
            self.assertTrue(names, text)
            self.assertLessEqual(names, ours, text)
            for metric, label, _operator, _value in matched(text):
                bare = re.sub(r"_(total|bucket|sum|count)$", "", metric)
                family = metric if metric in labels else bare
                self.assertIn(family, labels, text)
                self.assertIn(label, labels[family] | SCRAPED, f"{metric} has no label {label}: {text}")

    async def test_every_metric_of_its_own_is_shown_or_alerted_on(self) -> None:
        told = " ".join([*(rule["expr"] for rule in alerts().values()), *board_expressions()])
        own = set(re.findall(r"^# TYPE (kms_\w+) ", self._shown(), re.MULTILINE))
        self.assertGreater(len(own), 15)
        self.assertEqual({name for name in own if name not in told}, set())

    async def test_values_that_are_always_there(self) -> None:
        """What an alert compares with 0 must be told while it is 0, or it would be silent for another reason."""
        for line in (
            "kms_audit_integrity_failed_total 0.0",
            'kms_audit_checkpoint_total{result="err"} 0.0',
            'kms_audit_appends_total{result="err"} 0.0',
            'kms_audit_dropped_total{kind="non_checkpoint"} 0.0',
            'kms_backend_sessions{backend="inmem",state="connected"} 1.0',
            'kms_backend_sessions{backend="inmem",state="error"} 0.0',
            'busy_rejections_total{queue="sign"} 0.0',
            "kms_verify_cache_age_ms 0.0",
            "kms_pq_rollout_percent 100.0",
            "node_ready 1.0",
        ):
            self.assertIn(f"\n{line}\n", self._shown())

    async def test_every_reason_an_alert_asks_for_is_one_it_gives(self) -> None:
        await self._be_refused()
        wanted = {
            (metric, label, one)
            for rule in alerts().values()
            for metric, label, operator, value in matched(rule["expr"])
            if label == "reason" and operator in {"=", "=~"}
            for one in value.split("|")
        }
        self.assertGreater(len(wanted), 5)
        # these two take a queue of 512 that is full; tests/services/kms/test_fairness.py has them
        wanted -= {("kms_reject_total", "reason", reason) for reason in ("backpressure", "tenant_share")}
        for metric, label, one in sorted(wanted):
            self.assertGreaterEqual(self.value(metric, **{label: one}), 1, f"{metric}{{{label}={one}}}")

    async def _be_refused(self) -> None:
        """For every reason, one after the other."""
        await self.refused(404, "NotFound", "POST", "/sign", {**self.body, "kid_or_set": {"kid": UNKNOWN}})
        await self.refused(
            400, "Unsupported", "POST", "/sign", {**await self._classical(), "policy": {"produce_hybrid": False}}
        )
        self.votes.freezes["core"] = "a-proposal"
        await self.refused(403, "NoCapability", "POST", "/sign", self.body)
        self.votes.freezes.clear()
        self._set(security={"attest_require": "required"})
        await self.refused(403, "AttestationMissing", "POST", "/sign", self.body)
        self._set(security={"sign_rate_limit_rps": 1})
        answers = [await self.ask("POST", "/sign", self.body) for _ in range(10)]
        self.assertIn(429, [answer.status for answer in answers])
        self._set()
        self.ahead_s = 3600.0
        await self.until(lambda: "clock_ok" in self.health.snapshot().missing, "the jump to be seen")
        await self.refused(503, "StoreUnavailable", "POST", "/sign", self.body)
        self._set(audit={"verify_cache_ttl_ms": 20})
        self.backend.away = True
        await self.until(lambda: "verify_cache_ok" in self.health.snapshot().missing, "the hard limit")
        await self.refused(503, "StoreUnavailable", "POST", "/verify", self.asked)

    async def _classical(self) -> dict[str, Any]:
        return {**self.body, "kid_or_set": {"kid": await self.create("ed25519")}}

    def _set(self, **wished: dict[str, Any]) -> None:
        """As a reload of the config would."""
        old, given = self.wishes, {"security": {"sign_rate_limit_rps": 100_000}, **wished}
        self.wishes = convert(given, KmsConfig)
        self.service.apply(old, self.wishes)

    def _shown(self) -> str:
        return "\n" + self.metrics.render().decode()

    def _labels(self) -> dict[str, set[str]]:
        """Family → its labels. Those without a sample yet, too."""
        found: dict[str, set[str]] = {}
        for collector in list(self.metrics.registry._collector_to_names):
            for family in getattr(collector, "describe", lambda: ())() or collector.collect():
                labels = found.setdefault(family.name, set())
                labels.update(getattr(collector, "_labelnames", ()), *(sample.labels for sample in family.samples))
        return found
