"""The audit log of `twistd -n ron-kms` among others: three services that witness each other's, one of which is put back
to an older copy as a whole; and a new key of the log, killed at every step.

Needs nothing but the venv.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
import uuid
from pathlib import Path
from typing import Any
from unittest import TestCase
from urllib.parse import quote

from ron.services.kms.audit.verify import read_keys, verify_directory
from tests.live.support import Daemon, Reply, free_port, http, until
from tests.live.test_kms import B3, CONFIG
from tests.live.test_kms_faults import MOST_STEPS, SOON_S, Faulty

NAMES = ("a", "b", "c")
# A witness that was away is asked again within 15 seconds; a busy machine takes its time, too.
PATIENT_S = 90.0


class Service:
    """One of three."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = free_port()
        self.daemon = Daemon("ron-kms", "", "kms.json")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def home(self) -> Path:
        return self.daemon.home

    @property
    def vkeys(self) -> Path:
        return self.home / "kms-audit" / "log.vkeys"

    @property
    def witness_key(self) -> Path:
        return self.home / "kms" / "witness.vkey"

    @property
    def shown(self) -> str:
        return self.witness_key.read_text().strip()

    def start(self, audit: str = "") -> None:
        """audit: more of that section."""
        (self.home / "kms.json").unlink(missing_ok=True)
        more = f"\n[audit]\ncheckpoint_interval_ops = 1\n{audit}\n"
        self.daemon.config.write_text(f'bind_addr = "127.0.0.1:{self.port}"\n{CONFIG}{more}')
        self.daemon.start()

    def ask(self, method: str, path: str, body: Any = None) -> Reply:
        return http(method, f"{self.url}/v1/kms{path}", cap=self.daemon.admin_cap(), body=body)

    def ready(self) -> Reply:
        return http("GET", f"{self.daemon.facts()['admin_url']}/readyz")

    def size(self) -> int:
        return int(self.ask("GET", "/audit/entries?count=1").json()["size"])

    def witnessed(self) -> int:
        """So many records have cosignatures of both others."""
        reply = self.ask("GET", "/audit/witnessed")
        if reply.status != 200:
            return 0
        text = reply.body.decode()
        return int(text.splitlines()[1]) if text.count("ron-kms-witness/") == 2 else 0


class Witnessed(TestCase):
    """Each of three asks the two others."""

    def setUp(self) -> None:
        self.services = {name: Service(name) for name in NAMES}
        for one in self.services.values():
            self.addCleanup(one.daemon.destroy)
        self.a, self.b, self.c = (self.services[name] for name in NAMES)
        # the keys of the logs first, then those of the witnesses, then who asks whom
        for audit in (lambda _one: "", self.witness_for, self.whole):
            for one in self.services.values():
                if one.daemon._process is not None:
                    self.assertEqual(one.daemon.stop(), 0)
                one.start(audit(one))
            until(lambda: all(one.ready().status == 200 for one in self.services.values()), SOON_S, "all being ready")
            if audit == self.witness_for:
                until(lambda: all(one.witness_key.exists() for one in self.services.values()), SOON_S, "their keys")

    def others(self, one: Service) -> list[Service]:
        return [other for other in self.services.values() if other is not one]

    def witness_for(self, one: Service) -> str:
        return f"witness_for = {json.dumps([str(other.vkeys) for other in self.others(one)])}"

    def whole(self, one: Service) -> str:
        asked = "".join(
            f'\n[[audit.witnesses]]\nurl = "{other.url}/v1/kms/witness"\nkey = "{other.shown}"\n'
            for other in self.others(one)
        )
        return (
            f"{self.witness_for(one)}\nwitness_quorum = 2\nwitness_max_age_ms = 5000\nwitness_required = true\n{asked}"
        )

    def verify(self, place: str, *more: str) -> tuple[int, Any]:
        witnesses = [text for other in (self.b, self.c) for text in ("--witness", str(other.witness_key))]
        done = self.a.daemon.ronctl("audit", "verify", place, "--key", str(self.a.vkeys), *witnesses, *more, "--json")
        return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr

    def grown(self, count: int = 3) -> None:
        """A signs so often, and both others have seen it."""
        for _ in range(count):
            reply = self.a.ask("POST", "/sign", {"kid_or_set": self.kid, "payload_b3": B3})
            self.assertEqual(reply.status, 200, reply.body)
        self.sigs = reply.json()["sigs"]
        try:
            until(lambda: self.a.witnessed() >= self.a.size(), PATIENT_S, "both having signed for all of it")
        except AssertionError as error:
            lines = (self.a.home / "log" / "ron-kms.jsonl").read_text().splitlines()
            told = "\n".join(line for line in lines if "witness" in line)
            raise AssertionError(f"{error}: {self.a.witnessed()} of {self.a.size()}\n{told}") from None

    def test_one_that_is_put_back(self) -> None:
        made = self.a.ask("POST", "/keys", {"tenant": "core", "purpose": "audit", "alg": "hybrid"})
        self.kid = made.json()["kid"]
        self.grown()
        for place in (self.a.url, str(self.a.home / "kms-audit")):
            code, found = self.verify(place, *(["--cap", self.a.daemon.admin_cap()] if place == self.a.url else []))
            self.assertEqual((code, found["whole"], found["witnesses_enough"]), (0, True, True), found)
            self.assertEqual(found["witnessed"], found["signed"])
        # whoever has not signed is told, and signing goes on
        self.assertEqual(self.c.daemon.stop(), 0)
        for _ in range(2):
            self.assertEqual(self.a.ask("POST", "/sign", {"kid_or_set": self.kid, "payload_b3": B3}).status, 200)
            until(lambda: "witnesses_recent" in self._late(), SOON_S, "a late witness")
        self.c.start(self.whole(self.c))
        until(lambda: self.a.ready().status == 200, PATIENT_S, "the late one having signed")
        # a copy of all that there is, the anchor, the store and what the witnesses signed included
        self.assertEqual(self.a.daemon.stop(), 0)
        older, newer = (self.a.home.with_name(f"{self.a.home.name}-{name}") for name in ("older", "newer"))
        for copy in (older, newer):
            self.addCleanup(shutil.rmtree, copy, ignore_errors=True)
        shutil.copytree(self.a.home, older, ignore=shutil.ignore_patterns("*.sock"))
        self.a.start(self.whole(self.a))
        self.grown(5)
        size = self.a.size()
        self.assertEqual(self.a.daemon.stop(), 0)
        shutil.copytree(self.a.home, newer, ignore=shutil.ignore_patterns("*.sock"))
        self.put_back(older)
        self.a.start(self.whole(self.a))
        until(lambda: "there are" in self.a.ready().json()["reasons"].get("audit_ready", ""), SOON_S, "the alarm")
        why = self.a.ready().json()["reasons"]["audit_ready"]
        self.assertRegex(why, "witness [0-9a-f]{8} saw [0-9]+ records")
        reply = self.a.ask("POST", "/sign", {"kid_or_set": self.kid, "payload_b3": B3})
        self.assertEqual((reply.status, reply.json()["error"]["code"]), (503, "StoreUnavailable"), reply.body)
        body = {"payload_b3": B3, "sigs": self.sigs, "kid_or_set": self.kid, "policy": {"mode": "and"}}
        self.assertTrue(self.a.ask("POST", "/verify", body).json()["ok"])
        self.assertLess(self.a.size(), size)
        # the newest copy again: all is well
        self.a.daemon.stop()
        self.put_back(newer)
        self.a.start(self.whole(self.a))
        until(lambda: self.a.ready().status == 200, PATIENT_S, "being ready again")
        self.grown(1)

    def _late(self) -> str:
        return " ".join(self.a.ready().json()["missing"])

    def put_back(self, copy: Path) -> None:
        shutil.rmtree(self.a.home)
        shutil.copytree(copy, self.a.home)


