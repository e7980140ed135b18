"""An owner in this process with real workers beside it: OAP/1, TLS, what a quorum decides, a config that changes.

Needs nothing but the venv.
"""

from __future__ import annotations

import json
import time
from typing import Any, ClassVar

import msgspec
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint

from ron.kernel.tls import ClientTls
from ron.nodes.parts.kms import HostedKms
from ron.oap import OapClient
from ron.proto.errors import ErrorCode
from ron.proto.kms import CreateKeyResponse, SignRequest, SignResponse, VerifyResponse
from ron.proto.kmscalls import OAP_PROTOCOL, KmsCall
from ron.sdk import direct_http, tls_http
from tests.nodes import test_kms
from tests.services.kms.governance.people import the_three

B3 = test_kms.B3
WORKERS = 2


async def signed(kms: Any, kid: str) -> SignResponse:
    """Without the op_id that the SDK gives each call, and that makes it the owner's."""
    answer: SignResponse = await kms._post("/sign", SignResponse, SignRequest(kid_or_set=kid, payload_b3=B3))
    return answer


class Crewed(test_kms.Hosted):
    timeout = 120
    sections: ClassVar[str] = ""

    def write(self, more: str) -> None:
        text = f"workers = {WORKERS}\n{more}\n[security]\nallow_unlocked = true\n{self.sections}"
        self.path.write_text(text, encoding="utf-8")

    async def up(self) -> HostedKms:
        hosted = await super().up()
        assert hosted.workers is not None
        self.assertEqual(len(hosted.workers.pids), WORKERS, self.runtime.health.snapshot())
        return hosted

    async def by_workers(self, hosted: HostedKms, op: str) -> float:
        """How many of `op` went well in workers."""
        assert hosted.workers is not None
        found = await hosted.workers.families()
        return sum(
            sample.value
            for families in found.values()
            for family in families
            if family.name == "kms_ops"
            for sample in family.samples
            if sample.labels == {"op": op, "alg": "ed25519", "result": "ok"}
        )


class OverOap(Crewed):
    more = 'oap_addr = "127.0.0.1:0"'

    async def test_calls_of_workers_and_of_the_owner(self) -> None:
        hosted = await self.up()
        assert hosted.doors.oap_address is not None
        cap = self.runtime.write_admin_capability().read_text().strip().encode()
        client = await OapClient.connect(reactor, TCP4ClientEndpoint(reactor, *hosted.doors.oap_address))

        async def call(code: KmsCall, body: Any, kind: Any = dict) -> Any:
            answer = await client.call(OAP_PROTOCOL, code, json.dumps(body).encode(), cap=cap)
            return msgspec.json.decode(answer.payload, type=kind)

        key = {"tenant": "core", "purpose": "audit", "alg": "ed25519"}
        kid = (await call(KmsCall.CREATE_KEY, key, CreateKeyResponse)).kid
        sign = {"kid_or_set": kid, "payload_b3": B3}
        sigs = msgspec.to_builtins((await call(KmsCall.SIGN, sign, SignResponse)).sigs)
        verify = {"kid_or_set": kid, "payload_b3": B3, "sigs": sigs}
        self.assertTrue((await call(KmsCall.VERIFY, verify, VerifyResponse)).ok)
        once = {**sign, "op_id": "00000000-0000-4000-8000-000000000001"}
        self.assertEqual(await call(KmsCall.SIGN, once), await call(KmsCall.SIGN, once))
        self.assertEqual((await call(KmsCall.GET_KEY, {"kid": kid}))["kid"], kid)
        self.assertEqual(len((await call(KmsCall.LIST_KEYS, {"tenant": "core"}))["keys"]), 1)
        turned = await call(KmsCall.ROTATE, {"kid": kid.partition("#")[0]})
        self.assertEqual((await call(KmsCall.SIGN, {**sign, "kid_or_set": turned["kid"]}))["kid"], turned["kid"])
        error = await self.refused(call(KmsCall.DESTROY_KEY, {"kid": kid, "proposal": "none"}))
        self.assertEqual(error.code, ErrorCode.NO_CAPABILITY)
        await client.close()
        # the one with an op_id is the owner's
        self.assertEqual((await self.by_workers(hosted, "sign"), await self.by_workers(hosted, "verify")), (2, 1))


class OverTls(Crewed):
    sections = '[tls]\nenabled = true\ncert_path = "kms.crt"\nkey_path = "kms.key"\n'
    issue = test_kms.OverTls.issue

    async def test_workers_speak_it(self) -> None:
        ca = self.issue()
        hosted = await self.up()
        tls = ClientTls(ca, None, None, "127.0.0.1")
        kms = self.api(tls_http(reactor, tls, self.pool()), f"https://{hosted.address}")
        made = await kms.create("core", "audit")
        self.assertEqual((await signed(kms, made.kid)).kid, made.kid)
        plain = self.api(direct_http(reactor, self.pool()), f"http://{hosted.address}")
        await self.refused(signed(plain, made.kid))
        self.assertEqual(await self.by_workers(hosted, "sign"), 1)


class Governed(Crewed):
    sections = '[governance]\nsigners = "signers.json"\n'
    decide = test_kms.Governed.decide

    def write(self, more: str) -> None:
        three = the_three(int(time.time()))
        (self.home / "signers.json").write_bytes(msgspec.json.encode(three))
        super().write(more)

    async def test_what_a_quorum_freezes_no_worker_signs(self) -> None:
        hosted = await self.up()
        kms = self.api(direct_http(reactor, self.pool()), f"http://{hosted.address}")
        frozen, other = await kms.create("core", "audit"), await kms.create("acme", "audit")
        await signed(kms, frozen.kid)
        await self.decide(hosted, "freeze", {"freeze": "on"})
        # at once, whatever workers have heard: the owner takes no record of it
        for _ in range(4):
            error = await self.refused(signed(kms, frozen.kid))
            self.assertEqual(error.code, ErrorCode.NO_CAPABILITY)
            self.assertIn("frozen", error.message)
        await signed(kms, other.kid)
        self.assertEqual(await self.by_workers(hosted, "sign"), 2)

    async def test_destroyed_by_two(self) -> None:
        hosted = await self.up()
        kms = self.api(direct_http(reactor, self.pool()), f"http://{hosted.address}")
        made = await kms.create("core", "audit")
        await signed(kms, made.kid)
        proposal = await self.decide(hosted, "destroy_key", {"kid": made.kid})
        self.assertTrue((await kms.destroy(made.kid, proposal)).destroyed)
        for _ in range(4):
            self.assertEqual((await self.refused(signed(kms, made.kid))).code, ErrorCode.NOT_FOUND)

    async def test_a_weaker_config_waits_for_the_quorum_in_all_processes(self) -> None:
        hosted = await self.up()
        kms = self.api(direct_http(reactor, self.pool()), f"http://{hosted.address}")
        made = await kms.create("core", "audit")
        await signed(kms, made.kid)
        self.write('[pq]\nproduce_hybrid = false\nverify_mode = "or"\n')
        self.runtime.config.reload()
        for _ in range(4):
            self.assertEqual((await self.refused(signed(kms, made.kid))).code, ErrorCode.NO_CAPABILITY)
        self.write("")
        self.runtime.config.reload()
        await signed(kms, made.kid)
