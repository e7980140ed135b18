"""`ronctl config` and `ronctl validate`: what is in effect and why, refusals that scripts can read, nothing secret."""

from __future__ import annotations

import json
import os
from pathlib import Path

from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator
from twisted.trial.unittest import SynchronousTestCase

from ron.ctl.config import config
from ron.ctl.main import ronctl
from ron.kernel.config import ConfigError
from ron.services.configs import SCHEMAS

ETC = Path(__file__).resolve().parents[2] / "etc"


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RON_")}
        self.patch(os, "environ", clean)

    def file(self, text: str, name: str = "node.toml") -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def run_config(self, *arguments: str, **variables: str) -> Result:
        os.environ.update(variables)
        return CliRunner().invoke(ronctl, ["config", *arguments])

    def refused(self, *arguments: str, **variables: str) -> ConfigError:
        result = self.run_config(*arguments, **variables)
        self.assertIsInstance(result.exception, ConfigError, result.output)
        assert isinstance(result.exception, ConfigError)
        self.assertEqual(result.stdout, "")
        return result.exception


class Refusals(Case):
    def test_a_wrong_file_names_key_file_and_fix(self) -> None:
        path = self.file("[gateway]\nbnid = 'x'\n")
        for command in (["get", "gateway.bind"], ["check"]):
            error = self.refused(*command, "--file", path)
            self.assertEqual((error.key, error.source), ("gateway.bnid", path))
        for arguments in ((path, str(ETC / "micronode.toml")), (str(ETC / "micronode.toml"), path)):
            self.assertEqual(self.refused("diff", *arguments).source, path)

    def test_as_json_with_exit_code_3(self) -> None:
        path = self.file("[gateway]\nbnid = 'x'\n")
        for arguments in (["get", "log", "-f", path], ["check", "-f", path], ["diff", path, path], ["get", "x"]):
            result = self.run_config(*arguments, "--json")
            self.assertEqual(result.exit_code, 3)
            told = json.loads(result.stdout)
            self.assertEqual((told["ok"], bool(told["key"]), bool(told["hint"])), (False, True, True))

    def test_an_unknown_key_gets_a_suggestion(self) -> None:
        self.assertEqual(self.refused("get", "mailbox.max_inflght").hint, "did you mean 'mailbox.max_inflight'?")
        self.assertIn("dos.pow_target_ms", str(self.refused("get", "dos.zzzzzzzzzz").hint))
        self.assertIn("gateway", str(self.refused("get", "zzzzzzzzzz").hint))

    def test_wrong_variables_and_flags(self) -> None:
        self.assertEqual(self.refused("get", "log", "--set", "log.levl=debug").source, "--set log.levl")
        self.assertEqual(self.refused("get", "log", RON_LOG_LEVL="debug").source, "RON_LOG_LEVL")
        self.assertEqual(self.run_config("get", "log", "--set", "nonsense").exit_code, 2)

    def test_two_daemons_are_not_compared(self) -> None:
        self.refused("diff", str(ETC / "micronode.toml"), str(ETC / "oniond.toml"))


class Get(Case):
    def test_the_layer_of_every_value(self) -> None:
        path = self.file("[mailbox]\nmax_inflight = 20\nmax_waiters = 30\n[log]\nlevel = 'warn'\n")
        arguments = ("--file", path, "--set", "log.level=error", "--json")
        result = self.run_config("get", "log.level", *arguments, RON_MAILBOX_MAX_INFLIGHT="21")
        self.assertEqual(
            json.loads(result.stdout)["values"],
            [{"key": "log.level", "value": "error", "source": "--set log.level"}],
        )
        values = {v["key"]: v for v in json.loads(self.run_config("get", "mailbox", *arguments).stdout)["values"]}
        for key, value, source in (
            ("mailbox.max_inflight", 21, "RON_MAILBOX_MAX_INFLIGHT"),
            ("mailbox.max_waiters", 30, path),
            ("mailbox.visibility_timeout_ms", 30000, "default"),
        ):
            self.assertEqual(values[key], {"key": key, "value": value, "source": source})

    def test_for_people(self) -> None:
        self.assertEqual(self.run_config("get", "gateway.bind").stdout, 'gateway.bind = "127.0.0.1:9080"  (default)\n')

    def test_for_another_daemon(self) -> None:
        told = json.loads(self.run_config("get", "oniond.scale_max", "--for", "omnigate", "--json").stdout)
        self.assertEqual(told["daemon"], "omnigate")

    def test_credentials_in_a_url_are_not_shown(self) -> None:
        text = self.run_config("get", "observability", RON_OBSERVABILITY_OTEL_ENDPOINT="http://me:hunter2@h/").stdout
        self.assertIn("@h/", text)
        self.assertNotIn("hunter2", text)


