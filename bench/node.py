"""A Macronode under tile load: how soon `/healthz` and `/metrics` answer, and what a second worker is worth.

Beside it, in the same run: nginx with one and with two workers, the tile as a file, and its own bare health answer
under the same load; and what writing the metrics of seven processes costs, beside the client library's own writer for
the same numbers. Needs nginx, wrk and tor. With two cores the load itself takes one, so no server can double here.
"""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import generate_latest

from bench import harness
from bench.harness import Node, free_port, percentile, scratch, wrk
from bench.tiles import TILE, nginx
from ron.kernel import Metrics
from ron.kernel.metrics import render_merged

CONNECTIONS, SECONDS, ROUNDS = 16, 6, 3
ASK_EVERY_S = 0.02


def main() -> None:
    """Measure, and save."""
    tile = "{}/{}/{}.png".format(*TILE)
    with scratch() as folder:
        harness.build_pack(folder)
        micronode = _ours(folder / "micronode", "micronode", 1, tile)
        ours = {workers: _ours(folder / f"node{workers}", "macronode", workers, tile) for workers in (1, 2)}
        peer = {workers: _peer(folder, workers, tile) for workers in (1, 2)}
    result: dict[str, Any] = {
        "setup": {"tile": tile, "connections": CONNECTIONS, "seconds": SECONDS, "cores": len(os.sched_getaffinity(0))},
        "micronode": micronode,
        "macronode": ours,
        "nginx": peer,
        "ratios": {
            "two workers of one, macronode": round(ours[2]["tiles"]["rps"] / ours[1]["tiles"]["rps"], 2),
            "two workers of one, nginx": round(peer[2]["tiles"]["rps"] / peer[1]["tiles"]["rps"], 2),
        },
        "metrics of seven processes": _writing(),
        "targets_ms": {"healthz p99": 15, "metrics p99": 25},
    }
    harness.save("node", result)
    rows = [
        [f"{name}, {workers} worker{'s' * (workers > 1)}", f"{figures['tiles']['rps']:.0f}"]
        + [figures.get(what, {}).get("p99", "—") for what in ("healthz", "metrics")]
        for name, both in (("micronode", {1: micronode}), ("macronode", ours), ("nginx", peer))
        for workers, figures in both.items()
    ]
    columns = ["under tile load", "tiles/s", "healthz p99 ms", "metrics p99 ms"]
    harness.show("gateways", columns, rows)


def _ours(home: Path, profile: str, workers: int, tile: str) -> dict[str, Any]:
    config = (
        f'[node]\nprofile = "{profile}"\n[gateway]\nbind = "127.0.0.1:0"\nworkers = {workers}\n'
        '[mailbox]\nlisten = "127.0.0.1:0"\n[limits]\nrequests_per_second_per_peer = 1000000\n'
    )
    with Node(home, config) as node:
        url = node.facts["gateway_url"]
        bearer = {"Authorization": f"Bearer {node.cap}"}
        return _measure(f"{url}/tiles/{tile}", {"healthz": (url, "/healthz", {}), "metrics": (url, "/metrics", bearer)})


def _writing() -> dict[str, float]:
    """Microseconds of CPU for one scrape: as one text, and by the library, which adds nothing up, text by text."""
    processes = {f"p{number}": Metrics() for number in range(7)}
    for number, metrics in enumerate(processes.values()):
        for route in range(3 * number):
            metrics.http_requests.labels(f"/{route}", "GET", "200").inc()
            metrics.request_latency.labels(f"/{route}", "GET").observe(0.001)
    exports = {name: metrics.export() for name, metrics in processes.items()}
    return {
        "merged, us": _cpu_us(lambda: render_merged(exports)),
        "the library, us": _cpu_us(lambda: [generate_latest(metrics.registry) for metrics in processes.values()]),
        "reading the numbers, us": _cpu_us(lambda: [metrics.export() for metrics in processes.values()]),
    }


def _cpu_us(work: Callable[[], object], times: int = 50) -> float:
    """The best of five runs, after one that is not counted."""
    work()
    runs = []
    for _ in range(5):
        started = time.process_time()
        for _ in range(times):
            work()
        runs.append((time.process_time() - started) / times * 1e6)
    return round(min(runs))


def _peer(folder: Path, workers: int, tile: str) -> dict[str, Any]:
    port = free_port()
    with nginx(folder, tile, port, workers=workers, cpu="0,1") as path:
        url = f"http://127.0.0.1:{port}"
        return _measure(url + path, {"healthz": (url, "/healthz", {})})


def _measure(tile_url: str, asks: dict[str, tuple[str, str, dict[str, str]]]) -> dict[str, Any]:
    """The best round of tiles, and latencies of what is asked meanwhile, over all rounds."""
    wrk(tile_url, 1, connections=CONNECTIONS, cpu=None)
    best = max(
        (wrk(tile_url, SECONDS, connections=CONNECTIONS, cpu=None) for _ in range(ROUNDS)), key=lambda r: r["rps"]
    )
    found: dict[str, Any] = {"tiles": best}
    for name, (url, path, headers) in asks.items():
        times: list[float] = []
        over = threading.Event()
        asking = threading.Thread(target=_ask, args=(url, path, headers, times, over))
        asking.start()
        wrk(tile_url, SECONDS, connections=CONNECTIONS, cpu=None)
        over.set()
        asking.join()
        found[name] = {**harness.spread(times, 2), "p99": round(percentile(times, 99), 2)}
    return found


def _ask(url: str, path: str, headers: dict[str, str], times: list[float], over: threading.Event) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    _ms: Callable[[float], float] = lambda started: (time.perf_counter() - started) * 1000  # noqa: E731
    while not over.is_set():
        started = time.perf_counter()
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status}")
        times.append(_ms(started))
        time.sleep(ASK_EVERY_S)
    connection.close()
