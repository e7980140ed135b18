"""A token that hears and says nothing, under a service: bounded time, typed errors, readiness.

Needs SoftHSM and p11-kit.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from ron.services.kms.backends.measured import BackendMeters, Measured
from ron.services.kms.backends.pkcs11 import Pkcs11Backend
from ron.services.kms.backends.pkcs11_sessions import TokenAddress
from ron.services.kms.ports import Backend
from tests.services.kms.backends.softhsm import CLIENT, LABEL, NO_P11KIT, NO_SOFTHSM, SoftToken, TokenServer, pin
from tests.services.kms.world import B3, World

CALLERS = 12
# two seconds in the lanes (CONCURRENCY §5), and what a busy machine adds
IN_TIME_S = 10.0


class Hanging(World):
    skip = NO_SOFTHSM or NO_P11KIT
    on_disk = True
    timeout = 180

    async def setUp(self) -> None:
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)
        self.server = TokenServer(SoftToken(self.stack), self.stack)
        # whatever the test finds: a process that hangs in a call does not end
        self.stack.callback(lambda: self.server.pause(on=False))
        await super().setUp()

    def make_backend(self) -> Backend:
        backend = Pkcs11Backend(TokenAddress(CLIENT, LABEL), pin())
        return Measured(backend, BackendMeters(self.metrics))

    async def test_it_hears_and_says_nothing(self) -> None:
        """Every caller is answered in time, then nobody is even let in; verifying goes on; and all is well again."""
        kid = await self.create()
        sigs = (await self.sign(kid))["sigs"]
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3}
        self.server.pause(on=True)
        began = time.monotonic()
        answers: list[Any] = await gatherResults(
            [Deferred.fromCoroutine(self.ask("POST", "/sign", body)) for _ in range(CALLERS)]
        )
        self.assertLess(time.monotonic() - began, IN_TIME_S)
        self.assertLessEqual({answer.code for answer in answers}, {"Timeout", "StoreUnavailable"})
        await self.until(lambda: self.service.guard.why_not("backend_ready"), "readiness")
        self.assertFalse(self.health.snapshot().ready and not self.health.snapshot().degraded)
        for _ in range(3):
            await self.refused(503, "StoreUnavailable", "POST", "/sign", body)
        self.assertTrue((await self.verify(sigs, kid))["ok"])
        self.assertGreater(self.value("kms_backend_oldest_call_seconds", backend="pkcs11"), 1.0)
        self.server.pause(on=False)
        await self.until(lambda: not self.service.guard.why_not("backend_ready"), "the token")
        self.assertTrue((await self.sign(kid))["sigs"])
        self.assertEqual(self.value("kms_backend_oldest_call_seconds", backend="pkcs11"), 0.0)
