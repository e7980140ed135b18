"""The key service's client against the service itself, behind its socket."""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from blake3 import blake3
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from ron.auth import Caveat
from ron.kernel.unixsock import UnixListener
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Signature
from ron.sdk.client import Api
from ron.sdk.kms import DEADLINE_S, Kms, kms_at, payload_b3
from ron.sdk.transport import connection_pool, unix_http
from ron.services.kms.api import SLOW_DEADLINE_S
from tests.services.kms.world import UNKNOWN, World, bare, op_id
from tests.web.wire import until


class WithKms(World):
    """`self.socket` answers as the daemon's."""

    async def setUp(self) -> None:
        await super().setUp()
        self.run = Path(tempfile.mkdtemp(prefix="ron-"))
        self.addCleanup(shutil.rmtree, self.run, True)
        self.socket = self.run / "run" / "kms.sock"
        listener = UnixListener(reactor, self.socket, self.site, backlog=16)
        listener.listen()
        self.addCleanup(until, lambda: not self.site.channels)
        self.addCleanup(listener.stop)

    def kms(self, *caveats: tuple[str, str]) -> Kms:
        pool = connection_pool(reactor)
        self.addCleanup(pool.closeCachedConnections)
        cap = self.authority.mint([Caveat(*caveat) for caveat in caveats or (("scope", "*"),)])
        return Kms(
            Api(reactor, unix_http(reactor, self.socket, pool), "http://kms", cap, deadline_s=DEADLINE_S, tries=1)
        )

    async def fails(self, call: Any) -> RonError:
        error: RonError = await self.assertFailure(Deferred.fromCoroutine(call), RonError)
        return error


class Bad(WithKms):
    async def test_what_is_not_asked_at_all(self) -> None:
        """A name that is none can lead nowhere else."""
        kms = self.kms()
        for call in (
            kms.get("../../caps"), kms.get(""), kms.rotate("x"), kms.destroy("x", "p"), kms.attest("x"),
            kms.sign(UNKNOWN, "7f"), kms.sign("x", "7f" * 32), kms.verify("7f" * 32, ()),
            kms.create("co re", "audit"), kms.wrap(UNKNOWN, size=5), kms.create("core", "audit", op_id="1"),
        ):  # fmt: skip
            self.assertEqual((await self.fails(call)).code, ErrorCode.BAD_REQUEST)
        self.assertEqual(self.value("kms_ops_total", op="sign", alg="-", result="err"), 0)

    async def test_refusals_are_errors_with_their_codes(self) -> None:
        self.assertEqual((await self.fails(self.kms().get(UNKNOWN))).code, ErrorCode.NOT_FOUND)
        narrow = self.kms(("scope", "kms:read"))
        self.assertEqual((await self.fails(narrow.sign(UNKNOWN, "7f" * 32))).code, ErrorCode.NO_CAPABILITY)


class Good(WithKms):
    async def test_all_of_it(self) -> None:
        kms = self.kms()
        made = await kms.create("core", "audit", "ed25519", policy_hints={"rotate_days": 30})
        hashed = payload_b3(b"hello world")
        self.assertEqual(hashed, blake3(b"hello world").hexdigest())
        signed = await kms.sign(made.kid, hashed, produce_hybrid=True)
        self.assertTrue((await kms.verify(hashed, signed.sigs, kid=made.kid, mode="and")).ok)
        wrong = [Signature(alg=one.alg, signature_b64=one.signature_b64) for one in signed.sigs[:1]]
        self.assertFalse((await kms.verify("7f" * 32, wrong, kid=made.kid, mode="or")).ok)
        turned = await kms.rotate(made.kid)
        self.assertEqual((turned.previous, (await kms.get(bare(made.kid))).kid), (made.kid, turned.kid))
        self.assertEqual((await kms.attest(made.kid)).kid, made.kid)
        self.assertEqual((await kms.attest()).backend, "inmem")

    async def test_wrapped_keys(self) -> None:
        kms = self.kms()
        made = await kms.create("core", "kem", "hybrid")
        key = os.urandom(32)
        wrapped = await kms.wrap(made.kid, key)
        opened = await kms.unwrap(bare(made.kid), wrapped.wrapped_b64)
        self.assertEqual(base64.b64decode(opened.plaintext_key_b64), key)
        self.assertEqual((await kms.wrap(made.kid, size=32, kem_mode="pq")).alg, "ml-kem")

    async def test_page_after_page(self) -> None:
        kms = self.kms()
        for number in range(101):
            await kms.create("core", f"p{number}", "ed25519")
        self.assertEqual(len([one async for one in kms.all_keys("core")]), 101)
        self.assertEqual(len([one async for one in self.kms(("scope", "*"), ("tenant", "acme")).all_keys()]), 0)

    async def test_one_act(self) -> None:
        kms = self.kms()
        caller = self.kms()
        self.assertIsNot(kms, caller)
        first = await kms.create("core", "audit", op_id=op_id(1))
        self.assertEqual((await kms.create("core", "audit", op_id=op_id(1))).kid, first.kid)
        self.votes.allowed["p"] = ("destroy_key", "tenant:core", {"kid": first.kid})
        self.assertTrue((await kms.destroy(first.kid, "p")).destroyed)

    async def test_the_log(self) -> None:
        kms = self.kms()
        await kms.create("core", "audit")
        await self.service.log.checkpoint()
        self.assertTrue((await kms.checkpoint()).startswith(b"ron-kms/"))
        page = await kms.entries(0, 10)
        self.assertEqual(len(page.entries), page.size)
        self.assertEqual((await kms.inclusion(0, 2)).size, 2)
        self.assertEqual((await kms.consistency(1, 2)).old, 1)

    def test_it_waits_longer_than_the_service_works(self) -> None:
        self.assertGreater(DEADLINE_S, SLOW_DEADLINE_S)
        self.assertEqual(kms_at(reactor, self.socket, None).base_url, "http://kms")
