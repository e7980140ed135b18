"""From typing `make run` to ready, on a machine where it ran before: the whole command, five times.

Beside it, from the same runs, where the time goes: the network's own stages, which follow tor's voting clock (a first
consensus cannot be whole before the authorities have voted, 8 s after they start).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from bench import harness
from bench.harness import ROOT

ROUNDS = 5
_LINE = re.compile(r"^\[\s*([\d.]+) s\] (\w+(?: \w+)?)\s+(\d+) %", re.MULTILINE)


def main() -> None:
    """Measure and save."""
    with harness.scratch() as folder:
        config = folder / "node.toml"
        config.write_text('[gateway]\nbind = "127.0.0.1:0"\n[mailbox]\nlisten = "127.0.0.1:0"\n')
        home = folder / "home"
        _run(config, home)
        runs = [_run(config, home) for _ in range(ROUNDS)]
    ready = harness.spread([run["ready_s"] for run in runs], 2)
    stages = {
        stage: harness.spread([run["stages"][stage] for run in runs if stage in run["stages"]], 2)
        for stage in runs[0]["stages"]
    }
    result = {"setup": {"rounds": ROUNDS}, "ready_s": ready, "stage_ends_s": stages, "runs": runs}
    result["ratios"] = {"ready, of the consensus alone": round(ready["p50"] / stages["consensus"]["p50"], 3)}
    harness.save("startup", result)
    rows = [["make run → ready", *(ready[k] for k in ("p50", "p95", "max"))]]
    rows += [[f"  {stage} done after", *(f[k] for k in ("p50", "p95", "max"))] for stage, f in stages.items()]
    harness.show("start-up, seconds", ["", "p50", "p95", "max"], rows)


def _run(config: Path, home: Path) -> dict[str, object]:
    started = time.monotonic()
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", "--", "make", "--no-print-directory", "run", f"CONFIG={config}"],
        cwd=ROOT,
        env={**os.environ, "RON_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not (home / "node.json").exists():
            if process.poll() is not None or time.monotonic() - started > 180:
                raise RuntimeError("make run did not get ready")
            time.sleep(0.02)
        ready_s = time.monotonic() - started
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    ends = {stage: float(at) for at, stage, percent in _LINE.findall(output.decode()) if percent == "100"}
    return {"ready_s": round(ready_s, 2), "stages": ends}
