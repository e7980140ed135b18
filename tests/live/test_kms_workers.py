"""`twistd -n ron-kms` with workers, as operators start it; workers and owner killed with -9 under load.

Whatever a client was answered has its record in the log, and the log verifies. Needs nothing but the venv.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any
from unittest import TestCase
from urllib.parse import quote, urlsplit

from tests.live import test_kms
from tests.live.support import BIN, ROOT, Daemon, alive, until
from tests.live.support import http as fetch

WORKERS = 2
CONFIG = f"workers = {WORKERS}\n{test_kms.CONFIG}"
LOAD_S = 1.5


def children(pid: int) -> list[int]:
    """The living children of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


class Load:
    """Threads that sign over connections that are kept alive, until they are told to stop. answered: the payloads."""

    def __init__(self, url: str, cap: str, kid: str, threads: int = 6) -> None:
        self.answered: list[str] = []
        self.cut_off = 0
        self._address = urlsplit(url)
        self._headers = {"Authorization": f"Bearer {cap}", "Content-Type": "application/json"}
        self._kid = kid
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        while not self._over.is_set():
            connection = http.client.HTTPConnection(str(self._address.hostname), self._address.port, timeout=20)
            try:
                while not self._over.is_set():
                    self._sign(connection)
            except (OSError, http.client.HTTPException):
                self.cut_off += 1
                time.sleep(0.05)
            finally:
                connection.close()

    def _sign(self, connection: http.client.HTTPConnection) -> None:
        payload = secrets.token_hex(32)
        body = {"kid_or_set": {"kid": self._kid}, "payload_b3": payload, "policy": {"produce_hybrid": False}}
        connection.request("POST", "/v1/kms/sign", json.dumps(body), self._headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status == 200 and json.loads(text)["sigs"]:
            self.answered.append(payload)


class Case(TestCase):
    def setUp(self) -> None:
        self.daemon = Daemon("ron-kms", CONFIG + '[pq]\nverify_mode = "or"\n', "kms.json")
        self.addCleanup(self.daemon.destroy)
        self.daemon.start()

    def ask(self, method: str, path: str, body: Any = None, *, cap: str | None = "", prefix: str = "/v1/kms") -> Any:
        token = self.daemon.admin_cap() if cap == "" else cap
        return fetch(method, f"{self.daemon.facts()['kms_url']}{prefix}{path}", cap=token, body=body)

    def key(self) -> str:
        made = self.ask("POST", "/keys", {"tenant": "core", "purpose": "audit", "alg": "ed25519"})
        self.assertEqual(made.status, 200, made.body)
        return str(made.json()["kid"])

    def load(self, kid: str) -> Load:
        return Load(self.daemon.facts()["kms_url"], self.daemon.admin_cap(), kid)

    def workers(self) -> list[int]:
        return children(self.daemon.pid)

    def degraded(self) -> list[str]:
        ready = fetch("GET", f"{self.daemon.facts()['admin_url']}/readyz")
        self.assertEqual(ready.status, 200, ready.body)
        return list(ready.json()["degraded"])

    def whole(self) -> None:
        until(lambda: "workers" not in self.degraded(), 60, "all workers are up")

    def logged(self) -> set[str]:
        """What was signed, as the log on the disk has it; which is verified first, up to its last record."""
        self.assertEqual(self.daemon.stop(), 0)
        folder = self.daemon.home / "kms-audit"
        verified = self.daemon.ronctl("audit", "verify", str(folder), "--key", str(folder / "log.vkeys"))
        self.assertEqual(verified.returncode, 0, verified.stdout + verified.stderr)
        self.daemon.start()
        found: set[str] = set()
        start, size = 0, 1
        while start < size:
            page = self.ask("GET", f"/audit/entries?start={start}&count=1000").json()
            for leaf in page["entries"]:
                entry = json.loads(test_kms.base64.b64decode(leaf))
                if entry["op"] == "sign" and entry["result"] == "ok":
                    found.add(entry["input_b3"])
            start, size = start + len(page["entries"]), page["size"]
        return found


class Life(Case):
    def test_what_workers_do_not_answer_the_owner_does(self) -> None:
        kid = self.key()
        bare = quote(kid.partition("#")[0], safe="")
        self.assertEqual(len(self.workers()), WORKERS)
        for method, path, body, status in (
            ("GET", f"/keys/{bare}", None, 200),
            ("GET", "/keys?tenant=core", None, 200),
            ("POST", f"/keys/{bare}/rotate", None, 200),
            ("GET", "/attest", None, 200),
            ("GET", "/audit/entries?start=0&count=5", None, 200),
            ("GET", "/audit/entries?start=0&count=x", None, 400),
            ("DELETE", f"/keys/{bare}", {"proposal": "none"}, 403),
            ("GET", "/nothing", None, 404),
            ("PUT", "/sign", {}, 405),
            ("POST", "/sign", b"{", 400),
            ("POST", "/sign", {"kid_or_set": kid, "payload_b3": "7f"}, 400),
        ):
            found = self.ask(method, path, body)
            self.assertEqual(found.status, status, (method, path, found.body))
            if status >= 400:
                self.assertIn("code", found.json()["error"])
        self.assertEqual(self.ask("GET", f"/keys/{bare}", cap=None).status, 401)
        self.assertEqual(self.ask("POST", "/sign", {"kid_or_set": kid, "payload_b3": "7f" * 32}, cap=None).status, 401)
        for path in ("/readyz", "/healthz", "/version", "/openapi.yaml"):
            self.assertEqual(self.ask("GET", path, cap=None, prefix="").status, 200, path)
        # what operators may do is not there
        self.assertEqual(self.ask("GET", "/status", prefix="/v1/admin").status, 404)

    def test_metrics_are_of_all_of_them_and_the_end_is_clean(self) -> None:
        kid, count = self.key(), 40
        for _ in range(count):
            body = {"kid_or_set": kid, "payload_b3": "7f" * 32, "policy": {"produce_hybrid": False}}
            self.assertEqual(self.ask("POST", "/sign", body).status, 200)
        metrics = fetch("GET", f"{self.daemon.facts()['admin_url']}/metrics", cap=self.daemon.admin_cap())
        lines = [line for line in metrics.body.decode().splitlines() if line.startswith("kms_ops_total{")]
        signed = [line for line in lines if 'op="sign"' in line and 'alg="ed25519"' in line and 'result="ok"' in line]
        self.assertEqual([float(line.split()[-1]) for line in signed], [float(count)])
        before = self.workers()
        self.assertEqual(self.daemon.stop(), 0)
        self.assertEqual([pid for pid in before if alive(pid)], [])
        for log in (self.daemon.home / "log").glob("kms-worker.*.jsonl"):
            self.assertNotIn("shutdown_failed", log.read_text())
            self.assertNotIn(kid.split("/")[3][:36], log.read_text())

    def test_whoever_does_not_follow_is_killed_and_nobody_waits_long(self) -> None:
        kid = self.key()
        stuck = self.workers()[0]
        os.kill(stuck, signal.SIGSTOP)
        began_s = time.monotonic()
        # over the operators' socket, for a worker that stands still may have our connection
        turned = self.daemon.ronctl("kms", "key", "rotate", kid.partition("#")[0])
        self.assertEqual(turned.returncode, 0, turned.stderr)
        self.assertFalse(alive(stuck))
        self.assertLess(time.monotonic() - began_s, 30)
        self.whole()
        self.assertEqual(len(self.workers()), WORKERS)


class Killed(Case):
    def test_workers(self) -> None:
        kid = self.key()
        with self.load(kid) as load:
            for _ in range(3):
                time.sleep(LOAD_S)
                os.kill(self.workers()[0], signal.SIGKILL)
                until(lambda: len(self.workers()) == WORKERS, 30, "another worker")
            self.whole()
            time.sleep(LOAD_S)
        self.assertGreater(len(load.answered), 100)
        self.assertGreater(load.cut_off, 0)
        self.assertEqual(set(load.answered) - self.logged(), set())

    def test_all_workers_at_once(self) -> None:
        """The owner answers by itself until there are others."""
        kid = self.key()
        with self.load(kid) as load:
            time.sleep(LOAD_S)
            for pid in self.workers():
                os.kill(pid, signal.SIGKILL)
            answer = self.ask("POST", "/sign", {"kid_or_set": kid, "payload_b3": "7f" * 32})
            self.assertEqual(answer.status, 200, answer.body)
            self.whole()
            time.sleep(LOAD_S)
        self.assertEqual(set(load.answered) - self.logged(), set())

    def test_the_owner(self) -> None:
        kid = self.key()
        answered: list[str] = []
        for _ in range(2):
            with self.load(kid) as load:
                time.sleep(LOAD_S)
                workers = self.workers()
                self.daemon.stop(signal.SIGKILL)
                until(lambda gone=workers: not any(map(alive, gone)), 5, "the end of the workers")
            self.assertGreater(len(load.answered), 50)
            answered += load.answered
            (self.daemon.home / "kms.json").unlink()
            self.daemon.start()
        self.assertEqual(set(answered) - self.logged(), set())


class AsWithoutWorkers(test_kms.Life):
    """Everything by the operator's tools."""

    def setUp(self) -> None:
        self.daemon = Daemon("ron-kms", CONFIG, "kms.json")
        self.addCleanup(self.daemon.destroy)
        self.daemon.start()


class KilledAsWithoutWorkers(test_kms.Killed):
    """Acts with op_ids, made through workers, survive the owner."""

    def setUp(self) -> None:
        self.acts, self.signed = [], []
        self.daemon = Daemon("ron-kms", CONFIG, "kms.json")
        self.addCleanup(self.daemon.destroy)
        self.daemon.start()


class Refused(TestCase):
    def test_without_sealed_files(self) -> None:
        daemon = Daemon("ron-kms", 'workers = 2\n[service]\nbackend = "inmem"\n', "kms.json")
        self.addCleanup(daemon.destroy)
        daemon.start(wait=False)
        self.assertEqual(daemon.wait(), 3)
        self.assertIn("workers", daemon.output.read_text())

    def test_a_worker_that_nobody_started(self) -> None:
        command = [str(BIN / "twistd"), "--pidfile=", "-n", "ron-kms-worker"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(ended.returncode, 3, ended.stderr)
        self.assertIn("started by ron-kms", ended.stderr)
