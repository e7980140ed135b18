"""What all benchmarks share: percentiles, the machine, results on disk and on the screen, pinned processes."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
RESULTS = ROOT / "bench" / "results"
SERVER_CPU, CLIENT_CPU = "0", "1"


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * int(percent) // 100) - 1))]


def spread(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """n, min, p50, p95 and max."""
    return {
        "n": len(values),
        "min": round(min(values), digits),
        "p50": round(percentile(values, 50), digits),
        "p95": round(percentile(values, 95), digits),
        "max": round(max(values), digits),
    }


def machine() -> dict[str, Any]:
    """What it ran on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    tor = subprocess.run(["tor", "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "tor": tor.removesuffix("."),
    }


def save(name: str, result: dict[str, Any]) -> None:
    """Write `bench/results/<name>.json`."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    when = datetime.now(tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    whole = {"benchmark": name, "when": when, "machine": machine(), **result}
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=2) + "\n")


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on the screen."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console().print(table)


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes] | None = None, timeout_s: float = 60) -> None:
    """Return when something listens on `port`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on {port} after {timeout_s} s")


@contextlib.contextmanager
def running(command: Sequence[str | Path], port: int, *, cpu: str = SERVER_CPU, **options: Any) -> Iterator[Any]:
    """`command` pinned to `cpu`, once it listens on `port`; ended afterwards."""
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", "taskset", "-c", cpu, *map(str, command)], **options
    )
    try:
        wait_for_port(port, process)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="ron-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def build_pack(folder: Path, max_zoom: int = 5) -> Path:
    """The world map in `folder`."""
    out = folder / "world.pmtiles"
    command = [str(BIN / "ronctl"), "pack", "build", "--out", str(out), "--max-zoom", str(max_zoom)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return out


# wrk's own summary rounds; this prints what it measured, corrected for nothing.
_LUA = """
done = function(summary, latency, requests)
  io.write(string.format("RPS %.1f P50 %.3f P95 %.3f P99 %.3f ERR %d\\n", summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout))
end
"""


def wrk(
    url: str, seconds: float, *, connections: int, cpu: str | None = CLIENT_CPU, errors_allowed: bool = False
) -> dict[str, float]:
    """Load `url` from one wrk thread; requests a second and latencies in ms. Raises RuntimeError on any error."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_LUA)
        script.flush()
        pinned = ["taskset", "-c", cpu] if cpu is not None else []
        command = [*pinned, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script.name, url]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"RPS ([\d.]+) P50 ([\d.]+) P95 ([\d.]+) P99 ([\d.]+) ERR (\d+)", text)
    if found is None or (int(found[5]) and not errors_allowed):
        raise RuntimeError(f"wrk against {url}: {text}")
    rps, p50, p95, p99 = (float(value) for value in found.groups()[:4])
    return {"rps": rps, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}


class Node:
    """A whole node with the world map, started from `config`; `facts` and `cap` once it is up."""

    def __init__(self, folder: Path, config: str, *, plugin: str = "ron-node") -> None:
        self.home = folder
        (folder / "packs").mkdir(parents=True, exist_ok=True)
        if not (folder / "packs" / "world.pmtiles").exists():
            build_pack(folder / "packs")
        path = folder / "node.toml"
        path.write_text(config)
        command = ["setpriv", "--pdeathsig", "TERM", "--", str(BIN / "twistd"), "--pidfile=", "-n", plugin]
        self._process = subprocess.Popen(
            [*command, "--config", str(path)],
            cwd=ROOT,
            env={**os.environ, "RON_HOME": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Node:
        deadline = time.monotonic() + 150
        while not (self.home / "node.json").exists():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.__exit__()
                raise RuntimeError("the node did not come up")
            time.sleep(0.1)
        self.facts: dict[str, Any] = json.loads((self.home / "node.json").read_text())
        self.cap = (self.home / "admin.cap").read_text().strip()
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()
        self._process.wait(60)


def memory_mib(pid: int) -> dict[str, float]:
    """RSS and PSS of a process."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if ":" in line[:20]
    )
    return {f"{kind.lower()}_mib": round(int(fields[kind].split()[0]) / 1024, 1) for kind in ("Rss", "Pss")}
