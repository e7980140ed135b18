"""Many TLS 1.3 connections held open at once, ours beside nginx: memory of each, and how fast a request among them is.

Server on one core, one client process on the other. Every connection is opened, left alone, then asked for `/healthz`
once in random order. Needs nginx (`make bench` installs it). `python -m bench.tls 2000` holds fewer.
"""

from __future__ import annotations

import gc
import json
import random
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bench import harness
from bench.harness import BIN, CLIENT_CPU, ROOT, free_port, running, scratch

CONNECTIONS, ROUNDS = 10_000, 2
# handshakes under way at a time, and addresses the client calls from: no peer holds more than an eighth
OPENERS, SOURCES = 8, 8
SETTLE_S = 3.0
_SPARE_DESCRIPTORS = 200
_REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
_BODY = b'{"status":"ok"}'


def main(connections: int = CONNECTIONS) -> None:
    """Measure, interleaved round by round, and save."""
    most = _raise_descriptor_limit()
    if connections > most - _SPARE_DESCRIPTORS:
        print(f"   this machine allows {most} open files: fewer connections than {connections}")
        connections = most - _SPARE_DESCRIPTORS
    with scratch() as folder:
        _certificates(folder)
        servers: dict[str, Callable[[int], AbstractContextManager[Any]]] = {
            "rustyonions": lambda port: running([BIN / "python", "-m", "bench.tls", "serve", str(port), folder], port),
            "nginx": lambda port: running(_nginx(folder, port, connections), port),
        }
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for _ in range(ROUNDS):
            for name, serve in servers.items():
                port = free_port()
                with serve(port) as process:
                    runs[name].append(_measure(process.pid, port, folder, connections))
    best = {name: min(rounds, key=lambda r: r["p95_ms"]) for name, rounds in runs.items()}
    ours, theirs = best["rustyonions"], best["nginx"]
    figures = ("kib_per_connection", "kib_per_used_connection", "p95_ms")
    ratios = {f"{figure}, of nginx": round(ours[figure] / theirs[figure], 3) for figure in figures}
    setup = {
        "connections": connections,
        "rounds": ROUNDS,
        "tls": "1.3",
        "key": "ECDSA P-256",
        "request": "GET /healthz",
    }
    harness.save("tls", {"setup": setup, "best": best, "rounds": runs, "ratios": ratios})
    rows = [
        [n, b["kib_per_connection"], b["kib_per_used_connection"], b["rss_mib"], b["p50_ms"], b["p95_ms"], b["p99_ms"]]
        for n, b in best.items()
    ]
    columns = ["server", "KiB each", "KiB, used", "RSS MiB", "p50 ms", "p95 ms", "p99 ms"]
    harness.show(f"{connections} TLS 1.3 connections held, one server core", columns, rows)


