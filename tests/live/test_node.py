"""A Micronode as its operator runs it. Needs tor."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import stat
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.support import NO_TOR, Daemon, Reply, alive, http, listening, new_node, process_tree, shared_node, until


class SharedNodeTests(SynchronousTestCase):
    """What holds while the node is well. These tests leave it as they found it."""

    skip = NO_TOR
    processes = 9

    def setUp(self) -> None:
        self.node = self.running()
        self.facts = self.node.facts()
        self.gateway, self.mailbox = self.facts["gateway_url"], self.facts["mailbox_url"]

    def running(self) -> Daemon:
        """The one for all of these tests."""
        return shared_node()

    def envelope(self, reply: Reply, status: int, code: str) -> None:
        self.assertEqual(reply.status, status)
        error = reply.json()["error"]
        self.assertEqual(error["code"], code)
        self.assertTrue(error["request_id"])
        self.assertTrue(error["ts"].endswith("Z"))

    def test_facts_and_secrets_are_private(self) -> None:
        for name in ("admin.cap", "node.json", "auth/root.json", "onions/oniond.sqlite3", "mailbox/mailbox.sqlite3"):
            mode = stat.S_IMODE((self.node.home / name).stat().st_mode)
            self.assertEqual(mode, 0o600, name)
        secret = (p for p in self.node.home.iterdir() if p.is_dir() and p.name != "packs")
        for folder in [self.node.home, *secret]:
            self.assertEqual(stat.S_IMODE(folder.stat().st_mode), 0o700, str(folder))

    def test_facts_name_everything_that_runs(self) -> None:
        self.assertRegex(self.facts["onion"], r"^[a-z2-7]{56}\.onion$")
        self.assertEqual(len(self.facts["pids"]), self.processes)
        for name, pid in self.facts["pids"].items():
            self.assertTrue(alive(pid), name)
        self.assertTrue(listening(self.facts["socks_port"]))

    def test_ready(self) -> None:
        reply = http("GET", f"{self.gateway}/readyz")
        self.assertEqual((reply.status, reply.json()["ready"], reply.json()["missing"]), (200, True, []))

    def test_public_calls_need_no_capability(self) -> None:
        for path in ("/", "/hello.json", "/tiles/0/0/0.png", "/healthz", "/readyz", "/version"):
            self.assertEqual(http("GET", self.gateway + path).status, 200, path)

    def test_every_other_call_needs_one(self) -> None:
        self.envelope(http("GET", f"{self.gateway}/v1/status"), 401, "NoCapability")
        self.envelope(http("GET", f"{self.gateway}/metrics"), 401, "NoCapability")
        for path in ("/v1/send", "/v1/recv", "/v1/ack/x"):
            self.envelope(http("POST", self.mailbox + path, body={}), 401, "NoCapability")

    def test_a_capability_opens_just_its_scope(self) -> None:
        from pymacaroons import Macaroon

        narrowed = Macaroon.deserialize(self.node.admin_cap())
        narrowed.add_first_party_caveat("scope = mailbox:send")
        cap = narrowed.serialize().rstrip("=")
        sent = http("POST", f"{self.mailbox}/v1/send", cap=cap, body={"topic": "t/scope", "payload_b64": "aGk="})
        self.assertEqual(sent.status, 200)
        self.envelope(http("POST", f"{self.mailbox}/v1/recv", cap=cap, body={"topic": "t/scope"}), 403, "NoCapability")
        self.envelope(http("GET", f"{self.gateway}/v1/status", cap=cap), 403, "NoCapability")

    def test_bad_input_is_named(self) -> None:
        cap, send = self.node.admin_cap(), f"{self.mailbox}/v1/send"
        unknown = http("POST", send, cap=cap, body={"topic": "t", "payload_b64": "", "colour": 1})
        self.envelope(unknown, 400, "BadRequest")
        self.assertIn("colour", unknown.json()["error"]["message"])
        self.envelope(http("POST", send, cap=cap, body=b"\xff{"), 400, "BadRequest")
        self.envelope(http("GET", f"{self.gateway}/tiles/0/0/zero.png"), 400, "BadRequest")
        self.envelope(http("GET", f"{self.gateway}/tiles/9/0/0.png"), 404, "NotFound")
        self.envelope(http("GET", f"{self.gateway}/nowhere"), 404, "NotFound")

    def test_an_oversized_body_is_refused(self) -> None:
        reply = http("POST", f"{self.mailbox}/v1/send", cap=self.node.admin_cap(), body=b"x" * (1024 * 1024 + 1))
        self.envelope(reply, 413, "TooLarge")

    def test_metrics(self) -> None:
        reply = http("GET", f"{self.gateway}/metrics", cap=self.node.admin_cap())
        self.assertEqual(reply.status, 200)
        self.assertIn(b"http_requests_total", reply.body)
        self.assertIn(b"request_latency_seconds_bucket", reply.body)

    def test_hello_goes_through_the_onion(self) -> None:
        done = self.node.ronctl("hello", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        result = json.loads(done.stdout)
        self.assertTrue(result["ok"])
        self.assertEqual(result["onion"], self.facts["onion"])
        self.assertGreater(result["bringup_ms"], 0)
        self.assertEqual(result["tile"]["content_type"], "image/png")
        self.assertEqual(result["ping"]["suite"], "ML-KEM-768+X25519")
        self.assertGreater(result["ping"]["sealed_bytes"], 1088)
        self.assertGreater(result["ping"]["roundtrip_ms"], 0)

    def test_hello_by_node_and_cap(self) -> None:
        environment = {"RON_HOME": "/nonexistent"}
        self.node.environment = lambda: {**os.environ, **environment}  # type: ignore[method-assign]
        self.addCleanup(self.node.__dict__.pop, "environment")
        cap = str(self.node.home / "admin.cap")
        done = self.node.ronctl("hello", "--node", self.gateway, "--cap", cap)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("all well", done.stdout)
        refused = self.node.ronctl("status", "--node", self.gateway)
        self.assertEqual(refused.returncode, 5, refused.stderr)
        lost = self.node.ronctl("status")
        self.assertEqual(lost.returncode, 4, lost.stderr)

    def test_a_message_of_ones_own_as_the_readme_has_it(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        key, note, received = (str(folder / name) for name in ("bob.key", "note.sealed", "received.sealed"))
        (folder / "note").write_text("meet me at the north gate")
        for arguments in (
            ("e2e", "keygen", "--out", key),
            ("e2e", "seal", "--to", f"{key}.pub", "--in", str(folder / "note"), "--out", note),
            ("mailbox", "send", "notes/bob", note, "--onion"),
            ("mailbox", "recv", "notes/bob", "--onion", "--out", received),
        ):
            done = self.node.ronctl(*arguments)
            self.assertEqual(done.returncode, 0, f"{arguments}: {done.stderr}")
        opened = self.node.ronctl("e2e", "open", "--key", key, "--in", received)
        self.assertEqual(opened.stdout, "meet me at the north gate")
        empty = self.node.ronctl("mailbox", "recv", "notes/bob")
        self.assertEqual(empty.returncode, 7, "it was acknowledged")
        self.assertEqual(self.node.ronctl("mailbox", "send", "notes/eve", note, "--json").returncode, 0)
        told = json.loads(self.node.ronctl("mailbox", "recv", "notes/eve", "--json").stdout)
        self.assertEqual(base64.b64decode(told["payload_b64"]), Path(note).read_bytes())

    def test_status(self) -> None:
        text = self.node.ronctl("status")
        self.assertEqual(text.returncode, 0, text.stderr)
        self.assertIn("hello-map", text.stdout)
        status = json.loads(self.node.ronctl("status", "--json").stdout)
        self.assertTrue(status["ready"])
        self.assertEqual(status["facts"]["onion"], self.facts["onion"])
        self.assertEqual(
            {t["name"] for t in status["tor"]["tors"] if t["role"] == "client"}, {"onion", "device-a", "device-b"}
        )
        self.assertIn("ready", status["queues"]["mailbox"])

    def test_the_log_holds_no_secret(self) -> None:
        cap = self.node.admin_cap()
        http("POST", f"{self.mailbox}/v1/send", cap=cap, body={"topic": "t/log", "payload_b64": "c2VjcmV0LXBheWxvYWQ="})
        http("GET", f"{self.gateway}/v1/status", cap=cap)
        exported = self.node.ronctl("onion", "export", "hello-map", "--yes")
        self.assertEqual(exported.returncode, 0, exported.stderr)
        key = exported.stdout.strip().partition(":")[2]
        self.assertEqual(len(key), 88)
        for path in (self.node.home / "log").iterdir():
            text = path.read_text()
            for line in text.splitlines():
                json.loads(line)
            for secret in (cap, key, "c2VjcmV0LXBheWxvYWQ=", "secret-payload"):
                self.assertNotIn(secret, text)

    def test_a_second_node_in_the_same_home_is_refused(self) -> None:
        second = new_node(home=self.node.home)
        self.addCleanup(second.destroy)
        second.start(wait=False)
        self.assertNotEqual(second.wait(), 0)
        self.assertIn(f"in use by process {self.facts['pids']['node']}", second.output.read_text())


class OwnNodeTests(SynchronousTestCase):
    """What happens to a node that is hurt; each test has its own."""

    skip = NO_TOR

    def test_a_message_survives_kill_9_and_the_onion_stays(self) -> None:
        """Also with a broken pack, which takes nothing else down."""
        node = new_node()
        self.addCleanup(node.destroy)
        node.start()
        before = node.facts()
        payload = base64.b64encode(b"sealed").decode()
        send = http(
            "POST",
            f"{before['mailbox_url']}/v1/send",
            cap=node.admin_cap(),
            body={"topic": "t", "payload_b64": payload},
        )
        self.assertEqual(send.status, 200)
        node.stop(signal.SIGKILL)
        until(lambda: not any(alive(p) for p in before["pids"].values()), 20, "the tors of a killed node ending")
        (node.home / "node.json").unlink()
        pack = node.home / "packs" / "world.pmtiles"
        pack.parent.mkdir(exist_ok=True)
        pack.write_bytes(b"PMTiles\x03" + b"\xff" * 500)

        node.start()
        after = node.facts()
        self.assertEqual(after["onion"], before["onion"])
        received = http("POST", f"{after['mailbox_url']}/v1/recv", cap=node.admin_cap(), body={"topic": "t"}).json()
        self.assertEqual([m["msg_id"] for m in received["messages"]], [send.json()["msg_id"]])
        self.assertEqual(received["messages"][0]["payload_b64"], payload)
        receipt = {"receipt": received["messages"][0]["receipt"]}
        acked = http(
            "POST",
            f"{after['mailbox_url']}/v1/ack/{received['messages'][0]['msg_id']}",
            cap=node.admin_cap(),
            body=receipt,
        )
        self.assertEqual(acked.status, 200)

        self.a_corrupt_pack_takes_nothing_else_down(node, after)
        self.killed_tor_comes_back(node, after)
        self.sigterm_leaves_nothing(node)

    def killed_tor_comes_back(self, node: Daemon, facts: dict[str, Any]) -> None:
        """tor killed → readiness says so → restarted → the same onion answers again."""
        gateway = facts["gateway_url"]
        os.kill(facts["pids"]["onion"], signal.SIGKILL)

        def names_the_dead_tor() -> bool:
            return "tor.onion" in http("GET", f"{gateway}/readyz").json()["missing"]

        until(names_the_dead_tor, 10, "readiness naming the dead tor")

        def ready_but_for_the_pack() -> bool:
            return http("GET", f"{gateway}/readyz").json()["missing"] == ["edge.pack:world.pmtiles"]

        until(ready_but_for_the_pack, 60, "tor coming back")
        until(lambda: node.facts()["pids"]["onion"] != facts["pids"]["onion"], 5, "the facts naming the new tor")
        self.assertEqual(node.facts()["onion"], facts["onion"])

        def ping_through_the_onion() -> bool:
            return http("GET", f"{gateway}/hello.json").json()["ping"]["state"] == "ok"

        until(ping_through_the_onion, 90, "a ping through the onion of the restarted tor")

    def sigterm_leaves_nothing(self, node: Daemon) -> None:
        facts = node.facts()
        home = str(node.home)
        node.stop(signal.SIGTERM)
        self.assertEqual(process_tree(home), [])
        for pid in facts["pids"].values():
            self.assertFalse(alive(pid))
        ports = [int(facts[u].rpartition(":")[2]) for u in ("gateway_url", "mailbox_url")] + facts["device_socks_ports"]
        for port in ports:
            self.assertFalse(listening(port), port)
        self.assertFalse((Path(home) / "node.json").exists())

    def a_corrupt_pack_takes_nothing_else_down(self, node: Daemon, facts: dict[str, Any]) -> None:
        gateway = facts["gateway_url"]
        readiness = http("GET", f"{gateway}/readyz")
        self.assertEqual((readiness.status, readiness.json()["missing"]), (503, ["edge.pack:world.pmtiles"]))
        tile = http("GET", f"{gateway}/tiles/0/0/0.png")
        self.assertEqual((tile.status, tile.json()["error"]["code"]), (503, "StoreUnavailable"))
        self.assertIn(int(tile.headers["retry-after"]), range(1, 6))
        self.assertEqual(http("GET", f"{gateway}/").status, 200)
        body = {"topic": "t", "payload_b64": "aGk="}
        self.assertEqual(http("POST", f"{facts['mailbox_url']}/v1/send", cap=node.admin_cap(), body=body).status, 200)
        until(lambda: http("GET", f"{gateway}/hello.json").json()["ping"]["state"] == "ok", 60, "a ping all the same")

    def test_amnesia_keeps_nothing(self) -> None:
        node = new_node('[log]\nto = "memory"\n', onion="amnesia = true")
        self.addCleanup(node.destroy)
        node.start()
        facts = node.facts()
        until(lambda: http("GET", f"{facts['gateway_url']}/hello.json").json()["ping"]["state"] == "ok", 60, "a ping")
        self.assertEqual(
            {p.name for p in node.home.iterdir()},
            {".lock", "admin.cap", "node.json", "run"},
            "only facts, the capability and sockets",
        )
        self.assertTrue(all(path.is_socket() for path in (node.home / "run").iterdir()))
        command = Path(f"/proc/{facts['pids']['onion']}/cmdline").read_text()
        (memory,) = set(re.findall(r"/dev/shm/ron-[^/\0]+", command))
        self.assertTrue(Path(memory).is_dir())
        node.stop(signal.SIGINT)
        self.assertEqual([pid for pid in facts["pids"].values() if alive(pid)], [], "Ctrl-C leaves nothing either")
        self.assertEqual({p.name for p in node.home.iterdir()}, {".lock"})
        self.assertFalse(Path(memory).exists())
