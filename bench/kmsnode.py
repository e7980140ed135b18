"""A real `twistd -n ron-kms` on a core of its own: file backend, sealed with scrypt as configured, log on this disk.

In: lines of its config. Out: keys, the bodies of requests for them, what it uses of memory and processor.
KMS_WORKERS=N: with so many workers, and on all cores, which the load then shares.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from bench.harness import BIN, ROOT, SERVER_CPU, memory_mib

PAYLOAD_B3 = "7f" * 32
UNLIMITED = "[security]\nsign_rate_limit_rps = 10000000\n"
# With it a request may ask for the classical half alone.
HYBRID_OR = '[pq]\nverify_mode = "or"\n'
START_S = 90
WORKERS = int(os.environ.get("KMS_WORKERS", "0"))
ALL_CPUS = f"0-{(os.cpu_count() or 1) - 1}"
_PATH = "/v1/kms"
_TICKS = os.sysconf("SC_CLK_TCK")


class KmsNode:
    """more: lines of the config. cpu: where it runs, all its threads and workers; with workers all there are."""

    def __init__(
        self,
        home: Path,
        more: str = UNLIMITED + HYBRID_OR,
        *,
        cpu: str = SERVER_CPU,
        workers: int = WORKERS,
    ) -> None:
        cpu = ALL_CPUS if workers else cpu
        more = f"workers = {workers}\n{more}"
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        path = home / "kms.toml"
        path.write_text(
            f'bind_addr = "127.0.0.1:0"\nmetrics_addr = "127.0.0.1:0"\nread_timeout = "60s"\nmax_conns = 4096\n{more}'
        )
        command = ["setpriv", "--pdeathsig", "TERM", "--", "taskset", "-c", cpu, str(BIN / "twistd")]
        self._output = (home / "output.txt").open("wb")
        self._process = subprocess.Popen(
            [*command, "--pidfile=", "-n", "ron-kms", "--config", str(path)],
            cwd=ROOT,
            env={**os.environ, "RON_HOME": str(home)},
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> KmsNode:
        deadline_s = time.monotonic() + START_S
        while not (self.home / "kms.json").exists():
            if time.monotonic() > deadline_s or self._process.poll() is not None:
                self.__exit__()
                raise RuntimeError(f"ron-kms did not come up: {(self.home / 'output.txt').read_text()[-2000:]}")
            time.sleep(0.1)
        self.facts: dict[str, Any] = json.loads((self.home / "kms.json").read_text())
        self.port = int(urlsplit(self.facts["kms_url"]).port or 0)
        cap = (self.home / "admin.cap").read_text().strip()
        self.headers = {"Authorization": f"Bearer {cap}", "Content-Type": "application/json"}
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._output.close()

    @property
    def pid(self) -> int:
        """Of its owner, where it has workers."""
        return self._process.pid

    @property
    def pids(self) -> list[int]:
        """Of all processes of it."""
        found = [self.pid]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if int(_stat(int(entry.name))[1]) == self.pid:
                        found.append(int(entry.name))
        return found

    def url(self, call: str) -> str:
        """Of an operation."""
        return f"{self.facts['kms_url']}{_PATH}/{call}"

    def call(self, call: str, body: Any) -> dict[str, Any]:
        """One POST. Raises RuntimeError unless it is answered with 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", f"{_PATH}/{call}", json.dumps(body), self.headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{call}: {answer.status} {text!r}")
        return dict(json.loads(text))

    def key(self, tenant: str, alg: str, purpose: str = "bench") -> str:
        """A new key, without its version."""
        made = self.call("keys", {"tenant": tenant, "purpose": purpose, "alg": alg})
        return str(made["kid"]).partition("#")[0]

    def cpu_s(self) -> float:
        """Processor time so far, of all its threads and workers."""
        stats = map(_stat, self.pids)
        return sum(int(fields[11]) + int(fields[12]) for fields in stats) / _TICKS

    def rss_mib(self) -> float:
        """Just now; of all processes, with what they share counted for each."""
        return sum(memory_mib(pid)["rss_mib"] for pid in self.pids)


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


class MemoryWatch:
    """The most memory that a process had, looked at now and then while the block runs."""

    def __init__(self, node: KmsNode) -> None:
        self._node = node
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.most_mib = 0.0

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(1.0):
            self.most_mib = max(self.most_mib, self._node.rss_mib())


def sign_body(kid: str, *, hybrid: bool | None = None) -> dict[str, Any]:
    """hybrid: None leaves it to the key and the tenant's phase."""
    policy = {} if hybrid is None else {"policy": {"produce_hybrid": hybrid}}
    return {"kid_or_set": {"kid": kid}, "payload_b3": PAYLOAD_B3, **policy}


def verify_body(kid: str, signed: dict[str, Any], mode: str) -> dict[str, Any]:
    """Of what `sign` answered."""
    asked = {"kid_or_set": {"kid": kid}, "payload_b3": PAYLOAD_B3, "sigs": signed["sigs"]}
    return {**asked, "policy": {"mode": mode}}


def rotate_path(kid: str) -> str:
    """Of a key."""
    return f"{_PATH}/keys/{quote(kid, safe='')}/rotate"


def path(call: str) -> str:
    """Of an operation."""
    return f"{_PATH}/{call}"
