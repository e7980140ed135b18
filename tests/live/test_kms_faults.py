"""`twistd -n ron-kms` and what befalls a host: killed at every step of a change, a full disk, files changed, removed or
put back from an older copy, a clock that jumps, an HSM that dies under load.

Each time: nothing answered is lost, nothing is signed that is not safe, verifying goes on, readiness and errors say
what is wrong, and it is mended as the runbook has it. HSM: needs SoftHSM and p11-kit.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
import threading
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.live.support import Daemon, Reply, http, until
from tests.live.test_kms import B3, CONFIG, Case
from tests.services.kms.backends.softhsm import CLIENT, LABEL, NO_P11KIT, NO_SOFTHSM, PIN, SoftToken, TokenServer

SOON_S = 30.0
KILLS = 5
MOST_STEPS = 40
# Steps are what makes a change lasting, counted once the file `armed` is there; SQLite's own are its library's.
_HOOKS = """import os, signal, time
_armed = {armed!r}
_count = 0
def _stepping(call):
    def step(*args, **more):
        global _count
        try:
            with open(_armed) as wanted:
                at = int(wanted.read() or 0)
        except (OSError, ValueError):
            return call(*args, **more)
        _count += 1
        if _count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **more)
    return step
for _name in ("fsync", "fdatasync", "replace", "rename", "unlink", "link"):
    setattr(os, _name, _stepping(getattr(os, _name)))
_true = time.time
def _false():
    try:
        with open({ahead!r}) as ahead:
            return _true() + float(ahead.read() or 0)
    except (OSError, ValueError):
        return _true()
