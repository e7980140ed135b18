"""What we hand to Prometheus and Grafana loads there: checked with Debian's promtool (scripts/setup installs it).

Rules, config and board are read by the tool that will read them; and every metric they name is one that we have.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import yaml
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import HealthState, Metrics
from tests.alerting import BOARDS, PROMETHEUS, ROOT, AlertRules, BoardFile, metric_names, promtool, sample_names

# others hold their own alerts and boards against these
__all__ = ["PROMETHEUS", "ROOT", "metric_names", "promtool", "sample_names"]


class Rules(AlertRules, SynchronousTestCase):
    rules = PROMETHEUS / "ron.rules.yml"
    page = ROOT / "docs" / "observability.rst"
    quiet_too = False


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


class Board(BoardFile, SynchronousTestCase):
    board = BOARDS / "ron-board.json"
    least = 40
    described = False


class Names(SynchronousTestCase):
    """The helper of these tests must not overlook a metric, or the tests with it prove nothing."""

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
