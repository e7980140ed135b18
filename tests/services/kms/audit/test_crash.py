"""Killed at any moment: every index that was told is there, with what was appended, and the log opens."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ron.services.kms.audit.leaves import decode
from ron.services.kms.audit.recovery import recover
from tests.services.kms.audit.support import ORIGIN, Held

KILLS = 20
ROOT = Path(__file__).parents[4]
ENOUGH = 1 << 30


class Killed(SynchronousTestCase):
    timeout = 180

    def test_twenty_times(self) -> None:
        home = Path(self.mktemp()).absolute()
        chance = random.Random(20261121)
        told: dict[int, int] = {}
        for kill in range(KILLS):
            before = len(told)
            told.update(self.run_and_kill(home, kill * 1_000_000, chance.uniform(0.0, 0.12)))
            self.assertGreater(len(told), before, "it was killed before it did anything")
        held = Held(home)
        shelf = held.shelf()
        shelf.open()
        self.addCleanup(shelf.close)
        recovered = recover(shelf, ORIGIN, [held.keys.public], lambda _done, _of: None)
        self.assertIsNone(recovered.trouble)
        self.assertGreater(recovered.number, 0)
        leaves = shelf.read(0, recovered.tiles.size, ENOUGH)
        self.assertGreaterEqual(len(leaves), max(told) + 1)
        for index, number in told.items():
            self.assertEqual(int(decode(leaves[index]).input_b3, 16), number)

    def run_and_kill(self, home: Path, first: int, after_s: float) -> dict[int, int]:
        """What it said before it was killed, `after_s` seconds after its first word."""
        command = [sys.executable, "-m", "tests.services.kms.audit.crashing", str(home), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
            try:
                assert child.stdout is not None
                said = child.stdout.readline()
                time.sleep(after_s)
            finally:
                child.send_signal(signal.SIGKILL)
            said += child.stdout.read()
        self.assertNotIn(b"trouble", said)
        pairs = [line.split() for line in said.splitlines()]
        return {int(index): int(number) for index, number in pairs}
