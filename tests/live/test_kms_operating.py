"""What operators of `twistd -n ron-kms` are promised besides keys: its status, another passphrase, spans.

Needs nothing but the venv.
"""

from __future__ import annotations

import json
from typing import Any
from unittest import TestCase

from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tests.kernel.test_tracing import Collector, plain
from tests.live.support import Daemon, http

CONFIG = '[service]\nbackend = "file"\n[security]\nallow_unlocked = true\n'
B3 = "7f" * 32
CORR_ID = "018f3a6e-0000-7000-8000-000000000001"
PARENT = "00f067aa0ba902b7"


class Case(TestCase):
    more = ""

    def setUp(self) -> None:
        self.daemon = Daemon("ron-kms", CONFIG + self.more, "kms.json")
        self.addCleanup(self.daemon.destroy)
        self.daemon.start()

    def said(self, *words: str) -> Any:
        done = self.daemon.ronctl(*words, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def key(self) -> str:
        return str(self.said("kms", "key", "create", "--tenant", "core", "--purpose", "audit")["kid"])


class Operating(Case):
    def test_its_status(self) -> None:
        kid = self.key()
        shown = self.daemon.ronctl("status")
        self.assertEqual(shown.returncode, 0, shown.stderr)
        self.assertIn("ron-kms  ready, up ", shown.stdout)
        self.assertIn("keys     2 in file, verify mode and", shown.stdout)
        found = self.said("status")
        self.assertEqual((found["service"], found["ready"]), ("ron-kms", True))
        self.assertEqual(found["kms_url"], self.daemon.facts()["kms_url"])
        pem = self.daemon.ronctl("kms", "key", "show", kid, "--pem").stdout
        key: Any = load_pem_public_key(pem.encode())
        self.assertEqual(type(key).__name__, "Ed25519PublicKey")

    def test_another_passphrase(self) -> None:
        """Not while it runs; then the same keys sign under the new one, and the old one opens nothing."""
        kid, file = self.key(), self.daemon.home / "kms" / "passphrase"
        old = file.read_bytes()
        change = ("kms", "passphrase", "change", "--allow-unlocked")
        refused = self.daemon.ronctl(*change)
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("in use", refused.stderr)
        self.assertEqual(file.read_bytes(), old)
        self.assertEqual(self.daemon.stop(), 0)
        changed = self.daemon.ronctl(*change)
        self.assertEqual(changed.returncode, 0, changed.stderr)
        self.assertNotEqual(file.read_bytes(), old)
        self.daemon.start()
        self.assertEqual(self.said("kms", "sign", "--kid", kid, "--payload-b3", B3)["kid"], kid)
        self.assertEqual(self.daemon.stop(), 0)
        new = file.read_bytes()
        file.write_bytes(old)
        wrong = self.daemon.ronctl(*change)
        self.assertNotEqual(wrong.returncode, 0)
        file.write_bytes(new)
        self.daemon.start()
        self.assertEqual(self.said("kms", "sign", "--kid", kid, "--payload-b3", B3)["kid"], kid)


class Traced(Case):
    """A caller's traceparent in, spans out, under the correlation id that it sent."""

    def setUp(self) -> None:
        self.collector = Collector()
        self.addCleanup(self.collector.close)
        self.more = f'[tracing]\notel_endpoint = "{self.collector.url}"\nsampling = 1.0\n'
        super().setUp()

    def test_a_signature(self) -> None:
        kid = self.key()
        headers = {"X-Corr-ID": CORR_ID, "traceparent": f"00-{CORR_ID.replace('-', '')}-{PARENT}-01"}
        body = {"kid_or_set": kid, "payload_b3": B3}
        url = f"{self.daemon.facts()['kms_url']}/v1/kms/sign"
        signed = http("POST", url, cap=self.daemon.admin_cap(), body=body, headers=headers)
        self.assertEqual(signed.status, 200, signed.body)
        self.assertEqual(self.daemon.stop(), 0)
        trace = bytes.fromhex(CORR_ID.replace("-", ""))
        spans = [(resource, span) for resource, span in self.collector.spans() if span.trace_id == trace]
        found = {span.name: span for _resource, span in spans}
        self.assertEqual({resource["service.name"] for resource, _span in spans}, {"ron-kms"})
        self.assertEqual(found["svc.kms.http"].parent_span_id.hex(), PARENT)
        self.assertEqual(found["svc.kms.sign"].parent_span_id, found["svc.kms.http"].span_id)
        for name in ("backend.file.sign", "svc.kms.audit.append"):
            self.assertEqual(found[name].parent_span_id, found["svc.kms.sign"].span_id)
        self.assertEqual(plain(found["svc.kms.http"].attributes)["route"], "/v1/kms/sign")
        self.assertNotIn(kid, str(self.collector.received))
