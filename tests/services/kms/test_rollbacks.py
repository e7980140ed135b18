"""I-6 for each backend, over a service as it runs: an older copy put back, writes refused, verifying served.

The file backend's is in `test_invariants`. Needs SoftHSM, swtpm.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ron.kernel import Metrics
from ron.proto.kms import Alg, parse_kid
from ron.services.kms.backends.measured import BackendMeters, Measured
from ron.services.kms.backends.multi import MultiBackend
from ron.services.kms.backends.pkcs11 import Pkcs11Backend
from ron.services.kms.backends.pkcs11_sessions import TokenAddress
from ron.services.kms.ports import Backend
from tests.services.kms.backends.softhsm import LABEL, MODULE, NO_SOFTHSM, SoftToken, pin
from tests.services.kms.backends.swtpm import NO_SWTPM, SoftTpm
from tests.services.kms.world import B3, World, at, bare

if NO_SWTPM is None:
    from ron.services.kms.backends.tpm import TpmBackend
    from ron.services.kms.backends.tpm_device import TpmDevice


OTHER = parse_kid("core/audit/ed25519/00000000-0000-4000-8000-0000000000aa#v1")


class Older(World):
    """With a backend of the test's own, whose files are in `kept`."""

    on_disk = True
    timeout = 120

    async def setUp(self) -> None:
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)
        self.place()
        await super().setUp()

    def place(self) -> None:
        """What the backend stands on."""

    def on_token(self) -> Backend:
        """On SoftHSM, and measured, as in a daemon."""
        backend = Pkcs11Backend(TokenAddress(MODULE, LABEL), pin())
        return Measured(backend, BackendMeters(Metrics()))

    async def put_back(self, kept: Callable[[], Path], key: str) -> None:
        """Restored from before the last key: it is refused, for `key`, until the newest is there again."""
        kid = await self.create()
        sigs = (await self.sign(kid))["sigs"]
        await self.end()
        older, newest = self.home / "older", self.home / "newest"
        shutil.copytree(kept(), older)
        await self.begin()
        await self.create()
        await self.end()
        shutil.copytree(kept(), newest)
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3}
        replaced(kept(), older)
        await self.begin()
        for _ in range(2):
            self.assertIn(key, self.health.snapshot().missing)
            await self.refused(503, "StoreUnavailable", "POST", "/sign", body)
            await self.refused(503, "StoreUnavailable", "POST", at(bare(kid)) + "/rotate")
            self.assertTrue((await self.verify(sigs, kid))["ok"])
            await self.again()
        await self.end()
        replaced(kept(), newest)
        await self.begin()


def replaced(place: Path, by: Path) -> None:
    """Another directory's files in the place of its own. A lock stays where it is."""
    shutil.rmtree(place)
    shutil.copytree(by, place)


class OlderToken(Older):
    skip = NO_SOFTHSM

    def place(self) -> None:
        self.soft = SoftToken(self.stack)

    def make_backend(self) -> Backend:
        return self.on_token()

    async def test_i06_an_older_token(self) -> None:
        await self.put_back(lambda: self.soft.tokens, "audit_ready")


class OlderSecond(Older):
    """Behind several: it need not be the first."""

    skip = NO_SOFTHSM

    def place(self) -> None:
        self.soft = SoftToken(self.stack)

    def make_backend(self) -> Backend:
        return MultiBackend([self.on_token(), super().make_backend()])

    async def test_i06_an_older_copy_of_the_second(self) -> None:
        sealed = self.home / "sealed"
        await self.end()
        files = World.make_backend(self)
        files.open()
        files.close()
        await self.begin()
        kid = await self.create()
        sigs = (await self.sign(kid))["sigs"]
        await self.end()
        older = self.home / "older-files"
        shutil.copytree(sealed, older)
        files = World.make_backend(self)
        files.open()
        files.generate(OTHER, (Alg.ED25519,))
        files.close()
        await self.begin()
        await self.create()
        await self.end()
        replaced(sealed, older)
        await self.begin()
        self.assertIn("audit_ready", self.health.snapshot().missing)
        self.assertIn("backend file", self.health.snapshot().reasons["audit_ready"])
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3}
        await self.refused(503, "StoreUnavailable", "POST", "/sign", body)
        self.assertTrue((await self.verify(sigs, kid))["ok"])


class OlderTpm(Older):
    """The TPM's own counter tells before the audit log does."""

    skip = NO_SWTPM

    def place(self) -> None:
        self.tpm = SoftTpm(self.stack)

    def make_backend(self) -> Backend:
        return TpmBackend(self.home / "tpm", TpmDevice(self.tpm.tcti), allow_unlocked=True)

    async def test_i06_an_older_copy_under_a_tpm(self) -> None:
        await self.put_back(lambda: self.home / "tpm", "backend_ready")