time.time = _false
time.time_ns = lambda: int(_false() * 1e9)
"""


class Faulty(Case):
    """A service with one key and a signature by it; its clock and its end can be chosen."""

    config = CONFIG

    def setUp(self) -> None:
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)
        self.daemon = Daemon("ron-kms", self.config, "kms.json")
        self.stack.callback(self.daemon.destroy)
        self.hooks = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="ron-hooks-")))
        self.armed, self.ahead = self.hooks / "armed", self.hooks / "ahead"
        (self.hooks / "sitecustomize.py").write_text(_HOOKS.format(armed=str(self.armed), ahead=str(self.ahead)))
        environment = self.daemon.environment
        path = os.pathsep.join(filter(None, [str(self.hooks), os.environ.get("PYTHONPATH")]))
        self.daemon.environment = lambda: {**environment(), "PYTHONPATH": path}  # type: ignore[method-assign]
        self.begin()

    def begin(self) -> None:
        """What every test starts from."""
        self.daemon.start()
        body = {"tenant": "core", "purpose": "audit", "alg": "hybrid"}
        self.kid = self.done("POST", "/keys", body)["kid"]
        self.bare = self.kid.partition("#")[0]
        self.sigs = self.done("POST", "/sign", self.to_sign)["sigs"]

    @property
    def to_sign(self) -> dict[str, Any]:
        return {"kid_or_set": self.bare, "payload_b3": B3}

    def again(self) -> None:
        """Start it once more."""
        (self.daemon.home / "kms.json").unlink(missing_ok=True)
        self.daemon.start()

    def ready(self) -> Reply:
        return http("GET", f"{self.daemon.facts()['admin_url']}/readyz")

    def turn(self, op_id: str) -> Reply:
        return self.ask("POST", f"/keys/{quote(self.bare, safe='')}/rotate", {"op_id": op_id})

    def verifies(self, sigs: Any = None) -> None:
        body = {"payload_b3": B3, "sigs": sigs or self.sigs, "kid_or_set": self.bare, "policy": {"mode": "and"}}
        self.assertTrue(self.done("POST", "/verify", body)["ok"])

    def versions(self) -> list[str]:
        return list(self.done("GET", f"/keys/{quote(self.bare, safe='')}")["versions"])

    def refuses(self, why: str, key: str = "audit_ready") -> None:
        """Whatever signs or makes a key is a 503 with a time to come back; readiness says `why`; the rest goes on."""
        until(lambda: why in self.ready().json().get("reasons", {}).get(key, ""), SOON_S, f"readiness saying {why!r}")
        for reply in (self.ask("POST", "/sign", self.to_sign), self.turn(str(uuid.uuid4()))):
            error = reply.json()["error"]
            self.assertEqual((reply.status, error["code"]), (503, "StoreUnavailable"), reply.body)
            self.assertIn("retry-after", reply.headers)
        self.verifies()

    def well(self) -> None:
        until(lambda: self.ready().status == 200 and not self.ready().json()["degraded"], SOON_S, "all being well")
        self.verifies(self.done("POST", "/sign", self.to_sign)["sigs"])
        self.verifies()

    def saved(self) -> Path:
        """A copy of the home, as `cp -a` makes it."""
        copy = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="ron-copy-"))) / "home"
        shutil.copytree(self.daemon.home, copy, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
        return copy

    def put_back(self, copy: Path, *parts: str) -> None:
        """Of `copy`, these files and folders, in place of what is there."""
        for part in parts:
            there = self.daemon.home / part
            if there.is_dir():
                shutil.rmtree(there)
            else:
                there.unlink(missing_ok=True)
            if (copy / part).is_dir():
                shutil.copytree(copy / part, there)
            elif (copy / part).exists():
                shutil.copy2(copy / part, there)


class Killed(Faulty):
    """`kill -9` in the middle of a rotation, and of the checkpoint that comes with each record."""

    config = CONFIG + "[audit]\ncheckpoint_interval_ops = 1\n"

    def test_at_every_step(self) -> None:
        """Before each fsync, rename and unlink, from the first on until a rotation comes through."""
        killed = 0
        for step in range(1, MOST_STEPS):
            before = self.versions()
            op_id = str(uuid.uuid4())
            self.armed.write_text(str(step))
            answer = self.tried(op_id)
            # the checkpoint is made after the answer
            time.sleep(0.3)
            alive = self.daemon._process is not None and self.daemon._process.poll() is None
            self.armed.unlink()
            if alive:
                self.daemon.stop(signal.SIGKILL)
            self.again()
            self.whole(before, op_id, answer)
            if alive:
                break
            killed += 1
        else:
            self.fail("a rotation takes more steps than that")
        self.assertGreaterEqual(killed, 8)

    def test_at_random(self) -> None:
        for number in range(KILLS):
            before = self.versions()
            op_id, answers = str(uuid.uuid4()), []
            thread = threading.Thread(target=lambda op_id=op_id, answers=answers: answers.append(self.tried(op_id)))
            thread.start()
            time.sleep(0.002 * 3**number % 0.05)
            self.daemon.stop(signal.SIGKILL)
            thread.join()
            self.again()
            self.whole(before, op_id, answers[0])

    def tried(self, op_id: str) -> Any:
        """The answer, or None where it was killed before."""
        try:
            reply = self.turn(op_id)
        except (OSError, ValueError):
            return None
        return reply.json() if reply.status == 200 else None

    def whole(self, before: list[str], op_id: str, answer: Any) -> None:
        """An answer holds; without one it was done or not, and asking again is the same act. It signs, it is ready."""
        until(lambda: self.ready().status == 200, SOON_S, "being ready")
        after = self.versions()
        self.assertIn(len(after) - len(before), {0, 1})
        self.assertEqual(after, [f"#v{number}" for number in range(1, len(after) + 1)])
        if answer is not None:
            self.assertEqual(answer["kid"], f"{self.bare}{after[-1]}")
        reply = self.turn(op_id)
        self.assertEqual(reply.status, 200, reply.body)
        self.assertEqual(answer or reply.json(), reply.json())
        self.assertEqual(len(self.versions()), len(before) + 1, "one act, however often it was asked for")
        self.well()


class Disk(Faulty):
    """No file may grow any more, as on a disk that is full."""

    def test_full(self) -> None:
        self.limit(0)
        for _ in range(3):
            reply = self.ask("POST", "/sign", self.to_sign)
            self.assertEqual((reply.status, reply.json()["error"]["code"]), (503, "StoreUnavailable"), reply.body)
        self.assertEqual(self.turn(str(uuid.uuid4())).status, 503)
        self.verifies()
        until(lambda: self.ready().json().get("reasons"), SOON_S, "readiness saying so")
        self.limit(resource.RLIM_INFINITY)
        self.well()
        self.assertEqual(self.versions(), ["#v1"])
        # what came back is not only in memory
        self.assertEqual(self.turn(str(uuid.uuid4())).status, 200)
        self.daemon.stop(signal.SIGKILL)
        self.again()
        self.assertEqual(self.versions(), ["#v1", "#v2"])
        self.well()

    def limit(self, size: int) -> None:
        _soft, hard = resource.prlimit(self.daemon.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.daemon.pid, resource.RLIMIT_FSIZE, (size, hard))


class Files(Faulty):
    """Somebody was at the files while the service was stopped."""

    def test_sealed_files(self) -> None:
        """A flipped bit, none at all, an older copy of all: it signs nothing and says why; mended, it does."""
        self.daemon.stop()
        older = self.saved()
        self.again()
        self.turn(str(uuid.uuid4()))
        self.daemon.stop()
        newest = self.saved()
        sealed = self.daemon.home / "kms-sealed"
        largest = max((path for path in sealed.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
        name = f"kms-sealed/{largest.name}"

        def flipped() -> None:
            raw = bytearray(largest.read_bytes())
            raw[len(raw) // 2] ^= 1
            largest.write_bytes(raw)

        for harm, why in ((flipped, "is not the one that was written"), (largest.unlink, "is missing")):
            harm()
            self.again()
            self.refuses(why, "backend_ready")
            for said in (self.ready().body, self.ask("POST", "/sign", self.to_sign).body):
                self.assertNotIn(b"ron-kms/", said, "whose key it is, is nobody's business")
                self.assertNotIn(self.bare.encode(), said)
            self.daemon.stop()
            self.put_back(newest, name)
        self.put_back(older, "kms-sealed")
        self.again()
        self.refuses("the key store is at change")
        self.daemon.stop()
        self.put_back(newest, "kms-sealed")
        self.again()
        self.assertEqual(self.versions(), ["#v1", "#v2"])
        self.well()

    def test_the_end_of_the_log(self) -> None:
        """G-13: the last records taken away."""
        for _ in range(5):
            self.done("POST", "/sign", self.to_sign)
        self.daemon.stop()
        newest = self.saved()
        leaves = max((self.daemon.home / "kms-audit" / "leaves").iterdir())
        leaves.write_bytes(b"".join(leaves.read_bytes().splitlines(keepends=True)[:-3]))
        self.again()
        self.refuses("3 records are missing")
        self.assertEqual(self.ready().status, 503)
        self.daemon.stop()
        self.put_back(newest, "kms-audit", "kms/audit-anchor.json")
        self.again()
        self.well()

    def test_an_older_store(self) -> None:
        self.daemon.stop()
        older = self.saved()
        self.again()
        self.turn(str(uuid.uuid4()))
        self.daemon.stop()
        newest = self.saved()
        parts = [f"kms/kms.sqlite3{end}" for end in ("", "-wal", "-shm")]
        self.put_back(older, *parts)
        self.again()
        self.refuses("older than the audit log")
        self.daemon.stop()
        self.put_back(newest, *parts, "kms-audit", "kms/audit-anchor.json")
        self.again()
        self.assertEqual(self.versions(), ["#v1", "#v2"])
        self.well()


class Clock(Faulty):
    """G-14: the wall clock, against the one that goes on evenly."""

    def test_within_and_beyond_the_tolerance(self) -> None:
        self.ahead.write_text("1.0")
        time.sleep(2.5)
        self.well()
        for ahead_s in (3600, -3600):
            self.ahead.write_text(str(ahead_s))
            self.refuses("the clock jumped", "clock_ok")
            self.assertIn("clock", self.ask("POST", "/sign", self.to_sign).json()["error"]["message"])
            self.ahead.write_text("0")
            self.well()


class Hsm(Faulty):
    """The token's process killed while callers sign."""

    skip = NO_SOFTHSM or NO_P11KIT
    config = (
        '[service]\nbackend = "pkcs11"\n[security]\nallow_unlocked = true\nsign_rate_limit_rps = 100000\n'
        f'[backends.pkcs11]\nmodule_path = "{CLIENT}"\nslot_label = "{LABEL}"\npin_env = "HSM_PIN"\n'
    )

    def begin(self) -> None:
        if self.skip:
            self.skipTest(self.skip)
        self.server = TokenServer(SoftToken(self.stack), self.stack)
        environment = self.daemon.environment
        self.daemon.environment = lambda: {**environment(), "HSM_PIN": PIN}  # type: ignore[method-assign]
        super().begin()

    def test_killed_twice(self) -> None:
        stop, replies = threading.Event(), []

        def load() -> None:
            while not stop.is_set():
                replies.append(self.ask("POST", "/sign", self.to_sign))

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(2):
                self.heard(replies, 200)
                self.server.kill()
                self.heard(replies, 503)
                until(lambda: "backend_ready" in self.ready().json()["degraded"], SOON_S, "readiness saying so")
                self.verifies()
                self.server.start()
                self.heard(replies, 200)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self.assertEqual({reply.status for reply in replies}, {200, 503})
        for reply in replies:
            if reply.status == 200:
                self.verifies(reply.json()["sigs"])
            else:
                self.assertIn(reply.json()["error"]["code"], {"StoreUnavailable"})
        self.well()

    def heard(self, replies: list[Reply], status: int) -> None:
        """Five of these from now on."""
        start = len(replies)
        until(lambda: sum(one.status == status for one in replies[start:]) >= 5, SOON_S, f"answers with {status}")
