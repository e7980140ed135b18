"""Alerts and panels about onions, against what a running onion runtime really tells: names, labels and their values."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator

import yaml
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred

from ron.kernel.supervisor import Supervisor
from ron.nodes.parts.oniond import auditor, onion_runtime
from ron.nodes.parts.tornet import ONION_ROLE
from ron.proto.onions import Port
from ron.services.oniond.autoscale import Reason
from tests.alerting import BOARDS, PROMETHEUS, metric_names
from tests.nodes.with_runtime import WithRuntime

ONION = "a" * 56
GROUP, ROW = "ron-onions", "Onions"
# What Prometheus adds, and what `histogram_quantile` reads of every histogram.
GIVEN = frozenset({"job", "instance", "le"})
Samples = dict[str, list[dict[str, str]]]


def rules() -> Iterator[tuple[str, str]]:
    """(name, expression) of every rule about onions."""
    for group in yaml.safe_load((PROMETHEUS / "ron.rules.yml").read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"] if group["name"] == GROUP else ():
            yield rule.get("alert") or rule["record"], rule["expr"]


def panels() -> Iterator[tuple[str, str]]:
    """(title, expression) of every panel about onions."""
    row = ""
    for panel in json.loads((BOARDS / "ron-board.json").read_text(encoding="utf-8"))["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        for target in panel.get("targets", ()) if row == ROW else ():
            yield panel["title"], target["expr"]


def selectors(expression: str) -> Iterator[tuple[str, str, str, str]]:
    """(metric, label, operator, value) of every matcher."""
    for metric, matchers in re.findall(r"([A-Za-z_:][\w:]*)\{([^}]*)\}", expression):
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            yield metric, label, operator, value


def grouped(expression: str) -> set[str]:
    """Labels that something is added up by, or compared without."""
    found = re.findall(r"\b(?:by|ignoring|on)\s*\(([^)]*)\)", expression)
    return {label.strip() for labels in found for label in labels.split(",")} - GIVEN


class Told(WithRuntime):
    """A runtime in which each thing that is counted has happened once."""

    def setUp(self) -> Deferred[None]:
        super().setUp()
        self.start()
        runtime = self.runtime
        supervisor = Supervisor(runtime.reactor, runtime.bus, runtime.health, runtime.metrics)
        self.addCleanup(supervisor.stop)
        self.audit = auditor(runtime)
        apps = {"wiki": [Port(onion_port=80, local="127.0.0.1:8080")]}
        self.service = onion_runtime(runtime, runtime.config.current.onion, apps, self.audit)
        return Deferred.fromCoroutine(self.happened())

    async def happened(self) -> None:
        """A visit, a refused upload, a tor that dies, a move; as their own parts tell of them."""
        telemetry, figures = self.service.telemetry, self.service.scale_figures
        telemetry.watch(ONION, "wiki", began_s=0.0)
        telemetry.tor_up("onion")
        for event, text in (
            ("HS_DESC", f"UPLOADED {ONION} UNKNOWN $A"),
            ("HS_DESC", f"FAILED {ONION} NO_AUTH $A REASON=UPLOAD_REJECTED"),
            ("CIRC", f"1 LAUNCHED PURPOSE=HS_SERVICE_INTRO HS_STATE=HSSI_CONNECTING REND_QUERY={ONION}"),
            ("CIRC", f"1 BUILT $A PURPOSE=HS_SERVICE_INTRO HS_STATE=HSSI_ESTABLISHED REND_QUERY={ONION}"),
            ("CIRC", f"2 LAUNCHED PURPOSE=HS_SERVICE_REND HS_STATE=HSSR_CONNECTING REND_QUERY={ONION}"),
            ("CIRC", f"2 BUILT $A PURPOSE=HS_SERVICE_REND HS_STATE=HSSR_CONNECTING REND_QUERY={ONION}"),
            ("CIRC_MINOR", f"2 PURPOSE_CHANGED $A PURPOSE=HS_SERVICE_REND HS_STATE=HSSR_JOINED REND_QUERY={ONION}"),
            ("CIRC_BW", "ID=2 DELIVERED_READ=10 DELIVERED_WRITTEN=20"),
            ("CIRC", f"3 LAUNCHED PURPOSE=HS_SERVICE_INTRO REND_QUERY={ONION}"),
            ("CIRC", f"3 FAILED $A PURPOSE=HS_SERVICE_INTRO REND_QUERY={ONION} REASON=TIMEOUT"),
            ("CIRC", f"4 BUILT $A PURPOSE=HS_SERVICE_INTRO REND_QUERY={ONION}"),
            ("CIRC", f"4 CLOSED $A PURPOSE=HS_SERVICE_INTRO REND_QUERY={ONION} REASON=FINISHED"),
            ("HS_DESC", "?"),
        ):
            telemetry.heard("onion", event, text)
        telemetry.efforts["wiki"] = 7
        telemetry.tor_up("other")
        telemetry.heard("other", "CIRC", f"1 BUILT $A PURPOSE=HS_SERVICE_INTRO REND_QUERY={ONION}")
        telemetry.tor_down("other")
        figures.reason = Reason.AT_MAXIMUM
        self.runtime.metrics.restarts.labels(f"tor.{ONION_ROLE}").inc()
        await self.audit.record("onion_deleted", app="wiki")

    def scraped(self) -> Samples:
        """Labels of each sample, by name."""
        found: Samples = defaultdict(list)
        for family in text_string_to_metric_families(self.runtime.metrics.render().decode()):
            for sample in family.samples:
                found[sample.name].append(dict(sample.labels))
        return found

    def test_every_metric_has_that_name(self) -> None:
        told = self.scraped().keys() | {name for name, _expression in rules() if name.startswith("ron:")}
        for name, expression in [*rules(), *panels()]:
            self.assertLessEqual(metric_names(expression.replace("$__rate_interval", "1m")), told, name)

    def test_every_label_is_there_with_every_value_that_is_asked_for(self) -> None:
        told = self.scraped()
        for name, expression in [*rules(), *panels()]:
            for metric, label, operator, value in selectors(expression):
                if label in GIVEN:
                    continue
                values = {labels[label] for labels in told[metric] if label in labels}
                self.assertTrue(values, f"{name}: {metric} has no label {label}")
                if operator == "=":
                    self.assertIn(value, values, f"{name}: {metric}")
                elif operator == "=~":
                    for one in value.split("|"):
                        self.assertTrue(any(re.fullmatch(one, known) for known in values), f"{name}: {metric} {one}")

    def test_what_is_added_up_by_a_label_has_it(self) -> None:
        told = self.scraped()
        for name, expression in [*rules(), *panels()]:
            names = metric_names(expression.replace("$__rate_interval", "1m"))
            labels = {label for metric in names for labels in told[metric] for label in labels}
            self.assertLessEqual(grouped(expression), labels, f"{name}: {expression}")

    def test_every_golden_figure_has_a_panel_and_all_but_one_an_alert(self) -> None:
        """What the issue names. Why bytes have no alert stands in docs/observability.rst."""
        shown = {name for _title, expression in panels() for name in metric_names(expression.replace("$__", ""))}
        watched = {name for _name, expression in rules() for name in metric_names(expression)}
        for metric, alert in (
            ("onion_setup_seconds_bucket", True),
            ("onion_circuits_total", True),
            ("onion_intro_total", True),
            ("onion_rendezvous_total", True),
            ("service_restarts_total", True),
            ("onion_bytes_total", False),
            ("onion_pow_effort", True),
            ("onion_tors", True),
            ("onion_tors_target", True),
            ("onion_tors_reason", True),
        ):
            self.assertIn(metric, shown)
            self.assertEqual(metric in watched, alert, metric)

    def test_these_tests_would_notice(self) -> None:
        told = self.scraped()
        self.assertNotIn("onion_no_such_total", told)
        self.assertEqual(
            list(selectors('sum by (x) (a_total{b="c", d=~"e|f"})')),
            [("a_total", "b", "=", "c"), ("a_total", "d", "=~", "e|f")],
        )
        self.assertEqual(grouped("sum by (job, app) (a) / ignoring(state) b"), {"app", "state"})
        self.assertGreater(len(list(rules())), 10)
        self.assertGreater(len(list(panels())), 15)
