"""The queue that runs all tests: nothing is left out, nothing runs twice, and what goes wrong is told."""

from __future__ import annotations

import io
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.suite import (
    FIRST,
    PLAIN,
    ROOT,
    SECONDS,
    TOGETHER,
    Outcome,
    Suite,
    Task,
    counted,
    failures,
    long_modules,
    modules,
    tasks,
)

LAST_LINES = """
-------------------------------------------------------------------------------
Ran 104 tests in 803.089s

"""


class Queue(SynchronousTestCase):
    def test_every_module_is_in_one_task(self) -> None:
        named = Counter(name for task in tasks(modules()) for name in task.modules)
        self.assertEqual(set(named) | {FIRST}, set(modules()))
        self.assertEqual(set(named.values()), {1})

    def test_every_test_file_is_run_by_the_short_or_the_long_run(self) -> None:
        paths = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "tests").rglob("test_*.py"))
        self.assertEqual({*modules(), *long_modules()}, {".".join(path.parts) for path in paths})
        self.assertFalse(set(modules()) & set(long_modules()))

    def test_no_name_is_of_a_module_that_is_gone(self) -> None:
        together = {name for group in TOGETHER for name in group}
        self.assertLessEqual({FIRST, *SECONDS, *PLAIN, *together}, set(modules()))

    def test_the_longest_first(self) -> None:
        order = [task.seconds for task in tasks(modules())]
        self.assertEqual(order, sorted(order, reverse=True))

    def test_live_tests_are_by_themselves_but_for_those_that_share_a_node(self) -> None:
        for task in tasks(modules()):
            live = [name.startswith("tests.live.") for name in task.modules]
            self.assertIn(live, ([True] * len(live), [False] * len(live)))
            self.assertEqual(task.live, live[0])
            if task.live and len(live) > 1:
                self.assertIn(task.modules, TOGETHER)

    def test_with_and_without_the_tracer_do_not_mix(self) -> None:
        for task in tasks(modules()):
            self.assertEqual({name in PLAIN for name in task.modules}, {not task.traced})


class Counts(SynchronousTestCase):
    def outcome(self, text: str, status: int = 0) -> Outcome:
        return Outcome(Task(("tests.x",), 1), status, 1.0, 1.0, text, counted(text))

    def test_a_task_without_tests_is_a_failure(self) -> None:
        for text in ("", "Ran 0 tests in 0.1s\n\nPASSED\n", "Ran 3 tests of a test's output\n"):
            self.assertFalse(self.outcome(text).good, text)

    def test_a_task_that_broke_off_is_one_failure(self) -> None:
        self.assertEqual(failures(self.outcome("Segmentation fault", -11)), 1)
        self.assertEqual(failures(self.outcome(f"{LAST_LINES}PASSED (successes=104)\n", 1)), 1)

    def test_numbers(self) -> None:
        passed = self.outcome(f"{LAST_LINES}PASSED (skips=4, successes=100)\n")
        self.assertEqual(passed.counts, {"ran": 104, "skips": 4, "successes": 100})
        self.assertTrue(passed.good)
        self.assertEqual(failures(passed), 0)
        failed = self.outcome(f"{LAST_LINES}FAILED (failures=2, errors=1, successes=101)\n", 1)
        self.assertEqual((failures(failed), failed.counts["successes"]), (3, 101))

    def test_what_a_test_prints_is_not_counted(self) -> None:
        text = f"Ran 7 tests in 1s\nPASSED (successes=7)\n{LAST_LINES}PASSED (successes=104)\n"
        self.assertEqual(self.outcome(text).counts, {"ran": 104, "successes": 104})


class Runs(SynchronousTestCase):
    def test_a_good_task_and_a_broken_one(self) -> None:
        home = Path(self.mktemp()).absolute()
        home.mkdir(parents=True)
        todo = [Task(("tests.proto.test_exitcodes",), 2), Task(("tests.proto.test_no_such_module",), 1, traced=False)]
        suite = Suite(todo, home)
        said = io.StringIO()
        with redirect_stdout(said):
            self.assertFalse(suite.run())
        good, broken = sorted(suite.outcomes, key=lambda outcome: outcome.status)
        self.assertTrue(good.good, good.text)
        self.assertGreater(good.counts["successes"], 0)
        self.assertFalse(broken.good)
        self.assertIn("test_no_such_module", said.getvalue())
        self.assertEqual(len(list((home / ".coverage.d").rglob(".coverage"))), 1, "what was traced was measured")
        self.assertEqual(len(list(home.glob("_trial_temp_*_failed_*"))), 1, "a failed task keeps its folder")
