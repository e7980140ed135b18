"""Hostile bytes: the kept corpus holds, and so does what atheris thinks of in some seconds. Needs atheris.

`make fuzz` gives each target ten minutes.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from fuzz.__main__ import CORPUS, DEFAULT, ROOT
from fuzz.targets import TARGETS, Finding
from ron.auth.pow import wire
from ron.kernel.ipc import decode_frame
from ron.oap.frames import Decoder
from ron.services.kms.backends import pkcs11
from ron.services.kms.backends.pkcs11_sessions import Sessions

SECONDS = 2


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`scripts/fuzz` and what it said."""
    command = [str(ROOT / "scripts" / "fuzz"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


class Corpus(SynchronousTestCase):
    def test_what_was_found_once_stays_mended(self) -> None:
        for name in DEFAULT:
            target, files = TARGETS[name](), sorted((CORPUS / name).iterdir())
            self.assertGreater(len(files), 5, name)
            for file in files:
                try:
                    target(file.read_bytes())
                except Exception as error:
                    error.add_note(str(file))
                    raise

    def test_the_seeds_still_speak_the_language(self) -> None:
        """A corpus of yesterday's format would be refused at the door and reach nothing."""
        good = (CORPUS / "pow" / "good").read_bytes()[2:].decode()
        challenge = wire.parse_solution(good)
        assert challenge is not None
        self.assertTrue(wire.is_solved(good, challenge.difficulty))
        for file in (CORPUS / "bus").glob("frame-*"):
            decode_frame(file.read_bytes()[1:])
        for name in ("whole", "chunks", "event", "comp"):
            self.assertTrue(list(Decoder().feed((CORPUS / "oap" / f"frame-{name}").read_bytes()[2:])), name)

    def test_a_target_fails_when_something_is_accepted(self) -> None:
        self.assertRaises(Finding, TARGETS["alarm"](), b"!")


class Tokens(SynchronousTestCase):
    """What `pkcs11_adapter` looks for is there to be found: with a check taken out, lies get through."""

    def lies(self) -> int:
        """How many tapes with one lie in them are a finding."""
        target, found = TARGETS["pkcs11_adapter"](), 0
        for call, at in itertools.product(range(8), range(80)):
            try:
                target(bytes((call, *bytes(at), 3, 0, 1, 1, 0xFF)))
            except Finding:
                found += 1
        return found

    def test_a_lie_is_noticed_by_us_and_else_by_the_target(self) -> None:
        self.assertEqual(self.lies(), 0)
        self.patch(pkcs11, "_checked", lambda _kid, _half, _message, signature: signature)
        self.assertGreater(self.lies(), 0)

    def test_a_session_that_is_not_given_back(self) -> None:
        target = TARGETS["pkcs11_adapter"]()
        self.patch(Sessions, "_give_back", lambda *_args, **_more: None)
        self.assertRaises(Finding, target, b"\0")


class Fuzzing(SynchronousTestCase):
    def test_nothing_but_our_own_errors_comes_out(self) -> None:
        done = fuzz("--seconds", str(SECONDS))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for name in DEFAULT:
            line = re.search(rf"^{name} +ok +([0-9]+) runs", done.stdout, re.MULTILINE)
            assert line is not None, done.stdout
            self.assertGreater(int(line[1]), 100, done.stdout)

    def test_a_finding_is_told_and_its_input_kept(self) -> None:
        done = fuzz("--seconds", "20", "alarm")
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("FOUND", done.stdout)
        kept = re.search(r"^  input: (.*)$", done.stdout, re.MULTILINE)
        assert kept is not None, done.stdout
        path = Path(kept[1])
        self.addCleanup(shutil.rmtree, path.parents[1])
        self.assertEqual(path.read_bytes()[:1], b"!")

    def test_an_unknown_target(self) -> None:
        self.assertEqual(fuzz("nothing").returncode, 2)
        self.assertEqual(fuzz("--seconds", "0").returncode, 2)
