"""Rehearsals of docs/operations.rst on a Macronode: processes that hang, crash or may not write, changes for all.

Needs tor, curl and prlimit (util-linux).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

from ron.kernel.processes import MAX_MISSES, PROBE_S
from ron.nodes.macronode import PROBE_DEADLINE_S
from tests.live.load import Load
from tests.live.runbooks import Operator, Rehearsal, call_from, macronode, taken
from tests.live.support import Reply, alive, http, until

SILENT_S = MAX_MISSES * (PROBE_S + PROBE_DEADLINE_S)


class RollbackTests(Rehearsal):
    """A change that is valid and bad, in all processes of a Macronode."""

    def setUp(self) -> None:
        self.begin(macronode())

    def test_config_rollback(self) -> None:
        operator = Operator(self.node, "Config rollback")
        good = self.node.config.read_text()
        bad = good + "[limits]\nrequests_per_second_per_peer = 10\n"
        with self.restored(good):
            taken(self.face, lambda: self.node.config.write_text(bad))
            self.assertIn(429, self.answers_of_the_mailbox())
            shown = operator.does("ronctl tail")
            self.assertIn("ConfigUpdated", shown)
            self.assertIn("mailbox", shown)
            answer: dict[str, Any] = {}
            taken(self.face, lambda: answer.update(json.loads(operator.does("rollback"))))
            self.assertEqual([c["key"] for c in answer["changes"]], ["limits.requests_per_second_per_peer"])
            self.assertEqual(self.answers_of_the_mailbox(), {404}, "the mailbox's process went back as well")
            time.sleep(2.5)
            self.assertEqual(self.answers_of_the_mailbox(), {404}, "the bad file is not taken again")
            self.is_well(1)
            version = self.face.status()["config_version"]
            self.assertEqual(version, answer["version"])
            operator.does("config check")
            operator.does("reload")
            self.assertEqual(self.face.status()["config_version"], version)
        self.assertEqual(operator.left, [])
        self.is_well(5)

    @contextlib.contextmanager
    def restored(self, good: str) -> Iterator[None]:
        try:
            yield
        finally:
            self.node.config.write_text(good)

    def answers_of_the_mailbox(self) -> set[int]:
        """To 30 calls at once: 404 to all that are let through."""
        return {call_from("127.0.0.9", f"{self.face.mailbox}/v1/nothing").status for _ in range(30)}


class DiskFullTests(Rehearsal):
    """The mailbox's process may not write to any file, which is a full disk as far as it can tell."""

    def setUp(self) -> None:
        self.begin(macronode())

    def test_disk_full(self) -> None:
        operator = Operator(self.node, "Disk full")
        operator.does("df -h")
        with Load(self.face, "t/disk", senders=4, readers=0) as load:
            until(lambda: len(load.sent) >= 50, 20, "messages being taken")
            with self.no_room():
                until(lambda: load.statuses[503], 5, "sending being refused")
                self.the_rest_goes_on()
                operator.does("du -sh")
                operator.does("rm -f")
            until(lambda: "mailbox.store" not in self.face.ready()["missing"], 5, "the store taking writes again")
        self.assertEqual(set(load.statuses), {200, 503})
        for reply in load.refused:
            self.says_when(reply, 503)
        self.is_well(15)
        self.assertEqual(self.face.send("t/disk-key", key="disk-full").json()["msg_id"], self.repeated)
        operator.does("mailbox send")
        self.assertEqual(operator.does("mailbox recv"), "probe\n")
        self.assertEqual(operator.left, [])
        self.nothing_is_lost(load.sent)

    @contextlib.contextmanager
    def no_room(self) -> Iterator[None]:
        """Nothing can be written within; what was sent twice with one key is there once."""
        self.repeated = self.face.send("t/disk-key", key="disk-full").json()["msg_id"]
        pid = str(self.face.services()["mailbox"]["pid"])
        subprocess.run(["prlimit", "--pid", pid, "--fsize=0:unlimited"], check=True)
        try:
            yield
        finally:
            subprocess.run(["prlimit", "--pid", pid, "--fsize=unlimited"], check=True)

    def the_rest_goes_on(self) -> None:
        until(lambda: self.face.ready()["missing"] == ["mailbox.store"], 5, "readiness naming the store")
        self.assertEqual(http("GET", f"{self.face.gateway}/readyz").status, 503)
        self.assertEqual(self.face.recv("t/disk").status, 503, "a lease is a write")
        for path in ("/", "/hello.json", "/healthz", "/tiles/0/0/0.png", "/tiles/2/1/1.png"):
            self.assertEqual(http("GET", self.face.gateway + path).status, 200, path)
        self.assertEqual(http("GET", f"{self.face.mailbox}/healthz").status, 200)
        self.assertEqual(self.node.ronctl("mailbox", "send", "ops/full", str(self.node.config)).returncode, 8)

    def nothing_is_lost(self, acknowledged: set[str]) -> None:
        """Also when the process is killed right after the trouble."""
        pid = self.face.services()["mailbox"]["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: self.face.services()["mailbox"]["pid"] not in (pid, None), 10, "the mailbox coming back")
        received: set[str] = set()
        while messages := self.face.recv("t/disk", 64).json()["messages"]:
            received |= {message["msg_id"] for message in messages}
            for message in messages:
                self.assertEqual(self.face.ack(message).status, 200)
        self.assertEqual(acknowledged - received, set(), "acknowledged messages that are gone")
        self.is_well(10)


class PartitionTests(Rehearsal):
    """Processes of a Macronode that are there and say nothing."""

    def setUp(self) -> None:
        self.begin(macronode())

    def test_partial_partition(self) -> None:
        operator = Operator(self.node, "Partial partition")
        before = self.face.services()
        cached, fresh = "/tiles/2/2/1.png", "/tiles/2/3/3.png"
        self.assertEqual(self.face.tile(cached), 200)
        kept = self.face.send("t/hang").json()["msg_id"]
        edge = self.stopped("edge")
        self.assertEqual(self.face.send("t/else").status, 200)
        self.who_comes_back_in_time_is_left_alone()
        mailbox = self.stopped("mailbox")
        late: list[Reply] = []
        waiting = threading.Thread(target=lambda: late.append(self.face.send("t/late")), daemon=True)
        waiting.start()
        for name, since in (("edge", edge), ("mailbox", mailbox)):
            while self.face.services()[name]["pid"] == before[name]["pid"]:
                self.assertLess(time.monotonic() - since, SILENT_S + 3, f"{name} hangs and nobody minds")
                self.the_others_go_on(cached)
                time.sleep(0.5)
        waiting.join(30)
        self.assertEqual([reply.status for reply in late], [200], "who waited is answered by the successor")
        self.is_well(10)
        self.assertEqual(self.face.tile(fresh), 200, "a tile that nobody had in memory")
        self.assertEqual([m["msg_id"] for m in self.face.recv("t/hang").json()["messages"]], [kept])
        self.hung_ones_were_replaced(before)
        self.the_operator_sees_it(operator)

    def stopped(self, name: str) -> float:
        """`name` hangs from now on."""
        os.kill(self.face.services()[name]["pid"], signal.SIGSTOP)
        return time.monotonic()

    def who_comes_back_in_time_is_left_alone(self) -> None:
        hello = self.face.services()["hello"]
        os.kill(hello["pid"], signal.SIGSTOP)
        try:
            until(self.hello_was_missed, SILENT_S, "a miss")
        finally:
            os.kill(hello["pid"], signal.SIGCONT)

    def hello_was_missed(self) -> bool:
        return any(line["event"] == "unit_silent" and line["unit"] == "hello" for line in self.face.log())

    def the_others_go_on(self, cached: str) -> None:
        """Page, cached tiles and the bus, whose commands are answered as if nothing were wrong."""
        for path in (cached, "/", "/healthz"):
            self.assertEqual(http("GET", self.face.gateway + path).status, 200, path)
        asked = time.monotonic()
        self.assertEqual(len(self.face.services()), 6)
        self.assertLess(time.monotonic() - asked, 2.0, "the bus waits for those that hang")

    def hung_ones_were_replaced(self, before: dict[str, dict[str, Any]]) -> None:
        after = self.face.services()
        restarts = {name: after[name]["restarts"] - before[name]["restarts"] for name in after}
        self.assertEqual(restarts, {**dict.fromkeys(after, 0), "edge": 1, "mailbox": 1})
        self.assertFalse(alive(before["edge"]["pid"]) or alive(before["mailbox"]["pid"]))

    def the_operator_sees_it(self, operator: Operator) -> None:
        self.assertEqual(operator.does("service list").count("it has not answered"), 2)
        told = [line for line in operator.does("ronctl tail").splitlines() if "has not answered" in line]
        self.assertTrue(any("service=edge" in line for line in told), told)
        self.assertTrue(any("service=mailbox" in line for line in told), told)
        self.assertFalse(any("service=hello" in line for line in told), told)
        operator.does("unit_silent")
        self.assertEqual(operator.left, [])


class OperatorTests(Rehearsal):
    """What an operator takes back and lets go."""

    def setUp(self) -> None:
        self.begin(macronode())

    def test_a_leaked_capability(self) -> None:
        operator = Operator(self.node, "A leaked capability")
        minted = self.node.ronctl("cap", "mint", "--scope", "mailbox:send", "--label", "leaked")
        token = minted.stdout.strip().splitlines()[-1]
        narrowed = self.node.ronctl("cap", "attenuate", token, "--topic", "t/leak").stdout.strip().splitlines()[-1]
        (operator.folder / "leaked.cap").write_text(token + "\n")
        self.assertEqual([self.face.send("t/leak", cap=cap).status for cap in (token, narrowed)], [200, 200])
        self.assertIn("leaked", operator.does("cap list"))
        self.assertIn("revoked", operator.does("cap revoke"))

        def void() -> bool:
            return all(self.face.send("t/leak", cap=cap).status == 401 for cap in (token, narrowed))

        until(void, 5, "the mailbox's process refusing it")
        self.assertEqual(self.face.send("t/leak").status, 200, "others hold")
        # of another process, and up to two seconds old
        until(lambda: self.face.metric("auth_refused_total", '"revoked"') > 0, 10, "the refusals being counted")
        self.assertEqual(operator.left, ["ronctl cap rotate --grace 0s"], "rehearsed on the Micronode")

    def test_quarantine(self) -> None:
        operator = Operator(self.node, "A service in quarantine")
        for _ in range(10):
            unit = until(self.hello_settled, 30, "hello up or in quarantine")
            if unit["state"] == "quarantined":
                break
            os.kill(unit["pid"], signal.SIGKILL)
            until(lambda gone=unit: self.face.services()["hello"]["pid"] != gone["pid"], 10, "the kill being noticed")
        body = self.face.ready()
        self.assertEqual(body["missing"], ["service.hello"])
        self.assertIn("ronctl service release hello", body["reasons"]["service.hello"])
        self.assertIn("quarantined", operator.does("service list"))
        self.assertEqual((self.face.tile(), self.face.send("t/q").status), (200, 200))
        operator.does("service release")
        until(lambda: self.face.services()["hello"]["state"] == "up", 20, "hello coming back")
        self.is_well(10)
        self.assertEqual(operator.left, [])

    def hello_settled(self) -> dict[str, Any] | None:
        unit = self.face.services()["hello"]
        up = unit["state"] == "up" and unit["pid"] is not None
        return unit if up or unit["state"] == "quarantined" else None
