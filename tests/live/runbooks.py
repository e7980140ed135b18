"""The runbooks of docs/operations.rst as an operator follows them: the commands that stand there, run as they stand.

In: a running node and a runbook's title. Out: what each command said; a rehearsal that left one out fails.
"""

from __future__ import annotations

import contextlib
import http.client as http_client
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twisted.trial.unittest import SynchronousTestCase

from tests.live.load import PAYLOAD_B64
from tests.live.support import BIN, MACRONODE, NO_TOR, ROOT, Daemon, Reply, build_pack, http, new_node, until

OPERATIONS = ROOT / "docs" / "operations.rst"
# A burn and its end within seconds; at other times a machine that is busy with tests is no incident.
LATENCY = "latency_ms = 10000"
SLO = f"[slo]\nshort_window_s = 2\nlong_window_s = 2\nhold_s = 2\n{LATENCY}\n"
TLS = '[gateway.tls]\nbind = "127.0.0.1:0"\ncertificate = "tls/alpha.pem"\nkey = "tls/alpha.key"\n'
_nodes: dict[str, Daemon] = {}


def commands_of(title: str) -> list[str]:
    """The lines after a `$` in the section of docs/operations.rst called `title`."""
    lines = OPERATIONS.read_text(encoding="utf-8").splitlines()
    first = next(n for n, line in enumerate(lines) if line == title and lines[n + 1] == "~" * len(title)) + 2
    body = []
    for line, underline in zip(lines[first:], [*lines[first + 1 :], ""], strict=True):
        if underline and set(underline) in ({"~"}, {"-"}) and len(underline) == len(line):
            break
        body.append(line.strip())
    return [line[2:] for line in body if line.startswith("$ ")]


