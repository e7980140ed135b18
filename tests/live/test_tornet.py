"""`ronctl tornet` with real tor. Needs tor."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.support import BIN, NO_TOR, ROOT, alive, listening, process_tree, until


class TornetTests(SynchronousTestCase):
    """A network comes up, outlives the loss of a relay, and goes away without a trace."""

    skip = NO_TOR

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ron-tornet-"))
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.wrapper: list[str] = []

    def tornet(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.wrapper, str(BIN / "ronctl"), "tornet", verb, "--dir", str(self.folder / "net"), *arguments],
            cwd=ROOT if not self.wrapper else "/",
            capture_output=True,
            text=True,
            timeout=160,
            check=False,
        )

    def up(self) -> dict[str, Any]:
        self.addCleanup(self.tornet, "down")
        done = self.tornet("up", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        return dict(json.loads(done.stdout))

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.tornet("status", "--json").stdout))

    def test_up_kill_a_relay_down(self) -> None:
        facts = self.up()
        self.assertEqual(facts["state"], "up")
        roles = [t["role"] for t in facts["tors"]]
        self.assertEqual((roles.count("authority"), roles.count("relay"), roles.count("client")), (3, 2, 1))
        self.assertTrue(all(t["up"] for t in facts["tors"]))
        again = self.tornet("up", "--json")
        self.assertEqual(json.loads(again.stdout)["supervisor_pid"], facts["supervisor_pid"], "up twice is up once")

        victim = next(t for t in facts["tors"] if t["name"] == "relay1")
        os.kill(victim["pid"], signal.SIGKILL)

        def restarted() -> bool:
            relay = next(t for t in self.status()["tors"] if t["name"] == "relay1")
            return bool(relay["up"] and relay["restarts"] == 1 and relay["pid"] != victim["pid"])

        until(restarted, 30, "the watchdog restarting the relay")
        ports = [t["control_port"] for t in facts["tors"]]
        self.assertEqual(self.tornet("down").returncode, 0)
        self.assertEqual(process_tree(str(self.folder)), [])
        self.assertEqual([p for p in ports if listening(p)], [])
        self.assertEqual(self.tornet("status").returncode, 4)
        self.assertEqual(self.tornet("down").returncode, 0, "down twice is fine")

        keys = (self.folder / "net" / "auth1" / "keys" / "ed25519_master_id_secret_key").read_bytes()
        second = self.up()
        self.assertEqual((self.folder / "net" / "auth1" / "keys" / "ed25519_master_id_secret_key").read_bytes(), keys)
        self.assertEqual([t["control_port"] for t in second["tors"]], ports, "ports are remembered")

    def test_a_killed_supervisor_leaves_no_tor_and_no_obstacle(self) -> None:
        facts = self.up()
        os.kill(facts["supervisor_pid"], signal.SIGKILL)
        pids = [t["pid"] for t in facts["tors"]]
        until(lambda: not any(alive(p) for p in pids), 20, "the tors of a killed supervisor ending")
        self.assertEqual(self.tornet("status").returncode, 4)
        self.assertEqual(self.up()["state"], "up")

    def test_as_an_ordinary_user(self) -> None:
        if os.getuid() != 0:
            self.skipTest("the other tests run as an ordinary user already")
        nobody = pwd.getpwnam("nobody")
        os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        who = [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
        self.wrapper = ["setpriv", *who, "env", f"HOME={self.folder}"]
        tried = subprocess.run(
            [*self.wrapper, str(BIN / "ronctl"), "--version"], capture_output=True, check=False, cwd="/"
        )
        if tried.returncode == 126:
            self.skipTest(f"{BIN} or its interpreter lies in a folder that only root may enter")
        facts = self.up()
        self.assertTrue(all(t["up"] for t in facts["tors"]))
        owners = {Path(f"/proc/{t['pid']}").stat().st_uid for t in facts["tors"]}
        self.assertEqual(owners, {nobody.pw_uid})
        self.assertEqual(self.tornet("down").returncode, 0)
