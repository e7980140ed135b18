"""Rehearsals of docs/operations.rst on a Micronode: faults are made, promises checked, commands run as they stand.

Needs tor and curl. What needs a process for each service is in test_runbooks_macronode.py.
"""

from __future__ import annotations

import contextlib
import http.client as http_client
import json
import os
import signal
import ssl
import time
from collections.abc import Iterator
from typing import Any

from ron.kernel.processes import MAX_MISSES, PROBE_S
from ron.nodes.macronode import PROBE_DEADLINE_S
from tests.live.load import Load
from tests.live.runbooks import (
    COLLECTOR,
    LATENCY,
    Face,
    Operator,
    Rehearsal,
    call_from,
    changed_config,
    micronode,
)
from tests.live.support import Reply, http, until

SILENT_S = MAX_MISSES * (PROBE_S + PROBE_DEADLINE_S)


class OverloadTests(Rehearsal):
    """A Micronode that is asked for too much."""

    def setUp(self) -> None:
        self.begin(micronode())

    def test_overload(self) -> None:
        operator = Operator(self.node, "Overload")
        self.one_address_asks_too_much()
        self.everybody_asks_too_much()
        self.the_promise_burns(operator)
        self.one_capability_asks_too_much(operator)
        operator.does("config check")
        self.assertEqual(operator.left, [])

    def one_address_asks_too_much(self) -> None:
        tile = f"{self.face.gateway}/tiles/0/0/0.png"
        with self.face.with_config("[limits]\nrequests_per_second_per_peer = 10\n"):
            loud = [call_from("127.0.0.2", tile) for _ in range(20)]
            self.assertEqual({reply.status for reply in loud}, {200, 429})
            self.says_when(next(reply for reply in loud if reply.status == 429), 429)
            self.assertEqual(call_from("127.0.0.3", tile).status, 200)
            for path in ("/healthz", "/readyz"):
                self.assertEqual(call_from("127.0.0.2", self.face.gateway + path).status, 200, path)

    def everybody_asks_too_much(self) -> None:
        with (
            self.face.with_config("[limits]\nconcurrency = 1\n"),
            Load(self.face, "t/many", senders=8, readers=0) as load,
        ):
            until(lambda: load.statuses[503] and load.statuses[200], 10, "some being refused and some not")
            for _ in range(20):
                self.assertEqual(http("GET", f"{self.face.mailbox}/healthz").status, 200)
                self.assertEqual(http("GET", f"{self.face.gateway}/readyz").status, 200)
        self.says_when(load.refused[0], 503)
        self.assertGreater(self.face.metric("rejected_total", '"concurrency"'), 0)
        self.assertEqual(self.face.send("t/many").status, 200)

    def the_promise_burns(self, operator: Operator) -> None:
        """For once, answers that take over a millisecond are bad ones: under load, those of the mailbox are."""
        kept = self.face.send("t/kept").json()["msg_id"]
        spans = COLLECTOR.calls
        strict = self.node.config.read_text().replace(LATENCY, "latency_ms = 1")
        with changed_config(self.face, strict), Load(self.face, "t/burn", senders=8, readers=0):
            until(lambda: "slo" in self.face.ready()["degraded"], 20, "slo being degraded")
            self.says_when(until(self.a_shed_write, 5, "a message being refused"), 503)
            self.assertEqual(self.face.tile(), 200)
            received = self.face.recv("t/kept").json()["messages"]
            self.assertEqual([m["msg_id"] for m in received], [kept])
            self.assertEqual(self.face.ack(received[0]).status, 200)
            self.assertTrue(self.face.ready()["ready"])
        shown = operator.does("grep")
        self.assertIn('rejected_total{reason="slo_burn"}', shown)
        self.assertIn("slo_burning", shown)
        until(lambda: COLLECTOR.calls > spans, 15, "spans of the incident")
        self.is_well(15)
        self.assertNotIn("slo", json.loads(operator.does("/readyz"))["degraded"])
        self.assertEqual(self.face.send("t/burn").status, 200)
        self.assertEqual(self.face.metric("slo_burning"), 0)

    def a_shed_write(self) -> Reply | None:
        reply = self.face.send("t/burn")
        return reply if reply.status == 503 and b"writes are shed" in reply.body else None

    def one_capability_asks_too_much(self, operator: Operator) -> None:
        operator.does("cap mint")
        loud = (operator.folder / "loud.cap").read_text().strip()
        replies = [self.face.send("t/loud", cap=loud) for _ in range(20)]
        self.assertEqual({reply.status for reply in replies}, {200, 429})
        self.says_when(next(reply for reply in replies if reply.status == 429), 429)
        self.assertEqual(self.face.send("t/loud").status, 200, "other capabilities are not touched")

    def test_a_slow_node(self) -> None:
        operator = Operator(self.node, "A slow node")
        with Load(self.face, "t/slow", senders=2, readers=0):
            operator.does("profile")
        self.assertEqual(operator.left, [])
        graph = (operator.folder / "slow.svg").read_text()
        self.assertIn("<svg", graph)
        self.assertIn("mailbox", graph, "what it was busy with")
        self.assertGreater(self.face.metric("mailbox_commit_seconds_count"), 0)