class Operator:
    """Follows the runbook called `title` on `node`, in an empty folder of its own."""

    def __init__(self, node: Daemon, title: str) -> None:
        self.node = node
        self.left = commands_of(title)
        self.folder = Path(tempfile.mkdtemp(prefix="operator-", dir=node.home))

    def does(self, part: str, *, expect: int = 0) -> str:
        """Run the one command with `part` in it; what it printed. It must end with the exit code `expect`."""
        (command,) = [one for one in self.left if part in one]
        done = self._run(command)
        if done.returncode != expect:
            raise AssertionError(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        self.left.remove(command)
        return done.stdout

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        facts = self.node.facts()
        variables = {
            "NODE": facts["gateway_url"],
            "MAILBOX": facts["mailbox_url"],
            "CONFIG": str(self.node.config),
            "CAP": f"Authorization: Bearer {self.node.admin_cap()}",
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=self.folder,
            env={**self.node.environment(), **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


class Face:
    """What a node shows to whoever calls it."""

    def __init__(self, node: Daemon) -> None:
        self.node = node
        self.gateway: str = node.facts()["gateway_url"]
        self.mailbox: str = node.facts()["mailbox_url"]
        self.cap = node.admin_cap()

    def ready(self) -> dict[str, Any]:
        """The body of `/readyz`."""
        return dict(http("GET", f"{self.gateway}/readyz").json())

    def well(self) -> bool:
        """Ready, and nothing degraded."""
        body = self.ready()
        return bool(body["ready"] and not body["degraded"])

    def status(self) -> dict[str, Any]:
        """The body of `/v1/status`."""
        return dict(http("GET", f"{self.gateway}/v1/status", cap=self.cap).json())

    def services(self) -> dict[str, dict[str, Any]]:
        """Every unit by its name."""
        return {unit["name"]: unit for unit in http("GET", f"{self.gateway}/v1/services", cap=self.cap).json()}

    def metric(self, name: str, labels: str = "") -> float:
        """The sum of a metric's lines that have `labels` in them; 0 without any."""
        text = http("GET", f"{self.gateway}/metrics", cap=self.cap).body.decode()
        lines = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")) and labels in line]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def tile(self, path: str = "/tiles/0/0/0.png") -> int:
        """The status of a tile."""
        return http("GET", self.gateway + path).status

    def send(self, topic: str, *, cap: str | None = None, key: str | None = None) -> Reply:
        """A message for `topic`."""
        body = {"topic": topic, "payload_b64": PAYLOAD_B64, **({"idempotency_key": key} if key else {})}
        return http("POST", f"{self.mailbox}/v1/send", cap=cap or self.cap, body=body)

    def recv(self, topic: str, count: int = 1) -> Reply:
        """Up to `count` messages of `topic`, leased for a minute."""
        body = {"topic": topic, "max": count, "visibility_timeout_s": 60}
        return http("POST", f"{self.mailbox}/v1/recv", cap=self.cap, body=body)

    def ack(self, message: dict[str, Any]) -> Reply:
        """Acknowledge what `recv` gave."""
        path = f"{self.mailbox}/v1/ack/{message['msg_id']}"
        return http("POST", path, cap=self.cap, body={"receipt": message["receipt"]})

    def with_config(self, more: str) -> contextlib.AbstractContextManager[None]:
        """The node's config with `more` at its end, in force within."""
        return changed_config(self, self.node.config.read_text() + more)

    def log(self, process: str = "node") -> list[dict[str, Any]]:
        """The lines of a process's log."""
        path = self.node.home / "log" / f"{process}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


@contextlib.contextmanager
def changed_config(face: Face, text: str) -> Iterator[None]:
    """The node on the config `text` within; on the one it had, after it."""
    path, before = face.node.config, face.node.config.read_text()
    try:
        taken(face, lambda: path.write_text(text))
        yield
    finally:
        taken(face, lambda: path.write_text(before))


def taken(face: Face, change: Callable[[], object]) -> None:
    """Do `change` and wait until every process of the node runs on the next version of the config."""
    version = face.metric("config_version")
    change()
    until(lambda: face.metric("config_version") > version, 10, "the config being taken everywhere")


def call_from(address: str, url: str) -> Reply:
    """GET `url` as the peer `address` of 127.0.0.0/8."""
    parts = urlsplit(url)
    connection = http_client.HTTPConnection(str(parts.hostname), parts.port, timeout=10, source_address=(address, 0))
    with contextlib.closing(connection):
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


class Collector:
    """An OpenTelemetry collector that only counts how often it was called."""

    def __init__(self) -> None:
        self.calls = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                collector.calls += 1
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_words: object) -> None:
                """Nothing on the test's terminal."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"


COLLECTOR = Collector()


def micronode() -> Daemon:
    """A Micronode with a certificate for five days, traced under an incident only; running."""
    return _running("micronode", _new_micronode)


def macronode() -> Daemon:
    """A Macronode; running."""
    return _running("macronode", lambda: new_node(MACRONODE + SLO))


def _running(name: str, make: Callable[[], Daemon]) -> Daemon:
    """Started once, and ended when another is wanted: each has eight tors."""
    if name not in _nodes:
        while _nodes:
            _nodes.popitem()[1].destroy()
        node = make()
        build_pack(node.home, max_zoom=2)
        node.start()
        _nodes[name] = node
    return _nodes[name]


def _new_micronode() -> Daemon:
    tracing = f'[observability]\notel_endpoint = "{COLLECTOR.url}"\nsampling = 0.0\nincident_sampling = 1.0\n'
    node = new_node(SLO + TLS + tracing)
    for arguments in (
        ("ca", "init", "--name", "my nodes"),
        ("ca", "issue", "alpha", "--days", "5", "--out", str(node.home / "tls")),
    ):
        done = node.ronctl(*arguments)
        if done.returncode:
            raise AssertionError(done.stderr)
    return node


class Rehearsal(SynchronousTestCase):
    """What all rehearsals have."""

    skip = NO_TOR
    face: Face

    def begin(self, node: Daemon) -> None:
        """A node that is well."""
        self.node = node
        self.face = Face(node)
        self.is_well(10)

    def is_well(self, within_s: float) -> None:
        """Ready and nothing degraded before long; a certificate that ends soon does not count."""

        def well() -> bool:
            body = self.face.ready()
            return bool(body["ready"]) and set(body["degraded"]) <= {"tls.gateway"}

        try:
            until(well, within_s, "readiness")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.face.ready()}") from None

    def says_when(self, reply: Reply, status: int) -> None:
        """Refused with `status`, and told to come back in 1–5 s."""
        self.assertEqual(reply.status, status, reply.body)
        self.assertIn(int(reply.headers["retry-after"]), range(1, 6))
