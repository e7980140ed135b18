"""`ronctl onion` and examples/onion.sh against a running ron-oniond; visitors come through tor. Needs tor, curl."""

from __future__ import annotations

import http.server
import json
import os
import secrets
import signal
import subprocess
import threading
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from ron.tor.clientauth import Credential, add_credential, parse_secret, remove_credential
from ron.tor.control import connect_control
from tests.live.support import NO_TOR, ROOT, Daemon, until
from tests.live.test_oniond import Greeter

CONFIG = (
    '[admin]\nbind = "127.0.0.1:0"\n[[apps]]\nname = "first"\nexpose = [{ local = "127.0.0.1:9", onion_port = 9 }]\n'
)
# A visit takes a third of a second. To one who cannot get in tor says nothing for two minutes, and tries again.
VISIT_S = 40
IN_VAIN_S = 4
GRACE_S = 10
_running: list[Daemon] = []


def daemon() -> Daemon:
    """One for all tests; the end of the process ends it."""
    if not _running:
        started = Daemon("ron-oniond", CONFIG, "onions.json")
        started.start()
        _running.append(started)
    return _running[0]


class OnionCommand(TestCase):
    """As operators and visitors have it."""

    skip = NO_TOR
    timeout = 240

    def setUp(self) -> None:
        self.daemon = daemon()
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Greeter)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        self.port = int(server.server_address[1])

    def onion(self, *arguments: str, code: int = 0) -> Any:
        """What `ronctl onion ARGUMENTS --json` prints."""
        done = self.daemon.ronctl("onion", *arguments, "--json")
        self.assertEqual(done.returncode, code, done.stderr)
        return json.loads(done.stdout) if done.stdout else done.stderr

    def create(self, app: str, *arguments: str) -> Any:
        made = self.onion("create", "--app", app, "--port", f"80:{self.port}", *arguments)
        self.addCleanup(lambda: self.daemon.ronctl("onion", "delete", made["id"]))
        return made

    def visit(self, address: str, patience_s: float = VISIT_S) -> bytes:
        """What a visitor gets who was never there before; nothing when there is no way in."""
        proxy = f"socks5h://{secrets.token_hex(8)}:x@127.0.0.1:{self.daemon.facts()['socks_port']}"
        command = ["curl", "--silent", "--max-time", str(patience_s), "--proxy", proxy, f"http://{address}/"]
        return subprocess.run(command, capture_output=True, check=False).stdout

    def test_from_the_first_visitor_to_the_last(self) -> None:
        made = self.create("wiki")
        self.assertTrue(made["ready"])
        self.assertEqual(self.visit(made["onion"]), b"hello")
        rotated = self.onion("rotate", "wiki", "--grace", f"{GRACE_S}s")
        self.assertEqual(rotated["previous"]["onion"], made["onion"])
        self.assertEqual([self.visit(made["onion"]), self.visit(rotated["onion"])], [b"hello", b"hello"])
        until(lambda: self.onion("status", "wiki")["previous"] is None, GRACE_S + 10, "the end of the grace")
        self.assertEqual(self.visit(made["onion"], IN_VAIN_S), b"")
        self.assertEqual(self.visit(rotated["onion"]), b"hello")
        self.assertEqual(self.onion("drain", "wiki", "--deadline", "1s")["state"], "drained")
        self.assertEqual(self.visit(rotated["onion"], IN_VAIN_S), b"")
        self.assertTrue(self.onion("bind", "wiki", "--port", f"80:{self.port}")["ready"])
        self.assertEqual(self.visit(rotated["onion"]), b"hello")
        self.assertTrue(self.onion("delete", "wiki")["deleted"])
        self.onion("status", made["id"], code=7)

    async def test_only_who_holds_a_key_gets_in(self) -> None:
        key = str(self.daemon.home / "bob.key")
        public = self.onion("client", "new-key", "--out", key)["public_key"]
        made = self.create("secret", "--client", f"bob={public}")
        self.assertEqual(self.visit(made["onion"], IN_VAIN_S), b"", "without a key")
        line = self.onion("client", "line", made["onion"], "--key", key)["private_line"]
        control = await connect_control(reactor, self.control_port("client"))
        self.addCleanup(control.transport.loseConnection)
        bobs = Credential(made["onion"], parse_secret(line.rpartition(":")[2]))
        await add_credential(reactor, control, bobs)
        self.assertEqual(self.visit(made["onion"]), b"hello", "with it")
        await remove_credential(reactor, control, made["onion"])
        eve = self.onion("client", "new-key")["public_key"]
        self.onion("client", "add", "secret", "eve", eve)
        left = self.onion("client", "remove", "secret", "bob")["clients"]
        self.assertEqual([client["name"] for client in left], ["eve"])

    def control_port(self, name: str) -> int:
        tors = json.loads((self.daemon.home / "tornet" / "tornet.json").read_text())["tors"]
        return next(int(tor["control_port"]) for tor in tors if tor["name"] == name)

    def test_a_key_leaves_for_its_scope_only(self) -> None:
        made = self.create("vault", "--wait", "0")
        narrow = self.daemon.ronctl("cap", "mint", "--scope", "onion:read", "--ttl", "5m").stdout.split()[-1]
        self.assertIn("onion:export", self.onion("export", made["id"], "--cap", narrow, code=5))
        audit = self.daemon.home / "audit" / "oniond.jsonl"
        self.assertNotIn(made["onion"], audit.read_text() if audit.exists() else "")
        exported = self.onion("export", made["id"])
        self.assertTrue(exported["key"].startswith("ED25519-V3:"))
        self.assertIn(made["onion"], audit.read_text())
        self.assertNotIn(exported["key"], audit.read_text())

    def test_the_example_puts_a_port_behind_an_onion_for_as_long_as_it_runs(self) -> None:
        script = subprocess.Popen(
            [str(ROOT / "examples" / "onion.sh"), str(self.port)],
            env={**os.environ, "RON_HOME": str(self.daemon.home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.addCleanup(script.kill)
        with script:
            assert script.stdout is not None
            address = script.stdout.readline().strip()
            self.assertEqual(self.visit(address), b"hello")
            script.send_signal(signal.SIGTERM)
            self.assertEqual(script.wait(20), 0)
        self.onion("status", address, code=7)

    def test_the_example_says_what_is_wrong(self) -> None:
        for port in ("http", "70000"):
            done = subprocess.run(
                [str(ROOT / "examples" / "onion.sh"), port],
                env={**os.environ, "RON_HOME": str(self.daemon.home)},
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertIn("BadRequest", done.stderr)
