"""`twistd -n ron-kms` as operators start it, with sealed files; killed with -9 in the middle of its work.

Needs nothing but the venv.
"""

from __future__ import annotations

import base64
import json
import signal
import threading
import time
import uuid
from pathlib import Path
from typing import Any
from unittest import TestCase
from urllib.parse import quote

from nacl.signing import VerifyKey

from tests.live.support import Daemon, Reply, http

CONFIG = '[service]\nbackend = "file"\n[security]\nallow_unlocked = true\nsign_rate_limit_rps = 100000\n'
B3 = "7f" * 32
ROUNDS = 3
LOAD_S = 1.5


class Case(TestCase):
    def setUp(self) -> None:
        self.daemon = Daemon("ron-kms", CONFIG, "kms.json")
        self.addCleanup(self.daemon.destroy)
        self.daemon.start()

    def ask(self, method: str, path: str, body: Any = None) -> Reply:
        url = f"{self.daemon.facts()['kms_url']}/v1/kms{path}"
        return http(method, url, cap=self.daemon.admin_cap(), body=body)

    def done(self, method: str, path: str, body: Any = None) -> Any:
        reply = self.ask(method, path, body)
        self.assertEqual(reply.status, 200, reply.body)
        return reply.json()


class Life(Case):
    def test_from_start_to_end(self) -> None:
        """Everything by the operator's tools; a clean end; and it is all there at the next start."""
        made = json.loads(
            self.daemon.ronctl("kms", "key", "create", "--tenant", "core", "--purpose", "audit", "--json").stdout
        )
        payload = self.daemon.home / "payload"
        payload.write_bytes(b"hello world")
        signed = self.daemon.ronctl("kms", "sign", "--kid", made["kid"], str(payload), "--json")
        sigs = self.daemon.home / "sigs"
        sigs.write_text(signed.stdout)
        self.assertEqual(self.daemon.stop(), 0)
        self.daemon.start()
        found = self.daemon.ronctl("kms", "verify", str(payload), "--sigs", str(sigs), "--mode", "and")
        self.assertEqual((found.returncode, found.stdout[:5]), (0, "good:"), found.stderr)
        ready = http("GET", f"{self.daemon.facts()['admin_url']}/readyz")
        self.assertEqual((ready.status, ready.json()["snapshot"]["backend"]), (200, "file"))
        log = Path(self.daemon.home / "log" / "ron-kms.jsonl").read_text()
        for text in (made["kid"], made["kid"].split("/")[3][:36], self.daemon.admin_cap()):
            self.assertNotIn(text, log)


class Killed(Case):
    """`kill -9` while keys are made, rotated and used: what was answered is there, and in the log."""

    def setUp(self) -> None:
        super().setUp()
        self.acts: list[tuple[str, str, Any]] = []
        self.signed: list[Any] = []

    def load(self, stop: threading.Event) -> None:
        """Make a key, rotate it, sign with it, until the service is gone; what was answered is remembered."""
        while not stop.is_set():
            try:
                body = {"tenant": "core", "purpose": "audit", "alg": "hybrid", "op_id": str(uuid.uuid4())}
                made = self.ask("POST", "/keys", body)
                if made.status != 200:
                    continue
                self.acts.append(("/keys", body["op_id"], (body, made.json())))
                bare = made.json()["kid"].partition("#")[0]
                again = {"op_id": str(uuid.uuid4())}
                turned = self.ask("POST", f"/keys/{quote(bare, safe='')}/rotate", again)
                if turned.status == 200:
                    self.acts.append((f"/keys/{quote(bare, safe='')}/rotate", again["op_id"], (again, turned.json())))
                signed = self.ask("POST", "/sign", {"kid_or_set": bare, "payload_b3": B3})
                if signed.status == 200:
                    self.signed.append(signed.json())
            except (OSError, ValueError, AssertionError):
                return  # it was killed

    def test_nothing_answered_is_lost(self) -> None:
        for _ in range(ROUNDS):
            stop = threading.Event()
            threads = [threading.Thread(target=self.load, args=(stop,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(LOAD_S)
            self.daemon.stop(signal.SIGKILL)
            stop.set()
            for thread in threads:
                thread.join()
            (self.daemon.home / "kms.json").unlink()
            self.daemon.start()
            self.whole()
        self.assertGreater(len(self.acts), 10)

    def whole(self) -> None:
        ready = http("GET", f"{self.daemon.facts()['admin_url']}/readyz")
        self.assertEqual(ready.status, 200, ready.body)
        logged = self.logged()
        for path, op_id, (body, answer) in self.acts:
            self.assertIn(op_id, logged, "an act that was answered and is in no record")
            self.assertEqual(self.done("POST", path, body), answer)
        for signed in self.signed:
            shown = self.done("GET", f"/keys/{quote(signed['kid'], safe='')}")
            public = VerifyKey(base64.b64decode(shown["public"]["pubkey_b64"]))
            public.verify(bytes.fromhex(B3), base64.b64decode(signed["sigs"][0]["signature_b64"]))
            verify = {"payload_b3": B3, "sigs": signed["sigs"], "kid_or_set": signed["kid"], "policy": {"mode": "and"}}
            self.assertTrue(self.done("POST", "/verify", verify)["ok"])

    def logged(self) -> set[str]:
        """The op_ids of all records."""
        found: set[str] = set()
        start, size = 0, 1
        while start < size:
            page = self.done("GET", f"/audit/entries?start={start}&count=1000")
            found |= {json.loads(base64.b64decode(leaf)).get("op_id", "") for leaf in page["entries"]}
            start, size = start + len(page["entries"]), page["size"]
        return found
