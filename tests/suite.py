"""Runs every test but the long ones: a queue of tasks, longest first, from which several runners take.

In: the tests of this tree. Out: what each task said, whole, once it is over; what took longest; coverage; how many
passed. Live tests mostly wait for tor, so two runners take those first, and two more the others beside them with lower
priority. What promises to be back within a second comes first, alone on the machine and without the tracer. Each task
is a trial of its own, so that a task's failure or crash is its own.
"""

# ruff: noqa: T201 - a command
from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / ".venv" / "bin"
# What `scripts/run-tests --long` runs.
LONG = re.compile(
    r"tests\.live\.test_.*(hostnet|oniond_faults|oniond_amnesia|onion_scale|onion_pow|clock_jump"
    r"|balance_long|balance_partitions|balance_example|balance_vanguards|kms_faults|kms_log|kms_workers)$"
)
FIRST = "tests.live.test_kills"
# Modules that share a node, in this order: by itself each would start eight tors of its own.
TOGETHER = (
    ("tests.live.test_browser", "tests.live.test_node"),
    ("tests.live.test_macronode", "tests.live.test_runbooks_macronode"),
)
# Seconds that a module took beside others on two cores, where it is far from `USUAL_S`. Only the order depends on it;
# the end of a run says what took longest.
SECONDS = {
    "tests.live.test_balance": 214,
    "tests.live.test_node": 110,
    "tests.live.test_federation": 106,
    "tests.live.test_onion_cli": 106,
    "tests.services.balance.test_service": 103,
    "tests.live.test_runbooks_macronode": 100,
    "tests.live.test_runbooks": 96,
    "tests.live.test_tornet": 65,
    "tests.fuzz.test_fuzz": 61,
    "tests.live.test_browser": 60,
    "tests.live.test_install": 60,
    "tests.live.test_macronode": 60,
    "tests.live.test_balance_publishing": 57,
    "tests.live.test_balance_heads": 56,
    "tests.services.balance.test_views": 47,
    "tests.ctl.test_pack": 45,
    "tests.live.test_shutdown": 45,
    "tests.live.test_oniond": 30,
    "tests.services.balance.mesh.test_mesh": 30,
    "tests.services.balance.test_answering": 30,
    "tests.ctl.test_balance": 29,
    "tests.ctl.test_governance": 27,
    "tests.ctl.test_onion": 26,
    "tests.live.test_descriptor": 25,
    "tests.auth.test_authority": 24,
    "tests.ctl.test_kms": 24,
    "tests.live.test_oap": 23,
    "tests.services.balance.test_seized": 23,
    "tests.services.oniond.test_autoscale": 22,
    "tests.kernel.test_profiling": 20,
    "tests.services.balance.cluster.test_cluster": 20,
    "tests.services.balance.publishing.test_publisher": 20,
    "tests.services.balance.cluster.test_model": 19,
    "tests.services.balance.test_illwill": 18,
    "tests.services.balance.vault.test_deaths": 17,
    "tests.live.test_kms_hsm": 16,
    "tests.live.test_startup": 16,
    "tests.services.kms.test_invariants": 16,
    "tests.ctl.test_profile": 15,
    "tests.services.balance.vault.test_ceremonies": 15,
    "tests.services.kms.audit.test_crash": 15,
    "tests.auth.test_tokens": 14,
    "tests.services.balance.mesh.test_hostile": 14,
}
USUAL_S, USUAL_LIVE_S = 2, 20
# Modules without the tracer, which makes Python take twice as long: histories of what the others go through step by
# step, the same daemons on other networks, and processes that are killed before they could say what they did.
PLAIN = frozenset(
    {
        "tests.fuzz.test_fuzz",
        "tests.live.test_descriptor",
        "tests.live.test_install",
        "tests.live.test_oap",
        "tests.live.test_oniond",
        "tests.live.test_shutdown",
        "tests.live.test_tornet",
        "tests.services.balance.cluster.test_model",
        "tests.services.balance.test_answering",
        "tests.services.balance.test_illwill",
        "tests.services.balance.test_seized",
        "tests.services.balance.vault.test_deaths",
        "tests.services.kms.audit.test_crash",
        "tests.services.kms.backends.test_file_faults",
    }
)
# A trial costs a second or two before its first test: small modules share one.
TASK_S = 40
LIVE_RUNNERS = 2
# Of what is not live: tests of daemons have deadlines.
NICE = 8
SLOWEST = 12
_COUNTED = re.compile(r"^(?:PASSED|FAILED)(?: \((.*)\))?$", re.MULTILINE)
_RAN = re.compile(r"^Ran (\d+) tests in [\d.]+s$", re.MULTILINE)


@dataclass(frozen=True)
class Task:
    """Modules for one trial, how long they may take, and how they are run."""

    modules: tuple[str, ...]
    seconds: float
    live: bool = False
    traced: bool = True

    @property
    def title(self) -> str:
        """Short, for a line."""
        first, more = self.modules[0].removeprefix("tests."), len(self.modules) - 1
        return f"{first} and {more} more" if more else first