class Turned(Faulty):
    """A new key of the log, and `kill -9` in the middle of it."""

    config = CONFIG + "[audit]\ncheckpoint_interval_ops = 1\n"

    def test_at_every_step(self) -> None:
        """Before each fsync, rename and unlink, until one comes through. From the first keys on it can be followed."""
        keys = self.hooks / "first.vkeys"
        shutil.copy(self.daemon.home / "kms-audit" / "log.vkeys", keys)
        killed = 0
        for step in range(1, MOST_STEPS):
            op_id = str(uuid.uuid4())
            self.armed.write_text(str(step))
            answer = self.tried(op_id)
            time.sleep(0.3)
            alive = self.daemon._process is not None and self.daemon._process.poll() is None
            self.armed.unlink()
            if alive:
                self.daemon.stop(signal.SIGKILL)
            self.again()
            self.well()
            self.followed(keys)
            again = self.ask("POST", "/audit/rotate-key", {"op_id": op_id})
            self.assertEqual(again.status, 200, again.body)
            if answer is not None:
                self.assertEqual(again.json(), answer)
            self.well()
            if alive:
                break
            killed += 1
        else:
            self.fail("a rotation takes more steps than that")
        self.assertGreaterEqual(killed, 8)
        self.followed(keys)

    def test_by_the_operators_tool(self) -> None:
        before = (self.daemon.home / "kms-audit" / "log.vkeys").read_text()
        done = self.daemon.ronctl("kms", "audit", "rotate-key", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        made = json.loads(done.stdout)
        after = (self.daemon.home / "kms-audit" / "log.vkeys").read_text()
        self.assertTrue(after.startswith("\n".join(made["vkeys"])), after)
        self.assertTrue(after.endswith(before))
        text = self.daemon.ronctl("kms", "audit", "rotate-key")
        self.assertIn("#v3  signs the log from now on", text.stdout)
        refused = self.daemon.ronctl("kms", "audit", "rotate-key", "--proposal", "x")
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("nobody governs", refused.stderr)
        shown = self.done("GET", f"/keys/{quote(made['kid'].partition('#')[0], safe='')}")
        self.assertEqual(shown["versions"], ["#v1", "#v2", "#v3"])

    def tried(self, op_id: str) -> Any:
        try:
            reply = self.ask("POST", "/audit/rotate-key", {"op_id": op_id})
        except (OSError, ValueError):
            return None
        return reply.json() if reply.status == 200 else None

    def followed(self, keys: Path) -> None:
        verdict = [*verify_directory(self.daemon.home / "kms-audit", read_keys(keys.read_text()))][-1].verdict
        assert verdict is not None
        self.assertEqual((verdict.broken, verdict.others), (None, 0))