def _measure(pid: int, port: int, folder: Path, connections: int) -> dict[str, float]:
    """One server, from no connections to all of them used once."""
    command = ["taskset", "-c", CLIENT_CPU, str(BIN / "python"), "-m", "bench.tls", "hold", str(port), str(folder)]
    with subprocess.Popen(
        [*command, str(connections)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        try:
            _answer(client)  # it has used the server a little: what is allocated once is there
            time.sleep(SETTLE_S)
            before = _rss_kib(pid)
            opened = _answer(client, "open")
            time.sleep(SETTLE_S)
            idle = _rss_kib(pid)
            asked = _answer(client, "ask")
            used = _rss_kib(pid)
        finally:
            client.kill()
    return {
        "kib_per_connection": round((idle - before) / connections, 1),
        "kib_per_used_connection": round((used - before) / connections, 1),
        "rss_mib": round(used / 1024, 1),
        **opened,
        **asked,
    }


def _answer(client: subprocess.Popen[str], order: str | None = None) -> dict[str, float]:
    assert client.stdin is not None and client.stdout is not None
    if order is not None:
        client.stdin.write(order + "\n")
        client.stdin.flush()
    line = client.stdout.readline()
    if not line:
        raise RuntimeError("the client gave up: see its complaint above")
    return dict(json.loads(line))


def _rss_kib(pid: int) -> int:
    """Resident memory of a process and its children (nginx's worker)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(own.split()[1]) + sum(_rss_kib(int(child)) for child in children)


def _raise_descriptor_limit() -> int:
    """As many open files as allowed, for us and those we start. Returns how many that is."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _certificates(folder: Path) -> None:
    from ron.crypto import x509
    from ron.kernel.files import write_private

    ca = x509.init_ca("bench")
    node = x509.issue(ca, "bench", dns=["localhost"])
    write_private(folder / "ca.pem", x509.certificate_pem(ca.certificate))
    write_private(folder / "node.pem", x509.certificate_pem(node.certificate))
    write_private(folder / "node.key", x509.key_pem(node.key))


def _nginx(folder: Path, port: int, connections: int) -> list[str | Path]:
    """nginx with one worker, the same certificate, TLS 1.3 without resumption, logs off.

    It closes idle connections when less than a sixteenth of `worker_connections` is free, hence twice as many.
    """
    root = folder / "nginx"
    root.mkdir(exist_ok=True)
    config = root / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {root}/pid; error_log /dev/null;\n"
        f"events {{ worker_connections {2 * connections + _SPARE_DESCRIPTORS}; multi_accept on; }}\n"
        f"http {{ access_log off; keepalive_timeout 600s; client_header_timeout 600s; keepalive_requests 10000000;\n"
        f"  ssl_protocols TLSv1.3; ssl_session_cache off; ssl_session_tickets off;\n"
        f"  ssl_certificate {folder}/node.pem; ssl_certificate_key {folder}/node.key;\n"
        f"  server {{ listen 127.0.0.1:{port} ssl backlog=1024; default_type application/json;\n"
        f"    location = /healthz {{ return 200 '{_BODY.decode()}'; }} }} }}\n"
    )
    return [shutil.which("nginx") or "/usr/sbin/nginx", "-p", root, "-c", config]


def _serve(port: int, folder: Path) -> None:
    """Our site behind our TLS, until killed."""
    from twisted.internet import reactor

    from ron.auth import Authority, RootKeys
    from ron.kernel import HealthState, Metrics
    from ron.kernel.limits_config import LimitsConfig
    from ron.kernel.tls import ServerTls
    from ron.kernel.tls_listen import listen_tls
    from ron.proto.addresses import HostPort
    from ron.web import Edge, make_site
    from ron.web.health import OwnHealth, health_endpoints

    metrics = Metrics()
    authority = Authority(RootKeys.generate(), audience="ron-node", now=time.time)
    # connections are to be held, not to be cleared away after 15 s
    edge = Edge(authority=authority, metrics=metrics, reactor=reactor, limits=LimitsConfig(read_idle_ms=600_000))
    site = make_site(edge, health_endpoints(OwnHealth(HealthState(), metrics), name="bench"))
    tls = ServerTls(folder / "node.pem", folder / "node.key")
    listen_tls(reactor, HostPort("127.0.0.1", port), site, tls, metrics=metrics)
    gc.collect()
    gc.freeze()
    reactor.run()


def _hold(port: int, folder: Path, connections: int) -> None:
    """The client: a line on stdin is an order, a line on stdout its outcome."""
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3

    def connect(number: int) -> ssl.SSLSocket:
        source = (f"127.0.0.{2 + number % SOURCES}", 0)
        raw = socket.create_connection(("127.0.0.1", port), timeout=60, source_address=source)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(raw, server_hostname="localhost")

    for number in range(50):
        with connect(number) as connection:
            _ask(connection)
    _say({})
    sys.stdin.readline()
    started = time.perf_counter()
    with ThreadPoolExecutor(OPENERS) as pool:
        held = list(pool.map(connect, range(connections)))
    # the client's pace, not the servers': both are waiting for it
    _say({"opened_per_s": round(connections / (time.perf_counter() - started), 1)})
    sys.stdin.readline()
    random.shuffle(held)
    times = [_ask(connection) for connection in held]
    percents = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}
    _say({name: round(harness.percentile(times, percent), 3) for name, percent in percents.items()})
    sys.stdin.readline()


def _ask(connection: ssl.SSLSocket) -> float:
    """One request, in milliseconds. Raises when the answer is not the right one."""
    started = time.perf_counter()
    connection.sendall(_REQUEST)
    received = b""
    while not received.endswith(_BODY):
        chunk = connection.recv(4096)
        if not chunk:
            raise RuntimeError(f"closed after {received!r}")
        received += chunk
    assert received.startswith(b"HTTP/1.1 200"), received
    return (time.perf_counter() - started) * 1000


def _say(outcome: dict[str, float]) -> None:
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        _serve(int(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1:2] == ["hold"]:
        _hold(int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main(*(int(text) for text in sys.argv[1:]))