@dataclass(frozen=True)
class Outcome:
    """What came of a task: its exit status, wall and CPU seconds, what it said, and the counts at its end."""

    task: Task
    status: int
    took_s: float
    cpu_s: float
    text: str
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Ended well, and with a test that ran: a task of none has lost its tests."""
        return self.status == 0 and self.counts.get("ran", 0) > 0


def counted(text: str) -> dict[str, int]:
    """`ran`, and what trial's last line names: successes, failures, errors, skips."""
    found = {"ran": int((_RAN.findall(text) or ["0"])[-1])}
    for inside in _COUNTED.findall(text)[-1:]:
        found |= {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", inside)}
    return found


def modules(root: Path = ROOT) -> list[str]:
    """Every test module of the tree by its name, sorted, but for the long ones."""
    paths = sorted((root / "tests").rglob("test_*.py"))
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in paths]
    return [name for name in names if not LONG.match(name)]


def long_modules(root: Path = ROOT) -> list[str]:
    """The long ones."""
    names = [f"tests.live.{path.stem}" for path in sorted((root / "tests" / "live").glob("test_*.py"))]
    return [name for name in names if LONG.match(name)]


def tasks(names: Iterable[str]) -> list[Task]:
    """Each of `names` in just one task; the longest first. FIRST is in none of them."""
    left = [name for name in names if name != FIRST]
    made = []
    for group in TOGETHER:
        if present := tuple(name for name in group if name in left):
            made.append(_task(present))
            left = [name for name in left if name not in present]
    made += [_task((name,)) for name in left if _is_live(name)]
    for plain in (False, True):
        made += _packed([name for name in left if not _is_live(name) and (name in PLAIN) is plain])
    return sorted(made, key=lambda task: -task.seconds)


def _packed(names: list[str]) -> Iterator[Task]:
    """Neighbours together until they are long enough; what is long by itself stays alone."""
    together: list[str] = []
    for name in names:
        if _expected_s((name,)) >= TASK_S:
            yield _task((name,))
            continue
        together.append(name)
        if _expected_s(together) >= TASK_S:
            yield _task(tuple(together))
            together = []
    if together:
        yield _task(tuple(together))


def _task(names: tuple[str, ...]) -> Task:
    return Task(names, _expected_s(names), live=_is_live(names[0]), traced=not PLAIN.intersection(names))


def _expected_s(names: Iterable[str]) -> float:
    return sum(SECONDS.get(name, USUAL_LIVE_S if _is_live(name) else USUAL_S) for name in names)


def _is_live(name: str) -> bool:
    return name.startswith("tests.live.")


