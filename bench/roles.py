"""A benchmark's parts in processes of their own, each on its core: `python -m MODULE ROLE [PATH…]`, JSON on stdout.

In: a module, a role, paths. Out: its command line, or what it measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from bench.harness import ROOT

TIMEOUT_S = 120


def command(module: str, role: str, *arguments: Path, cpu: str) -> list[str]:
    """What starts `role`; it ends with us."""
    apart = ["setpriv", "--pdeathsig", "KILL", "--", "taskset", "-c", cpu]
    return [*apart, sys.executable, "-m", module, role, *map(str, arguments)]


def run(module: str, role: str, *arguments: Path, cpu: str) -> dict[str, float]:
    """What `role` has measured. Blocks."""
    asked = command(module, role, *arguments, cpu=cpu)
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, check=True, timeout=TIMEOUT_S)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def tell(result: dict[str, float]) -> None:
    """In a role: to whoever started us."""
    print(json.dumps(result), flush=True)


def in_reactor(work: Callable[[], Coroutine[Any, Any, dict[str, float]]]) -> None:
    """In a role: do `work` and tell its result."""
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    failures: list[Failure] = []

    def begin() -> None:
        done = Deferred.fromCoroutine(work()).addCallbacks(tell, failures.append)
        done.addBoth(lambda _none: reactor.stop())

    reactor.callWhenRunning(begin)
    reactor.run()
    for failure in failures:
        failure.raiseException()
