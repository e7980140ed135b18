"""Runs the fuzz targets one after another, each in a process of its own, and prints a line for each.

scripts/fuzz                             every target, 30 s each
scripts/fuzz --seconds 600 macaroon bus  just these, ten minutes each
scripts/fuzz --keep                      what was found worth keeping joins fuzz/corpus/

Exit code 1 when something came out that is no RonError; the input is kept and named.
"""

# ruff: noqa: T201 - a command
from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "fuzz" / "corpus"
DEFAULT = tuple(name for name in TARGETS if name != "alarm")
# One input may take so long and so much; over it is a finding too.
LIMITS = ("-timeout=10", "-rss_limit_mb=1024", "-max_len=4096")
MEMORY = Path("/dev/shm")  # noqa: S108 - for folders of our own with names nobody can guess
# To start, and to end after the time is up.
GRACE_S = 60
_RUNS = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)


def main() -> int:
    """Run what was asked for; the exit code."""
    parser = argparse.ArgumentParser("scripts/fuzz", None, __doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=int, default=30, help="for each target (default 30)")
    parser.add_argument("--keep", action="store_true", help="add new inputs that reach more code to fuzz/corpus/")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of: {', '.join(DEFAULT)}")
    asked = parser.parse_args()
    unknown = [name for name in asked.targets if name not in TARGETS]
    if unknown or asked.seconds < 1:
        parser.error(f"there is no {', '.join(unknown)}" if unknown else "--seconds must be at least 1")
    held = [_fuzz(name, asked.seconds, asked.keep) for name in asked.targets or DEFAULT]
    return 0 if all(held) else 1


def _fuzz(name: str, seconds: int, keep: bool) -> bool:
    """True when nothing was found."""
    corpus = CORPUS / name
    # stays when there is a finding in it
    folder = Path(tempfile.mkdtemp(prefix=f"ron-fuzz-{name}-"))
    new, finds = folder / "new", folder / "finds"
    new.mkdir()
    finds.mkdir()
    corpora = [str(path) for path in (new, corpus) if path.is_dir()]
    options = [*LIMITS, f"-max_total_time={seconds}", "-print_final_stats=1", f"-artifact_prefix={finds}/"]
    code, output = _drive(name, [*options, *corpora], seconds + GRACE_S)
    runs = _RUNS.search(output)
    findings = [str(path) for path in finds.iterdir()]
    held = code == 0 and runs is not None and not findings
    verdict = "ok" if held else "FOUND" if findings else "BROKEN"
    counted = f"corpus {_count(corpus)} + {_count(new)}"
    print(f"{name:14} {verdict:6} {int(runs[1]) if runs else 0:>9} runs {seconds:>5} s   {counted}", flush=True)
    if not held:
        (folder / "output.txt").write_text(output)
        print(_story(output), *(f"  input: {path}" for path in findings), f"  output: {folder}/output.txt", sep="\n")
        return False
    if keep:
        _drive(name, ["-merge=1", *LIMITS, str(corpus), str(new)], seconds + GRACE_S)
        print(f"{'':14} kept   corpus {_count(corpus)}")
    shutil.rmtree(folder)
    return True


def _drive(name: str, arguments: list[str], timeout_s: float) -> tuple[int, str]:
    """libFuzzer's exit code (-1: it had to be killed) and what it said."""
    # neither measured nor traced: the coverage of a test run and the fuzzer's own instrumentation do not go together
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("COVERAGE_", "PYTHONPATH"))}
    command = [sys.executable, "-m", "fuzz.drive", name, *arguments]
    try:
        # it ends without cleaning up; in memory, for the config target writes a file for every input
        with tempfile.TemporaryDirectory(prefix="ron-fuzz-", dir=MEMORY if MEMORY.is_dir() else None) as scratch:
            environ["TMPDIR"] = scratch
            done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        return -1, (error.stderr or b"").decode("utf-8", "replace")
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")


def _story(output: str) -> str:
    """The traceback, or the last lines when there is none."""
    lines = [line for line in output.splitlines() if line and not line.startswith(("INFO", "WARNING"))]
    begin = next((n for n, line in enumerate(lines) if "Uncaught Python exception" in line), None)
    chosen = lines[-8:] if begin is None else lines[begin : begin + 20]
    return "\n".join(f"  {line}" for line in chosen)


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


if __name__ == "__main__":
    sys.exit(main())
