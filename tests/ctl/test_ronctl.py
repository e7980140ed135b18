"""`ronctl` itself: exit codes, where it looks for the node and the capability, and errors that say the fix."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from ron.ctl.console import StageConsole
from ron.ctl.main import _COMMANDS, ronctl
from ron.ctl.node import find_capability, own_url, read_facts
from ron.proto.errors import ErrorCode, RonError
from ron.proto.exitcodes import Unreachable

ROOT = Path(__file__).resolve().parents[2]
RONCTL = Path(sys.executable).parent / "ronctl"


class CommandLineTests(SynchronousTestCase):
    """As a script calls it."""

    def ronctl(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RONCTL, *arguments],
            cwd=ROOT,
            env={**os.environ, "RON_HOME": str(Path(self.mktemp()).absolute()), "RON_CAP": "", **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def test_every_example_config_is_valid(self) -> None:
        examples = sorted((ROOT / "etc").glob("*.toml"))
        self.assertGreaterEqual(len(examples), 3)
        for path in examples:
            done = self.ronctl("validate", "--file", str(path), "--json")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertTrue(json.loads(done.stdout)["ok"])

    def test_an_invalid_config_is_named_with_the_fix(self) -> None:
        path = Path(self.mktemp()).absolute()
        path.write_text("[gateway]\nbnid = '127.0.0.1:1'\n")
        text = self.ronctl("validate", "--file", str(path))
        self.assertEqual((text.returncode, text.stdout), (3, ""))
        self.assertEqual(text.stderr, "ronctl: gateway.bnid: unknown key; fix: did you mean 'bind'?\n")
        told = self.ronctl("validate", "--file", str(path), "--json")
        self.assertEqual((told.returncode, json.loads(told.stdout)["key"]), (3, "gateway.bnid"))

    def test_exit_codes(self) -> None:
        self.assertEqual(self.ronctl("--help").returncode, 0)
        self.assertEqual(self.ronctl("nonsense").returncode, 2)
        self.assertEqual(self.ronctl("status").returncode, 4)
        self.assertEqual(self.ronctl("status", "--node", "http://127.0.0.1:9").returncode, 4)
        self.assertEqual(self.ronctl("hello").returncode, 4)
        self.assertEqual(self.ronctl("tornet", "status").returncode, 4)
        self.assertEqual(self.ronctl("tornet", "down").returncode, 0)
        self.assertEqual(self.ronctl("pack", "info", "/nonexistent.pmtiles").returncode, 8)

    def test_every_command_has_help_with_an_example(self) -> None:
        for name in _COMMANDS:
            text = CliRunner().invoke(ronctl, [name, "--help"]).output
            self.assertIn(f"ronctl {name}", text)
            self.assertIn("Example", text, name)


class FindingTests(SynchronousTestCase):
    """--cap, RON_CAP, $RON_HOME/admin.cap, in that order."""

    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()
        self.environ("RON_HOME", str(self.home))
        self.environ("RON_CAP", "")

    def environ(self, name: str, value: str) -> None:
        before = os.environ.get(name)
        os.environ[name] = value
        self.addCleanup(os.environ.__setitem__, name, before) if before is not None else self.addCleanup(
            os.environ.pop, name, None
        )

    def write(self, name: str, content: str, mode: int = 0o600) -> Path:
        path = self.home / name
        path.write_text(content)
        path.chmod(mode)
        return path

    def test_the_order(self) -> None:
        self.assertIsNone(find_capability(None))
        self.write("admin.cap", "ADMIN\n")
        self.assertEqual(find_capability(None), "ADMIN")
        self.environ("RON_CAP", str(self.write("other.cap", "OTHER\n")))
        self.assertEqual(find_capability(None), "OTHER")
        self.assertEqual(find_capability("TOKEN"), "TOKEN")

    def test_an_exposed_or_missing_capability_file_is_refused(self) -> None:
        self.write("admin.cap", "ADMIN", 0o644)
        self.assertIn("chmod 600", self.assertRaises(RonError, find_capability, None).hint or "")
        refusal = self.assertRaises(RonError, find_capability, "/nonexistent/cap")
        self.assertIs(refusal.code, ErrorCode.NO_CAPABILITY)

    def test_a_home_that_may_not_be_looked_into(self) -> None:
        """Somebody who is neither root nor the node's user is told so; a capability of theirs is another matter."""
        self.write("node.json", "{}")
        self.write("admin.cap", "ADMIN")
        self.home.chmod(0)
        self.addCleanup(self.home.chmod, 0o700)
        if os.geteuid() == 0:
            os.seteuid(65534)
            self.addCleanup(os.seteuid, 0)
        self.assertIn("as root", self.assertRaises(Unreachable, own_url).hint or "")
        self.assertIsNone(find_capability(None))
        self.assertEqual(find_capability("TOKEN"), "TOKEN")

    def test_facts(self) -> None:
        self.assertRaises(Unreachable, read_facts)
        self.write("node.json", "{")
        self.assertRaises(Unreachable, read_facts)
        facts = {"gateway_url": "g", "mailbox_url": "m", "onion": "o", "socks_port": 1, "pids": {"node": 2}}
        self.write("node.json", json.dumps(facts))
        self.assertEqual(read_facts().pids, {"node": 2})


class ConsoleTests(SynchronousTestCase):
    """Progress without a terminal: a line for each change, none for what stays the same."""

    def test_lines(self) -> None:
        path = Path(self.mktemp())
        with path.open("w+") as stream, StageConsole(stream) as console:
            for done in (0, 0, 5, 10):
                console.show("stage", done, 10, "detail")
        shown = [line.split("] ")[1] for line in path.read_text().splitlines()]
        self.assertEqual(shown, [f"stage      {percent:3d} %  detail" for percent in (0, 50, 100)])

    def test_a_terminal(self) -> None:
        ours, theirs = os.openpty()
        self.addCleanup(os.close, ours)
        with os.fdopen(theirs, "w") as stream, StageConsole(stream) as console:
            console.show("stage", 1, 2, "half way")
            console.show("stage", 2, 2, "all of it")
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed and all of it is read
            while chunk := os.read(ours, 100_000):
                shown += chunk
        self.assertIn(b"all of it", shown)
