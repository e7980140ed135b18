"""examples/balance-three-nodes.sh keeps its promise, and leaves nothing behind also when stopped. Needs tor, curl."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.support import BIN, NO_TOR, ROOT, process_tree, until

SCRIPT = ROOT / "examples" / "balance-three-nodes.sh"
# It takes two to three minutes on two cores; other tests run beside it.
RUN_S = 420
BEGIN_S = 60
END_S = 60


class Example(SynchronousTestCase):
    skip = NO_TOR
    timeout = RUN_S + END_S

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ron-example-"))
        self.addCleanup(self.folder.rmdir)  # which must be empty by then
        self.environment = {
            **os.environ,
            "TMPDIR": str(self.folder),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RON_HOME": "",
            "RON_CAP": "",
        }

    def start(self, output: Path) -> subprocess.Popen[bytes]:
        with output.open("wb") as sink:
            script = subprocess.Popen(
                [str(SCRIPT)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        self.addCleanup(script.kill)
        return script

    def gone(self) -> bool:
        """No process of it is left, and no file."""
        return not process_tree(str(self.folder)) and not list(self.folder.iterdir())

    def test_two_leaders_die_and_visitors_do_not_notice(self) -> None:
        output = Path(self.mktemp())
        status = self.start(output).wait(RUN_S)
        said = output.read_text()
        self.assertEqual(status, 0, said)
        self.assertEqual(len(set(re.findall(r"[a-z2-7]{56}\.onion", said))), 1, said)
        killed = re.findall(r"== kill -9 of ([abc]), the leader", said)
        follows = re.findall(r"== ([abc]) leads now", said)
        self.assertEqual((len(killed), len(follows)), (2, 2), said)
        self.assertEqual(killed[1], follows[0], said)
        self.assertEqual(len(re.findall(r"^leader +[abc]:", said, re.MULTILINE)), 3, said)
        visits = re.findall(r"^visits: (\d+) at the first try, \d+ at the second, (\d+) failed$", said, re.MULTILINE)
        self.assertGreaterEqual(int(visits[-1][0]), 20, said)
        self.assertEqual(visits[-1][1], "0", said)
        self.assertTrue(self.gone(), process_tree(str(self.folder)))

    def test_stopped_in_the_middle_it_takes_all_with_it(self) -> None:
        output = Path(self.mktemp())
        script = self.start(output)
        until(lambda: list(self.folder.glob("*/a.log")), BEGIN_S, "a node")
        script.send_signal(signal.SIGTERM)
        self.assertEqual(script.wait(END_S), 130, output.read_text())
        self.assertTrue(self.gone(), process_tree(str(self.folder)))
