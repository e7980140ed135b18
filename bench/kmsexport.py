"""How soon a signature's audit record is at the audit service (GOVERNANCE §3: within a second), under load.

In: how long, how many connections. Out: percentiles of the time from an answer to its record's arrival at a receiver of
our own on loopback. `python -m bench.kmsexport [seconds] [connections]`. A call is told by its X-Corr-ID.
"""

from __future__ import annotations

import base64
import http.client
import json
import sys
import tempfile
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.harness import percentile
from bench.kmsnode import HYBRID_OR, UNLIMITED, KmsNode, path, sign_body


class Receiver(ThreadingHTTPServer):
    """Takes every batch, and remembers when each record came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.came_s: dict[str, float] = {}
        self.records = 0

    @property
    def url(self) -> str:
        """Where batches are sent."""
        return f"http://127.0.0.1:{self.server_address[1]}/records"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        now_s = time.monotonic()
        batch, server = json.loads(body), self.server
        assert isinstance(server, Receiver)
        for leaf in batch["entries"]:
            found = json.loads(base64.b64decode(leaf)).get("corr_id", "")
            server.came_s.setdefault(found, now_s)
            server.records += 1
        self.send_response(204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_args: Any) -> None:
        """Not a line for each."""


def _receive(pipe: Connection) -> None:
    """In a process of its own, which has no part in the load: says where it is, and when told to, what came when."""
    receiver = Receiver()
    pipe.send(receiver.url)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    pipe.recv()
    pipe.send((receiver.came_s, receiver.records))


def _signs(node: KmsNode, body: bytes, until_s: float, answered_s: dict[str, float]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=30)
    while time.monotonic() < until_s:
        corr_id = str(uuid.uuid4())
        connection.request("POST", path("sign"), body, {**node.headers, "X-Corr-ID": corr_id})
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200:
            answered_s[corr_id] = time.monotonic()
    connection.close()


def measure(folder: Path, seconds: float = 10.0, connections: int = 16) -> dict[str, Any]:
    """Signatures as fast as they are answered, one after the other on each connection."""
    pipe, theirs = Pipe()
    process = Process(target=_receive, args=(theirs,), daemon=True)
    process.start()
    answered_s: dict[str, float] = {}
    more = f'{UNLIMITED}{HYBRID_OR}[audit]\nexport_url = "{pipe.recv()}"\n'
    with KmsNode(folder, more) as node:
        body = json.dumps(sign_body(node.key("core", "ed25519"), hybrid=False)).encode()
        until_s = time.monotonic() + seconds
        threads = [threading.Thread(target=_signs, args=(node, body, until_s, answered_s)) for _ in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(2.0)
    pipe.send(None)
    came_s, records = pipe.recv()
    process.join()
    lags_ms = sorted((came_s[corr_id] - at_s) * 1000 for corr_id, at_s in answered_s.items() if corr_id in came_s)
    return {
        "signatures_per_s": round(len(answered_s) / seconds),
        "records": records,
        "never_came": len(answered_s) - len(lags_ms),
        "p50_ms": round(percentile(lags_ms, 50), 1),
        "p95_ms": round(percentile(lags_ms, 95), 1),
        "p99_ms": round(percentile(lags_ms, 99), 1),
        "max_ms": round(lags_ms[-1], 1),
        "over_1_s": sum(lag > 1000 for lag in lags_ms),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ron-export-") as home:
        print(json.dumps(measure(Path(home) / "kms", *map(float, sys.argv[1:2]), *map(int, sys.argv[2:3])), indent=1))
