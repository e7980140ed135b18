"""A Macronode's processes killed under load: back within a second, nothing acknowledged lost. Needs tor."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import time
from collections import Counter
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.load import Load
from tests.live.support import MACRONODE, NO_TOR, Daemon, alive, http, listening, new_node, process_tree, until

CHILDREN = {"edge", "mailbox", "gateway.1", "gateway.2", "oniond", "hello"}
# what lives in the node's own process
IN_NODE = {"tornet"}
CONFIG = MACRONODE + "[limits]\nconcurrency = 512\n"


def macronode() -> Daemon:
    """A Macronode whose gateway has two workers, not started yet."""
    node = new_node(CONFIG)
    text = node.config.read_text().replace("[gateway]\n", "[gateway]\nworkers = 2\n")
    node.config.write_text(text)
    return node


class Services:
    """A node's units as it shows them itself."""

    def __init__(self, node: Daemon) -> None:
        self.node = node
        self.gateway = node.facts()["gateway_url"]
        self.mailbox = node.facts()["mailbox_url"]
        self.cap = node.admin_cap()

    def all(self) -> dict[str, dict[str, Any]]:
        reply = http("GET", f"{self.gateway}/v1/services", cap=self.cap)
        return {unit["name"]: unit for unit in reply.json()}

    def tors(self) -> dict[str, int | None]:
        """Every tor's process."""
        status = http("GET", f"{self.gateway}/v1/status", cap=self.cap).json()
        return {tor["name"]: tor["pid"] for tor in status["tor"]["tors"]}

    def kill(self, name: str) -> tuple[float, dict[str, Any]]:
        """Kill -9 `name`; seconds until it is up again, and the unit as it is then."""
        pid = self.all()[name]["pid"]
        started = time.monotonic()
        os.kill(pid, signal.SIGKILL)

        def back() -> dict[str, Any] | None:
            unit = self.all()[name]
            return unit if unit["state"] == "up" and unit["pid"] != pid else None

        while (unit := back()) is None:
            if time.monotonic() - started > 30:
                raise AssertionError(f"{name} did not come back")
            time.sleep(0.02)
        return time.monotonic() - started, unit


class KilledChildrenTests(SynchronousTestCase):
    """kill -9 of any child under load; one node for all of it, since it must come out well each time."""

    skip = NO_TOR

    def test_every_child_is_back_within_a_second_and_nothing_acknowledged_is_lost(self) -> None:
        node = macronode()
        self.addCleanup(node.destroy)
        from tests.live.support import build_pack

        build_pack(node.home, max_zoom=2)
        node.start()
        services = Services(node)
        self.assertEqual(set(services.all()), CHILDREN | IN_NODE)
        self.private_sockets(node)
        self.both_workers_count(services)
        with Load(services) as load:
            onion, tors = node.facts()["onion"], services.tors()
            for name in ("mailbox", "edge", "gateway.1", "hello", "oniond"):
                time.sleep(4)  # a spare process is started two seconds after the last was taken
                failed = Counter(load.failures)
                seconds, unit = services.kill(name)
                self.assertLess(seconds, 1.0, f"{name}: {unit}")
                self.assertEqual(unit["reason"], "ended by signal 9")
                for other in {"gateway", "mailbox"} - {name.partition(".")[0]}:
                    self.assertEqual(load.failures[other], failed[other], f"{other} failed while {name} was down")
        self.assertGreater(load.calls["gateway"], 100)
        self.assertEqual((node.facts()["onion"], services.tors()), (onion, tors), "a killed runtime costs no tor")
        self.assertEqual(node.ronctl("hello").returncode, 0)
        received = self.drain(services)
        self.assertEqual(load.sent - received, set(), "acknowledged messages that are gone")
        self.tail_tells_of_the_crashes(node)
        self.nothing_is_left(node)

    def private_sockets(self, node: Daemon) -> None:
        run = node.home / "run"
        self.assertEqual(stat.S_IMODE(run.stat().st_mode), 0o700)
        for name in ("bus.sock", "edge.sock"):
            self.assertEqual(stat.S_IMODE((run / name).stat().st_mode), 0o600, name)

    def both_workers_count(self, services: Services) -> None:
        """One answer for all processes, whichever worker is asked."""

        def served() -> float:
            text = http("GET", f"{services.gateway}/metrics", cap=services.cap).body.decode()
            line = next(x for x in text.splitlines() if x.startswith("http_requests_total") and '"/healthz"' in x)
            return float(line.rpartition(" ")[2])

        http("GET", f"{services.gateway}/healthz")
        served()
        time.sleep(3)
        before = served()
        for _ in range(40):
            http("GET", f"{services.gateway}/healthz")
        until(lambda: served() - before == 40, 5, "the metrics of both workers, which may be two seconds old")
        text = http("GET", f"{services.gateway}/metrics", cap=services.cap).body.decode()
        seen = {name for name in CHILDREN | {"node"} if f'process_cpu_seconds_total{{process="{name}"}}' in text}
        self.assertEqual(seen, CHILDREN | {"node"})

    def drain(self, services: Services) -> set[str]:
        received: set[str] = set()
        while True:
            body = {"topic": "t/load", "max": 64, "visibility_timeout_s": 600}
            messages = http("POST", f"{services.mailbox}/v1/recv", cap=services.cap, body=body).json()["messages"]
            if not messages:
                return received
            for message in messages:
                self.assertEqual(base64.b64decode(message["payload_b64"]), b"hi")
                received.add(message["msg_id"])
                receipt = {"receipt": message["receipt"]}
                path = f"{services.mailbox}/v1/ack/{message['msg_id']}"
                self.assertEqual(http("POST", path, cap=services.cap, body=receipt).status, 200)

    def tail_tells_of_the_crashes(self, node: Daemon) -> None:
        done = node.ronctl("tail", "--topic", "kernel", "--since", "10m", "--json", "--no-follow")
        self.assertEqual(done.returncode, 0, done.stderr)
        events = [json.loads(line)["body"] for line in done.stdout.splitlines()]
        crashed = {e["service"] for e in events if e.get("event") == "ServiceCrashed"}
        self.assertLessEqual({"mailbox", "edge", "gateway.1", "hello", "oniond"}, crashed)

    def nothing_is_left(self, node: Daemon) -> None:
        facts = node.facts()
        self.assertEqual(node.stop(signal.SIGTERM), 0)
        self.assertEqual(process_tree(str(node.home)), [])
        self.assertEqual([n for n, pid in facts["pids"].items() if alive(pid)], [])
        for url in ("gateway_url", "mailbox_url"):
            self.assertFalse(listening(int(facts[url].rpartition(":")[2])))