class CertificateTests(Rehearsal):
    """A certificate that ends soon."""

    def setUp(self) -> None:
        self.begin(micronode())
        self.url = self.node.facts()["gateway_tls_url"]

    def test_certificate_expiry(self) -> None:
        operator = Operator(self.node, "Certificate expiry")
        before = self.face.ready()
        self.assertEqual((before["ready"], before["degraded"]), (True, ["tls.gateway"]))
        self.assertIn("expires in 4 days", before["reasons"]["tls.gateway"])
        left_s = float(operator.does("tls_certificate_expiry_seconds").rpartition(" ")[2])
        self.assertTrue(4 * 86_400 < left_s < 5 * 86_400, left_s)
        self.assertIn("alpha", operator.does("ca show"))

        with self.connected() as early:
            old = self.serial(early)
            self.a_file_that_is_no_certificate_changes_nothing(old)
            operator.does("ca renew")
            until(lambda: self.face.ready()["degraded"] == [], 5, "the new certificate being taken")
            with self.connected() as late:
                self.assertNotEqual(self.serial(late), old)
                self.assertEqual(self.asks(late), 200)
            self.assertEqual((self.asks(early), self.serial(early)), (200, old), "an open connection goes on")
        self.assertGreater(self.face.metric("tls_certificate_expiry_seconds"), 80 * 86_400)
        self.assertEqual(operator.left, [])

    def a_file_that_is_no_certificate_changes_nothing(self, old: str) -> None:
        path = self.node.home / "tls" / "alpha.pem"
        good = path.read_bytes()
        path.write_bytes(b"-----BEGIN NONSENSE-----")
        until(lambda: "cannot be used" in self.face.ready()["reasons"]["tls.gateway"], 5, "the reason in readiness")
        with self.connected() as connection:
            self.assertEqual((self.asks(connection), self.serial(connection)), (200, old))
        path.write_bytes(good)
        until(lambda: "expires in" in self.face.ready()["reasons"]["tls.gateway"], 5, "the good file being taken")

    @contextlib.contextmanager
    def connected(self) -> Iterator[http_client.HTTPSConnection]:
        trusted = ssl.create_default_context(cafile=str(self.node.home / "ca" / "ca.pem"))
        port = int(self.url.rpartition(":")[2])
        connection = http_client.HTTPSConnection("127.0.0.1", port, timeout=10, context=trusted)
        connection.connect()
        with contextlib.closing(connection):
            yield connection

    def serial(self, connection: http_client.HTTPSConnection) -> str:
        assert isinstance(connection.sock, ssl.SSLSocket)
        shown: Any = connection.sock.getpeercert()
        return str(shown["serialNumber"])

    def asks(self, connection: http_client.HTTPSConnection) -> int:
        connection.request("GET", "/healthz")
        with connection.getresponse() as answer:
            answer.read()
            return answer.status


class ConfigTests(Rehearsal):
    """Changes of the config that should not have been made."""

    def setUp(self) -> None:
        self.begin(micronode())

    def test_what_is_no_config_changes_nothing(self) -> None:
        path, good = self.node.config, self.node.config.read_text()
        version = self.face.status()["config_version"]
        refused = self.face.metric("config_reloads_total", '"refused"')
        logged = self.refusals_logged()
        for text in ("}{", "", good.replace("hold_s", "hold_z"), good.replace("hold_s = 2", "hold_s = 0")):
            path.write_text(text)
            self.the_old_config_stays(version, repr(text[:20]))
            path.write_text(good)
            self.is_well(5)
        path.unlink()
        path.mkdir()
        self.the_old_config_stays(version, "a folder")
        path.rmdir()
        time.sleep(1.5)
        self.the_old_config_stays(version, "no file")
        path.write_text(good)
        self.is_well(5)
        self.assertGreaterEqual(self.face.metric("config_reloads_total", '"refused"') - refused, 5)
        self.assertGreaterEqual(self.refusals_logged() - logged, 5)

    def the_old_config_stays(self, version: int, wrong: str) -> None:
        body = until(self.config_is_degraded, 5, f"readiness naming {wrong}")
        self.assertTrue(body["ready"], wrong)
        self.assertEqual(self.face.status()["config_version"], version, wrong)
        self.assertEqual(self.face.send("t/config").status, 200, wrong)

    def config_is_degraded(self) -> dict[str, Any] | None:
        body = self.face.ready()
        return body if "config" in body["degraded"] else None

    def refusals_logged(self) -> int:
        return sum(line["event"] == "config_refused" for line in self.face.log())

    def test_sighup_takes_a_change(self) -> None:
        good = self.node.config.read_text()
        with changed_config(self.face, good.replace(LATENCY, "latency_ms = 9000")):
            version = self.face.status()["config_version"]
            self.node.config.write_text(good.replace(LATENCY, "latency_ms = 8000"))
            os.kill(self.node.pid, signal.SIGHUP)
            until(lambda: self.face.status()["config_version"] == version + 1, 5, "the change being taken")

    def test_all_capabilities_are_void(self) -> None:
        operator = Operator(self.node, "A leaked capability")
        old = self.face.cap
        operator.does("rotate")
        until(lambda: self.face.send("t/void", cap=old).status == 401, 5, "the old capability being void")
        until(lambda: self.node.admin_cap() != old, 5, "a new admin capability")
        fresh = Face(self.node)
        until(lambda: fresh.send("t/void").status == 200, 5, "the new one being good")
        self.assertEqual(fresh.status()["missing"], [])