class Suite:
    """One run. home: where folders and coverage are kept, the checkout."""

    def __init__(self, todo: list[Task], home: Path = ROOT) -> None:
        self._count = len(todo)
        self._live = [task for task in todo if task.live]
        self._others = [task for task in todo if not task.live]
        self._home = home
        self._coverage = home / ".coverage.d"
        self._turn = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False
        self.outcomes: list[Outcome] = []

    def run(self, first: Task | None = None) -> bool:
        """`first` alone, then the others. Were all good?"""
        shutil.rmtree(self._coverage, ignore_errors=True)
        self._coverage.mkdir()
        with self._stopping():
            if first is not None:
                self._do(first, "f")
            others = self._runners(os.cpu_count() or 2, "o", live=False)
            for thread in self._runners(LIVE_RUNNERS, "l", live=True) + others:
                thread.join()
        # a runner that broke would leave tasks undone
        expected = self._count + (first is not None)
        return len(self.outcomes) == expected and all(outcome.good for outcome in self.outcomes)

    def _runners(self, count: int, name: str, *, live: bool) -> list[threading.Thread]:
        threads = [threading.Thread(target=self._work, args=(f"{name}{number}", live)) for number in range(count)]
        for thread in threads:
            thread.start()
        return threads

    def _work(self, name: str, live: bool) -> None:
        while task := self._next(live):
            self._do(task, name)

    def _next(self, live: bool) -> Task | None:
        """A runner of live tests that has no more of them takes others."""
        with self._turn:
            if self._ended:
                return None
            if live and self._live:
                return self._live.pop(0)
            return self._others.pop(0) if self._others else None

    def _do(self, task: Task, runner: str) -> None:
        """Run it, say what it said, and put its coverage into one file."""
        began = time.monotonic()
        folder, log = self._home / f"_trial_temp_{runner}", self._home / f"_lane_{runner}.log"
        shutil.rmtree(folder, ignore_errors=True)
        measured = self._coverage / runner / str(began) / ".coverage"
        with log.open("wb") as sink:
            process = self._start(task, self._command(task, folder), measured, sink)
            status, cpu_s = self._end(process) if process else (-1, 0.0)
        text = log.read_text(errors="replace")
        log.unlink()
        outcome = Outcome(task, status, time.monotonic() - began, cpu_s, text, counted(text))
        if task.traced:
            _coverage("combine", "-q", data=measured)
        with self._turn:
            if self._ended:
                # it was broken off, and so was each of its tests
                return
            self._say(outcome)
            if not outcome.good and folder.exists():
                folder.rename(folder.with_name(f"{folder.name}_failed_{len(self.outcomes)}"))

    def _command(self, task: Task, folder: Path) -> list[str]:
        trial = ["-m", "twisted.trial", f"--temp-directory={folder}", *task.modules]
        # not the source: then each of some thousand processes would look through the whole tree at its end
        only = [f"--include={ROOT}/ron/*", f"--omit={ROOT}/ron/nodes/grpc/*_pb2*"]
        python = [str(BIN / "coverage"), "run", *only] if task.traced else [str(BIN / "python")]
        return ["nice", "-n", "0" if task.live else str(NICE), *python, *trial]

    def _start(self, task: Task, command: list[str], measured: Path, sink: IO[bytes]) -> subprocess.Popen[bytes] | None:
        """None when the run is over."""
        # absolute: processes that work in other folders are measured too
        measured.parent.mkdir(parents=True)
        known = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
        if task.traced:
            known |= {"PYTHONPATH": str(ROOT / "tests" / "coverage"), "COVERAGE_FILE": str(measured)}
        with self._turn:
            if self._ended:
                return None
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=known,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                # a Ctrl-C at the terminal is for us, and we tell them
                start_new_session=True,
            )
            self._running.add(process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> tuple[int, float]:
        """Wait for it: its exit status, its CPU seconds with those of all that it started and waited for."""
        _pid, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        with self._turn:
            self._running.discard(process)
        return process.returncode, used.ru_utime + used.ru_stime

    def _say(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        verdict = "" if outcome.good else f", exit status {outcome.status}"
        print(f"== {outcome.task.title}: {_figures(outcome)}{verdict}\n{outcome.text}", flush=True)

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """Whatever ends this run ends what it started; trial ends its daemons."""

        def end(number: int, _frame: object) -> None:
            raise KeyboardInterrupt(number)

        before = signal.signal(signal.SIGTERM, end)
        try:
            yield
        finally:
            self._ended = True
            for process in list(self._running):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)
            signal.signal(signal.SIGTERM, before)


def _coverage(*words: str, data: Path) -> int:
    """Its exit status."""
    return subprocess.run(
        [str(BIN / "coverage"), *words], cwd=ROOT, env={**os.environ, "COVERAGE_FILE": str(data)}, check=False
    ).returncode


def _report(folder: Path) -> bool:
    """One report of all tasks. Is enough covered?"""
    data = ROOT / ".coverage"
    # so that files which nothing imports count as well
    _coverage("run", "--source=ron", "-m", "ron.proto.exitcodes", data=folder / ".coverage")
    _coverage("combine", "-q", *map(str, [*folder.glob("*/*/.coverage"), *folder.glob(".coverage.*")]), data=data)
    shutil.rmtree(folder, ignore_errors=True)
    return _coverage("report", data=data) == 0


def failures(outcome: Outcome) -> int:
    """Of its tests; one when it broke off before it could count."""
    found = outcome.counts.get("failures", 0) + outcome.counts.get("errors", 0)
    return found if outcome.good else max(1, found)


def _figures(outcome: Outcome) -> str:
    return f"{outcome.took_s:.0f} s, CPU {outcome.cpu_s:.0f} s"


def _total(outcomes: list[Outcome], name: str) -> int:
    return sum(outcome.counts.get(name, 0) for outcome in outcomes)


def main() -> int:
    """The exit status: 0 when every test passed and enough is covered."""
    if "--long" in sys.argv:
        print(*long_modules())
        return 0
    began = time.monotonic()
    suite = Suite(tasks(modules()))
    good = suite.run(Task((FIRST,), 0, live=True, traced=False))
    outcomes = suite.outcomes
    covered = good and _report(ROOT / ".coverage.d")
    for outcome in sorted(outcomes, key=lambda one: -one.took_s)[:SLOWEST]:
        print(f"slow: {_figures(outcome)}: {outcome.task.title}")
    for outcome in outcomes:
        if not outcome.good:
            print(f"FAILED    {' '.join(outcome.task.modules)}")
    failed = sum(map(failures, outcomes))
    skipped = _total(outcomes, "skips")
    passed = _total(outcomes, "successes")
    cpu_s, took_s = sum(outcome.cpu_s for outcome in outcomes), time.monotonic() - began
    print(f"{len(outcomes)} tasks in {took_s:.0f} s, CPU {cpu_s:.0f} s")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if good and covered else 1


if __name__ == "__main__":
    sys.exit(main())
