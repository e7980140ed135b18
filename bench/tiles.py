"""Tile hits: our gateway and edge, nginx serving the same tile as a file, and tileserver-gl-light on the same pack.

Server on one core, wrk on the other, 16 keep-alive connections. Needs nginx, wrk and npm (`make bench` installs them).
"""

from __future__ import annotations

import json
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
from bench.harness import BIN, ROOT, SERVER_CPU, free_port, running, scratch, wrk

TILE = (3, 4, 2)
SECONDS, ROUNDS, CONNECTIONS = 5, 3, 16
PEER = "tileserver-gl-light@5.6.0"


def main() -> None:
    """Measure, interleaved round by round, and save."""
    z, x, y = TILE
    with scratch() as folder:
        harness.build_pack(folder)
        servers = _servers(folder, f"{z}/{x}/{y}.png")
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        sizes = {}
        for _ in range(ROUNDS):
            for name, serve in servers.items():
                port = free_port()
                with serve(port) as path:
                    url = f"http://127.0.0.1:{port}{path}"
                    sizes[name] = _first_size(url)
                    wrk(url, 1, connections=CONNECTIONS)
                    runs[name].append(wrk(url, SECONDS, connections=CONNECTIONS))
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

    servers = {"rustyonions": ours, "nginx": lambda port: nginx(folder, tile, port)}
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

    def __init__(
        self, command: list[str | Path], port: int, path: str, cwd: Path = ROOT, cpu: str = SERVER_CPU
    ) -> None:
        self._running = running(command, port, cwd=cwd, cpu=cpu)
        self._path = path

    def __enter__(self) -> str:
        self._running.__enter__()
        return self._path

    def __exit__(self, *error: Any) -> None:
        self._running.__exit__(*error)


def nginx(folder: Path, tile: str, port: int, *, workers: int = 1, cpu: str = SERVER_CPU) -> _Serving:
    """nginx with `workers` and the tile as a file, ETag on, logs off."""
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
        f"daemon off; worker_processes {workers}; pid {root}/pid; error_log /dev/null;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; open_file_cache max=1000; keepalive_requests 10000000;\n"
        f"  types {{ image/png png; }} server {{ listen 127.0.0.1:{port}; root {root}/www; etag on;\n"
        f"    location = /healthz {{ return 200 'ok'; }} }} }}\n"
    )
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    return _Serving([program, "-p", root, "-c", config], port, f"/tiles/{tile}", cpu=cpu)


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
