"""What a service tells of itself while it works: the metrics of the specification, and a log that gives nothing away.

OBSERVABILITY §6. The log is the one that a daemon writes, and at the level at which it says most.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from twisted.logger import globalLogPublisher

from ron.kernel.config import convert
from ron.kernel.logs import JsonLogObserver, kid_hash
from ron.proto.kms import parse_kid
from ron.services.kms.config import KmsConfig
from ron.services.kms.telemetry import KmsTelemetry
from tests.services.kms.world import B3, UNKNOWN, World, at, bare, op_id

ROOT = Path(__file__).resolve().parents[3]
# OBSERVABILITY §1, and what else is counted under its names. A counter without its `_total`.
METRICS = {
    "http_requests",
    "request_latency_seconds",
    "inflight_requests",
    "rejected",
    "bus_lagged",
    "service_restarts",
    "queue_depth",
    "queue_dropped",
    "busy_rejections",
    "kms_ops",
    "kms_latency_seconds",
    "kms_reject",
    "kms_audit_appends",
    "kms_audit_checkpoint",
    "kms_audit_integrity_failed",
    "kms_audit_queue_depth",
    "kms_audit_dropped",
    "kms_attest",
    "kms_backend_sessions",
    "kms_backend_reconnects",
    "kms_pq_mode",
    "kms_pq_rollout_percent",
    "kms_verify_cache_age_ms",
    "kms_verify_cache_hits",
    "kms_keys_total",
    "kms_key_version_head",
    "kms_pq_phase",
    "kms_policy_rejects",
    "kms_attestation_ready_seconds",
    "kms_config_verify_cache_ttl_ms",
    "kms_verify_cache_size",
    "verify_cache_expired",
}
# Of every line of an operation (OBSERVABILITY §3.1)
FIELDS = {"ts", "level", "service", "event", "message", "corr_id", "tenant", "kid_hash", "kid_version", "result"}
SECRET = "correct horse battery"


class Smoke(World):
    """Everything once, and a refusal."""

    async def setUp(self) -> None:
        self.written = io.StringIO()
        observer = JsonLogObserver(self.written, service="ron-kms", level="debug")
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        await super().setUp()

    async def begin(self) -> None:
        """With every single operation in the log."""
        made = KmsTelemetry.__init__

        def chatty(self: KmsTelemetry, metrics: Any, clock: Any, _chatty: Any) -> None:
            made(self, metrics, clock, lambda: True)

        self.patch(KmsTelemetry, "__init__", chatty)
        await super().begin()

    async def _everything(self) -> tuple[str, str, Any]:
        kid, kem = await self.create("hybrid"), await self.create("hybrid", purpose="kem")
        sigs = (await self.sign(kid))["sigs"]
        await self.verify(sigs, kid)
        made = await self.done("POST", "/wrap", {"kid": kem, "size": 32})
        opened = await self.done("POST", "/unwrap", {"kid": kem, "wrapped_b64": made["wrapped_b64"]})
        await self.done("POST", at(bare(kid)) + "/rotate")
        await self.done("GET", "/attest")
        await self.refused(404, "NotFound", "POST", "/sign", {"kid_or_set": {"kid": UNKNOWN}, "payload_b3": B3})
        self.token, token = None, self.token
        await self.ask("POST", "/sign", {"kid_or_set": {"kid": kid}, "payload_b3": B3})
        self.token = token
        return kid, kem, [*(one["signature_b64"] for one in sigs), opened["plaintext_key_b64"], made["wrapped_b64"]]

    async def test_every_metric_of_the_specification_is_there(self) -> None:
        await self._everything()
        families = set(re.findall(r"^# TYPE (\w+) ", self.metrics.render().decode(), re.MULTILINE))
        families |= {name.removesuffix("_total") for name in families if name != "kms_keys_total"}
        self.assertEqual(METRICS - families, set())

    async def test_no_metric_is_registered_twice(self) -> None:
        """The registry takes a name once, and each room makes its own but once."""
        self.assertRaises(ValueError, KmsTelemetry, self.metrics, lambda: 0.0, lambda: True)
        found: Counter[str] = Counter()
        for path in (ROOT / "ron" / "services" / "kms").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                named = isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"Counter", "Gauge", "Histogram"}
                if isinstance(node, ast.Call) and named and node.args and isinstance(node.args[0], ast.Constant):
                    found[str(node.args[0].value).removesuffix("_total")] += 1
        self.assertGreater(len(found), 15)
        self.assertEqual([name for name, times in found.items() if times > 1], [])

    async def test_those_that_matter_most_were_counted(self) -> None:
        await self._everything()
        shown = self.metrics.render().decode()
        for line in (
            'kms_ops_total{alg="ed25519",op="sign",result="ok"} 1.0',
            'kms_ops_total{alg="ml-dsa",op="sign",result="ok"} 1.0',
            'kms_ops_total{alg="ml-dsa",op="verify",result="ok"} 1.0',
            'kms_ops_total{alg="ml-kem",op="wrap",result="ok"} 1.0',
            'kms_ops_total{alg="x25519",op="unwrap",result="ok"} 1.0',
            'kms_latency_seconds_count{alg="ml-dsa",op="sign"} 1.0',
            "kms_audit_integrity_failed_total 0.0",
            'busy_rejections_total{queue="sign"} 0.0',
            'kms_reject_total{reason="not_found"} 1.0',
            'rejected_total{reason="unauth"} 1.0',
        ):
            self.assertIn(line, shown)

    async def test_sign_result_says_what_and_for_whom(self) -> None:
        kid, _kem, _secrets = await self._everything()
        good, bad = (one for one in self._lines() if one["event"] == "sign_result")
        self.assertLessEqual(FIELDS, set(good))
        self.assertEqual(good["kid_hash"], kid_hash(kid))
        self.assertRegex(good["kid_hash"], r"^[0-9a-f]{8}\Z")
        self.assertEqual((good["tenant"], good["kid_version"], good["result"]), ("core", 1, "ok"))
        self.assertEqual((good["service"], good["level"], good["alg"]), ("ron-kms", "INFO", "ed25519+ml-dsa"))
        self.assertRegex(good["corr_id"], r"^[0-9a-f-]{36}\Z")
        self.assertGreater(good["latency_ms"], 0)
        self.assertLessEqual(FIELDS, set(bad))
        self.assertEqual((bad["result"], bad["reason"]), ("err", "not_found"))

    async def test_who_asked_for_what_and_where(self) -> None:
        """OBSERVABILITY §3.1: on every line of a request; a path has its key's name cut out."""
        kid, _kem, _secrets = await self._everything()
        routes = {
            "sign": "/v1/kms/sign", "create": "/v1/kms/keys", "rotate": "/v1/kms/keys/<kid>/rotate",
            "verify": "/v1/kms/verify",
        }  # fmt: skip
        for op, route in routes.items():
            for one in self._events(f"{op}_request", f"{op}_result"):
                self.assertEqual((one["route"], one["request_id"]), (route, one["corr_id"]))
                self.assertIn("peer_addr", one)
        await self.done("GET", at(kid))

    async def test_keys_that_are_made_say_of_what(self) -> None:
        kid, _kem, _secrets = await self._everything()
        made = self._events("create_result")[0]
        self.assertEqual((made["alg"], made["kid_version"]), ("ed25519+ml-dsa", 1))
        self.assertEqual(made["kid_hash"], kid_hash(kid))
        turned = self._events("rotate_result")[0]
        self.assertEqual((turned["alg"], turned["kid_version"]), ("ed25519+ml-dsa", 2))
        self.assertNotIn("kid_version", self._events("create_request")[0])
        shown = self.metrics.render().decode()
        self.assertIn('kms_ops_total{alg="ml-dsa",op="create",result="ok"} 1.0', shown)
        self.assertNotIn('kms_ops_total{alg="-",op="create"', shown)

    async def test_a_key_that_is_not_known_is_a_miss(self) -> None:
        _kid, _kem, secrets = await self._everything()
        sigs = [{"alg": "ed25519", "signature_b64": secrets[0]}]
        body = {"kid_or_set": {"kid": UNKNOWN}, "payload_b3": B3, "sigs": sigs}
        hits = self.value("kms_verify_cache_hits_total", hit="true")
        await self.refused(404, "NotFound", "POST", "/verify", body)
        self.assertEqual(self.value("kms_verify_cache_hits_total", hit="false"), 1)
        self.assertEqual(self.value("kms_verify_cache_hits_total", hit="true"), hits)

    async def test_an_op_id_is_told(self) -> None:
        await self.create(op_id=op_id(7))
        for one in self._events("create_request", "create_result"):
            self.assertEqual(one["op_id"], op_id(7))

    async def test_what_stands_for_an_input(self) -> None:
        """By `observability.redact_level`, from the next request on."""
        kid = await self.create()
        for level, fields in (("hashes", {"input_bytes", "payload_b3"}), ("lengths", {"input_bytes"}), ("none", set())):
            self.written.truncate(0)
            self.written.seek(0)
            self.wishes = convert({"observability": {"redact_level": level}}, KmsConfig)
            await self.sign(kid)
            (asked,) = self._events("sign_request")
            self.assertEqual({"input_bytes", "payload_b3"} & set(asked), fields, level)
            if "payload_b3" in fields:
                self.assertEqual(asked["payload_b3"], B3)

    async def test_a_version_that_nobody_named_is_told(self) -> None:
        kid = await self.create()
        await self.sign(bare(kid))
        self.assertNotIn("kid_version", self._events("sign_request")[0])
        self.assertEqual(self._events("sign_result")[0]["kid_version"], 1)

    async def test_every_operation_has_its_event(self) -> None:
        await self._everything()
        events = {one["event"] for one in self._lines()}
        for op in ("sign", "verify", "wrap", "unwrap", "create", "rotate"):
            self.assertLessEqual({f"{op}_request", f"{op}_result"}, events)

    async def test_no_line_has_a_key_a_payload_or_a_secret(self) -> None:
        kid, kem, secrets = await self._everything()
        written = self.written.getvalue()
        self.assertGreater(written.count("\n"), 10)
        names = [kid, bare(kid), kem, bare(kem), UNKNOWN, parse_kid(kid).uuid, parse_kid(kem).uuid]
        for text in (*names, *secrets, str(self.token), SECRET):
            self.assertNotIn(text, written)
        for one in self._lines():
            self.assertFalse({"kid", "payload", "payload_b64", "capability", "plaintext_key_b64"} & set(one), one)

    async def test_each_line_is_one_object(self) -> None:
        await self._everything()
        for line in self.written.getvalue().splitlines():
            self.assertIsInstance(json.loads(line), dict)

    async def test_readiness_is_told_when_it_changes(self) -> None:
        self.backend.away = True
        await self.until(lambda: "backend_ready" in self.health.snapshot().degraded, "the outage to be seen")
        self.backend.away = False
        await self.until(lambda: not self.health.snapshot().degraded, "the backend to be back")
        told = [(one["event"], one["key"]) for one in self._lines() if one["event"].startswith("readyz_")]
        self.assertEqual(told[-2:], [("readyz_false", "backend_ready"), ("readyz_true", "backend_ready")])

    async def test_the_backend_comes_and_goes_once(self) -> None:
        self.backend.away = True
        await self.until(lambda: self._events("backend_session_down"), "the outage to be told")
        self.backend.away = False
        await self.until(lambda: not self.health.snapshot().degraded, "the backend to be back")
        told = [one["event"] for one in self._lines() if one["event"].startswith("backend_session_")]
        self.assertEqual(told, ["backend_session_up", "backend_session_down", "backend_session_up"])

    async def test_a_signed_head_is_told(self) -> None:
        await self.create()
        await self.service.log.checkpoint()
        await self.until(lambda: self._events("audit_checkpoint_ok"), "the head to be told")

    def _events(self, *names: str) -> list[dict[str, Any]]:
        return [one for one in self._lines() if one["event"] in names]

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.written.getvalue().splitlines()]
