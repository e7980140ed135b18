"""Tile hits: our gateway and edge, nginx serving the same tile as a file, and tileserver-gl-light on the same pack.

Server on one core, wrk on the other, 16 keep-alive connections. Needs nginx, wrk and npm (`make bench` installs them).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bench import harness
from bench.harness import BIN, CLIENT_CPU, ROOT, free_port, running, scratch

TILE = (3, 4, 2)
SECONDS, ROUNDS, CONNECTIONS = 5, 3, 16
PEER = "tileserver-gl-light@5.6.0"
_LUA = """
done = function(summary, latency, requests)
  io.write(string.format("RPS %.1f P50 %.3f P95 %.3f P99 %.3f ERR %d\\n", summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout))
end
"""


def main() -> None:
    """Measure, interleaved round by round, and save."""
    z, x, y = TILE
    with scratch() as folder:
        harness.build_pack(folder)
        script = folder / "report.lua"
        script.write_text(_LUA)
        servers = _servers(folder, f"{z}/{x}/{y}.png")
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        sizes = {}
        for _ in range(ROUNDS):
            for name, serve in servers.items():
                port = free_port()
                with serve(port) as path:
                    url = f"http://127.0.0.1:{port}{path}"
                    sizes[name] = _first_size(url)
                    _wrk(url, script, 1)
                    runs[name].append(_wrk(url, script, SECONDS))
    best = {name: max(rounds, key=lambda r: r["rps"]) for name, rounds in runs.items()}
    ours = best["rustyonions"]
    ratios = {
        f"of_{name}": round(ours["rps"] / figure["rps"], 3) for name, figure in best.items() if name != "rustyonions"
    }
    setup = {"tile": "/".join(map(str, TILE)), "bytes": sizes, "connections": CONNECTIONS, "seconds": SECONDS}
    harness.save("tiles", {"setup": setup, "best": best, "rounds": runs, "ratios": ratios})
    rows = [[n, f"{b['rps']:.0f}", b["p50_ms"], b["p95_ms"], b["p99_ms"], sizes[n]] for n, b in best.items()]
    harness.show("tile hits, one server core", ["server", "req/s", "p50 ms", "p95 ms", "p99 ms", "bytes"], rows)


def _servers(folder: Path, tile: str) -> dict[str, Callable[[int], AbstractContextManager[str]]]:
    def ours(port: int) -> AbstractContextManager[str]:
        return _Serving([BIN / "python", "-m", "bench.serve", "tiles", str(port), folder], port, f"/tiles/{tile}")

    servers = {"rustyonions": ours, "nginx": lambda port: _nginx(folder, tile, port)}
    peer = _install_peer(folder)
    if peer is not None:
        servers["tileserver-gl-light"] = lambda port: _Serving(
            ["node", peer, "--config", folder / "peer.json", "--port", str(port), "--bind", "127.0.0.1", "--silent"],
            port,
            f"/data/world/{tile}",
            cwd=folder,
        )
    return servers


class _Serving:
    """A server as a context manager that gives the path to ask for."""

    def __init__(self, command: list[str | Path], port: int, path: str, cwd: Path = ROOT) -> None:
        self._running = running(command, port, cwd=cwd)
        self._path = path

    def __enter__(self) -> str:
        self._running.__enter__()
        return self._path

    def __exit__(self, *error: Any) -> None:
        self._running.__exit__(*error)


def _nginx(folder: Path, tile: str, port: int) -> _Serving:
    """nginx with one worker and the tile as a file, ETag on, logs off."""
    root = folder / "nginx"
    target = root / "www" / "tiles" / tile
    if not target.exists():
        target.parent.mkdir(parents=True)
        from ron.proto.tiles import TileAddress
        from ron.services.edge.pack import Pack

        target.write_bytes(Pack(folder / "world.pmtiles").read(TileAddress(*TILE, "png")) or b"")
    root.chmod(0o755)
    folder.chmod(0o755)
    config = root / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {root}/pid; error_log /dev/null; events {{ worker_connections 1024; }}\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; open_file_cache max=1000; keepalive_requests 10000000;\n"
        f"  types {{ image/png png; }} server {{ listen 127.0.0.1:{port}; root {root}/www; etag on; }} }}\n"
    )
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    return _Serving([nginx, "-p", root, "-c", config], port, f"/tiles/{tile}")


def _install_peer(folder: Path) -> Path | None:
    """tileserver-gl-light from npm in a throwaway folder; None (and said so) when it cannot be had."""
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder / "peer"), PEER],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    package = folder / "peer" / "node_modules" / "tileserver-gl-light"
    if done.returncode != 0 or not package.is_dir():
        print(f"   {PEER} could not be installed: {done.stderr.strip()[-200:]}")
        return None
    paths = {"root": str(folder), "pmtiles": ".", "mbtiles": ".", "fonts": "fonts", "styles": "styles"}
    for name in ("fonts", "styles"):
        (folder / name).mkdir(exist_ok=True)
    config = {"options": {"paths": paths}, "data": {"world": {"pmtiles": "world.pmtiles"}}}
    (folder / "peer.json").write_text(json.dumps(config))
    return package / "src" / "main.js"


def _first_size(url: str) -> int:
    """The tile's size, once the server gives it: one of them listens before it has loaded its pack."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return len(urllib.request.urlopen(url, timeout=10).read())
        except urllib.error.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _wrk(url: str, script: Path, seconds: int) -> dict[str, float]:
    command = ["taskset", "-c", CLIENT_CPU, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"RPS ([\d.]+) P50 ([\d.]+) P95 ([\d.]+) P99 ([\d.]+) ERR (\d+)", text)
    if found is None or int(found[5]):
        raise RuntimeError(f"wrk against {url}: {text}")
    rps, p50, p95, p99 = (float(value) for value in found.groups()[:4])
    return {"rps": rps, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}