class Check(Case):
    def test_every_example(self) -> None:
        for path in sorted(ETC.glob("*.toml")):
            result = self.run_config("check", "--file", str(path), "--json")
            self.assertEqual(result.exit_code, 0, result.output)

    def test_what_differs_from_the_defaults_and_what_is_not_built(self) -> None:
        path = self.file("[edge]\nmode = 'hybrid'\n[gateway]\nworkers = 1\n")
        told = json.loads(self.run_config("check", "-f", path, "--json", RON_LOG_LEVEL="debug").stdout)
        self.assertEqual(
            {v["key"]: v["source"] for v in told["values"]}, {"edge.mode": path, "log.level": "RON_LOG_LEVEL"}
        )
        self.assertEqual([w["key"] for w in told["warnings"]], ["edge.mode"])
        text = self.run_config("check", "-f", path).stdout
        self.assertIn("warning: edge.mode: ", text)
        self.assertIn('  log.level = "debug"  (RON_LOG_LEVEL)\n', text)

    def test_nothing_but_defaults(self) -> None:
        self.assertIn("all as by default", self.run_config("check", "-f", str(ETC / "micronode.toml")).stdout)


class Diff(Case):
    def test_what_changes_and_what_needs_a_restart(self) -> None:
        old = self.file("[mailbox]\nmax_inflight = 2\n", "old.toml")
        new = self.file("[log]\nlevel = 'debug'\n[limits]\nread_idle_ms = '20s'\n", "new.toml")
        told = json.loads(self.run_config("diff", old, new, "--json").stdout)
        self.assertEqual(
            told["changes"],
            [
                {"key": "mailbox.max_inflight", "old": "2", "new": "128", "restart": True},
                {"key": "limits.read_idle_ms", "old": "15000", "new": "20000", "restart": False},
                {"key": "log.level", "old": '"info"', "new": '"debug"', "restart": False},
            ],
        )
        self.assertIn("mailbox.max_inflight: 2 → 128  (restart)\n", self.run_config("diff", old, new).stdout)

    def test_only_the_spelling_differs(self) -> None:
        old = self.file("[limits]\nread_idle_ms = '15s'\n", "old.toml")
        new = self.file("limits:\n  read_idle_ms: 15000\n", "new.yaml")
        self.assertEqual(self.run_config("diff", old, new).stdout, "no difference in effect\n")

    def test_credentials_are_not_shown(self) -> None:
        files = [
            self.file(f"[observability]\notel_endpoint = 'http://me:{word}@h/'\n", f"{word}.toml")
            for word in ("hunter2", "hunter3")
        ]
        result = self.run_config("diff", *files)
        self.assertIn("observability.otel_endpoint", result.stdout)
        self.assertNotIn("hunter", result.stdout)


class Schema(Case):
    def test_each_daemons(self) -> None:
        for daemon in SCHEMAS:
            result = self.run_config("schema", "--for", daemon)
            told = json.loads(result.stdout)
            Draft202012Validator.check_schema(told)
            self.assertEqual((told["$schema"][-20:], told["title"]), ("draft/2020-12/schema", daemon))
        self.assertEqual(json.loads(self.run_config("schema").stdout)["title"], "ron-node")
        self.assertEqual(self.run_config("schema", "--for", "nobody").exit_code, 2)


class Validate(Case):
    def validate(self, *arguments: str) -> Result:
        return CliRunner().invoke(ronctl, ["validate", *arguments])

    def test_warnings_are_no_refusal(self) -> None:
        result = self.validate("--file", str(ETC / "omnigate.toml"))
        self.assertEqual(result.exit_code, 0)
        self.assertIn("fine for omnigate\n  warning: oniond: ", result.stdout)
        told = json.loads(self.validate("--file", str(ETC / "omnigate.toml"), "--json").stdout)
        self.assertIn("edge.allow", [warning["key"] for warning in told["warnings"]])
        self.assertEqual(json.loads(self.validate("-f", str(ETC / "micronode.toml"), "--json").stdout)["warnings"], [])

    def test_yaml_too(self) -> None:
        path = self.file("federation:\n  enabled: true\n  zk_handshake: false\n", "node.yaml")
        result = self.validate("-f", path, "--json")
        self.assertEqual((result.exit_code, json.loads(result.stdout)["key"]), (3, "federation.zk_handshake"))

    def test_the_environment_is_not_asked(self) -> None:
        """It judges the file alone, so that the answer is the same on every machine."""
        os.environ["RON_NONSENSE"] = "1"
        self.assertEqual(self.validate("-f", str(ETC / "micronode.toml")).exit_code, 0)


class Help(Case):
    def test_every_command_has_an_example(self) -> None:
        for name in config.commands:
            text = self.run_config(name, "--help").stdout
            self.assertIn("Example", text)
            self.assertIn(f"ronctl config {name}", text)
