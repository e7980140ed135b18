"""`twistd -n ron-kms` on each backend: make a key, sign, verify elsewhere, rotate, restart, sign again.

Needs softhsm2, swtpm and moto's server for those backends.
"""

from __future__ import annotations

import base64
from contextlib import ExitStack
from typing import Any
from unittest import TestCase
from urllib.parse import quote

from nacl.signing import VerifyKey

from tests.live.support import Daemon, Reply, http
from tests.live.test_kms_cloud import NO_CLOUD, REGION, the_server
from tests.services.kms.backends.softhsm import LABEL, MODULE, NO_SOFTHSM, PIN, SoftToken, environment
from tests.services.kms.backends.swtpm import NO_SWTPM, SoftTpm

B3 = "7f" * 32
KEY = base64.b64encode(b"k" * 32).decode()


class Life(TestCase):
    """More: lines of the config, beside the backend's name."""

    def setUp(self) -> None:
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)

    def begin(self, service: str, more: str = "") -> None:
        """A daemon with this backend, up."""
        text = f"[service]\n{service}\n[security]\nallow_unlocked = true\n{more}\n"
        self.daemon = Daemon("ron-kms", text, "kms.json")
        self.stack.callback(self.daemon.destroy)
        self.daemon.start()

    def ask(self, method: str, path: str, body: Any = None) -> Reply:
        url = f"{self.daemon.facts()['kms_url']}/v1/kms{path}"
        return http(method, url, cap=self.daemon.admin_cap(), body=body)

    def done(self, method: str, path: str, body: Any = None) -> Any:
        reply = self.ask(method, path, body)
        self.assertEqual(reply.status, 200, reply.body)
        return reply.json()

    def sign(self, bare: str, version: int) -> None:
        """By that version, and PyNaCl and the service itself find it good."""
        signed = self.done("POST", "/sign", {"kid_or_set": bare, "payload_b3": B3})
        self.assertEqual(signed["kid"], f"{bare}#v{version}")
        shown = self.done("GET", f"/keys/{quote(signed['kid'], safe='')}")
        public = VerifyKey(base64.b64decode(shown["public"]["pubkey_b64"]))
        public.verify(bytes.fromhex(B3), base64.b64decode(signed["sigs"][0]["signature_b64"]))
        verify = {"payload_b3": B3, "sigs": signed["sigs"], "kid_or_set": bare, "policy": {"mode": "and"}}
        self.assertTrue(self.done("POST", "/verify", verify)["ok"])

    def wraps(self, bare: str) -> str:
        """An envelope, which opens."""
        wrapped: str = self.done("POST", "/wrap", {"kid": bare, "plaintext_key_b64": KEY})["wrapped_b64"]
        self.opens(bare, wrapped)
        return wrapped

    def opens(self, bare: str, wrapped: str) -> None:
        opened = self.done("POST", "/unwrap", {"kid": bare, "wrapped_b64": wrapped})
        self.assertEqual(opened["plaintext_key_b64"], KEY)

    def create(self, purpose: str) -> str:
        made = self.done("POST", "/keys", {"tenant": "core", "purpose": purpose, "alg": "hybrid"})
        return str(made["kid"].partition("#")[0])

    def whole_life(self, *, lasts: bool = True) -> None:
        """All of it; with `lasts`, over a restart."""
        signs, wraps = self.create("audit"), self.create("kem")
        self.sign(signs, 1)
        wrapped = self.wraps(wraps)
        self.done("POST", f"/keys/{quote(signs, safe='')}/rotate", {})
        self.sign(signs, 2)
        self.assertEqual(self.daemon.stop(), 0)
        (self.daemon.home / "kms.json").unlink(missing_ok=True)
        self.daemon.start()
        if lasts:
            self.sign(signs, 2)
            self.opens(wraps, wrapped)
        ready = http("GET", f"{self.daemon.facts()['admin_url']}/readyz")
        self.assertEqual(ready.status, 200, ready.body)

    def test_in_memory(self) -> None:
        """The metadata lasts unless it is told otherwise, the keys do not: so amnesia."""
        self.begin('backend = "inmem"\namnesia = true', '[log]\nto = "memory"')
        self.whole_life(lasts=False)

    def test_files(self) -> None:
        self.begin('backend = "file"')
        self.whole_life()

    def test_files_by_age(self) -> None:
        self.begin('backend = "file"', '[backends.file]\nkdf = "age"')
        self.whole_life()

    def test_a_token(self) -> None:
        if NO_SOFTHSM:
            self.skipTest(NO_SOFTHSM)
        SoftToken(self.stack)
        self.stack.enter_context(environment(KMS_TEST_PIN=PIN))
        lines = f'[backends.pkcs11]\nmodule_path = "{MODULE}"\nslot_label = "{LABEL}"\npin_env = "KMS_TEST_PIN"'
        self.begin('backend = "pkcs11"', lines)
        self.whole_life()

    def test_a_tpm(self) -> None:
        if NO_SWTPM:
            self.skipTest(NO_SWTPM)
        tpm = SoftTpm(self.stack)
        self.begin('backend = "tpm"', f'[backends.tpm]\ntcti = "{tpm.tcti}"\npcrs = [7, 23]')
        self.whole_life()

    def test_a_cloud_before_files(self) -> None:
        if NO_CLOUD:
            self.skipTest(NO_CLOUD)
        names = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }
        self.stack.enter_context(environment(**names))
        server = the_server()
        where = f'region = "{REGION}"\nendpoint = "{server.endpoint}"'
        lines = f'[backends.cloud]\nkey_id = "{server.key_id}"\n{where}'
        self.begin('backend = "cloud"\nmulti_backends = ["cloud", "file"]', lines)
        self.whole_life()
