"""A daemon that cannot begin ends, with one line that says why and an exit code, also before its reactor runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ron.proto.exitcodes import Exit

TWISTD = str(Path(sys.executable).with_name("twistd"))
FLAGS = ("node.profile=macronode", "gateway.bind=127.0.0.1:0", "mailbox.listen=127.0.0.1:0")
PATIENCE_S = 60


class CannotBeginTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ron-home-"))
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)

    def run_node(self, home: Path) -> subprocess.CompletedProcess[str]:
        """A whole run; it must end by itself."""
        flags = [part for flag in FLAGS for part in ("--set", flag)]
        return subprocess.run(
            [TWISTD, "-n", "--pidfile=", "ron-node", *flags],
            env={**os.environ, "RON_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def test_a_home_whose_path_is_too_long_for_sockets(self) -> None:
        done = self.run_node(self.home / ("x" * 90))
        self.assertEqual(done.returncode, Exit.INVALID)
        self.assertIn("choose a shorter RON_HOME", done.stderr)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)

    def test_trouble_before_the_reactor_runs(self) -> None:
        (self.home / "run" / "bus.sock").mkdir(parents=True)
        done = self.run_node(self.home)
        self.assertEqual(done.returncode, Exit.UNAVAILABLE, done.stderr)
        self.assertIn("node: could not start", done.stdout)
